package guard

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
	"pvc.internal/proc"
)

// sweepKillWait bounds the wait for a guard that was killed to let go of its lock.
const sweepKillWait = time.Second

// Sweep ends everything that a guard of this configuration holds, for an agent
// whose guard is dead or does not answer. A guard that still has its lock is
// killed first, since a stopped one that goes on would put its addresses back.
// It returns nil once addresses, gate and services are verified gone; an error
// names what is not. The gate's tables stay, shut. What is within its deadline
// is ended, too.
func Sweep(cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	cfg = cfg.withDefaults()
	lock, err := seizeLock(cfg.StateFile)
	if err != nil {
		return err // the addresses of a guard that cannot be killed are the gate's
	}
	defer lock.Close()
	return sweepLeft(cfg)
}

// sweepLeft ends everything that a guard which is dead has left. The caller
// holds the guard's lock.
func sweepLeft(cfg Config) error {
	var errs []error
	addrs, err := openAddresses()
	if err != nil {
		return err
	}
	defer addrs.close()
	if cfg.UseGate {
		errs = append(errs, sweepGate(cfg))
	}
	addrs.mu.Lock()
	_, err = addrs.removeOurs()
	addrs.mu.Unlock()
	errs = append(errs, err, sweepServices(cfg))
	return errors.Join(errs...)
}

func sweepGate(cfg Config) error {
	g, err := openGate(cfg.Table)
	if err != nil {
		return err
	}
	defer g.close()
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.shut(); err == nil {
		return nil
	}
	return g.build(addrsOf(cfg.Addresses))
}

// sweepServices ends what the ledger and the control groups name, and takes the
// roles out of the ledger.
func sweepServices(cfg Config) error {
	l, held, unread := openLedger(cfg.ledgerPath())
	lost := held.BootID == "" && cfg.servedThisBoot()
	if lost {
		held.Roles = cfg.unknown(cluster.Never).Roles // the units of one whose ledger is lost
	}
	u := newUnits()
	defer u.close()
	err := endHeld(context.Background(), held.Roles, u, cfg.SlicePath, proc.Services(cfg.SlicePath))
	if unread != nil { // what the control groups name is ended all the same
		return errors.Join(err, unread)
	}
	defer l.close()
	if err != nil || lost { // which the next guard has to find as well
		return err
	}
	held.Roles = nil // the rest stays: a machine that is not fed any more never is (I3)
	return l.save(held)
}

// seizeLock takes the guard's lock, killing a guard that holds it.
func seizeLock(stateFile string) (*os.File, error) {
	lock, err := lockState(stateFile)
	if !errors.Is(err, cluster.ErrRefused) {
		return lock, err
	}
	pid, convErr := strconv.Atoi(strings.TrimSpace(lockHolder(stateFile + ".lock")))
	if convErr != nil || pid <= 1 {
		return nil, err
	}
	if killErr := unix.Kill(pid, unix.SIGKILL); killErr != nil && killErr != unix.ESRCH {
		return nil, fmt.Errorf("kill the guard (pid %d) that does not answer: %w", pid, killErr)
	}
	for limit := time.Now().Add(sweepKillWait); ; {
		lock, err = lockState(stateFile)
		if err == nil || time.Now().After(limit) {
			return lock, err
		}
		time.Sleep(2 * time.Millisecond)
	}
}
