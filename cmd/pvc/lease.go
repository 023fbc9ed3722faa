package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/urfave/cli/v2"

	"pvc.internal/api"
)

func (t *terminal) leaseCommand() *cli.Command {
	return &cli.Command{Name: "lease", Usage: "node leases: whom each node serves", Subcommands: []*cli.Command{
		{Name: "list", Usage: "list who holds each node's lease, until when, the round-trip times, and why not", Action: t.leaseList, Flags: []cli.Flag{watchFlag()}},
	}}
}

func (t *terminal) leaseList(c *cli.Context) error {
	if _, err := names(c); err != nil {
		return err
	}
	return look(t, c, func(ctx context.Context, ask *api.Client) (api.LeasesView, error) { return ask.Leases(ctx) }, (*terminal).leaseTable)
}

func (t *terminal) leaseTable(v api.LeasesView) {
	switch {
	case !v.InUse:
		t.say("node leases are not in use: %s", v.Doubt)
		return
	case v.Doubt != "":
		t.say("! %s", v.Doubt)
	}
	held := "a majority"
	if !v.Majority {
		held = "no majority"
	}
	t.say("%s holds %s of the quorum set (%s), as of %.1f s ago; without another renewal a lease lasts %.0f s at its node",
		v.Holder, held, joined(v.Set), v.AgeSeconds, v.Period)
	paint := t.painter()
	g := t.grid("node", "counts", "lease", "holder", "until", "left then", "since", "rtt median", "p99", "last", "reason")
	g.SetColumnConfigs([]table.ColumnConfig{{Name: "reason", WidthMax: widestText, WidthMaxEnforcer: text.WrapSoft}})
	for _, n := range v.Nodes {
		counts, until, left, since, reason := "no", "", "", "", n.Detail
		if n.Counts {
			counts = "yes"
		}
		if n.UntilMS > 0 {
			until, left = clockTime(n.UntilMS), fmt.Sprintf("%.1f s", n.LeftSeconds)
		}
		if n.SinceMS > 0 {
			since = clockTime(n.SinceMS)
		}
		if n.Code != "" {
			reason = fmt.Sprintf("%s: %s", n.Code, n.Detail)
		}
		g.AppendRow(table.Row{n.Node, counts, paint.state(n.State), n.Holder, until, left, since, millis(n.RTT.Median), millis(n.RTT.P99), millis(n.RTT.Last), reason})
	}
	g.Render()
}

// millis renders a round-trip time; none is empty.
func millis(ms float64) string {
	if ms <= 0 {
		return ""
	}
	return fmt.Sprintf("%.2f ms", ms)
}

func joined[T ~string](list []T) string {
	words := make([]string, len(list))
	for i, w := range list {
		words[i] = string(w)
	}
	return strings.Join(words, " ")
}
