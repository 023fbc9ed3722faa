package main

import (
	"bufio"
	"context"
	"fmt"
	"sort"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/urfave/cli/v2"

	"pvc.internal/api"
	"pvc.internal/cluster"
)

func (t *terminal) clusterCommand() *cli.Command {
	return &cli.Command{Name: "cluster", Usage: "the cluster as a whole", Subcommands: append([]*cli.Command{
		{Name: "status", Usage: "show its health", Action: t.clusterStatus, Flags: []cli.Flag{watchFlag()}},
		{Name: "watch", Usage: "show the cluster and each change", Action: t.nodeWatch},
		{Name: "init", Usage: "make a new cluster's tree", Action: t.clusterInit, Flags: []cli.Flag{
			&cli.StringFlag{Name: "name", Usage: "the cluster's `NAME`; pvcapid's configured one otherwise"},
			&cli.BoolFlag{Name: "overwrite", Usage: "replace all data of a cluster that is there"},
			&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask"}}},
		t.maintenanceCommand(),
	}, t.backupCommands()...)}
}

func (t *terminal) clusterStatus(c *cli.Context) error {
	if _, err := names(c); err != nil {
		return err
	}
	shape, err := format(c)
	if err != nil {
		return err
	}
	var why string // of the maintenance, which the status itself does not tell
	return look(t, c, func(ctx context.Context, ask *api.Client) (api.Status, error) {
		s, err := ask.Status(ctx)
		if why = ""; err == nil && shape == formatTable && s.Maintenance == "true" {
			if m, err := ask.MaintenanceNow(ctx); err == nil && m.On { // an older pvcapid does not tell
				why = maintenanceWords(m)
			}
		}
		return s, err
	}, func(t *terminal, s api.Status) { t.statusTable(s, why) })
}

func (t *terminal) statusTable(s api.Status, why string) {
	paint := t.painter()
	g := t.grid()
	g.AppendRows([]table.Row{
		{"cluster", s.ClusterName},
		{"health", fmt.Sprintf("%s (%d %%)", paint.state(s.Health), s.ClusterHealth.Health)},
		{"primary", s.PrimaryNode},
		{"maintenance", strings.TrimSpace(s.Maintenance + " " + why)},
		{"nodes", counts(s.Nodes)},
		{"vms", counts(s.VMs)},
		{"memory", fmt.Sprintf("%s of %s (%.1f %%)", mebibytes(s.Resources.Memory.Used), mebibytes(s.Resources.Memory.Total), s.Resources.Memory.Utilization)},
		{"processors", fmt.Sprintf("%d, load %.2f", s.Resources.CPU.Total, s.Resources.CPU.Load)},
	})
	g.Render()
	for _, m := range s.ClusterHealth.Messages {
		t.say("! -%d  %s", m.HealthDelta, m.Text)
	}
}

// counts prints the total first, then each state.
func counts(by map[string]int) string {
	words := []string{fmt.Sprint(by["total"])}
	var states []string
	for state, n := range by {
		if state != "total" {
			states = append(states, fmt.Sprintf("%s %d", state, n))
		}
	}
	sort.Strings(states)
	return strings.Join(append(words, states...), "  ")
}

func (t *terminal) clusterInit(c *cli.Context) error {
	if _, err := names(c); err != nil {
		return err
	}
	ask, err := client(c)
	if err != nil {
		return err
	}
	if c.Bool("overwrite") && !c.Bool("yes") && !t.confirm("This deletes every record of the cluster that is there. Write YES to go on: ", "YES") {
		return usagef("not confirmed; nothing was changed")
	}
	m, err := ask.Initialize(c.Context, c.String("name"), c.Bool("overwrite"))
	if err != nil {
		return err
	}
	return t.show(c, m, func() { t.say("%s", m.Message) })
}

func (t *terminal) confirm(question, wanted string) bool {
	fmt.Fprint(t.err, question)
	line, _ := bufio.NewReader(t.in).ReadString('\n')
	return strings.TrimSpace(line) == wanted
}

func (t *terminal) timingCommand() *cli.Command {
	return &cli.Command{Name: "timing", Usage: "the intervals and the worst cases that follow", Action: func(c *cli.Context) error {
		if _, err := names(c); err != nil {
			return err
		}
		ask, err := client(c)
		if err != nil {
			return err
		}
		v, err := ask.Timing(c.Context)
		if err != nil {
			return err
		}
		return t.show(c, v, func() { t.timingTable(v) })
	}}
}

func (t *terminal) timingTable(v api.TimingView) {
	t.say("profile %s", v.Profile)
	g := t.grid("setting", "", "value")
	for _, s := range v.Settings {
		g.AppendRow(table.Row{s.Name, s.Letter, fmt.Sprintf("%g %s", s.Value, s.Unit)})
	}
	g.Render()
	t.say("")
	g = t.grid("worst case", "seconds", "")
	for _, w := range v.Worst {
		g.AppendRow(table.Row{w.Name, fmt.Sprintf("%.2f", w.Seconds), w.About})
	}
	g.Render()
}

func (t *terminal) historyCommand() *cli.Command {
	return &cli.Command{Name: "history", Usage: "what happened, newest first", Flags: []cli.Flag{
		&cli.IntFlag{Name: "limit", Aliases: []string{"n"}, Value: 20, Usage: "`HOW MANY`"},
		&cli.StringFlag{Name: "kind", Usage: "only this `KIND`"}, watchFlag(),
	}, Action: func(c *cli.Context) error {
		if _, err := names(c); err != nil {
			return err
		}
		return look(t, c, func(ctx context.Context, ask *api.Client) ([]cluster.Event, error) {
			return ask.History(ctx, c.Int("limit"), c.String("kind"))
		}, func(t *terminal, events []cluster.Event) {
			g := t.grid("time", "node", "kind", "what")
			g.SetColumnConfigs([]table.ColumnConfig{{Name: "what", WidthMax: widestText, WidthMaxEnforcer: text.WrapSoft}})
			for _, e := range events {
				g.AppendRow(table.Row{clockTime(e.UnixMS), e.Node, e.Kind, e.Text})
			}
			g.Render()
		})
	}}
}

// widestText is where a free text is wrapped in a table.
const widestText = 90

func clockTime(unixMS int64) string {
	return time.UnixMilli(unixMS).Format("2006-01-02 15:04:05.000")
}

func (t *terminal) explainCommand() *cli.Command {
	return &cli.Command{Name: "explain", Usage: "why something is as it is, and what stands against change", ArgsUsage: "NODE|WORKLOAD|primary", Flags: []cli.Flag{watchFlag()}, Action: func(c *cli.Context) error {
		given, err := names(c, "a node's or workload's name or \"primary\"")
		if err != nil {
			return err
		}
		return look(t, c, func(ctx context.Context, ask *api.Client) (api.Explanation, error) { return ask.Explain(ctx, given[0]) }, (*terminal).explanation)
	}}
}

func (t *terminal) explanation(e api.Explanation) {
	t.say("%s: %s", e.What, e.Verdict)
	if e.Why != "" {
		t.say("  why      %s", e.Why)
	}
	for _, line := range e.Evidence {
		t.say("  seen     %s", line)
	}
	for _, r := range e.Refusals {
		by := ""
		if r.By != "" {
			by = " by " + string(r.By) + ":"
		}
		t.say("  refused  [%s]%s %s", r.Code, by, r.Detail)
		if r.Remedy != "" {
			t.say("           → %s", r.Remedy)
		}
	}
	for _, a := range e.Checks {
		text := a.Answer
		if a.Code != "" {
			text += fmt.Sprintf(": [%s] %s", a.Code, a.Detail)
		}
		t.say("  check    %s: %s", a.Name, text)
	}
	for _, p := range e.Proofs {
		state := " missing"
		switch {
		case p.Given:
			state = " given"
		case p.Detail == api.ProofNotNeeded:
			state = ""
		}
		t.say("  proof    %s%s: %s", p.Proof, state, p.Detail)
	}
	for _, line := range e.Missing {
		t.say("  missing  %s", line)
	}
}
