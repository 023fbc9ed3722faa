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
	"go.uber.org/zap/zapcore"

	"pvc.internal/agent"
	"pvc.internal/cluster"
	"pvc.internal/cmd/settings"
	"pvc.internal/driver"
	"pvc.internal/fencing"
)

// version is set by the linker.
var version = "unknown"

// The exit statuses. After exitSettings the units of the daemons do not restart,
// since the next start would read the same file; the guard's does (pacedRefusal).
const (
	exitOK        = 0
	exitFailed    = 1
	exitUsage     = 2
	exitAbandoned = 75 // EX_TEMPFAIL: something of an activity could not be ended, all is to start anew
	exitSettings  = 78 // EX_CONFIG
)

const defaultConfig = "/etc/pvc/pvcnoded.yaml"

// usedConfig is the settings file of this process: what it starts again (the
// sweep) reads the same.
var usedConfig = defaultConfig

func main() {
	if driver.IsOCFShim(os.Args[0]) { // an OCF agent believes that it calls Pacemaker
		os.Exit(driver.OCFShim(os.Args, os.Getenv, os.Stdout, os.Stderr))
	}
	os.Exit(run(os.Args))
}

// run carries out the command line and returns the exit status.
func run(args []string) int {
	// A log that nobody reads any more, or a terminal that goes away, must not end
	// a daemon (I10). The agent takes SIGHUP for a wish to read its settings again
	// (reload.go); the guard and all others ignore it.
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
		Action:          agentAction,
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
					Usage:        "load the file and print what is in effect, where it is from, and what is wrong with it",
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
		}, {
			Name:         "leave",
			Usage:        "end everything of the role on a machine that is no node any more, the gate too",
			Flags:        []cli.Flag{configFlag()},
			OnUsageError: usageError,
			Action:       withSettings(leaveGuard),
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
		p, err := prepare(c)
		if err != nil {
			return err
		}
		return p.run(c.Context, body)
	}
}

// agentAction runs the agent: its settings can be read again while it runs, and
// its log is for the store, too.
func agentAction(c *cli.Context) error {
	reload := settings.CatchReloads()
	p, err := prepare(c)
	if err != nil {
		return err
	}
	nodeLog := agent.NewNodeLog()
	p.log = p.log.WithOptions(zap.WrapCore(func(core zapcore.Core) zapcore.Core {
		return zapcore.NewTee(core, nodeLog.Core(p.level))
	}))
	return p.run(c.Context, func(ctx context.Context, s settings.Node, log *zap.Logger) error {
		reload.Use(settings.Reload{InForce: p.inspection, Log: log.Named("settings"), Adoptable: []string{"log.level"}, Read: readAgain(p.level)})
		return runAgent(ctx, s, log, reload, nodeLog)
	})
}

// readAgain is what a reload of the agent does: everything else than the log's
// level it has built upon, and a restart moves nothing (I9).
func readAgain(level zap.AtomicLevel) settings.ReadAgain {
	return func(path string) (settings.Inspection, func() error, error) {
		s, inspection, err := inspectSettings(path)
		if err != nil {
			return inspection, nil, err
		}
		return inspection, func() error { return level.UnmarshalText([]byte(s.Log.Level)) }, nil
	}
}

// withFaults has the agent tell what a reload has left behind, beside what it
// tells already.
func withFaults(d *agent.Deps, more func() []string) {
	faults := d.Faults
	d.Faults = func() []string {
		all := more()
		if faults != nil {
			all = append(all, faults()...)
		}
		return all
	}
}

// prepared is what a command has before it begins.
type prepared struct {
	settings   settings.Node
	inspection settings.Inspection
	log        *zap.Logger
	level      zap.AtomicLevel
}

func prepare(c *cli.Context) (prepared, error) {
	if c.Args().Present() {
		return prepared{}, refuseCommand(c)
	}
	usedConfig = configPath(c)
	s, inspection, err := inspectSettings(usedConfig)
	if err != nil {
		return prepared{}, &exitError{code: exitSettings, err: err}
	}
	log, level, err := settings.NewLogger(s.Log)
	if err != nil {
		return prepared{}, &exitError{code: exitSettings, err: err}
	}
	// Not "node": that is whom a line is about, and a key stands in an object once.
	return prepared{s, inspection, log.With(zap.String("self", string(s.Node.Name))), level}, nil
}

// run calls body and tells how it ended.
func (p prepared) run(ctx context.Context, body func(context.Context, settings.Node, *zap.Logger) error) error {
	defer func() { _ = p.log.Sync() }() // EINVAL on a terminal or pipe
	for _, w := range p.settings.Warnings {
		p.log.Warn("settings", zap.String("warning", w))
	}
	if err := body(ctx, p.settings, p.log); err != nil {
		p.log.Error("ends with an error", zap.Error(err))
		if errors.Is(err, cluster.ErrRemoved) || errors.Is(err, cluster.ErrSchemaNewer) { // the next start would find the same
			return &exitError{code: exitSettings, err: err}
		}
		return &exitError{code: exitFailed}
	}
	return nil
}

// inspectSettings loads the file, has each package judge its part, and tells
// where each value comes from.
func inspectSettings(path string) (settings.Node, settings.Inspection, error) {
	s, inspection, err := settings.InspectNode(path, os.Environ())
	if err != nil {
		return s, inspection, err
	}
	if err := fencingConfig(s).Validate(); err != nil {
		return s, inspection, fmt.Errorf("%s: %w", path, err)
	}
	if err := agent.CheckSchedule(s.Fencing.TestSchedule); err != nil {
		return s, inspection, fmt.Errorf("%s: fencing.test_schedule: %w", path, err)
	}
	return s, inspection, nil
}

func checkConfig(c *cli.Context) error {
	if c.Args().Present() {
		return refuseCommand(c)
	}
	path := configPath(c)
	s, inspection, err := inspectSettings(path)
	if err != nil {
		return &exitError{code: exitSettings, err: err}
	}
	if _, err := zooKeeperConfig(s); err != nil {
		return &exitError{code: exitSettings, err: fmt.Errorf("%s: %w", path, err)}
	}
	expiry, err := checkIdentity(s)
	if err != nil {
		return &exitError{code: exitSettings, err: fmt.Errorf("%s: %w", path, err)}
	}
	if expiry != "" {
		inspection.Warnings = append(inspection.Warnings, expiry)
	}
	if err := inspection.Write(c.App.Writer); err != nil {
		return &exitError{code: exitFailed, err: fmt.Errorf("print the settings: %w", err)}
	}
	fmt.Fprintf(c.App.Writer, "# %s: good: node %s (%s) of cluster %s, timing %s, %d addresses, %d services\n",
		path, s.Node.Name, s.Node.Mode, s.Cluster.Name, s.Profile, len(s.Addresses), len(s.Services))
	return nil
}
