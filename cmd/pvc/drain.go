package main

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"pvc.internal/api"
	"pvc.internal/cluster"
)

// defaultDrainWait is for many moves.
const defaultDrainWait = 15 * time.Minute

// domainState asks for a node to be flushed or made ready and, with --wait, shows
// what is moved until the node says that it is.
func (t *terminal) domainState(state cluster.DomainState) cli.ActionFunc {
	return func(c *cli.Context) error {
		given, err := names(c, "a node's name")
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
		m, err := ask.SetDomainState(c.Context, given[0], string(state))
		if err != nil {
			return err
		}
		if !c.Bool("wait") {
			return t.show(c, m, func() { t.say("%s", m.Message) })
		}
		f := &drainFollower{node: given[0], asks: cluster.DomainFlush, ends: cluster.DomainFlushed}
		if state == cluster.DomainReady {
			f.asks, f.ends = cluster.DomainUnflush, cluster.DomainReady
		}
		f.pursuit = pursuit[drainView]{t: t, see: f.look, unfinished: f.unfinished, read: func(ctx context.Context) (drainView, error) {
			return readDrain(ctx, ask, given[0])
		}}
		return f.run(c, m.Message)
	}
}

// drainView is how far a node's flush, or the way back, is.
type drainView struct {
	Node        string             `json:"node"`
	DomainState string             `json:"domain_state"`
	Workloads   []api.WorkloadView `json:"workloads"` // that touch the node, or go back to it
}

func readDrain(ctx context.Context, ask *api.Client, node string) (drainView, error) {
	n, err := ask.NodeDomainState(ctx, node)
	if err != nil {
		return drainView{}, err
	}
	all, err := ask.Workloads(ctx, url.Values{})
	if err != nil {
		return drainView{}, err
	}
	v := drainView{Node: node, DomainState: n.DomainState, Workloads: []api.WorkloadView{}}
	for _, w := range all {
		if concerns(w, cluster.NodeID(node)) {
			v.Workloads = append(v.Workloads, w)
		}
	}
	return v, nil
}

// concerns reports whether a flush of the node moves the workload, or the way back.
func concerns(w api.WorkloadView, n cluster.NodeID) bool {
	return slices.Contains(w.Chain, n) || w.Home == n || w.Next != nil && (slices.Contains(w.Next.Chain, n) || slices.Contains(w.Next.From, n))
}

// drainFollower shows what is moved away from a node, or back.
type drainFollower struct {
	pursuit[drainView]
	node       string
	asks, ends cluster.DomainState
	begun      bool
}

func (f *drainFollower) unfinished(atMost time.Duration) error {
	left := f.left(f.last)
	if len(left) > 0 {
		return fmt.Errorf("not over within %s; it goes on by itself. Left: %s; `pvc explain WORKLOAD` says what one waits for: %w", atMost, strings.Join(left, ", "), cluster.ErrDeadline)
	}
	return fmt.Errorf("not over within %s; the wish stands. `pvc node log %s` may say what keeps it: %w", atMost, f.node, cluster.ErrDeadline)
}

// left are the workloads that are still to be moved.
func (f *drainFollower) left(v drainView) []string {
	var left []string
	for _, w := range v.Workloads {
		here := slices.Contains(w.Chain, cluster.NodeID(f.node))
		returns := w.Home == cluster.NodeID(f.node) && w.Wanted && (w.State == cluster.WorkloadRunning || w.State == cluster.WorkloadMoving || w.State == cluster.WorkloadStarting)
		if f.ends == cluster.DomainFlushed && here || f.ends == cluster.DomainReady && returns {
			left = append(left, w.Name)
		}
	}
	return left
}

func (f *drainFollower) look(v drainView) (over bool, end error) {
	for _, w := range v.Workloads {
		active, others := chainWords(w.Chain)
		text := fmt.Sprintf("%s: %s on %s", w.Name, w.State, strings.TrimSpace(active+" "+others))
		if word := workloadWord(w); word != "" {
			text += ", " + word
		}
		f.line("%s", text)
	}
	switch is := cluster.DomainState(v.DomainState); is {
	case f.ends:
		if left := f.left(v); is == cluster.DomainReady && len(left) > 0 { // which come back to a node that is ready
			f.begun = true
			f.line("%d left: %s", len(left), strings.Join(left, ", "))
			return false, nil
		}
		f.say("node %s is %s", f.node, is)
		return true, nil
	case f.asks:
		f.begun = true
		if left := f.left(v); len(left) > 0 {
			f.line("%d left: %s", len(left), strings.Join(left, ", "))
		}
		return false, nil
	default:
		if !f.begun { // the server has not seen the wish yet
			return false, nil
		}
		return true, fmt.Errorf("node %s is %q now: somebody has ordered otherwise meanwhile (`pvc history --kind domain_state`): %w", f.node, is, cluster.ErrRefused)
	}
}
