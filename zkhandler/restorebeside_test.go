package zkhandler_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"

	"pvc.internal/cluster"
	"pvc.internal/zkhandler"
	"pvc.internal/zkhandler/zktest"
)

// Daemons that wait at an empty tree go on running: what one of them writes into
// the half tree costs the restore another pass, and no more.
func TestRestoreBesideADaemonThatWaits(t *testing.T) {
	inFake(t, zktest.Options{}, func(t *testing.T, e *env) {
		h := e.live(t, "a", nil)
		c := aLife(t, e, h)
		for i := range 40 { // many Multis
			must(t, h.EnsureNode(soon(t), cluster.NodeID(fmt.Sprintf("n%02d", i)), cluster.Hypervisor))
		}
		for range 600 {
			_, err := c.Create(e.root+"/agent/history/", []byte(`{"v":1,"kind":"x"}`), zk.FlagSequence, openACL)
			must(t, err)
		}
		b, err := h.Backup(soon(t))
		must(t, err)
		dead(t, e, c, true)
		slow, _ := e.start(t, "slow", nil)
		e.untilLive(t, slow)
		e.fake.DropReply("slow", func(op zktest.OpInfo) bool { return op.Op == "multi" && op.Touches("/case/agent/history/0000000400") }).Times(1)
		done, noted := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(noted)
			for {
				if _, err := c.Create(e.root+"/agent/history/", []byte(`{"v":1,"kind":"note"}`), zk.FlagSequence, openACL); err == nil {
					return
				}
				select {
				case <-done:
					return
				case <-time.After(10 * time.Millisecond):
				}
			}
		}()
		e.fake.DropReply("slow", func(op zktest.OpInfo) bool { return op.Op == "multi" && op.Touches("/case/nodes") }).Times(1)
		waiting, _ := e.start(t, "waiting", nil)
		e.untilLive(t, waiting)
		ensured := make(chan struct{})
		go func() {
			defer close(ensured)
			for {
				for i := range 40 {
					_ = waiting.EnsureNode(soon(t), cluster.NodeID(fmt.Sprintf("n%02d", i)), cluster.Hypervisor)
				}
				select {
				case <-done:
					return
				case <-time.After(10 * time.Millisecond):
				}
			}
		}()
		long, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err = slow.Restore(long, b, brief)
		close(done)
		<-noted
		<-ensured
		must(t, err)
		if _, initialised, err := h.CheckTree(soon(t)); !initialised || err != nil {
			t.Errorf("%v %v", initialised, err)
		}
	})
}

// Of no node a part alone stands between two writes: its daemon would make what is
// missing, and be in the way of the next.
func TestRestoreSplitsNoNode(t *testing.T) {
	inFake(t, zktest.Options{}, func(t *testing.T, e *env) {
		h := e.live(t, "a", nil)
		c := aLife(t, e, h)
		for i := range 40 {
			must(t, h.EnsureNode(soon(t), cluster.NodeID(fmt.Sprintf("n%02d", i)), cluster.Hypervisor))
		}
		b, err := h.Backup(soon(t))
		must(t, err)
		dead(t, e, c, true)
		writes := map[string]int{}
		e.fake.DropRequest("a", func(op zktest.OpInfo) bool {
			for i := range 40 {
				if n := fmt.Sprintf("/case/nodes/n%02d", i); op.Op == "multi" && op.TouchesBelow(n+"/") {
					writes[n]++
				}
			}
			return false
		}).Times(1 << 20)
		long, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		done, err := h.Restore(long, b, brief)
		must(t, err)
		if done.Writes < 4 {
			t.Errorf("%d writes", done.Writes)
		}
		for n, times := range writes {
			if times != 1 {
				t.Errorf("%s is made by %d writes", n, times)
			}
		}
		if len(writes) != 40 {
			t.Errorf("%d nodes were seen", len(writes))
		}
	})
}

// A lease that is missing, or that nobody can read, may have given its holder as
// much as a shutdown in maintenance does.
func TestRestoreWaitsForALeaseThatNobodyKnows(t *testing.T) {
	for name, spoil := range map[string]func(*testing.T, *env, *zk.Conn){
		"missing": func(t *testing.T, e *env, c *zk.Conn) { must(t, c.Delete(e.root+"/agent/lease/primary", -1)) },
		"unreadable": func(t *testing.T, e *env, c *zk.Conn) {
			_, err := c.Set(e.root+"/agent/lease/primary", []byte("{"), -1)
			must(t, err)
		},
	} {
		t.Run(name, func(t *testing.T) {
			inFake(t, zktest.Options{}, func(t *testing.T, e *env) {
				h := e.live(t, "a", nil)
				c := aLife(t, e, h)
				b, err := h.Backup(soon(t))
				must(t, err)
				dead(t, e, c, false)
				spoil(t, e, c)
				over := brief
				over.Overwrite = true
				long, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
				defer cancel()
				began := time.Now()
				_, err = h.Restore(long, b, over)
				must(t, err)
				if waited := time.Since(began); waited < 62*time.Second {
					t.Errorf("it waited for %v", waited)
				}
			})
		})
	}
}

// A half tree gets no node of a daemon that waits.
func TestNoNodeIsMadeInAHalfTree(t *testing.T) {
	inFake(t, zktest.Options{}, func(t *testing.T, e *env) {
		h := e.live(t, "a", nil)
		c := e.bare(t)
		must(t, c.Delete(e.root+"/agent/schema", -1))
		wantErr(t, h.EnsureNode(soon(t), "hv1", cluster.Hypervisor), cluster.ErrNotFound)
		if names, _, err := c.Children(e.root + "/nodes"); err != nil || len(names) > 0 {
			t.Errorf("%v, %v", names, err)
		}
	})
}

// Of a tree that is gone nobody can tell what its lease still gives: in
// maintenance, a minute.
func TestRestoreOfALostTreeWaitsInMaintenance(t *testing.T) {
	inFake(t, zktest.Options{}, func(t *testing.T, e *env) {
		h := e.live(t, "a", nil)
		c := aLife(t, e, h)
		b, err := h.Backup(soon(t))
		must(t, err)
		dead(t, e, c, true)
		patient := brief
		patient.Lost = zkhandler.LongestLease
		long, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
		defer cancel()
		began := time.Now()
		done, err := h.Restore(long, b, patient)
		must(t, err)
		if waited := time.Since(began); waited < zkhandler.LongestLease || !done.Maintenance {
			t.Errorf("it waited for %v: %+v", waited, done)
		}
	})
}

// A restore that was stopped after it had watched the tree, and goes on when a
// daemon is primary there again, finds the lease renewed and changes nothing (I1).
func TestRestoreThatWasStoppedMeetsAPrimary(t *testing.T) {
	inFake(t, zktest.Options{}, func(t *testing.T, e *env) {
		h := e.live(t, "a", nil)
		c := aLife(t, e, h)
		b, err := h.Backup(soon(t))
		must(t, err)
		dead(t, e, c, false)
		var renewed atomic.Bool
		held := e.fake.DropRequest("a", func(op zktest.OpInfo) bool {
			return op.Op == "multi" && op.Touches("/case/agent/restore") && !renewed.Load()
		}).Times(1 << 20)
		over := brief
		over.Overwrite = true
		long, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
		defer cancel()
		ended := make(chan error, 1)
		go func() {
			_, err := h.Restore(long, b, over)
			ended <- err
		}()
		eventually(t, 2*time.Minute, "its mark is held", func() bool { return held.Hits() > 0 })
		old, stat, err := c.Get(e.root + "/agent/lease/primary")
		must(t, err)
		_, err = c.Set(e.root+"/agent/lease/primary", old, stat.Version)
		must(t, err)
		renewed.Store(true)
		if err := <-ended; !errors.Is(err, cluster.ErrRefused) {
			t.Errorf("it ended with %v", err)
		}
		if got, _, err := c.Get(e.root + "/agent/lease/primary"); err != nil || string(got) != string(old) {
			t.Errorf("the lease is %q, %v", got, err)
		}
	})
}
