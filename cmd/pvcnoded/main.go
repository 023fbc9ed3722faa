// A daemon that sleeps most of the time need not wake each second to look
// whether its share of the processors has changed.
//
//go:debug updatemaxprocs=0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/urfave/cli/v2"
	"go.uber.org/zap"

	"pvc.internal/agent"
	"pvc.internal/cluster"
	"pvc.internal/cmd/settings"
	"pvc.internal/fencing"
)

// version is set by the linker.
var version = "unknown"

// The exit statuses. After exitSettings the units of the daemons do not restart,
// since the next start would read the same file; the guard's does (pacedRefusal).
const (
	exitOK       = 0
	exitFailed   = 1
	exitUsage    = 2
	exitSettings = 78 // EX_CONFIG
)

const defaultConfig = "/etc/pvc/pvcnoded.yaml"

// usedConfig is the settings file of this process: what it starts again (the
// sweep) reads the same.
var usedConfig = defaultConfig

func main() { os.Exit(run(os.Args)) }

// run carries out the command line and returns the exit status.
func run(args []string) int {
	// A log that nobody reads any more must not end a daemon (I10).
	signal.Ignore(syscall.SIGPIPE, syscall.SIGHUP)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	err := app().RunContext(ctx, args)
	if err == nil {
		return exitOK
	}
	var status *exitError
	if errors.As(err, &status) {
		if status.err != nil {
			fmt.Fprintln(os.Stderr, status.err)
		}
		return status.code
	}
	fmt.Fprintf(os.Stderr, "pvcnoded: %v\n", err)
	return exitFailed
}

// exitError is an error with an exit status of its own.
type exitError struct {
	code int
	err  error // nil: the status says it all
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

func app() *cli.App {
	return &cli.App{
		Name:            "pvcnoded",
		Usage:           "node daemon of a highly available cluster",
		Version:         version,
		HideHelpCommand: true,
		Flags:           []cli.Flag{configFlag()},
		Action:          withSettings(runAgent),
		OnUsageError:    usageError,
		ExitErrHandler:  func(*cli.Context, error) {}, // run reports and chooses the status
		Commands: []*cli.Command{
			guardCommand(),
			{
				Name:   "fence-attempt",
				Usage:  "make one attempt of one fence device; reads it as JSON on standard input",
				Hidden: true,
				Action: func(*cli.Context) error {
					if code := fencing.AttemptMain(os.Stdin, os.Stdout); code != exitOK {
						return &exitError{code: code}
					}
					return nil
				},
			},
			{
				Name:  "config",
				Usage: "work on the settings file",
				Subcommands: []*cli.Command{{
					Name:         "check",
					Usage:        "load the file and say what is wrong with it",
					Flags:        []cli.Flag{configFlag()},
					OnUsageError: usageError,
					Action:       checkConfig,
				}},
				Action: refuseCommand,
			},
		},
	}
}

func guardCommand() *cli.Command {
	return &cli.Command{
		Name:         "guard",
		Usage:        "hold the effects of the primary role and end them at their deadline",
		Flags:        []cli.Flag{configFlag()},
		OnUsageError: usageError,
		Action:       pacedRefusal(withSettings(runGuard)),
		Subcommands: []*cli.Command{{
			Name:         "sweep",
			Usage:        "end what a guard that died left behind, then exit",
			Flags:        []cli.Flag{configFlag()},
			OnUsageError: usageError,
			Action:       withSettings(sweepGuard),
		}},
	}
}

func configFlag() cli.Flag {
	return &cli.StringFlag{Name: "config", Aliases: []string{"c"}, Usage: "settings `FILE`", Value: defaultConfig}
}

// configPath finds the flag wherever it stands: before the command or after.
func configPath(c *cli.Context) string {
	for _, level := range c.Lineage() {
		if slices.Contains(level.LocalFlagNames(), "config") {
			return level.String("config")
		}
	}
	return defaultConfig
}

func usageError(_ *cli.Context, err error, _ bool) error {
	return &exitError{code: exitUsage, err: fmt.Errorf("pvcnoded: %w; see pvcnoded --help", err)}
}

// refuseCommand is the action where only a subcommand makes sense.
func refuseCommand(c *cli.Context) error {
	if word := c.Args().First(); word != "" {
		return usageError(c, fmt.Errorf("unknown command %q", word), false)
	}
	return usageError(c, fmt.Errorf("%s needs a subcommand", c.Command.Name), false)
}

// withSettings loads the file and makes the logger before it calls body.
func withSettings(body func(context.Context, settings.Node, *zap.Logger) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		if c.Args().Present() {
			return refuseCommand(c)
		}
		usedConfig = configPath(c)
		s, err := loadSettings(usedConfig)
		if err != nil {
			return err
		}
		log, err := settings.NewLogger(s.Log)
		if err != nil {
			return &exitError{code: exitSettings, err: err}
		}
		defer func() { _ = log.Sync() }() // EINVAL on a terminal or pipe
		log = log.With(zap.String("node", string(s.Node.Name)))
		for _, w := range s.Warnings {
			log.Warn("settings", zap.String("warning", w))
		}
		if err := body(c.Context, s, log); err != nil {
			log.Error("ends with an error", zap.Error(err))
			if errors.Is(err, cluster.ErrRemoved) { // the next start would find the same
				return &exitError{code: exitSettings, err: err}
			}
			return &exitError{code: exitFailed}
		}
		return nil
	}
}

// loadSettings loads the file and has each package judge its part.
func loadSettings(path string) (settings.Node, error) {
	s, err := settings.LoadNode(path)
	if err != nil {
		return s, &exitError{code: exitSettings, err: err}
	}
	if err := fencingConfig(s).Validate(); err != nil {
		return s, &exitError{code: exitSettings, err: fmt.Errorf("%s: %w", path, err)}
	}
	if err := agent.CheckSchedule(s.Fencing.TestSchedule); err != nil {
		return s, &exitError{code: exitSettings, err: fmt.Errorf("%s: fencing.test_schedule: %w", path, err)}
	}
	return s, nil
}

func checkConfig(c *cli.Context) error {
	if c.Args().Present() {
		return refuseCommand(c)
	}
	path := configPath(c)
	s, err := loadSettings(path)
	if err != nil {
		return err
	}
	if _, err := zooKeeperConfig(s); err != nil {
		return &exitError{code: exitSettings, err: fmt.Errorf("%s: %w", path, err)}
	}
	expiry, err := checkIdentity(s)
	if err != nil {
		return &exitError{code: exitSettings, err: fmt.Errorf("%s: %w", path, err)}
	}
	if expiry != "" {
		s.Warnings = append(s.Warnings, expiry)
	}
	for _, w := range s.Warnings {
		fmt.Fprintf(c.App.Writer, "warning: %s\n", w)
	}
	fmt.Fprintf(c.App.Writer, "%s: good: node %s (%s) of cluster %s, timing %s, %d addresses, %d services\n",
		path, s.Node.Name, s.Node.Mode, s.Cluster.Name, s.Profile, len(s.Addresses), len(s.Services))
	return nil
}
