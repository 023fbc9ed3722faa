package agent_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"pvc.internal/agent"
	"pvc.internal/agent/activity"
	"pvc.internal/cluster"
	"pvc.internal/zkhandler/zktest"
)

// industry is a cluster whose primary works all the time, itself and by orders to
// the other nodes, under node leases. It keeps what broke: two leaders' work on
// one node at once, tokens of two leaders alive at once, an effect under an epoch
// older than one that the node has seen.
type industry struct {
	b   *bubble
	rng *rand.Rand // of what happens to it

	mu     sync.Mutex
	moods  *rand.Rand                    // how long bodies linger
	files  map[cluster.NodeID]*leaseFile // by host, over restarts
	shops  map[cluster.NodeID]*shop      // the newest start of each
	epochs map[cluster.NodeID]cluster.Epoch
	lives  map[*labour]bool
	said   []string
	wrong  []string

	requests  int
	reigns    map[cluster.NodeLeaseID]bool // who has had effects as the leader
	effects   int                          // of leaders
	errands   int                          // effects of work that a leader ordered on another node
	cutShort  int                          // works that were ended
	stalemate int                          // orders that were refused
}

// shop is one start of a node's daemon.
type shop struct {
	all   *industry
	node  cluster.NodeID
	peers agent.Peers
	agent *agent.Agent // nil until it has started
	ctx   context.Context
	end   context.CancelFunc
	owned sync.WaitGroup
	dead  bool          // killed: what its goroutines still do happens nowhere
	token cluster.Token // of its newest activity as the leader
}

// labour is what a node does for a leader, from its beginning to its very end.
type labour struct {
	shop  *shop
	lease cluster.NodeLeaseID
	root  bool // as the leader itself
}

// workOrder is the kind of question by which a leader has another node work.
const workOrder = "work-order"

// lingers is how long a body goes on after its stop at most. It is less than the
// lease's grace, for which alone a leader's own work may outlive its belief.
const lingers = 600 * time.Millisecond

func newIndustry(seed uint64) (*industry, bubbleOptions) {
	in := &industry{
		rng: rand.New(rand.NewPCG(seed, 0xac7)), moods: rand.New(rand.NewPCG(seed, 0xb0d1e5)), files: map[cluster.NodeID]*leaseFile{}, shops: map[cluster.NodeID]*shop{},
		epochs: map[cluster.NodeID]cluster.Epoch{}, lives: map[*labour]bool{}, reigns: map[cluster.NodeLeaseID]bool{},
	}
	o := bubbleOptions{talk: true, tune: in.tune}
	return in, o
}

// tune gives a start that is about to begin its lease file, and takes orders for it.
func (in *industry) tune(c *agent.Config, d *agent.Deps) {
	in.mu.Lock()
	defer in.mu.Unlock()
	f := in.files[c.Node]
	if f == nil {
		f = &leaseFile{}
		in.files[c.Node] = f
	}
	f.owner++
	s := &shop{all: in, node: c.Node, peers: d.Peers}
	s.ctx, s.end = context.WithCancel(context.Background())
	in.shops[c.Node] = s
	c.NodeLeases, d.LeaseFile = true, leaseFileOf{f, f.owner}
	d.Peers.Handle(workOrder, s.ordered)
}

// start boots a node's daemon and has it work whenever it is primary.
func (in *industry) start(n cluster.NodeID) {
	node := in.b.start(n)
	in.mu.Lock()
	s := in.shops[n]
	s.agent = node.agent
	in.mu.Unlock()
	s.owned.Go(func() { s.lead(node.done) })
}

// kill is kill -9 of the daemon, or the loss of the whole host.
func (in *industry) kill(n cluster.NodeID, power bool) {
	in.mu.Lock()
	s, f := in.shops[n], in.files[n]
	s.dead = true
	f.mu.Lock()
	f.owner++ // nothing is written any more
	f.mu.Unlock()
	for l := range in.lives {
		if l.shop == s {
			delete(in.lives, l)
		}
	}
	in.mu.Unlock()
	if power {
		in.b.powerOff(n)
	} else {
		in.b.kill(n)
	}
	s.end()
}

// gone waits until a daemon that was ended has, and looks whether it has left work.
func (in *industry) gone(n cluster.NodeID) {
	<-in.b.nodes[n].done
	s := in.shops[n]
	in.mu.Lock()
	for l := range in.lives {
		if l.shop == s {
			in.breaks("the daemon of %s has ended and its work for %s goes on", n, l.lease)
		}
	}
	in.mu.Unlock()
	s.end()
	s.owned.Wait()
}

func (in *industry) say(format string, args ...any) {
	in.said = append(in.said, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
}

// breaks notes what must not happen. mu is held.
func (in *industry) breaks(format string, args ...any) {
	if len(in.wrong) < 20 {
		in.wrong = append(in.wrong, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
	}
}

// begins notes that a node works for a leader, and who else has it work.
func (in *industry) begins(s *shop, id cluster.NodeLeaseID, root bool) *labour {
	l := &labour{s, id, root}
	in.mu.Lock()
	defer in.mu.Unlock()
	if s.dead {
		return l
	}
	for o := range in.lives {
		switch {
		case o.lease == id:
		case o.shop.node == s.node:
			in.breaks("%s works for %s while work for %s lives there", s.node, id, o.lease)
		case o.root && root: // each has a majority
			in.breaks("%s leads activities as %s while those of %s live on %s", s.node, id, o.lease, o.shop.node)
		}
	}
	in.lives[l] = true
	return l
}

func (in *industry) ends(l *labour) {
	in.mu.Lock()
	defer in.mu.Unlock()
	delete(in.lives, l)
}

// effect is something that happens if the token lives at this instant.
func (in *industry) effect(l *labour, t cluster.Token) {
	in.mu.Lock()
	defer in.mu.Unlock()
	s := l.shop
	if s.dead || !t.Live() {
		return
	}
	if id := t.Lease(); id != l.lease {
		in.breaks("work for %s on %s has a token of %s", l.lease, s.node, id)
	}
	if e := l.lease.Epoch; e < in.epochs[s.node] {
		in.breaks("an effect of epoch %d on %s, which has seen %d", e, s.node, in.epochs[s.node])
	} else {
		in.epochs[s.node] = e
	}
	for o := range in.lives {
		if o.lease != l.lease && o.shop.node == s.node {
			in.breaks("an effect for %s on %s while work for %s lives there", l.lease, s.node, o.lease)
		}
	}
	if !l.root {
		in.errands++
		return
	}
	in.effects++
	in.reigns[l.lease] = true
	for _, o := range in.shops {
		if o != s && !o.dead && o.token.Live() && o.token.Lease() != l.lease {
			in.breaks("the token of %s lives beside that of %s", o.token.Lease(), l.lease)
		}
		in.promised(o, l.lease)
	}
}

// promised looks whether a node that serves a leader still works for another by
// whose order it has begun. mu is held.
func (in *industry) promised(s *shop, id cluster.NodeLeaseID) {
	if s.agent == nil || s.dead || s.agent.CheckNodeLease(id).Code != "" {
		return
	}
	for o := range in.lives {
		if o.shop == s && !o.root && o.lease != id {
			in.breaks("%s serves %s while work for %s lives there", s.node, id, o.lease)
		}
	}
}

// lead runs activities under a majority while this node is primary.
func (s *shop) lead(done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		case <-s.ctx.Done():
			return
		case <-time.After(200 * time.Millisecond):
		}
		if s.agent.NodeLease().IsZero() {
			continue
		}
		_ = s.agent.Activities().Run(s.ctx, activity.Spec{Name: "rebalance", Quorum: cluster.Majority(), Timeout: 5 * time.Second}, s.rebalance)
	}
}

// rebalance has effects here, orders work on the other nodes, and takes its time
// to end.
func (s *shop) rebalance(ctx context.Context, a *activity.Activity) error {
	in, t := s.all, a.Token()
	l := in.begins(s, t.Lease(), true)
	defer in.ends(l)
	in.mu.Lock()
	s.token = t
	targets := slices.DeleteFunc(slices.Clone(leaseTrio), func(n cluster.NodeID) bool { return n == s.node })
	in.mu.Unlock()
	for turn := range 80 {
		in.effect(l, t)
		if turn%4 == 0 {
			s.order(ctx, t, targets[turn/4%len(targets)])
		}
		if !sleeps(ctx, 250*time.Millisecond) {
			in.effect(l, t) // it must not happen
			return in.linger(ctx)
		}
	}
	return nil
}

// sleeps reports whether ctx lives after d.
func sleeps(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// linger goes on for a while after the stop.
func (in *industry) linger(ctx context.Context) error {
	in.mu.Lock()
	in.cutShort++
	d := time.Duration(in.moods.Int64N(int64(lingers)))
	in.mu.Unlock()
	time.Sleep(d)
	return context.Cause(ctx)
}

// order has another node work, if it takes the order.
func (s *shop) order(ctx context.Context, t cluster.Token, to cluster.NodeID) {
	in := s.all
	in.mu.Lock()
	in.requests++
	request := fmt.Sprintf("%s-%d", s.node, in.requests)
	in.mu.Unlock()
	w, err := t.Wire(request)
	if err != nil {
		return
	}
	raw, err := json.Marshal(w)
	if err != nil {
		in.b.t.Error(err)
		return
	}
	ask, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	_, _ = s.peers.Ask(ask, to, workOrder, raw)
}

// ordered takes an order and has it carried out beside.
func (s *shop) ordered(_ context.Context, _ cluster.NodeID, body []byte) ([]byte, error) {
	var w cluster.TokenWire
	if err := json.Unmarshal(body, &w); err != nil {
		return nil, fmt.Errorf("%w: %w", err, cluster.ErrRefused)
	}
	in := s.all
	in.mu.Lock()
	defer in.mu.Unlock()
	if s.agent == nil || s.dead || s.ctx.Err() != nil {
		return nil, fmt.Errorf("starts or ends: %w", cluster.ErrRefused)
	}
	s.owned.Go(func() {
		err := s.agent.Activities().RunRemote(s.ctx, w, activity.Spec{Name: "move", Timeout: time.Second}, s.move)
		var refused *cluster.RefusedActivity
		if errors.As(err, &refused) || errors.Is(err, cluster.ErrStaleEpoch) || errors.Is(err, cluster.ErrRefused) {
			in.mu.Lock()
			in.stalemate++
			in.mu.Unlock()
		}
	})
	return nil, nil
}

// move is work that was ordered here.
func (s *shop) move(ctx context.Context, a *activity.Activity) error {
	in, t := s.all, a.Token()
	l := in.begins(s, t.Lease(), false)
	defer in.ends(l)
	for range 10 {
		in.effect(l, t)
		if !sleeps(ctx, 300*time.Millisecond) {
			in.effect(l, t)
			return in.linger(ctx)
		}
	}
	return nil
}

// ---- what happens to it

// trouble does one thing, and returns when nothing of it is left but what heals
// by itself.
func (in *industry) trouble() {
	b := in.b
	n := leaseTrio[in.rng.IntN(3)]
	other := leaseTrio[(slices.Index(leaseTrio, n)+1+in.rng.IntN(2))%3]
	span := time.Duration(in.rng.Int64N(int64(9*time.Second))) + 50*time.Millisecond
	switch in.rng.IntN(12) {
	case 0, 1, 2:
		in.say("wish %s", n)
		b.wish(string(n))
	case 3:
		in.say("%s is cut off from the store for %v", n, span)
		b.store.Partition(string(n))
		time.AfterFunc(span, func() { b.heal(n) })
	case 4:
		in.say("%s and %s are parted for %v", n, other, span)
		b.talk.net.Part(string(n), string(other))
		time.AfterFunc(span, b.talk.net.Heal)
	case 5:
		in.say("%s is cut off from all for %v", n, span)
		b.store.Partition(string(n))
		for _, o := range leaseTrio {
			if o != n {
				b.talk.net.Part(string(n), string(o))
			}
		}
		time.AfterFunc(span, func() { b.heal(n); b.talk.net.Heal() })
	case 6:
		in.say("what %s says to %s is lost for %v", n, other, span)
		b.talk.net.Cut(string(n), string(other))
		time.AfterFunc(span, b.talk.net.Heal)
	case 7:
		in.say("%s loses every third piece to %s for %v", n, other, span)
		b.talk.net.Lose(string(n), string(other), 3, span/8)
		time.AfterFunc(span, b.talk.net.Heal)
	case 8:
		power := in.rng.IntN(2) == 0
		in.say("%s is killed (power %v), and back after %v", n, power, span)
		in.kill(n, power)
		time.Sleep(span)
		in.gone(n)
		in.start(n)
	case 9:
		in.say("%s is stopped and started", n)
		b.nodes[n].stop()
		in.gone(n)
		in.start(n)
	case 10:
		in.say("two replies to %s are lost", n)
		rule := b.store.DropReply(string(n), func(o zktest.OpInfo) bool { return purposeOf(o) != "" })
		rule.Times(2)
	case 11:
		in.say("the session of %s ends", n)
		b.store.Expire(string(n))
	}
}

// live has the cluster work for a virtual time, with a fault each ten seconds.
func (in *industry) live(span time.Duration) {
	b := in.b
	for end := time.Now().Add(span); time.Now().Before(end); {
		time.Sleep(5*time.Second + time.Duration(in.rng.Int64N(int64(10*time.Second))))
		for _, n := range leaseTrio {
			if b.nodes[n].ended() {
				b.t.Fatalf("the daemon of %s has ended by itself: %v", n, b.nodes[n].err)
			}
		}
		in.trouble()
	}
	in.say("calm")
	time.Sleep(20 * time.Second)
	for _, n := range leaseTrio {
		b.heal(n)
	}
	b.talk.net.Heal()
	b.settles(time.Minute)
	in.mu.Lock()
	before := in.effects
	in.mu.Unlock()
	b.eventually(30*time.Second, "the primary works again", func() bool { in.mu.Lock(); defer in.mu.Unlock(); return in.effects > before })
}

func runIndustry(t *testing.T, seed uint64, span time.Duration) {
	in, o := newIndustry(seed)
	inBubble(t, o, func(b *bubble) {
		in.b = b
		for _, n := range leaseTrio {
			in.start(n)
		}
		defer func() {
			for _, n := range leaseTrio {
				b.nodes[n].stop()
			}
			for _, n := range leaseTrio {
				in.gone(n)
			}
			if t.Failed() {
				t.Logf("seed %d:\n%v", seed, in.said)
			}
		}()
		b.elect("hv1")
		in.live(span)
		in.mu.Lock()
		defer in.mu.Unlock()
		for _, w := range in.wrong {
			t.Error(w)
		}
		t.Logf("seed %d, %v: %d leaders, %d effects of theirs, %d of ordered work, %d ended, %d orders refused",
			seed, span, len(in.reigns), in.effects, in.errands, in.cutShort, in.stalemate)
		if len(in.reigns) < int(span/(5*time.Minute)) || in.errands < in.effects/4 || in.cutShort == 0 {
			t.Error("too little has happened to show anything")
		}
	})
}

// Whole agents with real node leases and activities, whose primary works all the
// time and orders work on the other nodes, through hours of leader changes,
// partitions, restarts and lost replies: two leaders' activities are never on one
// node at once, and a dead leader's tokens never live beside its successor's.
//
// PVC_ACTIVITY_HOURS=n lives n virtual hours, PVC_ACTIVITY_SEED=n begins with
// that seed; a failure names its own.
func TestTwoLeadersActivitiesNeverOverlap(t *testing.T) {
	spans := []time.Duration{8 * time.Minute, 8 * time.Minute, 8 * time.Minute}
	if hours, err := strconv.Atoi(os.Getenv("PVC_ACTIVITY_HOURS")); err == nil {
		spans = slices.Repeat([]time.Duration{30 * time.Minute}, 2*hours)
	} else if testing.Short() {
		spans = spans[:1]
	}
	from, _ := strconv.ParseUint(os.Getenv("PVC_ACTIVITY_SEED"), 10, 64)
	for i, span := range spans {
		seed := from + uint64(i)
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			runIndustry(t, seed, span)
		})
	}
}
