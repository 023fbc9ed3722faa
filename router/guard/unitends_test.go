package guard

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/coreos/go-systemd/v22/dbus"
)

// fakeUnits is a systemd that says what it is told to.
type fakeUnits struct {
	mu    sync.Mutex
	state map[string]string
}

func (f *fakeUnits) set(unit, state string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state[unit] = state
}

func (f *fakeUnits) look(_ context.Context, unit string) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.state[unit] == "" {
		return "", errors.New("D-Bus is away")
	}
	return f.state[unit], nil
}

// stateChanged is what systemd sends when a unit's state has changed.
func stateChanged(unit string) *dbus.PropertiesUpdate {
	u := &dbus.PropertiesUpdate{UnitName: unit}
	has(&u.Changed, "ActiveState")
	return u
}

func has[V any](m *map[string]V, name string) { *m = map[string]V{name: *new(V)} }

// An end is told at once and once, and again after the unit was active again; what a
// signal says that was overtaken, what systemd starts again by itself, other units,
// and an end that nobody can confirm are none.
func TestTheEndOfAUnitIsTold(t *testing.T) {
	f := &fakeUnits{state: map[string]string{}}
	e := newUnitEnds(f.look)
	defer e.close()
	told := make(chan string, 10)
	h := &unitHandle{name: "lab@web.service"}
	e.watch(h, func() { told <- "ended" }, func() { told <- "active" })
	e.started.Do(func() { e.work.Go(e.run) })
	// expects what is told of these states, by the time that the last of all is told.
	last := &unitHandle{name: "last.service"}
	e.watch(last, func() { told <- "last" }, func() {})
	for _, step := range []struct{ state, want string }{
		{"failed", ""}, // it has never been active: its start is what fails
		{"active", "active"},
		{"activating", ""}, // by its Restart=
		{"active", "active"},
		{"", ""},
		{"inactive", "ended"},
		{"failed", ""},
		{"active", "active"},
		{"failed", "ended"},
	} {
		f.set(h.name, step.state)
		f.set(last.name, "inactive")
		last.up.Store(true)
		e.updates <- stateChanged(h.name)
		e.updates <- &dbus.PropertiesUpdate{UnitName: h.name} // of another property
		e.updates <- stateChanged("foreign.service")
		e.updates <- stateChanged(last.name)
		for _, want := range []string{step.want, "last"} {
			if want == "" {
				continue
			}
			if got := <-told; got != want {
				t.Fatalf("%q: told %q, want %q", step.state, got, want)
			}
		}
	}
	again := &unitHandle{name: h.name} // started anew: the old handle's end takes nothing from it
	e.watch(again, func() { told <- "ended" }, func() {})
	e.forget(h)
	again.up.Store(true)
	e.lookAtAll() // as after D-Bus was away
	if got := <-told; got != "ended" {
		t.Errorf("told %q of what had ended while nobody listened", got)
	}
}
