package main

import (
	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/urfave/cli/v2"

	"pvc.internal/cluster"
	"pvc.internal/fencing"
)

func (t *terminal) fenceSecretCommand() *cli.Command {
	return &cli.Command{Name: "secret", Usage: "sealed passwords that ZooKeeper keeps for all coordinators (password_secret)", Subcommands: []*cli.Command{
		{Name: "list", Usage: "list their names, never what is sealed", Action: t.secretList},
		{Name: "set", Usage: "seal a password, read from the standard input or asked for, and store it", ArgsUsage: "NAME", Action: t.secretSet, Flags: sealingKey()},
		{Name: "remove", Usage: "remove one; devices that name it cannot be used from then on", ArgsUsage: "NAME", Action: t.secretRemove},
	}}
}

func (t *terminal) secretList(c *cli.Context) error {
	if _, err := names(c); err != nil {
		return err
	}
	ask, err := client(c)
	if err != nil {
		return err
	}
	all, err := ask.Secrets(c.Context)
	if err != nil {
		return err
	}
	return t.show(c, all, func() {
		if len(all) == 0 {
			t.say("no secrets")
			return
		}
		g := t.grid("name", "set by", "at", "trouble")
		for _, s := range all {
			g.AppendRow(table.Row{s.Name, s.By, clockTime(s.UnixMS), s.Trouble})
		}
		g.Render()
	})
}

// secretSet seals here: the password itself leaves this process only sealed.
func (t *terminal) secretSet(c *cli.Context) error {
	if len(c.Args().Slice()) > 1 { // the second might be the password: it is not repeated
		return usagef("`pvc fence secret set` takes the secret's name only: the password is read from the standard input, so that it stands in no list of processes and no shell history. If it was on the command line, change it")
	}
	name, err := secretName(c)
	if err != nil {
		return err
	}
	ask, err := client(c)
	if err != nil {
		return err
	}
	recipient, err := recipient(c)
	if err != nil {
		return err
	}
	password, err := t.readPassword(c.Context)
	if err != nil {
		return err
	}
	sealed, err := fencing.Seal(recipient, password)
	if err != nil {
		return err
	}
	t.noteLong(password)
	a, err := ask.SetSecret(c.Context, name, sealed)
	if err != nil {
		return err
	}
	return t.show(c, a, func() { t.say("%s", a.Message) })
}

func (t *terminal) secretRemove(c *cli.Context) error {
	name, err := secretName(c)
	if err != nil {
		return err
	}
	ask, err := client(c)
	if err != nil {
		return err
	}
	a, err := ask.RemoveSecret(c.Context, name)
	if err != nil {
		return err
	}
	return t.show(c, a, func() { t.say("%s", a.Message) })
}

func secretName(c *cli.Context) (string, error) {
	given, err := names(c, "a secret's name")
	if err != nil {
		return "", err
	}
	if err := cluster.CheckSecretName(given[0]); err != nil {
		return "", usagef("%v", err)
	}
	return given[0], nil
}
