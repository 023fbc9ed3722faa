package agent_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// toldOf are the history's entries of a kind that name one of those.
func (b *bubble) toldOf(kind string, names ...string) (list []string) {
	for _, e := range b.told(kind) {
		if slices.ContainsFunc(names, func(name string) bool { return strings.Contains(e.Text, name) }) {
			list = append(list, e.Text)
		}
	}
	return list
}

// What cannot be moved off a flushed node is tried again and again; the history tells
// it once a reason.
func TestTheHistoryTellsOnceWhyADrainWaits(t *testing.T) {
	for name, c := range map[string]struct {
		wrong  func(w *copyWorld) // so that it cannot be moved
		other  func(w *copyWorld) // for another reason
		reason string
	}{
		"its stop fails": {wrong: func(w *copyWorld) { w.fail["stop hv3"] = fmt.Errorf("the storage is away") }, reason: "the storage is away",
			other: func(w *copyWorld) { w.fail["stop hv3"] = fmt.Errorf("it says no") }},
		"its stop hangs": {wrong: func(w *copyWorld) { w.hangs = "stop hv3" }, reason: "2m0s"},
	} {
		t.Run(name, func(t *testing.T) {
			inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
				b.movable("vm1", on("hv3"))
				b.onlyOn(w, 30*time.Second, "vm1", "hv3")
				w.set(func() { c.wrong(w) })
				b.domain("hv3", cluster.DomainFlush)
				b.eventually(4*time.Minute, "it is told", func() bool { return len(b.told(cluster.EventDrain)) > 0 })
				time.Sleep(30 * time.Second)
				if told := b.told(cluster.EventDrain); len(told) > 1 || !strings.Contains(told[0].Text, c.reason) {
					t.Errorf("it is told %d times: %+v", len(told), told)
				}
				kinds := []string{cluster.EventActivity, cluster.EventDrain, cluster.EventWorkload}
				before := map[string]int{}
				for _, kind := range kinds {
					before[kind] = len(b.toldOf(kind, "vm1", "drain"))
				}
				time.Sleep(150 * time.Second) // of one that hangs the next try, of the others ten
				for _, kind := range kinds {
					if more := b.toldOf(kind, "vm1", "drain")[before[kind]:]; len(more) > 0 {
						t.Errorf("%d entries of kind %s more: %q", len(more), kind, more)
					}
				}
				if c.other == nil {
					return
				}
				drains := len(b.told(cluster.EventDrain))
				w.set(func() { c.other(w) })
				b.eventually(4*time.Minute, "the other reason is told", func() bool { return len(b.told(cluster.EventDrain)) > drains })
			})
		})
	}
}
