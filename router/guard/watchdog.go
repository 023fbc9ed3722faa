package guard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
)

// Watchdog is a device that resets this machine once nobody has fed it for its
// time-out (fencing.WatchdogDevice). One goroutine uses it, and any call may
// hang in the kernel.
type Watchdog interface {
	// Info is what is known of the device; it does not open it.
	Info() (cluster.WatchdogInfo, error)
	// Arm opens the device, which starts and feeds it, and returns the time-out
	// that it reads back. After cluster.ErrWatchdogRuns it runs all the same and
	// resets the machine unless it is fed; after any other error it does not.
	Arm(timeout time.Duration) (granted time.Duration, err error)
	// Adopt takes a descriptor over that an earlier process has armed. It feeds
	// nothing.
	Adopt(fd int, timeout time.Duration) (granted time.Duration, err error)
	Feed() error
	// Hasten has the open device reset the machine within left, in whole seconds
	// and at least one, unless Feed comes before, which restores the time-out.
	Hasten(left time.Duration) error
	// Disarm stops and closes it; after cluster.ErrWatchdogRuns it runs on, open.
	Disarm() error
	// Descriptor is the open one, −1 without.
	Descriptor() int
}

// FeedStep decides whether the device is fed (fencing.StepFeeding): a pure
// function of the time-out that was granted, what it remembers, now, and what
// the guard knows.
type FeedStep func(granted time.Duration, s cluster.FeedState, now cluster.Instant, in cluster.FeedInput) (cluster.FeedState, cluster.FeedOutput)

// DescriptorStore keeps a copy of the device's descriptor where it outlives this
// process: the kernel feeds a device once more when its last one is closed.
type DescriptorStore interface {
	// Keep puts a copy there.
	Keep(fd int) error
	// Drop has it closed, and returns when it is.
	Drop() error
}

// SelfFence is how this machine is ended where nothing else ends its work (I3).
// The zero value: not at all.
type SelfFence struct {
	Device  Watchdog      // nil: none
	Timeout time.Duration // W, asked of the device; at least 1 s
	Decide  FeedStep
	// Inherited is the device's descriptor that an earlier guard has left in the
	// store; below 3: none.
	Inherited int
	Store     DescriptorStore // nil: there is none
	// Reboot resets the machine at once, where the decision is to feed it no more.
	// It does not return, or why not. Nil: nobody does.
	Reboot func() error
}

// Validate reports what is missing.
func (s SelfFence) Validate() error {
	switch {
	case !s.used():
		return nil
	case s.Decide == nil:
		return errors.New("guard: a watchdog or a reboot without what decides on it")
	case s.Timeout < time.Second:
		return fmt.Errorf("guard: a watchdog time-out of %v: want at least 1 s", s.Timeout)
	}
	return nil
}

func (s SelfFence) used() bool { return s.Device != nil || s.Reboot != nil }

const (
	armRetry     = time.Minute     // until a device that could not be armed is tried again
	runningRetry = time.Second     // the same, where an earlier guard has armed it
	longestSleep = time.Minute     // between decisions
	stuckAfter   = 2 * time.Second // for so long no call of a device takes
)

// feeder owns the watchdog: one goroutine that alone calls it, since any call
// may hang, and for which nobody waits.
//
//	             granted, where it would be fed
//	not armed ─────────────────────────────────▶ feeding ⇄ holding ──▶ starving
//	    ▲ refused: again later                    │    (FeedStep)
//	    └──────────── orderly end ◀── disarmed ◀──┘
//
// An adopted device goes on in the state that was written down. Each state is
// written down before its effect, so that the next guard never feeds what this
// one had given up.
//
// Nobody may feed once the right is over (I4: others reckon from its end), but
// between a decision and its effect this process may be stopped for any time,
// and the kernel offers no feeding with a condition. So the clock is read again
// right before the call. What is left are the instructions from there into the
// kernel: who was stopped in these, or hung in the device, has fed once late, by
// which the device would bite up to a second W later than others count. It is
// read a third time after the call, therefore, and a late feeding is taken back:
// the device is given only what is left until the right's end + W. That it is
// taken back in time needs no luck: past that instant this machine would not run.
type feeder struct {
	c     SelfFence
	clock cluster.Clock
	log   *zap.Logger
	input func() cluster.FeedInput   // what the guard knows; asked once for each decision
	until func() cluster.Instant     // until when a feeding is right; asked at any time
	write func(cluster.FeedState)    // writes it down
	fault func(subject, text string) // Guard.fault
	blank bool                       // what an earlier guard wrote down cannot be read
	news  chan struct{}              // one slot: decide again
	ended chan struct{}              // closed when run has returned
	end   context.CancelFunc         // ends run after one more decision

	// Of run's goroutine alone.
	state   cluster.FeedState
	granted time.Duration
	open    bool // the device is
	info    cluster.WatchdogInfo
	stored  bool
	unarmed string // why it is not armed

	mu   sync.Mutex
	seen cluster.WatchdogState
	busy cluster.Instant // since when a call of the device is under way; Never: none

	stuck bool // of watch's caller alone
}

// startFeeding starts the feeder where there is something to feed.
func (g *Guard) startFeeding(remembered bool) {
	if !g.cfg.SelfFence.used() {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	f := newFeeder(g.cfg.SelfFence, g.clock, g.log.Named("watchdog"))
	f.input, f.until, f.write, f.fault, f.blank, f.end = g.feedInput, g.feedUntil, g.setFeed, g.fault, !remembered, cancel
	g.mu.Lock()
	f.state = g.feed
	g.feeder = f
	g.mu.Unlock()
	f.publish()
	go f.run(ctx) // stop waits for it, as long as one waits for a device
}

func newFeeder(c SelfFence, clock cluster.Clock, log *zap.Logger) *feeder {
	if c.Device == nil {
		c.Device = noDevice{}
	}
	return &feeder{c: c, clock: clock, log: log, until: func() cluster.Instant { return cluster.Forever }, news: make(chan struct{}, 1), ended: make(chan struct{})}
}

// poke has it decide again soon. It never waits. Nil does nothing.
func (f *feeder) poke() {
	if f == nil {
		return
	}
	select {
	case f.news <- struct{}{}:
	default:
	}
}

// report is what is known of the watchdog; it waits for no device.
func (f *feeder) report() cluster.WatchdogState {
	if f == nil {
		return cluster.WatchdogState{}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.seen
}

// watch tells of a device that does not answer. Each tick calls it.
func (f *feeder) watch() {
	if f == nil {
		return
	}
	f.mu.Lock()
	since := f.busy
	f.mu.Unlock()
	stuck := since != cluster.Never && f.clock.Now().Sub(since) > stuckAfter
	if stuck == f.stuck {
		return
	}
	f.stuck = stuck
	text := ""
	if stuck {
		text = "the watchdog's device does not answer: it is not fed meanwhile, and this machine resets when its time-out has passed"
	}
	f.fault("watchdog device", text)
}

// stop has one more decision made, by which the device is disarmed or runs on,
// and waits for it, but not for a device that hangs.
func (f *feeder) stop(limit time.Duration) {
	if f == nil {
		return
	}
	f.end()
	select {
	case <-f.ended:
	case <-time.After(limit):
		f.log.Error("watchdog's device hangs, it is left as it is")
	}
}

// run decides at each news and whenever a decision asks for the next, until ctx
// ends.
func (f *feeder) run(ctx context.Context) {
	defer close(f.ended)
	f.begin()
	timer := time.NewTimer(longestSleep)
	defer timer.Stop()
	for {
		last := ctx.Err() != nil
		wake := f.step()
		if last {
			f.leave()
			return
		}
		timer.Reset(max(0, min(wake.Sub(f.clock.Now()), longestSleep)))
		select {
		case <-timer.C:
		case <-f.news:
		case <-ctx.Done():
		}
	}
}

// begin takes over what an earlier guard has left.
func (f *feeder) begin() {
	f.call(func() { f.info, _ = f.c.Device.Info() })
	if f.c.Inherited > 2 {
		f.adopt()
	}
	f.publish()
}

// adopt goes on with the device of an earlier guard, without feeding it.
func (f *feeder) adopt() {
	var granted time.Duration
	var err error
	f.call(func() { granted, err = f.c.Device.Adopt(f.c.Inherited, f.c.Timeout) })
	if err != nil && f.c.Device.Descriptor() < 0 {
		_ = unix.Close(f.c.Inherited)
		f.log.Error("what an earlier guard left is no watchdog", zap.Error(err))
		return
	}
	f.opened(granted, true)
	f.log.Info("watchdog adopted from an earlier guard", zap.String("device", f.info.Path), zap.Duration("timeout", f.granted), zap.String("mode", string(f.state.Mode)))
	if err != nil {
		f.fault("watchdog", fmt.Sprintf("the watchdog that an earlier guard has armed is not as it should be: %v", err))
	}
	if m := f.state.Mode; f.blank || m == cluster.FeedUnarmed || m == cluster.FeedDisarmed {
		f.become(cluster.FeedState{Mode: cluster.FeedHolding, Since: f.clock.Now(), Why: "an earlier guard has armed it, and nothing else is known of that"})
	}
}

// opened learns what the device says of itself.
func (f *feeder) opened(granted time.Duration, stored bool) {
	f.open, f.stored, f.unarmed = true, stored, ""
	f.call(func() { f.info, _ = f.c.Device.Info() })
	f.granted = cmp.Or(granted, f.info.Timeout, f.c.Timeout)
}

// step decides once, and returns when to decide again at the latest.
func (f *feeder) step() cluster.Instant {
	now, in := f.clock.Now(), f.input()
	if !f.open {
		return f.stepUnarmed(now, in)
	}
	next, out := f.c.Decide(f.granted, f.state, now, in)
	f.become(next)
	switch out.Action {
	case cluster.FeedFeed:
		if !f.feed() {
			return f.clock.Now() // decided anew
		}
	case cluster.FeedStop:
		return f.starve(now)
	case cluster.FeedDisarm:
		return f.disarm(now)
	}
	return out.Wake
}

// stepUnarmed arms the device where it would be fed: to open it feeds it. What an
// earlier guard has armed is judged like one that is open; else nothing runs yet,
// and there is nothing to be given up.
func (f *feeder) stepUnarmed(now cluster.Instant, in cluster.FeedInput) cluster.Instant {
	switch {
	case in.OrderlyRelinquished:
		return cluster.Forever // the guard ends
	case f.blank:
		return f.notArmed(now.Add(armRetry), errors.New("what an earlier guard knew of it cannot be read, and to open the device would feed it"))
	}
	begin := f.state
	ran := begin.Mode != cluster.FeedUnarmed && begin.Mode != cluster.FeedDisarmed
	if !ran {
		begin = cluster.ArmedFeed(now)
	}
	next, out := f.c.Decide(f.c.Timeout, begin, now, in)
	if ran {
		f.become(next)
	}
	switch {
	case next.Mode == cluster.FeedFeeding:
		return f.arm(now, ran)
	case ran && out.Action == cluster.FeedStop:
		return f.starve(now)
	}
	return f.notArmed(min(out.Wake, now.Add(armRetry)), next.MayArm())
}

// arm opens the device. ran: an earlier guard had armed it.
func (f *feeder) arm(now cluster.Instant, ran bool) cluster.Instant {
	if f.late() {
		return now // to open it feeds it; decided anew
	}
	var granted time.Duration
	var err error
	f.call(func() { granted, err = f.c.Device.Arm(f.c.Timeout) })
	runs := errors.Is(err, cluster.ErrWatchdogRuns)
	if err != nil && !runs {
		retry := armRetry
		if ran {
			retry = runningRetry
		}
		return f.notArmed(now.Add(retry), err)
	}
	f.opened(granted, false)
	state := cluster.ArmedFeed(now)
	state.Unstoppable = runs || f.state.Unstoppable
	f.become(state)
	f.keep()
	f.takeBack()
	text := ""
	if runs { // not as it was asked for, but it resets the machine unless it is fed
		text = fmt.Sprintf("the watchdog runs, but: %v", err)
	}
	f.fault("watchdog", text)
	if f.info.Path != "" {
		f.log.Info("watchdog armed", zap.String("device", f.info.Path), zap.String("identity", f.info.Identity),
			zap.Bool("hardware", f.info.Hardware), zap.Duration("timeout", f.granted), zap.Bool("stored", f.stored))
	}
	return now // what to do with it is decided next
}

// notArmed tells why, and when it is tried again.
func (f *feeder) notArmed(again cluster.Instant, why error) cluster.Instant {
	f.unarmed = "not armed"
	if why != nil {
		f.unarmed = why.Error()
	}
	f.publish()
	f.fault("watchdog", fmt.Sprintf("the watchdog is not armed, so that nothing ends what this guard cannot end: %s", f.unarmed))
	return again
}

// keep has a copy of the descriptor outlive this process.
func (f *feeder) keep() {
	if f.c.Store == nil || f.c.Device.Descriptor() < 0 {
		return
	}
	err := f.c.Store.Keep(f.c.Device.Descriptor())
	f.stored = err == nil
	if err != nil {
		f.log.Warn("watchdog's descriptor not stored: the death of this guard would feed the device once more", zap.Error(err))
	}
	f.publish()
}

// late reports whether the right on which a feeding rests is over by now.
func (f *feeder) late() bool {
	until := f.until() // before the clock: who is stopped in between finds it late
	return f.clock.Now() >= until
}

// takeBack has the device bite when it would have, had the feeding that was just
// made not come after the end of the right. It reports whether that was so.
func (f *feeder) takeBack() bool {
	until := f.until()
	now := f.clock.Now()
	if now < until {
		return false
	}
	left := until.Add(f.granted).Sub(now)
	var err error
	f.call(func() { err = f.c.Device.Hasten(left) })
	f.log.Error("watchdog was fed late: this process was stopped in the middle of it", zap.Duration("late", now.Sub(until)), zap.Duration("resets_within", left), zap.Error(err))
	if err != nil {
		f.fault("watchdog feeding", fmt.Sprintf("the watchdog was fed %v after this node's right had ended, which cannot be taken back: others may take this machine for reset up to %v too early: %v",
			now.Sub(until), f.granted, err))
	}
	return true
}

// feed feeds the device unless it is too late for that; false: it was. One that
// fails is tried again when the next is due.
func (f *feeder) feed() bool {
	if f.late() {
		return false
	}
	var err error
	f.call(func() { err = f.c.Device.Feed() })
	text := ""
	if err != nil {
		text = fmt.Sprintf("the watchdog may not have been fed: %v", err)
	}
	f.fault("watchdog feeding", text)
	return !f.takeBack()
}

// starve says that the machine is to reset, and resets it where that is asked for.
func (f *feeder) starve(now cluster.Instant) cluster.Instant {
	if f.open && f.info.Path != "" {
		f.fault("watchdog", fmt.Sprintf("the watchdog is not fed any more, this machine resets within %v: %s", f.granted, f.state.Why))
	}
	if f.c.Reboot == nil {
		return cluster.Forever
	}
	f.log.Error("this machine is rebooted now", zap.String("why", f.state.Why))
	err := f.c.Reboot()
	f.fault("reboot", fmt.Sprintf("this machine is to reboot (%s) and does not: %v; reboot it by hand", f.state.Why, err))
	return now.Add(runningRetry)
}

// disarm stops the device at an orderly end.
func (f *feeder) disarm(now cluster.Instant) cluster.Instant {
	if f.stored && f.c.Store != nil { // first: a driver may stop at its last close only
		f.stored = false
		if err := f.c.Store.Drop(); err != nil {
			f.log.Warn("watchdog's stored descriptor not dropped", zap.Error(err))
		}
	}
	var err error
	f.call(func() { err = f.c.Device.Disarm() })
	switch {
	case errors.Is(err, cluster.ErrWatchdogRuns):
		f.keep()
		f.become(f.state.Undisarmed(now))
		f.fault("watchdog", fmt.Sprintf("the watchdog is not to be fed any more and cannot be stopped: %v", err))
		return now.Add(runningRetry / 10)
	case err != nil:
		f.log.Error("watchdog not disarmed by the book", zap.Error(err))
	case f.info.Path != "":
		f.log.Info("watchdog disarmed", zap.String("device", f.info.Path))
	}
	f.open, f.info.Timeout = false, 0
	f.publish()
	return cluster.Forever
}

// leave tells, at the guard's end, what a device that runs on is about to do.
func (f *feeder) leave() {
	if f.open && f.info.Path != "" {
		f.log.Error("watchdog runs on: this machine resets unless a guard comes back in time; to stop both in order, stop pvcnoded first",
			zap.String("device", f.info.Path), zap.Duration("timeout", f.granted), zap.Bool("stored", f.stored))
	}
}

// become goes over to the state: it is written down before anything rests on it.
func (f *feeder) become(next cluster.FeedState) {
	before := f.state
	f.state = next
	f.write(next)
	f.publish()
	fields := []zap.Field{zap.String("from", string(before.Mode)), zap.String("to", string(next.Mode)), zap.String("why", next.Why)}
	switch next.Mode {
	case before.Mode:
	case cluster.FeedStarving:
		f.log.Error("watchdog feeding has ended for good", fields...)
	default:
		f.log.Info("watchdog feeding", fields...)
	}
}

// publish takes over what report tells.
func (f *feeder) publish() {
	s := cluster.WatchdogState{WatchdogInfo: f.info, Mode: f.state.Mode, Since: f.state.Since, Fed: f.state.Fed, Why: f.state.Why, Stored: f.stored}
	if !f.open && f.unarmed != "" {
		s.Why = f.unarmed
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen = s
}

// call makes a call of the device, which may never return.
func (f *feeder) call(do func()) {
	set := func(at cluster.Instant) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.busy = at
	}
	set(f.clock.Now())
	do()
	set(cluster.Never)
}

// noDevice stands in where only a reboot ends this machine.
type noDevice struct{}

func (noDevice) Info() (cluster.WatchdogInfo, error)             { return cluster.WatchdogInfo{}, nil }
func (noDevice) Arm(t time.Duration) (time.Duration, error)      { return t, nil }
func (noDevice) Adopt(int, time.Duration) (time.Duration, error) { return 0, cluster.ErrRefused }
func (noDevice) Feed() error                                     { return nil }
func (noDevice) Hasten(time.Duration) error                      { return nil }
func (noDevice) Disarm() error                                   { return nil }
func (noDevice) Descriptor() int                                 { return -1 }
