package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/urfave/cli/v2"

	"pvc.internal/api"
	"pvc.internal/cluster"
)

// defaultWorkloadWait is longer than a copy's start may take.
const defaultWorkloadWait = 2 * time.Minute

func workloadWaitFlags(what string) []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "wait", Aliases: []string{"w"}, Usage: what},
		&cli.DurationFlag{Name: "wait-timeout", Usage: "longest `TIME` to wait for that", Value: defaultWorkloadWait},
	}
}

var onNode = &cli.StringFlag{Name: "node", Usage: "`NODE` that is meant"}

func (t *terminal) workloadCommand() *cli.Command {
	untilEnd := workloadWaitFlags("show what becomes of it until it is carried out, or refused")
	return &cli.Command{Name: "workload", Usage: "what runs on the nodes and is kept running", Subcommands: []*cli.Command{
		{Name: "list", Usage: "list workloads", ArgsUsage: "[REGEXP]", Action: t.workloadList, Flags: []cli.Flag{
			&cli.StringFlag{Name: "node", Usage: "only those in whose chain this `NODE` is"},
			&cli.StringFlag{Name: "state", Usage: "only workloads in this `STATE`"},
			&cli.StringFlag{Name: "kind", Usage: "only workloads of this `KIND`: replicated or movable"},
			&cli.StringFlag{Name: "driver", Usage: "only workloads of this `DRIVER`"}, watchFlag()}},
		{Name: "info", Usage: "show one workload", ArgsUsage: "WORKLOAD", Action: t.workloadInfo, Flags: []cli.Flag{watchFlag()}},
		{Name: "add", Usage: "add a workload and start it", ArgsUsage: "WORKLOAD", Action: t.workloadAdd, Flags: append(append([]cli.Flag{
			&cli.StringFlag{Name: "driver", Usage: "`DRIVER`: redis, exec, ocf:PROVIDER:AGENT or systemd:NAME@.service"},
			&cli.StringFlag{Name: "kind", Usage: "`KIND`: replicated (a copy on each node of its chain) or movable (one copy)"},
			&cli.StringFlag{Name: "chain", Usage: "`NODES` of its copies, with commas between, the active one first; otherwise picked"},
			&cli.BoolFlag{Name: "stopped", Usage: "do not start it yet"}}, workloadSettings()...), workloadWaitFlags("show its start until it runs, or has failed")...)},
		{Name: "set", Usage: "change a workload's settings", ArgsUsage: "WORKLOAD", Action: t.workloadSet, Flags: workloadSettings()},
		{Name: "move", Usage: "move a workload to another node", ArgsUsage: "WORKLOAD", Action: t.workloadOrder(cluster.WorkloadMove), Flags: append([]cli.Flag{onNode}, untilEnd...)},
		{Name: "promote", Usage: "make the copy on a node the active one", ArgsUsage: "WORKLOAD", Action: t.workloadOrder(cluster.WorkloadPromote), Flags: append([]cli.Flag{onNode}, untilEnd...)},
		{Name: "start", Usage: "start a workload, also one that has failed", ArgsUsage: "WORKLOAD", Action: t.workloadOrder(cluster.WorkloadStart), Flags: untilEnd},
		{Name: "stop", Usage: "stop a workload, to stay so", ArgsUsage: "WORKLOAD", Action: t.workloadOrder(cluster.WorkloadStop), Flags: untilEnd},
		{Name: "probe", Usage: "ask every node what its copy is", ArgsUsage: "WORKLOAD", Action: t.workloadOrder(cluster.WorkloadProbe), Flags: untilEnd},
		{Name: "remove", Usage: "stop a workload's copies and forget it", ArgsUsage: "WORKLOAD", Action: t.workloadRemove, Flags: append([]cli.Flag{
			&cli.BoolFlag{Name: "destroy", Usage: "its last copy may go, with its data"},
			&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask"}}, untilEnd...)},
	}}
}

// workloadSettings are the flags of what can be said of a workload at any time.
func workloadSettings() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "param", Usage: "`NAME=VALUE` of the driver's parameters; as often as needed; NAME= takes one away"},
		&cli.StringFlag{Name: "nodes", Usage: "`NODES` that may have a copy, with commas between, or all"},
		&cli.StringFlag{Name: "replicas", Usage: "`HOW MANY` copies beside the active one, where no chain is named"},
		&cli.BoolFlag{Name: "coordinators-only", Usage: "no copy may be on a hypervisor"},
		&cli.BoolFlag{Name: "ephemeral", Usage: "a copy that is restarted comes back empty"},
		&cli.BoolFlag{Name: "autostart", Usage: "it starts by itself once a node can take it, as it does unless it was added with =false: then it waits for an order", DisableDefaultText: true},
		&cli.BoolFlag{Name: "protected", Usage: "its node is fenced before others"},
		&cli.BoolFlag{Name: "live", Usage: "it is moved while it runs, where its OCF agent can"},
		&cli.StringFlag{Name: "priority", Usage: "`0–1000`; larger first in a recovery and a drain"},
		&cli.StringFlag{Name: "selector", Usage: "`HOW` a node is picked: mem, memprov, load, vcpus, vms or default"},
		&cli.StringFlag{Name: "memory", Usage: "`MIB` that it needs"},
		&cli.StringFlag{Name: "vcpus", Usage: "`HOW MANY` virtual processors it needs"},
		&cli.BoolFlag{Name: "unchecked", Usage: "do not have the pvcapid's host check agent and parameters"},
	}
}

// settingValues are the arguments of the flags that are given.
func settingValues(c *cli.Context) (url.Values, error) {
	values := url.Values{}
	for _, name := range []string{"driver", "kind", "chain", "nodes", "replicas", "priority", "selector", "memory", "vcpus"} {
		if text := c.String(name); text != "" {
			values.Set(name, text)
		}
	}
	for _, name := range []string{"coordinators-only", "ephemeral", "autostart", "protected", "live", "unchecked", "stopped"} {
		if c.IsSet(name) {
			values.Set(strings.ReplaceAll(name, "-", "_"), strconv.FormatBool(c.Bool(name)))
		}
	}
	params := map[string]any{}
	for _, given := range c.StringSlice("param") {
		name, value, assigns := strings.Cut(given, "=")
		if name == "" || !assigns {
			return nil, usagef("--param %q: write it NAME=VALUE", given)
		}
		if _, twice := params[name]; twice {
			return nil, usagef("--param %s is given twice", name)
		}
		if params[name] = any(value); value == "" {
			params[name] = nil
		}
	}
	if len(params) > 0 {
		raw, err := json.Marshal(params)
		if err != nil {
			return nil, err
		}
		values.Set("params", string(raw))
	}
	return values, nil
}

func (t *terminal) workloadList(c *cli.Context) error {
	if c.NArg() > 1 {
		return usagef("`pvc workload list` takes one expression, not also %q", c.Args().Get(1))
	}
	filters := url.Values{"limit": {c.Args().First()}}
	for _, name := range []string{"node", "state", "kind", "driver"} {
		filters.Set(name, c.String(name))
	}
	return look(t, c, func(ctx context.Context, ask *api.Client) ([]api.WorkloadView, error) {
		return ask.Workloads(ctx, filters)
	}, (*terminal).workloadTable)
}

func (t *terminal) workloadTable(list []api.WorkloadView) {
	paint := t.painter()
	g := t.grid("name", "state", "active", "others", "kind", "driver", "reason")
	g.SetColumnConfigs([]table.ColumnConfig{{Name: "reason", WidthMax: widestText, WidthMaxEnforcer: text.WrapSoft}})
	for _, w := range list {
		active, others := chainWords(w.Chain)
		g.AppendRow(table.Row{w.Name, paint.state(string(w.State)), active, others, w.Kind, driverWord(w), workloadWord(w)})
	}
	g.Render()
	if len(list) == 0 {
		t.say("no workloads")
	}
}

// chainWords are a chain's first node and the others; a place that nobody fills is
// a dash.
func chainWords(chain []cluster.NodeID) (active, others string) {
	var rest []string
	for i, n := range chain {
		word := string(n)
		if n == cluster.NoCopy {
			word = "–"
		}
		if i == 0 {
			active = word
		} else {
			rest = append(rest, word)
		}
	}
	return active, strings.Join(rest, " ")
}

func driverWord(w api.WorkloadView) string {
	if w.Agent == "" {
		return string(w.Driver)
	}
	return string(w.Driver) + ":" + w.Agent
}

// workloadWord says what is not as it should be, or is under way.
func workloadWord(w api.WorkloadView) string {
	var words []string
	if w.Error != "" {
		words = append(words, w.Error)
	}
	if w.Reason != "" {
		words = append(words, w.Reason)
	}
	if w.Request != nil {
		words = append(words, fmt.Sprintf("ordered by %s: %s", w.Request.By, strings.TrimSpace(string(w.Request.Op)+" "+string(w.Request.Node))))
	}
	if w.Next != nil && !strings.HasPrefix(w.Reason, w.Next.Cause+": ") { // else the reason says it, and where from
		active, others := chainWords(w.Next.Chain)
		words = append(words, fmt.Sprintf("%s: %sto %s", w.Next.Cause, liveWord(w.Next.Live), strings.TrimSpace(active+" "+others)))
	}
	return strings.Join(words, "; ")
}

// liveWord says of a move that it is a live one, or was.
func liveWord(l cluster.LiveMove) string {
	switch l {
	case "":
		return ""
	case cluster.LiveMigrating:
		return "live "
	}
	return "after a live one, "
}

func (t *terminal) workloadInfo(c *cli.Context) error {
	given, err := names(c, "a workload's name")
	if err != nil {
		return err
	}
	return look(t, c, func(ctx context.Context, ask *api.Client) (api.WorkloadView, error) {
		return ask.Workload(ctx, given[0])
	}, (*terminal).workloadDetails)
}

func (t *terminal) workloadDetails(w api.WorkloadView) {
	paint := t.painter()
	g := t.grid()
	g.SetColumnConfigs([]table.ColumnConfig{{Number: 2, WidthMax: widestText, WidthMaxEnforcer: text.WrapSoft}})
	row := func(name string, value any) {
		if value != "" {
			g.AppendRow(table.Row{name, value})
		}
	}
	row("name", w.Name)
	row("state", paint.state(string(w.State)))
	row("since", clockOf(w.SinceMS))
	row("reason", workloadWord(w))
	active, others := chainWords(w.Chain)
	row("active on", active)
	row("others on", others)
	row("kind", string(w.Kind))
	row("driver", driverWord(w))
	for _, name := range slices.Sorted(maps.Keys(w.Params)) {
		row("param "+name, w.Params[name])
	}
	row("settings", settingWords(w))
	row("may be on", joinNames(w.Nodes))
	row("goes back to", string(w.Home))
	if a := w.Answer; a != nil {
		row("last order", fmt.Sprintf("%s at %s", a.Text, clockTime(a.AtMS)))
	}
	g.Render()
	if a := w.Answer; a != nil && len(a.Copies) > 0 {
		t.say("")
		t.copyTable(a.Copies)
	}
}

func clockOf(unixMS int64) string {
	if unixMS == 0 {
		return ""
	}
	return clockTime(unixMS)
}

func settingWords(w api.WorkloadView) string {
	words := []string{fmt.Sprintf("priority %d", w.Priority)}
	add := func(is bool, format string, more ...any) {
		if is {
			words = append(words, fmt.Sprintf(format, more...))
		}
	}
	add(!w.Wanted, "not to run")
	add(w.Ephemeral, "ephemeral")
	add(!w.Autostart, "no autostart")
	add(w.Protected, "protected")
	add(w.Live, "moved live")
	add(w.CoordinatorsOnly, "coordinators only")
	add(w.Replicas == 1, "1 replica")
	add(w.Replicas > 1, "%d replicas", w.Replicas)
	add(w.Selector != "", "selector %s", w.Selector)
	add(w.MemoryMiB > 0, "%s memory", mebibytes(int(w.MemoryMiB)))
	add(w.VCPUs > 0, "%d vcpus", w.VCPUs)
	add(w.Attempts > 0, "%d starts have failed", w.Attempts)
	return strings.Join(words, ", ")
}

func (t *terminal) copyTable(copies []cluster.CopyReport) {
	g := t.grid("node", "copy", "offset", "follows", "what it says")
	g.SetColumnConfigs([]table.ColumnConfig{{Name: "what it says", WidthMax: widestText, WidthMaxEnforcer: text.WrapSoft}})
	for _, c := range copies {
		state, offset := string(c.State), ""
		if c.Unknown {
			state = "unknown"
		}
		if c.HasOffset {
			offset = strconv.FormatInt(c.Offset, 10)
		}
		g.AppendRow(table.Row{c.Node, state, offset, c.Follows, c.Error})
	}
	g.Render()
}

func (t *terminal) workloadAdd(c *cli.Context) error {
	given, err := names(c, "a name for the workload")
	if err != nil {
		return err
	}
	if err := checkWait(c); err != nil {
		return err
	}
	if c.String("driver") == "" {
		return usagef("--driver is needed: redis, exec, ocf:PROVIDER:AGENT or systemd:NAME@.service")
	}
	values, err := settingValues(c)
	if err != nil {
		return err
	}
	values.Set("name", given[0])
	ask, err := client(c)
	if err != nil {
		return err
	}
	a, err := t.addPatiently(c, ask, values)
	if err != nil {
		return err
	}
	return t.pursueWorkload(c, ask, given[0], "", a)
}

func (t *terminal) workloadSet(c *cli.Context) error {
	given, err := names(c, "a workload's name")
	if err != nil {
		return err
	}
	values, err := settingValues(c)
	if err != nil {
		return err
	}
	if len(values) == 0 {
		return usagef("`pvc workload set` needs what shall change, like --priority 10")
	}
	ask, err := client(c)
	if err != nil {
		return err
	}
	a, err := ask.SetWorkload(c.Context, given[0], values)
	if err != nil {
		return err
	}
	return t.show(c, a, func() { t.say("%s", a.Message) })
}

// workloadOrder gives an order and, with --wait, shows what becomes of it.
func (t *terminal) workloadOrder(op cluster.WorkloadOp) cli.ActionFunc {
	return func(c *cli.Context) error {
		given, err := names(c, "a workload's name")
		if err != nil {
			return err
		}
		if err := checkWait(c); err != nil {
			return err
		}
		if op == cluster.WorkloadPromote && c.String("node") == "" {
			return usagef("`pvc workload promote` needs --node: whose copy shall be the active one")
		}
		ask, err := client(c)
		if err != nil {
			return err
		}
		a, err := ask.OrderWorkload(c.Context, given[0], op, c.String("node"), 0)
		if err != nil {
			return err
		}
		return t.pursueWorkload(c, ask, given[0], op, a)
	}
}

func (t *terminal) workloadRemove(c *cli.Context) error {
	given, err := names(c, "a workload's name")
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
	if c.Bool("destroy") && !c.Bool("yes") {
		question := fmt.Sprintf("Workload %s is removed with all its copies and their data.", given[0])
		if !t.confirm(question+" Write "+given[0]+" to go on: ", given[0]) {
			return usagef("not confirmed; nothing was changed")
		}
	}
	a, err := ask.RemoveWorkload(c.Context, given[0], c.Bool("destroy"), 0)
	if err != nil {
		return err
	}
	return t.pursueWorkload(c, ask, given[0], cluster.WorkloadRemove, a)
}
