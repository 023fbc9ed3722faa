package agent_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
	"pvc.internal/zkhandler/zktest"
)

// storm plays random faults over a living cluster.
type storm struct {
	b     *bubble
	rng   *rand.Rand
	names []cluster.NodeID
	down  map[cluster.NodeID]bool
	said  []string
}

func (s *storm) say(format string, args ...any) {
	s.said = append(s.said, time.Now().Format("04:05.000 ")+fmt.Sprintf(format, args...))
}

func (s *storm) node() cluster.NodeID { return s.names[s.rng.IntN(len(s.names))] }

// between draws a span; short ones are as likely as long ones.
func (s *storm) between(least, most time.Duration) time.Duration {
	span := most - least
	if s.rng.IntN(2) == 0 {
		span /= 8
	}
	return least + time.Duration(s.rng.Int64N(int64(span)))
}

var stormPurposes = []string{
	"register", "keepalive", "renew", "lock", "unlock", "announce", "ready", "acknowledge", "stop", "hand_over",
	"anchor", "done", "abort", "abort_announce", "take", "release", "wish", "resume", "linger", "history", "view",
}

// gust does one thing.
func (s *storm) gust() {
	n := s.node()
	kinds := []struct {
		weight int
		do     func(cluster.NodeID)
	}{
		{30, s.wish}, {12, s.crash}, {5, s.power}, {5, s.terminate}, {12, s.cut}, {5, s.expire}, {25, s.lose},
		{5, s.store}, {6, s.server}, {5, s.slow}, {3, s.guardEnds}, {3, s.maintain},
	}
	total := 0
	for _, k := range kinds {
		total += k.weight
	}
	for pick := s.rng.IntN(total); ; {
		if pick -= kinds[0].weight; pick < 0 {
			kinds[0].do(n)
			return
		}
		kinds = kinds[1:]
	}
}

func (s *storm) wish(n cluster.NodeID) {
	v := string(n)
	switch s.rng.IntN(12) {
	case 0:
		v = cluster.NoNode
	case 1:
		v = "ghost"
	}
	s.say("wish %s", v)
	s.b.wish(v)
}

// back starts the node's daemon again later, in the storm's own sequence.
func (s *storm) back(n cluster.NodeID, pause time.Duration) {
	s.down[n] = true
	time.Sleep(pause)
	s.say("start %s", n)
	s.b.start(n)
	delete(s.down, n)
}

func (s *storm) crash(n cluster.NodeID) {
	s.say("kill %s", n)
	s.b.kill(n)
	s.back(n, s.between(50*time.Millisecond, 9*time.Second))
}

func (s *storm) power(n cluster.NodeID) {
	s.say("power off %s", n)
	s.b.powerOff(n)
	s.back(n, s.between(500*time.Millisecond, 12*time.Second))
}

func (s *storm) terminate(n cluster.NodeID) {
	s.say("stop %s", n)
	node := s.b.nodes[n]
	node.stop()
	select {
	case <-node.done:
	case <-time.After(s.between(time.Second, 10*time.Second)):
		s.say("kill %s in its shutdown", n)
		s.b.kill(n)
	}
	s.back(n, s.between(10*time.Millisecond, 4*time.Second))
}

func (s *storm) cut(n cluster.NodeID) {
	d := []zktest.Direction{zktest.ToServer, zktest.ToClient, zktest.ToServer | zktest.ToClient}[s.rng.IntN(3)]
	span := s.between(100*time.Millisecond, 9*time.Second)
	s.say("cut %s (%d) for %v", n, d, span)
	s.b.store.OneWay(string(n), d)
	time.AfterFunc(span, func() { s.b.heal(n) })
}

func (s *storm) expire(n cluster.NodeID) {
	s.say("expire %s", n)
	s.b.store.Expire(string(n))
}

func (s *storm) lose(n cluster.NodeID) {
	purpose := stormPurposes[s.rng.IntN(len(stormPurposes))]
	client, times := string(n), 1+s.rng.IntN(3)
	if s.rng.IntN(2) == 0 {
		client = ""
	}
	match, what := doing(purpose), ""
	var rule *zktest.Rule
	switch s.rng.IntN(3) {
	case 0:
		what, rule = "reply", s.b.store.DropReply(client, match)
	case 1:
		what, rule = "request", s.b.store.DropRequest(client, match)
	default:
		late := s.between(10*time.Millisecond, 4*time.Second)
		what, rule = fmt.Sprintf("timeliness by %v", late), s.b.store.LateCommit(client, match, late)
	}
	rule.Times(times)
	s.say("%s of %q loses its %s ×%d", purpose, client, what, times)
	time.AfterFunc(15*time.Second, func() { rule.Times(0) })
}

func (s *storm) store(cluster.NodeID) {
	span := s.between(100*time.Millisecond, 12*time.Second)
	if s.rng.IntN(2) == 0 {
		s.say("stall for %v", span)
		s.b.store.Stall()
	} else {
		s.say("outage for %v", span)
		s.b.store.Outage()
	}
	time.Sleep(span)
	s.b.store.Resume()
}

func (s *storm) server(cluster.NodeID) {
	servers := s.b.store.Servers()
	addr := servers[s.rng.IntN(len(servers))]
	faults := []struct {
		name  string
		begin func(string)
	}{{"down", s.b.store.ServerDown}, {"hangs", s.b.store.ServerHang}, {"lags", s.b.store.LagFollower}, {"is cut off", s.b.store.CutFollower}}
	f := faults[s.rng.IntN(len(faults))]
	span := s.between(200*time.Millisecond, 8*time.Second)
	s.say("server %s %s for %v", addr, f.name, span)
	f.begin(addr)
	time.Sleep(span)
	s.b.store.ServerUp(addr)
}

func (s *storm) slow(n cluster.NodeID) {
	d := s.between(5*time.Millisecond, 250*time.Millisecond)
	s.say("delay %s by %v", n, d)
	s.b.store.Delay(string(n), d)
}

func (s *storm) guardEnds(n cluster.NodeID) {
	s.say("the guard of %s ends the role", n)
	s.b.guard(n).endNow("storm")
}

func (s *storm) maintain(cluster.NodeID) {
	on := s.rng.IntN(2) == 0
	s.say("maintenance %v", on)
	s.b.store.Set(maintenancePath, []byte(strconv.FormatBool(on)))
	if on {
		time.AfterFunc(s.between(time.Second, 20*time.Second), func() { s.b.store.Set(maintenancePath, []byte("false")) })
	}
}

// calm ends every fault and has the cluster prove that it still works (I7).
func (s *storm) calm() {
	s.say("calm")
	time.Sleep(21 * time.Second) // whatever ends or heals by itself
	s.b.store.Set(maintenancePath, []byte("false"))
	for _, n := range s.names {
		s.b.heal(n)
		if s.b.nodes[n].ended() {
			s.b.t.Fatalf("the daemon of %s has ended by itself: %v", n, s.b.nodes[n].err)
		}
	}
	s.b.settles(30 * time.Second)
	for _, n := range s.names {
		s.b.wish(string(n))
		s.b.eventually(5*time.Second, "the role goes to "+string(n)+" after the storm", func() bool { return s.b.converged() == n })
	}
}

func runStorm(t *testing.T, seed uint64, gusts int) {
	rng := rand.New(rand.NewPCG(seed, 0x5eed))
	var names []cluster.NodeID
	for i := range 2 + rng.IntN(3) {
		names = append(names, cluster.NodeID(fmt.Sprintf("hv%d", i+1)))
	}
	o := bubbleOptions{names: names}
	if rng.IntN(2) == 0 {
		o.services = twoServices
	}
	inBubble(t, o, func(b *bubble) {
		s := &storm{b: b, rng: rng, names: slices.Clone(names), down: map[cluster.NodeID]bool{}}
		defer func() {
			if b.t.Failed() || len(b.seen.verdict()) > 0 {
				b.t.Logf("seed %d:\n%s", seed, strings.Join(s.said, "\n"))
			}
		}()
		b.eventually(8*time.Second, "one primary", func() bool { return b.primary() != "" })
		for range gusts {
			time.Sleep(s.between(5*time.Millisecond, 2*time.Second))
			s.gust()
		}
		s.calm()
	})
}

// Random faults of every kind over live switches: never two primaries, never a
// smaller epoch, never a holder replaced before its time; and once it is calm
// the cluster serves every wish again.
//
// PVC_BUBBLE_SEEDS=n runs n seeds (default 60), PVC_BUBBLE_FROM=n begins there,
// PVC_BUBBLE_GUSTS=n changes the length of each; a failure names its seed.
func TestNoStormGivesTwoPrimaries(t *testing.T) {
	number := func(name string, otherwise uint64) uint64 {
		if v, err := strconv.ParseUint(os.Getenv(name), 10, 64); err == nil {
			return v
		}
		return otherwise
	}
	seeds, from, gusts := number("PVC_BUBBLE_SEEDS", 60), number("PVC_BUBBLE_FROM", 1), number("PVC_BUBBLE_GUSTS", 10)
	if testing.Short() {
		seeds = min(seeds, 10)
	}
	for seed := from; seed < from+seeds; seed++ {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			t.Parallel()
			runStorm(t, seed, int(gusts))
		})
	}
}
