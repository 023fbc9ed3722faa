package peer_test

import (
	"context"
	"crypto/x509"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
	"pvc.internal/peer"
	"pvc.internal/peer/peertest"
)

// clock is virtual inside a bubble, and can be set forward by a test.
type clock struct {
	base time.Time
	jump atomic.Int64 // nanoseconds
}

func (c *clock) Now() cluster.Instant {
	return cluster.Instant(time.Hour) + cluster.Instant(time.Since(c.base)) + cluster.Instant(c.jump.Load())
}

// world is a cluster's peers in one bubble.
type world struct {
	t     *testing.T
	net   *peertest.Network
	ca    *peertest.Authority
	clock *clock
}

// member is one node of it.
type member struct {
	name   cluster.NodeID
	addr   string
	id     *peer.Identity
	server *peer.Server
	client *peer.Client
	status peer.Status
	end    func()
}

// inBubble runs a test on virtual time; goroutines that are left fail it.
func inBubble(t *testing.T, test func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, net: peertest.NewNetwork(), clock: &clock{base: time.Now()}}
		w.ca = peertest.NewAuthority(t, "demo", time.Now())
		test(t, w)
		w.net.Close()
	})
}

func (w *world) identity(n cluster.NodeID) *peer.Identity {
	w.t.Helper()
	id, err := peer.LoadIdentity(w.ca.Files(w.t, n, time.Now()), "demo", n, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

// join starts a node's server and makes its client.
func (w *world) join(n cluster.NodeID, more ...func(*peer.ServerConfig)) *member {
	w.t.Helper()
	m := &member{name: n, addr: string(n) + ":7371", id: w.identity(n)}
	w.start(m, more...)
	m.client = peer.NewClient(m.id, w.net.Dial(string(n)))
	return m
}

// start begins to listen, also again after a power failure.
func (w *world) start(m *member, more ...func(*peer.ServerConfig)) {
	w.t.Helper()
	var config peer.ServerConfig
	for _, f := range more {
		f(&config)
	}
	m.status = peer.Status{Node: m.name, Incarnation: "boot.1", Store: peer.StoreLink{Live: true, Since: 90 * time.Second, Acknowledged: 42 * time.Millisecond}}
	m.server = peer.NewServer(config, m.id, func() peer.Status { return m.status }, zap.NewNop())
	m.server.Handle("echo", func(_ context.Context, from cluster.NodeID, body []byte) ([]byte, error) {
		return append([]byte(string(from)+":"), body...), nil
	})
	l, err := w.net.Listen(string(m.name), m.addr)
	if err != nil {
		w.t.Fatal(err)
	}
	done := make(chan error, 1)
	server := m.server
	go func() { done <- server.Serve(l) }()
	m.end = func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := server.Shutdown(ctx); err != nil {
			w.t.Errorf("shutdown of %s: %v", m.name, err)
		}
		if err := <-done; err != nil {
			w.t.Errorf("serve of %s: %v", m.name, err)
		}
	}
}

func leave(all ...*member) {
	for _, m := range all {
		m.client.Close()
		m.end()
	}
}

// ask puts an echo question and returns what came of it and how long it took.
func ask(from, to *member, limit time.Duration) (string, time.Duration, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	began := time.Now()
	answer, err := from.client.Ask(ctx, to.name, to.addr, "echo", []byte("hello"))
	return string(answer), time.Since(began), err
}

func mustAsk(t *testing.T, from, to *member, limit time.Duration) time.Duration {
	t.Helper()
	answer, took, err := ask(from, to, limit)
	if err != nil || answer != string(from.name)+":hello" {
		t.Fatalf("%s asked %s: %q, %v after %v", from.name, to.name, answer, err, took)
	}
	return took
}

// mustFail asks and wants a class of failure.
func mustFail(t *testing.T, from, to *member, limit time.Duration, class error) (*peer.Error, time.Duration) {
	t.Helper()
	answer, took, err := ask(from, to, limit)
	var e *peer.Error
	if !errors.As(err, &e) || !errors.Is(err, class) {
		t.Fatalf("%s asked %s: %q and error %v, wanted one of class %v", from.name, to.name, answer, err, class)
	}
	return e, took
}

// loopback is a server on a real socket, for what a pipe cannot show.
func loopback(t *testing.T, ca *peertest.Authority, n cluster.NodeID, config peer.ServerConfig, spoil ...func(*x509.Certificate)) (*peer.Server, string) {
	t.Helper()
	id, err := peer.LoadIdentity(ca.Files(t, n, time.Now(), spoil...), "demo", n, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := peer.NewServer(config, id, func() peer.Status { return peer.Status{Node: n} }, zap.NewNop())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := errors.Join(s.Shutdown(ctx), <-done); err != nil {
			t.Error(err)
		}
	})
	return s, l.Addr().String()
}
