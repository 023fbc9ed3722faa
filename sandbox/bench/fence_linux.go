package bench

import (
	"context"

	"pvc.internal/cluster"
	"pvc.internal/sandbox"
)

// measureFence takes the power of the primary and looks how long it is until
// its fence is claimed, it is verified to be off, and its roles and records are
// clean; then that of all nodes at once, and how long the cluster that comes
// back is without a primary.
func measureFence(ctx context.Context, b *bench) error {
	l, err := b.cluster(ctx, sandbox.Options{})
	if err != nil {
		return err
	}
	for _, c := range []struct {
		fault      string
		off, clean limit
	}{
		{"power-loss-follower", atMost(8000), atMost(9000)},
		{"power-loss-leader", atMost(10000), atMost(11000)},
	} {
		results, claims, err := b.fenced(ctx, l, c.fault)
		if len(results) > 0 {
			text := results[0].Text
			b.add(figure("verified power-off, "+text, "ms", powerOffs(results), c.off), "")
			b.add(figure("roles and records clean, "+text, "ms", cleaned(results), c.clean), "")
			b.add(figure("fence claimed after *dead* and its successor's taking the role, "+text, "ms", claims, atMost(500)),
				"*dead* as the successor publishes it, read each 25 ms")
		}
		if err != nil {
			return err
		}
	}
	return b.measureColdStart(ctx, l)
}

// fenced runs a fault that ends in a fence, and tells how soon it was claimed.
func (b *bench) fenced(ctx context.Context, l *lab, fault string) (results []sandbox.Result, claims []float64, err error) {
	for _, p := range phases(b.runs(3)) {
		from := now()
		one, err := b.repeat(ctx, l, fault, []float64{p})
		for _, r := range one {
			if ms, ok := claim(l.History().Since(from), r.Node); ok {
				claims = append(claims, ms)
			}
		}
		results = append(results, one...)
		if err != nil {
			return results, claims, err
		}
	}
	return results, claims, nil
}

// measureColdStart takes the power of all nodes and gives it back at once.
func (b *bench) measureColdStart(ctx context.Context, l *lab) error {
	var took, fences []float64
	var failed error
	text := "cold start"
	for _, p := range phases(b.runs(2)) {
		from := now()
		results, err := b.repeat(ctx, l, "cold-start-0", []float64{p})
		for _, r := range results {
			text = r.Text
			if ms, ok := coldStart(l.History().Since(from)); ok {
				took = append(took, ms)
			}
			fences = append(fences, float64(claimed(l.History().Since(from))))
		}
		if failed = err; err != nil {
			break
		}
	}
	b.add(figure("primary after the ensemble's quorum, "+text, "ms", took, atMost(10000)), "")
	b.add(figure("fences claimed, "+text, "", fences, atMost(0)), "")
	return failed
}

// coldStart is how long after the ensemble's quorum a node was first seen to act as
// primary, in ms: it held an address. (Its records may say what they said before
// the power went.) False where one of the two was not seen.
func coldStart(entries []sandbox.Entry) (ms float64, ok bool) {
	quorum := cluster.Never
	for _, e := range entries {
		switch {
		case e.Kind == sandbox.KindStore && e.By == "fault":
			if quorum = cluster.Never; e.On {
				quorum = e.At
			}
		case e.Kind == sandbox.KindHeld && e.On && !quorum.IsZero():
			return millis(e.At.Sub(quorum)), true
		}
	}
	return 0, false
}

// claimed counts the fences that were claimed.
func claimed(entries []sandbox.Entry) (n int) {
	for _, e := range entries {
		if e.Kind == sandbox.KindFence && e.Stage == cluster.FenceClaimed {
			n++
		}
	}
	return n
}

func cleaned(results []sandbox.Result) []float64 {
	var out []float64
	for _, r := range results {
		if r.CleanMS >= 0 {
			out = append(out, r.CleanMS)
		}
	}
	return out
}

// claim is how long after the later of its own *dead* and its taking the role the
// successor of the node that was hit claimed its fence, in ms; 0 where what it
// publishes is younger than the claim. Others may have found the node dead before:
// each counts from what it has seen itself.
func claim(entries []sandbox.Entry, hit cluster.NodeID) (ms float64, ok bool) {
	var successor cluster.NodeID
	var taken, claimed cluster.Instant
	found := map[cluster.NodeID]cluster.Instant{} // dead, by whom
	for _, e := range entries {
		switch {
		case e.Kind == sandbox.KindFault && e.Text == "inject": // what came before made ready for it
			successor, claimed = "", cluster.Never
			clear(found)
		case e.Kind == sandbox.KindLease && e.Node != "" && e.Node != hit && successor == "":
			successor, taken = e.Node, e.At
		case e.Node != hit:
		case e.Kind == sandbox.KindView && e.Text == cluster.LiveDead.String():
			if by := cluster.NodeID(e.By); found[by].IsZero() {
				found[by] = e.At
			}
		case e.Kind == sandbox.KindFence && e.Stage != cluster.FenceDone && successor != "" && claimed.IsZero():
			claimed = e.At
		}
	}
	dead := found[successor]
	return millis(claimed.Sub(min(claimed, max(taken, dead)))), !claimed.IsZero() && !dead.IsZero()
}
