package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/urfave/cli/v2"

	"pvc.internal/api"
	"pvc.internal/cluster"
)

// defaultRebalanceWait is for many moves, one after another.
const defaultRebalanceWait = time.Hour

func (t *terminal) rebalanceCommand() *cli.Command {
	wait := []cli.Flag{
		&cli.BoolFlag{Name: "wait", Aliases: []string{"w"}, Usage: "show its moves until it has ended"},
		&cli.DurationFlag{Name: "wait-timeout", Usage: "longest `TIME` to wait for its end", Value: defaultRebalanceWait},
	}
	return &cli.Command{Name: "rebalance", Usage: "fill up and spread the copies of workloads over the nodes", Action: t.rebalanceOrder(false), Flags: wait, Subcommands: []*cli.Command{
		{Name: "start", Usage: "order it (as without a word)", Action: t.rebalanceOrder(false), Flags: wait},
		{Name: "stop", Usage: "end it after its present move", Action: t.rebalanceOrder(true), Flags: wait},
		{Name: "status", Usage: "show the newest", Action: t.rebalanceStatus, Flags: []cli.Flag{watchFlag()}},
	}}
}

func (t *terminal) rebalanceStatus(c *cli.Context) error {
	if _, err := names(c); err != nil {
		return err
	}
	return look(t, c, func(ctx context.Context, ask *api.Client) (api.RebalanceView, error) { return ask.Rebalance(ctx) }, func(t *terminal, v api.RebalanceView) {
		if v.State == api.RebalanceNone {
			t.say("no rebalance was ordered yet")
			return
		}
		g := t.grid()
		g.AppendRows([]table.Row{{"state", t.painter().state(v.State)}, {"moves", fmt.Sprintf("%d of %d", v.Done, v.Total)}, {"ordered by", v.By}, {"at", clockOf(v.AtMS)}})
		if v.Stop {
			g.AppendRow(table.Row{"its end", "is ordered"})
		}
		if v.Text != "" {
			g.AppendRow(table.Row{"it says", v.Text})
		}
		g.Render()
	})
}

func (t *terminal) rebalanceOrder(stop bool) cli.ActionFunc {
	return func(c *cli.Context) error {
		if _, err := names(c); err != nil {
			return err
		}
		if err := checkWait(c); err != nil {
			return err
		}
		ask, err := client(c)
		if err != nil {
			return err
		}
		order := ask.OrderRebalance
		if stop {
			order = ask.StopRebalance
		}
		a, err := order(c.Context)
		if err != nil {
			return err
		}
		if !c.Bool("wait") || a.Rebalance.ID == "" {
			return t.show(c, a, func() { t.say("%s", a.Message) })
		}
		f := &rebalanceFollower{id: a.Rebalance.ID, at: a.Rebalance.AtMS, stop: stop}
		f.pursuit = pursuit[api.RebalanceView]{t: t, see: f.look, unfinished: rebalanceUnfinished, read: ask.Rebalance}
		return f.run(c, a.Message)
	}
}

func rebalanceUnfinished(atMost time.Duration) error {
	return fmt.Errorf("not over within %s; it goes on by itself. `pvc rebalance status` shows how far it is, `pvc rebalance stop` ends it: %w", atMost, cluster.ErrDeadline)
}

// rebalanceFollower shows a rebalance's moves until it has ended.
type rebalanceFollower struct {
	pursuit[api.RebalanceView]
	id   string
	at   int64
	stop bool
}

func (f *rebalanceFollower) look(v api.RebalanceView) (over bool, end error) {
	switch {
	case v.ID != f.id && v.AtMS <= f.at:
		return false, nil // the server has not seen it yet
	case v.ID != f.id:
		return true, fmt.Errorf("another rebalance was ordered since, by %s: %w", v.By, cluster.ErrRefused)
	}
	f.line("%s, %d of %d moves", v.State, v.Done, v.Total)
	said := v.Text
	if said != "" {
		said = ": " + said
	}
	switch v.State {
	case cluster.RebalanceDone:
		f.say("the rebalance is done%s", said)
		return true, nil
	case cluster.RebalanceStopped:
		if f.stop || v.Stop {
			f.say("the rebalance was stopped%s", said)
			return true, nil
		}
		return true, fmt.Errorf("the rebalance was stopped%s: %w", said, cluster.ErrRefused)
	case cluster.RebalanceFailed:
		return true, fmt.Errorf("the rebalance has failed%s: %w", said, cluster.ErrRefused)
	}
	return false, nil
}

// autoReprovisionCommand shows or changes how often a workload whose active copy
// came back empty is promoted elsewhere.
func (t *terminal) autoReprovisionCommand() *cli.Command {
	check := &cli.BoolFlag{Name: "check", Usage: "only have the values checked; nothing is changed"}
	return &cli.Command{Name: "autoreprovision", Usage: "show or change how often a copy that came back empty is replaced by another", Action: t.showReprovision, Subcommands: []*cli.Command{
		{Name: "enable", Usage: "on so many nodes until the count is reset", Action: t.setReprovision(true), Flags: []cli.Flag{
			&cli.StringFlag{Name: "max-nodes", Usage: "`HOW MANY` nodes, 1 to 100"}, check}},
		{Name: "disable", Usage: "never: an empty copy is brought online as it is; the count is 0 again", Action: t.setReprovision(false), Flags: []cli.Flag{check}},
		{Name: "reset", Usage: "give it its whole budget back", Action: t.resetReprovision, Flags: []cli.Flag{
			&cli.BoolFlag{Name: "wait", Aliases: []string{"w"}, Usage: "return once the primary has done it"},
			&cli.DurationFlag{Name: "wait-timeout", Usage: "longest `TIME` to wait for that", Value: 30 * time.Second}}},
	}}
}

func (t *terminal) showReprovision(c *cli.Context) error {
	if _, err := names(c); err != nil {
		return err
	}
	ask, err := client(c)
	if err != nil {
		return err
	}
	p, err := ask.AutoReprovision(c.Context)
	if err != nil {
		return err
	}
	return t.show(c, p, func() {
		g := t.grid()
		g.SetColumnConfigs([]table.ColumnConfig{{Number: 2, WidthMax: widestText, WidthMaxEnforcer: text.WrapSoft}})
		g.AppendRows([]table.Row{{"enabled", strconv.FormatBool(p.Enabled)}, {"spent", fmt.Sprintf("%d of %d nodes", p.Count, p.MaxNodes)}})
		if len(p.Nodes) > 0 {
			g.AppendRow(table.Row{"reprovisioned", joinNames(p.Nodes)})
		}
		for _, what := range p.Remains {
			g.AppendRow(table.Row{"remains", what})
		}
		g.Render()
	})
}

func (t *terminal) setReprovision(enabled bool) cli.ActionFunc {
	return func(c *cli.Context) error {
		if _, err := names(c); err != nil {
			return err
		}
		if enabled && c.String("max-nodes") == "" {
			return usagef("`pvc settings autoreprovision enable` needs --max-nodes, like --max-nodes 1; more than 1 needs spare capacity, see the guide")
		}
		ask, err := client(c)
		if err != nil {
			return err
		}
		a, err := ask.SetAutoReprovision(c.Context, enabled, c.String("max-nodes"), c.Bool("check"))
		if err != nil {
			return err
		}
		if c.Bool("check") {
			return t.show(c, api.SettingsErrors{}, func() { t.say("valid; nothing was changed") })
		}
		return t.show(c, a, func() { t.say("%s", a.Message) })
	}
}

func (t *terminal) resetReprovision(c *cli.Context) error {
	if _, err := names(c); err != nil {
		return err
	}
	if err := checkWait(c); err != nil {
		return err
	}
	ask, err := client(c)
	if err != nil {
		return err
	}
	var wait time.Duration
	if c.Bool("wait") {
		wait = c.Duration("wait-timeout")
	}
	a, err := ask.ResetReprovision(c.Context, wait)
	if err != nil {
		return err
	}
	if err := t.show(c, a, func() { t.say("%s", a.Message) }); err != nil {
		return err
	}
	if wait > 0 && a.Settings.Count > 0 {
		return fmt.Errorf("not done within %s; the order stands (`pvc explain primary`): %w", wait, cluster.ErrDeadline)
	}
	return nil
}
