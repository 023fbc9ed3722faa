package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"pvc.internal/api"
)

// version is set by the build.
var version = "dev"

// terminal is where a command reads and writes.
type terminal struct {
	in       io.Reader
	out, err io.Writer
	screen   bool // out is copied onto a terminal's screen
}

func newApp(stdin io.Reader, stdout, stderr io.Writer) *cli.App {
	t := &terminal{in: stdin, out: stdout, err: stderr}
	app := &cli.App{
		Name: "pvc", Usage: "look at and steer the cluster", Version: version,
		DisableSliceFlagSeparator: true, // a comma belongs to the value
		Reader:                    stdin, Writer: stdout, ErrWriter: stderr,
		HideVersion: true,
		Flags:       globalFlags(),
		Commands: append([]*cli.Command{
			t.nodeCommand(), t.clusterCommand(), t.timingCommand(), t.historyCommand(),
			t.explainCommand(), t.fenceCommand(), t.leaseCommand(), t.activityCommand(), t.workloadCommand(), t.rebalanceCommand(), t.faultCommand(), t.settingsCommand(), t.configCommand(), t.pkiCommand(), t.doctorCommand(),
			t.connectionCommand(), t.completionCommand(), t.versionCommand(),
		}, moreCommands()...),
		ExitErrHandler: func(*cli.Context, error) {}, // run tells the error and ends the process
		OnUsageError:   asUsageError,
		Description:    "Exit codes: 0 done, 1 failed, 2 wrong command line, 3 refused, 4 unreachable, 5 timed out.",
	}
	reportUsage(app.Commands)
	return app
}

func asUsageError(_ *cli.Context, err error, _ bool) error { return usageError{err.Error()} }

// reportUsage makes every command report a bad flag as the program itself does.
func reportUsage(commands []*cli.Command) {
	for _, c := range commands {
		if c.OnUsageError == nil {
			c.OnUsageError = asUsageError
		}
		reportUsage(c.Subcommands)
	}
}

func globalFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "connection", Usage: "`NAME` of the cluster among your connections (`pvc connection list`)", EnvVars: []string{"PVC_CONNECTION"}},
		&cli.StringFlag{Name: "api", Usage: "`URL` of a pvcapid, or of several of one cluster with commas between", EnvVars: []string{"PVC_API"}, Value: "http://" + api.DefaultListen},
		&cli.StringFlag{Name: "key-file", Usage: "`FILE` whose first line is the API key (or the key itself in PVC_API_KEY)", EnvVars: []string{"PVC_API_KEY_FILE"}},
		&cli.StringFlag{Name: "ca", Usage: "PEM `FILE` of the server's authority", EnvVars: []string{"PVC_API_CA"}},
		&cli.StringFlag{Name: "cert", Usage: "PEM `FILE` of the client's certificate", EnvVars: []string{"PVC_API_CERT"}},
		&cli.StringFlag{Name: "cert-key", Usage: "PEM `FILE` of its key", EnvVars: []string{"PVC_API_CERT_KEY"}},
		&cli.DurationFlag{Name: "timeout", Usage: "longest `TIME` to wait for an answer", Value: 10 * time.Second},
		&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "`FORMAT`: table, json or yaml", Value: formatTable},
	}
}

// client makes the client that the global flags describe.
func client(c *cli.Context) (*api.Client, error) {
	if _, err := format(c); err != nil {
		return nil, err
	}
	timeout := global(c).Duration("timeout")
	if timeout <= 0 {
		return nil, usagef("--timeout must be above zero, like 10s")
	}
	who, named, err := chosen(c)
	if err != nil {
		return nil, err
	}
	if !named {
		who = connection{URLs: []string{global(c).String("api")}}
	}
	for flag, into := range map[string]*string{"key-file": &who.KeyFile, "ca": &who.CA, "cert": &who.Cert, "cert-key": &who.CertKey} {
		if given := global(c).String(flag); given != "" {
			*into = given
		}
	}
	key, err := apiKey(who)
	if err != nil {
		return nil, err
	}
	made, err := api.NewClient(api.ClientConfig{URL: strings.Join(who.URLs, ","), Key: key, Timeout: timeout,
		TLS: api.TLSFiles{Cert: who.Cert, Key: who.CertKey, ClientCA: who.CA}})
	if err != nil {
		return nil, usageError{err.Error()}
	}
	return made, nil
}

// apiKey is the key to send: a file's, the stored one, or the environment's, which
// may be meant for another cluster.
func apiKey(who connection) (string, error) {
	switch {
	case who.KeyFile != "":
	case who.Key != "":
		return who.Key, nil
	default:
		return os.Getenv("PVC_API_KEY"), nil
	}
	raw, err := os.ReadFile(who.KeyFile)
	if err != nil {
		return "", fmt.Errorf("read the API key: %w", err)
	}
	first, _, _ := strings.Cut(string(raw), "\n")
	return strings.TrimSpace(first), nil
}

// global is where the global flags stand, even if the command has a flag of
// the same name; the library's outermost context is an empty one.
func global(c *cli.Context) *cli.Context {
	lineage := c.Lineage()
	return lineage[max(0, len(lineage)-2)]
}

// names returns the command's names, which must be exactly as many as titles.
func names(c *cli.Context, titles ...string) ([]string, error) {
	given := c.Args().Slice()
	switch {
	case len(given) < len(titles):
		return nil, usagef("`%s` needs %s", c.Command.HelpName, strings.Join(titles[len(given):], " and "))
	case len(given) > len(titles):
		return nil, usagef("`%s` does not know what to do with %q", c.Command.HelpName, given[len(titles)])
	}
	return given, nil
}

func (t *terminal) versionCommand() *cli.Command {
	return &cli.Command{Name: "version", Usage: "print this program's version", Action: func(c *cli.Context) error {
		if _, err := names(c); err != nil {
			return err
		}
		_, err := fmt.Fprintln(t.out, version)
		return err
	}}
}
