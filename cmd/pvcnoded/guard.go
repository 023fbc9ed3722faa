package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"
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
		Services:  s.Services,
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

// refusalPause is between two starts of a guard whose settings are refused.
const refusalPause = time.Second

// pacedRefusal has a guard whose settings are refused end a moment later. Its
// unit is restarted after every exit: systemd would close the watchdog's stored
// descriptor otherwise, which feeds the device once more (I4).
func pacedRefusal(action cli.ActionFunc) cli.ActionFunc {
	return func(c *cli.Context) error {
		err := action(c)
		var status *exitError
		if errors.As(err, &status) && status.code == exitSettings {
			select {
			case <-c.Done():
			case <-time.After(refusalPause):
			}
		}
		return err
	}
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
	c := fencing.FeedConfig{StopAfter: t.StopAfter(), Grace: t.Grace, StopWorkOnly: policy == settings.SelfFenceStopWork}
	return func(granted time.Duration, s cluster.FeedState, now cluster.Instant, in cluster.FeedInput) (cluster.FeedState, cluster.FeedOutput) {
		c := c
		c.Granted = granted
		return fencing.StepFeeding(c, s, now, in)
	}
}

// syncWait is what a reboot leaves for the journal's last words to reach the disk.
const syncWait = 300 * time.Millisecond

// reboot resets this machine at once. Nothing is unmounted, and no disk is waited
// for longer than syncWait: what hangs may be what that would wait for.
func reboot() error {
	synced := make(chan struct{})
	go func() { unix.Sync(); close(synced) }() // ends with the machine, if a disk hangs
	select {
	case <-synced:
	case <-time.After(syncWait):
	}
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART); err != nil {
		return fmt.Errorf("reboot(2): %w", err)
	}
	return nil
}

// sweepGuard ends whatever a guard that died left behind.
func sweepGuard(_ context.Context, s settings.Node, _ *zap.Logger) error {
	return guard.Sweep(guardConfig(s))
}

// leaveGuard ends whatever is left of the role here, the gate too: this machine
// is no node any more.
func leaveGuard(_ context.Context, s settings.Node, _ *zap.Logger) error {
	return guard.Leave(guardConfig(s))
}
