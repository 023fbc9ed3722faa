package driver

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"pvc.internal/cluster"
)

// swapped stands before a process of redis-server, as its socket. Once told to, it
// cuts off who is connected, and whoever connects then gets to another process: as
// where the first one ended and another came back in its place.
type swapped struct {
	t      *testing.T
	mu     sync.Mutex
	target string // socket
	after  int    // bytes of answers until it swaps by itself; 0: when it is told to
	conns  []net.Conn
}

func swap(t *testing.T, socket, first string) *swapped {
	t.Helper()
	s := &swapped{t: t, target: first}
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var owned sync.WaitGroup
	t.Cleanup(func() { _ = ln.Close(); s.cut(""); owned.Wait() })
	owned.Go(func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			owned.Go(func() { s.carry(in) })
		}
	})
	return s
}

// carry carries one connection until it ends.
func (s *swapped) carry(in net.Conn) {
	defer in.Close()
	s.mu.Lock()
	out, err := net.Dial("unix", s.target)
	if err != nil {
		s.mu.Unlock()
		return
	}
	defer out.Close()
	s.conns = append(s.conns, in, out)
	s.mu.Unlock()
	done := make(chan struct{})
	go func() { defer close(done); _, _ = io.Copy(out, in); _ = out.Close() }()
	buf := make([]byte, 256)
	for {
		n, err := out.Read(buf)
		if _, writeErr := in.Write(buf[:n]); err != nil || writeErr != nil {
			break
		}
		s.count(n)
	}
	_ = in.Close()
	<-done
}

// to has a further connection get to the target, without cutting any off.
func (s *swapped) to(target string, after int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.target, s.after = target, after
}

// count takes answers into account.
func (s *swapped) count(n int) {
	s.mu.Lock()
	last := s.after > 0 && s.after <= n
	s.after = max(0, s.after-n)
	s.mu.Unlock()
	if last {
		s.cut("")
	}
}

// cut cuts off who is connected. A target: who connects then gets there.
func (s *swapped) cut(target string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		_ = c.Close()
	}
	s.conns = nil
	if target != "" {
		s.target = target
	}
}

// An order is of the very process that was judged: where another, which has come back
// empty, has taken its place by the time of the effect, nothing of the order reaches
// it, and it is told. So it is wherever the connection breaks.
func TestNothingOfAnOrderReachesTheNextProcess(t *testing.T) {
	t.Parallel()
	l := newRedisLab(t, nil)
	first, next := filepath.Join(l.nodes["hv1"].dir, "cache"), filepath.Join(l.nodes["hv2"].dir, "cache")
	l.must("hv1", cluster.CopyOrder{Op: cluster.CopyStart})
	secret, err := os.ReadFile(filepath.Join(first, redisSecret)) // the processes of one copy have one
	if err := errors.Join(err, os.MkdirAll(next, 0o700), os.WriteFile(filepath.Join(next, redisSecret), secret, 0o600)); err != nil {
		t.Fatal(err)
	}
	l.must("hv2", cluster.CopyOrder{Op: cluster.CopyStart})
	judged := l.probe("hv1")
	socket, moved, nextSocket := filepath.Join(first, redisData, redisSocket), filepath.Join(first, redisData, "first.sock"), filepath.Join(next, redisData, redisSocket)
	if err := os.Rename(socket, moved); err != nil {
		t.Fatal(err)
	}
	s := swap(t, socket, moved)
	untouched := func(what string) {
		t.Helper()
		f, err := l.admin("hv2").look(t.Context())
		if err != nil || f.follows || len(f.users) != 2 || f.users["default"] { // the driver's, and one that is off
			t.Errorf("%s: the next process has it: %+v, %v", what, f, err)
		}
	}
	order := func(op cluster.CopyOp, token cluster.Token) error {
		n := l.nodes["hv1"]
		n.d.Close()
		_, err := n.d.Order(t.Context(), token, cluster.CopyOrder{Op: op, Workload: l.w, Secret: "secret one",
			Source: &cluster.CopySource{Node: "hv9", Host: "127.0.0.9"}, Expect: &cluster.CopyExpect{State: cluster.CopyMissing, Start: judged.Start}})
		return err
	}
	amid := cluster.MintToken(cluster.TokenWire{Activity: "test"}, func() error { s.cut(nextSocket); return nil }) // it is asked right before the effect
	for _, op := range []cluster.CopyOp{cluster.CopyFollow, cluster.CopyPromote} {
		s.cut(moved)
		if err := order(op, amid); err == nil {
			t.Errorf("%s of a process that was replaced is said to be done", op)
		}
		untouched(string(op))
	}
	for after := 1; after < 3000; after += 149 { // within the greeting, the look, or the effect's answer
		s.cut(moved)
		s.to(moved, after)
		hook := cluster.MintToken(cluster.TokenWire{Activity: "test"}, func() error { s.to(nextSocket, after); return nil })
		_ = order(cluster.CopyPromote, hook) // carried out by the first, or not at all
		s.cut(nextSocket)
		untouched("promote")
	}
	s.cut(moved)
	if err := order(cluster.CopyPromote, liveToken); err != nil || l.probe("hv1").State != cluster.CopyActive {
		t.Fatalf("of the process that was judged: %v", err)
	}
	s.cut(moved)
	for _, op := range []cluster.CopyOp{cluster.CopyAdmit, cluster.CopyDemote} {
		s.cut(moved)
		if err := order(op, amid); err == nil {
			t.Errorf("%s of a process that was replaced is said to be done", op)
		}
		untouched(string(op))
	}
	s.cut(nextSocket)
	for _, op := range []cluster.CopyOp{cluster.CopyPromote, cluster.CopyAdmit} { // the look is at the next one already
		if err := order(op, liveToken); err == nil || !strings.Contains(err.Error(), "restarted since") {
			t.Errorf("%s of a process that nobody has judged: %v", op, err)
		}
		untouched(string(op))
	}
}
