package guard

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
)

// unitQueue is how many changes of units systemd may be ahead of us. What comes
// beyond is lost, and found by whoever looks.
const unitQueue = 256

// unitLook bounds a question to systemd that nobody waits for.
const unitLook = time.Second

// unitEnds hears from systemd when units that the guard has started end by
// themselves. It is a hint: what it misses (D-Bus was restarted, a queue was full)
// is found by the next look.
//
//	a unit's handle:  up ──inactive, failed──▶ told, once ──active──▶ up
//
// A unit that systemd starts again by its own Restart= is activating meanwhile, and so
// has not ended.
//
// What systemd tells may have been overtaken by an order: its state is asked for once
// more before an end is told.
type unitEnds struct {
	look    func(ctx context.Context, unit string) (state string, err error)
	updates chan *dbus.PropertiesUpdate
	lost    chan error // that updates was full

	life    context.Context // ends with close
	cancel  context.CancelFunc
	work    sync.WaitGroup
	started sync.Once

	mu      sync.Mutex
	watched map[string]watchedUnit
}

type watchedUnit struct {
	handle *unitHandle
	ended  func()
	active func()
}

func newUnitEnds(look func(ctx context.Context, unit string) (string, error)) *unitEnds {
	e := &unitEnds{look: look, updates: make(chan *dbus.PropertiesUpdate, unitQueue), lost: make(chan error, 1), watched: map[string]watchedUnit{}}
	e.life, e.cancel = context.WithCancel(context.Background())
	return e
}

// close ends the listening. Its connection is closed already, or lost: what waits for
// an answer of systemd's all the same ends with this process.
func (e *unitEnds) close() {
	e.mu.Lock()
	e.cancel()
	e.mu.Unlock()
	ended := make(chan struct{})
	go func() { e.work.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(unitLook):
	}
}

// watch has ended called when the unit has ended, and active when it is active again.
// Neither may block for long.
func (e *unitEnds) watch(h *unitHandle, ended, active func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.watched[h.name] = watchedUnit{h, ended, active}
}

// forget ends the watch, unless it is another handle's by now.
func (e *unitEnds) forget(h *unitHandle) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.watched[h.name].handle == h {
		delete(e.watched, h.name)
	}
}

// listen subscribes to the units' changes, and looks then at those that are watched:
// what has changed before was told to nobody.
func (e *unitEnds) listen(conn *dbus.Conn) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.life.Err() != nil {
		return
	}
	e.started.Do(func() { e.work.Go(e.run) })
	conn.SetPropertiesSubscriber(e.updates, e.lost)
	e.work.Go(func() { // ends with the connection
		if conn.Subscribe() == nil {
			e.lookAtAll()
		}
	})
}

func (e *unitEnds) lookAtAll() {
	e.mu.Lock()
	names := slices.Collect(maps.Keys(e.watched))
	e.mu.Unlock()
	for _, name := range names {
		e.changed(name)
	}
}

// run delivers until close.
func (e *unitEnds) run() {
	for {
		select {
		case <-e.life.Done():
			return
		case <-e.lost: //nolint:errcheck // that it has come is all
		case u := <-e.updates:
			if _, is := u.Changed["ActiveState"]; is {
				e.changed(u.UnitName)
			}
		}
	}
}

// changed looks at a unit whose state has changed.
func (e *unitEnds) changed(name string) {
	e.mu.Lock()
	w, is := e.watched[name]
	e.mu.Unlock()
	if !is {
		return
	}
	ctx, cancel := context.WithTimeout(e.life, unitLook)
	defer cancel()
	switch state, err := e.look(ctx, name); {
	case err != nil:
	case state == "active":
		w.handle.up.Store(true)
		w.active()
	case unitEnded(state) && w.handle.up.Swap(false):
		w.ended()
	}
}

// unitEnded reports whether a unit in this state runs no more, and is not about to.
func unitEnded(state string) bool { return state == "inactive" || state == "failed" }

// watchUnit tells when a unit that nobody stops has ended.
func (g *Guard) watchUnit(r *role, s *service) {
	const text = "its unit is not active any more"
	g.units.ends.watch(s.unit, func() {
		g.mu.Lock()
		ended := r.ended || r.services[s.spec.Name] != s
		g.mu.Unlock()
		s.mu.Lock()
		over := !ended && !s.stopping
		if over {
			s.checked, s.failure = false, text
		}
		s.mu.Unlock()
		if over {
			g.tellExited(r, s, text)
		}
	}, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.failure == text {
			s.failure = ""
		}
	})
}
