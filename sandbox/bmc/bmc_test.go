package bmc

import (
	"context"
	"errors"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

type machine struct {
	on    atomic.Bool
	soft  atomic.Int32
	cycle atomic.Int32
}

func (m *machine) On() error             { m.on.Store(true); return nil }
func (m *machine) Off() error            { m.on.Store(false); m.cycle.Add(1); return nil }
func (m *machine) Soft() error           { m.soft.Add(1); return nil }
func (m *machine) Status() (bool, error) { return m.on.Load(), nil }

func start(t *testing.T, m Power, faults *Faults) *Server {
	t.Helper()
	s, err := Listen(Config{Listen: "127.0.0.1:0", User: "admin", Password: "pass-word", Power: m, Faults: faults})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("served until %v", err)
		}
	})
	return s
}

// ipmitool asks as an operator would.
func ipmitool(t *testing.T, s *Server, password, suite string, args ...string) (string, error) {
	t.Helper()
	if _, err := exec.LookPath("ipmitool"); err != nil {
		t.Skip("ipmitool is not installed (package ipmitool)")
	}
	argv := append([]string{"-I", "lanplus", "-H", "127.0.0.1", "-p", strconv.Itoa(s.Addr().Port), "-U", "admin", "-P", password, "-C", suite, "-N", "1", "-R", "1"}, args...)
	out, err := exec.CommandContext(t.Context(), "ipmitool", argv...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func TestAnswersIpmitool(t *testing.T) {
	m := &machine{}
	m.on.Store(true)
	s := start(t, m, nil)
	for _, step := range []struct {
		args []string
		want string
		on   bool
	}{
		{[]string{"power", "status"}, "Chassis Power is on", true},
		{[]string{"power", "off"}, "Chassis Power Control: Down/Off", false},
		{[]string{"power", "status"}, "Chassis Power is off", false},
		{[]string{"power", "on"}, "Chassis Power Control: Up/On", true},
		{[]string{"power", "cycle"}, "Chassis Power Control: Cycle", true},
		{[]string{"power", "reset"}, "Chassis Power Control: Reset", true},
		{[]string{"power", "soft"}, "Chassis Power Control: Soft", true},
	} {
		for _, suite := range []string{"3", "17"} {
			out, err := ipmitool(t, s, "pass-word", suite, step.args...)
			if err != nil || !strings.Contains(out, step.want) {
				t.Errorf("%v with suite %s: %q, %v", step.args, suite, out, err)
			}
		}
		if m.on.Load() != step.on {
			t.Errorf("after %v the machine is on=%v", step.args, m.on.Load())
		}
	}
	if m.soft.Load() != 2 {
		t.Errorf("%d soft shutdowns arrived", m.soft.Load())
	}
}

func TestFaultsAsIpmitoolSeesThem(t *testing.T) {
	m, faults := &machine{}, &Faults{}
	m.on.Store(true)
	s := start(t, m, faults)

	faults.Lying(true)
	if out, err := ipmitool(t, s, "pass-word", "3", "power", "off"); err != nil || !m.on.Load() {
		t.Errorf("lying: %q, %v, on=%v", out, err, m.on.Load())
	}
	faults.Lying(false)

	faults.WrongPassword(true)
	if out, err := ipmitool(t, s, "pass-word", "3", "power", "off"); err == nil || !m.on.Load() {
		t.Errorf("wrong password: %q, %v, on=%v", out, err, m.on.Load())
	}
	faults.WrongPassword(false)

	faults.Unreachable(true)
	if out, err := ipmitool(t, s, "pass-word", "3", "power", "off"); err == nil || !m.on.Load() {
		t.Errorf("unreachable: %q, %v, on=%v", out, err, m.on.Load())
	}
	faults.Unreachable(false)

	faults.Slow(time.Hour)
	if out, err := ipmitool(t, s, "pass-word", "3", "power", "off"); err != nil || !m.on.Load() {
		t.Errorf("slow: %q, %v, on=%v", out, err, m.on.Load())
	}
	faults.Slow(0)

	if out, err := ipmitool(t, s, "pass-word", "3", "power", "off"); err != nil || m.on.Load() {
		t.Errorf("all faults gone: %q, %v, on=%v", out, err, m.on.Load())
	}
}

func TestSlowPowerDiesWithTheController(t *testing.T) {
	m := &machine{}
	m.on.Store(true)
	faults := &Faults{}
	faults.Slow(time.Hour)
	c := &chassis{power: m, faults: faults, stop: make(chan struct{})}
	if err := c.SetPower(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	c.shut()
	c.pending.Wait() // returns at once, or the test hangs
	if !m.on.Load() {
		t.Error("power went after the controller had ended")
	}
	if err := c.SetPower(t.Context(), false); err != nil || !m.on.Load() {
		t.Errorf("a command after the end: %v, on=%v", err, m.on.Load())
	}
}

// A machine that takes power by itself after an off was off in between.
func TestBounceGivesPowerBackAfterAnOff(t *testing.T) {
	m := &machine{}
	m.on.Store(true)
	faults := &Faults{}
	faults.Bounce(20 * time.Millisecond)
	c := &chassis{power: m, faults: faults, stop: make(chan struct{})}
	if err := c.SetPower(t.Context(), false); err != nil || m.on.Load() {
		t.Fatalf("off: %v, on=%v", err, m.on.Load())
	}
	c.pending.Wait()
	if !m.on.Load() || m.cycle.Load() != 1 {
		t.Errorf("on=%v after %d offs, want on after one", m.on.Load(), m.cycle.Load())
	}
	faults.Clear()
	if err := c.SetPower(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if c.pending.Wait(); m.on.Load() {
		t.Error("power came back though the fault was cleared")
	}
}

// TestAMachineNeedsTimeToBoot: its power reads on at once, it runs later, and one
// that is cut meanwhile does not.
func TestAMachineNeedsTimeToBoot(t *testing.T) {
	m, faults := &machine{}, &Faults{}
	faults.Boot(time.Hour)
	c := &chassis{power: m, faults: faults, stop: make(chan struct{})}
	defer c.pending.Wait()
	defer c.shut()
	reads := func(want, runs bool) {
		t.Helper()
		if on, err := c.PowerState(t.Context()); err != nil || on != want || m.on.Load() != runs {
			t.Fatalf("power reads %v, the machine runs: %v (%v), want %v and %v", on, m.on.Load(), err, want, runs)
		}
	}
	set := func(on bool) {
		t.Helper()
		if err := c.SetPower(t.Context(), on); err != nil {
			t.Fatal(err)
		}
	}
	set(true)
	reads(true, false)
	set(false)
	reads(false, false)
	faults.Boot(0) // the boot that was cut ends now, and must not run the machine
	c.pending.Wait()
	reads(false, false)
	faults.Boot(time.Hour)
	set(true)
	set(true) // it boots already
	reads(true, false)
	faults.Boot(0)
	c.pending.Wait()
	reads(true, true)
	set(true)
	reads(true, true)
}

func TestConfigIsChecked(t *testing.T) {
	good := Config{Listen: "127.0.0.1:0", User: "u", Password: "p", Power: &machine{}}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(*Config){
		"no user":       func(c *Config) { c.User = "" },
		"long user":     func(c *Config) { c.User = strings.Repeat("u", 17) },
		"no password":   func(c *Config) { c.Password = "" },
		"long password": func(c *Config) { c.Password = strings.Repeat("p", 21) },
		"no power":      func(c *Config) { c.Power = nil },
	} {
		c := good
		edit(&c)
		if c.Validate() == nil {
			t.Errorf("%s: accepted", name)
		}
		if _, err := Listen(c); err == nil {
			t.Errorf("%s: listened", name)
		}
	}
}

func TestServeEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := Serve(ctx, Config{Listen: "127.0.0.1:0", User: "u", Password: "p", Power: &machine{}})
	if err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
