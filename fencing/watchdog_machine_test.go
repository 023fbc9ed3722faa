package fencing

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestWatchdogOfAnEmulatedMachine boots a real kernel with a real driver of a
// watchdog in an emulator, lets testdata/watchdog/probe use the device there,
// and looks at when the machine ends. It downloads a kernel once.
func TestWatchdogOfAnEmulatedMachine(t *testing.T) {
	if os.Getenv("PVC_SOAK") == "" {
		t.Skip("downloads a kernel and boots machines for two minutes: set PVC_SOAK=1, or run make soak")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root, as what make soak runs")
	}
	for _, program := range []string{"qemu-system-x86_64", "apt-get", "apt-cache", "dpkg", "tar"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs %s: apt-get install qemu-system-x86", program)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	e := newEmulator(ctx, t)

	t.Run("bites when it is not fed", func(t *testing.T) {
		r := e.run(ctx, t, "bite", "i6300esb.ko", "-no-reboot")
		r.has(t, "Identity:i6300ESB timer Hardware:true NoWayOut:false WasReset:false Timeout:0s", "armed: granted=5s: <nil>", "Timeout:5s")
		r.bitten(t, "fed: <nil>", 5*time.Second)
	})
	t.Run("disarmed by the book it does not", func(t *testing.T) {
		r := e.run(ctx, t, "disarm", "i6300esb.ko", "-no-reboot")
		r.has(t, `held=true: .*process 1 \(init\)`, "a child has ", "disarmed: <nil>", "still alive", "the end")
		if line, _ := r.last("a child has "); strings.Contains(line, "watchdog") {
			t.Errorf("a child inherits the device: %s", line)
		}
	})
	t.Run("nowayout", func(t *testing.T) {
		r := e.run(ctx, t, "nowayout", "i6300esb.ko,nowayout=1", "-no-reboot")
		r.has(t, "NoWayOut:true", "runs=true: disarm .*nowayout", "fed: <nil>")
		r.bitten(t, "fed: <nil>", 5*time.Second)
	})
	t.Run("softdog", func(t *testing.T) {
		r := e.run(ctx, t, "bite", "softdog.ko", "-no-reboot")
		r.has(t, "granted=5s", "Identity:Software Watchdog Hardware:false")
		r.bitten(t, "fed: <nil>", 5*time.Second)
	})
	t.Run("the death of the process feeds once more", func(t *testing.T) {
		r := e.run(ctx, t, "killed", "i6300esb.ko", "-no-reboot")
		r.bitten(t, "killed", 5*time.Second)
	})
	t.Run("not while a copy of the descriptor lives", func(t *testing.T) {
		r := e.run(ctx, t, "kept", "i6300esb.ko", "-no-reboot")
		r.has(t, "adopted: granted=5s: <nil>")
		r.bitten(t, "not fed any more", 5*time.Second)
	})
	t.Run("a guard feeds it while the node's right lasts", func(t *testing.T) {
		program := e.build(ctx, t, "pvc.internal/cmd/pvcnoded")
		r := e.with(t, "guard", program).run(ctx, t, "guard", "i6300esb.ko", "-no-reboot")
		r.has(t, "armed: .*i6300ESB timer", "right: <nil>, work: <nil>", "right: <nil>", `"starving" ".*the right to protected work has ended`)
		// The right lasts for 3 s more, and the last feeding was within its last second.
		r.bitten(t, "not extended any more", 3*time.Second+5*time.Second-500*time.Millisecond)
	})
	t.Run("the next boot knows", func(t *testing.T) {
		r := e.run(ctx, t, "reset", "i6300esb.ko")
		r.has(t, "WasReset:false", "not fed any more", "WasReset:true", "the end")
	})
}

// emulator has a kernel and what boots on it.
type emulator struct {
	kernel, initrd string
	files          map[string]string
}

func newEmulator(ctx context.Context, t *testing.T) emulator {
	t.Helper()
	tree := kernelPackage(ctx, t)
	images, _ := filepath.Glob(tree + "/boot/vmlinuz-*")
	if len(images) != 1 {
		t.Fatalf("the kernel's package has %d kernels", len(images))
	}
	e := emulator{kernel: images[0], files: map[string]string{}}
	for _, module := range []string{"watchdog.ko", "i6300esb.ko", "softdog.ko"} {
		found, _ := filepath.Glob(tree + "/lib/modules/*/kernel/drivers/watchdog/" + module)
		if len(found) == 1 {
			e.files["lib/"+module] = found[0]
		} else if module != "watchdog.ko" { // it may be in the kernel
			t.Fatalf("the kernel's package has %d of %s", len(found), module)
		}
	}
	return e.with(t, "init", e.build(ctx, t, "./testdata/watchdog/probe"))
}

// build makes a program that runs without anything beside it.
func (e emulator) build(ctx context.Context, t *testing.T, pkg string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), filepath.Base(pkg))
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, pkg)
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, out)
	}
	return program
}

// with is an emulator whose machines have one more file.
func (e emulator) with(t *testing.T, name, path string) emulator {
	t.Helper()
	e.files = maps.Clone(e.files)
	e.files[name] = path
	var archive bytes.Buffer
	if err := writeInitramfs(&archive, e.files); err != nil {
		t.Fatal(err)
	}
	e.initrd = filepath.Join(t.TempDir(), "initrd")
	if err := os.WriteFile(e.initrd, archive.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return e
}

// kernelPackage returns the unpacked package that linux-image-amd64 depends on,
// from the user's cache if it is there.
func kernelPackage(ctx context.Context, t *testing.T) string {
	t.Helper()
	out, err := exec.CommandContext(ctx, "apt-cache", "depends", "--no-recommends", "linux-image-amd64").Output()
	name := regexp.MustCompile(`Depends: (linux-image-\S+)`).FindSubmatch(out)
	if err != nil || name == nil {
		t.Skipf("apt knows no kernel (%v): run apt-get update", err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = t.TempDir()
	}
	tree := filepath.Join(cache, "pvc", string(name[1]))
	if _, err := os.Stat(tree); err == nil {
		return tree
	}
	work := t.TempDir()
	get := exec.CommandContext(ctx, "apt-get", "download", "-q", string(name[1]))
	get.Dir = work
	if out, err := get.CombinedOutput(); err != nil {
		t.Skipf("no kernel to be had: %v\n%s", err, out)
	}
	packages, _ := filepath.Glob(work + "/*.deb")
	if len(packages) != 1 {
		t.Fatalf("downloaded %d packages", len(packages))
	}
	unpacked := fmt.Sprintf("%s.%d", tree, os.Getpid())
	t.Cleanup(func() { os.RemoveAll(unpacked) })
	if err := os.MkdirAll(unpacked, 0o755); err != nil {
		t.Fatal(err)
	}
	unpack := exec.CommandContext(ctx, "sh", "-c", `dpkg --fsys-tarfile "$1" | tar -x -C "$2" --wildcards './boot/vmlinuz-*' '*/drivers/watchdog/*'`,
		"unpack", packages[0], unpacked) // all of it is 400 MB
	if out, err := unpack.CombinedOutput(); err != nil {
		t.Fatalf("unpack %s: %v\n%s", packages[0], err, out)
	}
	if err := os.Rename(unpacked, tree); err != nil && !errors.Is(err, os.ErrExist) {
		t.Fatal(err)
	}
	return tree
}

// writeInitramfs writes files, all executable, and a console as a cpio archive
// of the kind that the kernel unpacks.
func writeInitramfs(w io.Writer, files map[string]string) error {
	inode := 0
	entry := func(name string, mode, major, minor int, content []byte) error {
		inode++
		pad := func(n int) string { return strings.Repeat("\x00", (4-n%4)%4) }
		header := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
			inode, mode, 0, 0, 1, 0, len(content), 0, 0, major, minor, len(name)+1, 0, name)
		_, err := io.WriteString(w, header+pad(len(header))+string(content)+pad(len(content)))
		return err
	}
	err := errors.Join(entry("dev", 0o40755, 0, 0, nil), entry("lib", 0o40755, 0, 0, nil), entry("dev/console", 0o20600, 5, 1, nil))
	for name, path := range files {
		content, readErr := os.ReadFile(path)
		err = errors.Join(err, readErr, entry(name, 0o100755, 0, 0, content))
	}
	return errors.Join(err, entry("TRAILER!!!", 0, 0, 0, nil))
}

// emulated is what one machine said, and when it ended.
type emulated struct {
	lines []emulatedLine
	ended time.Time
}

type emulatedLine struct {
	at   time.Time
	text string
}

// run boots a machine and waits for its end; extra are arguments of the emulator.
func (e emulator) run(ctx context.Context, t *testing.T, which, load string, extra ...string) emulated {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	action := "watchdog=poweroff"
	if which == "reset" {
		action = "watchdog=reset"
	}
	args := append([]string{"-accel", "tcg", "-m", "256", "-nographic", "-nodefaults", "-serial", "stdio", "-kernel", e.kernel, "-initrd", e.initrd,
		"-append", "console=ttyS0 quiet panic=-1 pvc.case=" + which + " pvc.load=" + load,
		"-device", "i6300esb", "-action", action, "-nic", "none"}, extra...)
	c := exec.CommandContext(ctx, "qemu-system-x86_64", args...)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	c.Stderr = &stderr
	began := time.Now()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	var r emulated
	for scan := bufio.NewScanner(out); scan.Scan(); {
		r.lines = append(r.lines, emulatedLine{time.Now(), strings.TrimSpace(scan.Text())})
		t.Logf("%7.3f %s", time.Since(began).Seconds(), strings.TrimSpace(scan.Text()))
	}
	r.ended = time.Now() // its end of the console is closed
	if err := c.Wait(); err != nil || ctx.Err() != nil {
		t.Fatalf("the emulator ended with %v (%v)\n%s", err, context.Cause(ctx), stderr.String())
	}
	return r
}

// last finds the newest line with the text.
func (r emulated) last(text string) (string, time.Time) {
	for i := len(r.lines) - 1; i >= 0; i-- {
		if strings.Contains(r.lines[i].text, text) {
			return r.lines[i].text, r.lines[i].at
		}
	}
	return "", time.Time{}
}

// has demands lines that match the patterns, in this order.
func (r emulated) has(t *testing.T, patterns ...string) {
	t.Helper()
	from := 0
	for _, p := range patterns {
		re := regexp.MustCompile(p)
		i := from
		for i < len(r.lines) && !re.MatchString(r.lines[i].text) {
			i++
		}
		if i == len(r.lines) {
			t.Errorf("no line matches %q after line %d", p, from)
			return
		}
		from = i
	}
}

// bitten demands that the machine ended by its watchdog, so long after the last
// line with the text; an emulator on a busy host may be late.
func (r emulated) bitten(t *testing.T, text string, after time.Duration) {
	t.Helper()
	line, at := r.last(text)
	alive, _ := r.last("still alive")
	if line == "" || alive != "" {
		t.Errorf("it ended by itself, or was not fed: %q, %q", line, alive)
		return
	}
	took := r.ended.Sub(at)
	t.Logf("gone %v after %q", took.Round(time.Millisecond), text)
	if took < after-500*time.Millisecond || took > after+2*time.Second {
		t.Errorf("gone %v after %q, want about %v", took, text, after)
	}
}
