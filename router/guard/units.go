package guard

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"

	"pvc.internal/cluster"
)

// unitPoll is between looks at a unit that is to end.
const unitPoll = 5 * time.Millisecond

// units speaks to systemd. The connection is made when it is first needed, and
// again when it was lost.
type units struct {
	dialing sync.Mutex
	conn    atomic.Pointer[dbus.Conn] // read on the path that ends a role: no lock
	ends    *unitEnds
}

func newUnits() *units {
	u := &units{}
	u.ends = newUnitEnds(func(ctx context.Context, unit string) (string, error) {
		conn := u.conn.Load()
		if conn == nil {
			return "", errNoSystemd
		}
		return activeState(ctx, conn, unit)
	})
	return u
}

// errNoSystemd says that no connection stands; whoever looks next makes one.
var errNoSystemd = errors.New("no connection to systemd")

func (u *units) connect(ctx context.Context) (*dbus.Conn, error) {
	u.dialing.Lock()
	defer u.dialing.Unlock()
	if conn := u.conn.Load(); conn != nil && conn.Connected() {
		return conn, nil
	}
	// Its life is the guard's, not the request's.
	conn, err := dbus.NewSystemConnectionContext(context.WithoutCancel(ctx))
	if err != nil {
		return nil, fmt.Errorf("reach systemd over D-Bus: %w; services of kind \"unit\" need it, \"hook\" does not", err)
	}
	if before := u.conn.Swap(conn); before != nil {
		before.Close() // half of it may live
	}
	u.ends.listen(conn)
	return conn, nil
}

func (u *units) close() {
	if conn := u.conn.Swap(nil); conn != nil {
		conn.Close()
	}
	u.ends.close()
}

// unitHandle is one unit.
type unitHandle struct {
	units *units
	name  string
	group atomic.Pointer[string] // control group's directory, so that it can be killed without systemd
	up    atomic.Bool            // it has been active, and has not ended since (unitEnds)
}

// groupDir returns the unit's control group, "" if unknown.
func (h *unitHandle) groupDir() string {
	if g := h.group.Load(); g != nil {
		return *g
	}
	return ""
}

// handle checks that the unit can be started.
func (u *units) handle(ctx context.Context, name string) (*unitHandle, error) {
	if err := u.loadable(ctx, name); err != nil {
		return nil, err
	}
	return &unitHandle{units: u, name: name}, nil
}

// adopt names a unit that an earlier guard has started.
func (u *units) adopt(name, group string) *unitHandle {
	h := &unitHandle{units: u, name: name}
	h.group.Store(&group)
	h.up.Store(true)
	return h
}

// loadable reports why systemd cannot start the unit.
func (u *units) loadable(ctx context.Context, name string) error {
	conn, err := u.connect(ctx)
	if err != nil {
		return err
	}
	props, err := conn.GetUnitPropertiesContext(ctx, name)
	if err != nil {
		return fmt.Errorf("look at unit %s: %w", name, err)
	}
	if state := props["LoadState"]; state != "loaded" {
		return fmt.Errorf("unit %s is not loadable (%v): install or unmask it: %w", name, state, cluster.ErrNotFound)
	}
	return nil
}

// start starts the unit and waits for the job.
func (h *unitHandle) start(ctx context.Context) error {
	conn, err := h.units.connect(ctx)
	if err != nil {
		return err
	}
	result := make(chan string, 1)
	if _, err := conn.StartUnitContext(ctx, h.name, "replace", result); err != nil {
		return fmt.Errorf("start unit %s: %w", h.name, err)
	}
	select {
	case r := <-result:
		if r != "done" {
			return fmt.Errorf("start unit %s: the job ended as %q: see `systemctl status %s`", h.name, r, h.name)
		}
	case <-ctx.Done():
		return fmt.Errorf("start unit %s: %w", h.name, context.Cause(ctx))
	}
	if prop, err := conn.GetServicePropertyContext(ctx, h.name, "ControlGroup"); err == nil {
		if path, ok := prop.Value.Value().(string); ok && path != "" {
			dir := findGroup(path)
			h.group.Store(&dir)
		}
	}
	h.up.Store(true)
	return nil
}

// findGroup is where a control group's files are, in a unified or hybrid layout.
func findGroup(path string) string {
	for _, mount := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		dir := filepath.Join(mount, path)
		if _, err := os.Stat(filepath.Join(dir, "cgroup.events")); err == nil {
			return dir
		}
	}
	return ""
}

// state returns the unit's active state; "inactive" for one systemd does not know.
func (h *unitHandle) state(ctx context.Context) (string, error) {
	conn, err := h.units.connect(ctx)
	if err != nil {
		return "", err
	}
	return activeState(ctx, conn, h.name)
}

func activeState(ctx context.Context, conn *dbus.Conn, unit string) (string, error) {
	prop, err := conn.GetUnitPropertyContext(ctx, unit, "ActiveState")
	if err != nil {
		return "", fmt.Errorf("look at unit %s: %w", unit, err)
	}
	state, _ := prop.Value.Value().(string)
	return state, nil
}

func (h *unitHandle) active() bool {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	state, err := h.state(ctx)
	return err == nil && (state == "active" || state == "reloading" || state == "activating")
}

// stop asks systemd to stop the unit, kills it after grace, and returns once it
// is verified inactive with nothing left in its control group.
func (h *unitHandle) stop(ctx context.Context, grace time.Duration) error {
	if grace <= 0 {
		h.killNow()
	}
	conn, err := h.units.connect(ctx)
	if err == nil {
		_, err = conn.StopUnitContext(ctx, h.name, "replace", nil) // also ends its restarts
	}
	kill := time.Now().Add(grace)
	for {
		state, stateErr := h.state(ctx)
		if stateErr == nil && unitEnded(state) && h.empty() {
			h.units.ends.forget(h)
			return nil
		}
		if time.Now().After(kill) {
			h.killNow()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("stop unit %s: it is %q: %w", h.name, state, errors.Join(err, stateErr, context.Cause(ctx)))
		case <-time.After(unitPoll):
		}
	}
}

// killNow kills what is in the unit's control group, without systemd where that
// is known, and tells systemd too, which would restart it otherwise.
func (h *unitHandle) killNow() {
	if dir := h.groupDir(); dir != "" {
		_ = os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0)
	}
	conn := h.units.conn.Load()
	if conn == nil {
		return
	}
	go func() { // bounded; its outcome is verified by stop
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, _ = conn.StopUnitContext(ctx, h.name, "replace", nil)
		_ = conn.KillUnitWithTarget(ctx, h.name, dbus.All, 9)
	}()
}

// empty reports whether nothing is left in the unit's control group.
func (h *unitHandle) empty() bool {
	if h.groupDir() == "" {
		return true
	}
	raw, err := os.ReadFile(filepath.Join(h.groupDir(), "cgroup.events"))
	return err != nil || strings.Contains(string(raw), "populated 0")
}
