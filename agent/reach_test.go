package agent

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"pvc.internal/agent/activity"
	"pvc.internal/agent/detector"
	"pvc.internal/agent/failover"
	"pvc.internal/cluster"
)

type fixedClock struct{ at cluster.Instant }

func (c *fixedClock) Now() cluster.Instant { return c.at }

// toldPeers answers probes as it is told, and questions with an error.
type toldPeers struct {
	probes map[cluster.NodeID]cluster.ProbeAnswer
	answer func(context.Context, cluster.NodeID, []byte) ([]byte, error)
}

func (*toldPeers) Ask(context.Context, cluster.NodeID, string, []byte) ([]byte, error) {
	return nil, errors.New("no answer")
}

func (p *toldPeers) Handle(kind string, answer func(context.Context, cluster.NodeID, []byte) ([]byte, error)) {
	if kind == questionReach {
		p.answer = answer
	}
}
func (p *toldPeers) Probes() map[cluster.NodeID]cluster.ProbeAnswer { return p.probes }
func (*toldPeers) Watch(map[cluster.NodeID]string)                  {}

func toldReach(p *toldPeers, clock cluster.Clock) *reach {
	return newReach(Config{Node: "a", Mode: cluster.Coordinator, Timing: cluster.ProfileLAN()}, Deps{Peers: p, Clock: clock, Log: zap.NewNop()}, new(sync.WaitGroup))
}

// What a node says of others is its own: whose keepalives it sees now, and what
// answered its probes. Of whom it knows nothing it says nothing.
func TestANodeSaysWhatItReaches(t *testing.T) {
	clock := &fixedClock{cluster.Instant(time.Hour)}
	p := &toldPeers{probes: map[cluster.NodeID]cluster.ProbeAnswer{"b": cluster.ProbeAnswered, "c": cluster.ProbeSilent, "d": cluster.ProbeUnknown}}
	r := toldReach(p, clock)
	seen := detector.State{Nodes: map[cluster.NodeID]detector.NodeState{"b": {Liveness: cluster.LiveIsolated}, "d": {Liveness: cluster.LiveUp}, "e": {Liveness: cluster.LiveLate}}}
	r.judged.Store(&judgement{seen, clock.at})
	ask := func() string {
		raw, err := p.answer(t.Context(), "b", []byte(`{"nodes":["b","c","d","e","f"]}`))
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	const probed = `"b":{"answer":1,"age_ms":1000},"c":{"answer":2,"age_ms":1000}`
	if got, want := ask(), `{`+probed+`,"d":{"answer":0,"heard":true,"age_ms":0}}`; got != want {
		t.Errorf("says %s, want %s", got, want)
	}
	blind := seen
	blind.Blind = "not connected"
	r.judged.Store(&judgement{blind, clock.at})
	if got, want := ask(), `{`+probed+`}`; got != want {
		t.Errorf("blind it says %s, want %s", got, want)
	}
	r.judged.Store(&judgement{seen, clock.at.Add(-2 * time.Second)})
	if got, want := ask(), `{`+probed+`}`; got != want {
		t.Errorf("with a judgement of two seconds ago it says %s, want %s", got, want)
	}
	if got, err := p.answer(t.Context(), "b", []byte(`{"nodes":null}`)); err != nil || string(got) != "{}" {
		t.Errorf("asked about nobody: %s, %v", got, err)
	}
	if _, err := p.answer(t.Context(), "b", []byte("[")); !errors.Is(err, cluster.ErrRefused) {
		t.Errorf("a question that cannot be read: %v, want a refusal", err)
	}
}

// An address is remembered while no record can be read, and forgotten when the
// record names none any more.
func TestAddressesOutliveTheStore(t *testing.T) {
	var b addressBook
	with := func(r cluster.Versioned[cluster.NodeRecord]) *cluster.Snapshot {
		return &cluster.Snapshot{Nodes: map[cluster.NodeID]cluster.NodeView{"b": {Record: r}}}
	}
	record := cluster.Versioned[cluster.NodeRecord]{Present: true, Value: cluster.NodeRecord{Peer: "b:7371"}}
	for _, step := range []struct {
		name string
		snap *cluster.Snapshot
		want string
	}{
		{"before anything was read", &cluster.Snapshot{}, ""},
		{"as published", with(record), "b:7371"},
		{"a new session in which nothing was read yet", &cluster.Snapshot{}, "b:7371"},
		{"a record that cannot be read", with(cluster.Versioned[cluster.NodeRecord]{Present: true, Err: errors.New("rubbish")}), "b:7371"},
		{"a start without the section", with(cluster.Versioned[cluster.NodeRecord]{Present: true}), ""},
	} {
		if got := b.find(step.snap, "b"); got != step.want {
			t.Errorf("%s: %q, want %q", step.name, got, step.want)
		}
	}
}

// idleFencer fences nobody.
type idleFencer struct{ begun chan cluster.NodeID }

func (f idleFencer) Fence(_ context.Context, _ cluster.Token, a cluster.Action) (cluster.FenceRecord, *cluster.Refusal, error) {
	f.begun <- a.Node
	return cluster.FenceRecord{}, nil, nil
}

func (idleFencer) Resume(context.Context, cluster.Token, cluster.NodeID) (cluster.FenceRecord, *cluster.Refusal, error) {
	return cluster.FenceRecord{}, nil, nil
}

func (idleFencer) Due(cluster.Versioned[cluster.FenceRecord], cluster.Instant) bool { return false }

// A node that was promised that no fence of it is claimed is passed over for as
// long as that stands; the next one is fenced meanwhile. Whoever gives promises
// sees the claim from before the question on.
func TestAPromiseKeepsAFenceFromBeingClaimed(t *testing.T) {
	clock := &fixedClock{cluster.Instant(time.Hour)}
	f := idleFencer{begun: make(chan cluster.NodeID, 1)}
	w := newNodeWatch(Config{Node: "a", Timing: cluster.ProfileLAN()}, Deps{Clock: clock, Log: zap.NewNop(), Fencer: f}, nil, nil)
	w.lead = t.Context()
	promised := map[cluster.NodeID]bool{"b": true}
	w.acts = leading(t, "a")
	w.mayFence = func(n cluster.NodeID) cluster.Refusal {
		if c := w.claiming(); len(c) != 1 || c[0] != n {
			t.Errorf("asked whether %s may be fenced, while %v are being claimed", n, c)
		}
		if promised[n] {
			return cluster.Refusal{Code: cluster.RefusePromiseStanding, Node: n, Detail: "promised"}
		}
		return cluster.Refusal{}
	}
	actions := []cluster.Action{{Node: "b"}, {Node: "c"}}
	act, withheld := w.permitted(actions)
	if act == nil || act.Node != "c" || len(withheld) != 1 || withheld[0].Node != "b" {
		t.Fatalf("permitted %+v, withheld %+v; want c, and b refused", act, withheld)
	}
	if other, _ := w.permitted(actions); other != nil {
		t.Errorf("a second fence, of %s, was let through beside the first", other.Node)
	}
	w.fence("c", true, func(ctx context.Context, token cluster.Token) (cluster.FenceRecord, *cluster.Refusal, error) {
		return f.Fence(ctx, token, *act)
	})
	w.fences.Wait()
	if n := <-f.begun; n != "c" || len(w.claiming()) != 0 {
		t.Errorf("fenced %s, and %v are still being claimed", n, w.claiming())
	}
	clear(promised)
	w.fence("b", true, func(context.Context, cluster.Token) (cluster.FenceRecord, *cluster.Refusal, error) {
		return cluster.FenceRecord{}, nil, errors.New("the reply was lost")
	})
	w.fences.Wait()
	if c := w.claiming(); len(c) != 1 || c[0] != "b" {
		t.Errorf("a claim whose reply was lost may still land, and %v are being claimed", c)
	}
	clock.at = clock.at.Add(w.c.Timing.SessionTimeout)
	if c := w.claiming(); len(c) != 0 {
		t.Errorf("after a session's time it cannot land any more, and %v are being claimed", c)
	}
}

// That a promise stands is told once, and forgotten when it does not stand any more.
func TestAStandingPromiseIsToldOnce(t *testing.T) {
	core, logged := observer.New(zapcore.InfoLevel)
	w := newNodeWatch(Config{Node: "a", Timing: cluster.ProfileLAN()}, Deps{Clock: &fixedClock{1}, Log: zap.New(core)}, nil, nil)
	due := failover.State{Down: map[cluster.NodeID]failover.NodeState{"b": {Stage: failover.StageFailover}}}
	withheld := []cluster.Refusal{{Code: cluster.RefusePromiseStanding, Node: "b", Detail: "for 2s more"}}
	for range 5 {
		w.clearRefusals(due, withheld)
		w.refused(withheld[0])
	}
	if n := logged.FilterMessage("not fenced").Len(); n != 1 || w.refusals["b"].Code != cluster.RefusePromiseStanding {
		t.Errorf("told %d times, stands as %+v; want once", n, w.refusals["b"])
	}
	w.clearRefusals(due, nil)
	if r, still := w.refusals["b"]; still {
		t.Errorf("the promise is over, and %+v stands", r)
	}
}

// leading is the activities of a node that leads and needs nobody's lease.
func leading(t *testing.T, n cluster.NodeID) *activity.Manager {
	m := activity.New(activity.Config{Self: n})
	only := []cluster.NodeID{n}
	m.Update(activity.Holdings{Leader: true, Lease: cluster.NodeLeaseID{Holder: n, Start: "s", Epoch: 1}, Held: only, Set: only})
	t.Cleanup(func() {
		if err := m.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return m
}
