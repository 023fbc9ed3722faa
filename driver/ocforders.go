package driver

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"pvc.internal/cluster"
)

// ocfOrder is one order under way. Its steps, and the monitor's exit statuses
// between which they lead:
//
//	       start                promote
//	7 ───────────────▶ 0 ───────────────────▶ 8
//	▲ ◀─────stop────── │ ◀─────demote──────── │
//	│                  └── post-promote of another, where notify is announced
//	└──stop── 1, 9: what runs has failed; it is stopped before it is started again,
//	          of an ephemeral workload never by the same order
//
// A step that does not lead there is an error, and no further one is done.
type ocfOrder struct {
	o *OCF
	a *ocfAgent
	w cluster.Workload
	t cluster.Token
	// untold is why this copy was not told of what this very order did to it: that
	// fails no order, as Pacemaker has it.
	untold error
}

// unknown says that the agent does not know an action.
func (r *ocfOrder) unknown(action string) error {
	return fmt.Errorf("OCF agent %s knows no %s: nothing was done: %w", r.a, action, cluster.ErrRefused)
}

func (r *ocfOrder) carryOut(ctx context.Context, order cluster.CopyOrder) error {
	replicated := r.w.Kind == cluster.WorkloadReplicated
	switch order.Op {
	case cluster.CopyStart:
		return r.start(ctx)
	case cluster.CopyPromote:
		if !replicated {
			return r.start(ctx)
		}
		return r.promote(ctx, order.Secret)
	case cluster.CopyFollow:
		if !replicated || order.Source == nil || order.Source.Node == r.o.cfg.Node {
			return fmt.Errorf("it has to be a replicated workload, and to name another node to follow: nothing was done: %w", cluster.ErrRefused)
		}
		return r.follow(ctx, *order.Source, order.Secret)
	case cluster.CopyAdmit:
		return r.keep(func(k *ocfRecord) { k.Activation = activationName(order.Secret) })
	case cluster.CopyDemote:
		return r.demote(ctx)
	case cluster.CopyStop, cluster.CopyDestroy:
		return r.stop(ctx)
	case cluster.CopyNotify:
		return r.notified(ctx, order.Note)
	case cluster.CopyMigrateTo:
		return r.migrateTo(ctx, order.Source)
	case cluster.CopyMigrateFrom:
		return r.migrateFrom(ctx, order.Source)
	}
	return fmt.Errorf("the ocf driver knows no order %q: bring all nodes to one version: %w", order.Op, cluster.ErrRefused)
}

// activationName names an activation by its secret, which is never kept.
func activationName(secret string) string {
	if secret == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:8])
}

// keep changes the copy's record.
func (r *ocfOrder) keep(edit func(*ocfRecord)) error {
	return r.o.store.change(r.w.Name, r.w.ID, func(k *ocfRecord) error { edit(k); return nil })
}

// monitor is what the agent's monitor says now.
func (r *ocfOrder) monitor(ctx context.Context, interval time.Duration) (int, ocfFault, error) {
	res, err := r.o.look(ctx, r.a, r.w, "monitor", interval)
	if err != nil {
		return -1, ocfFault{}, fmt.Errorf("OCF agent %s: monitor: %w", r.a, err)
	}
	if _, known := ocfState(r.w.Kind, res.ExitCode); !known {
		return -1, ocfFault{}, fmt.Errorf("OCF agent %s: monitor: %w", r.a, faultOf(res))
	}
	return res.ExitCode, faultOf(res), nil
}

func runs(code int) bool     { return code == ocfSuccess || code == ocfDegraded || promoted(code) }
func promoted(code int) bool { return code == ocfRunningPromoted || code == ocfDegradedPromoted }
func ended(code int) bool    { return code == ocfNotRunning || code == ocfNotInstalled }

// start brings the copy up, serving nobody if there are others.
func (r *ocfOrder) start(ctx context.Context) error {
	code, err := r.bringUp(ctx)
	if err == nil && promoted(code) && r.w.Kind == cluster.WorkloadReplicated {
		err = r.demote(ctx)
	}
	return err
}

// bringUp has the copy run, and held by the guard, by its agent's start if need be.
// It returns the monitor's exit status then.
func (r *ocfOrder) bringUp(ctx context.Context) (int, error) {
	code, _, err := r.monitor(ctx, 0)
	if err != nil {
		return code, err
	}
	held, err := r.o.held(ctx, r.w)
	if err != nil {
		return code, err
	}
	if held != nil && (held.Note != r.w.ID || held.Ending) { // of an earlier workload of this name, which was removed unseen, or of an earlier right
		if err := r.takeDown(ctx, code); err != nil {
			return code, fmt.Errorf("an earlier copy is here, which is to end and could not be stopped: %w", err)
		}
		return r.launch(ctx)
	}
	switch {
	case runs(code) && held != nil:
		return code, nil
	case runs(code): // somebody else has started it: from now on it ends with this node
		return code, r.hold(ctx)
	case held != nil || !ended(code):
		if err := r.takeDown(ctx, code); err != nil {
			return code, fmt.Errorf("what is there has failed and could not be stopped: %w", err)
		}
		if !ended(code) && r.w.Ephemeral && r.w.Kind == cluster.WorkloadReplicated {
			return code, fmt.Errorf("what ran had failed and was stopped; started again it would come back empty, so that was not done: %w", cluster.ErrRefused)
		}
	}
	return r.launch(ctx)
}

// launch starts the copy, which does not run, and looks whether it does then.
func (r *ocfOrder) launch(ctx context.Context) (int, error) {
	const action = "start"
	start := rand.Text()
	if err := r.keep(func(k *ocfRecord) { k.Start = start }); err != nil { // before: what it says of itself then is of this start
		return -1, err
	}
	if err := r.o.cfg.Guard.StartCopy(ctx, r.t, r.service(action, r.actionArgv(action))); err != nil {
		_ = r.keep(func(k *ocfRecord) { k.Start = "" })
		return -1, fmt.Errorf("OCF agent %s: %s: %w", r.a, action, ofGuard(err))
	}
	code, fault, err := r.monitor(ctx, recurringMonitor)
	if err == nil && !runs(code) {
		err = fmt.Errorf("OCF agent %s said that %s was done, but its monitor says: %w", r.a, action, fault)
	}
	if err == nil {
		r.started(ctx)
		return code, nil
	}
	stopping, cancel := r.detached(ctx, "stop")
	defer cancel()
	return code, errors.Join(err, r.takeDown(stopping, code))
}

// started tells a copy of several that it was started, as all of them are told.
func (r *ocfOrder) started(ctx context.Context) {
	if r.w.Kind != cluster.WorkloadReplicated {
		return
	}
	r.own(ctx, "post", "start", r.o.store.load(r.w.Name, r.w.ID).Promoted)
}

// detached is a context for taking back what an order has begun, which may have
// failed for want of time.
func (r *ocfOrder) detached(ctx context.Context, action string) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), r.a.timeout(r.w, action)+afterwardsLimit)
}

// hold makes a copy that runs already the guard's.
func (r *ocfOrder) hold(ctx context.Context) error {
	if err := r.o.cfg.Guard.StartCopy(ctx, r.t, r.service("start", []string{"/bin/true"})); err != nil {
		return fmt.Errorf("hold the copy, which runs already, on this node's deadline: %w", err)
	}
	return r.keep(func(k *ocfRecord) { k.Start = rand.Text() })
}

// actionArgv is how an action is run as a part of a service, whose environment is
// one for all of them.
func (r *ocfOrder) actionArgv(action string) []string {
	timeout := r.a.timeout(r.w, action)
	return []string{"/usr/bin/env", "OCF_RESKEY_CRM_meta_name=" + action, fmt.Sprintf("OCF_RESKEY_CRM_meta_timeout=%d", timeout.Milliseconds()), r.a.path, action}
}

// stopPromoted stops a copy of which agents are several that refuse it, or do
// nothing, while they are promoted. The agent is its $0.
const stopPromoted = `"$0" stop && exit 0; "$0" demote; exec "$0" stop`

// service is the copy as the guard has it: this is brought up by argv, and ends by
// the agent's stop.
func (r *ocfOrder) service(action string, argv []string) cluster.ServiceSpec {
	stop := r.actionArgv("stop")
	stopTime := r.a.timeout(r.w, "stop")
	if r.w.Kind == cluster.WorkloadReplicated {
		stop = append(stop[:len(stop)-2:len(stop)-2], "/bin/sh", "-c", stopPromoted, r.a.path)
	}
	env := r.o.env(r.a, r.w, action, 0)
	if r.a.meta.announces("notify") && r.w.Kind == cluster.WorkloadReplicated {
		maps.Copy(env, r.o.notifyEnv(r.w, r.o.store.load(r.w.Name, r.w.ID).Promoted, ocfEvent{}))
	}
	return cluster.ServiceSpec{Name: ServiceName(r.w.Name), Kind: cluster.ServiceActions, Command: argv, Stop: stop, Env: envList(env),
		StartTimeout: r.a.timeout(r.w, action), StopTimeout: stopTime, Note: r.w.ID}
}

// act runs an action within the copy; more is environment of this one alone.
func (r *ocfOrder) act(ctx context.Context, action string, more map[string]string) error {
	return r.actWithin(ctx, action, r.a.timeout(r.w, action), more)
}

// actWithin is act for an action that may take so long.
func (r *ocfOrder) actWithin(ctx context.Context, action string, limit time.Duration, more map[string]string) error {
	env := r.o.env(r.a, r.w, action, 0)
	maps.Copy(env, more)
	env["OCF_RESKEY_CRM_meta_timeout"] = strconv.FormatInt(limit.Milliseconds(), 10)
	res, err := r.o.cfg.Guard.RunInCopy(ctx, r.t, ServiceName(r.w.Name), cluster.RunRequest{Argv: []string{r.a.path, action}, Env: env, Timeout: limit})
	if err := resultError(res, err); err != nil {
		return fmt.Errorf("OCF agent %s: %s: %w", r.a, action, err)
	}
	if res.ExitCode != ocfSuccess {
		return fmt.Errorf("OCF agent %s: %s: %w", r.a, action, faultOf(res))
	}
	return nil
}

// reach looks whether the copy is what the action was to make of it.
func (r *ocfOrder) reach(ctx context.Context, action string, there func(code int) bool) error {
	code, fault, err := r.monitor(ctx, recurringMonitor)
	if err == nil && !there(code) {
		err = fmt.Errorf("OCF agent %s said that %s was done, but its monitor says: %w", r.a, action, fault)
	}
	return err
}

// promote makes the copy the active one.
func (r *ocfOrder) promote(ctx context.Context, secret string) error {
	self := r.o.cfg.Node
	err := r.keep(func(k *ocfRecord) { // before it is started: nobody else is promoted
		if k.Promoted != self {
			k.Promoted = cluster.NoCopy
		}
	})
	if err != nil {
		return err
	}
	code, err := r.bringUp(ctx)
	if err != nil {
		return err
	}
	if !promoted(code) {
		r.own(ctx, "pre", "promote", cluster.NoCopy)
		if err := r.act(ctx, "promote", r.promotion(cluster.NoCopy, ocfEvent{"", "promote", []cluster.NodeID{self}})); err != nil {
			return err
		}
		if err := r.reach(ctx, "promote", promoted); err != nil {
			return err
		}
	}
	if err := r.keep(func(k *ocfRecord) { k.Promoted, k.Activation = self, activationName(secret) }); err != nil {
		return err
	}
	if !promoted(code) {
		r.own(ctx, "post", "promote", self)
	}
	return nil
}

// promotion is what an action is told beside its parameters, where the agent wants
// to be notified.
func (r *ocfOrder) promotion(promoted cluster.NodeID, e ocfEvent) map[string]string {
	if !r.a.meta.announces("notify") {
		return nil
	}
	env := r.o.notifyEnv(r.w, promoted, e)
	if e.when == "" { // of this very action, not a notification of it
		delete(env, "OCF_RESKEY_CRM_meta_notify_type")
		delete(env, "OCF_RESKEY_CRM_meta_notify_operation")
	}
	return env
}

// event notifies the copy of what happens, if its agent wants to be, within the limit.
func (r *ocfOrder) event(ctx context.Context, e ocfEvent, promoted cluster.NodeID, limit time.Duration) error {
	if !r.a.meta.announces("notify") {
		return nil
	}
	return r.actWithin(ctx, "notify", limit, r.promotion(promoted, e))
}

// own notifies the copy of what this order does to it, which goes on whatever becomes
// of that.
func (r *ocfOrder) own(ctx context.Context, when, what string, promoted cluster.NodeID) {
	err := r.event(ctx, ocfEvent{when, what, []cluster.NodeID{r.o.cfg.Node}}, promoted, r.a.notifyLimit(r.w, ownNotifyLimit))
	if err != nil && r.untold == nil {
		r.untold = fmt.Errorf("%s-%s: %w", when, what, err)
	}
}

// follow has the copy run unpromoted, and tells it who is promoted. One that was
// told already, in this activation, is not told again.
func (r *ocfOrder) follow(ctx context.Context, source cluster.CopySource, secret string) error {
	before := r.o.store.load(r.w.Name, r.w.ID)
	err := r.keep(func(k *ocfRecord) { // before it is started: some follow then
		k.Promoted, k.Activation = source.Node, ""
		if name, ok := followAttribute(r.a, r.w); ok {
			_ = k.setAttribute(attributeCluster, name, &source.Host)
		}
	})
	if err != nil {
		return err
	}
	code, err := r.bringUp(ctx)
	if err != nil {
		return err
	}
	if promoted(code) {
		if err := r.demote(ctx); err != nil {
			return err
		}
		if err := r.keep(func(k *ocfRecord) { k.Promoted = source.Node }); err != nil {
			return err
		}
	}
	activation := activationName(secret)
	told := before.Promoted == source.Node && before.Activation == activation && before.Start != "" && before.Start == r.o.store.load(r.w.Name, r.w.ID).Start
	if !told {
		// By this it follows: it has all the time that its agent takes, and may fail.
		if err := r.event(ctx, ocfEvent{"post", "promote", []cluster.NodeID{source.Node}}, source.Node, r.a.timeout(r.w, "notify")); err != nil {
			return err
		}
	}
	return r.keep(func(k *ocfRecord) { k.Activation = activation })
}

// followAttribute is the attribute of the whole cluster by which an agent finds the
// promoted copy. Only of those agents that are known to keep its address there.
func followAttribute(a *ocfAgent, w cluster.Workload) (name string, ok bool) {
	if a.kind == "redis" {
		return w.Name + "_REPL_INFO", true
	}
	return "", false
}

// demote has the copy serve nobody any more.
func (r *ocfOrder) demote(ctx context.Context) error {
	code, _, err := r.monitor(ctx, recurringMonitor)
	if err != nil {
		return err
	}
	if !promoted(code) && code != ocfFailedPromoted {
		return r.keep(r.notPromoted)
	}
	if !r.a.meta.announces("demote") {
		return r.unknown("demote")
	}
	if err := r.keep(r.notPromoted); err != nil { // before: some look who is promoted
		return err
	}
	self := r.o.cfg.Node
	r.own(ctx, "pre", "demote", self)
	if err := r.act(ctx, "demote", r.promotion(self, ocfEvent{"", "demote", []cluster.NodeID{self}})); err != nil {
		return err
	}
	if err := r.reach(ctx, "demote", func(code int) bool { return !promoted(code) && code != ocfFailedPromoted }); err != nil {
		return err
	}
	r.own(ctx, "post", "demote", cluster.NoCopy)
	return nil
}

func (r *ocfOrder) notPromoted(k *ocfRecord) {
	if k.Promoted == r.o.cfg.Node {
		k.Promoted = cluster.NoCopy
	}
}

// stop has nothing of the copy run. What is promoted is demoted first, for agents
// that want it so, and told of its end; where that fails it is stopped nevertheless.
func (r *ocfOrder) stop(ctx context.Context) error {
	code, _, err := r.monitor(ctx, 0)
	if err == nil && r.w.Kind == cluster.WorkloadReplicated && promoted(code) {
		_ = r.demote(ctx)
	}
	if err == nil && r.w.Kind == cluster.WorkloadReplicated && runs(code) {
		r.own(ctx, "pre", "stop", r.o.store.load(r.w.Name, r.w.ID).Promoted)
	}
	if err != nil {
		code = ocfGeneric // not known: by all means
	}
	if err := r.takeDown(ctx, code); err != nil {
		return err
	}
	return r.keep(func(k *ocfRecord) { k.Start, k.Promoted, k.Activation = "", cluster.NoCopy, "" })
}

// takeDown stops the copy, which the guard may hold or not, and looks whether it
// has ended. code is what the monitor has said before.
func (r *ocfOrder) takeDown(ctx context.Context, code int) error {
	if err := r.o.cfg.Guard.StopCopy(ctx, r.t, ServiceName(r.w.Name)); err != nil {
		return fmt.Errorf("OCF agent %s: stop: %w", r.a, ofGuard(err))
	}
	if ended(code) {
		return nil
	}
	code, _, err := r.monitor(ctx, 0)
	if err == nil && ended(code) {
		return nil
	}
	// The guard did not hold it, or not this one: somebody else has started it.
	if err := r.act(ctx, "stop", nil); err != nil {
		return err
	}
	return r.reach(ctx, "stop", ended)
}

// notified tells the copy of what happens to another.
func (r *ocfOrder) notified(ctx context.Context, note string) error {
	e, err := parseOCFEvent(note)
	if err != nil {
		return err
	}
	// As Pacemaker, by what is known: a monitor that is slow would have whoever tells give
	// it up, though nothing hangs.
	held, err := r.o.held(ctx, r.w)
	if err != nil || held == nil || held.Note != r.w.ID || held.Ending {
		return err
	}
	promoted := r.o.store.load(r.w.Name, r.w.ID).Promoted
	switch {
	case e.when != "post":
	case e.what == "promote" && promoted != e.nodes[0]:
		promoted = e.nodes[0]
		if err := r.keep(func(k *ocfRecord) { k.Promoted = promoted }); err != nil {
			return err
		}
	case e.what != "start" && slices.Contains(e.nodes, promoted): // whom it follows next is told by who is
		promoted = cluster.NoCopy
	}
	return r.event(ctx, e, promoted, r.a.notifyLimit(r.w, otherNotifyLimit))
}

// migrateTo has the agent move the running copy to another node, where migrateFrom
// takes it over; a stop here is to follow. What the monitor here says between the two is
// the agent's affair: some keep the copy, paused, until that stop.
func (r *ocfOrder) migrateTo(ctx context.Context, target *cluster.CopySource) error {
	if err := r.mayMigrate(target); err != nil {
		return err
	}
	if err := r.intended(r.o.cfg.Node, target.Node); err != nil {
		return err
	}
	if _, err := r.bringUp(ctx); err != nil {
		return err
	}
	return r.act(ctx, "migrate_to", r.migration(r.o.cfg.Node, target.Node))
}

func (r *ocfOrder) mayMigrate(other *cluster.CopySource) error {
	switch {
	case !r.a.meta.announces("migrate_to", "migrate_from"):
		return r.unknown("migrate_to")
	case r.w.Kind != cluster.WorkloadMovable:
		return fmt.Errorf("only a movable workload is migrated: nothing was done: %w", cluster.ErrRefused)
	case other == nil || other.Node == r.o.cfg.Node:
		return fmt.Errorf("it has to name the other node: nothing was done: %w", cluster.ErrRefused)
	}
	return nil
}

// intended reports that the record behind the order is not in the middle of this very
// move: a second copy comes into being by nothing else (I4).
func (r *ocfOrder) intended(from, to cluster.NodeID) error {
	next := r.w.Next
	if next == nil || next.Live != cluster.LiveMigrating || r.w.Head() != from || len(next.Chain) != 1 || next.Chain[0] != to {
		return fmt.Errorf("the workload's record knows of no live move from %s to %s: nothing was done: %w", from, to, cluster.ErrRefused)
	}
	return nil
}

func (r *ocfOrder) migration(from, to cluster.NodeID) map[string]string {
	return map[string]string{"OCF_RESKEY_CRM_meta_migrate_source": string(from), "OCF_RESKEY_CRM_meta_migrate_target": string(to)}
}

// migrateFrom takes over what migrateTo has brought here.
func (r *ocfOrder) migrateFrom(ctx context.Context, source *cluster.CopySource) error {
	if err := r.mayMigrate(source); err != nil {
		return err
	}
	if err := r.intended(source.Node, r.o.cfg.Node); err != nil {
		return err
	}
	held, err := r.o.held(ctx, r.w)
	if err != nil {
		return err
	}
	switch {
	case held != nil && (held.Note != r.w.ID || held.Ending): // as in bringUp; here its end would be that of what has arrived
		return fmt.Errorf("an earlier copy is here, which is to end: nothing was done: %w", cluster.ErrRefused)
	case held != nil:
		return r.reach(ctx, "migrate_from", runs)
	}
	argv := r.actionArgv("migrate_from")
	for name, value := range r.migration(source.Node, r.o.cfg.Node) {
		argv = append([]string{argv[0], name + "=" + value}, argv[1:]...)
	}
	if err := r.keep(func(k *ocfRecord) { k.Start = rand.Text() }); err != nil {
		return err
	}
	if err := r.o.cfg.Guard.StartCopy(ctx, r.t, r.service("migrate_from", argv)); err != nil {
		return fmt.Errorf("OCF agent %s: migrate_from: %w", r.a, ofGuard(err))
	}
	err = r.reach(ctx, "migrate_from", runs)
	if err == nil {
		return nil
	}
	stopping, cancel := r.detached(ctx, "stop")
	defer cancel()
	return errors.Join(err, r.takeDown(stopping, ocfGeneric)) // as after a start: nothing is held that does not run
}
