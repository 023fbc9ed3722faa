package peer_test

import (
	"context"
	"crypto/x509"
	"errors"
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

// settle is one node that runs whole, until end is called.
func (w *world) settle(n cluster.NodeID, change func(*peer.NodeConfig), spoil ...func(*x509.Certificate)) (node *peer.Node, end func()) {
	w.t.Helper()
	id, err := peer.LoadIdentity(w.ca.Files(w.t, n, time.Now(), spoil...), "demo", n, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	c := peer.NodeConfig{
		Self: n, Interval: time.Second,
		Listen:  func(context.Context) (net.Listener, error) { return w.net.Listen(string(n), string(n)+":7371") },
		Dial:    w.net.Dial(string(n)),
		OwnSide: func(string) error { return nil },
		Status:  func() peer.Status { return peer.Status{Node: n} },
		Address: func(to cluster.NodeID) string { return string(to) + ":7371" },
	}
	if change != nil {
		change(&c)
	}
	node = peer.NewNode(c, id, w.clock, zap.NewNop())
	node.Handle("echo", func(_ context.Context, from cluster.NodeID, body []byte) ([]byte, error) {
		return append([]byte(string(from)+":"), body...), nil
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); node.Run(ctx) }()
	synctest.Wait()
	return node, func() { cancel(); <-done }
}

func TestANodeAnswersAsksAndProbes(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		a, endA := w.settle("a", func(c *peer.NodeConfig) {
			c.Address = func(to cluster.NodeID) string { return map[cluster.NodeID]string{"b": "b:7371"}[to] }
		})
		_, endB := w.settle("b", nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if answer, err := a.Ask(ctx, "b", "echo", []byte("hello")); err != nil || string(answer) != "a:hello" {
			t.Errorf("b answered %q, %v", answer, err)
		}
		_, err := a.Ask(ctx, "c", "echo", nil)
		var e *peer.Error
		if !errors.As(err, &e) || e.Silence() || !strings.Contains(err.Error(), "has not published where it answers") {
			t.Errorf("a node without an address: %v, wanted an error that is not held against it", err)
		}
		a.Watch(map[cluster.NodeID]string{"b": "b:7371", "d": ""})
		time.Sleep(1500 * time.Millisecond)
		if got := a.Probes(); len(got) != 1 || got["b"] != cluster.ProbeAnswered {
			t.Errorf("probes %v, want that b answers", got)
		}
		endB()
		time.Sleep(2 * time.Second)
		if got := a.Probes(); got["b"] != cluster.ProbeSilent {
			t.Errorf("probes %v, want that b is silent after it has ended", got)
		}
		a.Watch(nil)
		if got := a.Probes(); len(got) != 0 || len(a.Faults()) != 0 {
			t.Errorf("probes %v of nobody, faults %q", got, a.Faults())
		}
		endA()
	})
}

// A node whose address is not there yet, or is somebody else's, says so and
// answers as soon as it can.
func TestANodeThatCannotListenSaysSoAndTriesOn(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		var fails atomic.Bool
		fails.Store(true)
		b, endB := w.settle("b", func(c *peer.NodeConfig) {
			listen := c.Listen
			c.Listen = func(ctx context.Context) (net.Listener, error) {
				if fails.Load() {
					return nil, &net.OpError{Op: "listen", Net: "tcp", Err: syscall.EADDRNOTAVAIL}
				}
				return listen(ctx)
			}
		})
		a, endA := w.settle("a", nil)
		if got := strings.Join(b.Faults(), "\n"); !strings.Contains(got, "answers no other") || !strings.Contains(got, syscall.EADDRNOTAVAIL.Error()) {
			t.Errorf("faults %q", got)
		}
		fails.Store(false)
		time.Sleep(1100 * time.Millisecond)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := a.Ask(ctx, "b", "echo", nil); err != nil || len(b.Faults()) != 0 {
			t.Errorf("once it could listen: %v, faults %q", err, b.Faults())
		}
		endA()
		endB()
		fails.Store(true)
		_, end := w.settle("b", func(c *peer.NodeConfig) {
			c.Listen = func(context.Context) (net.Listener, error) { return nil, syscall.EADDRINUSE }
		})
		end() // also one that has never listened ends
	})
}

func TestANodeTellsWhenItsCertificateEnds(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		ends := time.Now().Add(8 * 24 * time.Hour)
		a, end := w.settle("a", nil, func(c *x509.Certificate) { c.NotAfter = ends })
		if got := a.Faults(); len(got) != 1 || !strings.Contains(got[0], "expires on") || !strings.Contains(got[0], "pvc pki renew a") {
			t.Errorf("eight days before: %q", got)
		}
		time.Sleep(time.Until(ends) + time.Second)
		if got := a.Faults(); len(got) != 1 || !strings.Contains(got[0], "expired on") {
			t.Errorf("after its end: %q", got)
		}
		end()
	})
}
