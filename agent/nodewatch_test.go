package agent

import (
	"context"
	"errors"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"pvc.internal/agent/detector"
	"pvc.internal/cluster"
)

// dueFencer has a fence that an earlier primary has left, and resumes it as told.
type dueFencer struct {
	idleFencer
	resumed int
	err     error
}

func (*dueFencer) Due(r cluster.Versioned[cluster.FenceRecord], _ cluster.Instant) bool {
	return r.Present
}

func (f *dueFencer) Resume(context.Context, cluster.Token, cluster.NodeID) (cluster.FenceRecord, *cluster.Refusal, error) {
	f.resumed++
	return cluster.FenceRecord{}, nil, f.err
}

// leftFence is primary a's watch with a fence of b that was left before any order.
func leftFence(t *testing.T) (*nodeWatch, *dueFencer, *observer.ObservedLogs, func()) {
	core, logged := observer.New(zapcore.InfoLevel)
	f := &dueFencer{}
	w := newNodeWatch(Config{Node: "a", Timing: cluster.ProfileLAN()}, Deps{Clock: &fixedClock{1}, Log: zap.New(core), Fencer: f}, nil, nil)
	w.lead = t.Context()
	w.acts = leading(t, "a")
	record := cluster.Versioned[cluster.FenceRecord]{Present: true, Value: cluster.FenceRecord{ID: "f1", Node: "b", Stage: cluster.FenceClaimed}}
	registered := cluster.Versioned[cluster.NodeRecord]{Present: true}
	nodes := map[cluster.NodeID]cluster.NodeView{"b": {Record: registered, Fence: record}}
	w.seen.Nodes = map[cluster.NodeID]detector.NodeState{"b": {Liveness: cluster.LiveDead}}
	for _, up := range []cluster.NodeID{"a", "c", "d"} {
		nodes[up], w.seen.Nodes[up] = cluster.NodeView{Record: registered}, detector.NodeState{Liveness: cluster.LiveUp}
	}
	status := Status{Snapshot: &cluster.Snapshot{Live: true, Complete: true, Nodes: nodes}}
	for range 1000 { // as long as it takes to trust in the picture
		if w.frame(status, true); w.judged.Calm(w.framed) {
			break
		}
	}
	return w, f, logged, func() {
		w.frame(status, true)
		w.resumeFences(status, 1)
		w.fences.Wait()
	}
}

// A fence that a promise keeps from being carried on is looked at in every frame:
// the promise is told of once, until it does not stand any more.
func TestAPromiseAgainstAResumedFenceIsToldOnce(t *testing.T) {
	w, f, logged, frame := leftFence(t)
	promised := true
	w.mayFence = func(n cluster.NodeID) cluster.Refusal {
		if promised {
			return cluster.Refusal{Code: cluster.RefusePromiseStanding, Node: n, Detail: "promised"}
		}
		return cluster.Refusal{}
	}
	for range 20 {
		frame()
	}
	if n := logged.FilterMessage("not fenced").Len(); n != 1 || w.refusals["b"].Code != cluster.RefusePromiseStanding || f.resumed != 0 {
		t.Fatalf("told %d times, stands as %+v, resumed %d times; want once", n, w.refusals["b"], f.resumed)
	}
	w.fencing.Store(true) // another fence runs for a while
	frame()
	w.fencing.Store(false)
	frame()
	if n := logged.FilterMessage("not fenced").Len(); n != 1 {
		t.Errorf("told %d times after another fence had run", n)
	}
	promised = false
	frame()
	frame()
	if r, still := w.refusals["b"]; still || f.resumed == 0 {
		t.Errorf("the promise is over; %+v stands, resumed %d times", r, f.resumed)
	}
	promised = true
	frame()
	if n := logged.FilterMessage("not fenced").Len(); n != 2 {
		t.Errorf("another promise: told %d times, want twice in all", n)
	}
}

// A fence that fails again and again in one way is logged as that once.
func TestAFenceThatDoesNotEndIsToldOnce(t *testing.T) {
	_, f, logged, frame := leftFence(t)
	tries := func(n int, err error) {
		for f.err = err; n > 0; n-- {
			frame()
		}
	}
	tries(10, errors.New("busy"))
	tries(10, errors.New("gone"))
	tries(1, nil)
	tries(3, errors.New("gone"))
	if n := logged.FilterMessage("fence did not end").Len(); n != 3 || f.resumed != 24 {
		t.Errorf("told %d times of %d tries, want 3 of 24", n, f.resumed)
	}
}
