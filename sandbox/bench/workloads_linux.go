package bench

import (
	"context"
	"fmt"
	"time"

	"pvc.internal/cluster"
	"pvc.internal/sandbox"
)

// How many movable workloads stand on the node that is drained, or lost.
const (
	drainedWorkloads = 20
	lostWorkloads    = 50
)

// startLimit bounds the start of the workloads that are measured.
const startLimit = 3 * time.Minute

// measureWorkloads drains a node of twenty workloads and gives them back, and takes
// the power of one with fifty: how long after the proof that it is dead the first
// runs elsewhere, and all. What runs is seen by the workloads' own processes.
func measureWorkloads(ctx context.Context, b *bench) error {
	l, err := b.cluster(ctx, sandbox.Options{})
	if err != nil {
		return err
	}
	if err := l.run(ctx, copies(l.Sandbox, 0, drainedWorkloads)); err != nil {
		return err
	}
	from := now()
	_, failed := b.repeat(ctx, l, "drain", phases(min(5, b.runs(2))))
	b.add(figure(fmt.Sprintf("drain of %d movable workloads: all run elsewhere", drainedWorkloads), "ms", drains(l.History().Since(from), false), none), "")
	b.add(figure(fmt.Sprintf("ready again: all %d are back", drainedWorkloads), "ms", drains(l.History().Since(from), true), none), "")
	if failed != nil {
		return failed
	}
	if err := l.run(ctx, copies(l.Sandbox, drainedWorkloads, lostWorkloads)); err != nil {
		return err
	}
	var firsts, alls []float64
	for _, p := range phases(min(5, b.runs(5))) {
		from := now()
		results, err := b.repeat(ctx, l, "workload-power-loss", []float64{p})
		for _, r := range results {
			first, all, ok := elsewhere(l.History().Since(from), r.Node)
			if !ok && err == nil {
				err = fmt.Errorf("the processes of all %d workloads of %s were not seen to start elsewhere after its proof", lostWorkloads, r.Node)
			}
			if ok {
				firsts, alls = append(firsts, first), append(alls, all)
			}
		}
		if failed = err; err != nil {
			break
		}
	}
	b.add(figure("node lost: first workload runs elsewhere after the proof", "ms", firsts, atMost(3000)), "")
	b.add(figure(fmt.Sprintf("node lost: all %d workloads run elsewhere after the proof", lostWorkloads), "ms", alls, atMost(15000)), "")
	return failed
}

// run starts the workloads; those that do not run in time are an error.
func (l *lab) run(ctx context.Context, list []cluster.Workload) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	return l.StartWorkloads(ctx, list...)
}

// copies are movable workloads whose processes the sandbox sees. The faults look for
// the one named "job".
func copies(s *sandbox.Sandbox, from, to int) []cluster.Workload {
	var list []cluster.Workload
	for i := from; i < to; i++ {
		name := fmt.Sprintf("job-%d", i)
		if i == 0 {
			name = "job"
		}
		list = append(list, s.CopyWorkload(name))
	}
	return list
}

// elsewhere is how long after the proof that the node is dead the first of its
// workloads was seen to run on another node, and the last, in ms.
func elsewhere(entries []sandbox.Entry, lost cluster.NodeID) (first, all float64, ok bool) {
	var proof cluster.Instant
	there, back := map[string]bool{}, map[string]bool{}
	for _, e := range entries {
		switch {
		case e.Kind == sandbox.KindCopy && e.On && e.Node == lost && proof.IsZero():
			there[e.Name] = true
		case e.Kind == sandbox.KindFence && e.Node == lost && proof.IsZero() && e.Text != "":
			if proof = e.At; !e.Written.IsZero() {
				proof = e.Written
			}
		case e.Kind == sandbox.KindCopy && e.On && e.Node != lost && !proof.IsZero() && !back[e.Name]:
			if all = millis(e.At.Sub(proof)); len(back) == 0 {
				first = all
			}
			back[e.Name] = true
		}
	}
	return first, all, !proof.IsZero() && len(back) >= lostWorkloads && len(back) >= len(there)
}

// drains are how long after each order to flush a node, or to make it ready again,
// the last copy was seen to start, in ms.
func drains(entries []sandbox.Entry, ready bool) []float64 {
	word := string(cluster.DomainFlush)
	if ready {
		word = string(cluster.DomainUnflush)
	}
	var out []float64
	var began, last cluster.Instant
	end := func() {
		if !began.IsZero() && last > began {
			out = append(out, millis(last.Sub(began)))
		}
		began, last = cluster.Never, cluster.Never
	}
	for _, e := range entries {
		switch {
		case e.Kind == sandbox.KindIntent && e.Name == "domain_state":
			end()
			if e.Text == word {
				began = e.At
			}
		case e.Kind == sandbox.KindFault && e.Text == "end":
			end()
		case e.Kind == sandbox.KindCopy && e.On:
			last = e.At
		}
	}
	end()
	return out
}
