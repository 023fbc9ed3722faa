// Package guard is the process that holds the effects of roles: floating
// addresses, the gate before them, primary-only services, and the programs that
// run for a fence attempt. It outlives the agent, and ends what hangs on a
// deadline exactly then, whatever the agent does (I1, I3).
//
// Each thing hangs on one owner's absolute CLOCK_BOOTTIME deadline. There are
// three lines of defence: the guard itself; the gate, whose elements the kernel
// times out by itself; and the lifetime on each address. What cannot be ended at
// all is ended with the machine, by its watchdog (watchdog.go).
//
// Locks, in the order in which they may be held together:
//
//	Guard.looking requests that only look  (taken before all others)
//	Guard.mu      what is held: never held over anything that can block
//	addresses.mu  the kernel's addresses   (may be held while taking gate.mu and Guard.mu)
//	gate.mu       the nftables gate        (may be held while taking Guard.mu)
//	defender.mu   what is defended         (taken last, nothing is taken under it)
//	defender.sending a defence on its way  (may be held while taking Guard.mu)
//	feeder.mu     what is told of the watchdog (taken last, too)
//
// The rule that makes the end of a role final: it is marked ended under
// Guard.mu first; whoever changes the kernel looks, after taking that
// resource's lock, whether the role still lives; and the end takes each lock
// after marking.
package guard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
)

// Config is what a guard is started with.
type Config struct {
	// Socket is where the agent asks; its folder (run_dir, a tmpfs) also holds
	// the ledger, "<Socket>.held".
	Socket string
	// StateFile keeps the largest epochs over reboots.
	StateFile string
	// Addresses are this cluster's floating addresses: the gate stands before
	// them from the guard's start on. Present may name further ones.
	Addresses []cluster.FloatingAddress
	// Services are what the primary role may run here. The guard starts none by
	// itself: units among them are ended where nobody knows what was running,
	// since only the ledger tells of a unit that a role has started.
	Services []cluster.ServiceSpec
	// UseGate is false only where there is no nftables.
	UseGate bool
	// Table is the gate's nftables table; default "pvc_gate".
	Table string
	// SlicePath is the control group below which services run, from the
	// hierarchy's root; default "pvc.slice/guard-<hash of Socket>".
	SlicePath string
	// Grace (G) is how long the guard may need to verify that something is
	// gone, and Grace + Margin (M) what a lifetime without a gate may use up
	// after the deadline. Defaults 0.3 s and 0.1 s.
	Grace, Margin time.Duration
	// Tick is between reconciliations; default 0.2 s.
	Tick time.Duration
	// SelfFence is what ends this machine where nothing else ends its work.
	SelfFence SelfFence `json:"-"`
}

// Validate reports what is missing or out of range.
func (c Config) Validate() error {
	switch {
	case c.Socket == "" || !filepath.IsAbs(c.Socket):
		return fmt.Errorf("guard: the socket's path %q is not absolute", c.Socket)
	case len(c.Socket) > 107:
		return fmt.Errorf("guard: the socket's path has %d bytes, the kernel takes 107: choose a shorter run_dir", len(c.Socket))
	case c.StateFile == "" || !filepath.IsAbs(c.StateFile):
		return fmt.Errorf("guard: the state file's path %q is not absolute", c.StateFile)
	case c.Grace < 0 || c.Margin < 0 || c.Tick < 0:
		return errors.New("guard: grace, margin and tick must not be negative")
	}
	for _, a := range c.Addresses {
		if err := validAddress(a); err != nil {
			return err
		}
	}
	return c.SelfFence.Validate()
}

func validAddress(a cluster.FloatingAddress) error {
	if !a.Prefix.IsValid() || a.Interface == "" || a.Prefix.Addr().Is4In6() || a.Prefix.Addr().Zone() != "" {
		return fmt.Errorf("floating address %q: %q on interface %q is not a usable address with prefix length: %w",
			a.Name, a.Prefix, a.Interface, cluster.ErrRefused)
	}
	return nil
}

func (c Config) withDefaults() Config {
	c.Table = cmp.Or(c.Table, "pvc_gate")
	c.SlicePath = cmp.Or(c.SlicePath, fmt.Sprintf("pvc.slice/guard-%08x", crc32.ChecksumIEEE([]byte(c.Socket))))
	c.Grace = cmp.Or(c.Grace, 300*time.Millisecond)
	c.Margin = cmp.Or(c.Margin, 100*time.Millisecond)
	c.Tick = cmp.Or(c.Tick, 200*time.Millisecond)
	return c
}

func (c Config) ledgerPath() string { return c.Socket + ".held" }

// Guard is the running process's state.
type Guard struct {
	cfg   Config
	clock cluster.Clock
	log   *zap.Logger

	addrs     *addresses
	gate      *gate // nil without one
	alarm     *alarm
	announcer *announcer
	defender  *defender
	hub       *hub
	units     *units
	groups    *groups

	persisting sync.Mutex               // serialises writes of the state file
	written    map[string]cluster.Epoch // the epochs in the state file; under persisting
	looking    sync.Mutex               // lets one request at a time look at the kernel: however many ask, Extend and an end wait for one

	mu     sync.Mutex
	roles  map[cluster.DeadlineOwner]*role
	ending map[cluster.DeadlineOwner]*ending
	max    map[string]cluster.Epoch
	faults map[string]string // by subject
	ledger *ledger
	slept  time.Duration // suspended() when last looked
	closed bool
	work   sync.WaitGroup // endings and watches of services

	node         nodeRight
	relinquished bool              // the agent's last word was an orderly end
	expired      []heldRole        // of an earlier guard, until verified gone (leftovers.go)
	leftovers    string            // names them, or other remains; empty: all is verified gone
	rest         leftState         // what else is known of them
	leftByLapse  bool              // they were to end with the node's right
	feed         cluster.FeedState // of the watchdog, as written down
	feeder       *feeder           // nil where nobody resets this machine
	looked       atomic.Bool       // the kernel's addresses have been read and are as they should be
}

// Run serves until ctx ends, then ends everything it holds. (A guard that is
// killed leaves it all to the next one instead.) It refuses to start beside
// another guard with the same state file.
func Run(ctx context.Context, cfg Config, clock cluster.Clock, log *zap.Logger) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	cfg = cfg.withDefaults()
	lock, err := inheritLock(cfg.StateFile)
	if err != nil {
		return err
	}
	defer lock.Close()
	prepareProcess(log)
	g, err := open(cfg, clock, log)
	if err != nil { // nobody will keep the deadlines of what an earlier guard has left (I3)
		return errors.Join(err, sweepLeft(cfg))
	}
	defer g.close()
	run, stop := context.WithCancel(context.WithoutCancel(ctx)) // outlives ctx until all is ended
	var owned sync.WaitGroup
	owned.Go(func() { g.alarm.run(run, log, g.expire) })
	owned.Go(func() { g.announcer.run(run) })
	owned.Go(func() { g.defender.run(run) })
	owned.Go(g.groups.run)
	defer owned.Wait()
	defer stop()
	defer g.groups.close()
	if err := g.restore(run); err != nil {
		return err
	}
	owned.Go(func() { g.ticks(run) }) // not before: a tick removes what no role it knows wants
	err = g.serve(ctx)
	err = errors.Join(err, g.endEverything())
	g.feeder.stop(10 * g.cfg.Grace)
	return err
}

// open connects to the kernel and reads what is remembered.
func open(cfg Config, clock cluster.Clock, log *zap.Logger) (*Guard, error) {
	g := &Guard{cfg: cfg, clock: clock, log: log, hub: newHub(log), units: newUnits(), groups: openGroups(log),
		roles: map[cluster.DeadlineOwner]*role{}, ending: map[cluster.DeadlineOwner]*ending{},
		faults: map[string]string{}, slept: suspended(), rest: newLeftState()}
	var err error
	if g.max, err = readEpochs(cfg.StateFile); err != nil {
		return nil, err
	}
	g.written = maps.Clone(g.max)
	if g.addrs, err = openAddresses(); err != nil {
		g.groups.close()
		return nil, err
	}
	if g.alarm, err = newAlarm(clock); err != nil {
		g.addrs.close()
		g.groups.close()
		return nil, err
	}
	if cfg.UseGate {
		if g.gate, err = openGate(cfg.Table); err != nil {
			g.addrs.close()
			g.alarm.close()
			g.groups.close()
			return nil, err
		}
	}
	g.defender = newDefender(log, g.mayAnnounce, g.fault, g.hub.push)
	g.announcer = newAnnouncer(log, g.mayAnnounce, g.defender)
	return g, nil
}

func (g *Guard) close() {
	ended := make(chan struct{})
	go func() { g.work.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(10 * g.cfg.Grace): // what cannot be killed is left to the next guard and the watchdog
		g.log.Error("guard ends although something of its roles is not verified gone")
	}
	g.addrs.close()
	g.alarm.close()
	g.announcer.close()
	g.units.close()
	g.groups.close()
	if g.gate != nil {
		g.gate.close()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ledger != nil {
		g.ledger.close()
		g.ledger = nil
	}
}

// lockState makes sure that one guard at a time serves a state file. The lock
// names its holder for Sweep, and is released by the kernel when that dies.
func lockState(stateFile string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(stateFile), 0o750); err != nil {
		return nil, fmt.Errorf("make the guard's state folder: %w", err)
	}
	path := stateFile + ".lock"
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if errors.Is(err, unix.EROFS) { // a sweep must be possible there, too
		f, err = os.Open(path)
	}
	if err != nil {
		return nil, fmt.Errorf("open the guard's lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		return nil, fmt.Errorf("another guard (pid %s) serves %s already: %w", lockHolder(path), stateFile, cluster.ErrRefused)
	}
	_ = f.Truncate(0)
	_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())), 0)
	return f, nil
}

// inheritLock is lockState, which waits a moment for the lock of a guard that is dead: a
// child that it was just making has its files until it runs its own program.
func inheritLock(stateFile string) (*os.File, error) {
	for limit := time.Now().Add(sweepKillWait); ; time.Sleep(2 * time.Millisecond) {
		lock, err := lockState(stateFile)
		if !errors.Is(err, cluster.ErrRefused) || time.Now().After(limit) {
			return lock, err
		}
		pid, unknown := strconv.Atoi(lockHolder(stateFile + ".lock"))
		if unknown != nil { // let go of between the two looks
			continue
		}
		if pid <= 1 || !errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
			return nil, err
		}
	}
}

// lockHolder names the process that has locked the file: as the kernel knows
// it, for Sweep kills whom this names, and what the file says may be an earlier
// holder's (it could not be written on a full disk). Only where the kernel
// numbers the device otherwise (btrfs) the file is believed.
func lockHolder(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return "unknown"
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		locks, _ := os.ReadFile("/proc/locks")
		file := fmt.Sprintf("%02x:%02x:%d", unix.Major(stat.Dev), unix.Minor(stat.Dev), stat.Ino)
		for line := range strings.Lines(string(locks)) { // 1: FLOCK  ADVISORY  WRITE 4711 fd:01:1234 0 EOF
			if f := strings.Fields(line); len(f) >= 6 && f[1] == "FLOCK" && f[5] == file {
				return f[4]
			}
		}
	}
	raw, _ := os.ReadFile(path)
	return cmp.Or(string(raw), "unknown")
}

// restore takes over what an earlier guard has left: each role until its old
// deadline, never longer, and nothing that no deadline is known for.
func (g *Guard) restore(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Dir(g.cfg.Socket), 0o750); err != nil {
		return fmt.Errorf("make the guard's run folder: %w", err)
	}
	l, held, err := openLedger(g.cfg.ledgerPath())
	if err != nil { // nothing is known to be held, so all that is found is ended
		g.fault("ledger", fmt.Sprintf("a guard that is started after this one will end all that this one holds: %v", err))
	}
	if held.BootID == "" && g.cfg.servedThisBoot() {
		held = g.cfg.unknown(g.clock.Now())
		g.log.Error("the ledger of an earlier guard is lost: all that is found of it is ended, and this node's right with it", zap.String("ledger", g.cfg.ledgerPath()))
	}
	if err := g.cfg.markBoot(); err != nil {
		g.fault("boot mark", fmt.Sprintf("a lost ledger would not be noticed by the next guard; make that folder writable: %v", err))
	}
	g.mu.Lock()
	g.ledger = l
	g.takeOver(held)
	g.mu.Unlock()
	g.announcer.prepare(g.cfg.Addresses)
	g.restoreGate()
	g.reconcile() // before what may take long: addresses of a role that is over go at once
	g.startFeeding(l != nil)
	g.endLeftovers(ctx) // which is waited for by what it concerns alone
	g.mu.Lock()
	defer g.mu.Unlock()
	g.record()
	g.rearm()
	return nil
}

// takeOver keeps the roles whose deadline lies ahead and returns the others: an
// end that the earlier guard had begun stays begun, and no role outlives the
// node's right. The caller holds mu.
func (g *Guard) takeOver(held ledgerState) []heldRole {
	now := g.clock.Now()
	g.node.until, g.feed, g.relinquished = held.NodeUntil, held.Feeding, held.Relinquished
	g.leftByLapse = held.NodeUntil != cluster.Never && held.NodeUntil <= now
	for _, h := range held.Roles {
		lapsed := g.leftByLapse && h.Owner == cluster.OwnerPrimary
		if h.Deadline > now && !lapsed && h.Epoch >= g.max[epochLine(h.Owner)] {
			g.adopt(h)
			continue
		}
		if g.leftByLapse && h.protected() && !g.node.missed { // nobody may have seen it
			g.node.missed, g.node.ended = true, held.NodeUntil
		}
		h.Deadline = 1 // passed, whatever it was
		g.expired = append(g.expired, h)
		g.leftovers = unverifiedLeftovers
	}
	return g.expired
}

// restoreGate keeps a gate that is as it was made while the role of its open
// elements lives, and makes it anew, shut, in every other case.
func (g *Guard) restoreGate() {
	if g.gate == nil {
		return
	}
	managed := addrsOf(g.cfg.Addresses)
	g.mu.Lock()
	r := g.roles[cluster.OwnerPrimary]
	var wanted []netip.Addr
	if r != nil {
		wanted = addrsOf(r.wanted)
	}
	g.mu.Unlock()
	g.gate.mu.Lock()
	defer g.gate.mu.Unlock()
	if len(wanted) > 0 && g.gate.adopt(union(managed, wanted), wanted) {
		return
	}
	if err := g.gate.build(union(managed, wanted)); err != nil {
		g.fault("gate", fmt.Sprintf("the gate cannot be made, addresses are kept by deadline and lifetime alone: %v", err))
	}
	if len(wanted) > 0 {
		g.mu.Lock()
		r.suspend(g.clock.Now())
		g.mu.Unlock()
	}
}

func addrsOf(list []cluster.FloatingAddress) []netip.Addr {
	var out []netip.Addr
	for _, a := range list {
		out = append(out, a.Prefix.Addr())
	}
	return out
}

func union(a, b []netip.Addr) []netip.Addr {
	seen := map[netip.Addr]bool{}
	var out []netip.Addr
	for _, list := range [][]netip.Addr{a, b} {
		for _, x := range list {
			if !seen[x] {
				seen[x] = true
				out = append(out, x)
			}
		}
	}
	return out
}

// ticks reconciles until ctx ends.
func (g *Guard) ticks(ctx context.Context) {
	t := time.NewTicker(g.cfg.Tick) // drops what a stall leaves behind
	defer t.Stop()
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if n%25 == 0 {
			g.announcer.refreshSockets()
		}
		g.expire() // a second watch on the deadlines, should the alarm's thread be late
		g.feeder.watch()
		g.endOnSuspend()
		g.reconcile()
	}
}

// endOnSuspend drops every role when the host was suspended: a lease cannot
// have been kept through it.
func (g *Guard) endOnSuspend() {
	now := suspended()
	g.mu.Lock()
	jumped := now-g.slept > 50*time.Millisecond
	g.slept = now
	var ended []*ending
	if jumped {
		for _, r := range g.roles {
			if r.owner != cluster.OwnerNode { // its deadline counts the suspend
				ended = append(ended, g.markEnded(r, "the host was suspended"))
			}
		}
		g.record()
	}
	g.mu.Unlock()
	g.stopEffects(ended...)
}

// fault records a health fault by its subject and tells it once; an empty text
// clears it.
func (g *Guard) fault(subject, text string) {
	g.mu.Lock()
	before := g.faults[subject]
	if text == "" {
		delete(g.faults, subject)
	} else {
		g.faults[subject] = text
	}
	g.mu.Unlock()
	switch text {
	case before:
	case "":
		g.log.Info("guard fault over", zap.String("subject", subject), zap.String("was", before))
	default:
		g.log.Error("guard fault", zap.String("subject", subject), zap.String("fault", text))
		g.hub.push(cluster.GuardEvent{Kind: "fault", Name: subject, Text: text})
	}
}
