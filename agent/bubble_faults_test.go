package agent_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
	"pvc.internal/zkhandler/zktest"
)

// purposeOf says what a request is for, by what it writes: the transactions
// carry no name on the wire. "" is none of the role's or the agent's own.
func purposeOf(o zktest.OpInfo) string {
	ops := o.Ops
	if len(ops) == 0 {
		ops = []zktest.OpInfo{o}
	}
	byPath := map[string]zktest.OpInfo{}
	lockChild := false
	for _, op := range ops {
		byPath[op.Path] = op
		lockChild = lockChild || strings.HasPrefix(op.Path, wishPath+"/")
	}
	lease, writesLease := byPath[leasePath]
	writesLease = writesLease && lease.Op != "check" && lease.Op != "get" && lease.Op != "exists"
	record, hasRecord := byPath[transitionPath]
	if writesLease {
		return leasePurpose(readLease(lease.Data), readTransition(record.Data), hasRecord && record.Op != "check", lockChild, byPath)
	}
	switch {
	case hasRecord && lockChild && lease.Op == "check":
		return "announce"
	case hasRecord && lockChild && readTransition(record.Data).State == cluster.TransitionAborted:
		return "abort_announce"
	case hasRecord && lockChild:
		return "ready"
	case o.Op == "create" && lockChild, len(o.Ops) == 1 && lockChild && ops[0].Op == "create":
		return "lock"
	case (o.Op == "delete" || len(o.Ops) == 1 && ops[0].Op == "delete") && lockChild:
		return "unlock"
	}
	for _, op := range ops {
		switch {
		case op.Op == "create" && strings.HasPrefix(op.Path, "/agent/alive/"):
			return "register"
		case op.Op == "create" && strings.HasPrefix(op.Path, "/agent/history/"):
			return "history"
		case op.Op == "set" && strings.HasSuffix(op.Path, "/keepalive"):
			return "keepalive"
		case (op.Op == "set" || op.Op == "create") && strings.HasPrefix(op.Path, "/agent/views/"):
			return "view"
		}
	}
	return ""
}

func readTransition(raw []byte) cluster.Transition {
	var t cluster.Transition
	_ = json.Unmarshal(raw, &t)
	return t
}

// leasePurpose is purposeOf for what writes the lease.
func leasePurpose(l cluster.Lease, t cluster.Transition, record, lock bool, ops map[string]zktest.OpInfo) string {
	router := ""
	for path, op := range ops {
		if strings.HasSuffix(path, "/routerstate") {
			router = string(op.Data)
		}
	}
	wish, wished := ops[wishPath]
	switch {
	case l.Holder == "":
		return "release"
	case record && lock && wished && wish.Op != "check":
		return "take"
	case record && lock:
		return "hand_over"
	case record && t.State == cluster.TransitionAborted:
		return "abort"
	case router == "primary":
		return "done"
	case record && router == "relinquish":
		return "acknowledge"
	case record && t.Phase == cluster.PhaseStart:
		return "start"
	case record && t.Phase == cluster.PhaseStop && l.N > 0:
		return "stop"
	case l.N == 0:
		return "resume"
	case wished:
		return "wish"
	case l.TTLMillis > 60_000:
		return "linger"
	case l.N == 1:
		return "anchor"
	}
	return "renew"
}

// doing matches requests of this purpose.
func doing(purpose string) func(zktest.OpInfo) bool {
	return func(o zktest.OpInfo) bool { return purposeOf(o) == purpose }
}

// on calls fn once, at the first request of this purpose by the client (empty:
// by any), when its fate is decided; fn must not call the server.
func (b *bubble) on(client cluster.NodeID, purpose string, fn func()) {
	done := false
	b.store.DropRequest(string(client), func(o zktest.OpInfo) bool {
		if !done && purposeOf(o) == purpose {
			done = true
			fn()
		}
		return false
	}).Times(-1)
}

// after calls fn once, in a goroutine, when the purpose's first request has
// been carried out; fn may do anything.
func (b *bubble) after(client cluster.NodeID, purpose string, fn func()) <-chan struct{} {
	done := make(chan struct{})
	b.on(client, purpose, func() {
		go func() {
			defer close(done)
			time.Sleep(100 * time.Microsecond)
			fn()
		}()
	})
	return done
}

// scenario brings about the writes of one purpose by one client.
type scenario struct {
	purpose string
	client  cluster.NodeID // whose write it is
	run     func(b *bubble)
	wished  cluster.NodeID // to be served, or refused with a reason; "" none
}

func switchTo2(b *bubble) { b.wish("hv2") }

// scenarios lists every purpose of the role's and the agent's writes.
func scenarios() []scenario {
	restart := func(b *bubble) {
		b.kill("hv1")
		time.Sleep(200 * time.Millisecond)
		b.start("hv1")
	}
	takeOver := func(b *bubble) { b.powerOff("hv1") }
	list := []scenario{
		{"register", "hv4", func(b *bubble) { b.start("hv4") }, ""},
		{"keepalive", "hv2", func(*bubble) {}, ""},
		{"view", "hv2", func(b *bubble) {
			b.store.Set("/config/maintenance", []byte("true"))
			time.Sleep(time.Second)
			b.store.Set("/config/maintenance", []byte("false"))
		}, ""},
		{"renew", "hv1", func(*bubble) {}, ""},
		{"take", "hv2", takeOver, ""},
		{"abort", "hv1", func(b *bubble) { b.wish("hv2"); b.after("hv1", "acknowledge", func() { b.wish("hv3") }) }, "hv3"},
		{"abort_announce", "hv2", func(b *bubble) { b.guard("hv2").setUnfit(nil, []string{"a stranger answers"}); b.wish("hv2") }, "hv2"},
		{"release", "hv1", func(b *bubble) { b.guard("hv1").endNow("the test wants it") }, ""},
		{"wish", "hv1", func(b *bubble) { b.wish("none") }, ""},
		{"wish", "hv1", func(b *bubble) { b.wish("ghost") }, "ghost"},
		{"resume", "hv1", restart, ""},
		{"linger", "hv1", func(b *bubble) {
			b.store.Set("/config/maintenance", []byte("true"))
			time.Sleep(100 * time.Millisecond)
			b.nodes["hv1"].stop()
			<-b.nodes["hv1"].done
			b.start("hv1")
			b.store.Set("/config/maintenance", []byte("false"))
		}, ""},
	}
	for _, purpose := range []string{"lock", "unlock", "announce", "ready", "anchor", "start", "done", "history"} {
		list = append(list, scenario{purpose, "hv2", switchTo2, "hv2"})
	}
	for _, purpose := range []string{"acknowledge", "stop", "hand_over"} {
		list = append(list, scenario{purpose, "hv1", switchTo2, "hv2"})
	}
	return list
}

var twoServices = []cluster.ServiceSpec{
	{Name: "dns", Kind: cluster.ServiceHook, Command: []string{"dns"}, StartTimeout: time.Second, StopTimeout: time.Second},
	{Name: "web", Kind: cluster.ServiceHook, Command: []string{"web"}, StartTimeout: time.Second, StopTimeout: time.Second},
}

func threeNodes() bubbleOptions {
	return bubbleOptions{names: []cluster.NodeID{"hv1", "hv2", "hv3"}, services: twoServices}
}

// Whatever becomes of one write, of any purpose, the cluster converges, no two
// nodes act at once, and an operator's wish is served or answered.
func TestALostWriteOfAnyPurposeIsSurvived(t *testing.T) {
	faults := map[string]func(b *bubble, client string, match func(zktest.OpInfo) bool) *zktest.Rule{
		"lost reply":   func(b *bubble, c string, m func(zktest.OpInfo) bool) *zktest.Rule { return b.store.DropReply(c, m) },
		"lost request": func(b *bubble, c string, m func(zktest.OpInfo) bool) *zktest.Rule { return b.store.DropRequest(c, m) },
		"two lost replies": func(b *bubble, c string, m func(zktest.OpInfo) bool) *zktest.Rule {
			return b.store.DropReply(c, m).Times(2)
		},
		"late by 0.3 s": func(b *bubble, c string, m func(zktest.OpInfo) bool) *zktest.Rule {
			return b.store.LateCommit(c, m, 300*time.Millisecond)
		},
		"late by 2 s": func(b *bubble, c string, m func(zktest.OpInfo) bool) *zktest.Rule {
			return b.store.LateCommit(c, m, 2*time.Second)
		},
	}
	for _, s := range scenarios() {
		for _, fault := range slices.Sorted(maps.Keys(faults)) {
			t.Run(s.purpose+" "+fault, func(t *testing.T) {
				t.Parallel()
				inBubble(t, threeNodes(), func(b *bubble) {
					b.elect("hv1")
					rule := faults[fault](b, string(s.client), doing(s.purpose))
					s.run(b)
					b.eventually(12*time.Second, "the write was hit", func() bool { return rule.Hits() > 0 })
					p := b.settles(25 * time.Second)
					if err := b.answered(s.wished, p); s.wished != "" && err != nil {
						b.t.Error(err)
					}
				})
			})
		}
	}
}

// phases are the commits of a planned switch from hv1 to hv2, in order.
var phases = []struct {
	purpose string
	by      cluster.NodeID
}{
	{"lock", "hv2"}, {"announce", "hv2"}, {"acknowledge", "hv1"}, {"ready", "hv2"}, {"stop", "hv1"}, {"hand_over", "hv1"}, {"anchor", "hv2"}, {"start", "hv2"}, {"done", "hv2"},
}

// inEachPhase runs a planned switch for each phase and victim, and strikes when
// the phase's commit has happened; the switch's own wish is answered then.
func inEachPhase(t *testing.T, victims []cluster.NodeID, strike func(b *bubble, victim cluster.NodeID)) {
	everyPhase(t, victims, strike, func(b *bubble, _, p cluster.NodeID) error { return b.answered("hv2", p) })
}

func everyPhase(t *testing.T, victims []cluster.NodeID, strike func(b *bubble, victim cluster.NodeID), served func(b *bubble, victim, primary cluster.NodeID) error) {
	for _, phase := range phases {
		for _, victim := range victims {
			t.Run(fmt.Sprintf("%s, %s", phase.purpose, victim), func(t *testing.T) {
				t.Parallel()
				inBubble(t, threeNodes(), func(b *bubble) {
					b.elect("hv1")
					struck := b.after(phase.by, phase.purpose, func() { strike(b, victim) })
					b.wish("hv2")
					b.eventually(12*time.Second, "the phase was reached", func() bool {
						select {
						case <-struck:
							return true
						default:
							return false
						}
					})
					if err := served(b, victim, b.settles(30*time.Second)); err != nil {
						b.t.Error(err)
					}
				})
			})
		}
	}
}

// Whoever asks for something else while a switch runs, in whichever phase, is
// served next: back to the holder, on to a third, nobody, or somebody unknown (I8).
func TestAWishInAnyPhaseOfASwitchIsServed(t *testing.T) {
	everyPhase(t, []cluster.NodeID{"hv1", "hv2", "hv3", cluster.NoNode, "ghost"}, func(b *bubble, wished cluster.NodeID) {
		b.wish(string(wished))
	}, func(b *bubble, wished, p cluster.NodeID) error {
		switch wished {
		case cluster.NoNode, "ghost":
			return nil // settles: there is a primary, and primary_node names it
		}
		return b.answered(wished, p)
	})
}

func TestAnExpiredSessionInAnyPhaseOfASwitchIsSurvived(t *testing.T) {
	inEachPhase(t, []cluster.NodeID{"hv1", "hv2", "hv3"}, func(b *bubble, victim cluster.NodeID) { b.store.Expire(string(victim)) })
}

func TestAPartitionInAnyPhaseOfASwitchIsSurvived(t *testing.T) {
	cuts := map[string]func(b *bubble, n string){
		"both ways":  func(b *bubble, n string) { b.store.Partition(n) },
		"to servers": func(b *bubble, n string) { b.store.OneWay(n, zktest.ToServer) },
		"to client":  func(b *bubble, n string) { b.store.OneWay(n, zktest.ToClient) },
	}
	for _, cut := range slices.Sorted(maps.Keys(cuts)) {
		for _, span := range []time.Duration{time.Second, 3 * time.Second, 8 * time.Second} {
			victims := []cluster.NodeID{"hv1", "hv2"}
			if span == 3*time.Second { // longer than the lease, shorter than the session
				victims = append(victims, "hv3")
			}
			t.Run(fmt.Sprintf("%s for %v", cut, span), func(t *testing.T) {
				inEachPhase(t, victims, func(b *bubble, victim cluster.NodeID) {
					cuts[cut](b, string(victim))
					time.Sleep(span)
					b.heal(victim)
				})
			})
		}
	}
}

// A candidate that has held the lock for its switch takes over itself when the
// holder falls silent: nobody breaks its lock, and the wish is served.
func TestACandidateWithTheLockTakesOverFromASilentHolder(t *testing.T) {
	for _, phase := range []string{"lock", "announce", "ready"} {
		t.Run(phase, func(t *testing.T) {
			t.Parallel()
			inBubble(t, threeNodes(), func(b *bubble) {
				b.elect("hv1")
				<-func() <-chan struct{} {
					struck := b.after("hv2", phase, func() { b.store.OneWay("hv1", zktest.ToClient) })
					b.wish("hv2")
					return struck
				}()
				b.eventually(5*time.Second, "hv2 is primary", func() bool { return b.primary() == "hv2" })
				b.heal("hv1")
				if p := b.settles(15 * time.Second); p != "hv2" {
					b.t.Errorf("%s is primary", p)
				}
			})
		})
	}
}
