package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"pvc.internal/agent/janitor"
	"pvc.internal/cluster"
)

// passEvents bounds the entries of the history that one Multi of a pass carries.
const passEvents = 32

// commit writes all that a plan writes, and checks all that it applies, in one Multi
// under the role: chains, count, and what is told of both happen together or not at
// all (J11), and nothing is applied to a chain that is not the present one. A plan
// that changes nothing writes nothing. False: nothing of the plan may be done, and
// the pass begins anew from what is there now.
func (r *passRun) commit(ctx context.Context, plan passPlan, state janitor.State, pass string) (done bool, err error) {
	ops, keys := r.ops(plan, pass)
	if len(ops) == 0 {
		r.keep(plan, state)
		return true, nil
	}
	w := r.p.w
	res := w.write(ctx, r.act.Token(), "janitor", ops)
	switch res.Outcome {
	case cluster.OutcomeOK:
		r.p.id = ""
		r.overlay(plan, res.Versions)
		r.keep(plan, state)
		return true, nil
	case cluster.OutcomeConflict:
		w.d.Log.Debug("a pass met another write and begins anew", zap.Int("op", res.FailedOp), zap.Error(res.Err))
		r.catchUp(ctx, keys, res.FailedOp)
		return false, nil
	case cluster.OutcomeUnknown:
		return r.settle(ctx, plan, state, pass)
	}
	return false, fmt.Errorf("write what the pass has found: %w", errors.Join(res.Err, context.Cause(ctx)))
}

// keep takes over what is done: the faults as they stand now, in the log too.
func (r *passRun) keep(plan passPlan, state janitor.State) {
	r.state, r.p.state = state, state
	for _, f := range plan.faults {
		fields := []zap.Field{zap.String("code", f.Fault), zap.String("workload", f.Workload), zap.String("peer", string(f.Node)), zap.String("text", f.Text)}
		if f.Text == "" {
			r.p.w.d.Log.Info("a fault of workloads is over", fields...)
		} else {
			r.p.w.d.Log.Warn("a fault of workloads", fields...)
		}
	}
}

// ops are the operations of a plan, the records first, and the keys of those that a
// conflict may be about, in the same order.
func (r *passRun) ops(plan passPlan, pass string) (ops []cluster.Op, keys []cluster.Key) {
	written := map[string]bool{}
	var settings *cluster.ReprovisionSettings
	var seen int32
	for _, a := range plan.writes {
		if a.Reprovision != nil {
			settings, seen = a.Reprovision, a.ReprovisionSeen
		}
		if a.Write == nil {
			continue
		}
		key := cluster.Key{Kind: cluster.KeyWorkload, Name: a.Workload}
		ops, keys = append(ops, cluster.Set(key, a.Seen, *a.Write)), append(keys, key)
		written[a.Workload] = true
	}
	if settings != nil {
		key := cluster.Key{Kind: cluster.KeyReprovision}
		op := cluster.Set(key, seen, *settings)
		if seen < 0 {
			op = cluster.Create(key, *settings)
		}
		ops, keys = append(ops, op), append(keys, key)
	}
	for _, a := range plan.applies {
		if key := (cluster.Key{Kind: cluster.KeyWorkload, Name: a.Workload}); !written[a.Workload] {
			ops, keys = append(ops, cluster.Check(key, a.Seen)), append(keys, key)
		}
	}
	return append(ops, r.told(plan, settings, pass)...), keys
}

// told are the history's entries of a plan, and the alert of a reprovision.
func (r *passRun) told(plan passPlan, settings *cluster.ReprovisionSettings, pass string) []cluster.Op {
	var events []cluster.Event
	for _, a := range plan.faults {
		if a.History && a.Text != "" && r.snap.Workloads[a.Workload].Value.Reason != a.Text { // the last primary has told that
			events = append(events, r.event(eventWorkloadFault, a.Text, map[string]string{"code": a.Fault, "workload": a.Workload, "node": string(a.Node)}))
		}
	}
	for _, a := range plan.writes {
		if a.Write == nil || slices.Equal(a.Write.Chain, r.snap.Workloads[a.Workload].Value.Chain) {
			continue
		}
		before := r.snap.Workloads[a.Workload].Value.Chain
		text := fmt.Sprintf("workload %s: its chain is now %s, it was %s", a.Workload, chainWords(a.Write.Chain), chainWords(before))
		if a.Write.Reason != "" {
			text += ": " + a.Write.Reason
		}
		events = append(events, r.event(eventWorkloadChain, text, map[string]string{
			"workload": a.Workload, "pass": pass, "chain": chainWords(a.Write.Chain), "before": chainWords(before)}))
	}
	if more := len(events) - passEvents; more > 0 {
		events = append(events[:passEvents:passEvents], r.event(eventWorkloadChain, fmt.Sprintf("%d more workloads have another chain, or a fault, since that pass", more), map[string]string{"pass": pass}))
	}
	var ops []cluster.Op
	for _, e := range events {
		ops = append(ops, historyOp(e))
	}
	if settings != nil && settings.Count > r.snap.Reprovision.Value.Count {
		ops = append(ops, r.alert(plan, *settings)...)
	}
	return ops
}

func (r *passRun) event(kind, text string, fields map[string]string) cluster.Event {
	maps.DeleteFunc(fields, func(_, v string) bool { return v == "" })
	fields["epoch"] = strconv.FormatUint(uint64(r.epoch), 10)
	return cluster.Event{Version: 1, UnixMS: r.p.w.c.WallMS(), Node: r.p.w.c.Node, Kind: kind, Text: text, Fields: fields}
}

// alertDelta is what a reprovision that nobody has acknowledged costs of health.
const alertDelta = 25

// alert is a reprovision as a fault of the cluster, which stands until an operator
// has acknowledged or deleted it, whoever is primary then.
func (r *passRun) alert(plan passPlan, s cluster.ReprovisionSettings) []cluster.Op {
	var said []string
	for _, f := range plan.faults {
		if f.Fault == janitor.FaultReprovisioned && f.History || f.Fault == janitor.FaultReprovisionOff {
			said = append(said, f.Text)
		}
	}
	if len(said) == 0 {
		said = []string{fmt.Sprintf("auto-reprovision has promoted replicas in place of empty copies, on %d nodes by now: rebalance when healthy", s.Count)}
	}
	id := "REPROVISION_" + strings.ToUpper(s.Pass[:min(len(s.Pass), 12)])
	return faultOps(id, r.wall(), alertDelta, strings.Join(said, "; "))
}

// overlay puts this pass's own writes into the snapshot that it goes on with.
func (r *passRun) overlay(plan passPlan, versions []int32) {
	snap := *r.snap
	snap.Workloads = maps.Clone(snap.Workloads)
	at := 0
	version := func(seen int32) int32 {
		at++
		if at <= len(versions) {
			return versions[at-1]
		}
		return seen + 1
	}
	for _, a := range plan.writes {
		if a.Write != nil {
			v := snap.Workloads[a.Workload]
			v.Value, v.Version = *a.Write, version(a.Seen)
			snap.Workloads[a.Workload] = v
		}
	}
	for _, a := range plan.writes {
		if a.Reprovision != nil {
			v := snap.Reprovision
			v.Value, v.Version, v.Present, v.Err = *a.Reprovision, version(a.ReprovisionSeen), true, nil
			snap.Reprovision = v
			break
		}
	}
	r.snap = &snap
}

// catchUp goes on from a snapshot in which the record that a write conflicted with
// is another one than this pass knows.
func (r *passRun) catchUp(ctx context.Context, keys []cluster.Key, failed int) {
	about := keys
	if failed >= 0 && failed < len(keys) {
		about = keys[failed : failed+1]
	}
	r.snap, _ = r.p.w.latest(ctx, recordCatchUp, func(now *cluster.Snapshot) bool {
		return slices.ContainsFunc(about, func(k cluster.Key) bool { return seenVersion(now, k) != seenVersion(r.snap, k) })
	})
}

// seenVersion is the version of a record as observed; −1: there is none.
func seenVersion(snap *cluster.Snapshot, k cluster.Key) int32 {
	if k.Kind == cluster.KeyReprovision {
		if r := snap.Reprovision; r.Present || r.Mzxid != 0 {
			return r.Version
		}
		return -1
	}
	if v, there := snap.Workloads[k.Name]; there {
		return v.Version
	}
	return -1
}

// settle finds out whether a Multi with no known reply happened: the pass's id in a
// record or in the settings says that it did. Where it is not seen it may still
// come: the pass begins anew with the same id and the records as they are then, and
// only one of the two can have their versions (P5).
func (r *passRun) settle(ctx context.Context, plan passPlan, state janitor.State, pass string) (bool, error) {
	r.p.id = pass
	w := r.p.w
	if err := r.sync(ctx); err != nil {
		return false, fmt.Errorf("whether the pass's write happened is not known yet: %w", err)
	}
	happened := func(now *cluster.Snapshot) bool {
		for _, a := range plan.writes {
			if a.Reprovision != nil && a.Reprovision.Pass == pass && now.Reprovision.Value.Pass == pass {
				return true
			}
			if v := now.Workloads[a.Workload]; a.Write != nil && a.Write.Pass == pass && v.Value.Pass == pass && v.Version > a.Seen {
				return true
			}
		}
		return false
	}
	snap, did := w.latest(ctx, recordCatchUp, happened)
	r.snap = snap
	w.d.Log.Info("the reply to a pass's write was lost", zap.Bool("happened", did), zap.String("pass", pass))
	if did {
		r.p.id = ""
		r.keep(plan, state)
	}
	return false, nil
}

// sync waits until the store answers again, for a short time.
func (r *passRun) sync(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, workloadWrite)
	defer cancel()
	for {
		_, err := r.p.w.d.Store.Refresh(ctx)
		if err == nil {
			return nil
		}
		if pause(ctx, 50*time.Millisecond); ctx.Err() != nil {
			return err
		}
	}
}

// answer tells those who have asked for a pass what this one has found.
func (r *passRun) answer(ctx context.Context) {
	var ops []cluster.Op
	for _, name := range slices.Sorted(maps.Keys(r.snap.Workloads)) {
		v := r.snap.Workloads[name]
		if v.Err != nil || !isProbe(v.Value.Request) {
			continue
		}
		text := "every node that may have a copy was asked"
		var copies []cluster.CopyReport
		for _, n := range askedOf(v.Value) {
			report, said := r.reports[name][n]
			if !said {
				report = cluster.CopyReport{Workload: name, ID: v.Value.ID, Node: n, Unknown: true, Error: r.silent[n]}
			}
			copies = append(copies, report)
		}
		for _, refusal := range r.refusals {
			if strings.Contains(refusal.Detail, "workload "+name+" ") {
				text += "; " + refusal.Detail
			}
		}
		done := answered(v.Value, r.epoch, r.p.w.c.WallMS(), true, text)
		done.Answer.Copies = copies
		ops = append(ops, cluster.Set(cluster.Key{Kind: cluster.KeyWorkload, Name: name}, v.Version, done))
	}
	for part := range slices.Chunk(ops, passEvents) {
		if res := r.p.w.write(ctx, r.act.Token(), "workloads.answer", part); res.Outcome != cluster.OutcomeOK {
			r.p.w.d.Log.Debug("whoever asked for a pass is answered by the next one", zap.Stringer("outcome", res.Outcome), zap.Error(res.Err))
		}
	}
}

func chainWords(chain []cluster.NodeID) string {
	if len(chain) == 0 {
		return "none"
	}
	words := make([]string, len(chain))
	for i, n := range chain {
		if words[i] = string(n); n == cluster.NoCopy {
			words[i] = "(empty)"
		}
	}
	return strings.Join(words, ", ")
}
