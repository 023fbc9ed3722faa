package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"pvc.internal/api"
	"pvc.internal/cluster"
)

// defaultMemberWait is longer than the primary waits for what an order needs.
const defaultMemberWait = 6 * time.Minute

// memberCommands are those about who belongs to the cluster.
func (t *terminal) memberCommands() []*cli.Command {
	common := []cli.Flag{
		&cli.StringFlag{Name: "reason", Usage: "`WHY`, for the history"},
		&cli.BoolFlag{Name: "cancel", Usage: "take the order about this node back"},
		&cli.BoolFlag{Name: "wait", Aliases: []string{"w"}, Usage: "wait until it is carried out, or refused"},
		&cli.DurationFlag{Name: "wait-timeout", Usage: "longest `TIME` to wait for its end", Value: defaultMemberWait},
	}
	return []*cli.Command{
		{Name: "add", Usage: "let a removed node in again, and have a coordinator count for majorities or not", ArgsUsage: "NODE", Action: t.nodeAdd, Flags: append([]cli.Flag{
			&cli.BoolFlag{Name: "coordinator", Usage: "it counts for majorities"},
			&cli.BoolFlag{Name: "hypervisor", Usage: "it does not, or no more"},
			&cli.StringFlag{Name: "host", Usage: "`ID` of the removed host that is meant"}}, common...)},
		{Name: "remove", Usage: "take a node out that is gone for good, with its records", ArgsUsage: "NODE", Action: t.nodeRemove, Flags: append([]cli.Flag{
			&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask"}}, common...)},
	}
}

// memberName is the one name given, as far as it can be a node's.
func memberName(c *cli.Context) (string, error) {
	given, err := names(c, "a node's name")
	if err != nil {
		return "", err
	}
	if err := cluster.NodeID(given[0]).Validate(); err != nil {
		return "", usagef("%s", err)
	}
	return given[0], checkWait(c)
}

func (t *terminal) nodeAdd(c *cli.Context) error {
	node, err := memberName(c)
	if err != nil {
		return err
	}
	mode := ""
	switch {
	case c.Bool("coordinator") && c.Bool("hypervisor"):
		return usagef("a node counts (--coordinator) or does not (--hypervisor); give one of both, or neither for what it registers as")
	case c.Bool("coordinator"):
		mode = string(cluster.Coordinator)
	case c.Bool("hypervisor"):
		mode = string(cluster.Hypervisor)
	}
	ask, err := client(c)
	if err != nil {
		return err
	}
	return t.memberOrder(c, ask, node, func(ctx context.Context) (api.MemberAnswer, error) {
		return ask.AddNode(ctx, node, mode, c.String("host"), c.String("reason"))
	})
}

func (t *terminal) nodeRemove(c *cli.Context) error {
	node, err := memberName(c)
	if err != nil {
		return err
	}
	ask, err := client(c)
	if err != nil {
		return err
	}
	if !c.Bool("yes") && !c.Bool("cancel") {
		question := fmt.Sprintf("Node %s is taken out of the cluster with all its records and its log; when it comes back it stays out.", node)
		if !t.confirm(question+" Write "+node+" to go on: ", node) {
			return usagef("not confirmed; nothing was changed")
		}
	}
	return t.memberOrder(c, ask, node, func(ctx context.Context) (api.MemberAnswer, error) {
		return ask.RemoveNode(ctx, node, c.String("reason"))
	})
}

// memberOrder gives an order, or takes the one about the node back, and with
// --wait shows what becomes of it.
func (t *terminal) memberOrder(c *cli.Context, ask *api.Client, node string, give func(context.Context) (api.MemberAnswer, error)) error {
	if c.Bool("cancel") {
		if c.Bool("wait") {
			return usagef("--cancel is answered at once: give it without --wait")
		}
		give = func(ctx context.Context) (api.MemberAnswer, error) { return ask.CancelMemberOrder(ctx, node) }
	}
	if _, err := format(c); err != nil {
		return err
	}
	a, err := give(c.Context)
	if err != nil {
		return err
	}
	if !c.Bool("wait") || a.Order == nil {
		return t.show(c, a, func() { t.say("%s", a.Message) })
	}
	f := &memberFollower{order: *a.Order}
	f.pursuit = pursuit[api.MembersView]{t: t, see: f.look, unfinished: f.unfinished, read: func(ctx context.Context) (api.MembersView, error) {
		return ask.Members(ctx, memberEventsLooked)
	}}
	return f.run(c, a.Message)
}

// memberFollower shows what becomes of an order about a node's membership.
type memberFollower struct {
	pursuit[api.MembersView]
	order cluster.MemberOrder
}

// memberEventsLooked is how many of the newest events are looked at each time.
const memberEventsLooked = 20

func (f *memberFollower) unfinished(atMost time.Duration) error {
	return fmt.Errorf("not over within %s; it goes on by itself. `pvc history --kind member_refused` will say if it is refused, `pvc node %s %s --cancel` takes it back: %w",
		atMost, f.order.Action, f.order.Node, cluster.ErrDeadline)
}

// look reports whether it is over, and how.
func (f *memberFollower) look(v api.MembersView) (over bool, end error) {
	for _, e := range slices.Backward(v.History) { // oldest first
		if e.Fields["order"] != f.order.ID {
			continue
		}
		switch {
		case e.Kind == cluster.EventMemberRefused:
			return true, fmt.Errorf("%s: %w", e.Text, cluster.ErrRefused)
		case e.Kind == cluster.EventMember:
			if f.line("%s", e.Text); e.Fields["ends"] == "true" {
				return true, nil
			}
		case e.Kind == cluster.EventMemberOrder && e.Fields["withdrawal"] != "":
			return true, fmt.Errorf("%s: %w", e.Text, cluster.ErrRefused)
		}
	}
	if v.Order == nil || v.Order.ID != f.order.ID {
		f.line("the order is answered; the history is being read")
		return false, nil
	}
	f.line("waits for the primary")
	return false, nil
}

// membersNote prints, below a list of nodes, who does not count and who stays out.
func (t *terminal) membersNote(v api.MembersView) {
	if len(v.Uncounted) > 0 {
		t.say("! coordinators that count for no majority: %s. To have one count: `pvc node add NODE --coordinator`", joinNames(v.Uncounted))
	}
	var out []string
	for _, r := range v.Removed {
		if !r.Free {
			out = append(out, fmt.Sprintf("%s (host %s, %s)", r.Node, r.Host, clockTime(r.UnixMS)))
		}
	}
	if len(out) > 0 {
		t.say("removed, and staying out until `pvc node add NODE`: %s", strings.Join(out, ", "))
	}
	if o := v.Order; o != nil {
		t.say("! ordered by %s and not carried out yet: %s of node %s", o.By, o.Action, o.Node)
	}
	if v.Doubt != "" {
		t.say("! %s", v.Doubt)
	}
}

func joinNames(list []cluster.NodeID) string {
	names := make([]string, len(list))
	for i, n := range list {
		names[i] = string(n)
	}
	return strings.Join(names, ", ")
}
