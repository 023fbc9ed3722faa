package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"pvc.internal/api"
	"pvc.internal/cluster"
)

// workloadFollower shows what becomes of an order, or of a workload that was added.
type workloadFollower struct {
	pursuit[api.WorkloadView]
	name, id string // of the workload, and of its creation
	op       cluster.WorkloadOp
	order    string
	version  int32 // that the record has had at least
}

// comingUp is for how long at most `pvc workload add --wait` tries again while node
// leases are not in use yet: the first start of a cluster takes a part of that.
const comingUp = 30 * time.Second

// addPatiently adds a workload; with --wait also to a cluster that is just coming up.
// A server that says so has changed nothing.
func (t *terminal) addPatiently(c *cli.Context, ask *api.Client, values url.Values) (api.WorkloadOrder, error) {
	a, err := ask.AddWorkload(c.Context, values, 0)
	if !c.Bool("wait") || !notYet(err) {
		return a, err
	}
	if shape, wrong := format(c); wrong == nil && shape == formatTable {
		t.say("node leases are not in use yet, as in a cluster that is just coming up; it is tried again for %s at most", min(comingUp, c.Duration("wait-timeout")))
	}
	ctx, cancel := context.WithTimeout(c.Context, min(comingUp, c.Duration("wait-timeout")))
	defer cancel()
	again := time.NewTicker(pursuitLook)
	defer again.Stop()
	for notYet(err) {
		select {
		case <-again.C:
			a, err = ask.AddWorkload(c.Context, values, 0)
		case <-ctx.Done():
			return a, err
		}
	}
	return a, err
}

// notYet reports whether the server waits for node leases to come into use.
func notYet(err error) bool {
	var answer *api.Error
	return errors.As(err, &answer) && answer.Status == http.StatusServiceUnavailable && strings.Contains(answer.Text, string(cluster.RefuseWithoutLeases))
}

// pursueWorkload says what was ordered and, with --wait, follows it to its end.
func (t *terminal) pursueWorkload(c *cli.Context, ask *api.Client, name string, op cluster.WorkloadOp, a api.WorkloadOrder) error {
	if !c.Bool("wait") || a.Order == "" || a.Workload == nil || op == "" && !a.Workload.Wanted {
		return t.show(c, a, func() { t.say("%s", a.Message) })
	}
	f := &workloadFollower{name: name, id: a.Workload.ID, op: op, order: a.Order, version: a.Workload.Version}
	f.pursuit = pursuit[api.WorkloadView]{t: t, see: f.look, unfinished: f.unfinished, read: func(ctx context.Context) (api.WorkloadView, error) {
		v, err := ask.Workload(ctx, name)
		var none *api.Error
		if errors.As(err, &none) && none.Status == http.StatusNotFound {
			return api.WorkloadView{}, nil // it is no more: the end of some, and told of the others
		}
		return v, err
	}}
	return f.run(c, a.Message)
}

func (f *workloadFollower) unfinished(atMost time.Duration) error {
	if f.op == "" {
		return fmt.Errorf("workload %s does not run within %s; the primary goes on with it. `pvc explain %s` says what it waits for: %w", f.name, atMost, f.name, cluster.ErrDeadline)
	}
	return fmt.Errorf("not over within %s; the order stands, and the primary goes on with it. `pvc explain %s` says what it waits for: %w", atMost, f.name, cluster.ErrDeadline)
}

// look reports whether it is over, and how.
func (f *workloadFollower) look(v api.WorkloadView) (over bool, end error) {
	gone := v.Name == "" || v.Error == "" && v.ID != f.id
	switch {
	case gone && f.op == cluster.WorkloadRemove:
		f.say("workload %s is removed", f.name)
		return true, nil
	case gone && f.op == "" && v.Name == "":
		f.line("the server has not seen it yet")
		return false, nil
	case gone:
		return true, fmt.Errorf("workload %s was removed meanwhile (`pvc history --kind %s`): %w", f.name, cluster.EventWorkloadOrder, cluster.ErrRefused)
	case v.Error != "":
		return true, fmt.Errorf("the record of workload %s cannot be read: %s: %w", f.name, v.Error, cluster.ErrRefused)
	case v.Version < f.version:
		return false, nil
	}
	f.progress(v)
	if f.op == "" {
		return f.runs(v)
	}
	switch {
	case v.Answer != nil && v.Answer.ID == f.order:
		if !v.Answer.Done {
			return true, fmt.Errorf("%s: %w", v.Answer.Text, cluster.ErrRefused)
		}
		f.say("%s", v.Answer.Text)
		if len(v.Answer.Copies) > 0 && !f.quiet {
			f.t.copyTable(v.Answer.Copies)
		}
		return true, nil
	case v.Request != nil && v.Request.ID == f.order:
		return false, nil
	case v.Request != nil:
		return true, fmt.Errorf("another order has taken its place before it was carried out (%s): %w", v.Request.ReplacedBy(), cluster.ErrRefused)
	}
	return true, fmt.Errorf("another order has come after it (`pvc history --kind %s`): %w", cluster.EventWorkloadOrder, cluster.ErrRefused)
}

// progress prints each step once.
func (f *workloadFollower) progress(v api.WorkloadView) {
	active, others := chainWords(v.Chain)
	text := string(v.State)
	if active != "" {
		text += " on " + active
	}
	if others != "" {
		text += ", others on " + others
	}
	if v.Reason != "" {
		text += ": " + v.Reason
	}
	f.line("%s", text)
	if m := v.Next; m != nil {
		active, others := chainWords(m.Chain)
		f.line("%s %sto %s %s", m.Cause, liveWord(m.Live), active, others)
	}
}

func (f *workloadFollower) runs(v api.WorkloadView) (over bool, end error) {
	switch v.State {
	case cluster.WorkloadRunning:
		f.say("workload %s runs", f.name)
		return true, nil
	case cluster.WorkloadFailed, cluster.WorkloadFaulty, cluster.WorkloadUnsafe, cluster.WorkloadStopped:
		return true, fmt.Errorf("workload %s was added and is %s: %s: %w", f.name, v.State, v.Reason, cluster.ErrRefused)
	}
	return false, nil
}
