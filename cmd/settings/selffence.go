package settings

import "time"

// Watchdog is the device that resets this machine when nobody feeds it.
type Watchdog struct {
	Device     string        `yaml:"device"`        // as /dev/watchdog; empty: none
	Pretimeout time.Duration `yaml:"pretimeout"`    // the kernel warns so long before the reset; 0: never
	TrustSoft  bool          `yaml:"trust_softdog"` // a software watchdog's bound is a dead-proof, too
}

// The values of Node.SelfFence: what a node that had protected work or a role
// does once its right to them has ended. It always stops them first, and where
// that is not verified within the grace its watchdog, if it has one, is not fed
// any more, whatever is set.
const (
	SelfFenceStopWork = "stop-work" // nothing more: it lives on
	SelfFenceReboot   = "reboot"    // it reboots as well, with a watchdog or without
	SelfFenceWatchdog = "watchdog"  // it lets its watchdog reset it as well
)

// checkSelfFence judges self_fence and the watchdog.
func checkSelfFence(r *report, n Node) {
	r.oneOf("self_fence", n.SelfFence, SelfFenceStopWork, SelfFenceReboot, SelfFenceWatchdog)
	w := n.Watchdog
	switch {
	case w.Device != "":
		checkFolder(r, "watchdog.device", w.Device)
		if n.Timing.Watchdog < time.Second {
			r.refuse("timing.watchdog", "%v is less than 1s, the shortest time-out of a watchdog: raise it", n.Timing.Watchdog)
		}
	case n.SelfFence == SelfFenceWatchdog:
		r.refuse("self_fence", "watchdog needs a device: set watchdog.device (/dev/watchdog), or write stop-work or reboot")
	}
	switch p := w.Pretimeout; {
	case p == 0:
	case w.Device == "":
		r.refuse("watchdog.pretimeout", "%v has no device: set watchdog.device beside it", p)
	case p < 0 || p%time.Second != 0:
		r.refuse("watchdog.pretimeout", "%v must be whole seconds: devices count in those", p)
	case p >= n.Timing.Watchdog:
		r.refuse("watchdog.pretimeout", "%v must be less than timing.watchdog %v, the time-out itself: lower the one or raise the other", p, n.Timing.Watchdog)
	}
}
