package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/urfave/cli/v2"

	"pvc.internal/api"
	"pvc.internal/cluster"
)

func (t *terminal) nodeCommand() *cli.Command {
	wait := []cli.Flag{
		&cli.BoolFlag{Name: "wait", Aliases: []string{"w"}, Usage: "show the switch phase by phase until it has ended"},
		&cli.DurationFlag{Name: "wait-timeout", Usage: "longest `TIME` to wait for its end", Value: defaultSwitchWait},
		&cli.BoolFlag{Name: "dry-run", Usage: "only say what would happen"},
	}
	untilDone := []cli.Flag{
		&cli.BoolFlag{Name: "wait", Aliases: []string{"w"}, Usage: "show what is moved until the node has done it"},
		&cli.DurationFlag{Name: "wait-timeout", Usage: "longest `TIME` to wait for that", Value: defaultDrainWait},
	}
	return &cli.Command{Name: "node", Usage: "nodes and the primary role", Subcommands: append([]*cli.Command{
		{Name: "list", Usage: "list nodes", ArgsUsage: "[REGEXP]", Action: t.nodeList, Flags: []cli.Flag{
			&cli.StringFlag{Name: "daemon-state", Usage: "only nodes in this `STATE`"},
			&cli.StringFlag{Name: "coordinator-state", Usage: "only nodes in this `STATE`"},
			&cli.StringFlag{Name: "domain-state", Usage: "only nodes in this `STATE`"}, watchFlag()}},
		{Name: "info", Usage: "show one node", ArgsUsage: "NODE", Action: t.nodeInfo, Flags: []cli.Flag{watchFlag()}},
		{Name: "primary", Usage: "make a node primary", ArgsUsage: "NODE", Action: t.nodePrimary, Flags: wait},
		{Name: "secondary", Usage: "make a node give the primary role up", ArgsUsage: "NODE", Action: t.nodeSecondary, Flags: wait},
		{Name: "flush", Usage: "move a node's workloads away", ArgsUsage: "NODE", Action: t.domainState(cluster.DomainFlush), Flags: untilDone},
		{Name: "ready", Usage: "move a node's workloads back", ArgsUsage: "NODE", Action: t.domainState(cluster.DomainReady), Flags: untilDone},
		{Name: "log", Usage: "show a node's newest log lines", ArgsUsage: "NODE", Action: t.nodeLog, Flags: []cli.Flag{
			&cli.IntFlag{Name: "lines", Aliases: []string{"n"}, Value: 10, Usage: "`HOW MANY`"}}},
		{Name: "watch", Usage: "show the nodes and each change", Action: t.nodeWatch},
	}, t.memberCommands()...)}
}

func (t *terminal) nodeList(c *cli.Context) error {
	filters := url.Values{}
	for flag, argument := range map[string]string{"daemon-state": "daemon_state", "coordinator-state": "coordinator_state", "domain-state": "domain_state"} {
		filters.Set(argument, c.String(flag))
	}
	if c.NArg() > 1 {
		return usagef("`pvc node list` takes one expression, not also %q", c.Args().Get(1))
	}
	filters.Set("limit", c.Args().First())
	shape, err := format(c)
	if err != nil {
		return err
	}
	var members *api.MembersView
	return look(t, c, func(ctx context.Context, ask *api.Client) ([]api.Node, error) {
		nodes, err := ask.Nodes(ctx, filters)
		var none *api.Error
		if errors.As(err, &none) && none.Status == http.StatusNotFound {
			nodes, err = []api.Node{}, nil // no node, or none that passes: an empty list, not a refusal
		}
		if members = nil; err == nil && shape == formatTable {
			if v, err := ask.Members(ctx, 1); err == nil { // an older pvcapid does not tell
				members = &v
			}
		}
		return nodes, err
	}, func(t *terminal, nodes []api.Node) {
		t.nodeTable(nodes)
		if members != nil {
			t.membersNote(*members)
		}
	})
}

func (t *terminal) nodeTable(nodes []api.Node) {
	paint := t.painter()
	g := t.grid("name", "daemon", "coordinator", "domain", "health", "cpus", "load", "mem used", "mem total", "vms", "version")
	for _, n := range nodes {
		g.AppendRow(table.Row{n.Name, paint.state(daemonWord(n.DaemonState, n.Settling)), paint.state(n.CoordinatorState), paint.state(n.DomainState),
			n.Health, n.CPUCount, fmt.Sprintf("%.2f", n.Load), mebibytes(n.Memory.Used), mebibytes(n.Memory.Total), n.DomainsCount, n.PVCVersion})
	}
	g.Render()
	if len(nodes) == 0 {
		t.say("no nodes")
	}
	for _, n := range nodes {
		for _, fault := range n.Faults {
			t.say("! %s: %s", n.Name, fault)
		}
	}
}

// daemonWord is the daemon's state for people: also that of one that is being stopped
// and has its copies end before.
func daemonWord(state string, settling bool) string {
	if settling {
		return "stopping"
	}
	return state
}

func mebibytes(n int) string {
	if n >= 10*1024 {
		return fmt.Sprintf("%.1f GiB", float64(n)/1024)
	}
	return fmt.Sprintf("%d MiB", n)
}

func (t *terminal) nodeInfo(c *cli.Context) error {
	given, err := names(c, "a node's name")
	if err != nil {
		return err
	}
	return look(t, c, func(ctx context.Context, ask *api.Client) (api.Node, error) { return ask.Node(ctx, given[0]) }, (*terminal).nodeDetails)
}

func (t *terminal) nodeDetails(n api.Node) {
	paint := t.painter()
	g := t.grid()
	g.AppendRows([]table.Row{
		{"name", n.Name},
		{"daemon", paint.state(daemonWord(n.DaemonState, n.Settling))},
		{"coordinator", paint.state(n.CoordinatorState)},
		{"domain", paint.state(n.DomainState)},
		{"health", n.Health},
		{"version", n.PVCVersion},
		{"system", strings.TrimSpace(n.OS + " " + n.Kernel + " " + n.Arch)},
		{"processors", fmt.Sprintf("%d, load %.2f, %d allocated", n.CPUCount, n.Load, n.VCPU.Allocated)},
		{"memory", fmt.Sprintf("%s used of %s, %s free, %s allocated, %s provisioned", mebibytes(n.Memory.Used), mebibytes(n.Memory.Total),
			mebibytes(n.Memory.Free), mebibytes(n.Memory.Allocated), mebibytes(n.Memory.Provisioned))},
		{"vms", fmt.Sprintf("%d %s", n.DomainsCount, strings.Join(n.RunningDomains, " "))},
	})
	for _, d := range n.HealthDetails {
		g.AppendRow(table.Row{"plugin " + d.Name, fmt.Sprintf("-%d %s", d.HealthDelta, d.Message)})
	}
	for _, fault := range n.Faults {
		g.AppendRow(table.Row{"fault", fault})
	}
	g.Render()
}

func (t *terminal) nodeLog(c *cli.Context) error {
	given, err := names(c, "a node's name")
	if err != nil {
		return err
	}
	ask, err := client(c)
	if err != nil {
		return err
	}
	log, err := ask.NodeLog(c.Context, given[0], c.Int("lines"))
	if err != nil {
		return err
	}
	return t.show(c, log, func() { t.say("%s", log.Data) })
}

func (t *terminal) nodePrimary(c *cli.Context) error {
	given, err := names(c, "a node's name")
	if err != nil {
		return err
	}
	return t.switchRole(c, given[0], "")
}

func (t *terminal) nodeSecondary(c *cli.Context) error {
	given, err := names(c, "a node's name")
	if err != nil {
		return err
	}
	return t.switchRole(c, cluster.NoNode, given[0])
}
