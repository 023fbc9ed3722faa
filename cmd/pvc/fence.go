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

// defaultFenceWait is longer than a fence with one slow controller takes: the
// order is seen within a second, and a device has 20 s unless configured
// otherwise.
const defaultFenceWait = 60 * time.Second

func (t *terminal) fenceCommand() *cli.Command {
	reason := &cli.StringFlag{Name: "reason", Usage: "`WHY`, for the history"}
	yes := &cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask"}
	wait := []cli.Flag{
		&cli.BoolFlag{Name: "wait", Aliases: []string{"w"}, Usage: "show it stage by stage until it has ended"},
		&cli.DurationFlag{Name: "wait-timeout", Usage: "longest `TIME` to wait for its end", Value: defaultFenceWait},
	}
	unsafe := &cli.BoolFlag{Name: "unsafe", Usage: "try it once even if the primary holds no majority of the node leases; needs --reason"}
	ordering := func(more ...cli.Flag) []cli.Flag { return append(append([]cli.Flag{reason}, more...), wait...) }
	return &cli.Command{Name: "fence", Usage: "taking a node's power away, and seeing that it is gone", Subcommands: []*cli.Command{
		{Name: "list", Usage: "list fence records, orders and the tests of fence devices", Action: t.fenceList, Flags: []cli.Flag{
			&cli.StringFlag{Name: "node", Usage: "only of this `NODE`"},
			&cli.IntFlag{Name: "limit", Aliases: []string{"n"}, Value: 10, Usage: "`HOW MANY` events of the history"}, watchFlag()}},
		{Name: "now", Usage: "take a node's power, whatever it looks like", ArgsUsage: "NODE", Action: t.fenceOrder(cluster.OrderFence), Flags: ordering(yes, unsafe)},
		{Name: "confirm", Usage: "vouch that a lost node has no power, in place of its fence device", ArgsUsage: "NODE", Action: t.fenceOrder(cluster.OrderConfirm), Flags: ordering(yes)},
		{Name: "cancel", Usage: "end a fence before power is ordered off, or take an order back", ArgsUsage: "NODE", Action: t.fenceOrder(cluster.OrderCancel), Flags: []cli.Flag{reason}},
		{Name: "test", Usage: "ask a node's fence devices whether they could be used; no power changes", ArgsUsage: "NODE", Action: t.fenceOrder(cluster.OrderTest), Flags: ordering()},
		t.fenceKeyCommand(), t.fenceSealCommand(), t.fenceSecretCommand(),
	}}
}

func (t *terminal) fenceList(c *cli.Context) error {
	if _, err := names(c); err != nil {
		return err
	}
	return look(t, c, func(ctx context.Context, ask *api.Client) (api.FencesView, error) {
		return ask.Fences(ctx, c.String("node"), c.Int("limit"))
	}, (*terminal).fenceTables)
}

// fenceTables prints what there is, each kind as a table of its own.
func (t *terminal) fenceTables(v api.FencesView) {
	paint := t.painter()
	wrapped := func(header ...any) table.Writer {
		g := t.grid(header...)
		g.SetColumnConfigs([]table.ColumnConfig{{Name: fmt.Sprint(header[len(header)-1]), WidthMax: widestText, WidthMaxEnforcer: text.WrapSoft}})
		return g
	}
	if len(v.Fences) == 0 {
		t.say("no fences")
	} else {
		g := wrapped("node", "stage", "proof", "since", "by", "tries", "reason")
		for _, f := range v.Fences {
			g.AppendRow(table.Row{f.Node, paint.state(string(f.Stage)), f.Proof, clockTime(f.StartedMS), f.By, f.Tries, f.Reason})
		}
		g.Render()
	}
	if len(v.Orders) > 0 {
		t.say("")
		g := wrapped("node", "ordered", "by", "since", "reason")
		for _, o := range v.Orders {
			g.AppendRow(table.Row{o.Node, o.Action, o.By, clockTime(o.UnixMS), o.Reason})
		}
		g.Render()
	}
	if len(v.Devices) > 0 {
		t.say("")
		t.deviceTable(v.Devices)
	}
	if len(v.History) > 0 {
		t.say("")
		g := wrapped("time", "node", "what")
		for _, e := range v.History {
			g.AppendRow(table.Row{clockTime(e.UnixMS), e.Fields["node"], eventText(e)})
		}
		g.Render()
	}
	if v.Doubt != "" {
		t.say("! %s", v.Doubt)
	}
}

// eventText is an event with what it resulted in.
func eventText(e cluster.Event) string {
	line := e.Text
	known := []string{"result", "proof"}
	if e.Kind == "fence_order" {
		known = []string{"reason"}
	}
	for _, more := range known {
		if what := e.Fields[more]; what != "" && !strings.Contains(line, what) {
			line += "; " + more + ": " + what
		}
	}
	return line
}

func (t *terminal) deviceTable(tests []api.DeviceTest) {
	paint := t.painter()
	g := t.grid("device of", "name", "type", "tested by", "at", "power", "result")
	g.SetColumnConfigs([]table.ColumnConfig{{Name: "result", WidthMax: widestText, WidthMaxEnforcer: text.WrapSoft}})
	for _, d := range tests {
		result := d.Finding()
		for _, note := range d.Notes {
			result += "; note: " + note
		}
		g.AppendRow(table.Row{d.Node, d.Device, d.Type, d.By, clockTime(d.UnixMS), d.Power, paint.state(result)})
	}
	g.Render()
}

// fenceOrder sends one kind of order.
func (t *terminal) fenceOrder(action string) cli.ActionFunc {
	return func(c *cli.Context) error {
		given, err := names(c, "a node's name")
		if err != nil {
			return err
		}
		node, reason := given[0], c.String("reason")
		if action == cluster.OrderConfirm && strings.TrimSpace(reason) == "" {
			return usagef("`pvc fence confirm` needs --reason WHY: who has seen that %s has no power, and how", node)
		}
		if c.Bool("unsafe") && strings.TrimSpace(reason) == "" {
			return usagef("`pvc fence now --unsafe` needs --reason WHY: why it cannot wait until the primary holds a majority of the node leases")
		}
		if err := checkWait(c); err != nil {
			return err
		}
		ask, err := client(c)
		if err != nil {
			return err
		}
		if err := t.sure(c, ask, node, action); err != nil {
			return err
		}
		var before api.FencesView
		if c.Bool("wait") {
			if before, err = ask.Fences(c.Context, node, 1); err != nil {
				return err
			}
		}
		order := func() (api.FenceAnswer, error) { return ask.OrderFence(c.Context, node, action, reason) }
		if c.Bool("unsafe") {
			order = func() (api.FenceAnswer, error) { return ask.FenceUnsafe(c.Context, node, reason) }
		}
		a, err := order()
		if err != nil {
			return err
		}
		if !c.Bool("wait") || a.Order == nil {
			return t.show(c, a, func() { t.say("%s", a.Message) })
		}
		f := &fenceFollower{node: node, order: *a.Order, before: before}
		f.pursuit = pursuit[api.FencesView]{t: t, see: f.look, unfinished: f.unfinished, read: func(ctx context.Context) (api.FencesView, error) {
			return ask.Fences(ctx, node, fenceEventsLooked)
		}}
		return f.run(c, a.Message)
	}
}

// sure asks before power is taken, or before an operator's word stands for it:
// the node's name must be written.
func (t *terminal) sure(c *cli.Context, ask *api.Client, node, action string) error {
	if c.Bool("yes") || action != cluster.OrderFence && action != cluster.OrderConfirm {
		return nil
	}
	v, err := ask.Cluster(c.Context)
	if err != nil {
		return err
	}
	at := slices.IndexFunc(v.Nodes, func(n api.NodeSummary) bool { return string(n.Name) == node })
	if at < 0 {
		return fmt.Errorf("no node named %q is present in the cluster; nothing was ordered: %w", node, cluster.ErrRefused)
	}
	n := v.Nodes[at]
	heard := "has never been heard"
	if n.KeepaliveAge != nil {
		heard = fmt.Sprintf("was last heard %.1f s ago", *n.KeepaliveAge)
	}
	question := fmt.Sprintf("Node %s is in state %s, its session is %s, and it %s.\n", node, n.DaemonState, sessionWord(n), heard)
	if action == cluster.OrderFence {
		question += "Its power is taken, and everything that runs on it ends at once."
		if c.Bool("unsafe") {
			question += " The primary need not hold a majority of the node leases: what an earlier primary has begun elsewhere may not have ended yet."
		}
	} else {
		question += "You vouch that it has no power and gets none before it is repaired. If it runs after all, its work runs twice and data is lost."
	}
	if !t.confirm(question+" Write "+node+" to go on: ", node) {
		return usagef("not confirmed; nothing was changed")
	}
	return nil
}

// fenceFollower shows what becomes of an order.
type fenceFollower struct {
	pursuit[api.FencesView]
	node   string
	order  cluster.FenceOrder
	before api.FencesView // of the node, before it was ordered
	taken  bool           // the order is gone: somebody has dealt with it
}

// fenceEventsLooked are the newest events of the node's fence in each look.
const fenceEventsLooked = 5

// look reports whether it is over, and how.
func (f *fenceFollower) look(v api.FencesView) (over bool, end error) {
	for _, e := range v.History {
		if e.Kind == cluster.EventOrderRefused && e.Fields["order"] == f.order.ID {
			return true, fmt.Errorf("%s: %w", e.Text, cluster.ErrRefused)
		}
	}
	if slices.ContainsFunc(v.Orders, func(o cluster.FenceOrder) bool { return o.ID == f.order.ID }) {
		f.line("waits for the primary")
		return false, nil
	}
	f.taken = true
	if f.order.Action == cluster.OrderTest {
		return f.tested(v)
	}
	for _, r := range v.Fences {
		if r.Incarnation == f.order.Incarnation && !f.old(r) {
			return f.record(r)
		}
	}
	f.line("the primary has taken it on")
	return false, nil
}

// old reports whether the record is as it was before the order.
func (f *fenceFollower) old(r cluster.FenceRecord) bool {
	return slices.ContainsFunc(f.before.Fences, func(was cluster.FenceRecord) bool {
		return was.ID == r.ID && was.Stage == r.Stage && was.Tries == r.Tries && was.Proof == r.Proof
	})
}

func (f *fenceFollower) record(r cluster.FenceRecord) (over bool, end error) {
	text := fmt.Sprintf("stage %s, try %d, by %s", r.Stage, r.Tries, r.By)
	if r.Result != "" {
		text += ": " + r.Result
	}
	f.line("%s", text)
	switch mine := r.Order == f.order.ID; {
	case r.Proof != "" && r.Stage != cluster.FenceCanceled:
		f.say("node %s is proven dead: %s", f.node, r.Proof)
		return true, nil
	case !mine: // a try that was under way when it was ordered; its end answers nothing
	case r.Stage == cluster.FenceCanceled:
		return true, fmt.Errorf("the fence of node %s was canceled: %s: %w", f.node, r.Result, cluster.ErrRefused)
	case r.Stage == cluster.FenceFailed:
		return true, fmt.Errorf("the fence of node %s failed: %s. It is tried again by itself; `pvc explain %s` says which proof is missing", f.node, r.Result, f.node)
	case r.Stage == cluster.FenceManual:
		return true, fmt.Errorf("the fence of node %s waits for you: %s. See that it has no power, then `pvc fence confirm %s --reason WHY`", f.node, r.Result, f.node)
	}
	return false, nil
}

// tested is over once a test is published that was not there before.
func (f *fenceFollower) tested(v api.FencesView) (over bool, end error) {
	var fresh []api.DeviceTest
	bad := 0
	for _, d := range v.Devices {
		if slices.ContainsFunc(f.before.Devices, func(was api.DeviceTest) bool {
			return was.By == d.By && was.Device == d.Device && was.UnixMS == d.UnixMS
		}) {
			continue
		}
		fresh = append(fresh, d)
		if d.Fault != "" {
			bad++
		}
	}
	if len(fresh) == 0 {
		f.line("the devices are being asked")
		return false, nil
	}
	if !f.quiet {
		f.t.deviceTable(fresh)
	}
	if bad > 0 {
		return true, fmt.Errorf("%d of %d tests of fence devices of node %s failed", bad, len(fresh), f.node)
	}
	return true, nil
}

func (f *fenceFollower) unfinished(atMost time.Duration) error {
	where := "the primary has not taken the order on; `pvc fence cancel " + f.node + "` takes it back"
	if f.taken {
		where = "it goes on by itself"
	}
	return fmt.Errorf("not over within %s: %s. See `pvc fence list` and `pvc explain %s`: %w", atMost, where, f.node, cluster.ErrDeadline)
}
