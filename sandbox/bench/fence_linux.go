package bench

import (
	"context"

	"pvc.internal/sandbox"
)

// measureFence takes the power of the primary and looks how long it is until
// its fence is claimed, it is verified to be off, and its roles and records are
// clean.
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
		results, err := b.repeat(ctx, l, c.fault, phases(b.runs(3)))
		if len(results) > 0 {
			text := results[0].Text
			b.add(figure("verified power-off, "+text, "ms", powerOffs(results), c.off), "")
			b.add(figure("roles and records clean, "+text, "ms", cleaned(results), c.clean), "")
			b.add(figure("fence claimed after *dead* and its successor's taking the role, "+text, "ms", claims(results), atMost(500)),
				"*dead* as published, read each 25 ms")
		}
		if err != nil {
			return err
		}
	}
	return nil
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

// claims are the runs' times from the later of *dead* and the successor's
// taking the role to the claim; none where what is published is younger.
func claims(results []sandbox.Result) []float64 {
	var out []float64
	for _, r := range results {
		if r.ClaimedMS >= 0 && r.DeadMS >= 0 {
			out = append(out, max(0, r.ClaimedMS-max(r.DeadMS, r.TakenMS)))
		}
	}
	return out
}
