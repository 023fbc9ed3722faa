package agent

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"go.uber.org/zap"

	"pvc.internal/cluster"
)

// SystemdNotifier tells systemd how the daemon fares and feeds systemd's
// watchdog, only while the keepalive loop turns: a daemon whose loop hangs is
// restarted. No method but Run blocks, whatever systemd does; without systemd
// nothing happens.
type SystemdNotifier struct {
	clock    cluster.Clock
	log      *zap.Logger
	maxAge   time.Duration
	interval time.Duration // of the watchdog; 0: none
	send     func(message string) error

	kick chan struct{}

	mu    sync.Mutex
	ready bool
	// stopping: the last word of the daemon's state is said.
	stopping bool
	pending  []string // lines not yet sent; of STATUS only the latest
	turned   cluster.Instant
}

// NewSystemdNotifier makes a notifier. Turns of the keepalive loop older than
// maxAge feed no watchdog; it should be some keepalive intervals.
func NewSystemdNotifier(clock cluster.Clock, log *zap.Logger, maxAge time.Duration) *SystemdNotifier {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("systemd's watchdog setting is not readable: the watchdog is not fed", zap.Error(err))
	}
	send := func(message string) error {
		_, err := daemon.SdNotify(false, message)
		return err
	}
	return &SystemdNotifier{clock: clock, log: log, maxAge: maxAge, interval: interval, send: send, kick: make(chan struct{}, 1)}
}

// Ready tells that the daemon has started; the watchdog is fed from then on.
func (n *SystemdNotifier) Ready() {
	n.mu.Lock()
	n.ready = true
	n.mu.Unlock()
	n.say(daemon.SdNotifyReady)
}

// Stopping tells that the daemon is going down.
func (n *SystemdNotifier) Stopping() {
	n.mu.Lock()
	n.stopping = true
	n.mu.Unlock()
	n.say(daemon.SdNotifyStopping)
}

// Reloading tells that the settings are being read again, since which instant of
// CLOCK_MONOTONIC; Reloaded ends it. Before the daemon has started, and while it
// goes down, nothing is told: systemd would take the end of it for the start's.
func (n *SystemdNotifier) Reloading() {
	if n.serving() {
		n.say(daemon.SdNotifyReloading + "\n" + strings.TrimSpace(daemon.SdNotifyMonotonicUsec()))
	}
}

// Reloaded tells that the settings have been read, and in a line what is to be
// known of it; empty: nothing is.
func (n *SystemdNotifier) Reloaded(status string) {
	n.Status(status)
	if n.serving() {
		n.say(daemon.SdNotifyReady)
	}
}

// serving reports whether the daemon has started and does not stop.
func (n *SystemdNotifier) serving() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.ready && !n.stopping
}

// Status shows one line of text in `systemctl status`.
func (n *SystemdNotifier) Status(text string) {
	n.say("STATUS=" + strings.Join(strings.Fields(text), " "))
}

// Turned notes that the keepalive loop has turned.
func (n *SystemdNotifier) Turned(now cluster.Instant) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.turned = now
}

func (n *SystemdNotifier) say(line string) {
	n.mu.Lock()
	name, _, _ := strings.Cut(line, "=")
	kept := n.pending[:0]
	for _, old := range n.pending { // each name once: the latest holds
		if !strings.HasPrefix(old, name+"=") {
			kept = append(kept, old)
		}
	}
	kept = append(kept, line)
	n.pending = kept
	n.mu.Unlock()
	select {
	case n.kick <- struct{}{}:
	default:
	}
}

// Run sends what is to be told until ctx ends, and then, for at most a second,
// what is left.
func (n *SystemdNotifier) Run(ctx context.Context) {
	var feed <-chan time.Time
	if n.interval > 0 {
		ticker := time.NewTicker(n.interval / 3)
		defer ticker.Stop()
		feed = ticker.C
	}
	for {
		select {
		case <-n.kick:
		case <-feed:
			n.feed()
		case <-ctx.Done():
			last := make(chan struct{})
			go func() { // ends with the send; a systemd that hangs is not waited for
				defer close(last)
				n.flush()
			}()
			select {
			case <-last:
			case <-time.After(time.Second):
			}
			return
		}
		n.flush()
	}
}

// feed has the watchdog fed if the keepalive loop turns.
func (n *SystemdNotifier) feed() {
	n.mu.Lock()
	fresh := n.ready && !n.turned.IsZero() && n.clock.Now().Sub(n.turned) <= n.maxAge
	n.mu.Unlock()
	if fresh {
		n.say(daemon.SdNotifyWatchdog)
	}
}

func (n *SystemdNotifier) flush() {
	n.mu.Lock()
	lines := n.pending
	n.pending = nil
	n.mu.Unlock()
	if len(lines) == 0 {
		return
	}
	for _, message := range messages(lines) {
		if err := n.send(message); err != nil {
			n.log.Debug("systemd was not told", zap.Error(err))
		}
	}
}

// messages puts lines into as few messages as may be. The beginning of a reload
// and its end are two: of one message systemd would heed the last only.
func messages(lines []string) (all []string) {
	begin := 0
	for i, line := range lines {
		if i > begin && strings.HasPrefix(lines[begin], daemon.SdNotifyReloading) || i > begin && strings.HasPrefix(line, daemon.SdNotifyReloading) {
			all = append(all, strings.Join(lines[begin:i], "\n"))
			begin = i
		}
	}
	return append(all, strings.Join(lines[begin:], "\n"))
}
