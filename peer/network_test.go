package peer_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
	"pvc.internal/peer"
)

// The deadlines of a probe in the profiles fast and lan.
var probeLimits = []time.Duration{75 * time.Millisecond, 300 * time.Millisecond}

// A connection that was kept warm and died, in each way it can, must not make
// a live peer look dead.
func TestAStaleConnectionIsNotADeadPeer(t *testing.T) {
	for name, kill := range map[string]func(w *world, b *member){
		"reset": func(w *world, b *member) { w.net.Reset("hv1", "hv2") },
		"forgotten by a firewall": func(w *world, b *member) {
			w.net.Forget("hv1", "hv2")
		},
		"the peer was restarted": func(w *world, b *member) { b.end(); w.start(b) },
		"the peer's power was cycled": func(w *world, b *member) {
			w.net.PowerOff("hv2")
			b.end()
			w.net.PowerOn("hv2")
			w.start(b)
		},
		"idle for longer than the server keeps it": func(w *world, b *member) { time.Sleep(2 * time.Minute) },
	} {
		for _, limit := range probeLimits {
			t.Run(fmt.Sprintf("%s/%v", name, limit), func(t *testing.T) {
				inBubble(t, func(t *testing.T, w *world) {
					a, b := w.join("hv1"), w.join("hv2")
					w.net.Delay("hv1", "hv2", time.Millisecond)
					w.net.Delay("hv2", "hv1", time.Millisecond)
					mustAsk(t, a, b, limit)
					kill(w, b)
					mustAsk(t, a, b, limit)
					if took := mustAsk(t, a, b, limit); took > 3*time.Millisecond {
						t.Errorf("the next question took %v: the dead connection is still there", took)
					}
					leave(a, b)
				})
			})
		}
	}
}

// A slow answer on a warm connection counts even after it was doubted.
func TestASlowAnswerOnAWarmConnectionCounts(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		a, b := w.join("hv1"), w.join("hv2")
		var asked atomic.Int32
		b.server.Handle("slow", func(ctx context.Context, _ cluster.NodeID, _ []byte) ([]byte, error) {
			asked.Add(1)
			time.Sleep(60 * time.Millisecond)
			return []byte("late"), nil
		})
		mustAsk(t, a, b, time.Second)
		w.net.Delay("hv1", "hv2", 5*time.Millisecond)
		ctx, cancel := context.WithTimeout(t.Context(), 75*time.Millisecond)
		defer cancel()
		answer, err := a.client.Ask(ctx, "hv2", b.addr, "slow", nil)
		if err != nil || string(answer) != "late" {
			t.Errorf("%q, %v", answer, err)
		}
		time.Sleep(time.Second)
		if n := asked.Load(); n > 2 {
			t.Errorf("the handler was asked %d times", n)
		}
		leave(a, b)
	})
}

// Each direction cut alone: the question fails in its time, warm or fresh, and
// works again after the cut.
func TestOneWayCuts(t *testing.T) {
	for _, limit := range probeLimits {
		for _, warm := range []bool{false, true} {
			for _, way := range [][2]string{{"hv1", "hv2"}, {"hv2", "hv1"}} {
				t.Run(fmt.Sprintf("%v/warm=%v/%s to %s", limit, warm, way[0], way[1]), func(t *testing.T) {
					inBubble(t, func(t *testing.T, w *world) {
						a, b := w.join("hv1"), w.join("hv2")
						if warm {
							mustAsk(t, a, b, limit)
						}
						w.net.Cut(way[0], way[1])
						e, took := mustFail(t, a, b, limit, cluster.ErrDeadline)
						if took < limit || took > limit+time.Millisecond || !e.Silence() {
							t.Errorf("after %v: %v, silence %v", took, e, e.Silence())
						}
						w.net.Heal()
						mustAsk(t, a, b, limit)
						leave(a, b)
					})
				})
			}
		}
	}
}

func TestLossDelaysAndKillsNobody(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		a, b := w.join("hv1"), w.join("hv2")
		w.net.Lose("hv1", "hv2", 5, 200*time.Millisecond)
		w.net.Lose("hv2", "hv1", 7, 200*time.Millisecond)
		for range 50 {
			mustAsk(t, a, b, time.Second)
		}
		leave(a, b)
	})
}

// probed is a prober over the world.
func (w *world) probed(m *member, k time.Duration, targets ...*member) (*peer.Prober, func()) {
	w.t.Helper()
	p := peer.NewProber(peer.ProberConfig{Self: m.name, Interval: k, OwnSide: func(string) error { return nil }}, m.client, w.clock, zap.NewNop())
	p.SetTargets(targetsOf(targets...))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); p.Run(ctx) }()
	return p, func() { cancel(); <-done }
}

func targetsOf(all ...*member) []peer.Target {
	var list []peer.Target
	for _, m := range all {
		list = append(list, peer.Target{Node: m.name, Addr: m.addr})
	}
	return list
}

func (w *world) wantAnswers(p *peer.Prober, want map[cluster.NodeID]cluster.ProbeAnswer) {
	w.t.Helper()
	synctest.Wait()
	if got := p.Answers(); !maps.Equal(got, want) {
		w.t.Errorf("answers %v, not %v: %+v", got, want, p.Results())
	}
}

type answers = map[cluster.NodeID]cluster.ProbeAnswer

const (
	answered = cluster.ProbeAnswered
	silent   = cluster.ProbeSilent
	unknown  = cluster.ProbeUnknown
)

func TestTheProberTellsSilenceFromWhatItCannotKnow(t *testing.T) {
	const k = time.Second
	inBubble(t, func(t *testing.T, w *world) {
		a, b, c, d := w.join("hv1"), w.join("hv2"), w.join("hv3"), w.join("hv4")
		p, stop := w.probed(a, k, a, b, c, d) // never itself
		time.Sleep(2 * k)
		w.wantAnswers(p, answers{"hv2": answered, "hv3": answered, "hv4": answered})
		if r := p.Results()["hv2"]; r.Status.Incarnation != "boot.1" || r.Status.Store.Acknowledged != 42*time.Millisecond {
			t.Errorf("%+v", r)
		}

		w.net.Cut("hv2", "hv1") // its answers are lost
		w.net.PowerOff("hv3")
		time.Sleep(2 * k)
		w.wantAnswers(p, answers{"hv2": silent, "hv3": silent, "hv4": answered})

		w.net.Heal()
		c.end()
		w.net.PowerOn("hv3") // its port is closed: the daemon is not there
		time.Sleep(2 * k)
		w.wantAnswers(p, answers{"hv2": answered, "hv3": silent, "hv4": answered})

		w.start(c)
		w.net.Cut("hv1", "hv4")
		time.Sleep(2 * k)
		w.wantAnswers(p, answers{"hv2": answered, "hv3": answered, "hv4": silent})

		p.SetTargets(targetsOf(a, b))
		w.wantAnswers(p, answers{"hv2": answered})
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if n := w.net.Connections("hv1", "hv3"); n != 0 {
			t.Errorf("%d connections to a node that is probed no more", n)
		}
		stop()
		time.Sleep(2*k + time.Millisecond) // nobody probes any more: what was known grows old
		w.wantAnswers(p, answers{"hv2": unknown})
		leave(a, b, c, d)
	})
}

// This host's own faults are never held against a node.
func TestOwnFaultsAreUnknown(t *testing.T) {
	const k = time.Second
	t.Run("no route", func(t *testing.T) {
		inBubble(t, func(t *testing.T, w *world) {
			a, b := w.join("hv1"), w.join("hv2")
			a.client = peer.NewClient(a.id, func(context.Context, string, string) (net.Conn, error) {
				return nil, &net.OpError{Op: "dial", Err: syscall.ENETUNREACH}
			})
			p, stop := w.probed(a, k, b)
			time.Sleep(2 * k)
			w.wantAnswers(p, answers{"hv2": unknown})
			stop()
			leave(a, b)
		})
	})
	t.Run("own certificate expired", func(t *testing.T) {
		inBubble(t, func(t *testing.T, w *world) {
			a, b := w.join("hv1"), w.join("hv2")
			time.Sleep(398 * 24 * time.Hour)
			p, stop := w.probed(a, k, b)
			time.Sleep(2 * k)
			w.wantAnswers(p, answers{"hv2": unknown})
			wants(t, p.Results()["hv2"].Err.Error(), []string{"spiffe://demo/node/hv1", "expired on", "pvc pki renew hv1", "node.pem"})
			stop()
			leave(a, b)
		})
	})
	t.Run("own interface down", func(t *testing.T) {
		inBubble(t, func(t *testing.T, w *world) {
			a, b := w.join("hv1"), w.join("hv2")
			w.net.Part("hv1", "hv2")
			p := peer.NewProber(peer.ProberConfig{Self: "hv1", Interval: k, OwnSide: func(string) error { return errors.New("eth0 has no carrier") }},
				a.client, w.clock, zap.NewNop())
			p.SetTargets(targetsOf(b))
			ctx, cancel := context.WithTimeout(t.Context(), 2*k)
			defer cancel()
			p.Run(ctx)
			w.wantAnswers(p, answers{"hv2": unknown})
			wants(t, p.Results()["hv2"].Err.Error(), []string{"no carrier"})
			leave(a, b)
		})
	})
	t.Run("stopped while it waited", func(t *testing.T) {
		inBubble(t, func(t *testing.T, w *world) {
			a, b := w.join("hv1"), w.join("hv2")
			w.net.Part("hv1", "hv2")
			p, stop := w.probed(a, k, b)
			time.Sleep(k + 100*time.Millisecond) // in the second probe
			w.clock.jump.Add(int64(time.Second)) // SIGSTOP, or suspend: CLOCK_BOOTTIME went on
			time.Sleep(300 * time.Millisecond)
			w.wantAnswers(p, answers{"hv2": unknown})
			wants(t, p.Results()["hv2"].Err.Error(), []string{"was late itself"})
			stop()
			leave(a, b)
		})
	})
	t.Run("another node answers there", func(t *testing.T) {
		inBubble(t, func(t *testing.T, w *world) {
			a, b := w.join("hv1"), w.join("hv2")
			p, stop := w.probed(a, k, &member{name: "hv3", addr: b.addr})
			time.Sleep(2 * k)
			w.wantAnswers(p, answers{"hv3": unknown})
			stop()
			leave(a, b)
		})
	})
}

// Probes are spread over the interval, one at a time to a node, and end with it.
func TestProbesAreStaggeredAndSingle(t *testing.T) {
	const k = time.Second
	inBubble(t, func(t *testing.T, w *world) {
		a := w.join("hv1")
		var sent []time.Duration
		began := time.Now()
		var under, most atomic.Int32
		a.client = peer.NewClient(a.id, func(ctx context.Context, _, addr string) (net.Conn, error) {
			if strings.HasPrefix(addr, "hv2") {
				sent = append(sent, time.Since(began))
			}
			most.Store(max(most.Load(), under.Add(1)))
			defer under.Add(-1)
			<-ctx.Done()
			return nil, ctx.Err()
		})
		p, stop := w.probed(a, k, &member{name: "hv2", addr: "hv2:1"}, &member{name: "hv3", addr: "hv3:1"}, &member{name: "hv4", addr: "hv4:1"})
		time.Sleep(10*k - time.Millisecond)
		synctest.Wait()
		if len(sent) != 10 {
			t.Errorf("%d probes of a node in ten intervals, at %v", len(sent), sent)
		}
		if most.Load() != 1 { // a third of K apart, each for at most 0.3 K
			t.Errorf("%d probes at once", most.Load())
		}
		began = time.Now()
		stop()
		if took := time.Since(began); took > k*3/10 {
			t.Errorf("the end took %v", took)
		}
		_ = p
		leave(a)
	})
}

func TestCombine(t *testing.T) {
	for _, c := range []struct {
		want cluster.ProbeAnswer
		of   []cluster.ProbeAnswer
	}{
		{unknown, nil},
		{silent, []cluster.ProbeAnswer{silent, silent}},
		{unknown, []cluster.ProbeAnswer{silent, unknown}},
		{answered, []cluster.ProbeAnswer{silent, unknown, answered}},
	} {
		if got := peer.Combine(c.of...); got != c.want {
			t.Errorf("%v: %v", c.of, got)
		}
	}
}
