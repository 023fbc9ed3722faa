package agent

import (
	"context"
	"fmt"

	"go.uber.org/zap"

	"pvc.internal/agent/activity"
	"pvc.internal/cluster"
)

// reprovisionReset carries out an operator's reset of auto-reprovision's count, which
// stands in the settings until then.
type reprovisionReset struct{ w *workloadWatch }

func (t *reprovisionReset) name() string { return "reprovision-reset" }

func (t *reprovisionReset) urgent() bool { return true }

func (t *reprovisionReset) due(snap *cluster.Snapshot, _ cluster.Instant) bool {
	r := snap.Reprovision
	return r.Present && r.Err == nil && r.Value.Reset != "" && r.Value.Reset != r.Value.Done
}

// run writes the count and the answer together. A reply that was lost is found out
// by the record: as long as the reset stands it is carried out again.
func (t *reprovisionReset) run(ctx context.Context) error {
	return t.w.acts.Run(ctx, activity.Spec{Name: t.name(), Quorum: cluster.Majority(), Timeout: workloadRetry}, func(ctx context.Context, a *activity.Activity) error {
		snap := t.w.newest()
		if !t.due(snap, t.w.d.Clock.Now()) {
			return nil
		}
		s := snap.Reprovision.Value
		s.Done, s.Reset = s.Reset, ""
		res := t.w.write(ctx, a.Token(), "reprovision.reset", resetReprovision(t.w.c, snap, s, "an operator's reset"))
		t.w.d.Log.Info("the count of auto-reprovision was reset", zap.Stringer("outcome", res.Outcome), zap.Error(res.Err))
		if res.Outcome != cluster.OutcomeOK {
			t.w.latest(ctx, recordCatchUp, func(now *cluster.Snapshot) bool { return now.Reprovision.Version != snap.Reprovision.Version })
			return fmt.Errorf("reset the count of auto-reprovision (%s): %w", res.Outcome, res.Err)
		}
		t.w.latest(ctx, recordCatchUp, func(now *cluster.Snapshot) bool { return now.Reprovision.Version != snap.Reprovision.Version })
		t.w.again()
		return nil
	})
}

// resetReprovision are the operations that set the count to zero, on the settings as
// the snapshot has them, with what else s says: of an operator's reset, and of a
// rebalance that has finished.
func resetReprovision(c Config, snap *cluster.Snapshot, s cluster.ReprovisionSettings, why string) []cluster.Op {
	was := s.Count
	s.Count, s.Nodes = 0, nil
	return []cluster.Op{
		cluster.Put(cluster.Key{Kind: cluster.KeyReprovision}, snap.Reprovision, s),
		historyOp(cluster.Event{Version: 1, UnixMS: c.WallMS(), Node: c.Node, Kind: eventReprovisionNull,
			Text:   fmt.Sprintf("the count of reprovisioned nodes was set from %d to 0: %s", was, why),
			Fields: map[string]string{"before": fmt.Sprint(was), "why": why, "reset": s.Done}}),
	}
}
