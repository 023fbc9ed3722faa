package agent_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pvc.internal/cluster"
	"pvc.internal/zkhandler/zktest"
)

// live lets a workload be moved while it runs.
func live(w *cluster.Workload) { w.Live = true }

// liveWorld is a world in which vm1, which may be moved live, runs on hv2; hv1 is the
// primary.
func liveWorld(t *testing.T, fn func(b *bubble, w *copyWorld)) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.eventually(10*time.Second, "hv1 is primary", func() bool { return b.primary() == "hv1" })
		b.movable("vm1", on("hv2"), live)
		b.onlyOn(w, 30*time.Second, "vm1", "hv2")
		w.set(func() { w.orders = nil })
		fn(b, w)
	})
}

// ran waits until vm1 runs, once, and nothing of it is anywhere else.
func (b *bubble) ran(w *copyWorld, limit time.Duration, on ...cluster.NodeID) {
	b.t.Helper()
	b.eventually(limit, fmt.Sprintf("vm1 runs once, on one of %v", on), func() bool {
		r := b.workload("vm1")
		if r.Next != nil || r.State != cluster.WorkloadRunning || len(on) > 0 && !slices.Contains(on, r.Head()) || !slices.Equal(w.active("vm1"), []cluster.NodeID{r.Head()}) {
			return false
		}
		for _, n := range leaseTrio {
			if n != r.Head() && w.state(n, "vm1") != cluster.CopyMissing {
				return false
			}
		}
		return true
	})
}

// stopsAt orders the move of vm1 to hv3 and waits until the order "OP NODE" of it is at
// its node, which does not end until it is let go.
func (b *bubble) stopsAt(w *copyWorld, what string) (letGo func()) {
	b.t.Helper()
	w.set(func() { w.holds, w.goOn, w.begun = what, make(chan struct{}), 0 })
	b.order("vm1", "o1", cluster.WorkloadMove, "hv3")
	steps := map[string]int{"migrate_to hv2": 1, "migrate_from hv3": 2, "stop hv2": 3}[what]
	b.eventually(30*time.Second, what+" is there", func() bool { return w.count(&w.begun) >= steps })
	return func() { w.set(func() { w.holds = ""; close(w.goOn) }) }
}

// liveSteps are the orders of a live move, in their order.
var liveSteps = []string{"migrate_to hv2", "migrate_from hv3", "stop hv2"}

func TestAWorkloadIsMovedLive(t *testing.T) {
	liveWorld(t, func(b *bubble, w *copyWorld) {
		b.order("vm1", "o1", cluster.WorkloadMove, "hv3")
		if a := b.answer(20*time.Second, "vm1", "o1"); !a.Done || !strings.Contains(a.Text, "live") {
			t.Errorf("the answer is %+v", a)
		}
		b.ran(w, time.Second, "hv3")
		if said := w.said(); said != "migrate_to vm1 on hv2, migrate_from vm1 on hv3, stop vm1 on hv2" {
			t.Errorf("ordered: %s", said)
		}
		if told := b.toldOf(cluster.EventWorkload, "moved live from hv2 to hv3"); len(told) != 1 {
			t.Errorf("the history has %v", told)
		}
		w.set(func() { w.orders = nil })
		b.domain("hv3", cluster.DomainFlush) // hv3 is emptied, and filled again
		b.eventually(30*time.Second, "hv3 is empty", func() bool { return b.workload("vm1").Head() != "hv3" && b.workload("vm1").Next == nil })
		b.domain("hv3", cluster.DomainUnflush)
		b.ran(w, 60*time.Second, "hv3")
		if said := w.said(); strings.Contains(said, "start") || strings.Count(said, "migrate_from") != 2 {
			t.Errorf("ordered by a drain and its end: %s", said)
		}
	})
}

// Where the operator has not allowed it, or an agent cannot, it is stopped and started.
func TestWhatCannotBeMovedLiveIsStoppedAndStarted(t *testing.T) {
	for name, tune := range map[string]func(b *bubble, w *copyWorld){
		"not allowed":     func(b *bubble, _ *copyWorld) { b.edit("vm1", func(w *cluster.Workload) { w.Live = false }) },
		"it cannot give":  func(_ *bubble, w *copyWorld) { w.set(func() { w.still["hv2"] = true }) },
		"it cannot take":  func(_ *bubble, w *copyWorld) { w.set(func() { w.still["hv3"] = true }) },
		"it does not say": func(_ *bubble, w *copyWorld) { w.set(func() { w.mute = "hv3 vm1" }) },
	} {
		t.Run(name, func(t *testing.T) {
			liveWorld(t, func(b *bubble, w *copyWorld) {
				tune(b, w)
				w.set(func() { w.orders = nil })
				b.order("vm1", "o1", cluster.WorkloadMove, "hv3")
				if a := b.answer(30*time.Second, "vm1", "o1"); !a.Done || strings.Contains(a.Text, "live") {
					t.Errorf("the answer is %+v", a)
				}
				w.set(func() { w.mute = "" })
				b.ran(w, 20*time.Second, "hv3")
				if said := w.said(); said != "stop vm1 on hv2, start vm1 on hv3" {
					t.Errorf("ordered: %s", said)
				}
			})
		})
	}
}

// Each step may fail: nothing is believed then, and it runs again, once.
func TestAnyStepOfALiveMoveMayFail(t *testing.T) {
	for _, step := range liveSteps {
		t.Run(step, func(t *testing.T) {
			liveWorld(t, func(b *bubble, w *copyWorld) {
				w.set(func() { w.fail[step] = errors.New("the storage is slow") })
				b.order("vm1", "o1", cluster.WorkloadMove, "hv3")
				if step == "stop hv2" { // nothing starts before that succeeds
					b.eventually(30*time.Second, "the record names the node", func() bool {
						r := b.workload("vm1")
						return r.Next != nil && r.Next.Live == cluster.LiveRecovering && strings.Contains(r.Reason, "left on hv2")
					})
					b.always(20*time.Second, "nothing is started", func() bool { return !strings.Contains(w.said(), "start vm1") })
				} else {
					b.answer(30*time.Second, "vm1", "o1")
				}
				w.set(func() { delete(w.fail, step) })
				b.ran(w, 60*time.Second, "hv3")
				said := w.said()
				if at := strings.Index(said, "start vm1"); at < 0 || !strings.Contains(said[:at], "stop vm1 on hv2") || !strings.Contains(said[:at], "stop vm1 on hv3") {
					t.Errorf("it was not stopped on both before it was started: %s", said)
				}
			})
		})
	}
}

// Each step may hang: it is given up in its time, and both are cleared.
func TestAnyStepOfALiveMoveMayHang(t *testing.T) {
	for _, step := range liveSteps {
		t.Run(step, func(t *testing.T) {
			liveWorld(t, func(b *bubble, w *copyWorld) {
				letGo := b.stopsAt(w, step)
				b.eventually(7*time.Minute, "it is given up", func() bool {
					r := b.workload("vm1")
					return r.Next == nil || r.Next.Live != cluster.LiveMigrating
				})
				letGo()
				b.ran(w, 5*time.Minute)
			})
		})
	}
}

// What does not start on the new node after all is started on the old one again.
func TestALiveMoveThatFailsGoesBack(t *testing.T) {
	liveWorld(t, func(b *bubble, w *copyWorld) {
		w.set(func() {
			w.fail["migrate_from hv3"], w.fail["start hv3"] = errors.New("no such image"), errors.New("no such image")
		})
		b.order("vm1", "o1", cluster.WorkloadMove, "hv3")
		if a := b.answer(30*time.Second, "vm1", "o1"); a.Done {
			t.Errorf("the answer is %+v", a)
		}
		b.ran(w, 30*time.Second, "hv2")
	})
}

// The primary, its source or its target dies at any step: it runs again, once, after
// what may be left is stopped or proven dead.
func TestANodeDiesInALiveMove(t *testing.T) {
	for _, step := range liveSteps {
		for _, n := range leaseTrio {
			t.Run(step+", "+string(n)+" dies", func(t *testing.T) {
				liveWorld(t, func(b *bubble, w *copyWorld) {
					letGo := b.stopsAt(w, step)
					b.powerOff(n)
					w.vanish(n)
					letGo()
					if n != "hv1" { // it is silent, and not proven dead: what it may run runs nowhere else
						b.always(8*time.Second, "nothing is started", func() bool { return !strings.Contains(w.said(), "start vm1") })
						b.eventually(30*time.Second, "the record names the node, or it has arrived", func() bool {
							r := b.workload("vm1")
							return r.Next == nil || strings.Contains(r.Reason, "left on "+string(n)+" is not known")
						})
					}
					b.proven(n, "migrate")
					var alive []cluster.NodeID
					for _, o := range leaseTrio {
						if o != n {
							alive = append(alive, o)
						}
					}
					b.ran(w, 90*time.Second, alive...)
					if a := b.answer(time.Second, "vm1", "o1"); !a.Done && b.workload("vm1").Head() == "hv3" {
						t.Errorf("it is on hv3, and the answer is %+v", a)
					}
				})
			})
		}
	}
}

// The daemon of the primary, the source or the target is killed at any step, and is back.
func TestADaemonIsKilledInALiveMove(t *testing.T) {
	for _, step := range liveSteps {
		for _, n := range leaseTrio {
			t.Run(step+", "+string(n), func(t *testing.T) {
				liveWorld(t, func(b *bubble, w *copyWorld) {
					letGo := b.stopsAt(w, step)
					b.kill(n)
					letGo()
					time.Sleep(3 * time.Second)
					b.start(n)
					b.ran(w, 90*time.Second)
				})
			})
		}
	}
}

// A switch of the primary, or another order, ends a live move at any step.
func TestALiveMoveIsOvertaken(t *testing.T) {
	for _, step := range liveSteps {
		for name, by := range map[string]func(b *bubble){
			"a switch": func(b *bubble) { b.wish("hv3") },
			"a stop":   func(b *bubble) { b.order("vm1", "o2", cluster.WorkloadStop, "") },
			"a move":   func(b *bubble) { b.order("vm1", "o2", cluster.WorkloadMove, "hv1") },
			"a removal": func(b *bubble) {
				b.order("vm1", "o2", cluster.WorkloadRemove, "", func(q *cluster.WorkloadRequest) { q.Destroy = true })
			},
			"its setting": func(b *bubble) { b.edit("vm1", func(w *cluster.Workload) { w.Live = false }) },
		} {
			t.Run(step+", "+name, func(t *testing.T) {
				liveWorld(t, func(b *bubble, w *copyWorld) {
					letGo := b.stopsAt(w, step)
					by(b)
					time.Sleep(time.Second)
					letGo()
					nothing := func() bool {
						return w.state("hv2", "vm1") == cluster.CopyMissing && w.state("hv3", "vm1") == cluster.CopyMissing && len(w.active("vm1")) == 0
					}
					switch name {
					case "a stop":
						if a := b.answer(60*time.Second, "vm1", "o2"); !a.Done || !nothing() {
							t.Errorf("the answer is %+v, it runs on %v", a, w.active("vm1"))
						}
					case "a removal":
						b.eventually(60*time.Second, "nothing is left", func() bool { return b.workload("vm1").Name == "" && nothing() })
					case "a move":
						if a := b.answer(60*time.Second, "vm1", "o2"); !a.Done {
							t.Errorf("the answer is %+v", a)
						}
						b.ran(w, 30*time.Second, "hv1")
					default:
						b.ran(w, 6*time.Minute)
					}
				})
			})
		}
	}
}

// A migrate_to that was ended may have its effect all the same, until its node has taken
// the stop after it: what has arrived by then is found, and runs beside nothing.
func TestACopyMayGoOverLate(t *testing.T) {
	for name, by := range map[string]func(b *bubble){
		"another order": func(b *bubble) { b.order("vm1", "o2", cluster.WorkloadMove, "hv1") },
		"a stop":        func(b *bubble) { b.order("vm1", "o2", cluster.WorkloadStop, "") },
		"its limit":     func(*bubble) {},
	} {
		t.Run(name, func(t *testing.T) {
			liveWorld(t, func(b *bubble, w *copyWorld) {
				w.set(func() { w.late = 2 * time.Second })
				b.stopsAt(w, "migrate_to hv2")
				by(b)
				id := "o2"
				if name == "its limit" {
					id = "o1"
				}
				b.answer(7*time.Minute, "vm1", id)
				switch name {
				case "a stop":
					if on := w.active("vm1"); len(on) > 0 {
						t.Errorf("stopped as ordered, it runs on %v", on)
					}
				default:
					b.ran(w, 30*time.Second)
				}
				if f := w.faults(); len(f) > 0 {
					t.Error(f)
				}
			})
		})
	}
}

// What is set, or asked, while a workload goes over interrupts nothing.
func TestALiveMoveGoesOnBesideASetting(t *testing.T) {
	for _, step := range liveSteps {
		for name, by := range map[string]func(b *bubble){
			"a setting": func(b *bubble) { b.edit("vm1", func(w *cluster.Workload) { w.Priority = 7 }) },
			"a probe":   func(b *bubble) { b.order("vm1", "p1", cluster.WorkloadProbe, "") },
		} {
			t.Run(step+", "+name, func(t *testing.T) {
				liveWorld(t, func(b *bubble, w *copyWorld) {
					letGo := b.stopsAt(w, step)
					by(b)
					time.Sleep(time.Second)
					letGo()
					b.ran(w, 30*time.Second, "hv3")
					if said := w.said(); said != "migrate_to vm1 on hv2, migrate_from vm1 on hv3, stop vm1 on hv2" {
						t.Errorf("ordered: %s", said)
					}
				})
			})
		}
	}
}

// A watchdog proves the end of what its guard holds, and that is not what migrate_to has
// brought and nobody has taken over: only a proof about the machine, or the node itself, is
// one of that. What is left on the old node is.
func TestAWatchdogIsNoProofForWhatHasJustArrived(t *testing.T) {
	for _, n := range []cluster.NodeID{"hv2", "hv3"} {
		t.Run(string(n), func(t *testing.T) {
			liveWorld(t, func(b *bubble, w *copyWorld) {
				letGo := b.stopsAt(w, "migrate_from hv3")
				b.powerOff(n)
				w.vanish(n)
				letGo()
				time.Sleep(8 * time.Second)
				b.provenBy(n, "migrate", "watchdog")
				if n == "hv3" {
					b.always(30*time.Second, "nothing is started", func() bool { return !strings.Contains(w.said(), "start vm1") })
					if r := b.workload("vm1"); r.Next == nil || !strings.Contains(r.Reason, "watchdog alone") {
						t.Errorf("the record is %+v", r)
					}
					b.proven(n, "migrate")
				}
				b.ran(w, 60*time.Second)
			})
		})
	}
}

// Whatever becomes of any write of a live move, and of its reply, it runs once.
func TestAnyWriteOfALiveMoveMayFail(t *testing.T) {
	for name, lose := range map[string]func(*bubble, func(zktest.OpInfo) bool){
		"reply lost":   func(b *bubble, m func(zktest.OpInfo) bool) { b.store.DropReply("hv1", m) },
		"request lost": func(b *bubble, m func(zktest.OpInfo) bool) { b.store.DropRequest("hv1", m) },
		"late":         func(b *bubble, m func(zktest.OpInfo) bool) { b.store.LateCommit("hv1", m, 700*time.Millisecond) },
	} {
		for n := range 4 {
			for _, fails := range []bool{false, true}[:1+n%2] {
				if fails && name != "reply lost" {
					continue
				}
				t.Run(fmt.Sprintf("%s of write %d, fails %v", name, n, fails), func(t *testing.T) {
					liveWorld(t, func(b *bubble, w *copyWorld) {
						if fails {
							w.set(func() { w.fail["migrate_from hv3"] = errors.New("it fails") })
						}
						var seen atomic.Int32
						lose(b, func(o zktest.OpInfo) bool {
							return o.Op == "multi" && o.Touches(workloadPath("vm1")) && int(seen.Add(1)) == n+1
						})
						b.order("vm1", "o1", cluster.WorkloadMove, "hv3")
						b.eventually(90*time.Second, "the order is answered", func() bool { a := b.workload("vm1").Answer; return a != nil && a.ID == "o1" })
						b.ran(w, 60*time.Second)
					})
				})
			}
		}
	}
}
