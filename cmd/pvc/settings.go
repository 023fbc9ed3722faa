package main

import (
	"context"
	"fmt"
	"strconv"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/urfave/cli/v2"

	"pvc.internal/api"
)

func (t *terminal) settingsCommand() *cli.Command {
	return &cli.Command{Name: "settings", Usage: "settings of the cluster", Subcommands: []*cli.Command{
		{Name: "autofailover", Usage: "show or change when dead nodes are fenced", Action: t.autoFailover, Flags: []cli.Flag{
			&cli.StringFlag{Name: "enabled", Usage: "`true|false`: whether dead nodes are fenced at all"},
			&cli.StringFlag{Name: "timeout", Usage: "`SECONDS` of silence before a node is fenced, 1 to 3600"},
			&cli.StringFlag{Name: "max-count", Usage: "`HOW MANY` automatic failovers until the count is reset, 1 to 100"},
			&cli.BoolFlag{Name: "reset-count", Usage: "give the automatic failover its whole budget back"},
			&cli.BoolFlag{Name: "check", Usage: "only have the values checked; nothing is changed"}},
			Subcommands: []*cli.Command{{Name: "reset", Usage: "give the automatic failover its whole budget back", Action: t.resetFailoverCount}}},
		t.autoReprovisionCommand(),
	}}
}

// autoFailover shows the settings, or changes those that are given. The count
// is reset last: a value that is refused resets nothing.
func (t *terminal) autoFailover(c *cli.Context) error {
	if _, err := names(c); err != nil {
		return err
	}
	ask, err := client(c)
	if err != nil {
		return err
	}
	enabled, timeout, most := c.String("enabled"), c.String("timeout"), c.String("max-count")
	change := enabled+timeout+most != ""
	switch {
	case c.Bool("check") && (!change || c.Bool("reset-count")):
		return usagef("--check needs one of --enabled, --timeout and --max-count, and goes without --reset-count")
	case !change && !c.Bool("reset-count"):
		return t.showAutoFailover(c, ask)
	}
	var a api.SettingsAnswer
	if change {
		if a, err = ask.SetAutoFailover(c.Context, enabled, timeout, most, c.Bool("check")); err != nil {
			return err
		}
	}
	if c.Bool("check") {
		return t.show(c, api.SettingsErrors{}, func() { t.say("valid; nothing was changed") })
	}
	if c.Bool("reset-count") {
		if a, err = ask.ResetFailoverCount(c.Context); err != nil && change {
			return fmt.Errorf("the settings were changed; resetting the count failed: %w", err)
		}
		if err != nil {
			return err
		}
	}
	return t.show(c, a, func() { t.say("%s", a.Message) })
}

func (t *terminal) resetFailoverCount(c *cli.Context) error {
	if _, err := names(c); err != nil {
		return err
	}
	for _, flag := range []string{"enabled", "timeout", "max-count", "reset-count", "check"} {
		if c.IsSet(flag) {
			return usagef("`pvc settings autofailover reset` goes without --%s: change the settings first, then reset the count", flag)
		}
	}
	ask, err := client(c)
	if err != nil {
		return err
	}
	a, err := ask.ResetFailoverCount(c.Context)
	if err != nil {
		return err
	}
	return t.show(c, a, func() { t.say("%s", a.Message) })
}

func (t *terminal) showAutoFailover(c *cli.Context, ask *api.Client) error {
	f, err := ask.AutoFailover(c.Context)
	if err != nil {
		return err
	}
	return t.show(c, f, func() {
		g := t.grid()
		g.AppendRows([]table.Row{
			{"enabled", strconv.FormatBool(f.Enabled)},
			{"timeout", fmt.Sprintf("%g s", f.Timeout)},
			{"spent", fmt.Sprintf("%d of %d", f.Count, f.MaxCount)},
		})
		g.Render()
	})
}

func (t *terminal) faultCommand() *cli.Command {
	return &cli.Command{Name: "fault", Usage: "faults of the cluster", Subcommands: []*cli.Command{
		{Name: "list", Usage: "list faults", Action: t.faultList, Flags: []cli.Flag{watchFlag()}},
		{Name: "ack", Usage: "acknowledge a fault", ArgsUsage: "FAULT", Action: t.faultChange("ack"), Flags: allFaults},
		{Name: "delete", Usage: "delete a fault", ArgsUsage: "FAULT", Action: t.faultChange("delete"), Flags: allFaults},
	}}
}

var allFaults = []cli.Flag{&cli.BoolFlag{Name: "all", Usage: "every fault there is"}}

func (t *terminal) faultList(c *cli.Context) error {
	if _, err := names(c); err != nil {
		return err
	}
	return look(t, c, func(ctx context.Context, ask *api.Client) ([]api.Fault, error) { return ask.Faults(ctx) }, func(t *terminal, faults []api.Fault) {
		g := t.grid("id", "status", "health", "first", "last", "message")
		for _, f := range faults {
			g.AppendRow(table.Row{f.ID, f.Status, fmt.Sprintf("-%d", f.HealthDelta), f.FirstReported, f.LastReported, f.Message})
		}
		g.Render()
		if len(faults) == 0 {
			t.say("no faults")
		}
	})
}

func (t *terminal) faultChange(what string) cli.ActionFunc {
	return func(c *cli.Context) error {
		id := ""
		if !c.Bool("all") {
			given, err := names(c, "a fault's id, or --all")
			if err != nil {
				return err
			}
			id = given[0]
		} else if _, err := names(c); err != nil {
			return err
		}
		ask, err := client(c)
		if err != nil {
			return err
		}
		change := ask.AcknowledgeFault
		if what == "delete" {
			change = ask.DeleteFault
		}
		m, err := change(c.Context, id)
		if err != nil {
			return err
		}
		return t.show(c, m, func() { t.say("%s", m.Message) })
	}
}
