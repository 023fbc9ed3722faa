// Command probe is the only program of an emulated machine: its init. It loads
// a watchdog's driver, does with it what the kernel's command line names, and
// tells of it line by line. It is built and started by a test of package fencing.
//
//	pvc.case=bite|disarm|nowayout|killed|kept|reset|guard   pvc.load=softdog.ko,soft_margin=9
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
	"pvc.internal/fencing"
	"pvc.internal/proc"
	"pvc.internal/router"
)

const (
	wanted = 5 * time.Second
	idle   = time.Minute // longer than any test waits
)

func main() {
	if len(os.Args) > 1 {
		child(os.Args[1])
		return
	}
	for _, m := range [][2]string{{"/proc", "proc"}, {"/sys", "sysfs"}, {"/dev", "devtmpfs"}} {
		if err := errors.Join(os.MkdirAll(m[0], 0o755), unix.Mount(m[1], m[0], m[1], 0, "")); err != nil {
			say("cannot mount %s: %v", m[0], err)
		}
	}
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		say("no command line: %v", err)
	}
	options := map[string]string{}
	for _, word := range strings.Fields(string(line)) {
		if key, value, ok := strings.Cut(word, "="); ok {
			options[key] = value
		}
	}
	load("watchdog.ko", "")
	module, params, _ := strings.Cut(options["pvc.load"], ",")
	load(module, strings.ReplaceAll(params, ",", " "))
	if run, ok := cases[options["pvc.case"]]; ok {
		run(newDevice())
	} else {
		say("no case %q", options["pvc.case"])
	}
	end(unix.LINUX_REBOOT_CMD_RESTART)
}

var cases = map[string]func(*fencing.WatchdogDevice){
	"bite": bite, "disarm": disarm, "nowayout": nowayout, "reset": reset,
	"killed": func(*fencing.WatchdogDevice) { killed(false) },
	"kept":   func(*fencing.WatchdogDevice) { killed(true) },
	"guard":  func(*fencing.WatchdogDevice) { guarded() },
}

func bite(d *fencing.WatchdogDevice) {
	arm(d)
	feed(d, 6)
	say("not fed any more")
	time.Sleep(idle)
	say("still alive")
}

func disarm(d *fencing.WatchdogDevice) {
	arm(d)
	_, err := newDevice().Arm(wanted)
	say("held=%v: %v", errors.Is(err, fencing.ErrWatchdogHeld), err)
	out, err := exec.Command("/init", "descriptors").CombinedOutput()
	say("a child has %s (%v)", strings.TrimSpace(string(out)), err)
	feed(d, 2)
	say("disarmed: %v", d.Disarm())
	time.Sleep(wanted + 4*time.Second)
	say("still alive")
}

func nowayout(d *fencing.WatchdogDevice) {
	arm(d)
	err := d.Disarm()
	say("runs=%v: %v", errors.Is(err, fencing.ErrWatchdogRuns), err)
	feed(d, 8)
	say("not fed any more")
	time.Sleep(idle)
	say("still alive")
}

func reset(d *fencing.WatchdogDevice) {
	if info := tell(d); info.WasReset {
		end(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}
	arm(d)
	say("not fed any more")
	time.Sleep(idle)
	say("still alive")
}

// killed has a child arm the device, feed it once and die 3 s later; with keep
// a copy of its descriptor lives on here.
func killed(keep bool) {
	c := exec.Command("/init", "hold")
	out, err := c.StdoutPipe()
	if err != nil {
		say("no pipe: %v", err)
	}
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		say("no child: %v", err)
	}
	var descriptor int
	if _, err := fmt.Fscanf(out, "%d\n", &descriptor); err != nil {
		say("the child did not arm: %v", err)
	}
	say("not fed any more")
	copied := -1
	if keep {
		pidfd, err := unix.PidfdOpen(c.Process.Pid, 0)
		if err == nil {
			copied, err = unix.PidfdGetfd(pidfd, descriptor, 0)
		}
		say("copy: %v", err)
	}
	time.Sleep(3 * time.Second)
	_ = c.Process.Kill()
	_ = c.Wait()
	say("killed")
	if keep {
		granted, err := newDevice().Adopt(copied, wanted)
		say("adopted: granted=%v: %v", granted, err)
	}
	time.Sleep(idle)
	say("still alive")
}

// guardSettings are the guard's of such a machine; W is the profile's 5 s.
const guardSettings = `node: {name: vm}
cluster: {name: vm}
zookeeper: {servers: ["127.0.0.1:1"]}
role: {gate: false}
self_fence: watchdog
watchdog: {device: /dev/watchdog}
run_dir: /run
state_dir: /state
`

// guarded leaves the device to a guard: it feeds while the node's right lasts,
// and no longer, since work is here.
func guarded() {
	if err := errors.Join(os.MkdirAll("/run", 0o755), os.MkdirAll("/state", 0o755), os.WriteFile("/pvc.yaml", []byte(guardSettings), 0o600)); err != nil {
		say("no settings: %v", err)
	}
	c := exec.Command("/guard", "guard", "-c", "/pvc.yaml")
	c.Stdout, c.Stderr = os.Stdout, os.Stdout
	if err := c.Start(); err != nil {
		say("no guard: %v", err)
		return
	}
	may := cluster.MintToken(cluster.TokenWire{}, func() error { return nil })
	client := router.NewClient("/run/guard.sock", zap.NewNop())
	ctx, cancel := context.WithTimeout(context.Background(), idle)
	defer cancel()
	for ; ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
		s, err := client.State(ctx)
		if err == nil && s.Watchdog.Mode == cluster.FeedFeeding {
			say("armed: %+v", s.Watchdog)
			break
		}
	}
	for n := range 8 {
		now := proc.BootClock{}.Now()
		d := cluster.RoleDeadline{Owner: cluster.OwnerNode, Deadline: now.Add(4 * time.Second), Sent: now}
		if n > 0 {
			say("right: %v", client.Extend(ctx, may, d))
		} else {
			say("right: %v, work: %v", client.Begin(ctx, may, d), client.StartService(ctx, may, cluster.OwnerNode, 0, cluster.ServiceSpec{
				Name: "work", Kind: cluster.ServiceHook, Command: []string{"/init", "work"}}))
		}
		time.Sleep(time.Second)
	}
	say("not extended any more")
	for range int(idle / time.Second) {
		time.Sleep(time.Second)
		if s, err := client.State(ctx); err == nil {
			say("%q %q", s.Watchdog.Mode, s.Watchdog.Why)
		}
	}
	say("still alive")
}

func child(what string) {
	switch what {
	case "descriptors":
		links, _ := filepath.Glob("/proc/self/fd/*")
		for _, link := range links {
			if target, err := os.Readlink(link); err == nil {
				fmt.Print(target, " ")
			}
		}
	case "work":
		time.Sleep(2 * idle)
	case "hold":
		d := newDevice()
		if _, err := d.Arm(wanted); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return
		}
		fmt.Println(d.Descriptor())
		time.Sleep(idle)
	}
}

func newDevice() *fencing.WatchdogDevice {
	return fencing.NewWatchdogDevice(fencing.WatchdogOptions{})
}

func arm(d *fencing.WatchdogDevice) {
	tell(d)
	granted, err := d.Arm(wanted)
	say("armed: granted=%v: %v", granted, err)
	tell(d)
}

func feed(d *fencing.WatchdogDevice, times int) {
	for range times {
		time.Sleep(time.Second)
		say("fed: %v", d.Feed())
	}
}

func tell(d *fencing.WatchdogDevice) fencing.WatchdogInfo {
	info, err := d.Info()
	say("info %+v: %v", info, err)
	return info
}

func load(module, params string) {
	f, err := os.Open("/lib/" + module)
	if errors.Is(err, os.ErrNotExist) && module == "watchdog.ko" {
		return // it is in the kernel
	}
	if err == nil {
		err = unix.FinitModule(int(f.Fd()), params, 0)
	}
	if err != nil {
		say("cannot load %s: %v", module, err)
	}
}

func end(command int) {
	say("the end")
	unix.Sync()
	err := unix.Reboot(command)
	say("cannot end: %v", err)
	select {}
}

// say prints a line with the machine's own time.
func say(format string, args ...any) {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	fmt.Printf("probe %.3f %s\n", float64(ts.Nano())/1e9, fmt.Sprintf(format, args...))
}
