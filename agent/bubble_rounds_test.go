package agent_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"pvc.internal/agent"
	"pvc.internal/cluster"
)

// Rounds of what nobody may be fenced for, over whole agents that talk directly:
// all lose the store for a while, one process is stopped for up to 3.5 s, one or
// all get too little of the processor. Many rounds, one after the other, are a
// cluster's life; each life ends with a node that does lose power, and is fenced.

// roundsPerLife bounds what a life's store remembers.
const roundsPerLife = 25

// turns is the clock of a process that may be stopped (SIGSTOP) or starved: its
// loops do not get beyond the reading with which their turns begin. Other
// readings are never held up: some are made under a lock, for which another
// goroutine would wait in real time, and the bubble's would stand still for ever.
type turns struct {
	cluster.Clock
	mu    sync.Mutex
	until time.Time
	held  map[string]int // turns held up, by loop
}

// heldLoops are the functions in which a turn begins: judging, keeping alive, deciding.
var heldLoops = []string{"agent.(*nodeWatch).run", "agent.(*Keepalive).turn", "agent.(*suspendWatch).slept"}

func (c *turns) Now() cluster.Instant {
	for {
		c.mu.Lock()
		wait := time.Until(c.until)
		loop := ""
		if wait > 0 {
			if loop = callingLoop(); loop != "" {
				c.held[loop]++
			}
		}
		c.mu.Unlock()
		if loop == "" {
			return c.Clock.Now()
		}
		time.Sleep(wait)
	}
}

// callingLoop is which of heldLoops reads the clock.
func callingLoop() string {
	var pcs [6]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs[:])])
	for more := true; more; {
		var f runtime.Frame
		f, more = frames.Next()
		for _, loop := range heldLoops {
			if strings.HasSuffix(f.Function, loop) {
				return loop
			}
		}
	}
	return ""
}

// stop holds the process up for that long from now.
func (c *turns) stop(span time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.until = time.Now().Add(span)
}

// life is one cluster's, through its rounds.
type life struct {
	b     *bubble
	f     *fabric
	rng   *rand.Rand
	clock map[cluster.NodeID]*turns
	asked *asked
	seed  uint64
	round int
	said  []string
}

func (l *life) say(format string, args ...any) {
	l.said = append(l.said, fmt.Sprintf("%s round %d: ", time.Now().Format("04:05.000"), l.round)+fmt.Sprintf(format, args...))
}

// upTo draws a span; short ones are as likely as long ones.
func (l *life) upTo(most time.Duration) time.Duration {
	if l.rng.IntN(2) == 0 {
		most /= 6
	}
	return time.Duration(l.rng.Int64N(int64(most)))
}

func (l *life) node() cluster.NodeID { return l.b.opts.names[l.rng.IntN(len(l.b.opts.names))] }

// outage takes the store from all.
func (l *life) outage() {
	span := 200*time.Millisecond + l.upTo(12*time.Second)
	if l.rng.IntN(12) == 0 {
		span += 20 * time.Second
	}
	fault := storeFaults[l.rng.IntN(len(storeFaults))]
	l.say("%s for %v", fault.name, span)
	fault.begin(l.b)
	time.Sleep(span)
	l.b.store.Resume()
}

// stop is SIGSTOP and SIGCONT of one daemon: its loops stand still, and so does
// what it has sent and what it was sent.
func (l *life) stop() {
	n, span := l.node(), 500*time.Millisecond+time.Duration(l.rng.Int64N(int64(3*time.Second)))
	l.say("%s is stopped for %v", n, span)
	l.clock[n].stop(span)
	l.b.store.Partition(string(n))
	l.f.part(n)
	time.Sleep(span)
	l.b.heal(n)
	l.f.net.Heal()
}

// starve gives one daemon, or all, a turn now and then only, and the machine's
// network as little.
func (l *life) starve() {
	who := l.b.opts.names
	if l.rng.IntN(2) == 0 {
		who = []cluster.NodeID{l.node()}
	}
	span, worst := time.Second+l.upTo(9*time.Second), 50*time.Millisecond+time.Duration(l.rng.Int64N(int64(750*time.Millisecond)))
	l.say("%v are starved for %v, turns late by up to %v", who, span, worst)
	for _, n := range who {
		slow := time.Duration(l.rng.Int64N(int64(worst / 4)))
		l.b.store.Delay(string(n), slow)
		for _, other := range l.b.opts.names {
			if other != n {
				l.f.net.Delay(string(n), string(other), slow)
			}
		}
	}
	for end := time.Now().Add(span); time.Now().Before(end); {
		n := who[l.rng.IntN(len(who))]
		l.clock[n].stop(time.Duration(l.rng.Int64N(int64(worst))))
		time.Sleep(time.Duration(l.rng.Int64N(int64(worst)/int64(len(who)) + 1)))
	}
	for _, n := range who {
		l.b.heal(n)
	}
	l.f.net.Heal()
}

// calm reports that all have written since then, and that all is well again as
// all of them see it.
func (l *life) calm(since time.Time) bool {
	for _, n := range l.b.opts.names {
		var wrote int64 // in whole seconds, rounded down
		if _, err := fmt.Sscan(l.b.read("/nodes/"+string(n)+"/keepalive"), &wrote); err != nil || wrote <= since.Unix() {
			return false
		}
		if l.b.opts.mode(n) == cluster.Hypervisor {
			continue // it sees nobody but itself
		}
		v := l.b.viewOf(n)
		if v.Blind != "" || len(v.Nodes) != len(l.b.opts.names)-1 {
			return false
		}
		for _, seen := range v.Nodes {
			if seen.Liveness != cluster.LiveUp.String() {
				return false
			}
		}
	}
	return l.b.primary() != ""
}

// settle waits for the calm after a round.
func (l *life) settle() {
	since := time.Now()
	for end := since.Add(time.Minute); !l.calm(since); time.Sleep(100 * time.Millisecond) {
		l.unharmed()
		if time.Now().After(end) {
			l.b.t.Fatalf("not calm within a minute\n%s", l.b.describe())
		}
	}
	l.unharmed()
}

func (l *life) unharmed() {
	if fenced := l.asked.all(); fenced != "" {
		l.b.t.Fatalf("in round %d of seed %d, in which everybody lives: %s", l.round, l.seed, fenced)
	}
}

// run is one life. One fault may follow another at once, where one of the two is
// the store's: two stops in a row are as good as one that is too long.
func (l *life) run(rounds int) {
	faults := []func(){l.outage, l.stop, l.starve}
	l.settle()
	for l.round = 1; l.round <= rounds; l.round++ {
		time.Sleep(l.upTo(2 * time.Second))
		kind := l.rng.IntN(len(faults))
		faults[kind]()
		if l.rng.IntN(4) == 0 {
			if l.round++; l.round <= rounds {
				time.Sleep(l.upTo(time.Second))
				if kind == 0 {
					kind = 1 + l.rng.IntN(2)
				} else {
					kind = 0
				}
				faults[kind]()
			}
		}
		l.settle()
	}
	dead := l.node()
	l.say("%s loses power", dead)
	l.b.powerOff(dead)
	l.b.eventually(2*l.b.timing.SuspectAfter()+2*l.b.timing.SessionTimeout, string(dead)+", which has lost power, is fenced", func() bool {
		return strings.HasSuffix(l.asked.all(), " fences "+string(dead))
	})
	if l.b.read("/agent/alive/"+string(dead)) == "" {
		l.b.t.Errorf("%s is fenced for its session's end, not for what its peers say: the rounds show less than they seem to", dead)
	}
}

func runLife(t *testing.T, seed uint64, rounds int) {
	names := []cluster.NodeID{"hv1", "hv2", "hv3"}
	if seed%2 == 0 {
		names = append(names, "hv4")
	}
	o, asked := withFencers(names...)
	if seed%2 == 0 {
		o.hypervisors = names[3:]
	}
	tune, clocks := o.tune, map[cluster.NodeID]*turns{}
	o.tune = func(c *agent.Config, d *agent.Deps) {
		tune(c, d)
		clocks[c.Node] = &turns{Clock: d.Clock, held: map[string]int{}}
		d.Clock, c.Peer = clocks[c.Node], address(c.Node) // so that it is probed
	}
	inFabric(t, o, func(b *bubble, f *fabric) {
		l := &life{b: b, f: f, rng: rand.New(rand.NewPCG(seed, 0x20d5)), clock: clocks, asked: asked, seed: seed}
		defer func() {
			if b.t.Failed() || os.Getenv("PVC_BUBBLE_LOG") != "" {
				b.t.Logf("PVC_BUBBLE_FROM=%d PVC_BUBBLE_ROUNDS=%d plays it again:\n%s", seed, rounds, strings.Join(l.said, "\n"))
			}
		}()
		l.run(rounds)
		for _, loop := range heldLoops {
			held := 0
			for _, c := range clocks {
				held += c.held[loop]
			}
			if held == 0 {
				b.t.Errorf("no turn of %s was ever held up: the rounds show nothing", loop)
			}
		}
	})
}

// Nobody is fenced while all of them live, whatever of the three befalls them.
//
// PVC_BUBBLE_ROUNDS=n plays n rounds (default 500), PVC_BUBBLE_FROM=n begins with
// that seed; a failure names its seed and round.
func TestNoRoundFencesTheLiving(t *testing.T) {
	number := func(name string, otherwise uint64) uint64 {
		if v, err := strconv.ParseUint(os.Getenv(name), 10, 64); err == nil {
			return v
		}
		return otherwise
	}
	rounds, seed := number("PVC_BUBBLE_ROUNDS", 500), number("PVC_BUBBLE_FROM", 1)
	if testing.Short() {
		rounds = min(rounds, roundsPerLife)
	}
	for ; rounds > 0; seed++ {
		n, seed := min(rounds, roundsPerLife), seed
		rounds -= n
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			t.Parallel()
			runLife(t, seed, int(n))
		})
	}
}

// A fence that an earlier primary left where no order was out waits like a new
// verdict when half of the nodes were silent and some have returned: the node
// may be the next (I6). Then it is carried on.
func TestAFenceLeftBehindWaitsForWhoReturns(t *testing.T) {
	t.Parallel()
	o, asked := withFencers("hv1", "hv2", "hv3", "hv4")
	inBubble(t, o, func(b *bubble) {
		b.elect("hv1")
		sees := func(n cluster.NodeID, as cluster.Liveness) func() bool {
			return func() bool { return b.viewOf("hv1").Blind == "" && b.viewOf("hv1").Nodes[n].Liveness == as.String() }
		}
		b.eventually(20*time.Second, "hv1 judges", sees("hv3", cluster.LiveUp))
		b.leaveFence("hv3", cluster.FenceClaimed)
		b.powerOff("hv3")
		b.store.Partition("hv4")
		b.eventually(3*b.timing.SessionTimeout, "hv3 is dead", sees("hv3", cluster.LiveDead))
		b.eventually(3*b.timing.SessionTimeout, "so is hv4", sees("hv4", cluster.LiveDead))
		b.heal("hv4")
		b.eventually(3*b.timing.SessionTimeout, "hv4 is back", sees("hv4", cluster.LiveUp))
		b.always(b.timing.SuspectAfter()/2, "hv3 may be the next", func() bool { return asked.all() == "" })
		b.eventually(2*b.timing.SuspectAfter(), "its fence is carried on", func() bool { return asked.all() == "hv1 resumes hv3" })
	})
}
