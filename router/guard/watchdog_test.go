package guard

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
)

// bubbleClock is a cluster.Clock on a bubble's virtual time.
type bubbleClock struct{ start time.Time }

func (c bubbleClock) Now() cluster.Instant { return cluster.Instant(time.Hour + time.Since(c.start)) }

// decideShortly is a decision as small as can be: a feeding each quarter of the
// time-out; held while something is overdue, and given up after a second of that.
func decideShortly(granted time.Duration, s cluster.FeedState, now cluster.Instant, in cluster.FeedInput) (cluster.FeedState, cluster.FeedOutput) {
	lapsed := in.ProtectedWork && now >= in.PromisesUntil
	switch {
	case s.Mode == cluster.FeedStarving:
	case in.Overdue == "" && !lapsed:
		s.Mode, s.Why = cluster.FeedFeeding, ""
	case s.Mode != cluster.FeedHolding:
		s.Mode, s.Since, s.Why = cluster.FeedHolding, now, in.Overdue+" stays"
	case now >= s.Since.Add(time.Second):
		s.Mode = cluster.FeedStarving
	}
	switch {
	case s.Mode == cluster.FeedStarving:
		return s, cluster.FeedOutput{Action: cluster.FeedStop, Wake: cluster.Forever}
	case s.Mode == cluster.FeedHolding:
		return s, cluster.FeedOutput{Wake: s.Since.Add(time.Second)}
	case in.OrderlyRelinquished && !s.Unstoppable:
		s.Mode = cluster.FeedDisarmed
		return s, cluster.FeedOutput{Action: cluster.FeedDisarm, Wake: cluster.Forever}
	case now < s.Fed.Add(granted/4):
		return s, cluster.FeedOutput{Wake: s.Fed.Add(granted / 4)}
	}
	s.Fed = now
	return s, cluster.FeedOutput{Action: cluster.FeedFeed, Wake: now.Add(granted / 4)}
}

// devices is a machine's watchdog, the store of its descriptor, and what became
// of both, in order.
type devices struct {
	armErr, adoptErr, feedErr, disarmErr error
	hastenErr                            error
	stall                                func()        // if set, each feeding comes after it
	hangs                                chan struct{} // if set, each call waits for it

	mu      sync.Mutex
	journal []string
	fd      int
	granted time.Duration
}

func (d *devices) note(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.journal = append(d.journal, fmt.Sprintf(format, args...))
}

// now reads, and fails sets, how a call ends.
func (d *devices) now(err *error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return *err
}

func (d *devices) fails(which *error, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	*which = err
}

// told returns what happened since it was last asked, repetitions left out.
func (d *devices) told() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := slices.Compact(d.journal)
	d.journal = nil
	return strings.Join(list, ", ")
}

func (d *devices) Info() (cluster.WatchdogInfo, error) {
	return cluster.WatchdogInfo{Path: "/dev/fake", Hardware: true, Timeout: d.granted}, nil
}

func (d *devices) Arm(t time.Duration) (time.Duration, error) {
	d.note("arm")
	err := d.now(&d.armErr)
	if err != nil && !errors.Is(err, cluster.ErrWatchdogRuns) {
		return 0, err
	}
	d.fd, d.granted = 7, t
	return t, err
}

func (d *devices) Adopt(fd int, t time.Duration) (time.Duration, error) {
	d.note("adopt")
	if d.adoptErr != nil {
		return 0, d.adoptErr
	}
	d.fd, d.granted = fd, t
	return t, nil
}

func (d *devices) Feed() error {
	d.mu.Lock()
	hangs, stall := d.hangs, d.stall
	d.mu.Unlock()
	if stall != nil {
		stall()
	}
	if hangs != nil {
		d.note("feed hangs")
		<-hangs
	}
	d.note("feed")
	return d.now(&d.feedErr)
}

func (d *devices) Disarm() error {
	d.note("disarm")
	if d.disarmErr == nil {
		d.fd = -1
	}
	return d.disarmErr
}

func (d *devices) Hasten(left time.Duration) error {
	d.note("hasten %v", left)
	return d.now(&d.hastenErr)
}

func (d *devices) Descriptor() int   { return d.fd }
func (d *devices) Keep(fd int) error { d.note("keep %d", fd); return nil }
func (d *devices) Drop() error       { d.note("drop"); return nil }
func (d *devices) Reboot() error     { d.note("reboot"); return unix.EPERM }

// machine is a feeder with a guard about it that does nothing by itself.
type machine struct {
	*devices
	t     *testing.T
	f     *feeder
	mu    sync.Mutex
	in    cluster.FeedInput
	wrote cluster.FeedState
	fault map[string]string
}

func newMachine(t *testing.T, c SelfFence, state cluster.FeedState) *machine {
	m := &machine{devices: &devices{fd: -1}, t: t, wrote: state, fault: map[string]string{}, in: cluster.FeedInput{EffectsVerifiedGone: true}}
	c.Decide, c.Timeout = decideShortly, 8*time.Second
	if c.Reboot == nil {
		c.Device, c.Store = m.devices, m.devices
	} else {
		c.Reboot = m.Reboot
	}
	m.f = newFeeder(c, bubbleClock{time.Now()}, zap.NewNop())
	m.f.state = state
	m.f.input = func() cluster.FeedInput {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.in
	}
	m.f.write = func(s cluster.FeedState) {
		m.mu.Lock()
		before := m.wrote
		m.wrote = s
		m.mu.Unlock()
		if s.Mode != before.Mode {
			m.note("write %s", s.Mode)
		}
	}
	m.f.fault = func(subject, text string) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.fault[subject] = text
	}
	return m
}

func (m *machine) start() {
	ctx, cancel := context.WithCancel(context.Background())
	m.f.end = cancel
	go m.f.run(ctx)
	synctest.Wait()
}

func (m *machine) know(change func(in *cluster.FeedInput)) {
	m.mu.Lock()
	change(&m.in)
	m.mu.Unlock()
	m.f.poke()
	synctest.Wait()
}

func (m *machine) faultOf(subject string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.fault[subject]
}

func (m *machine) want(when, want string) {
	m.t.Helper()
	if got := m.told(); got != want {
		m.t.Errorf("%s: %q, want %q", when, got, want)
	}
}

// TestNothingIsFedPastTheRightsEnd: a feeding is decided within the right, and
// the guard is stopped before it is made, or in its middle.
func TestNothingIsFedPastTheRightsEnd(t *testing.T) {
	for name, c := range map[string]struct {
		before, within time.Duration // of a stop
		after          string
	}{
		"not stopped":              {after: "feed"},
		"stopped before":           {before: time.Second, after: "write holding"},
		"stopped within":           {within: time.Second, after: "feed, hasten 7.5s, write holding"},
		"stopped for a while only": {before: 200 * time.Millisecond, within: 200 * time.Millisecond, after: "feed"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMachine(t, SelfFence{}, cluster.FeedState{})
				right := m.f.clock.Now().Add(2500 * time.Millisecond)
				m.f.until = func() cluster.Instant { return right }
				write, decided := m.f.write, cluster.Never
				m.f.write = func(s cluster.FeedState) {
					write(s)
					if decided != cluster.Never && s.Fed != decided { // the second feeding, after a quarter of W
						time.Sleep(c.before)
					}
					decided = s.Fed
				}
				m.start()
				m.know(func(in *cluster.FeedInput) { in.ProtectedWork, in.PromisesUntil = true, right })
				m.told()
				m.devices.mu.Lock()
				m.stall = func() { time.Sleep(c.within) }
				m.devices.mu.Unlock()
				time.Sleep(2450 * time.Millisecond)
				if c.before+c.within >= 500*time.Millisecond {
					time.Sleep(time.Second)
				}
				m.want(name, c.after)
				m.f.end()
				<-m.f.ended
			})
		})
	}
}

// TestALateFeedingThatCannotBeTakenBackIsTold to whoever relies on the bound.
func TestALateFeedingThatCannotBeTakenBackIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, SelfFence{}, cluster.FeedState{})
		m.hastenErr = unix.EOPNOTSUPP
		right := m.f.clock.Now().Add(2500 * time.Millisecond)
		m.f.until = func() cluster.Instant { return right }
		m.start()
		m.devices.mu.Lock()
		m.stall = func() { time.Sleep(time.Second) }
		m.devices.mu.Unlock()
		time.Sleep(4 * time.Second)
		if text := m.faultOf("watchdog feeding"); !strings.Contains(text, "cannot be taken back") || !strings.Contains(text, "500ms after") {
			t.Errorf("told %q", text)
		}
		m.f.end()
		<-m.f.ended
	})
}

func TestFedUntilItIsGivenUpAndWrittenDownBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, SelfFence{}, cluster.FeedState{})
		m.start()
		m.want("started", "arm, write feeding, keep 7")
		time.Sleep(time.Minute + 50*time.Millisecond) // between two feedings: what comes first of two at one instant is open
		m.want("idle", "feed")
		if r := m.f.report(); r.Mode != cluster.FeedFeeding || !r.Stored || r.Timeout != 8*time.Second || r.Word(4*time.Second) == nil {
			t.Errorf("told as %+v", r)
		}
		m.know(func(in *cluster.FeedInput) { in.Overdue = "role primary" })
		m.want("overdue", "write holding")
		m.know(func(in *cluster.FeedInput) { in.Overdue = "" })
		time.Sleep(10*time.Second + 50*time.Millisecond)
		m.want("gone in time", "write feeding, feed")
		m.know(func(in *cluster.FeedInput) { in.Overdue = "role primary" })
		time.Sleep(time.Minute)
		m.want("it stays", "write holding, write starving")
		m.know(func(in *cluster.FeedInput) { in.Overdue = "" })
		time.Sleep(time.Minute)
		m.want("too late", "")
		if r := m.f.report(); r.Mode != cluster.FeedStarving || r.Word(4*time.Second) != nil || !strings.Contains(m.faultOf("watchdog"), "resets within 8s") {
			t.Errorf("told as %+v, fault %q", r, m.faultOf("watchdog"))
		}
		m.know(func(in *cluster.FeedInput) { in.OrderlyRelinquished = true })
		m.f.stop(time.Second)
		m.want("an orderly end comes too late, too", "")
	})
}

func TestAGuardThatFollowsNeverFeedsWhatWasGivenUp(t *testing.T) {
	for _, inherited := range []int{0, 7} {
		synctest.Test(t, func(t *testing.T) {
			m := newMachine(t, SelfFence{Inherited: inherited}, cluster.FeedState{Mode: cluster.FeedStarving, Why: "role primary stays"})
			m.start()
			time.Sleep(time.Hour)
			m.f.stop(time.Second)
			if got := m.told(); strings.Contains(got, "arm") || strings.Contains(got, "feed") {
				t.Errorf("descriptor %d: %s", inherited, got)
			}
		})
	}
}

func TestWhatAnEarlierGuardFedIsJudgedBeforeItIsOpened(t *testing.T) {
	fed := cluster.FeedState{Mode: cluster.FeedFeeding, Fed: cluster.Instant(time.Hour)}
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, SelfFence{}, fed)
		m.start()
		m.want("nothing against it", "arm, keep 7")
		m.f.stop(time.Second)
	})
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, SelfFence{Inherited: 7}, fed)
		m.start()
		m.want("adopted", "adopt")
		time.Sleep(3 * time.Second)
		m.want("its turn", "feed")
		m.f.stop(time.Second)
		m.want("left without a word", "")
	})
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, SelfFence{}, fed)
		m.in = cluster.FeedInput{ProtectedWork: true, PromisesUntil: 1}
		m.start()
		time.Sleep(time.Minute)
		m.want("the right has passed", "write holding, write starving")
		m.f.stop(time.Second)
	})
}

func TestADeviceThatRunsUnderNobodysEyesIsHeldFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, SelfFence{Inherited: 7}, cluster.FeedState{})
		m.in.Overdue = "what an earlier guard left"
		m.start()
		m.want("adopted", "adopt, write holding")
		m.know(func(in *cluster.FeedInput) { in.Overdue = "" })
		m.want("all is verified gone", "write feeding, feed")
		m.f.stop(time.Second)
	})
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, SelfFence{}, cluster.FeedState{})
		m.f.blank = true
		m.start()
		time.Sleep(time.Hour)
		m.want("nothing is known of an earlier guard", "")
		if m.faultOf("watchdog") == "" || m.f.report().Word(time.Second) != nil {
			t.Errorf("fault %q, word %+v", m.faultOf("watchdog"), m.f.report())
		}
		m.f.stop(time.Second)
	})
}

func TestItIsNotArmedWhereItWouldNotBeFed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, SelfFence{}, cluster.FeedState{})
		m.in = cluster.FeedInput{ProtectedWork: true} // a role of an earlier guard, and no deadline of the node
		m.start()
		time.Sleep(time.Hour)
		m.want("work without a right", "")
		m.know(func(in *cluster.FeedInput) { in.PromisesUntil = cluster.Forever })
		m.want("the right has come", "arm, write feeding, keep 7")
		m.f.stop(time.Second)
	})
}

func TestAnArmingThatFailsIsToldAndTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, SelfFence{}, cluster.FeedState{})
		m.armErr = errors.New("process 1 (systemd) has it open")
		m.start()
		m.want("refused", "arm")
		if text := m.faultOf("watchdog"); !strings.Contains(text, "systemd") || !strings.Contains(m.f.report().Why, "systemd") {
			t.Errorf("fault %q, told as %+v", text, m.f.report())
		}
		m.fails(&m.armErr, nil)
		time.Sleep(61 * time.Second)
		m.want("a minute later", "arm, write feeding, keep 7")
		if text := m.faultOf("watchdog"); text != "" {
			t.Errorf("the fault stays: %s", text)
		}
		m.f.stop(time.Second)
	})
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, SelfFence{}, cluster.FeedState{})
		m.armErr = fmt.Errorf("another time-out: %w", cluster.ErrWatchdogRuns)
		m.start()
		time.Sleep(3 * time.Second)
		m.want("it runs all the same", "arm, write feeding, keep 7, feed")
		m.know(func(in *cluster.FeedInput) { in.OrderlyRelinquished = true })
		m.f.stop(time.Second)
		if got := m.told(); strings.Contains(got, "disarm") {
			t.Errorf("what cannot be stopped is fed to the last: %s", got)
		}
	})
}

func TestDisarmedByTheBookOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, SelfFence{}, cluster.FeedState{})
		m.start()
		m.told()
		m.f.stop(time.Second)
		m.want("stopped without the word", "")
	})
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, SelfFence{}, cluster.FeedState{})
		m.start()
		m.told()
		m.mu.Lock()
		m.in.OrderlyRelinquished = true
		m.mu.Unlock()
		m.f.stop(time.Second)
		m.want("stopped after it", "write disarmed, drop, disarm")
		if r := m.f.report(); r.Mode != cluster.FeedDisarmed || r.Stored || r.Timeout != 0 {
			t.Errorf("told as %+v", r)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, SelfFence{}, cluster.FeedState{})
		m.disarmErr = fmt.Errorf("nowayout: %w", cluster.ErrWatchdogRuns)
		m.start()
		m.told()
		m.know(func(in *cluster.FeedInput) { in.OrderlyRelinquished = true })
		m.want("it cannot be", "write disarmed, drop, disarm, keep 7, write feeding")
		time.Sleep(time.Minute)
		m.want("fed on as long as this process lives", "feed")
		m.f.stop(time.Second)
	})
}

// TestNobodyWaitsForADeviceThatHangs: an ioctl that does not return.
func TestNobodyWaitsForADeviceThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, SelfFence{}, cluster.FeedState{})
		m.start()
		m.devices.mu.Lock()
		m.hangs = make(chan struct{})
		m.devices.mu.Unlock()
		time.Sleep(2500 * time.Millisecond)
		m.want("the first feeding", "arm, write feeding, keep 7, feed hangs")
		m.know(func(in *cluster.FeedInput) { in.Overdue = "role primary" })
		began := time.Now()
		m.f.watch()
		time.Sleep(3 * time.Second)
		m.f.watch()
		if m.faultOf("watchdog device") == "" || m.f.report().Mode != cluster.FeedFeeding {
			t.Errorf("fault %q, told as %+v", m.faultOf("watchdog device"), m.f.report())
		}
		m.f.stop(time.Second)
		if took := time.Since(began); took > 4*time.Second {
			t.Errorf("waited %v", took)
		}
		close(m.hangs)
		synctest.Wait()
		m.want("it returned at last", "feed, write holding")
		m.f.watch()
		if text := m.faultOf("watchdog device"); text != "" {
			t.Errorf("the fault stays: %s", text)
		}
		<-m.f.ended
	})
}

func TestAFeedingThatFailsIsToldAndTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, SelfFence{}, cluster.FeedState{})
		m.start()
		m.fails(&m.feedErr, unix.EIO)
		time.Sleep(3 * time.Second)
		if text := m.faultOf("watchdog feeding"); !strings.Contains(text, "input/output error") {
			t.Errorf("fault %q", text)
		}
		m.fails(&m.feedErr, nil)
		time.Sleep(2 * time.Second)
		if text := m.faultOf("watchdog feeding"); text != "" {
			t.Errorf("the fault stays: %s", text)
		}
		m.f.stop(time.Second)
	})
}

// TestRebootedWhereNothingElseResetsIt: without a device the decision is the same.
func TestRebootedWhereNothingElseResetsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, SelfFence{Reboot: func() error { return nil }}, cluster.FeedState{})
		m.start()
		time.Sleep(time.Minute)
		m.want("idle", "write feeding")
		if r := m.f.report(); r.Word(time.Second) != nil || m.faultOf("watchdog") != "" {
			t.Errorf("without a device: %+v, fault %q", r, m.faultOf("watchdog"))
		}
		m.know(func(in *cluster.FeedInput) { in.Overdue = "role primary" })
		m.want("overdue", "write holding")
		time.Sleep(5 * time.Second)
		m.want("it stays", "write starving, reboot")
		if text := m.faultOf("reboot"); !strings.Contains(text, "role primary stays") || !strings.Contains(text, "operation not permitted") {
			t.Errorf("a reboot that does not come: %q", text)
		}
		m.f.stop(time.Second)
	})
	synctest.Test(t, func(t *testing.T) { // killed in between: the next guard reboots
		m := newMachine(t, SelfFence{Reboot: func() error { return nil }}, cluster.FeedState{Mode: cluster.FeedStarving})
		m.start()
		m.want("started again", "reboot")
		m.f.stop(time.Second)
	})
}
