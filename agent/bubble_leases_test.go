package agent_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pvc.internal/agent"
	"pvc.internal/agent/lease"
	"pvc.internal/cluster"
)

// leasing is a cluster whose nodes talk and use node leases, and what its agents
// were told: it reports when two leaders believe in one node's lease, or a node
// works for two.
type leasing struct {
	b *bubble

	mu     sync.Mutex
	files  map[cluster.NodeID]*leaseFile // by host, over restarts
	held   map[cluster.NodeID]agent.LeaseHoldings
	served map[cluster.NodeID]served
	starts []servedEvent
	hang   map[string]bool // "FROM TO": questions that ignore their context
	broken map[string]bool // questions that panic
	stuck  map[cluster.NodeID]chan struct{}
	wrong  []string
}

type served struct {
	id    cluster.NodeLeaseID
	since cluster.Instant
}

type servedEvent struct {
	node cluster.NodeID
	served
}

// leaseFile is a host's lease file in memory; a daemon that was killed writes no more.
type leaseFile struct {
	mu     sync.Mutex
	found  lease.Found
	writes int
	owner  int // the start that may write; counted up by each and by a kill
}

type leaseFileOf struct {
	*leaseFile
	start int
}

func (f leaseFileOf) Read() lease.Found {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.found
}

func (f leaseFileOf) change(to lease.Found) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.start == f.owner {
		f.found = to
		f.writes++
	}
	return nil
}

func (f leaseFileOf) Write(r lease.Record) error {
	return f.change(lease.Found{Kind: lease.FoundRecord, Record: r})
}
func (f leaseFileOf) Remove() error { return f.change(lease.Found{}) }

// leaseEnd is one start's part that hangs on leases.
type leaseEnd struct {
	l     *leasing
	node  cluster.NodeID
	start int
}

func (e leaseEnd) alive() bool {
	f := e.l.files[e.node]
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.owner == e.start
}

// Update notes what is believed, and who else believes the same.
func (e leaseEnd) Update(h agent.LeaseHoldings) {
	l := e.l
	l.mu.Lock()
	defer l.mu.Unlock()
	if !e.alive() {
		return
	}
	now := l.b.clock.Now()
	l.held[e.node] = h
	for other, theirs := range l.held {
		for _, n := range h.Held {
			if other != e.node && now.Before(theirs.Until) && slices.Contains(theirs.Held, n) {
				l.wrong = append(l.wrong, fmt.Sprintf("%s: %s and %s both believe in the lease of %s", time.Now().Format("04:05.000"), e.node, other, n))
			}
		}
	}
}

func (e leaseEnd) Settled(ctx context.Context) error {
	e.l.mu.Lock()
	stuck := e.l.stuck[e.node]
	e.l.mu.Unlock()
	if stuck == nil {
		return nil
	}
	select {
	case <-stuck:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (e leaseEnd) Serve(id cluster.NodeLeaseID) func(context.Context) error {
	settled := func(context.Context) error { return nil }
	l := e.l
	l.mu.Lock()
	defer l.mu.Unlock()
	if !e.alive() {
		return settled
	}
	if was := l.served[e.node].id; !was.IsZero() && was != id {
		l.wrong = append(l.wrong, fmt.Sprintf("%s: %s serves %s while work of %s may live", time.Now().Format("04:05.000"), e.node, id, was))
	}
	now := served{id, l.b.clock.Now()}
	l.served[e.node] = now
	l.starts = append(l.starts, servedEvent{e.node, now})
	return settled
}

func (e leaseEnd) Revoke(ctx context.Context, id cluster.NodeLeaseID) error {
	if err := e.Settled(ctx); err != nil {
		return err
	}
	e.l.mu.Lock()
	defer e.l.mu.Unlock()
	if e.alive() {
		delete(e.l.served, e.node)
	}
	return nil
}

// leasingPeers spoils questions.
type leasingPeers struct {
	agent.Peers
	l    *leasing
	self cluster.NodeID
}

func (p leasingPeers) Ask(ctx context.Context, n cluster.NodeID, kind string, body []byte) ([]byte, error) {
	if kind != cluster.NodeLeaseQuestion {
		return p.Peers.Ask(ctx, n, kind, body)
	}
	way := string(p.self) + " " + string(n)
	p.l.mu.Lock()
	hang, broken := p.l.hang[way], p.l.broken[way]
	p.l.mu.Unlock()
	switch {
	case broken:
		panic("a question to " + string(n))
	case hang:
		time.Sleep(7 * time.Second) // whatever its context says
		return nil, errors.New("hung")
	}
	return p.Peers.Ask(ctx, n, kind, body)
}

func newLeasing(names ...cluster.NodeID) (*leasing, bubbleOptions) {
	l := &leasing{
		files: map[cluster.NodeID]*leaseFile{}, held: map[cluster.NodeID]agent.LeaseHoldings{}, served: map[cluster.NodeID]served{},
		hang: map[string]bool{}, broken: map[string]bool{}, stuck: map[cluster.NodeID]chan struct{}{},
	}
	o := nodesCalled(names...)
	o.talk = true
	o.tune = func(c *agent.Config, d *agent.Deps) {
		l.mu.Lock()
		defer l.mu.Unlock()
		f := l.files[c.Node]
		if f == nil {
			f = &leaseFile{}
			l.files[c.Node] = f
		}
		f.owner++
		end := leaseEnd{l, c.Node, f.owner}
		delete(l.served, c.Node) // work of an earlier start has died with it
		c.NodeLeases = true
		d.LeaseFile, d.LeaseHolder, d.LeaseFollower, d.Peers = leaseFileOf{f, f.owner}, end, end, leasingPeers{d.Peers, l, c.Node}
	}
	return l, o
}

// inLeasing runs a test in such a cluster, with hv1 as its primary that holds all.
func inLeasing(t *testing.T, names []cluster.NodeID, fn func(b *bubble, l *leasing)) {
	t.Parallel()
	l, o := newLeasing(names...)
	inBubbleOf(t, o, l, func(b *bubble) {
		b.elect("hv1")
		l.holds("hv1", names...)
		fn(b, l)
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, w := range l.wrong {
			t.Error(w)
		}
	})
}

func inBubbleOf(t *testing.T, o bubbleOptions, l *leasing, fn func(b *bubble)) {
	tune := o.tune
	names := o.names
	o.names = nil
	inBubble(t, o, func(b *bubble) {
		l.b = b
		b.opts.tune = tune
		for _, n := range names {
			b.start(n)
		}
		fn(b)
	})
}

// crash is kill -9 of the daemon, or the loss of the whole host.
func (l *leasing) crash(n cluster.NodeID, power bool) {
	l.mu.Lock()
	f := l.files[n]
	f.mu.Lock()
	f.owner++
	f.mu.Unlock()
	l.mu.Unlock()
	if power {
		l.b.powerOff(n)
	} else {
		l.b.kill(n)
	}
}

// now is what the node was told last that it holds, as far as that lasts.
func (l *leasing) now(n cluster.NodeID) agent.LeaseHoldings {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.held[n]
	if !l.b.clock.Now().Before(h.Until) {
		h.Held = nil
	}
	return h
}

func (l *leasing) holding(n cluster.NodeID, want ...cluster.NodeID) bool {
	return slices.Equal(l.now(n).Held, want)
}

func (l *leasing) holds(n cluster.NodeID, want ...cluster.NodeID) {
	l.b.t.Helper()
	l.b.eventually(2*l.b.timing.NodeLeasePeriod, fmt.Sprintf("%s holds the leases of %v", n, want), func() bool { return l.holding(n, want...) })
}

// majority waits until the node holds one, and returns when that began.
func (l *leasing) majority(n cluster.NodeID, limit time.Duration) cluster.Instant {
	l.b.t.Helper()
	l.b.eventually(limit, string(n)+" holds a majority", func() bool { return l.quorum(n) })
	return l.b.clock.Now()
}

func (l *leasing) quorum(n cluster.NodeID) bool {
	inUse, held, why := l.b.nodes[n].agent.QuorumHeld()
	if !inUse || held == (why != "") {
		l.b.t.Fatalf("%s: in use %v, held %v, why %q", n, inUse, held, why)
	}
	return held
}

func (l *leasing) record() cluster.NodeLeases {
	var r cluster.NodeLeases
	_ = json.Unmarshal([]byte(l.b.read("/agent/leases")), &r)
	return r
}

// first is when a node began to serve a lease of that holder, after an instant.
func (l *leasing) first(n, holder cluster.NodeID, after cluster.Instant) cluster.Instant {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.starts {
		if e.node == n && e.id.Holder == holder && e.since > after {
			return e.since
		}
	}
	return cluster.Never
}

// writes is how often lease files were written.
func (l *leasing) writes() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	sum := 0
	for _, f := range l.files {
		f.mu.Lock()
		sum += f.writes
		f.mu.Unlock()
	}
	return sum
}

var leaseTrio = []cluster.NodeID{"hv1", "hv2", "hv3"}

func TestThePrimaryHoldsTheLeasesOfAllNodesAndSaysSo(t *testing.T) {
	inLeasing(t, leaseTrio, func(b *bubble, l *leasing) {
		k := b.timing.KeepaliveInterval
		b.eventually(3*k, "the record shows it", func() bool {
			r := l.record()
			return r.Lease.Holder == "hv1" && r.Majority && len(r.Set) == 3 && len(r.Nodes) == 3 && r.Nodes["hv1"].State == "held" && r.Nodes["hv2"].State == "held" && r.Nodes["hv3"].State == "held"
		})
		b.talk.net.Delay("hv1", "hv2", latency)
		b.eventually(tableTime, "the figures follow", func() bool { r := l.record(); return r.Nodes["hv2"].RTT.Median > 0 && r.Nodes["hv2"].RTT.P99 > 0 })
		if left := l.record().Nodes["hv3"].LeftMS; left < 1000 || left > 4000 {
			t.Errorf("%d ms are left of a lease that was just renewed, want up to period − grace", left)
		}
		if l.quorum("hv2") {
			t.Error("who is not primary holds a majority")
		}
		id := b.nodes["hv1"].agent.NodeLease()
		if r := b.nodes["hv3"].agent.CheckNodeLease(id); r.Code != "" || id.Holder != "hv1" {
			t.Errorf("hv3 refuses an order under %s: %s", id, r.Detail)
		}
		other := id
		other.Start = "another"
		if r := b.nodes["hv3"].agent.CheckNodeLease(other); r.Code != cluster.RefuseLeaseAcquired {
			t.Errorf("hv3 takes an order under %s: %+v", other, r)
		}
		before := l.writes()
		b.always(time.Minute, "it goes on holding all", func() bool { return l.holding("hv1", leaseTrio...) })
		if after := l.writes(); after != before {
			t.Errorf("the nodes wrote their leases down %d times in a minute of renewals", after-before)
		}
	})
}

const tableTime = 12 * time.Second

// The successor of a primary that lost its power waits until nobody can believe
// in the old leases any more, and not much longer.
func TestTheSuccessorOfALostPrimaryWaitsForItsLeases(t *testing.T) {
	inLeasing(t, leaseTrio, func(b *bubble, l *leasing) {
		old, at := l.now("hv1"), b.clock.Now()
		l.crash("hv1", true)
		b.eventually(6*time.Second, "another is primary", func() bool { return b.seen.holder() != "" && b.seen.holder() != "hv1" })
		next := b.seen.holder()
		got := l.majority(next, b.timing.NodeLeasePeriod)
		if got.Before(old.Until) {
			t.Errorf("%s held a majority %s before the old leader's time was over", next, old.Until.Sub(got))
		}
		if took := got.Sub(at); took > b.timing.NodeLeasePeriod+b.timing.KeepaliveInterval/2 {
			t.Errorf("a majority was held after %s, want the period %s and a bit", took, b.timing.NodeLeasePeriod)
		}
		b.start("hv1")
		l.holds(next, leaseTrio...)
	})
}

// A leader that cannot reach a node has lost its lease before the node lets
// anybody else in; without a majority it says so.
func TestALeaderThatIsCutOffLosesTheLeases(t *testing.T) {
	inLeasing(t, leaseTrio, func(b *bubble, l *leasing) {
		b.talk.net.Part("hv1", "hv2")
		b.eventually(b.timing.NodeLeasePeriod, "the lease of hv2 is lost", func() bool { return l.holding("hv1", "hv1", "hv3") })
		if !l.quorum("hv1") {
			t.Error("two of three are no majority")
		}
		b.eventually(2*time.Second, "the record says why", func() bool {
			seen := l.record().Nodes["hv2"]
			return seen.State == "refused" && seen.Code == cluster.RefuseNoAnswer && seen.Detail != ""
		})
		b.talk.net.Part("hv1", "hv3")
		b.eventually(b.timing.NodeLeasePeriod, "no majority is held", func() bool { return !l.quorum("hv1") })
		if _, _, why := b.nodes["hv1"].agent.QuorumHeld(); !strings.Contains(why, "hv2 hv3") {
			t.Errorf("the reason %q does not name the missing", why)
		}
		b.talk.net.Heal()
		l.majority("hv1", 3*time.Second)
		l.holds("hv1", leaseTrio...)
	})
}

// A node whose daemon was killed honours the whole period, one that was stopped
// what was left; its leader goes on with it in both cases.
func TestARestartedNodeHonoursItsLease(t *testing.T) {
	for _, c := range []struct {
		name  string
		clean bool
	}{{"killed", false}, {"stopped", true}} {
		t.Run(c.name, func(t *testing.T) {
			inLeasing(t, leaseTrio, func(b *bubble, l *leasing) {
				end := func() {
					if c.clean {
						b.nodes["hv3"].stop()
					} else {
						l.crash("hv3", false)
					}
					<-b.nodes["hv3"].done
				}
				end()
				began := b.clock.Now()
				b.start("hv3")
				b.eventually(2*time.Second, "the restarted node serves its leader", func() bool { return !l.first("hv3", "hv1", began-1).IsZero() })
				l.holds("hv1", leaseTrio...)
				// Now with a leader that is gone.
				ended := b.clock.Now()
				l.crash("hv1", true)
				const unrenewed = 1500 * time.Millisecond
				time.Sleep(unrenewed)
				end()
				b.eventually(6*time.Second, "hv2 is primary", func() bool { return b.primary() == "hv2" })
				restart := b.clock.Now()
				b.start("hv3")
				b.eventually(2*b.timing.NodeLeasePeriod, "hv3 serves hv2", func() bool { return !l.first("hv3", "hv2", ended).IsZero() })
				served, period := l.first("hv3", "hv2", ended), b.timing.NodeLeasePeriod
				if !c.clean && served.Before(restart.Add(period)) {
					t.Errorf("hv3 serves another %s after it began again, and may have promised %s", served.Sub(restart), period)
				}
				if c.clean && served.After(restart.Add(period-unrenewed)) {
					t.Errorf("hv3 serves another %s after it began again, though less than the period was left", served.Sub(restart))
				}
				if served.Before(ended.Add(period - b.timing.NodeLeaseRenew*3/2)) {
					t.Errorf("hv3 serves another %s after its leader was lost", served.Sub(ended))
				}
			})
		})
	}
}

// A planned switch gives the leases back: the next leader has them within one
// renewal of its beginning.
func TestAPlannedSwitchHandsTheLeasesOver(t *testing.T) {
	inLeasing(t, leaseTrio, func(b *bubble, l *leasing) {
		for _, to := range []cluster.NodeID{"hv2", "hv3", "hv1"} {
			b.wish(string(to))
			b.eventually(4*time.Second, string(to)+" leads", func() bool { return !b.nodes[to].agent.NodeLease().IsZero() })
			b.eventually(b.timing.NodeLeaseRenew, string(to)+" holds all", func() bool { return l.holding(to, leaseTrio...) })
			b.settles(4 * time.Second)
		}
	})
}

// Work that outlives the role keeps its leases: they are not given back before
// it is dead.
func TestLeasesAreNotGivenBackWhileWorkLives(t *testing.T) {
	inLeasing(t, leaseTrio, func(b *bubble, l *leasing) {
		l.mu.Lock()
		l.stuck["hv1"] = make(chan struct{})
		old, began := l.held["hv1"].Until, b.clock.Now()
		l.mu.Unlock()
		b.wish("hv2")
		b.eventually(4*time.Second, "hv2 leads", func() bool { return !b.nodes["hv2"].agent.NodeLease().IsZero() })
		l.majority("hv2", b.timing.NodeLeasePeriod)
		if served := l.first("hv3", "hv2", began); served.Before(old) {
			t.Errorf("hv3 serves hv2 %s before the time of hv1's work was over", old.Sub(served))
		}
		if !l.holding("hv2", "hv2", "hv3") {
			t.Errorf("hv2 holds %v while hv1's own work lives on hv1", l.now("hv2").Held)
		}
		l.mu.Lock()
		close(l.stuck["hv1"])
		l.stuck["hv1"] = nil
		l.mu.Unlock()
		l.holds("hv2", leaseTrio...)
	})
}

// Who is no member any more is asked no more, and counts for nothing.
func TestTheLatestMembershipWins(t *testing.T) {
	inLeasing(t, leaseTrio, func(b *bubble, l *leasing) {
		l.crash("hv3", true)
		b.store.Delete("/agent/nodes/hv3")
		b.eventually(3*b.timing.KeepaliveInterval, "hv3 is out", func() bool { return l.holding("hv1", "hv1", "hv2") })
		b.eventually(3*b.timing.KeepaliveInterval, "the record, too", func() bool { _, there := l.record().Nodes["hv3"]; return !there })
		b.start("hv3")
		l.holds("hv1", leaseTrio...)
	})
}

// A question that hangs in its send, or fails in this program, costs that node's
// lease and nothing else.
func TestAQuestionThatHangsHoldsUpNothing(t *testing.T) {
	inLeasing(t, leaseTrio, func(b *bubble, l *leasing) {
		for _, fault := range []map[string]bool{l.hang, l.broken} {
			l.mu.Lock()
			fault["hv1 hv2"] = true
			l.mu.Unlock()
			b.eventually(b.timing.NodeLeasePeriod, "the lease of hv2 is lost", func() bool { return l.holding("hv1", "hv1", "hv3") })
			b.always(time.Minute, "the others are held", func() bool { return l.holding("hv1", "hv1", "hv3") })
			l.mu.Lock()
			clear(fault)
			l.mu.Unlock()
			b.eventually(4*b.timing.NodeLeasePeriod, "all are held", func() bool { return l.holding("hv1", leaseTrio...) })
		}
	})
}
