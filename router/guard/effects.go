package guard

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
	"pvc.internal/router"
)

// slowStep is how long an exchange with the kernel may have taken before the
// timeout it carried is set anew: the process may have been stopped between
// reading the clock and the kernel's own reading.
const slowStep = 3 * time.Millisecond

// longestLease bounds how far away a deadline may be, and an element's timeout.
const longestLease = time.Hour

// present adds the addresses, opens the gate and sends the first announcement.
func (g *Guard) present(e cluster.Epoch, addrs []cluster.FloatingAddress) error {
	for _, a := range addrs {
		if err := validAddress(a); err != nil {
			return err
		}
	}
	g.addrs.mu.Lock()
	defer g.addrs.mu.Unlock()
	g.mu.Lock()
	r, err := g.liveRole(cluster.OwnerPrimary, e)
	if err == nil && !r.mayAdd {
		err = fmt.Errorf("present addresses: role primary at epoch %d has not been begun since its addresses were withdrawn or the guard was restarted: begin it first: %w", e, cluster.ErrRefused)
	}
	if err != nil {
		g.mu.Unlock()
		return err
	}
	wanted, before := slices.Clone(addrs), r.wanted
	r.wanted, r.suspendedAt = wanted, cluster.Never
	g.record()
	g.mu.Unlock()
	err = g.put(r, wanted)
	if err != nil { // or the next tick would add what was refused here
		g.mu.Lock()
		r.wanted = before
		g.record()
		g.mu.Unlock()
	}
	return err
}

// put makes the kernel have what the role wants, and the gate pass it. The
// caller holds addrs.mu. On any error nothing new of it stays.
func (g *Guard) put(r *role, wanted []cluster.FloatingAddress) error {
	plan, err := g.plan(wanted)
	if err == nil {
		err = conflictError(plan)
	}
	if err == nil {
		err = g.addAll(r, wanted, plan)
	}
	if err == nil {
		err = g.openGate(r, addrsOf(wanted))
	}
	// The clock again: what was added after the deadline must not stay (I3).
	if err == nil && g.left(r) <= 0 {
		err = fmt.Errorf("present addresses: the role's deadline passed meanwhile, they are removed again: %w", cluster.ErrDeadline)
	}
	if err != nil {
		var keep []netip.Prefix
		if !errors.Is(err, cluster.ErrDeadline) {
			keep = prefixes(plan.Keep)
		}
		g.addrs.protectForeign(plan.Add)
		_, undo := g.addrs.removeOurs(keep...)
		return errors.Join(err, undo)
	}
	g.announcer.start(wanted)
	g.addrs.protectForeign(plan.Add) // for the removal, which waits for addrs.mu; nobody waits for this
	return nil
}

// plan compares what is wanted with the kernel. The caller holds addrs.mu.
func (g *Guard) plan(wanted []cluster.FloatingAddress) (router.AddressPlan, error) {
	kernel, err := g.addrs.list()
	if err != nil {
		return router.AddressPlan{}, err
	}
	return router.PlanAddresses(wanted, kernel), nil
}

func conflictError(p router.AddressPlan) error {
	var errs []error
	for _, c := range p.Conflicts {
		errs = append(errs, fmt.Errorf("address %s is on this host's interface %s already, put there by somebody else; remove it there, it was not touched: %w",
			c.Wanted, c.Present.Interface, cluster.ErrConflict))
	}
	return errors.Join(errs...)
}

func prefixes(list []router.KernelAddress) []netip.Prefix {
	var out []netip.Prefix
	for _, k := range list {
		out = append(out, k.Prefix)
	}
	return out
}

// addAll adds what the plan names, removes what of ours it does not want, and
// verifies. The caller holds addrs.mu, and calls protectForeign before it lets go.
func (g *Guard) addAll(r *role, wanted []cluster.FloatingAddress, plan router.AddressPlan) error {
	lifetime, until := g.lifetime(r)
	if lifetime == 0 {
		return fmt.Errorf("add addresses: too little is left of the role for the kernel's shortest lifetime: %w", cluster.ErrDeadline)
	}
	if err := g.addrs.add(plan.Add, lifetime); err != nil {
		return err
	}
	switch {
	case len(plan.Add) > 0 && len(plan.Keep) > 0:
		g.addrs.until = min(g.addrs.until, until)
	case len(plan.Add) > 0:
		g.addrs.until = until
	}
	if len(plan.Remove) > 0 {
		g.addrs.prepare(plan.Remove)
		if err := g.addrs.removeNow(); err != nil {
			return fmt.Errorf("remove addresses: %w", err)
		}
	}
	check, err := g.plan(wanted)
	if err != nil {
		return err
	}
	if len(check.Add) > 0 {
		return fmt.Errorf("add address %s: the kernel accepted it and does not have it", check.Add[0])
	}
	g.addrs.prepare(check.Keep)
	return nil
}

// lifetime is the valid_lft that fits now, 0 for none, and when it can end earliest.
func (g *Guard) lifetime(r *role) (uint32, cluster.Instant) {
	g.mu.Lock()
	deadline, ended := r.deadline, r.ended
	g.mu.Unlock()
	now := g.clock.Now()
	if ended || now >= deadline {
		return 0, now
	}
	var n uint32
	if g.gate != nil {
		n = router.GatedLifetime(now, deadline)
	} else {
		n = router.UngatedLifetime(now, deadline.Add(g.cfg.Grace+g.cfg.Margin))
	}
	return n, now.Add(time.Duration(n) * time.Second)
}

// openGate lets the role's addresses pass until its deadline.
func (g *Guard) openGate(r *role, addrs []netip.Addr) error {
	if g.gate == nil {
		return nil
	}
	g.gate.mu.Lock()
	defer g.gate.mu.Unlock()
	err := g.gate.manage(addrs)
	if err != nil { // not as it was made: make it anew, shut, before opening it
		err = g.gate.build(union(g.gate.managed, union(addrsOf(g.cfg.Addresses), addrs)))
	}
	if err == nil {
		err = g.timed(r, func(left time.Duration) error { return g.gate.openFor(addrs, left) })
	}
	if err == nil {
		g.fault("gate", "")
	}
	return err
}

// renewGate moves the elements' timeouts to the role's deadline. An element that
// is gone is not added again here: it may have run out while this process was
// stopped, and then the right is dead.
func (g *Guard) renewGate(r *role) error {
	if g.gate == nil {
		return nil
	}
	g.gate.mu.Lock()
	err := g.timed(r, g.gate.refresh)
	g.gate.mu.Unlock()
	if errors.Is(err, errGateLost) {
		return g.gateLost(r, err)
	}
	return err
}

// timed has step set timeouts of what is left of the role, again where that took
// long: the timeout counts from when the kernel got it. A host on which it goes
// on taking long loses that much of the role, not the role: the next tries leave
// as much room. Past the deadline the gate is shut instead. The caller holds
// gate.mu.
func (g *Guard) timed(r *role, step func(left time.Duration) error) error {
	slack := jiffy
	for range 5 {
		before := g.left(r)
		left := min(before, longestLease)
		if left <= slack+jiffy {
			break
		}
		if err := step(left - slack); err != nil {
			return err
		}
		after := g.left(r)
		took := before - after
		if after > 0 && took < max(slack, slowStep) {
			return nil
		}
		slack = min(2*took, g.cfg.Grace)
		step = g.gate.refresh
	}
	_ = g.gate.shut()
	return fmt.Errorf("open the gate: the role's deadline passed meanwhile, or this host is too slow to keep it: %w", cluster.ErrDeadline)
}

// gateLost handles a firewall flush: nothing is shut now, so the addresses go at
// once; the gate is made anew, and they come back with a renewal sent later.
func (g *Guard) gateLost(r *role, cause error) error {
	g.mu.Lock()
	now := g.clock.Now()
	live := r != nil && g.lives(r)
	held := live && len(r.wanted) > 0
	if held {
		r.suspend(now)
	}
	g.mu.Unlock()
	if r != nil && !live {
		return fmt.Errorf("renew the gate: the role's deadline has passed: %w", cluster.ErrDeadline)
	}
	g.announcer.stop()
	g.addrs.mu.Lock()
	_, err := g.addrs.removeOurs()
	g.addrs.mu.Unlock()
	g.gate.mu.Lock()
	if buildErr := g.gate.build(union(g.gate.managed, addrsOf(g.cfg.Addresses))); buildErr != nil {
		err = errors.Join(err, buildErr)
	}
	g.gate.mu.Unlock()
	text := fmt.Sprintf("the firewall's tables were changed by somebody else (%v); the gate is made anew", cause)
	switch {
	case err != nil:
		text += fmt.Sprintf(", but: %v", err)
		g.fault("gate", text)
	case held:
		text += "; the floating addresses are away until the next renewal of the role. Reload the firewall without flushing table " + g.cfg.Table
		g.fault("gate", text)
	}
	g.log.Warn("gate lost", zap.Error(cause), zap.Bool("held_addresses", held))
	g.hub.push(cluster.GuardEvent{Kind: "gate_lost", Owner: cluster.OwnerPrimary, Text: text})
	return err
}

// bringBack returns the addresses after the gate was lost, on a renewal that
// was sent after that.
func (g *Guard) bringBack(r *role) error {
	g.addrs.mu.Lock()
	defer g.addrs.mu.Unlock()
	g.mu.Lock()
	live, wanted := g.lives(r), r.wanted
	if live {
		r.suspendedAt = cluster.Never
	}
	g.mu.Unlock()
	if !live {
		return fmt.Errorf("bring the addresses back: the role's deadline has passed: %w", cluster.ErrDeadline)
	}
	if err := g.put(r, wanted); err != nil {
		g.mu.Lock()
		r.suspend(g.clock.Now())
		g.mu.Unlock()
		g.fault("gate", fmt.Sprintf("the floating addresses are away: %v", err))
		if errors.Is(err, cluster.ErrDeadline) {
			return err
		}
	}
	return nil
}

// withdraw shuts the gate and removes the addresses; the role lives on.
func (g *Guard) withdraw(e cluster.Epoch) error {
	g.mu.Lock()
	r, err := g.liveRole(cluster.OwnerPrimary, e)
	if err != nil && !errors.Is(err, cluster.ErrDeadline) {
		g.mu.Unlock()
		return err
	}
	if r != nil { // a role that is over has nothing; that is verified all the same
		r.wanted, r.mayAdd, r.suspendedAt = nil, false, cluster.Never
		g.record()
	}
	g.mu.Unlock()
	g.announcer.stop()
	return g.dropAddresses()
}

// dropAddresses shuts the gate, removes every address of ours and verifies both.
func (g *Guard) dropAddresses() error {
	if g.gate != nil && g.gate.mu.TryLock() { // first, but never waiting for it
		_ = g.gate.shut() // again below
		g.gate.mu.Unlock()
	}
	g.addrs.mu.Lock()
	defer g.addrs.mu.Unlock()
	_, err := g.addrs.removeOurs()
	if g.gate == nil {
		return err
	}
	g.gate.mu.Lock() // once more: a Present under way may have opened it meanwhile
	defer g.gate.mu.Unlock()
	gateErr := g.gate.shut()
	if errors.Is(gateErr, errGateLost) { // flushed: it holds no element either; the tick makes it anew
		g.log.Warn("gate not shut, the addresses behind it are removed", zap.Error(gateErr))
		gateErr = nil
	}
	return errors.Join(err, gateErr)
}

// reconcile brings the kernel in line with what is held: once a tick.
func (g *Guard) reconcile() {
	g.mu.Lock()
	r := g.roles[cluster.OwnerPrimary]
	g.mu.Unlock()
	if g.gate != nil {
		g.gate.mu.Lock()
		err := g.gate.check()
		g.gate.mu.Unlock()
		if errors.Is(err, errGateLost) && (r == nil || g.left(r) > slowStep) {
			if err := g.gateLost(r, err); err != nil {
				g.log.Warn("gate not made anew", zap.Error(err))
			}
		}
	}
	g.addrs.mu.Lock()
	defer g.addrs.mu.Unlock()
	var wanted []cluster.FloatingAddress
	g.mu.Lock()
	r = g.roles[cluster.OwnerPrimary]
	if r != nil && g.lives(r) && r.suspendedAt == cluster.Never {
		wanted = r.wanted
	}
	g.mu.Unlock()
	g.defender.hold(wanted) // of an adopted role, too
	if err := g.reconcileAddresses(r, wanted); err != nil {
		g.fault("addresses", fmt.Sprintf("the kernel's addresses are not as they should be: %v", err))
		return
	}
	g.fault("addresses", "")
	if !g.looked.Swap(true) {
		g.feeder.poke()
	}
}

// reconcileAddresses removes what of ours is not wanted, adds again what has
// vanished, and steps the lifetimes. The caller holds addrs.mu.
func (g *Guard) reconcileAddresses(r *role, wanted []cluster.FloatingAddress) error {
	plan, err := g.plan(wanted)
	if err != nil {
		return err
	}
	if len(wanted) == 0 {
		g.announcer.keep(nil)
		removed, err := g.addrs.removeOurs()
		if len(removed) > 0 {
			g.log.Warn("removed floating addresses that belong to no live role", zap.Stringers("addresses", prefixes(removed)))
		}
		return err
	}
	if len(g.addrs.remove) == 0 {
		g.addrs.prepare(plan.Keep) // of an adopted role: its end allocates nothing, either (I3)
	}
	// What is there first: an address that cannot be had must not let it run out.
	errs := []error{g.stepLifetimes(r, plan.Keep), conflictError(plan)}
	g.announcer.keep(presentOf(wanted, plan)) // of an adopted role, too; never what is not there (I1)
	if len(plan.Add)+len(plan.Remove) > 0 {
		errs = append(errs, g.addAgain(r, wanted, plan))
	}
	// The clock again: a refresh re-creates what the kernel has just removed.
	if g.left(r) <= 0 {
		_, err := g.addrs.removeOurs()
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// presentOf lists the wanted addresses that the kernel has as ours.
func presentOf(wanted []cluster.FloatingAddress, plan router.AddressPlan) (list []cluster.FloatingAddress) {
	for _, w := range wanted {
		if slices.ContainsFunc(plan.Keep, func(k router.KernelAddress) bool { return k.Prefix == w.Prefix && k.Interface == w.Interface }) {
			list = append(list, w)
		}
	}
	return list
}

// addAgain brings back what has vanished, as far as its interface is there, and
// tells what came back. The caller holds addrs.mu.
func (g *Guard) addAgain(r *role, wanted []cluster.FloatingAddress, plan router.AddressPlan) error {
	var errs []error
	possible := make([]cluster.FloatingAddress, 0, len(wanted))
	plan.Add = slices.DeleteFunc(plan.Add, func(a cluster.FloatingAddress) bool {
		_, err := g.addrs.index(a.Interface)
		if err != nil {
			errs = append(errs, fmt.Errorf("address %s: %w", a, err))
		}
		return err != nil
	})
	for _, w := range wanted {
		if slices.Contains(plan.Add, w) || slices.ContainsFunc(plan.Keep, func(k router.KernelAddress) bool { return k.Prefix == w.Prefix }) {
			possible = append(possible, w)
		}
	}
	err := g.addAll(r, possible, plan)
	g.addrs.protectForeign(plan.Add)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, a := range plan.Add {
		g.log.Warn("floating address had vanished, added again", zap.Stringer("address", a))
		g.hub.push(cluster.GuardEvent{Kind: "address_lost", Owner: r.owner, Epoch: r.epoch, Name: a.Name,
			Text: fmt.Sprintf("address %s had vanished from the kernel and was added again", a)})
	}
	if len(plan.Add) > 0 {
		g.announcer.start(wanted)
	}
	return errors.Join(errs...)
}

// stepLifetimes sets the lifetimes anew: behind a gate where that brings their
// end nearer, or the deadline has moved past it; without one always, and not
// at all once none fits. The caller holds addrs.mu.
func (g *Guard) stepLifetimes(r *role, present []router.KernelAddress) error {
	n, until := g.lifetime(r)
	if n == 0 {
		return nil
	}
	g.mu.Lock()
	deadline := r.deadline
	g.mu.Unlock()
	outlives := g.addrs.until > deadline.Add(220*time.Millisecond)
	if g.gate != nil && outlives && until >= g.addrs.until {
		return nil
	}
	if err := g.addrs.refresh(present, n); err != nil {
		return fmt.Errorf("set lifetimes: %w", err)
	}
	g.addrs.until = until
	return nil
}

// mayAnnounce reports whether the address may be announced right now.
func (g *Guard) mayAnnounce(a netip.Addr) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.roles[cluster.OwnerPrimary]
	return r != nil && g.lives(r) && r.suspendedAt == cluster.Never && slices.Contains(addrsOf(r.wanted), a)
}

// state reports what is held, as the kernel has it. A caller that has gone by the
// time its turn comes costs nothing.
func (g *Guard) state(ctx context.Context) (cluster.GuardState, error) {
	var s cluster.GuardState
	g.mu.Lock()
	var wanted []cluster.FloatingAddress
	type owned struct {
		s     *service
		owner cluster.DeadlineOwner
		ended bool
	}
	var services []owned
	for _, e := range g.ending { // of the node's: here until verified gone
		for _, sv := range e.role.services {
			if e.role.owner == cluster.OwnerNode {
				services = append(services, owned{sv, e.role.owner, true})
			}
		}
	}
	for _, r := range g.expired {
		for _, h := range r.Services {
			if r.Owner == cluster.OwnerNode {
				s.Services = append(s.Services, cluster.ServiceState{Name: h.Spec.Name, Owner: r.Owner, Kind: h.Spec.Kind, Note: h.Spec.Note, Left: true, Ending: true,
					Error: g.leftText(h)})
			}
		}
	}
	for _, r := range g.roles {
		if g.lives(r) {
			s.Deadlines = append(s.Deadlines, cluster.RoleDeadline{Owner: r.owner, Epoch: r.epoch, Deadline: r.deadline})
		}
		wanted = append(wanted, r.wanted...)
		for _, sv := range r.services {
			services = append(services, owned{sv, r.owner, false})
		}
	}
	s.MaxEpoch = g.max[string(cluster.OwnerPrimary)]
	for _, text := range g.faults {
		s.Faults = append(s.Faults, text)
	}
	g.mu.Unlock()
	for _, sv := range services { // may ask systemd, which may be slow
		state := sv.s.state()
		state.Owner, state.Left, state.Ending = sv.owner, state.Left || sv.ended && !state.Running, sv.ended
		s.Services = append(s.Services, state)
	}
	s.Watchdog = g.feeder.report()
	slices.Sort(s.Faults)
	slices.SortFunc(s.Services, func(a, b cluster.ServiceState) int { return compareStrings(a.Name, b.Name) })
	slices.SortFunc(s.Deadlines, func(a, b cluster.RoleDeadline) int { return compareStrings(string(a.Owner), string(b.Owner)) })

	g.looking.Lock() // not while asking systemd
	defer g.looking.Unlock()
	if ctx.Err() != nil {
		return s, fmt.Errorf("report the state: %w", context.Cause(ctx))
	}
	g.addrs.mu.Lock()
	kernel, err := g.addrs.list()
	g.addrs.mu.Unlock()
	if err != nil {
		return s, err
	}
	known := slices.Concat(wanted, g.cfg.Addresses)
	for _, k := range kernel {
		if k.Ours {
			s.Addresses = append(s.Addresses, cluster.FloatingAddress{Name: nameOf(known, k.Prefix.Addr()), Prefix: k.Prefix, Interface: k.Interface})
		}
	}
	return s, g.gateState(&s, known)
}

func compareStrings(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// gateState adds what the gate lets pass.
func (g *Guard) gateState(s *cluster.GuardState, known []cluster.FloatingAddress) error {
	if g.gate == nil {
		return nil
	}
	g.gate.mu.Lock()
	defer g.gate.mu.Unlock()
	if err := g.gate.check(); err != nil {
		s.Faults = append(s.Faults, err.Error())
		return nil
	}
	s.Gate = true
	living, err := g.gate.living()
	if err != nil {
		return err
	}
	for a := range living {
		s.GateOpen = append(s.GateOpen, nameOf(known, a))
	}
	slices.Sort(s.GateOpen)
	return nil
}

// nameOf is the configured name of an address, or the address itself.
func nameOf(known []cluster.FloatingAddress, a netip.Addr) string {
	for _, k := range known {
		if k.Prefix.Addr() == a {
			return k.Name
		}
	}
	return a.String()
}
