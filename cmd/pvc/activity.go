package main

import (
	"context"
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
			watchFlag()}},
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
	return look(t, c, func(ctx context.Context, ask *api.Client) (api.ActivitiesView, error) {
		return ask.Activities(ctx, "", c.Int("limit"))
	}, (*terminal).activityTables)
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

func (t *terminal) activityStop(c *cli.Context) error {
	given, err := names(c, "a listed activity's id (`pvc activity list`)")
	if err != nil {
		return err
	}
	if err := checkWait(c); err != nil {
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
	f := &stopFollower{id: given[0], order: a.Order.ID}
	f.pursuit = pursuit[api.ActivitiesView]{t: t, see: f.look, unfinished: stopUnfinished, read: func(ctx context.Context) (api.ActivitiesView, error) {
		return ask.Activities(ctx, given[0], 0)
	}}
	return f.run(c, a.Message)
}

// stopFollower waits for the answer to an order to end an activity.
type stopFollower struct {
	pursuit[api.ActivitiesView]
	id, order string
}

func stopUnfinished(atMost time.Duration) error {
	return fmt.Errorf("not over within %s; the order stands, and is answered in the history (`pvc activity list`). If its node is not heard (`pvc node list`), what ran there ends with that node: %w", atMost, cluster.ErrDeadline)
}

// look reports whether the order is answered, and how.
func (f *stopFollower) look(v api.ActivitiesView) (over bool, end error) {
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
