package settings

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// reloading is a program with a settings file that can be changed under it.
type reloading struct {
	*Reloader
	path    string
	adopted string // log.level as adopted
	fail    error  // of adopting
	logged  *observer.ObservedLogs
	told    chan string

	adoptedKeys string // that the last line names
}

func newReloading(t *testing.T) *reloading {
	t.Helper()
	core, logged := observer.New(zapcore.DebugLevel)
	r := &reloading{Reloader: CatchReloads(), path: write(t, least), logged: logged, told: make(chan string, 64)}
	_, started, err := InspectNode(r.path, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Use(Reload{InForce: started, Log: zap.New(core), Adoptable: []string{"log.level", "watchdog"}, Read: func(path string) (Inspection, func() error, error) {
		n, i, err := InspectNode(path, nil)
		return i, func() error { r.adopted = n.Log.Level; return r.fail }, err
	}})
	r.Notify(func() { r.told <- "begins" }, func(status string) { r.told <- status })
	return r
}

func (r *reloading) write(t *testing.T, content string) {
	t.Helper()
	if err := os.WriteFile(r.path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// after reloads once and returns the status, the faults and what was logged.
func (r *reloading) after(t *testing.T, content string) (status, faults, logged string) {
	t.Helper()
	r.write(t, content)
	r.Reload()
	if begins := <-r.told; begins != "begins" {
		t.Errorf("told %q first", begins)
	}
	var lines []string
	for _, e := range r.logged.TakeAll() {
		lines = append(lines, e.Message)
		r.adoptedKeys = fmt.Sprint(e.ContextMap()["adopted"])
	}
	if len(lines) != 1 {
		t.Errorf("%d lines are logged: %q", len(lines), lines)
	}
	return <-r.told, strings.Join(r.Faults(), "; "), strings.Join(lines, "; ")
}

func TestReload(t *testing.T) {
	r := newReloading(t)
	if status, faults, _ := r.after(t, least+"log: {level: debug}\nwatchdog: {device: /dev/watchdog}\n"); status != "" || faults != "" || r.adopted != "debug" {
		t.Errorf("what can be adopted: %q, %q, level %s", status, faults, r.adopted)
	}
	status, faults, logged := r.after(t, least+"log: {level: warn}\ntiming: {profile: pvc}\nservices: [{name: a, kind: unit, unit: a.service}]\n")
	if !strings.HasPrefix(status, "restart needed: ") || !strings.Contains(status, "timing.profile") || !strings.Contains(status, "services[0].unit") ||
		!strings.Contains(faults, "restart needed") || !strings.Contains(faults, "systemctl restart pvcnoded") || r.adopted != "warn" || strings.Contains(status, "log.level") {
		t.Errorf("what cannot be adopted: %q, %q, %q", status, faults, logged)
	}
	again, _, _ := r.after(t, least+"log: {level: warn}\ntiming: {profile: pvc}\nservices: [{name: a, kind: unit, unit: a.service}]\n")
	if again != status || r.adoptedKeys != "[]" {
		t.Errorf("the same once more: %q after %q", again, status)
	}
	if status, faults, _ := r.after(t, least); status != "" || faults != "" || r.adopted != "info" {
		t.Errorf("the change is taken back: %q, %q", status, faults)
	}
}

// A broken file changes nothing, and says so until it is mended.
func TestReloadOfABrokenFile(t *testing.T) {
	r := newReloading(t)
	for _, broken := range []string{least + "log: {level: debug}\ntming: {}\n", "log: [\n", "", least + "log: {level: loud}\n"} {
		status, faults, logged := r.after(t, broken)
		if !strings.HasPrefix(status, "settings refused") || !strings.Contains(faults, "its next start would fail") || r.adopted != "" || !strings.Contains(logged, "stays as it was") {
			t.Errorf("%q: %q, %q, adopted %q", broken, status, faults, r.adopted)
		}
	}
	if err := os.Remove(r.path); err != nil {
		t.Fatal(err)
	}
	r.Reload()
	if <-r.told; !strings.Contains(<-r.told, "no such file") {
		t.Error("a file that is gone")
	}
	r.logged.TakeAll()
	r.fail = errors.New("api.keys_file: no such file")
	if status, _, _ := r.after(t, least+"timing: {profile: pvc}\n"); !strings.Contains(status, "api.keys_file") {
		t.Errorf("what cannot be adopted after all: %q", status)
	}
	r.fail = nil
	if status, faults, _ := r.after(t, least+"log: {level: error}\n"); status != "" || faults != "" || r.adopted != "error" {
		t.Errorf("mended: %q, %q", status, faults)
	}
}

// A signal may come before anybody serves it, and many at once; none is lost and
// none harms.
func TestReloadBySignal(t *testing.T) {
	r := newReloading(t)
	hangUp := func() {
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	next := func() string {
		select {
		case told := <-r.told:
			return told
		case <-time.After(30 * time.Second):
			t.Fatal("nothing was told")
			return ""
		}
	}
	r.write(t, least+"timing: {profile: pvc}\n")
	hangUp() // early
	for end := time.Now().Add(30 * time.Second); len(r.signals) == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the early signal does not wait")
		}
	}
	stop := r.Serve(t.Context())
	if next() != "begins" || !strings.Contains(next(), "timing.profile") {
		t.Error("the early signal")
	}
	r.write(t, least)
	for range 20 {
		hangUp()
	}
	if next() != "begins" || next() != "" {
		t.Error("many at once")
	}
	stop()   // though its context lives: as of a daemon that ends by an error
	hangUp() // late: it does not end the process
}
