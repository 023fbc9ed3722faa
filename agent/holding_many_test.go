package agent

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
)

// manyGranters are nodes that answer after a while, or never.
type manyGranters struct {
	after time.Duration
	deaf  atomic.Bool
	asked atomic.Int64 // questions under way
	most  atomic.Int64
	turn  atomic.Int64

	mu     sync.Mutex
	served map[cluster.NodeID]time.Time
}

func (g *manyGranters) Ask(ctx context.Context, n cluster.NodeID, _ string, body []byte) ([]byte, error) {
	if now := g.asked.Add(1); now > g.most.Load() {
		g.most.Store(now)
	}
	defer g.asked.Add(-1)
	wait := g.after + time.Duration(g.turn.Add(1)%97)*time.Millisecond // hardly two at one instant
	if g.deaf.Load() {
		wait = time.Hour
	}
	select {
	case <-time.After(wait):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	r, err := cluster.DecodeNodeLeaseRequest(body)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	since, known := g.served[n]
	if !known {
		since = time.Now()
		g.served[n] = since
	}
	g.mu.Unlock()
	return cluster.EncodeNodeLeaseAnswer(cluster.NodeLeaseAnswer{N: r.N, Left: cluster.ProfileLAN().NodeLeasePeriod, Chain: "c", Held: time.Since(since), Epoch: r.ID.Epoch})
}

func (*manyGranters) Handle(string, func(context.Context, cluster.NodeID, []byte) ([]byte, error)) {}
func (*manyGranters) Probes() map[cluster.NodeID]cluster.ProbeAnswer                               { return nil }
func (*manyGranters) Watch(map[cluster.NodeID]string)                                              {}

// manyHeld keeps what is held.
type manyHeld struct {
	mu   sync.Mutex
	last LeaseHoldings
	lost int // by how many the held have become fewer, in all
}

func (h *manyHeld) Update(is LeaseHoldings) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lost += max(0, len(h.last.Held)-len(is.Held))
	h.last = is
}

func (*manyHeld) Settled(context.Context) error { return nil }

func (h *manyHeld) count() (held, lost int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.last.Held), h.lost
}

// manyClock is the bubble's.
type manyClock struct{ base time.Time }

func (c manyClock) Now() cluster.Instant { return cluster.Instant(time.Hour + time.Since(c.base)) }

// holdMany runs a holder of so many nodes' leases in a bubble.
func holdMany(t *testing.T, nodes int, after time.Duration, fn func(t *testing.T, g *manyGranters, is *manyHeld, s *manyWrites)) {
	synctest.Test(t, func(t *testing.T) {
		clock := manyClock{time.Now()}
		snap := &cluster.Snapshot{Complete: true, Nodes: map[cluster.NodeID]cluster.NodeView{}}
		for i := range nodes {
			view := cluster.NodeView{}
			view.Record.Present, view.Mode.Value = true, cluster.Coordinator
			snap.Nodes[cluster.NodeID(fmt.Sprintf("n%04d", i))] = view
		}
		g, is := &manyGranters{after: after, served: map[cluster.NodeID]time.Time{}}, &manyHeld{}
		s := &manyWrites{}
		c := Config{Node: "hv1", Timing: cluster.ProfileLAN(), WallMS: func() int64 { return time.Now().UnixMilli() }, NodeLeases: true}
		d := Deps{Clock: clock, Log: zap.NewNop(), Store: s, Peers: g, LeaseHolder: is}
		keep, err := NewKeepalive(KeepaliveConfig{Node: "hv1", Interval: c.Timing.KeepaliveInterval, Clock: clock,
			Publish: func(context.Context, []cluster.Op) cluster.TxnResult { return cluster.TxnResult{} }})
		if err != nil {
			t.Fatal(err)
		}
		h := newHolding(c, d, &granting{}, func() *cluster.Snapshot { return snap }, keep)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); h.run(ctx) }()
		h.term.Store(&leaderTerm{n: 1, epoch: 1, leads: true})
		poke(h.pokes)
		defer func() { cancel(); <-done }()
		fn(t, g, is, s)
	})
}

// manyWrites takes whatever is written and counts it.
type manyWrites struct{ n atomic.Int64 }

func (s *manyWrites) Commit(context.Context, cluster.Txn) cluster.TxnResult {
	s.n.Add(1)
	return cluster.TxnResult{Outcome: cluster.OutcomeOK}
}
func (*manyWrites) Refresh(context.Context) (*cluster.Snapshot, error) {
	return nil, cluster.ErrDeadline
}
func (*manyWrites) Subscribe() (<-chan *cluster.Snapshot, func()) { return nil, func() {} }

// A leader of many nodes that is cut off from all of them says so when the
// leases are over, though its questions hang.
func TestTheLossOfManyLeasesIsToldInTime(t *testing.T) {
	holdMany(t, 300, 10*time.Millisecond, func(t *testing.T, g *manyGranters, is *manyHeld, s *manyWrites) {
		time.Sleep(5 * time.Second)
		if held, lost := is.count(); held != 300 || lost != 0 {
			t.Fatalf("%d leases are held and %d were lost, want 300 and none", held, lost)
		}
		g.deaf.Store(true)
		timing := cluster.ProfileLAN()
		time.Sleep(timing.NodeLeasePeriod - timing.NodeLeaseGrace + 300*time.Millisecond)
		if held, _ := is.count(); held != 0 {
			t.Errorf("%d leases are believed in after their time", held)
		}
	})
}

// Where the first questions take longer than a lease lasts, those that are held
// are renewed all the same.
func TestFirstQuestionsDoNotCostTheLeasesThatAreHeld(t *testing.T) {
	holdMany(t, 1000, 300*time.Millisecond, func(t *testing.T, g *manyGranters, is *manyHeld, s *manyWrites) {
		time.Sleep(time.Minute)
		held, lost := is.count()
		if lost > 0 {
			t.Errorf("%d leases were lost while others were asked for; %d are held", lost, held)
		}
		if most := g.most.Load(); most > mostAsking {
			t.Errorf("%d questions were under way, want %d at most", most, mostAsking)
		}
		if n := s.n.Load(); n < 3 || n > 62 {
			t.Errorf("the record was written %d times in a minute, want once a keepalive at most", n)
		}
	})
}
