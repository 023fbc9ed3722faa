package guard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
	"pvc.internal/proc"
)

const (
	// unverifiedLeftovers names them in what is told.
	unverifiedLeftovers = "what an earlier right or guard left"
	// leftoverPause is between attempts to end them.
	leftoverPause = time.Second
	// leftoverLimit bounds the verification of each thing left.
	leftoverLimit = 2 * time.Second
)

// leftState is what is known of what earlier guards have left past its deadline,
// beside Guard.expired, which names it. Its fields are Guard.mu's.
//
//	found ──its processes killed──▶ its Stop run ──verified gone──▶ forgotten
//	             ▲                        │ fails, or does not end
//	             └──────── a pause ───────┘
//
// Each service takes that way by itself, beside the serving of all else (I3: what has
// outlived its right is killed at once, and gets no new one by the node's): a stop
// that hangs holds up neither the roles nor other copies, only what would take its
// place. That is whatever has its name or its unit, and for what hung on the primary
// role the next such role.
//
// What this guard itself cannot take down at the end of the node's right comes to them
// as well (leaveBehind).
type leftState struct {
	sweeping bool              // what no ledger names is being looked at for the first time
	strays   bool              // of that something is not verified gone
	why      map[string]string // by service: why it is not, where a try has failed; "": of the strays
	changed  chan struct{}     // closed, and made anew, at each change
	telling  *sync.Mutex       // held while the fault is made and told: it is its own
}

func newLeftState() leftState {
	return leftState{why: map[string]string{}, changed: make(chan struct{}), telling: &sync.Mutex{}}
}

// endLeftovers begins to end what an earlier guard has left of roles whose deadline
// has passed, and every service group that no role knows. What is not verified gone
// is tried again until it is, or ctx ends. Here it only has everything killed, which
// takes no longer than a kill does: what does not die of it, and each service's own
// Stop, are waited for beside all else.
func (g *Guard) endLeftovers(ctx context.Context) {
	groups := g.strayGroups()
	g.mu.Lock()
	expired := g.expired
	g.mu.Unlock()
	killLeft(expired, groups)
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, r := range expired {
		for _, h := range r.Services {
			g.work.Go(func() { g.endLeftover(ctx, r.Owner, h) })
		}
		g.log.Warn("what an earlier guard had left past its deadline is ended", zap.String("owner", string(r.Owner)), zap.Uint64("epoch", uint64(r.Epoch)))
	}
	g.rest.sweeping, g.rest.strays = true, len(groups) > 0
	g.work.Go(func() { g.endStrays(ctx, groups) })
}

// strayGroups lists the service groups that no role knows, living or past its deadline.
// What is started later is none of them.
func (g *Guard) strayGroups() []string {
	groups := proc.Services(g.cfg.SlicePath)
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, r := range g.roles {
		for _, s := range r.services {
			groups = slices.DeleteFunc(groups, func(group string) bool { return group == s.held().Group })
		}
	}
	for _, r := range g.expired {
		for _, h := range r.Services {
			groups = slices.DeleteFunc(groups, func(group string) bool { return group == h.Group })
		}
	}
	return groups
}

// killLeft kills all that runs of these services, but for units, and of these groups,
// and gives it the moment in which it dies.
func killLeft(roles []heldRole, groups []string) {
	now, cancel := context.WithCancel(context.Background())
	cancel() // no longer than a kill that works takes
	var all sync.WaitGroup
	for _, r := range roles {
		for _, h := range r.Services {
			if h.Spec.Kind != cluster.ServiceUnit { // whose processes only systemd ends, which may be slow
				all.Go(func() { _ = killHeld(now, nil, h) })
			}
		}
	}
	for _, group := range groups {
		all.Go(func() { _ = proc.EndGroup(now, group) })
	}
	all.Wait()
}

// endLeftover ends one service, however many tries that takes.
func (g *Guard) endLeftover(ctx context.Context, o cluster.DeadlineOwner, h heldService) {
	for {
		err := endHeldService(ctx, g.units, g.cfg.SlicePath, h)
		g.tellLeft(h.Spec.Name, err, func() { g.forgetLeft(o, h.Spec.Name) })
		if err == nil || !pauseFor(ctx, leftoverPause) {
			return
		}
	}
}

// endStrays ends the groups, and what a dead guard was running.
func (g *Guard) endStrays(ctx context.Context, groups []string) {
	for {
		err := endStrayGroups(ctx, g.cfg.SlicePath, groups)
		g.tellLeft("", err, func() { g.rest.strays = false })
		if err == nil || !pauseFor(ctx, leftoverPause) {
			return
		}
	}
}

func pauseFor(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// tellLeft enters how a try has ended, and gone where it has succeeded.
func (g *Guard) tellLeft(what string, err error, gone func()) {
	g.mu.Lock()
	if what == "" {
		g.rest.sweeping = false
	}
	if err == nil {
		delete(g.rest.why, what)
		gone()
	} else {
		g.rest.why[what] = err.Error()
		g.rest.strays = g.rest.strays || what == ""
	}
	g.settleLeft()
	g.mu.Unlock()
	g.tellLeftFault()
}

// tellLeftFault tells all that is not verified gone of what was left.
func (g *Guard) tellLeftFault() {
	g.rest.telling.Lock()
	defer g.rest.telling.Unlock()
	g.mu.Lock()
	var text []string
	for _, why := range g.rest.why {
		text = append(text, why)
	}
	g.mu.Unlock()
	fault := ""
	if slices.Sort(text); len(text) > 0 {
		fault = fmt.Sprintf("%s is not verified gone: %s", unverifiedLeftovers, strings.Join(text, "; "))
	}
	g.fault("leftovers", fault)
}

// forgetLeft takes a service off the owner's roles. The caller holds mu.
func (g *Guard) forgetLeft(o cluster.DeadlineOwner, name string) {
	for i, r := range g.expired {
		if r.Owner == o { // a clone: the ledger's, and whoever reads it, keep theirs
			g.expired[i].Services = slices.DeleteFunc(slices.Clone(r.Services), func(v heldService) bool { return v.Spec.Name == name })
		}
	}
}

// settleLeft forgets the roles of which nothing is left, and wakes who waits for
// that. The caller holds mu.
func (g *Guard) settleLeft() {
	over := func(r heldRole) bool { return len(r.Services) == 0 && !g.rest.sweeping && !g.rest.strays }
	for _, r := range g.expired {
		if over(r) { // a node's leftovers are gone: whoever judges its copies may look again
			g.hub.push(cluster.GuardEvent{Kind: "ended", Owner: r.Owner, Epoch: r.Epoch, Text: "what an earlier right or guard left has ended"})
		}
	}
	g.expired = slices.DeleteFunc(slices.Clone(g.expired), over)
	switch {
	case len(g.expired) > 0, g.rest.why[""] != "":
		g.leftovers = unverifiedLeftovers
	default:
		g.leftovers = ""
	}
	g.record()
	g.feeder.poke()
	close(g.rest.changed)
	g.rest.changed = make(chan struct{})
}

// leftText is what is told of a service that is left. The caller holds mu.
func (g *Guard) leftText(h heldService) string {
	return cmp.Or(g.rest.why[h.Spec.Name], "it is not verified gone")
}

// leftover describes the first service left that matches; "": there is none. The
// caller holds mu.
func (g *Guard) leftover(matches func(heldRole, heldService) bool) string {
	for _, r := range g.expired {
		for _, h := range r.Services {
			if matches(r, h) {
				return fmt.Sprintf("service %s, left by an earlier right or an earlier guard, is still being ended (%s)", h.Spec.Name, g.leftText(h))
			}
		}
	}
	return ""
}

// heldByLeftovers describes what is left of the owner's role, or may be; "": nothing
// is. What no ledger names may be anybody's. The caller holds mu.
func (g *Guard) heldByLeftovers(o cluster.DeadlineOwner) string {
	if g.rest.strays {
		return unverifiedLeftovers + " is not verified gone yet"
	}
	return g.leftover(func(r heldRole, _ heldService) bool { return r.Owner == o })
}

// awaitLeft waits until what describes nothing any more, for the time given. what is
// called with mu held.
func (g *Guard) awaitLeft(ctx context.Context, limit time.Duration, what func() string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, cluster.ErrDeadline)
	defer cancel()
	for {
		g.mu.Lock()
		text, changed := what(), g.rest.changed
		g.mu.Unlock()
		if text == "" {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", text, context.Cause(ctx))
		}
	}
}

// awaitFree waits until nothing is left of what a service would take the place of,
// as long as ctx lasts.
func (g *Guard) awaitFree(ctx context.Context, spec cluster.ServiceSpec) error {
	err := g.awaitLeft(ctx, longestLease, func() string {
		if g.rest.sweeping {
			return "what an earlier guard has left is still being looked for"
		}
		return g.leftover(func(_ heldRole, h heldService) bool {
			return h.Spec.Name == spec.Name || spec.Unit != "" && h.Spec.Unit == spec.Unit
		})
	})
	if err != nil {
		err = fmt.Errorf("nothing was started: %v: %w", err, cluster.ErrRefused) //nolint:errorlint // no deadline's: of the node's right that would tell
	}
	return err
}

// awaitLeftover waits for the end of the owner's service of this name that an earlier
// guard has left, as long as one try of its stop may take.
func (g *Guard) awaitLeftover(ctx context.Context, o cluster.DeadlineOwner, name string) error {
	of := func(r heldRole, h heldService) bool { return r.Owner == o && h.Spec.Name == name }
	limit := defaultStop
	g.mu.Lock()
	g.leftover(func(r heldRole, h heldService) bool {
		if of(r, h) {
			limit = cmp.Or(h.Spec.StopTimeout, limit)
		}
		return false
	})
	g.mu.Unlock()
	err := g.awaitLeft(ctx, limit+killLimit+leftoverPause, func() string { return g.leftover(of) })
	if err != nil {
		err = fmt.Errorf("stop service %s: it is not verified gone: %w", name, err)
	}
	return err
}

// endLeft waits until what an earlier guard has left of the owner's is verified gone;
// with the node's that of the primary role, which hung on it.
func (g *Guard) endLeft(ctx context.Context, o cluster.DeadlineOwner) error {
	if o != cluster.OwnerNode && o != cluster.OwnerPrimary { // it runs nothing
		return nil
	}
	err := g.awaitLeft(ctx, longestLease, func() string {
		text := g.heldByLeftovers(o)
		if o == cluster.OwnerNode {
			text = cmp.Or(text, g.heldByLeftovers(cluster.OwnerPrimary))
		}
		return text
	})
	if err != nil {
		err = fmt.Errorf("end role %s: not verified gone yet: %w", o, err)
	}
	return err
}

// endHeldService kills what runs of a service, and then takes down what only a
// program of its own can. No error: nothing of it is left.
func endHeldService(ctx context.Context, u *units, slice string, h heldService) error {
	err := killHeld(ctx, u, h)
	if h.Spec.Kind == cluster.ServiceActions { // whatever becomes of its processes
		err = errors.Join(err, endActions(ctx, slice, h.Spec, nil))
	}
	if err != nil {
		err = fmt.Errorf("end service %s: %w", h.Spec.Name, err)
	}
	return err
}

// killHeld kills what runs of a service, and verifies that.
func killHeld(ctx context.Context, u *units, h heldService) error {
	ctx, cancel := context.WithTimeout(ctx, leftoverLimit)
	defer cancel()
	if h.Spec.Kind == cluster.ServiceUnit {
		return u.adopt(h.Spec.Unit, h.Group).stop(ctx, 0)
	}
	var err error
	if h.Spec.Kind != cluster.ServiceActions {
		if p, adopted := proc.Adopt(h.PID, h.Start); adopted == nil {
			err = p.Stop(ctx, 0)
		}
	}
	if h.Group != "" {
		err = errors.Join(err, proc.EndGroup(ctx, h.Group))
	}
	return err
}

// endStrayGroups kills these groups, all at once, and what a dead guard was running.
func endStrayGroups(ctx context.Context, slice string, groups []string) error {
	ctx, cancel := context.WithTimeout(ctx, leftoverLimit)
	defer cancel()
	errs := make([]error, len(groups)+1)
	var all sync.WaitGroup
	for i, group := range groups {
		all.Go(func() { errs[i] = proc.EndGroup(ctx, group) })
	}
	// Any run sweeps the runs of guards that are dead.
	_, err := proc.Run(ctx, proc.Command{Argv: []string{"true"}, Slice: slice, Timeout: leftoverLimit})
	if err != nil && !errors.Is(err, proc.ErrNotStarted) {
		errs[len(groups)] = err
	}
	all.Wait()
	return errors.Join(errs...)
}

// endHeld ends the services of these roles, these service groups below the slice, and
// what a dead guard was running, and waits for one try of each.
func endHeld(ctx context.Context, roles []heldRole, u *units, slice string, groups []string) error {
	var mu sync.Mutex
	var errs []error
	var all sync.WaitGroup
	try := func(f func() error) {
		all.Go(func() {
			err := f()
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
		})
	}
	for _, r := range roles {
		for _, h := range r.Services {
			groups = slices.DeleteFunc(groups, func(group string) bool { return group == h.Group })
			try(func() error { return endHeldService(ctx, u, slice, h) })
		}
	}
	try(func() error { return endStrayGroups(ctx, slice, groups) })
	all.Wait()
	return errors.Join(errs...)
}
