package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/urfave/cli/v2"
	"go.yaml.in/yaml/v3"

	"pvc.internal/api"
	"pvc.internal/cluster"
)

// connection is a cluster that this user has a name for.
type connection struct {
	URLs    []string `yaml:"urls" json:"urls"`
	KeyFile string   `yaml:"key_file,omitempty" json:"key_file,omitempty"`
	Key     string   `yaml:"key,omitempty" json:"-"` // never shown
	CA      string   `yaml:"ca,omitempty" json:"ca,omitempty"`
	Cert    string   `yaml:"cert,omitempty" json:"cert,omitempty"`
	CertKey string   `yaml:"cert_key,omitempty" json:"cert_key,omitempty"`
}

// connections is the file of them. It may hold keys, so that whoever else can
// read it makes it refused.
type connections struct {
	Version int                   `yaml:"v"`
	Used    string                `yaml:"used,omitempty"` // where none is named
	Named   map[string]connection `yaml:"connections"`
}

// connectionsFile is where they stand.
func connectionsFile() (string, error) {
	if file := os.Getenv("PVC_CONNECTIONS"); file != "" {
		return file, nil
	}
	dir := os.Getenv("XDG_CONFIG_HOME")
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("find the connections file: %w; set PVC_CONNECTIONS", err)
		}
		dir = filepath.Join(home, ".config")
	}
	return filepath.Join(dir, "pvc", "connections.yaml"), nil
}

// readConnections reads the file; one that is not there holds none.
func readConnections() (connections, string, error) {
	all := connections{Version: 1, Named: map[string]connection{}}
	file, err := connectionsFile()
	if err != nil {
		return all, "", err
	}
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return all, file, nil
	}
	if err != nil {
		return all, file, fmt.Errorf("read the connections: %w", err)
	}
	defer f.Close()
	if err := private(f); err != nil {
		return all, file, err
	}
	d := yaml.NewDecoder(f)
	d.KnownFields(true)
	if err := d.Decode(&all); err != nil {
		return all, file, fmt.Errorf("%s: %w", file, err)
	}
	if all.Version != 1 {
		return all, file, fmt.Errorf("%s is of version %d and this program reads version 1", file, all.Version)
	}
	if all.Named == nil {
		all.Named = map[string]connection{}
	}
	return all, file, nil
}

// private refuses a file that others can read or have made: it may hold a key,
// and says whom a key is sent to.
func private(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("read the connections: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("%s has mode %04o: others can read the keys in it, or put their own server there. `chmod 600 %s`, and change the keys if others were there: %w", f.Name(), mode, f.Name(), cluster.ErrRefused)
	}
	if s, ok := info.Sys().(*syscall.Stat_t); ok && int(s.Uid) != os.Geteuid() && s.Uid != 0 {
		return fmt.Errorf("%s belongs to another user (id %d): %w", f.Name(), s.Uid, cluster.ErrRefused)
	}
	return nil
}

// write replaces the file by one with mode 0600, as a whole or not at all.
func (all connections) write(file string) error {
	raw, err := yaml.Marshal(all)
	if err != nil {
		return fmt.Errorf("encode the connections: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return fmt.Errorf("write the connections: %w", err)
	}
	return writeNewFile(file, raw, true)
}

func (all connections) names() []string {
	var names []string
	for n := range all.Named {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// chosen is the connection that the command line, the environment or the file
// names; ok is false where none does.
func chosen(c *cli.Context) (made connection, ok bool, err error) {
	g := global(c)
	name, named := g.String("connection"), g.IsSet("connection")
	switch byURL := g.IsSet("api"); {
	case byURL && named && flagGiven(g, "api") == flagGiven(g, "connection"):
		return made, false, usagef("--api and --connection say both whom to ask; give one of them")
	case byURL && (!named || flagGiven(g, "api")):
		return made, false, nil
	}
	all, file, err := readConnections()
	if err != nil {
		return made, false, err
	}
	if !named {
		name = all.Used
	}
	if name == "" {
		return made, false, nil
	}
	made, ok = all.Named[name]
	if !ok {
		return made, false, usagef("%s has no connection %q; known: %s. `pvc connection add NAME URL…` makes one", file, name, orNone(all.names()))
	}
	return made, true, nil
}

func orNone(words []string) string {
	if len(words) == 0 {
		return "none"
	}
	return strings.Join(words, ", ")
}

// flagGiven reports whether the flag stood on the command line, and not in the
// environment alone.
func flagGiven(c *cli.Context, name string) bool {
	for _, f := range c.App.Flags {
		if !slices.Contains(f.Names(), name) {
			continue
		}
		doc, ok := f.(cli.DocGenerationFlag)
		if !ok {
			return c.IsSet(name)
		}
		for _, env := range doc.GetEnvVars() {
			if value := os.Getenv(env); value != "" {
				return c.String(name) != value
			}
		}
	}
	return c.IsSet(name)
}

func (t *terminal) connectionCommand() *cli.Command {
	return &cli.Command{Name: "connection", Usage: "clusters that you have names for", Subcommands: []*cli.Command{
		{Name: "add", Usage: "give a cluster a name, or change what it means; the first is used from then on", ArgsUsage: "NAME URL…", Action: t.connectionAdd, Flags: []cli.Flag{
			&cli.StringFlag{Name: "key-file", Usage: "`FILE` whose first line is the API key"},
			&cli.BoolFlag{Name: "store-key", Usage: "read the API key from the standard input and keep it in the connections file itself"},
			&cli.StringFlag{Name: "ca", Usage: "PEM `FILE` of the servers' authority"},
			&cli.StringFlag{Name: "cert", Usage: "PEM `FILE` of your certificate"},
			&cli.StringFlag{Name: "cert-key", Usage: "PEM `FILE` of its key"},
			&cli.BoolFlag{Name: "force", Usage: "replace one of that name"}},
			Description: "Give the URL of each coordinator: the first that can be reached is asked.\n" +
				"The file is ~/.config/pvc/connections.yaml, mode 0600; PVC_CONNECTIONS names another."},
		{Name: "list", Usage: "list them", Action: t.connectionList},
		{Name: "show", Usage: "show one; its key is never shown", ArgsUsage: "NAME", Action: t.connectionShow},
		{Name: "use", Usage: "use it wherever neither --connection nor --api is given", ArgsUsage: "NAME", Action: t.connectionUse},
		{Name: "remove", Usage: "forget one", ArgsUsage: "NAME", Action: t.connectionRemove, Flags: []cli.Flag{
			&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask"}}},
	}}
}

// shownConnection is one of them for programs; it tells nothing of a key but
// that there is one.
type shownConnection struct {
	Name string `json:"name"`
	Used bool   `json:"used"`
	connection
	HasKey bool `json:"key_stored"`
}

func (all connections) shown(name string) shownConnection {
	c := all.Named[name]
	return shownConnection{name, name == all.Used, c, c.Key != ""}
}

func (t *terminal) connectionAdd(c *cli.Context) error {
	given := c.Args().Slice()
	if len(given) < 2 {
		return usagef("`pvc connection add` needs a NAME and the URL of at least one pvcapid, like http://hv1:7370")
	}
	if _, err := format(c); err != nil {
		return err
	}
	name := given[0]
	if cluster.NodeID(name).Validate() != nil {
		return usagef("%q is no name for a connection: give letters, digits, dots and dashes", name)
	}
	made := connection{URLs: given[1:], KeyFile: c.String("key-file"), CA: c.String("ca"), Cert: c.String("cert"), CertKey: c.String("cert-key")}
	if c.Bool("store-key") && made.KeyFile != "" {
		return usagef("give --key-file or --store-key, not both")
	}
	for _, file := range []*string{&made.KeyFile, &made.CA, &made.Cert, &made.CertKey} {
		if *file == "" {
			continue
		}
		absolute, err := filepath.Abs(*file) // it is used from other folders
		if err != nil {
			return err
		}
		*file = absolute
	}
	if _, err := api.NewClient(api.ClientConfig{URL: strings.Join(made.URLs, ","), TLS: api.TLSFiles{Cert: made.Cert, Key: made.CertKey, ClientCA: made.CA}}); err != nil {
		return usageError{err.Error()}
	}
	all, file, err := readConnections()
	if err != nil {
		return err
	}
	if _, there := all.Named[name]; there && !c.Bool("force") {
		return fmt.Errorf("there is a connection %q in %s already; nothing was changed. --force replaces it: %w", name, file, cluster.ErrRefused)
	}
	if c.Bool("store-key") {
		key, err := t.readPassword(c.Context)
		if err != nil {
			return err
		}
		made.Key = key.Reveal()
	}
	all.Named[name] = made
	if all.Used == "" {
		all.Used = name
	}
	if err := all.write(file); err != nil {
		return err
	}
	return t.show(c, all.shown(name), func() { t.say("%s: %s is %s", file, name, strings.Join(made.URLs, ", ")) })
}

func (t *terminal) connectionList(c *cli.Context) error {
	if _, err := names(c); err != nil {
		return err
	}
	all, _, err := readConnections()
	if err != nil {
		return err
	}
	list := []shownConnection{}
	for _, n := range all.names() {
		list = append(list, all.shown(n))
	}
	return t.show(c, list, func() {
		g := t.grid("name", "used", "servers", "key", "certificate")
		for _, s := range list {
			used, key := "", s.KeyFile
			if s.Used {
				used = "yes"
			}
			if s.HasKey {
				key = "stored"
			}
			g.AppendRow(table.Row{s.Name, used, strings.Join(s.URLs, " "), key, s.Cert})
		}
		g.Render()
		if len(list) == 0 {
			t.say("no connections; `pvc connection add NAME URL…` makes one")
		}
	})
}

// oneConnection is the one that the command names.
func oneConnection(c *cli.Context) (connections, string, string, error) {
	given, err := names(c, "a connection's name")
	if err != nil {
		return connections{}, "", "", err
	}
	if _, err := format(c); err != nil {
		return connections{}, "", "", err
	}
	all, file, err := readConnections()
	if err != nil {
		return all, "", "", err
	}
	if _, there := all.Named[given[0]]; !there {
		return all, "", "", fmt.Errorf("%s has no connection %q; known: %s: %w", file, given[0], orNone(all.names()), cluster.ErrRefused)
	}
	return all, file, given[0], nil
}

func (t *terminal) connectionShow(c *cli.Context) error {
	all, _, name, err := oneConnection(c)
	if err != nil {
		return err
	}
	s := all.shown(name)
	return t.show(c, s, func() {
		g := t.grid()
		key := s.KeyFile
		if s.HasKey {
			key = "stored"
		}
		g.AppendRows([]table.Row{{"name", s.Name}, {"used", s.Used}, {"servers", strings.Join(s.URLs, " ")}, {"key", key}, {"ca", s.CA}, {"certificate", s.Cert}, {"its key", s.CertKey}})
		g.Render()
	})
}

func (t *terminal) connectionUse(c *cli.Context) error {
	all, file, name, err := oneConnection(c)
	if err != nil {
		return err
	}
	all.Used = name
	if err := all.write(file); err != nil {
		return err
	}
	return t.show(c, all.shown(name), func() { t.say("%s is used from now on", name) })
}

func (t *terminal) connectionRemove(c *cli.Context) error {
	all, file, name, err := oneConnection(c)
	if err != nil {
		return err
	}
	if all.Named[name].Key != "" && !c.Bool("yes") && !t.confirm("The API key that is stored with it is lost here. Write "+name+" to go on: ", name) {
		return usagef("not confirmed; nothing was changed")
	}
	was := all.shown(name)
	delete(all.Named, name)
	if all.Used == name {
		all.Used = ""
	}
	if err := all.write(file); err != nil {
		return err
	}
	return t.show(c, was, func() { t.say("%s is forgotten", name) })
}
