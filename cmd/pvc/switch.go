package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"pvc.internal/api"
	"pvc.internal/cluster"
)

// defaultSwitchWait is longer than any switch that is still alive: a target has
// 8 s to take the lock, and each service its own time to stop and to start.
const defaultSwitchWait = 60 * time.Second

// switchRole asks for the role to move and, with --wait, shows it move.
func (t *terminal) switchRole(c *cli.Context, to, from string) error {
	ask, err := client(c)
	if err != nil {
		return err
	}
	shape, err := format(c)
	if err != nil {
		return err
	}
	answer, err := ask.Switch(c.Context, to, from, c.Bool("dry-run"))
	if err != nil {
		return err
	}
	if !c.Bool("wait") || answer.DryRun {
		if err := t.show(c, answer, func() { t.say("%s", answer.Message) }); err != nil || answer.Possible {
			return err
		}
		return fmt.Errorf("%s: %w", answer.Message, cluster.ErrRefused)
	}
	f := &follower{t: t, answer: answer, quiet: shape != formatTable}
	f.say("%s", answer.Message)
	watchErr := f.follow(c.Context, ask, c.Duration("wait-timeout"))
	if f.quiet {
		if err := t.show(c, f.answer, nil); err != nil {
			return err
		}
	}
	return watchErr
}

// follower prints a switch's steps as they come.
type follower struct {
	t      *terminal
	answer api.SwitchAnswer
	quiet  bool // nothing but the end is printed, by the caller
	id     string
	phase  cluster.Phase
	steps  int  // printed
	infers bool // the outcome is told by primary_node alone
}

func (f *follower) say(format string, more ...any) {
	if !f.quiet {
		f.t.say(format, more...)
	}
}

// follow watches until the switch has ended or the time is over.
func (f *follower) follow(ctx context.Context, ask *api.Client, atMost time.Duration) error {
	limited, cancel := context.WithTimeout(ctx, atMost)
	defer cancel()
	started := time.Now()
	watch := func() error {
		return ask.Watch(limited, func(e api.WatchEvent) bool {
			switch {
			case e.Lost != nil:
				f.say("  (the connection was lost and is made again: %s)", e.Lost)
			case e.View != nil:
				return f.see(*e.View)
			}
			return true
		})
	}
	err := watch()
	if err == nil && f.infers && f.answer.Outcome != api.OutcomeDone { // what the hand-over says of it may come a moment later
		select {
		case <-limited.Done():
		case <-time.After(api.WishSettles):
		}
		if again := watch(); again != nil && (f.answer.Outcome == api.OutcomeWaiting || f.answer.Outcome == api.OutcomeRunning) {
			err = again
		}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("the switch has not ended within %s (%s): it may still; see `pvc explain primary` and `pvc history`: %w",
			atMost, f.answer.Outcome, cluster.ErrDeadline)
	}
	if err != nil {
		return err
	}
	return f.conclude(time.Since(started))
}

// see prints what is new and reports whether to go on.
func (f *follower) see(v api.ClusterView) bool {
	a := &f.answer
	a.Outcome, a.Reason = v.SwitchOutcome(a.From, a.To, a.WishVersion)
	f.infers = v.WishTells(a.From, a.To, a.WishVersion)
	if t := v.Transition; t != nil && api.WishServedBy(*t, a.From, a.To, a.WishVersion) && (!a.Already || t.Running()) {
		a.Transition = t
		f.print(*t)
	}
	return a.Outcome == api.OutcomeWaiting || a.Outcome == api.OutcomeRunning
}

var phaseNames = map[cluster.Phase]string{
	cluster.PhaseAnnounce: "announce", cluster.PhaseStop: "stop", cluster.PhaseHandOver: "hand over",
	cluster.PhaseAddresses: "addresses", cluster.PhaseStart: "start", cluster.PhaseDone: "done",
}

func (f *follower) print(t cluster.Transition) {
	if t.ID != f.id {
		f.id, f.phase, f.steps = t.ID, "", 0
		f.say("  %s → %s, transition %s", nobodyIfEmpty(t.From), t.To, t.ID)
	}
	for ; f.steps < len(t.Steps); f.steps++ {
		s := t.Steps[f.steps]
		at := time.Duration(s.StartedUnixMS-t.Started) * time.Millisecond
		line := fmt.Sprintf("  %+8.3f s  %s %-10s %-8s %-28s %9.1f ms", at.Seconds(), s.Phase, phaseNames[s.Phase], s.Node, s.Name, float64(s.Micros)/1000)
		if s.Error != "" {
			line += "  " + s.Error
		}
		f.say("%s", line)
		f.phase = s.Phase
	}
	if t.Running() && t.Phase != f.phase {
		f.say("              %s %-10s …", t.Phase, phaseNames[t.Phase])
		f.phase = t.Phase
	}
}

func (f *follower) conclude(took time.Duration) error {
	a := &f.answer
	switch {
	case a.Outcome == api.OutcomeDone && a.Already:
		f.say("done: nothing had to move")
		return nil
	case a.Outcome == api.OutcomeDone:
		f.say("done in %.2f s", took.Seconds())
		return nil
	}
	return fmt.Errorf("the switch was %s: %s: %w", a.Outcome, a.Reason, cluster.ErrRefused)
}

func nobodyIfEmpty(n cluster.NodeID) string {
	if n == "" {
		return "nobody"
	}
	return string(n)
}
