package agent_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"pvc.internal/agent"
	"pvc.internal/cluster"
	"pvc.internal/peer"
	"pvc.internal/peer/peertest"
)

// fabric is the network between the nodes of a bubble, past the store, with the
// real peers on it.
type fabric struct {
	b      *bubble
	net    *peertest.Network
	ca     *peertest.Authority
	files  map[cluster.NodeID]peer.Files
	ends   map[cluster.NodeID]func()
	clocks map[cluster.NodeID]*stoppable
	onAsk  atomic.Pointer[func(from cluster.NodeID, kind string)] // before a question is sent
}

// inFabric runs the test with whole agents that talk directly, the failsafe on.
func inFabric(t *testing.T, o bubbleOptions, fn func(b *bubble, f *fabric)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f := &fabric{net: peertest.NewNetwork(), ca: peertest.NewAuthority(t, "bubble", time.Now()), files: map[cluster.NodeID]peer.Files{},
			ends: map[cluster.NodeID]func(){}, clocks: map[cluster.NodeID]*stoppable{}}
		tune := o.tune
		o.tune = func(c *agent.Config, d *agent.Deps) {
			if tune != nil {
				tune(c, d)
			}
			f.join(c, d)
		}
		f.b = emptyBubble(t, o)
		defer f.close()
		defer f.b.close()
		f.b.initialise()
		for _, n := range o.names {
			f.b.start(n)
		}
		fn(f.b, f)
	})
}

func address(n cluster.NodeID) string { return string(n) + ":7371" }

// join gives one start of a daemon its peers. They end with the next start of
// the name, and say nothing more from the instant at which the daemon is killed.
func (f *fabric) join(c *agent.Config, d *agent.Deps) {
	n, life := c.Node, d.Guard.(*guardLink).life
	if c.Host != string(n) { // a namesake on another host: the others know only the first one's address
		return
	}
	if end := f.ends[n]; end != nil {
		end()
	}
	if _, ok := f.files[n]; !ok {
		f.files[n] = f.ca.Files(f.b.t, n, time.Now())
	}
	id, err := peer.LoadIdentity(f.files[n], "bubble", n, nil)
	if err != nil {
		f.b.t.Fatal(err)
	}
	node := peer.NewNode(peer.NodeConfig{
		Self: n, Interval: c.Timing.KeepaliveInterval, Dial: life.dialer(f.net.Dial(string(n))), Address: address,
		OwnSide: func(string) error { return nil },
		Status:  func() peer.Status { return peer.Status{Node: n, Incarnation: c.Incarnation} },
		Listen: func(context.Context) (net.Listener, error) {
			l, err := f.net.Listen(string(n), address(n))
			return tiedListener{l, life}, err
		},
	}, id, d.Clock, zap.NewNop())
	f.clocks[n] = &stoppable{Clock: d.Clock}
	c.Failsafe, c.LongestTTL = true, c.Timing.RoleTTL
	d.Clock, d.Peers = f.clocks[n], tapped{node, n, f}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		time.Sleep(time.Microsecond) // the agent names its handlers first
		node.Run(ctx)
	}()
	f.ends[n] = func() { cancel(); <-done }
}

func (f *fabric) close() {
	for _, end := range f.ends {
		end()
	}
	f.net.Close()
}

// part cuts a node off from all others, past the store.
func (f *fabric) part(n cluster.NodeID) {
	for other := range f.ends {
		if other != n {
			f.net.Part(string(n), string(other))
		}
	}
}

// tapped lets a test act at the instant of a question.
type tapped struct {
	agent.Peers
	self cluster.NodeID
	f    *fabric
}

func (p tapped) Ask(ctx context.Context, n cluster.NodeID, kind string, body []byte) ([]byte, error) {
	if act := p.f.onAsk.Load(); act != nil {
		(*act)(p.self, kind)
	}
	return p.Peers.Ask(ctx, n, kind, body)
}

// tiedListener ties what it accepts to the daemon's life.
type tiedListener struct {
	net.Listener
	life *lifeline
}

func (l tiedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.life.mu.Lock()
	defer l.life.mu.Unlock()
	l.life.conns = append(l.life.conns, c)
	return tiedConn{c, l.life}, nil
}

// stoppable is a clock whose reader stops with its process: SIGSTOP is a gap
// between two of its readings.
type stoppable struct {
	cluster.Clock
	mu      sync.Mutex
	resumed chan struct{}
}

func (c *stoppable) Now() cluster.Instant {
	c.mu.Lock()
	stopped := c.resumed
	c.mu.Unlock()
	if stopped != nil {
		<-stopped
	}
	return c.Clock.Now()
}

// stop stops the process for a time; once at a time.
func (c *stoppable) stop(span time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.resumed != nil {
		return
	}
	c.resumed = make(chan struct{})
	time.AfterFunc(span, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		close(c.resumed)
		c.resumed = nil
	})
}

// threeWithFencers are three nodes with services, and what their fencers are asked for.
func threeWithFencers() (bubbleOptions, *asked) {
	o, a := withFencers("hv1", "hv2", "hv3")
	o.services = twoServices
	return o, a
}

// standing is what must not change while the store is away.
type standing struct {
	epoch        cluster.Epoch
	gaps, starts int
}

func (b *bubble) standing() standing {
	gaps, starts := b.seen.counts()
	return standing{readLease([]byte(b.read(leasePath))).Epoch, gaps, starts}
}

// settled brings hv1 into the role and lets everybody's judgement warm up.
func (b *bubble) settled() {
	b.elect("hv1")
	time.Sleep(b.timing.SessionTimeout + b.timing.KeepaliveInterval)
	b.sighted()
}

// An outage of the store alone, however long, moves nothing: the primary goes on
// with its services, nobody is judged or fenced, and no promise outlives it (I6).
func TestAnOutageOfTheStoreAloneMovesNothing(t *testing.T) {
	for _, fault := range storeFaults {
		for _, span := range []time.Duration{3 * time.Second, 10 * time.Second, 20 * time.Second, 120 * time.Second} {
			t.Run(fmt.Sprintf("%s of %v", fault.name, span), func(t *testing.T) {
				t.Parallel()
				o, asked := threeWithFencers()
				inFabric(t, o, func(b *bubble, f *fabric) {
					b.settled()
					before := b.standing()
					fault.begin(b)
					time.AfterFunc(span, b.store.Resume)
					b.always(span+20*time.Second, "hv1 acts", func() bool { return b.seen.holder() == "hv1" })
					if p, now := b.settles(10*time.Second), b.standing(); p != "hv1" || now != before {
						b.t.Errorf("%s is primary, %+v; before the outage %+v", p, now, before)
					}
					if j, fenced := b.judged(), asked.all(); len(j) > 0 || fenced != "" {
						b.t.Errorf("judged by who saw nothing: %v; fenced: %q", j, fenced)
					}
					b.wish("hv2")
					b.eventually(4*time.Second, "the role still moves", func() bool { return b.converged() == "hv2" })
				})
			})
		}
	}
}

// A second outage, right after the first, finds everybody as willing: nothing of
// what the first one began (a pre-flight's epoch, say) stands against a promise.
func TestOutagesInARowMoveNothing(t *testing.T) {
	t.Parallel()
	inFabric(t, threeNodes(), func(b *bubble, f *fabric) {
		b.settled()
		before := b.standing()
		for i := range 6 {
			b.store.Outage()
			time.AfterFunc(8*time.Second, b.store.Resume)
			b.always(8*time.Second+time.Duration(i)*700*time.Millisecond, "hv1 acts", func() bool { return b.seen.holder() == "hv1" })
		}
		if p, now := b.settles(10*time.Second), b.standing(); p != "hv1" || now != before {
			b.t.Errorf("%s is primary, %+v; at first %+v", p, now, before)
		}
	})
}

// Who is cut off from everything while the store is away stops its work by Q·K:
// nobody can tell it any more that it may go on.
func TestWhoIsCutOffFromEverythingStopsItsWork(t *testing.T) {
	for _, after := range []time.Duration{0, 700 * time.Millisecond, 5 * time.Second, 15 * time.Second} {
		t.Run(fmt.Sprintf("%v into the outage", after), func(t *testing.T) {
			t.Parallel()
			o, asked := threeWithFencers()
			inFabric(t, o, func(b *bubble, f *fabric) {
				b.settled()
				b.store.Outage()
				b.always(after, "hv1 acts", func() bool { return b.seen.holder() == "hv1" })
				f.part("hv1")
				b.eventually(b.timing.StopAfter(), "hv1 has stopped", func() bool { return b.seen.holder() == "" })
				b.always(10*time.Second, "nobody acts without the store", func() bool { return b.seen.holder() == "" })
				f.net.Heal()
				b.store.Resume()
				b.settles(20 * time.Second)
				if fenced := asked.all(); fenced != "" {
					b.t.Errorf("fenced: %q", fenced)
				}
				b.entered(10*time.Second, "the history says why hv1 stopped", func(e cluster.Event) bool {
					return e.Kind == "failsafe_refused" || e.Kind == "self_fence"
				})
			})
		})
	}
}

// A holder that alone loses the store is refused by everybody and loses the role
// in time, though all of them reach it.
func TestAHolderThatAloneLosesTheStoreStepsDown(t *testing.T) {
	t.Parallel()
	inFabric(t, threeNodes(), func(b *bubble, f *fabric) {
		b.settled()
		for range 4 {
			old := b.primary()
			b.store.Partition(string(old))
			b.eventually(b.timing.RoleTerm()+10*time.Millisecond, "the old one has stopped", func() bool { return b.seen.holder() != old })
			b.eventually(2*time.Second, "another acts", func() bool { return b.seen.holder() != "" })
			b.heal(old)
			b.settles(15 * time.Second)
		}
	})
}

// Two of three lose the store, the third does not: nobody goes on beyond the
// lease, and the third takes it.
func TestOneThatHasTheStoreIsEnoughToEndTheRole(t *testing.T) {
	t.Parallel()
	inFabric(t, threeNodes(), func(b *bubble, f *fabric) {
		b.settled()
		b.store.Partition("hv1")
		b.store.Partition("hv2")
		b.eventually(b.timing.RoleTerm()+10*time.Millisecond, "hv1 has stopped", func() bool { return b.seen.holder() != "hv1" })
		b.eventually(2*time.Second, "hv3 acts", func() bool { return b.seen.holder() == "hv3" })
	})
}

// The store comes back for one of those that have promised, and for the holder
// later: while its promise stands nobody takes what the holder may still have.
func TestAPromiseOutlivesTheOutageOfWhoGaveIt(t *testing.T) {
	for _, late := range []time.Duration{0, 400 * time.Millisecond, 2 * time.Second, 4 * time.Second, 10 * time.Second} {
		t.Run(fmt.Sprintf("the holder %v later", late), func(t *testing.T) {
			t.Parallel()
			inFabric(t, threeNodes(), func(b *bubble, f *fabric) {
				b.settled()
				for _, n := range b.opts.names {
					b.store.Partition(string(n))
				}
				b.always(12*time.Second, "hv1 acts", func() bool { return b.seen.holder() == "hv1" })
				b.heal("hv2")
				time.Sleep(late)
				b.heal("hv1")
				b.heal("hv3")
				b.settles(20 * time.Second)
			})
		})
	}
}

// A coordinator that joins while the lease is not renewed, and alone has the
// store, is not one of those who are asked: it takes nothing, says why, and is
// counted as soon as the lease is renewed.
func TestNoCoordinatorIsAddedWhileTheLeaseIsNotRenewed(t *testing.T) {
	t.Parallel()
	inFabric(t, threeNodes(), func(b *bubble, f *fabric) {
		b.settled()
		for _, n := range b.opts.names {
			b.store.Partition(string(n))
		}
		time.Sleep(2 * time.Second)
		b.start("hv4")
		b.always(30*time.Second, "hv1 acts", func() bool { return b.seen.holder() == "hv1" })
		if !slices.ContainsFunc(b.nodes["hv4"].agent.Status().Role.Refusals, func(r cluster.Refusal) bool { return r.Code == cluster.RefuseNotCounted }) {
			b.t.Errorf("hv4 does not say why it takes nothing: %v", b.nodes["hv4"].agent.Status().Role.Refusals)
		}
		for _, n := range b.opts.names {
			b.heal(n)
		}
		b.settles(20 * time.Second)
		if named := readLease([]byte(b.read(leasePath))).Coordinators; !slices.Contains(named, "hv4") {
			b.t.Errorf("the lease names %v; want hv4 among them", named)
		}
		before := b.standing()
		b.store.Outage()
		time.AfterFunc(10*time.Second, b.store.Resume)
		holder := b.seen.holder()
		b.always(20*time.Second, string(holder)+" acts by the word of hv4, too", func() bool { return b.seen.holder() == holder })
		if now := b.standing(); now != before {
			b.t.Errorf("%+v, before the outage %+v", now, before)
		}
	})
}

// Another host appears by the name of one, while all others live without the
// store, and has it alone. What its name has promised it does not know: neither
// the name of one that was asked nor that of the holder gives it the role (I1).
func TestANamesakeDoesNotTakeWhatItsNameHasPromised(t *testing.T) {
	for _, name := range []cluster.NodeID{"hv1", "hv2"} {
		for _, again := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, started again: %v", name, again), func(t *testing.T) {
				t.Parallel()
				inFabric(t, threeNodes(), func(b *bubble, f *fabric) {
					b.settled()
					for _, n := range b.opts.names {
						b.store.Partition(string(n))
					}
					time.Sleep(2 * b.timing.SessionTimeout)
					guard := newBubbleGuard("rack9", b.clock, b.seen)
					second := b.startAs(name, "rack9", guard)
					if again { // it finds nobody but itself registered
						b.always(10*time.Second, "hv1 acts", func() bool { return b.seen.holder() == "hv1" })
						second.life.sever()
						second.stop()
						second = b.startAs(name, "rack9", guard)
					}
					b.always(80*time.Second, "hv1 acts", func() bool { return b.seen.holder() == "hv1" })
					if second.ended() {
						b.t.Errorf("the second has ended: %v", second.err)
					}
					if !slices.ContainsFunc(second.agent.Status().Role.Refusals, func(r cluster.Refusal) bool {
						return r.Code == cluster.RefuseNotCounted && strings.Contains(r.Detail, "by the name "+string(name))
					}) {
						b.t.Errorf("the second does not say why it takes nothing: %v", second.agent.Status().Role.Refusals)
					}
				})
			})
		}
	}
}

// The same, and the lease is lost besides: what the second says of the role by
// its name is no word of the host that holds it (I1).
func TestANamesakeDoesNotMakeALostLeaseAnew(t *testing.T) {
	t.Parallel()
	inFabric(t, threeNodes(), func(b *bubble, f *fabric) {
		b.settled()
		for _, n := range b.opts.names {
			b.store.Partition(string(n))
		}
		time.Sleep(2 * b.timing.SessionTimeout)
		second := b.startAs("hv1", "rack9", newBubbleGuard("rack9", b.clock, b.seen))
		time.Sleep(5 * time.Second)
		b.store.Delete(leasePath)
		b.always(150*time.Second, "hv1 acts", func() bool { return b.seen.holder() == "hv1" })
		if !slices.ContainsFunc(second.agent.Status().Role.Refusals, func(r cluster.Refusal) bool {
			return r.Code == cluster.RefuseNotCounted && strings.Contains(r.Detail, "by the name hv1")
		}) {
			b.t.Errorf("the second does not say why it takes nothing: %v", second.agent.Status().Role.Refusals)
		}
	})
}

// The lease is lost while nobody but a newcomer has the store, and its holder
// lives by the others' word: it is not made anew beside it.
func TestALostLeaseIsNotMadeAnewBesideItsHolder(t *testing.T) {
	t.Parallel()
	inFabric(t, threeNodes(), func(b *bubble, f *fabric) {
		b.settled()
		for _, n := range b.opts.names {
			b.store.Partition(string(n))
		}
		time.Sleep(2 * time.Second)
		b.start("hv4")
		time.Sleep(5 * time.Second)
		b.store.Delete(leasePath)
		b.always(90*time.Second, "hv1 acts", func() bool { return b.seen.holder() == "hv1" })
		for _, n := range b.opts.names {
			b.heal(n)
		}
		b.settles(3 * time.Minute)
	})
}

// One that has promised is restarted inside the outage. It knows nothing any
// more and promises nothing: the role ends in time, and starts nowhere else.
func TestAGiverThatIsRestartedInTheOutageEndsTheRole(t *testing.T) {
	for _, back := range []bool{false, true} { // the store, for the restarted one
		t.Run(fmt.Sprintf("it has the store back: %v", back), func(t *testing.T) {
			t.Parallel()
			o, asked := threeWithFencers()
			inFabric(t, o, func(b *bubble, f *fabric) {
				b.settled()
				for _, n := range b.opts.names {
					b.store.Partition(string(n))
				}
				b.always(6*time.Second, "hv1 acts", func() bool { return b.seen.holder() == "hv1" })
				b.kill("hv2")
				time.Sleep(100 * time.Millisecond)
				b.start("hv2")
				if back {
					b.heal("hv2")
				}
				b.eventually(b.timing.RoleTTL, "hv1 has stopped", func() bool { return b.seen.holder() != "hv1" })
				time.Sleep(5 * time.Second)
				for _, n := range b.opts.names {
					b.heal(n)
				}
				b.settles(20 * time.Second)
				if fenced := asked.all(); fenced != "" {
					b.t.Errorf("fenced: %q", fenced)
				}
			})
		})
	}
}

// Answers that are lost for a while cost nothing as long as one question is
// answered by all before the role's end; for longer they end it in time.
func TestLostAnswers(t *testing.T) {
	for _, span := range []time.Duration{300 * time.Millisecond, time.Second, 4 * time.Second} {
		t.Run(span.String(), func(t *testing.T) {
			t.Parallel()
			inFabric(t, threeNodes(), func(b *bubble, f *fabric) {
				b.settled()
				b.store.Outage()
				time.Sleep(6 * time.Second)
				f.net.Cut("hv2", "hv1") // the questions arrive, the answers do not
				time.AfterFunc(span, f.net.Heal)
				if span < b.timing.RoleTerm()/2 {
					b.always(20*time.Second, "hv1 acts", func() bool { return b.seen.holder() == "hv1" })
				} else {
					b.eventually(span, "hv1 has stopped", func() bool { return b.seen.holder() == "" })
					b.always(10*time.Second, "nobody acts without the store", func() bool { return b.seen.holder() == "" })
				}
				b.store.Resume()
				b.settles(20 * time.Second)
			})
		})
	}
}

// The asker is stopped (SIGSTOP) between its question and the answers. Stopped
// for a moment it goes on; beyond its end the guard has ended the role, and the
// answers it then reads bring nothing back.
func TestAnAskerStoppedBetweenQuestionAndAnswer(t *testing.T) {
	for _, span := range []time.Duration{100 * time.Millisecond, 600 * time.Millisecond, 3 * time.Second, 7 * time.Second} {
		t.Run(span.String(), func(t *testing.T) {
			t.Parallel()
			inFabric(t, threeNodes(), func(b *bubble, f *fabric) {
				b.settled()
				b.store.Outage()
				time.Sleep(6 * time.Second)
				var once sync.Once
				stop := func(from cluster.NodeID, kind string) {
					if from == "hv1" && kind == "failsafe" {
						once.Do(func() { f.clocks["hv1"].stop(span) })
					}
				}
				f.onAsk.Store(&stop)
				if span < time.Second {
					b.always(15*time.Second, "hv1 acts", func() bool { return b.seen.holder() == "hv1" })
				} else {
					b.eventually(b.timing.RoleTTL, "hv1's guard has ended the role", func() bool { return b.seen.holder() == "" })
					b.always(15*time.Second, "nothing comes back", func() bool { return b.seen.holder() == "" })
				}
				b.store.Resume()
				b.settles(20 * time.Second)
			})
		})
	}
}

// A whole cluster that was without power starts: one primary, nobody is fenced,
// each service starts once, in whatever order the nodes come back.
func TestAWholeColdStart(t *testing.T) {
	orders := [][]cluster.NodeID{{"hv1", "hv2", "hv3"}, {"hv3", "hv2", "hv1"}, {"hv2", "hv1", "hv3"}}
	for _, apart := range []time.Duration{0, 3 * time.Second, 10 * time.Second} {
		for i, order := range orders {
			t.Run(fmt.Sprintf("order %d, %v apart", i, apart), func(t *testing.T) {
				t.Parallel()
				o, asked := threeWithFencers()
				inFabric(t, o, func(b *bubble, f *fabric) {
					b.settled()
					for _, n := range b.opts.names {
						b.powerOff(n)
					}
					b.store.Outage()
					time.Sleep(30 * time.Second)
					b.store.Resume()
					_, starts := b.seen.counts()
					for _, n := range order {
						b.start(n)
						time.Sleep(apart)
					}
					b.eventually(10*time.Second, "one primary", func() bool { return b.primary() != "" })
					b.settles(10 * time.Second)
					if _, now := b.seen.counts(); now-starts != len(twoServices) {
						b.t.Errorf("%d services were started, want %d", now-starts, len(twoServices))
					}
					if fenced := asked.all(); fenced != "" {
						b.t.Errorf("fenced: %q", fenced)
					}
				})
			})
		}
	}
}

// The node's own deadline follows its keepalives while it is busy, and what it
// was promised in an outage; an idle node has none.
func TestTheNodesOwnDeadline(t *testing.T) {
	t.Parallel()
	inFabric(t, threeNodes(), func(b *bubble, f *fabric) {
		b.settled()
		left := func(n cluster.NodeID) time.Duration {
			if until := b.guard(n).nodeRight(); !until.IsZero() {
				return until.Sub(b.clock.Now())
			}
			return 0
		}
		fresh := b.timing.StopAfter() - 3*b.timing.KeepaliveInterval/2 // after one that was missed it is less
		b.always(5*time.Second, "hv1's own right follows its keepalives, and hv2 has none", func() bool {
			return left("hv1") > fresh && left("hv1") <= b.timing.StopAfter() && left("hv2") == 0
		})
		b.store.Outage()
		time.Sleep(b.timing.StopAfter())
		b.always(30*time.Second, "hv1's own right goes on by promises", func() bool {
			promised := min(b.nodes["hv2"].agent.Promised("hv1"), b.nodes["hv3"].agent.Promised("hv1"))
			return left("hv1") > 0 && b.guard("hv1").nodeRight() <= promised
		})
		b.store.Resume()
		b.settles(10 * time.Second)
		b.wish("hv2")
		b.eventually(4*time.Second, "the role is at hv2", func() bool { return b.converged() == "hv2" })
		now := func() bool { return left("hv1") == 0 && left("hv2") > fresh }
		b.eventually(b.timing.StopAfter()+2*b.timing.KeepaliveInterval, "hv2's own right follows its keepalives, and hv1 has none any more", now)
		b.always(5*time.Second, "so it stays", now)
	})
}

// Left to the guard in maintenance, role and node have the long deadline both:
// the restart moves nothing (I9).
func TestAShutdownInMaintenanceKeepsTheNodesRight(t *testing.T) {
	t.Parallel()
	inFabric(t, threeNodes(), func(b *bubble, f *fabric) {
		b.settled()
		before := b.standing()
		b.store.Set(maintenancePath, []byte("true"))
		time.Sleep(2 * time.Second)
		b.nodes["hv1"].stop()
		<-b.nodes["hv1"].done
		b.always(30*time.Second, "the role is left in place", func() bool { return b.seen.holder() == "hv1" })
		b.start("hv1")
		b.always(5*time.Second, "the role is resumed", func() bool { return b.seen.holder() == "hv1" })
		b.store.Set(maintenancePath, []byte("false"))
		b.settles(10 * time.Second)
		if now := b.standing(); now.gaps != before.gaps || now.starts != before.starts {
			b.t.Errorf("%+v, before %+v", now, before)
		}
	})
}

// Random faults as in TestNoStormGivesTwoPrimaries, with nodes that talk
// directly and links between them that fail as well. PVC_BUBBLE_SEEDS and
// PVC_BUBBLE_FROM as there.
func TestNoStormGivesTwoPrimariesWithTheFailsafe(t *testing.T) {
	seeds, from, gusts := uint64(25), uint64(0), 10
	if testing.Short() {
		seeds = 6
	}
	if n, err := strconv.ParseUint(os.Getenv("PVC_BUBBLE_SEEDS"), 10, 64); err == nil {
		seeds = n
	}
	if n, err := strconv.ParseUint(os.Getenv("PVC_BUBBLE_FROM"), 10, 64); err == nil {
		from = n
	}
	for seed := from; seed < from+seeds; seed++ {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(seed, 0xfa11))
			var names []cluster.NodeID
			for i := range 2 + rng.IntN(3) {
				names = append(names, cluster.NodeID(fmt.Sprintf("hv%d", i+1)))
			}
			inFabric(t, bubbleOptions{names: names, services: twoServices[:rng.IntN(3)]}, func(b *bubble, f *fabric) {
				s := &storm{b: b, rng: rng, names: slices.Clone(names), down: map[cluster.NodeID]bool{}}
				defer func() {
					if b.t.Failed() || len(b.seen.verdict()) > 0 {
						b.t.Logf("seed %d:\n%s", seed, strings.Join(s.said, "\n"))
					}
				}()
				b.eventually(8*time.Second, "one primary", func() bool { return b.primary() != "" })
				for range gusts {
					time.Sleep(s.between(5*time.Millisecond, 2*time.Second))
					switch rng.IntN(4) {
					case 0:
						s.link(f)
					case 1:
						s.loseStore(f)
					default:
						s.gust()
					}
				}
				f.net.Heal()
				s.calm()
			})
		})
	}
}

// link cuts the way from one node to another for a while.
func (s *storm) link(f *fabric) {
	from, to := s.node(), s.node()
	span := s.between(100*time.Millisecond, 5*time.Second)
	s.say("the way from %s to %s is cut for %v", from, to, span)
	f.net.Cut(string(from), string(to))
	time.AfterFunc(span, f.net.Heal)
}

// loseStore cuts several nodes off from the store, each for its own time.
func (s *storm) loseStore(*fabric) {
	spared := s.rng.IntN(2 * len(s.names))
	for i, n := range s.names {
		if i == spared {
			continue
		}
		span := s.between(2*time.Second, 12*time.Second)
		s.say("%s loses the store for %v", n, span)
		s.b.store.Partition(string(n))
		time.AfterFunc(span, func() { s.b.heal(n) })
	}
	time.Sleep(s.between(time.Second, 8*time.Second))
}
