package agent_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"pvc.internal/agent"
	"pvc.internal/cluster"
)

// notified is what was told to others since the mark, in order.
func (w *copyWorld) notified(since int) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.notes[since:], ", ")
}

func (w *copyWorld) noteCount() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.notes)
}

// has waits until the notes that are wanted were told since the mark, in their order.
func (b *bubble) has(w *copyWorld, since int, want ...string) {
	b.t.Helper()
	b.eventually(30*time.Second, strings.Join(want, ", "), func() bool {
		rest := w.notified(since)
		for _, note := range want {
			_, after, is := strings.Cut(rest, note)
			if !is {
				return false
			}
			rest = after
		}
		return true
	})
}

// Who announces notify is told of each start, demotion, promotion and stop of another
// copy, before and after; the promotion's end by the order to follow.
func TestLiveCopiesAreToldOfEachOther(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		w.set(func() { w.notify = 1000 })
		b.cache(w)
		b.has(w, 0, "pre-start hv3 to hv2", "post-start hv3 to hv2")
		mark := w.noteCount()
		b.order("cache", "o1", cluster.WorkloadMove, "hv1")
		if a := b.answer(20*time.Second, "cache", "o1"); !a.Done {
			t.Fatalf("%+v", a)
		}
		b.runs(w, "hv1", "hv3")
		b.eventually(20*time.Second, "hv2 has none", func() bool { return w.state("hv2", "cache") == cluster.CopyMissing })
		b.has(w, mark, "pre-start hv1 to ", "post-start hv1 to ", "pre-demote hv2 to ", "post-demote hv2 to ", "pre-promote hv1 to ", "pre-stop hv2 to ", "post-stop hv2 to ")
		all := w.notified(mark)
		for _, n := range []string{"hv1", "hv2"} {
			if strings.Contains(all, n+" to "+n) {
				t.Errorf("who is ordered is told beside it: %s", all)
			}
		}
		if strings.Contains(all, "post-promote hv1 to hv3") {
			t.Errorf("hv3, which is ordered to follow, is told of the promotion twice: %s", all)
		}
		if !strings.Contains(all, "post-promote hv1 to hv2") {
			t.Errorf("hv2, which is to follow nobody, is not told of the promotion: %s", all)
		}
		mark = w.noteCount()
		time.Sleep(12 * time.Second) // two passes
		if now := w.notified(mark); now != "" {
			t.Errorf("told while nothing happens: %s", now)
		}
		if f := w.faults(); len(f) > 0 {
			t.Error(f)
		}
	})
}

// Of an agent that announces none nobody is told anything.
func TestNobodyIsToldWhoDoesNotAsk(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.cache(w)
		b.order("cache", "o1", cluster.WorkloadMove, "hv1")
		if a := b.answer(20*time.Second, "cache", "o1"); !a.Done {
			t.Fatalf("%+v", a)
		}
		b.runs(w, "hv1", "hv3")
		if n := w.noteCount(); n > 0 {
			t.Errorf("told: %s", w.notified(0))
		}
	})
}

// A notify that fails, or hangs, fails nothing and delays a failover by its bound at
// most, once; a dead node is not waited for at all.
func TestANotifyHoldsNothingUp(t *testing.T) {
	for _, how := range []string{"fails", "hangs"} {
		t.Run(how, func(t *testing.T) {
			core, logs := observer.New(zap.WarnLevel)
			inCopyWorld(t, func(_ *agent.Config, d *agent.Deps) { d.Log = zap.New(core) }, func(b *bubble, w *copyWorld) {
				w.set(func() { w.notify = 1000 })
				b.cache(w)
				w.set(func() {
					if how == "hangs" {
						w.hangs = "notify hv3"
					} else {
						w.fail["notify hv3"] = errors.New("it is broken")
					}
				})
				begun := time.Now()
				b.order("cache", "o1", cluster.WorkloadMove, "hv1")
				a := b.answer(30*time.Second, "cache", "o1")
				if !a.Done {
					t.Fatalf("%+v", a)
				}
				b.runs(w, "hv1", "hv3")
				if took := time.Since(begun); took > 5*time.Second {
					t.Errorf("the move has taken %s", took)
				}
				if f := w.faults(); len(f) > 0 {
					t.Error(f)
				}
				said := logs.Filter(func(e observer.LoggedEntry) bool { return strings.Contains(e.Message, "does not let itself be told") })
				if said.Len() != 1 {
					t.Errorf("told %d times", said.Len())
				}
			})
		})
	}
}

// A failover promotes though another replica hangs in its notify: that costs its bound,
// once. Who has died is not told, nor waited for.
func TestAHangingNotifyDelaysAFailoverByItsBound(t *testing.T) {
	t.Parallel()
	took := map[bool]time.Duration{}
	for _, hangs := range []bool{false, true} {
		copyWorldOf(t, nil, func(b *bubble, w *copyWorld) {
			w.set(func() { w.notify = 1000 })
			b.setReprovision(cluster.ReprovisionSettings{Version: 1, Enabled: true, MaxNodes: 3})
			b.addWorkload(cluster.Workload{Name: "cache", Ephemeral: true, Chain: []cluster.NodeID{"hv2", "hv3", "hv1"}, Nodes: []cluster.NodeID{"hv1", "hv2", "hv3"}, Replicas: 2})
			b.runs(w, "hv2", "hv3")
			b.runs(w, "hv2", "hv1")
			w.set(func() {
				if hangs {
					w.hangs = "notify hv1"
				}
			})
			mark, begun := w.noteCount(), time.Now()
			w.restartEmpty("hv2", "cache")
			b.eventually(30*time.Second, "hv3 serves", func() bool { return w.state("hv3", "cache") == cluster.CopyActive })
			took[hangs] = time.Since(begun)
			b.runs(w, "hv3", "hv1")
			told := w.notified(mark)
			if heard := strings.Contains(told, "pre-promote hv3 to hv1"); heard == hangs {
				t.Errorf("hangs %v, and told: %s", hangs, told)
			}
			if strings.Contains(told, "pre-promote hv3 to hv2") {
				t.Errorf("who has no copy is told: %s", told)
			}
		})
	}
	if more := took[true] - took[false]; more > 1500*time.Millisecond {
		t.Errorf("it took %s, and %s with one that hangs", took[false], took[true])
	}
}
