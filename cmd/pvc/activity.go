package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/urfave/cli/v2"

	"pvc.internal/api"
	"pvc.internal/cluster"
)

// defaultStopWait is much longer than the ladder by which an activity is ended.
const defaultStopWait = time.Minute

func (t *terminal) activityCommand() *cli.Command {
	return &cli.Command{Name: "activity", Usage: "what runs under leases, such as failovers and drains", Subcommands: []*cli.Command{
		{Name: "list", Usage: "list what runs or waits, and what happened", Action: t.activityList, Flags: []cli.Flag{
			&cli.IntFlag{Name: "limit", Usage: "`HOW MANY` events of the history"},
			&cli.BoolFlag{Name: "watch", Usage: "go on with a line for each event"}}},
		{Name: "stop", Usage: "end an activity, and say what had to be killed", ArgsUsage: "ID", Action: t.activityStop, Flags: []cli.Flag{
			&cli.StringFlag{Name: "reason", Usage: "`WHY`, for the history"},
			&cli.BoolFlag{Name: "wait", Aliases: []string{"w"}, Usage: "wait until it is dead, or the order is refused"},
			&cli.DurationFlag{Name: "wait-timeout", Usage: "longest `TIME` to wait for its end", Value: defaultStopWait}}},
	}}
}

func (t *terminal) activityList(c *cli.Context) error {
	if _, err := names(c); err != nil {
		return err
	}
	shape, err := format(c)
	if err != nil {
		return err
	}
	if c.Bool("watch") && shape != formatTable {
		return usagef("`pvc activity list --watch` prints lines for people; leave out --output")
	}
	ask, err := client(c)
	if err != nil {
		return err
	}
	v, err := ask.Activities(c.Context, "", c.Int("limit"))
	if err != nil {
		return err
	}
	if err := t.show(c, v, func() { t.activityTables(v) }); err != nil || !c.Bool("watch") {
		return err
	}
	return t.activityWatch(c.Context, ask, v)
}

func (t *terminal) activityTables(v api.ActivitiesView) {
	paint := t.painter()
	if len(v.Activities) == 0 {
		t.say("no activities")
	} else {
		g := t.grid("id", "node", "state", "quorum", "since", "epoch", "what")
		g.SetColumnConfigs([]table.ColumnConfig{{Name: "what", WidthMax: widestText, WidthMaxEnforcer: text.WrapSoft}})
		for _, a := range v.Activities {
			epoch := any(a.Epoch)
			if a.Epoch == 0 {
				epoch = ""
			}
			g.AppendRow(table.Row{a.ID, a.Node, paint.state(string(a.State)), a.Quorum, clockTime(a.Since), epoch, activityWord(a)})
		}
		g.Render()
	}
	if len(v.History) > 0 {
		t.say("")
		g := t.grid("time", "node", "what")
		g.SetColumnConfigs([]table.ColumnConfig{{Name: "what", WidthMax: widestText, WidthMaxEnforcer: text.WrapSoft}})
		for _, e := range v.History {
			g.AppendRow(table.Row{clockTime(e.UnixMS), e.Node, e.Text})
		}
		g.Render()
	}
	if v.Doubt != "" {
		t.say("! %s", v.Doubt)
	}
}

// activityWord says what an activity does, or waits for.
func activityWord(a cluster.ActivityRecord) string {
	var words []string
	if a.Unsafe {
		words = append(words, "without its quorum, as ordered")
	}
	if a.Waits != nil {
		words = append(words, a.Waits.Detail)
	}
	if len(a.Running) > 0 {
		words = append(words, "runs "+strings.Join(a.Running, ", "))
	}
	if a.Detail != "" {
		words = append(words, a.Detail)
	}
	if len(a.Survives) > 0 {
		words = append(words, "still there: "+strings.Join(a.Survives, ", "))
	}
	if a.Parent != "" {
		words = append(words, "part of "+string(a.Parent))
	}
	if a.Stop != nil {
		words = append(words, "its end is ordered by "+a.Stop.By)
	}
	return strings.Join(words, "; ")
}

// activityWatch prints each entry of the history that is new, until ctx ends.
func (t *terminal) activityWatch(ctx context.Context, ask *api.Client, v api.ActivitiesView) error {
	look := time.NewTicker(fenceLook)
	defer look.Stop()
	shown := map[string]bool{}
	key := func(e cluster.Event) string { return fmt.Sprint(e.UnixMS, e.Node, e.Text) }
	for _, e := range v.History {
		shown[key(e)] = true
	}
	lost := false
	for {
		select {
		case <-look.C:
		case <-ctx.Done():
			return nil
		}
		v, err := ask.Activities(ctx, "", 0)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			if !lost {
				t.say("%s  connection lost: %s", time.Now().Format("15:04:05.000"), err)
			}
			lost = true
			continue
		}
		lost = false
		for _, e := range slices.Backward(v.History) {
			if !shown[key(e)] {
				shown[key(e)] = true
				t.say("%s  %s", clockTime(e.UnixMS), e.Text)
			}
		}
	}
}

func (t *terminal) activityStop(c *cli.Context) error {
	given, err := names(c, "a listed activity's id (`pvc activity list`)")
	if err != nil {
		return err
	}
	if c.Bool("wait") && c.Duration("wait-timeout") <= 0 {
		return usagef("--wait-timeout must be above zero, like 60s")
	}
	shape, err := format(c)
	if err != nil {
		return err
	}
	ask, err := client(c)
	if err != nil {
		return err
	}
	a, err := ask.StopActivity(c.Context, given[0], c.String("reason"))
	if err != nil {
		return err
	}
	if !c.Bool("wait") || a.Order == nil {
		return t.show(c, a, func() { t.say("%s", a.Message) })
	}
	f := &stopFollower{t: t, ask: ask, id: given[0], order: a.Order.ID, quiet: shape != formatTable}
	f.say("%s", a.Message)
	waitErr := f.follow(c.Context, c.Duration("wait-timeout"))
	if f.quiet {
		if err := t.show(c, f.last, nil); err != nil {
			return err
		}
	}
	return waitErr
}

// stopFollower waits for the answer to an order to end an activity.
type stopFollower struct {
	t         *terminal
	ask       *api.Client
	id, order string
	quiet     bool               // nothing but the end is printed, by the caller
	last      api.ActivitiesView // of the activity, as seen last
}

func (f *stopFollower) say(format string, more ...any) {
	if !f.quiet {
		f.t.say(format, more...)
	}
}

// follow looks again and again until the order is answered or the time is over.
func (f *stopFollower) follow(ctx context.Context, atMost time.Duration) error {
	limited, cancel := context.WithTimeout(ctx, atMost)
	defer cancel()
	look := time.NewTicker(fenceLook)
	defer look.Stop()
	for {
		v, err := f.ask.Activities(limited, f.id, 0)
		switch {
		case err == nil:
			f.last = v
			if over, end := f.see(v); over {
				return end
			}
		case limited.Err() == nil && !errors.Is(err, api.ErrUnreachable) && !errors.Is(err, cluster.ErrDeadline):
			return err
		}
		select {
		case <-look.C:
		case <-limited.Done():
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("not over within %s; the order stands, and is answered in the history (`pvc activity list`). If its node is not heard (`pvc node list`), what ran there ends with that node: %w", atMost, cluster.ErrDeadline)
		}
	}
}

// see reports whether the order is answered, and how.
func (f *stopFollower) see(v api.ActivitiesView) (over bool, end error) {
	at := slices.IndexFunc(v.History, func(e cluster.Event) bool {
		return e.Fields["order"] == f.order && e.Kind != cluster.EventActivityStop
	})
	if at < 0 {
		return false, nil
	}
	e := v.History[at]
	killed, survives := e.Fields["killed"], e.Fields["survives"]
	switch {
	case e.Kind == cluster.EventActivityRefused:
		return true, fmt.Errorf("%s: %w", e.Text, cluster.ErrRefused)
	case survives != "":
		return true, fmt.Errorf("%s outlives its end on node %s: %s is still there. That node's daemon gives up its roles and exits because of it; its log has the stacks", f.id, e.Node, survives)
	case e.Fields["state"] == string(cluster.ActivityRefused):
		f.say("%s had not begun, and never will", f.id)
	case e.Fields["cause"] == "stopped" && killed == "":
		f.say("%s is over; nothing had to be killed", f.id)
	case e.Fields["cause"] == "stopped":
		f.say("%s is over; killed: %s", f.id, killed)
	default:
		f.say("%s ended before the order reached it: %s", f.id, e.Text)
	}
	return true, nil
}
