package driver

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"

	"pvc.internal/cluster"
)

// templateUnit is what an instance is made of: name@.service.
var templateUnit = regexp.MustCompile(`^[A-Za-z0-9_.:][A-Za-z0-9_.:-]{0,99}@\.service$`)

// unitState is a unit as systemd has it.
type unitState struct {
	Load     string   // loaded, not-found, masked, …
	File     string   // disabled, static, enabled, …; of its file
	Active   string   // active, inactive, failed, …
	WantedBy []string // what pulls it in, at boot above all
}

// Systemd runs instances of template units as movable workloads: the workload web of
// agent site@.service is the unit site@web.service. It is started and stopped by the
// guard, under the node's deadline as any other copy, and so it must not be anybody
// else's: not enabled, and wanted by nothing.
type Systemd struct {
	node  cluster.NodeID
	guard Guard
	look  func(ctx context.Context, unit string) (unitState, error)
}

// NewSystemd makes the driver.
func NewSystemd(node cluster.NodeID, guard Guard) *Systemd {
	return &Systemd{node: node, guard: guard, look: lookAtUnit}
}

// lookAtUnit asks systemd, by a connection of its own: it is asked seldom, and a
// kept one would have to be watched.
func lookAtUnit(ctx context.Context, unit string) (unitState, error) {
	conn, err := dbus.NewSystemConnectionContext(ctx)
	if err != nil {
		return unitState{}, fmt.Errorf("reach systemd over D-Bus: %w", err)
	}
	defer conn.Close()
	props, err := conn.GetUnitPropertiesContext(ctx, unit)
	if err != nil {
		return unitState{}, fmt.Errorf("look at unit %s: %w", unit, err)
	}
	text := func(name string) string { s, _ := props[name].(string); return s }
	s := unitState{Load: text("LoadState"), File: text("UnitFileState"), Active: text("ActiveState")}
	for _, name := range []string{"WantedBy", "RequiredBy", "UpheldBy"} {
		list, _ := props[name].([]string)
		s.WantedBy = append(s.WantedBy, list...)
	}
	return s, nil
}

// service is the workload as the guard runs it.
func (d *Systemd) service(w cluster.Workload) (cluster.ServiceSpec, error) {
	s := cluster.ServiceSpec{Name: ServiceName(w.Name), Kind: cluster.ServiceUnit, Note: w.ID, StartTimeout: defaultStartTimeout, StopTimeout: defaultStopTimeout}
	switch {
	case w.Kind != cluster.WorkloadMovable:
		return s, fmt.Errorf("workload %q: driver systemd runs movable workloads only: it can promote nothing: %w", w.Name, cluster.ErrRefused)
	case !templateUnit.MatchString(w.Agent):
		return s, fmt.Errorf("workload %q: its agent is %q, and driver systemd needs a template unit, as in name@.service: %w", w.Name, w.Agent, cluster.ErrRefused)
	}
	s.Unit = strings.TrimSuffix(w.Agent, ".service") + w.Name + ".service"
	for _, name := range slices.Sorted(maps.Keys(w.Params)) {
		var err error
		switch name {
		case execStartTimeout:
			s.StartTimeout, err = duration(w.Params[name], time.Second)
		case execStopTimeout:
			s.StopTimeout, err = duration(w.Params[name], 100*time.Millisecond)
		default:
			err = fmt.Errorf("driver systemd knows start_timeout and stop_timeout; all else stands in the unit")
		}
		if err != nil {
			return s, fmt.Errorf("workload %q: parameter %s: %w: %w", w.Name, name, err, cluster.ErrRefused)
		}
	}
	return s, nil
}

// Check implements Driver.
func (d *Systemd) Check(ctx context.Context, w cluster.Workload) error {
	s, err := d.service(w)
	if err != nil {
		return err
	}
	unit, err := d.look(ctx, s.Unit)
	if err != nil {
		return fmt.Errorf("workload %q: %w", w.Name, err)
	}
	return d.mayRun(w, s.Unit, unit)
}

// mayRun reports why the unit must not be run as a workload.
func (d *Systemd) mayRun(w cluster.Workload, name string, u unitState) error {
	var why string
	switch {
	case u.Load != "loaded":
		why = fmt.Sprintf("systemd has it as %q: install %s there, and run systemctl daemon-reload", u.Load, w.Agent)
	case !slices.Contains([]string{"disabled", "static", "indirect", "linked", "linked-runtime", ""}, u.File):
		why = fmt.Sprintf("it is %q, so that this node's boot starts it as well: run systemctl disable %s there", u.File, name)
	case len(u.WantedBy) > 0:
		why = fmt.Sprintf("%s starts it as well: a workload's unit is started by the cluster only", strings.Join(u.WantedBy, ", "))
	default:
		return nil
	}
	return fmt.Errorf("workload %q: unit %s on node %s: %s: %w", w.Name, name, d.node, why, cluster.ErrRefused)
}

// Probe implements Driver.
func (d *Systemd) Probe(ctx context.Context, w cluster.Workload) (cluster.CopyReport, error) {
	s, err := d.service(w)
	if err != nil {
		return cluster.CopyReport{}, err
	}
	state, here, err := serviceOf(ctx, d.guard, w)
	if err != nil {
		return cluster.CopyReport{}, err
	}
	r := reportOf(w, state, here)
	if r.State == cluster.CopyActive {
		r.Start = "" // its processes are systemd's to restart
		return r, nil
	}
	unit, err := d.look(ctx, s.Unit)
	if err != nil {
		return cluster.CopyReport{}, err
	}
	switch unit.Active {
	case "active", "reloading", "activating", "deactivating", "refreshing":
		r.State, r.Error = cluster.CopyActive, fmt.Sprintf("unit %s is %s, and it was not started as a workload's copy: a start takes it over", s.Unit, unit.Active)
	case "failed":
		r.State, r.Error = cluster.CopyDead, fmt.Sprintf("unit %s has failed: see `systemctl status %s` on node %s", s.Unit, s.Unit, d.node)
	}
	return r, nil
}

// Order implements Driver.
func (d *Systemd) Order(ctx context.Context, t cluster.Token, o cluster.CopyOrder) (cluster.CopyReport, error) {
	w := o.Workload
	s, err := d.service(w)
	if err != nil {
		return cluster.CopyReport{Unknown: true}, err
	}
	switch o.Op {
	case cluster.CopyStart:
		if err = d.Check(ctx, w); err == nil {
			err = d.guard.StartCopy(ctx, t, s)
		}
		return after(ctx, d, w, err)
	case cluster.CopyStop, cluster.CopyDestroy:
		return after(ctx, d, w, d.end(ctx, t, s))
	}
	return cluster.CopyReport{Unknown: true}, fmt.Errorf("workload %q: driver %s cannot %s a copy: %w", w.Name, w.Driver, o.Op, cluster.ErrRefused)
}

// end stops the unit, also one that runs though the guard does not hold it: that is
// taken over first.
func (d *Systemd) end(ctx context.Context, t cluster.Token, s cluster.ServiceSpec) error {
	unit, err := d.look(ctx, s.Unit)
	if err == nil && unit.Load == "loaded" && unit.Active != "inactive" && unit.Active != "failed" {
		state, stateErr := d.guard.State(ctx)
		held := slices.ContainsFunc(state.Services, func(v cluster.ServiceState) bool { return v.Name == s.Name && v.Owner == cluster.OwnerNode })
		if stateErr == nil && !held {
			if err := d.guard.StartCopy(ctx, t, s); err != nil {
				return fmt.Errorf("unit %s runs, and cannot be taken over to be stopped: %w", s.Unit, err)
			}
		}
	}
	return d.guard.StopCopy(ctx, t, s.Name)
}
