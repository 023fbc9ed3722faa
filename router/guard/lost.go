package guard

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"pvc.internal/cluster"
)

// A ledger that is not there is the rule after a boot, and a loss after that:
// then an earlier guard of this boot may have held anything, with any deadline,
// or have given this machine up. Which of the two it is tells a mark in the
// state folder. It need not survive a power loss, which it speaks of.

// markPath is the file that names the boot in which a guard has served last.
func (c Config) markPath() string { return c.StateFile + ".boot" }

// servedThisBoot reports whether a guard has served in this boot before. Where
// that cannot be found out none has: a machine that boots must come up.
func (c Config) servedThisBoot() bool {
	boot, err := bootID()
	if err != nil {
		return false
	}
	mark, err := os.ReadFile(c.markPath())
	return err == nil && strings.TrimSpace(string(mark)) == boot
}

// markBoot notes that a guard serves in this boot.
func (c Config) markBoot() error {
	boot, err := bootID()
	if err != nil || c.servedThisBoot() {
		return err
	}
	fresh := c.markPath() + ".new"
	if err = os.WriteFile(fresh, []byte(boot+"\n"), 0o600); err == nil {
		err = os.Rename(fresh, c.markPath())
	}
	if err != nil {
		return errors.Join(fmt.Errorf("note the boot in which the guard serves: %w", err), os.RemoveAll(fresh))
	}
	return nil
}

// unknown is what is taken for the state of a guard whose ledger is lost: the
// worst that it can have been. The node's right is over now, and the primary
// role's units, which nothing else tells of, were running without it (I3). The
// watchdog, where it may be running, is held until all is verified gone: it may
// have been given up, and what others count on rests on that (I4). So a machine
// with self_fence: watchdog resets, and any other one goes on when nothing is
// left here.
func (c Config) unknown(now cluster.Instant) ledgerState {
	role := heldRole{RoleDeadline: cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Deadline: 1}}
	for _, s := range c.Services {
		if s.Kind == cluster.ServiceUnit {
			role.Services = append(role.Services, heldService{Spec: s})
		}
	}
	state := ledgerState{Roles: []heldRole{role}, NodeUntil: now}
	if f := c.SelfFence; f.used() && (f.Store == nil || f.Inherited > 2) { // with a store and nothing in it, it does not run
		state.Feeding = cluster.FeedState{Mode: cluster.FeedHolding, Since: now, Why: "the ledger of an earlier guard is lost, which may have given this machine up"}
	}
	return state
}
