package cluster

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Timing holds every interval of the protocol (protocol §2). All durations are
// positive. Letters in the comments are the protocol's.
type Timing struct {
	KeepaliveInterval time.Duration // K
	CollectorDeadline time.Duration // per subthread, < K
	RenewInterval     time.Duration // R
	RoleTTL           time.Duration // L
	Grace             time.Duration // G
	TakerMargin       time.Duration // M
	WriteGap          time.Duration // g, longest expected without commits when the ZooKeeper leader is lost
	SessionTimeout    time.Duration // S
	LockTimeout       time.Duration
	TransitionDelay   time.Duration // planned switch only, between A and B
	Settle            time.Duration // wait in E after the last check; may be zero
	FenceIntervals    int           // F, keepalives missed before a node is suspected
	SuicideIntervals  int           // Q, own keepalives unacknowledged before protected work stops
	Watchdog          time.Duration // W
	BootTimeout       time.Duration
	NodeLeasePeriod   time.Duration
	NodeLeaseRenew    time.Duration
	NodeLeaseGrace    time.Duration
}

// The names of the timing profiles.
const (
	TimingLAN  = "lan"  // the default: 3 s of silence at worst, one network
	TimingFast = "fast" // 2 s; needs the gate and a store whose leader loss is short
	TimingPVC  = "pvc"  // the intervals of PVC's own daemons
)

// ProfileLAN returns the default profile.
func ProfileLAN() Timing {
	return Timing{
		KeepaliveInterval: time.Second,
		CollectorDeadline: 800 * time.Millisecond,
		RenewInterval:     500 * time.Millisecond,
		RoleTTL:           2800 * time.Millisecond,
		Grace:             300 * time.Millisecond,
		TakerMargin:       100 * time.Millisecond,
		WriteGap:          1800 * time.Millisecond,
		SessionTimeout:    6 * time.Second,
		LockTimeout:       400 * time.Millisecond,
		TransitionDelay:   500 * time.Millisecond,
		FenceIntervals:    5,
		SuicideIntervals:  4,
		Watchdog:          5 * time.Second,
		BootTimeout:       300 * time.Second,
		NodeLeasePeriod:   5 * time.Second,
		NodeLeaseRenew:    time.Second,
		NodeLeaseGrace:    time.Second,
	}
}

// ProfileFast returns the profile for the shortest silence.
func ProfileFast() Timing {
	return Timing{
		KeepaliveInterval: 250 * time.Millisecond,
		CollectorDeadline: 200 * time.Millisecond,
		RenewInterval:     250 * time.Millisecond,
		RoleTTL:           1800 * time.Millisecond,
		Grace:             200 * time.Millisecond,
		TakerMargin:       100 * time.Millisecond,
		WriteGap:          1800 * time.Millisecond,
		SessionTimeout:    4 * time.Second,
		LockTimeout:       400 * time.Millisecond,
		TransitionDelay:   500 * time.Millisecond,
		FenceIntervals:    14,
		SuicideIntervals:  11,
		Watchdog:          3 * time.Second,
		BootTimeout:       300 * time.Second,
		NodeLeasePeriod:   2 * time.Second,
		NodeLeaseRenew:    400 * time.Millisecond,
		NodeLeaseGrace:    400 * time.Millisecond,
	}
}

// ProfilePVC returns the intervals of PVC's own daemons.
func ProfilePVC() Timing {
	return Timing{
		KeepaliveInterval: 5 * time.Second,
		CollectorDeadline: 4 * time.Second,
		RenewInterval:     5 * time.Second,
		RoleTTL:           15 * time.Second,
		Grace:             time.Second,
		TakerMargin:       250 * time.Millisecond,
		WriteGap:          12 * time.Second,
		SessionTimeout:    10 * time.Second,
		LockTimeout:       400 * time.Millisecond,
		TransitionDelay:   500 * time.Millisecond,
		Settle:            2 * time.Second,
		FenceIntervals:    6,
		SuicideIntervals:  5,
		Watchdog:          15 * time.Second,
		BootTimeout:       300 * time.Second,
		NodeLeasePeriod:   15 * time.Second,
		NodeLeaseRenew:    2 * time.Second,
		NodeLeaseGrace:    5 * time.Second,
	}
}

// Profile returns the profile of this name; the empty name is TimingLAN.
func Profile(name string) (Timing, error) {
	switch name {
	case "", TimingLAN:
		return ProfileLAN(), nil
	case TimingFast:
		return ProfileFast(), nil
	case TimingPVC:
		return ProfilePVC(), nil
	}
	return Timing{}, fmt.Errorf("timing profile %q is unknown: use %s, %s or %s", name, TimingLAN, TimingFast, TimingPVC)
}

// RequestTimeout is how long one ZooKeeper or peer request may take: 0.8 K.
func (t Timing) RequestTimeout() time.Duration { return t.KeepaliveInterval * 8 / 10 }

// RoleTerm is L − G: how long after a renewal's send instant its holder may act (I3).
func (t Timing) RoleTerm() time.Duration { return t.RoleTTL - t.Grace }

// SuspectAfter is F·K: a keepalive unchanged for that long makes a node suspect.
func (t Timing) SuspectAfter() time.Duration {
	return time.Duration(t.FenceIntervals) * t.KeepaliveInterval
}

// StopAfter is Q·K: unacknowledged for that long, a node stops protected work
// and no longer feeds its watchdog.
func (t Timing) StopAfter() time.Duration {
	return time.Duration(t.SuicideIntervals) * t.KeepaliveInterval
}

// WatchdogProof is Q·K + W + 1 s: after that long without a keepalive an armed
// hardware watchdog has reset the node.
func (t Timing) WatchdogProof() time.Duration { return t.StopAfter() + t.Watchdog + time.Second }

// IsolatedFenceAfter is F·K + Q·K + W: when a suspect that still answers
// probes may be fenced.
func (t Timing) IsolatedFenceAfter() time.Duration {
	return t.SuspectAfter() + t.StopAfter() + t.Watchdog
}

// The measured constants behind the relations of protocol §2.
const (
	leaderKillGap  = 1100 * time.Millisecond // write gap when the ZooKeeper leader is killed, rounded up
	renewSlack     = 100 * time.Millisecond  // one retry of a renewal
	lifetimeFloor  = 2050 * time.Millisecond // valid_lft of 1 s ends at most so late, twice stepped
	lifetimeSlack  = 1270 * time.Millisecond // stepping each 0.2 s plus what the kernel adds
	marginFloor    = 50 * time.Millisecond   // M's fixed part; 1 % of L is the clocks' drift
	stopSlack      = 500 * time.Millisecond
	takeOverSlack  = 100 * time.Millisecond
	leaderLostTake = 200 * time.Millisecond
	fenceClaim     = 500 * time.Millisecond
)

// TimingOptions are the facts beside the intervals that decide which
// relations must hold.
type TimingOptions struct {
	Gate            bool          // nftables holds the addresses' gate
	Failsafe        bool          // peers extend the lease while nobody can write
	ServerTick      time.Duration // ZooKeeper's tickTime as read; 0: not known
	SyncLimit       int           // ZooKeeper's syncLimit in ticks as read; 0: not known
	GrantedSession  time.Duration // as negotiated; 0: not connected yet
	FailedFenceWait time.Duration // how long `failed_fence: migrate` waits; 0: the watchdog proof time
	FenceDeadline   time.Duration // of one device, off and verified; 0: 20 s
}

// Validate checks every relation of protocol §2. The error joins all that are
// broken, each with both numbers and what to change; warnings are relations
// whose breach costs availability, never safety.
func (t Timing) Validate(o TimingOptions) (warnings []string, err error) {
	if err := t.validateSigns(); err != nil {
		return nil, err
	}
	var v verdict
	t.checkRole(o, &v)
	t.checkNodes(o, &v)
	t.checkStore(o, &v)
	return v.warnings, errors.Join(v.broken...)
}

// verdict collects what a validation found.
type verdict struct {
	warnings []string
	broken   []error
}

// must records a refusal unless ok holds.
func (v *verdict) must(ok bool, format string, args ...any) {
	if !ok {
		v.broken = append(v.broken, fmt.Errorf(format, args...))
	}
}

// should records a warning unless ok holds.
func (v *verdict) should(ok bool, format string, args ...any) {
	if !ok {
		v.warnings = append(v.warnings, fmt.Sprintf(format, args...))
	}
}

func (t Timing) validateSigns() error {
	var wrong []string
	for _, d := range []struct {
		name  string
		value time.Duration
	}{
		{"keepalive_interval", t.KeepaliveInterval}, {"collector_deadline", t.CollectorDeadline},
		{"renew_interval", t.RenewInterval}, {"role_ttl", t.RoleTTL}, {"grace", t.Grace},
		{"taker_margin", t.TakerMargin}, {"write_gap", t.WriteGap}, {"session_timeout", t.SessionTimeout},
		{"lock_timeout", t.LockTimeout}, {"transition_delay", t.TransitionDelay},
		{"watchdog", t.Watchdog}, {"boot_timeout", t.BootTimeout},
		{"node_lease_period", t.NodeLeasePeriod}, {"node_lease_renew", t.NodeLeaseRenew},
		{"node_lease_grace", t.NodeLeaseGrace},
		{"fence_intervals", time.Duration(t.FenceIntervals)}, {"suicide_intervals", time.Duration(t.SuicideIntervals)},
	} {
		if d.value <= 0 {
			wrong = append(wrong, d.name)
		}
	}
	if t.Settle < 0 {
		wrong = append(wrong, "settle")
	}
	if len(wrong) > 0 {
		return fmt.Errorf("timing: %s must be larger than zero", strings.Join(wrong, ", "))
	}
	return nil
}

// checkRole checks what the primary's lease rests on (I1, I3, I9).
func (t Timing) checkRole(o TimingOptions, v *verdict) {
	term := t.RoleTerm()
	v.must(t.RenewInterval < term,
		"renew_interval %v must be less than role_ttl − grace = %v, or the role ends between two renewals: shorten renew_interval or lengthen role_ttl",
		t.RenewInterval, term)
	if killed := t.RenewInterval + leaderKillGap; killed > term {
		why := fmt.Sprintf("renew_interval + 1.1 s = %v exceeds role_ttl − grace = %v, so that an ordinary loss of the ZooKeeper leader (1.03 s without commits) moves the role: lengthen role_ttl or shorten renew_interval",
			killed, term)
		v.must(o.Failsafe, "%s, or set role.failsafe: true", why)
		v.should(!o.Failsafe, "%s", why)
	}
	gap := t.RenewInterval + t.WriteGap + renewSlack
	v.should(gap <= term,
		"renew_interval + write_gap + 0.1 s = %v exceeds role_ttl − grace = %v: losing the machine of the ZooKeeper leader may move the role; lengthen role_ttl, or lower syncLimit × tickTime and with it write_gap",
		gap, term)
	if !o.Gate {
		t.checkWithoutGate(v)
	}
	floor := marginFloor + t.RoleTTL/100
	v.must(t.TakerMargin >= floor,
		"taker_margin %v must be at least 0.05 s + 1 %% of role_ttl = %v, or clock drift can let two nodes act: raise taker_margin",
		t.TakerMargin, floor)
	v.must(t.TransitionDelay > t.LockTimeout,
		"transition_delay %v must be longer than lock_timeout %v, so that watchers see both states of a switch: raise transition_delay or lower lock_timeout",
		t.TransitionDelay, t.LockTimeout)
}

// checkWithoutGate checks that address lifetimes, whole seconds in the kernel,
// can stand in for the gate (I3).
func (t Timing) checkWithoutGate(v *verdict) {
	bound := t.RoleTTL + t.TakerMargin
	v.must(bound-lifetimeFloor >= t.RenewInterval,
		"without the nftables gate role_ttl + taker_margin − 2.05 s = %v must be at least renew_interval %v, since an address lifetime has whole seconds: lengthen role_ttl, or install nftables and set role.gate: true",
		bound-lifetimeFloor, t.RenewInterval)
	gap := t.RenewInterval + t.WriteGap + renewSlack
	v.should(gap <= bound-lifetimeSlack,
		"without the nftables gate renew_interval + write_gap + 0.1 s = %v exceeds role_ttl + taker_margin − 1.27 s = %v: losing the machine of the ZooKeeper leader may take the addresses away for a moment; lengthen role_ttl or use the gate",
		gap, bound-lifetimeSlack)
}

// checkNodes checks detection, self-fencing and node leases (I4, I6).
func (t Timing) checkNodes(o TimingOptions, v *verdict) {
	k := t.KeepaliveInterval
	v.must(t.CollectorDeadline < k,
		"collector_deadline %v must be less than keepalive_interval %v, or a slow collector delays the keepalive: lower collector_deadline",
		t.CollectorDeadline, k)
	v.must(t.SuspectAfter() > t.RoleTTL+t.TakerMargin,
		"fence_intervals × keepalive_interval = %v must exceed role_ttl + taker_margin = %v, or a node is fenced before its role has ended: raise fence_intervals",
		t.SuspectAfter(), t.RoleTTL+t.TakerMargin)
	v.must(t.StopAfter() < t.SuspectAfter(),
		"suicide_intervals × keepalive_interval = %v must be less than fence_intervals × keepalive_interval = %v, so that a cut-off node stops before it is fenced: lower suicide_intervals or raise fence_intervals",
		t.StopAfter(), t.SuspectAfter())
	gap := t.WriteGap + k + stopSlack
	v.must(t.StopAfter() >= gap,
		"suicide_intervals × keepalive_interval = %v must be at least write_gap + keepalive_interval + 0.5 s = %v, or every node stops its work when the ZooKeeper leader is lost: raise suicide_intervals (and fence_intervals above it) or lower write_gap",
		t.StopAfter(), gap)
	v.must(o.FailedFenceWait == 0 || o.FailedFenceWait >= t.WatchdogProof(),
		"failed_fence: migrate waits %v, which must be at least suicide_intervals × keepalive_interval + watchdog + 1 s = %v, or work starts twice: raise the wait or lower watchdog",
		o.FailedFenceWait, t.WatchdogProof())
	asked := 2*t.NodeLeaseRenew + t.RequestTimeout()
	v.must(asked < t.NodeLeasePeriod-t.NodeLeaseGrace,
		"2 × node_lease_renew + the request timeout (0.8 × keepalive_interval) = %v must be less than node_lease_period − node_lease_grace = %v, or one lost request loses the lease: lower node_lease_renew or raise node_lease_period",
		asked, t.NodeLeasePeriod-t.NodeLeaseGrace)
	v.must(t.NodeLeasePeriod <= MaxNodeLeaseWait,
		"node_lease_period %v must be at most %v, for no node believes in a longer promise: lower node_lease_period",
		t.NodeLeasePeriod, MaxNodeLeaseWait)
	drift := t.NodeLeasePeriod / 50
	v.must(t.NodeLeaseGrace >= drift,
		"node_lease_grace %v must be at least 2 %% of node_lease_period = %v, since two clocks may go wrong by 1 %% each, or a leader believes in a lease that the node has ended: raise node_lease_grace or lower node_lease_period",
		t.NodeLeaseGrace, drift)
}

// checkStore checks the session against what the ZooKeeper server is set to,
// as far as that is known.
func (t Timing) checkStore(o TimingOptions, v *verdict) {
	session, name := t.SessionTimeout, "session_timeout"
	if o.GrantedSession > 0 {
		session, name = o.GrantedSession, "the granted session_timeout"
	}
	v.must(o.ServerTick == 0 || session >= 2*o.ServerTick,
		"%s %v must be at least two ZooKeeper ticks = %v: raise session_timeout or lower the servers' tickTime",
		name, session, 2*o.ServerTick)
	sync := time.Duration(o.SyncLimit) * o.ServerTick
	v.should(sync < session*2/3,
		"ZooKeeper's syncLimit × tickTime = %v should be less than two thirds of %s = %v, or a cut-off follower goes on serving stale reads: lower syncLimit or tickTime in zoo.cfg",
		sync, name, session*2/3)
}

// WorstTimes are the longest times that follow from the settings when one
// node loses power and all else works.
type WorstTimes struct {
	Detect         time.Duration // until the node is dead to the observers
	HolderStops    time.Duration // a cut-off primary has ended all effects, after its last acknowledged renewal
	TakeOver       time.Duration // until a new primary answers for the addresses
	TakeOverMedian time.Duration // the same, in the middle of many
	TakeOverLeader time.Duration // the same, where the lost node carried the ZooKeeper leader
	SelfStop       time.Duration // a cut-off node has stopped its protected work
	FenceClaimed   time.Duration // until a fence is claimed
	Fence          time.Duration // until the node is verified off by its device
	WatchdogProof  time.Duration // until its armed watchdog is proof enough
}

// Worst returns the worst cases of these settings (protocol §2).
func (t Timing) Worst(o TimingOptions) WorstTimes {
	device := o.FenceDeadline
	if device == 0 {
		device = 20 * time.Second
	}
	w := WorstTimes{
		// A keepalive may be written just before the power goes, and each
		// observer looks once per K.
		Detect:        t.SuspectAfter() + t.KeepaliveInterval,
		HolderStops:   t.RoleTerm(),
		TakeOver:      t.RoleTTL + t.TakerMargin + takeOverSlack,
		SelfStop:      t.StopAfter(),
		WatchdogProof: t.WatchdogProof(),
	}
	w.TakeOverMedian = w.TakeOver - t.RenewInterval/2
	w.TakeOverLeader = max(w.TakeOver, t.WriteGap+leaderLostTake)
	w.FenceClaimed = max(w.Detect, w.TakeOver) + fenceClaim
	w.Fence = w.FenceClaimed + device
	return w
}
