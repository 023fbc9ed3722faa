package zkhandler_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"pvc.internal/cluster"
	"pvc.internal/zkhandler"
	"pvc.internal/zkhandler/zktest"
)

// readCounter counts the records that a client asks for.
type readCounter struct{ n atomic.Int64 }

// dial wraps the way in of a client.
func (r *readCounter) dial(in func(context.Context, string, string) (net.Conn, error)) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := in(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &countedReads{c, r}, nil
	}
}

type countedReads struct {
	net.Conn
	r *readCounter
}

// Write counts a request that reads data: each is written in one piece.
func (c *countedReads) Write(p []byte) (int, error) {
	if len(p) >= 12 && binary.BigEndian.Uint32(p[8:]) == 4 {
		c.r.n.Add(1)
	}
	return c.Conn.Write(p)
}

// crowded starts a handler over a tree of so many nodes and waits until it has
// seen them all. It re-reads nothing by itself but at resync.
func (e *env) crowded(t *testing.T, nodes int, resync time.Duration) (h *zkhandler.Handler, reads *atomic.Int64) {
	t.Helper()
	counter := &readCounter{}
	h = e.live(t, "a", func(c *zkhandler.Config) {
		c.Resync, c.SessionTimeout = resync, 10*time.Second
		c.Dial = counter.dial(c.Dial)
	})
	for i := range nodes {
		e.fake.Set(nodePath(i), []byte("hypervisor"))
		e.fake.Set(nodePath(i)+"/keepalive", []byte("1"))
	}
	eventually(t, 10*time.Second, "all nodes are seen", func() bool {
		s := latest(h)
		if s == nil || !s.Complete || len(s.Nodes) != nodes {
			return false
		}
		for _, n := range s.Nodes {
			if !n.Keepalive.Present {
				return false
			}
		}
		return true
	})
	return h, &counter.n
}

func nodePath(i int) string { return fmt.Sprintf("/case/nodes/n%04d", i) }

// latest is the newest snapshot, nil before the first.
func latest(h *zkhandler.Handler) *cluster.Snapshot {
	snapshots, end := h.Subscribe()
	defer end()
	select {
	case s := <-snapshots:
		return s
	default:
		return nil
	}
}

// What a thousand nodes' keepalives cost a coordinator must not grow with the
// square of their number: a snapshot is as large as there are nodes.
func TestKeepalivesOfManyNodesAreToldTogether(t *testing.T) {
	inFake(t, zktest.Options{MaxSessionTimeout: time.Minute}, func(t *testing.T, e *env) {
		const nodes = 200 // 10 ms between two snapshots
		h, reads := e.crowded(t, nodes, time.Hour)
		snapshots, end := h.Subscribe()
		defer end()
		<-snapshots
		before, told := reads.Load(), 0
		done := make(chan struct{})
		go func() {
			defer close(done)
			for i := range nodes {
				e.fake.Set(nodePath(i)+"/keepalive", []byte("2"))
				time.Sleep(time.Millisecond)
			}
			time.Sleep(100 * time.Millisecond)
		}()
		var last *cluster.Snapshot
		for open := true; open; {
			select {
			case last = <-snapshots:
				told++
			case <-done:
				open = false
			}
		}
		if told < 10 || told > 25 {
			t.Errorf("%d changes in %d ms made %d snapshots, want one each 10 ms", nodes, nodes, told)
		}
		if n := reads.Load() - before; n != nodes {
			t.Errorf("%d changes cost %d reads", nodes, n)
		}
		for name, n := range last.Nodes {
			if n.Keepalive.Value != 2 {
				t.Fatalf("the keepalive of %s is still %d", name, n.Keepalive.Value)
			}
		}
	})
}

// What the role hangs on is told at once, however many nodes there are.
func TestTheRolesRecordsWaitForNobody(t *testing.T) {
	inFake(t, zktest.Options{MaxSessionTimeout: time.Minute}, func(t *testing.T, e *env) {
		const nodes = 300 // 15 ms between two snapshots
		h, _ := e.crowded(t, nodes, time.Hour)
		snapshots, end := h.Subscribe()
		defer end()
		<-snapshots
		for round := range 20 {
			e.fake.Set(nodePath(round)+"/keepalive", []byte("2")) // a snapshot has just been made
			seen := <-snapshots
			e.fake.Set("/case/config/primary_node", fmt.Appendf(nil, "n%04d", round))
			set := time.Now()
			for seen.PrimaryNode.Value != fmt.Sprintf("n%04d", round) {
				seen = <-snapshots
			}
			if took := time.Since(set); took > 5*time.Millisecond {
				t.Fatalf("primary_node was told after %v", took)
			}
		}
	})
}

// The periodic re-read of a large cluster is spread, and still comes to every
// record.
func TestTheRereadOfManyNodesIsSpread(t *testing.T) {
	inFake(t, zktest.Options{MaxSessionTimeout: time.Minute}, func(t *testing.T, e *env) {
		const nodes, resync = 100, time.Minute // 900 records
		h, reads := e.crowded(t, nodes, resync)
		before := reads.Load()
		time.Sleep(resync)
		if n := reads.Load() - before; n < 400 || n > 420 {
			t.Errorf("one re-read asked for %d records, want 400 of the nodes' and those there is one of", n)
		}
		time.Sleep(2 * resync)
		if n := reads.Load() - before; n < 900 {
			t.Errorf("three re-reads asked for %d records, want each of 900 once", n)
		}
		if s := latest(h); !s.Live {
			t.Error("the link was lost")
		}
	})
}

// A node that judges no other is not asked to follow them.
func TestOneNodeAloneIsWatched(t *testing.T) {
	inFake(t, zktest.Options{}, func(t *testing.T, e *env) {
		e.live(t, "operator", nil)
		counter := &readCounter{}
		h := e.joined(t, "a", func(c *zkhandler.Config) {
			c.WatchNodes, c.WatchNode, c.Resync = false, "n0001", time.Hour
			c.Dial = counter.dial(c.Dial)
		})
		eventually(t, 5*time.Second, "a view", func() bool { s := latest(h); return s != nil && s.Complete })
		if s := latest(h); len(s.Nodes) != 1 || s.Nodes["n0001"].Mode.Present {
			t.Fatalf("the view of a node that is not there yet: %+v", s.Nodes)
		}
		before := counter.n.Load()
		for i := range 3 { // itself in the middle
			e.fake.Set(nodePath(i), []byte("hypervisor"))
			e.fake.Set(nodePath(i)+"/daemonstate", []byte("run"))
			e.fake.Set(nodePath(i)+"/keepalive", []byte("1"))
		}
		eventually(t, 5*time.Second, "its own state", func() bool { return latest(h).Nodes["n0001"].Daemon.Value == cluster.DaemonRun })
		for n := range 100 { // keepalives, its own among them
			e.fake.Set(nodePath(n%3)+"/keepalive", fmt.Appendf(nil, "%d", n+2))
			time.Sleep(10 * time.Millisecond)
		}
		if n := counter.n.Load() - before; n > 10 {
			t.Errorf("100 keepalives cost %d reads", n)
		}
		s, err := h.Refresh(soon(t))
		must(t, err)
		if len(s.Nodes) != 1 || s.Nodes["n0001"].Keepalive.Value != 99 {
			t.Errorf("after a refresh: %+v", s.Nodes)
		}
	})
}
