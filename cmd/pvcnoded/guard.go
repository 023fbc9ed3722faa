package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
	"pvc.internal/cmd/settings"
	"pvc.internal/fencing"
	"pvc.internal/proc"
	"pvc.internal/router/guard"
)

// The watchdog's device fits the guard's interface.
var _ guard.Watchdog = (*fencing.WatchdogDevice)(nil)

// guardConfig is what the guard and its sweep are started with.
func guardConfig(s settings.Node) guard.Config {
	return guard.Config{
		Socket:    filepath.Join(s.RunDir, "guard.sock"),
		StateFile: filepath.Join(s.StateDir, "guard.json"),
		Addresses: s.Addresses,
		UseGate:   s.Role.Gate,
		Grace:     s.Timing.Grace,
		Margin:    s.Timing.TakerMargin,
	}
}

// runGuard runs the guard until ctx ends.
func runGuard(ctx context.Context, s settings.Node, log *zap.Logger) error {
	c := guardConfig(s)
	c.SelfFence = selfFence(s, guard.InheritedWatchdog())
	return guard.Run(ctx, c, proc.BootClock{}, log.Named("guard"))
}

// selfFence is how this machine is ended where nothing else ends its work. A
// device that an earlier guard has armed is fed on, and disarmed at an orderly
// end, also where the settings do not name it any more.
func selfFence(s settings.Node, inherited int) guard.SelfFence {
	f := guard.SelfFence{
		Timeout: s.Timing.Watchdog, Inherited: inherited, Store: guard.NewSystemdStore(),
		Decide: feedStep(s.Timing, s.SelfFence),
	}
	if s.Watchdog.Device != "" || inherited >= 0 {
		f.Device = fencing.NewWatchdogDevice(fencing.WatchdogOptions{Path: s.Watchdog.Device, Pretimeout: s.Watchdog.Pretimeout})
	}
	if s.SelfFence == settings.SelfFenceReboot {
		f.Reboot = reboot
	}
	return f
}

// feedStep is package fencing's decision with this node's settings.
func feedStep(t cluster.Timing, policy string) guard.FeedStep {
	c := fencing.FeedConfig{StopAfter: t.StopAfter(), Grace: t.Grace, StopWorkOnly: policy != settings.SelfFenceWatchdog}
	return func(granted time.Duration, s cluster.FeedState, now cluster.Instant, in cluster.FeedInput) (cluster.FeedState, cluster.FeedOutput) {
		c := c
		c.Granted = granted
		return fencing.StepFeeding(c, s, now, in)
	}
}

// reboot resets this machine at once. Nothing is synced or unmounted: what hangs
// may be what that would wait for.
func reboot() error {
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART); err != nil {
		return fmt.Errorf("reboot(2): %w", err)
	}
	return nil
}

// sweepGuard ends whatever a guard that died left behind.
func sweepGuard(_ context.Context, s settings.Node, _ *zap.Logger) error {
	return guard.Sweep(guardConfig(s))
}
