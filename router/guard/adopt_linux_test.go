package guard

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/mdlayher/packet"
	"go.uber.org/zap"

	"pvc.internal/cluster"
	"pvc.internal/router"
)

// announced hears, on the peer's side, which addresses are announced by
// somebody else until quiet has passed without one.
type announced struct {
	t    *testing.T
	conn *packet.Conn
}

func (b *bed) hear(t *testing.T) *announced {
	a := &announced{t: t}
	inNamespace(t, b.peer, func() {
		ifi, err := net.InterfaceByName("peer0")
		if err == nil {
			a.conn, err = packet.Listen(ifi, packet.Raw, etherAll, nil)
		}
		if err != nil {
			t.Error(err)
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	t.Cleanup(func() { a.conn.Close() })
	return a
}

// within counts the claims of each floating address.
func (a *announced) within(d time.Duration, enough int) map[netip.Addr]int {
	a.t.Helper()
	heard := map[netip.Addr]int{}
	buf := make([]byte, 2048)
	_ = a.conn.SetReadDeadline(time.Now().Add(d))
	for len(heard) < enough {
		n, _, err := a.conn.ReadFrom(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			a.t.Fatal(err)
		}
		for _, f := range all {
			if _, ok := router.AnswerTo(buf[:n], f.Prefix.Addr()); ok {
				heard[f.Prefix.Addr()]++
			}
		}
	}
	return heard
}

// TestASuccessorAnnouncesWhatItHasAdopted: nobody presents the addresses again
// where only the guard was restarted, and their announcements go on.
func TestASuccessorAnnouncesWhatItHasAdopted(t *testing.T) {
	b := newBed(t, true)
	b.begin(1, time.Minute, all...)
	b.kill()
	h := b.hear(t)
	b.start()
	b.mustExtend(1, time.Minute)
	if heard := h.within(2*time.Second, len(all)); len(heard) != len(all) {
		t.Errorf("announced by the successor: %v, want all of %v", heard, all)
	}
	// It goes on with the times of old addresses, not with the burst of new ones.
	if heard := h.within(300*time.Millisecond, len(all)); len(heard) > len(all)-1 {
		t.Errorf("announced a second time at once: %v", heard)
	}
}

// TestASuccessorAnnouncesNothingThatIsNotInForce (I1, I3): neither behind a gate
// that was flushed meanwhile, nor past the deadline; and it opens and adds nothing.
func TestASuccessorAnnouncesNothingThatIsNotInForce(t *testing.T) {
	for name, lasts := range map[string]time.Duration{"gate flushed": time.Minute, "deadline passed": 50 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, true)
			b.begin(1, time.Minute, all...)
			deadline := b.mustExtend(1, lasts)
			b.kill()
			if lasts == time.Minute {
				if out, err := exec.Command("nsenter", "--net=/run/netns/"+b.host, "nft", "flush", "ruleset").CombinedOutput(); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
			} else {
				b.eventually(time.Second, "the deadline passes", func() bool { return clock.Now() > deadline })
			}
			h := b.hear(t)
			b.start()
			if heard := h.within(700*time.Millisecond, 1); len(heard) != 0 {
				t.Errorf("announced: %v", heard)
			}
			if n := b.kernelHas(all...) + b.opened(); n != 0 {
				t.Errorf("%d addresses or elements", n)
			}
			if lasts == time.Minute {
				b.mustExtend(1, time.Minute) // sent after the loss: they return, announced as new ones
				if heard := h.within(time.Second, len(all)); len(heard) != len(all) {
					t.Errorf("announced after the renewal: %v", heard)
				}
			}
		})
	}
}

// TestTheAnnouncementsOfAnAdoptedRoleAreOneNowAndThenEachHalfMinute looks at the
// times, on an interface without neighbours.
func TestTheAnnouncementsOfAnAdoptedRoleAreOneNowAndThenEachHalfMinute(t *testing.T) {
	may := func(netip.Addr) bool { return true }
	a := newAnnouncer(zap.NewNop(), may, newDefender(zap.NewNop(), may, func(string, string) {}, func(cluster.GuardEvent) {}))
	here := []cluster.FloatingAddress{{Name: "x", Prefix: v4a.Prefix, Interface: "lo"}}
	due := func() time.Duration {
		a.mu.Lock()
		defer a.mu.Unlock()
		return time.Until(a.due())
	}
	a.keep(here)
	if d := due(); d > 0 || len(a.kick) != 1 {
		t.Errorf("the first is due in %v, want now, and run woken", d)
	}
	a.step++ // as run does
	if d := due(); d < 29*time.Second || d > announceEach {
		t.Errorf("the second is due in %v, want %v", d, announceEach)
	}
	a.keep(here)
	if d := due(); d < 29*time.Second {
		t.Errorf("a further tick moved it to %v", d)
	}
	a.start(here)
	a.keep(here)
	if d := due(); d > announceAfter[1] {
		t.Errorf("presented anew, the second of the burst is due in %v", d)
	}
	a.keep(nil)
	if len(a.held) != 0 {
		t.Error("announced although nothing is held")
	}
}

// TestTheEndOfARoleAllocatesNothing holds the path from the alarm to the last
// netlink message, of a role without services. What follows, the verification
// and its log, is replaced here.
func TestTheEndOfARoleAllocatesNothing(t *testing.T) {
	inProcess(t, clock, func(g *Guard, b *bed) {
		if !holding(t, g, 1, time.Minute) {
			return
		}
		g.mu.Lock()
		first := g.roles[cluster.OwnerPrimary]
		g.mu.Unlock()
		const runs = 50
		var ready []*role
		for range runs + 1 {
			r := g.newRole(cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: 1, Deadline: 1})
			r.end.finish = g.work.Done
			ready = append(ready, r)
		}
		ends := testing.AllocsPerRun(runs, func() {
			g.mu.Lock()
			g.roles[cluster.OwnerPrimary], ready = ready[0], ready[1:]
			g.mu.Unlock()
			g.expire()
			g.work.Wait()
		})
		if ends != 0 {
			t.Errorf("the end of a role allocates %v times", ends)
		}
		if len(ready) != 0 || g.roles[cluster.OwnerPrimary] != nil {
			t.Errorf("%d of the roles were not ended", len(ready))
		}
		if n := b.opened() + b.kernelHas(all...); n != 0 {
			t.Errorf("%d addresses or elements after the end", n)
		}
		g.mu.Lock()
		delete(g.ending, cluster.OwnerPrimary)
		g.markEnded(first, "test")
		g.mu.Unlock()
		g.stopEffects(first.end)
		g.work.Wait()
	})
}
