package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/urfave/cli/v2"

	"pvc.internal/cluster"
	"pvc.internal/peer/pki"
)

// pkiCommand is `pvc pki …`: the certificates with which nodes know each other.
// It works on files alone and asks no pvcapid.
func (t *terminal) pkiCommand() *cli.Command {
	dir := &cli.StringFlag{Name: "dir", Usage: "`FOLDER` of the authority", Value: "/etc/pvc/pki"}
	out := &cli.StringFlag{Name: "out", Usage: "`FOLDER` to write the node's files to (default: one by its name below --dir)"}
	days := &cli.IntFlag{Name: "days", Usage: "how many `DAYS` the certificate lasts", Value: pki.NodeDays}
	force := &cli.BoolFlag{Name: "force", Usage: "replace a key that is there"}
	return &cli.Command{Name: "pki", Usage: "certificates of the nodes", Subcommands: []*cli.Command{
		{Name: "init", Usage: "make the cluster's authority, for ten years", Action: t.pkiInit, Flags: []cli.Flag{
			&cli.StringFlag{Name: "cluster", Usage: "the cluster's `NAME`, as cluster.name in the settings"}, dir, force}},
		{Name: "issue", Usage: "make a node's key and certificate", ArgsUsage: "NODE", Action: t.pkiIssue, Flags: []cli.Flag{dir, out, days, force}},
		{Name: "renew", Usage: "sign a node's present key anew; only its certificate changes", ArgsUsage: "NODE", Action: t.pkiRenew, Flags: []cli.Flag{dir, out, days}},
		{Name: "status", Usage: "show names and dates, and check that key, certificate and authority fit", Action: t.pkiStatus, Flags: []cli.Flag{dir}},
	}}
}

func (t *terminal) pkiInit(c *cli.Context) error {
	if _, err := names(c); err != nil {
		return err
	}
	if _, err := format(c); err != nil {
		return err // before anything is written
	}
	if c.String("cluster") == "" {
		return usagef("`pvc pki init` needs --cluster NAME, the name in cluster.name of the settings")
	}
	made, err := pki.Init(c.String("dir"), c.String("cluster"), c.Bool("force"), time.Now())
	if err != nil {
		return pkiRefusal(err)
	}
	return t.show(c, made, func() {
		t.pkiMade(made)
		t.say("Whoever has ca.key can make nodes: keep it off the nodes, and keep a copy.")
	})
}

func (t *terminal) pkiIssue(c *cli.Context) error {
	n, err := t.pkiNode(c)
	if err != nil {
		return err
	}
	made, err := pki.Issue(c.String("dir"), n, c.String("out"), c.Int("days"), c.Bool("force"), time.Now())
	if err != nil {
		return pkiRefusal(err)
	}
	return t.show(c, made, func() {
		t.pkiMade(made)
		t.say("Copy the files to /etc/pvc/pki on %s; a running daemon reads them within a minute.", n)
	})
}

func (t *terminal) pkiRenew(c *cli.Context) error {
	n, err := t.pkiNode(c)
	if err != nil {
		return err
	}
	made, err := pki.Renew(c.String("dir"), n, c.String("out"), c.Int("days"), time.Now())
	if err != nil {
		return pkiRefusal(err)
	}
	return t.show(c, made, func() {
		t.pkiMade(made)
		t.say("Copy node.pem over the one on %s, its key stays; a running daemon reads it within a minute.", n)
	})
}

// pkiNode returns the one node that the command line names.
func (t *terminal) pkiNode(c *cli.Context) (cluster.NodeID, error) {
	given, err := names(c, "a node's name")
	if err != nil {
		return "", err
	}
	n := cluster.NodeID(given[0])
	if err := n.Validate(); err != nil {
		return "", usageError{err.Error()}
	}
	if _, err := format(c); err != nil {
		return "", err // before anything is written
	}
	return n, nil
}

func (t *terminal) pkiMade(m pki.Made) {
	t.say("%s, until %s", m.Name, m.Expires.UTC().Format(time.DateOnly))
	for _, f := range m.Files {
		t.say("  %s", f)
	}
}

// pkiRefusal has a key that is there end the program as a refusal.
func pkiRefusal(err error) error {
	if errors.Is(err, pki.ErrExists) {
		return fmt.Errorf("%w: %w", cluster.ErrRefused, err)
	}
	return err
}

// pkiStatus shows what lies in the folder and fails where something is wrong.
func (t *terminal) pkiStatus(c *cli.Context) error {
	if _, err := names(c); err != nil {
		return err
	}
	s, err := pki.Look(c.String("dir"), time.Now())
	if err != nil {
		return err
	}
	if err := t.show(c, s, func() { t.pkiTable(s) }); err != nil {
		return err
	}
	switch bad := s.Problems(); bad {
	case 0:
		return nil
	case 1:
		return errors.New("1 problem with the certificates")
	default:
		return fmt.Errorf("%d problems with the certificates", bad)
	}
}

func (t *terminal) pkiTable(s pki.Status) {
	t.say("cluster %s, %s", s.Cluster, s.Dir)
	g := t.grid("name", "names in it", "expires", "days", "key", "file")
	for _, e := range s.Entries {
		expires := ""
		if !e.NotAfter.IsZero() {
			expires = e.NotAfter.Format(time.DateOnly)
		}
		g.AppendRow(table.Row{e.Name, strings.Join(e.SANs, " "), expires, e.DaysLeft, e.Key, e.File})
	}
	g.Render()
	for _, e := range s.Entries {
		for _, p := range e.Problems {
			t.say("! %s: %s", e.Name, p)
		}
		for _, w := range e.Warnings {
			t.say("  %s: %s", e.Name, w)
		}
	}
}
