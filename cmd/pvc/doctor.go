package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/urfave/cli/v2"

	"pvc.internal/doctor"
)

// doctorLimit bounds all of `pvc doctor` on a node: whoever calls it has
// trouble already. Each check has a shorter limit of its own.
const doctorLimit = 5 * time.Second

// doctorGrace is what a check has beyond its limit to say what it waited for.
const doctorGrace = 600 * time.Millisecond

// defaultNodeSettings is where pvcnoded's settings stand.
const defaultNodeSettings = "/etc/pvc/pvcnoded.yaml"

func (t *terminal) doctorCommand() *cli.Command {
	return &cli.Command{Name: "doctor", Usage: "say what is wrong, and how to mend it", Action: t.doctor, Flags: []cli.Flag{
		&cli.StringFlag{Name: "config", Aliases: []string{"c"}, Usage: "pvcnoded's settings `FILE` of this node", Value: defaultNodeSettings},
		&cli.BoolFlag{Name: "remote", Usage: "ask a pvcapid about the cluster only, as happens where the file is not there"},
		&cli.BoolFlag{Name: "strict", Usage: "fail on warnings and on what was not checked, too"}},
		Description: "On a node it reads the settings and looks at ZooKeeper's servers, the cluster's records, fence devices, secrets,\n" +
			"certificates, watchdog, units and leftovers, within 5 s and as root. It changes nothing. Run it on every node.\n" +
			"Exit code: 0 no problem, 1 problems found."}
}

// doctor looks and tells. It fails where there are problems.
func (t *terminal) doctor(c *cli.Context) error {
	if _, err := names(c); err != nil {
		return err
	}
	if _, err := format(c); err != nil {
		return err
	}
	look := t.lookHere
	if c.Bool("remote") || !c.IsSet("config") && !isThere(c.String("config")) {
		look = t.lookFromAfar
	}
	r, err := look(c)
	if err != nil {
		return err
	}
	if err := t.show(c, r, func() { t.doctorTable(r) }); err != nil {
		return err
	}
	bad := r.Problems
	if c.Bool("strict") {
		bad += r.Warnings + r.Unchecked
	}
	if bad > 0 {
		return errors.New(r.Summary())
	}
	return nil
}

func isThere(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// lookFromAfar has a pvcapid judge the cluster's records.
func (t *terminal) lookFromAfar(c *cli.Context) (doctor.Report, error) {
	ask, err := client(c)
	if err != nil {
		return doctor.Report{}, err
	}
	return ask.Doctor(c.Context)
}

// lookHere looks at this node.
func (t *terminal) lookHere(c *cli.Context) (doctor.Report, error) {
	ctx, cancel := context.WithTimeout(c.Context, doctorLimit)
	defer cancel()
	return examine(ctx, c.String("config")), c.Err()
}

// doctorTable prints for people: what passed in a line each, what did not with
// its cure below.
func (t *terminal) doctorTable(r doctor.Report) {
	p := t.painter()
	colours := map[doctor.Verdict]text.Color{doctor.OK: text.FgGreen, doctor.Warning: text.FgYellow, doctor.Problem: text.FgRed}
	for _, f := range r.Findings {
		verdict := string(f.Verdict)
		if colour, ok := colours[f.Verdict]; ok {
			verdict = p.paint(colour, verdict)
		}
		pad := strings.Repeat(" ", max(0, 10-len(f.Verdict)))
		what := f.Text
		if f.Subject != "" {
			what = f.Subject + ": " + f.Text
		}
		t.say("%s%s%-13s %s", verdict, pad, f.Check, what)
		if f.Cure != "" {
			t.say("%24s→ %s", "", f.Cure)
		}
	}
	of := "the cluster's records"
	if r.Node != "" {
		of = "node " + r.Node
	}
	if r.Cluster != "" {
		of += " of cluster " + r.Cluster
	}
	t.say("%s: %s", of, r.Summary())
}

// begin makes a check in a goroutine of its own and returns where to wait for
// it. A read of a file may hang for ever on a dead file system: nobody waits
// for it much beyond the limit then, and it ends with this short-lived program.
func begin[T any](ctx context.Context, limit time.Duration, look func(context.Context) (T, error)) (wait func() (T, error)) {
	type result struct {
		value T
		err   error
	}
	end := time.Now().Add(limit + doctorGrace)
	if whole, bounded := ctx.Deadline(); bounded && whole.Before(end) {
		end = whole
	}
	late, stop := context.WithDeadline(context.WithoutCancel(ctx), end)
	ctx, cancel := context.WithTimeout(ctx, limit)
	done := make(chan result, 1)
	go func() {
		value, err := look(ctx)
		done <- result{value, err}
	}()
	return func() (T, error) {
		defer cancel()
		defer stop()
		select {
		case r := <-done:
			return r.value, r.err
		case <-late.Done():
			var none T
			return none, fmt.Errorf("it took longer than %v", limit)
		}
	}
}
