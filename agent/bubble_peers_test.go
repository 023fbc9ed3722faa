package agent_test

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"pvc.internal/agent"
	"pvc.internal/cluster"
	"pvc.internal/peer"
	"pvc.internal/peer/peertest"
)

// talkers are the nodes' parts in the talk past ZooKeeper, over a network in
// memory; a nil one is a cluster that does not talk.
type talkers struct {
	b     *bubble
	net   *peertest.Network
	ca    *peertest.Authority
	owned sync.WaitGroup

	mu      sync.Mutex
	by      map[cluster.NodeID]*talker // by host, the newest start
	ownSide map[cluster.NodeID]error   // what is wrong with a host's own way to the others
	spoil   map[cluster.NodeID]func(*x509.Certificate)
	signer  map[cluster.NodeID]*peertest.Authority // of a host's certificate, where that is another
	alias   map[cluster.NodeID]cluster.NodeID      // the name in a host's certificate, where that is another
	asked   map[string]int                         // questions by "HOST KIND"
	watched int                                    // calls of Watch
}

// talker is one start's part.
type talker struct {
	*peer.Node
	all   *talkers
	host  cluster.NodeID
	agent atomic.Pointer[agent.Agent]
	ctx   context.Context
	end   context.CancelFunc
}

func newTalkers(b *bubble) *talkers {
	return &talkers{
		b: b, net: peertest.NewNetwork(), ca: peertest.NewAuthority(b.t, "bubble", time.Now()), by: map[cluster.NodeID]*talker{},
		ownSide: map[cluster.NodeID]error{}, spoil: map[cluster.NodeID]func(*x509.Certificate){}, asked: map[string]int{},
		signer: map[cluster.NodeID]*peertest.Authority{}, alias: map[cluster.NodeID]cluster.NodeID{},
	}
}

// join gives a daemon that is about to start its part.
func (k *talkers) join(host cluster.NodeID, life *lifeline, c *agent.Config, d *agent.Deps) *talker {
	if k == nil {
		return nil
	}
	var edits []func(*x509.Certificate)
	if spoil := k.spoil[host]; spoil != nil {
		edits = append(edits, spoil)
	}
	ca, name := k.ca, c.Node
	if other := k.signer[host]; other != nil {
		ca = other
	}
	if other := k.alias[host]; other != "" {
		name = other
	}
	id, err := peer.LoadIdentity(ca.Files(k.b.t, name, time.Now(), edits...), "bubble", name, nil)
	if err != nil {
		k.b.t.Fatal(err)
	}
	k.net.PowerOn(string(host))
	t := &talker{all: k, host: host}
	addr := string(host) + ":7371"
	t.Node = peer.NewNode(peer.NodeConfig{
		Self: c.Node, Interval: k.b.timing.KeepaliveInterval,
		Listen:  func(context.Context) (net.Listener, error) { return k.net.Listen(string(host), addr) },
		Dial:    life.dialer(k.net.Dial(string(host))),
		OwnSide: func(string) error { k.mu.Lock(); defer k.mu.Unlock(); return k.ownSide[host] },
		Status:  func() peer.Status { return peer.Status{Node: c.Node, Incarnation: c.Incarnation} },
		Address: func(n cluster.NodeID) string { return t.agent.Load().PeerAddress(n) },
	}, id, k.b.clock, d.Log)
	t.ctx, t.end = context.WithCancel(context.Background())
	c.Peer, c.Failsafe, c.LongestTTL = addr, true, c.Timing.RoleTTL
	d.Peers, d.Faults = t, t.Faults
	k.mu.Lock()
	defer k.mu.Unlock()
	k.by[host] = t
	return t
}

// begin lets the part run until the daemon has ended, or was killed.
func (t *talker) begin(a *agent.Agent, done <-chan struct{}) {
	if t == nil {
		return
	}
	t.agent.Store(a)
	t.all.owned.Go(func() { t.Run(t.ctx) })
	t.all.owned.Go(func() {
		select {
		case <-done:
		case <-t.ctx.Done():
		}
		t.end()
	})
}

func (t *talker) Ask(ctx context.Context, to cluster.NodeID, kind string, body []byte) ([]byte, error) {
	t.all.mu.Lock()
	t.all.asked[string(t.host)+" "+kind]++
	t.all.mu.Unlock()
	return t.Node.Ask(ctx, to, kind, body)
}

func (t *talker) Watch(targets map[cluster.NodeID]string) {
	t.all.mu.Lock()
	t.all.watched++
	t.all.mu.Unlock()
	t.Node.Watch(targets)
}

// kill ends a host's part as kill -9 does: its kernel closes what it held.
func (k *talkers) kill(host cluster.NodeID) {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if t := k.by[host]; t != nil {
		t.end()
	}
}

// powerOff takes a host off the network without a word.
func (k *talkers) powerOff(host cluster.NodeID) {
	if k != nil {
		k.net.PowerOff(string(host))
	}
}

// close is called when every daemon has ended.
func (k *talkers) close() {
	if k == nil {
		return
	}
	k.owned.Wait()
	k.net.Close()
}

// breakOwnSide has a host find its own way to the others broken.
func (k *talkers) breakOwnSide(host cluster.NodeID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ownSide[host] = errors.New("own interface has no carrier")
}

// viewOf is what the node has published.
func (b *bubble) viewOf(n cluster.NodeID) cluster.View {
	var v cluster.View
	_ = json.Unmarshal([]byte(b.read("/agent/views/"+string(n))), &v)
	return v
}

// talkingFencers is a cluster whose nodes talk, and what its fencers are asked for.
func talkingFencers(names ...cluster.NodeID) (bubbleOptions, *asked) {
	o, a := withFencers(names...)
	o.talk = true
	return o, a
}

// restful brings the role to hv1 and waits until nobody is blind.
func (b *bubble) restful() {
	b.t.Helper()
	b.elect("hv1")
	time.Sleep(b.timing.SessionTimeout)
	b.sighted()
}

// Who has lost ZooKeeper alone answers its peers: it is isolated, and has the
// time in which it must have stopped its work and its watchdog must have bitten.
func TestANodeCutOffFromZooKeeperOnlyIsIsolatedAndNotShot(t *testing.T) {
	t.Parallel()
	o, asked := talkingFencers("hv1", "hv2", "hv3")
	inBubble(t, o, func(b *bubble) {
		b.restful()
		k := b.timing.KeepaliveInterval
		cut := time.Now()
		b.store.Partition("hv3")
		b.eventually(b.timing.SuspectAfter()+k, "hv3 is isolated", func() bool { return b.viewOf("hv1").Nodes["hv3"].Liveness == "isolated" })
		b.always(b.timing.SessionTimeout, "it stays isolated, its session gone or not", func() bool {
			return b.viewOf("hv1").Nodes["hv3"].Liveness == "isolated"
		})
		if b.read("/agent/alive/hv3") != "" {
			b.t.Error("the session of hv3 has not ended, so that this shows nothing")
		}
		if got := b.viewOf("hv1").Reach["hv3"].Answer; got != cluster.ProbeAnswered {
			b.t.Errorf("hv1 publishes %v of its probes of hv3, want that it answers", got)
		}
		// The last keepalive was up to K before the cut.
		left := b.timing.IsolatedFenceAfter() - k - time.Since(cut)
		b.always(left, "hv3 is left alone before F·K + Q·K + W", func() bool { return asked.all() == "" })
		b.eventually(3*k, "hv3 is fenced then", func() bool { return asked.all() == "hv1 fences hv3" })
	})
}

// One that comes back in time was never in danger, and nothing is left of it.
func TestANodeThatFindsZooKeeperAgainInTimeIsNotShot(t *testing.T) {
	t.Parallel()
	o, asked := talkingFencers("hv1", "hv2", "hv3")
	inBubble(t, o, func(b *bubble) {
		b.restful()
		b.store.Partition("hv3")
		time.Sleep(b.timing.SuspectAfter() + b.timing.SessionTimeout/2)
		b.heal("hv3")
		b.eventually(b.timing.SessionTimeout, "hv3 is up", func() bool { return b.viewOf("hv1").Nodes["hv3"].Liveness == "up" })
		b.always(3*b.timing.IsolatedFenceAfter(), "nobody is fenced", func() bool { return asked.all() == "" })
		if v := b.viewOf("hv1"); len(v.Reach) > 0 || len(v.Faults) > 0 {
			b.t.Errorf("hv1 still says %+v, %q", v.Reach, v.Faults)
		}
	})
}

// A node that nobody reaches is dead at once when it is suspect: its session
// need not end first.
func TestASilentNodeThatNobodyReachesIsDeadBeforeItsSessionEnds(t *testing.T) {
	t.Parallel()
	o, asked := talkingFencers("hv1", "hv2", "hv3")
	inBubble(t, o, func(b *bubble) {
		b.restful()
		b.powerOff("hv3")
		b.eventually(b.timing.SuspectAfter()+b.timing.KeepaliveInterval/2, "hv3 is fenced", func() bool { return asked.all() == "hv1 fences hv3" })
		if b.read("/agent/alive/hv3") == "" {
			b.t.Error("its session had ended already")
		}
		b.eventually(b.timing.KeepaliveInterval, "the primary publishes what may stand against fencing hv3", func() bool {
			vetoes := b.viewOf("hv1").Nodes["hv3"].Vetoes
			unused := 0
			for _, v := range vetoes {
				if v.Unused {
					unused++
				}
			}
			return len(vetoes) >= 5 && unused == 2
		})
	})
}

// The coordinators contradict each other: something between them is broken, and
// that is told, not shot at.
func TestAMixedPictureIsAWarningAndNoFence(t *testing.T) {
	t.Parallel()
	o, asked := talkingFencers("hv1", "hv2", "hv3")
	core, logged := observer.New(zapcore.WarnLevel)
	tune := o.tune
	o.tune = func(c *agent.Config, d *agent.Deps) {
		tune(c, d)
		if c.Node == "hv1" {
			d.Log = zap.New(core)
		}
	}
	inBubble(t, o, func(b *bubble) {
		b.restful()
		b.store.Partition("hv3")
		b.talk.net.Part("hv1", "hv3")
		cut := time.Now()
		b.eventually(b.timing.SuspectAfter()+2*b.timing.KeepaliveInterval, "hv1 refuses for the mixed picture", func() bool {
			r := b.viewOf("hv1").Nodes["hv3"].Refusal
			return r != nil && r.Code == cluster.RefuseMixedPicture
		})
		if got := b.viewOf("hv1").Nodes["hv3"].Picture; !strings.Contains(got, "reached by hv2") || !strings.Contains(got, "not reached by hv1") {
			b.t.Errorf("hv1 publishes the picture %q", got)
		}
		left := b.timing.IsolatedFenceAfter() - b.timing.KeepaliveInterval - time.Since(cut)
		b.always(left, "nobody is fenced", func() bool { return asked.all() == "" })
		if n := logged.FilterMessage("the coordinators contradict each other").Len(); n != 1 {
			b.t.Errorf("the warning was logged %d times, want once", n)
		}
	})
}

// What a coordinator's own broken interface keeps from it is not held against
// the node: it waits until the node's session has ended.
func TestACoordinatorWhoseOwnSideIsDownKnowsNothing(t *testing.T) {
	t.Parallel()
	o, asked := talkingFencers("hv1", "hv2", "hv3")
	inBubble(t, o, func(b *bubble) {
		b.restful()
		b.talk.breakOwnSide("hv1")
		b.talk.net.Part("hv1", "hv3")
		b.powerOff("hv3")
		for b.read("/agent/alive/hv3") != "" {
			if got := asked.all(); got != "" {
				b.t.Fatalf("%s, though hv1 cannot tell and the session lives", got)
			}
			time.Sleep(5 * time.Millisecond)
		}
		b.eventually(b.timing.KeepaliveInterval, "hv3 is fenced once its session is gone", func() bool { return asked.all() == "hv1 fences hv3" })
	})
}

// While everybody is up nobody is probed, and a coordinator is asked once in
// five intervals.
func TestAClusterAtRestHardlyTalks(t *testing.T) {
	t.Parallel()
	o := nodesCalled("hv1", "hv2", "hv3")
	o.talk = true
	inBubble(t, o, func(b *bubble) {
		b.restful()
		count := func() (asked, watched int) {
			b.talk.mu.Lock()
			defer b.talk.mu.Unlock()
			for _, n := range b.talk.asked {
				asked += n
			}
			return asked, b.talk.watched
		}
		asked, watched := count()
		const minutes = 5
		time.Sleep(minutes * time.Minute)
		asked2, watched2 := count()
		const pairs = 3 * 2 // each with one question more or less, by where the span begins
		if got, want := asked2-asked, pairs*minutes*60/5; got > want+pairs || got < want*8/10 || watched2 != watched {
			b.t.Errorf("%d questions in %d minutes and %d changes of whom to probe, want %d and none", got, minutes, watched2-watched, want)
		}
	})
}

// A certificate that ends is known before it is needed, and nobody is judged by it.
func TestACertificateThatEndsIsAFault(t *testing.T) {
	t.Parallel()
	o, asked := talkingFencers("hv1", "hv2", "hv3")
	o.names = nil
	inBubble(t, o, func(b *bubble) {
		ends := time.Now().Add(time.Minute)
		b.talk.spoil["hv3"] = func(c *x509.Certificate) { c.NotAfter = ends }
		for _, n := range []cluster.NodeID{"hv1", "hv2", "hv3"} {
			b.start(n)
		}
		b.restful()
		own := func(n cluster.NodeID) string { return strings.Join(b.viewOf(n).Faults, "\n") }
		b.eventually(2*time.Second, "hv3 says that its certificate ends soon", func() bool { return strings.Contains(own("hv3"), "expires on") })
		if got := own("hv1"); got != "" {
			b.t.Errorf("hv1 complains while all is well: %s", got)
		}
		time.Sleep(time.Until(ends))
		b.eventually(12*b.timing.KeepaliveInterval, "hv1 says that hv3 does not answer", func() bool {
			return strings.Contains(own("hv1"), "coordinator hv3 is up and does not answer directly") && strings.Contains(own("hv1"), "not authenticated")
		})
		if got := own("hv3"); !strings.Contains(got, "expired on") || !strings.Contains(got, "pvc pki renew hv3") {
			b.t.Errorf("hv3 says %q", got)
		}
		b.always(time.Minute, "nobody is fenced for that", func() bool { return asked.all() == "" })
		b.powerOff("hv3")
		b.eventually(b.timing.SuspectAfter()+b.timing.SessionTimeout, "hv3 is fenced", func() bool { return asked.all() == "hv1 fences hv3" })
	})
}

// doggedGuard is a guard whose watchdog is as the test says.
type doggedGuard struct {
	agent.Guard
	dog *atomic.Pointer[cluster.WatchdogState]
}

func (g doggedGuard) State(ctx context.Context) (cluster.GuardState, error) {
	s, err := g.Guard.State(ctx)
	s.Watchdog = *g.dog.Load()
	return s, err
}

// What others may count on of a node's watchdog stands in its record for as long
// as its guard says so, and in no session longer (I4).
func TestTheWordOnTheWatchdogFollowsTheGuard(t *testing.T) {
	t.Parallel()
	o := nodesCalled("hv1")
	var dog atomic.Pointer[cluster.WatchdogState]
	dog.Store(&cluster.WatchdogState{})
	o.tune = func(_ *agent.Config, d *agent.Deps) { d.Guard = doggedGuard{d.Guard, &dog} }
	inBubble(t, o, func(b *bubble) {
		b.elect("hv1")
		word := func() *cluster.WatchdogWord {
			var r cluster.NodeRecord
			_ = json.Unmarshal([]byte(b.read("/agent/nodes/hv1")), &r)
			return r.Watchdog
		}
		if w := word(); w != nil {
			b.t.Errorf("without a watchdog it publishes %+v", *w)
		}
		limit := 6 * b.timing.KeepaliveInterval
		dog.Store(&cluster.WatchdogState{Mode: cluster.FeedFeeding, WatchdogInfo: cluster.WatchdogInfo{Timeout: 5 * time.Second, Hardware: true}, Stored: true})
		want := cluster.WatchdogWord{Armed: true, Hardware: true, Stored: true, TimeoutMS: 5000, StopMS: b.timing.StopAfter().Milliseconds()}
		b.eventually(limit, "the armed watchdog is published", func() bool { w := word(); return w != nil && *w == want })
		b.store.Expire("hv1")
		b.always(limit, "it stays so over a new session", func() bool { w := word(); return w != nil && *w == want })
		dog.Store(&cluster.WatchdogState{Mode: cluster.FeedDisarmed})
		b.eventually(limit, "nobody counts on a watchdog that is not fed", func() bool { return word() == nil })
	})
}

// Wherever in its interval the observer looks, a lost node's fence is begun with the first look
// at which it is dead: neither the rate of the looks nor the frames delay it.
func TestAFenceBeginsWithTheVerdict(t *testing.T) {
	for i := range 8 {
		offset := time.Duration(i) * 130 * time.Millisecond
		t.Run(offset.String(), func(t *testing.T) {
			t.Parallel()
			o, asked := talkingFencers("hv1", "hv2")
			inBubble(t, o, func(b *bubble) {
				time.Sleep(offset) // between the two nodes' keepalives
				b.start("hv3")
				b.restful()
				b.powerOff("hv3")
				b.eventually(2*b.timing.SuspectAfter(), "hv3 is fenced", func() bool { return asked.all() == "hv1 fences hv3" })
				var last time.Time
				for _, h := range b.store.History() {
					if h.Path == "/nodes/hv3/keepalive" {
						last = h.At
					}
				}
				if took := time.Since(last); took > b.timing.SuspectAfter()+b.timing.KeepaliveInterval/4+50*time.Millisecond {
					b.t.Errorf("fenced %v after its last keepalive", took)
				}
			})
		})
	}
}
