package main

import (
	"context"
	"fmt"
	"os/user"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/urfave/cli/v2"

	"pvc.internal/api"
)

// The flags of the maintenance switch that make it wait.
var (
	waitForNodes = &cli.BoolFlag{Name: "wait", Aliases: []string{"w"}, Usage: "return only when every live node has confirmed it, or say which has not"}
	waitAtMost   = &cli.DurationFlag{Name: "wait-timeout", Usage: "longest `TIME` to wait for that, at most 2m", Value: defaultMaintenanceWait}
)

// defaultMaintenanceWait is longer than a node whose session still lives, and
// which is not stuck, can take to publish what it sees.
const defaultMaintenanceWait = 10 * time.Second

func (t *terminal) maintenanceCommand() *cli.Command {
	return &cli.Command{Name: "maintenance", Usage: "no fencing, no failover", Subcommands: []*cli.Command{
		{Name: "on", Usage: "begin maintenance", Action: t.maintenance(true), Flags: []cli.Flag{
			&cli.StringFlag{Name: "reason", Usage: "`WHY`"},
			&cli.StringFlag{Name: "owner", Usage: "`WHO`; your user name otherwise"},
			&cli.DurationFlag{Name: "expires", Usage: "end by itself after this `TIME`"}, waitForNodes, waitAtMost}},
		{Name: "off", Usage: "end maintenance", Action: t.maintenance(false), Flags: []cli.Flag{
			&cli.StringFlag{Name: "owner", Usage: "`WHO`; your user name otherwise"},
			&cli.StringFlag{Name: "reason", Usage: "`WHY`"}, waitForNodes, waitAtMost}},
		{Name: "show", Usage: "show whether it is on, by whom, why and until when", Action: t.maintenanceShow, Flags: []cli.Flag{watchFlag()}},
	}}
}

func (t *terminal) maintenance(on bool) cli.ActionFunc {
	return func(c *cli.Context) error {
		if _, err := names(c); err != nil {
			return err
		}
		ask, err := client(c)
		if err != nil {
			return err
		}
		owner := c.String("owner")
		if u, err := user.Current(); owner == "" && err == nil {
			owner = u.Username
		}
		order := api.MaintenanceOrder{On: on, Owner: owner, Reason: c.String("reason")}
		switch d := c.Duration("expires"); {
		case d < 0 || d == 0 && c.IsSet("expires"):
			return usagef("--expires must be above zero, like 2h or 30m")
		case d > 0:
			order.Expires = d.String()
		}
		if c.Bool("wait") {
			if order.Wait = c.Duration("wait-timeout"); order.Wait <= 0 || order.Wait > 2*time.Minute {
				return usagef("--wait-timeout must be above zero and at most 2m, like 10s")
			}
		}
		m, err := ask.Maintenance(c.Context, order)
		if err != nil {
			return err
		}
		return t.show(c, m, func() {
			t.say("%s", m.Message)
			switch now := m.Maintenance; {
			case !now.On:
			case m.Already && (order.Reason != "" || order.Expires != ""):
				t.say("! it stays as it was: %s. To change that, end it and begin it anew", maintenanceWords(now))
			case now.ExpiresMS > 0:
				t.say("it ends by itself at %s", clockTime(now.ExpiresMS))
			}
			if len(m.Confirmed) > 0 {
				t.say("confirmed by every live node: %s", joinNames(m.Confirmed))
			}
		})
	}
}

// maintenanceWords says who, why, and until when.
func maintenanceWords(m api.MaintenanceView) string {
	var words []string
	if m.Owner != "" {
		words = append(words, "by "+m.Owner)
	}
	if m.Reason != "" {
		words = append(words, m.Reason)
	}
	if m.SinceMS > 0 {
		words = append(words, "since "+clockTime(m.SinceMS))
	}
	if m.ExpiresMS > 0 {
		words = append(words, "until "+clockTime(m.ExpiresMS))
	} else {
		words = append(words, "until it is ended")
	}
	return strings.Join(words, ", ")
}

func (t *terminal) maintenanceShow(c *cli.Context) error {
	if _, err := names(c); err != nil {
		return err
	}
	return look(t, c, func(ctx context.Context, ask *api.Client) (api.MaintenanceView, error) {
		return ask.MaintenanceNow(ctx)
	}, func(t *terminal, m api.MaintenanceView) {
		if !m.On {
			t.say("maintenance is off")
			return
		}
		g := t.grid()
		g.AppendRows([]table.Row{{"maintenance", "on"}, {"owner", m.Owner}, {"reason", m.Reason}})
		if m.SinceMS > 0 {
			g.AppendRow(table.Row{"since", clockTime(m.SinceMS)})
		}
		expires := "never"
		if m.ExpiresMS > 0 {
			left := max(0, time.Until(time.UnixMilli(m.ExpiresMS)))
			expires = fmt.Sprintf("%s, in %s", clockTime(m.ExpiresMS), left.Round(time.Second))
		}
		g.AppendRow(table.Row{"expires", expires})
		g.Render()
	})
}
