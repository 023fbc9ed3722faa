package main

import (
	"strings"

	"github.com/urfave/cli/v2"

	"pvc.internal/sandbox/bench"
)

// benchCommand is `pvc sandbox bench`: every figure the project promises,
// measured, beside its target.
func benchCommand() *cli.Command {
	return &cli.Command{
		Name: "bench", Usage: "measure what the project promises, each figure beside its target (root)",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "name", Usage: "`NAME` of its sandboxes", Value: "bench"},
			&cli.StringFlag{Name: "bin", Usage: "`FOLDER` of pvcnoded, pvcapid and pvc (default: this program's)"},
			&cli.StringFlag{Name: "only", Usage: "only these `PARTS`, separated by commas"},
			&cli.IntFlag{Name: "runs", Usage: "`N` runs of each fault", Value: 10},
			&cli.BoolFlag{Name: "quick", Usage: "about 20 minutes instead of somewhat over an hour: fewer runs of what takes long"},
			&cli.BoolFlag{Name: "keep-files", Usage: "leave the folders with all logs and histories in place"},
		},
		Action:      sandboxBench,
		Description: "The parts:\n  " + strings.Join(bench.Parts(), "\n  "),
	}
}

func sandboxBench(c *cli.Context) error {
	f, err := format(c)
	if err != nil {
		return err
	}
	config := bench.Config{Name: c.String("name"), BinDir: c.String("bin"), Runs: c.Int("runs"), Quick: c.Bool("quick"), Keep: c.Bool("keep-files")}
	if only := c.String("only"); only != "" {
		config.Only = strings.Split(only, ",")
	}
	if config.Runs < 1 {
		return usagef("--runs %d: at least 1", config.Runs)
	}
	if err := config.Validate(); err != nil {
		return usageError{err.Error()}
	}
	lines := c.App.Writer
	if f != formatTable {
		lines = c.App.ErrWriter
	}
	rep, err := bench.Run(c.Context, config, lines)
	if len(rep.Figures) == 0 && err != nil {
		return err
	}
	t := &terminal{out: c.App.Writer, err: c.App.ErrWriter}
	if shown := t.show(c, rep, func() { rep.Table(t.out) }); shown != nil {
		return shown
	}
	return err
}
