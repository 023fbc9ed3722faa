package fencing

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pvc.internal/cluster"
	"pvc.internal/sandbox/bmc"
)

// childEnv makes this test binary the child process of an attempt.
const childEnv = "PVC_TEST_FENCE_ATTEMPT"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		os.Exit(AttemptMain(os.Stdin, os.Stdout))
	}
	os.Exit(m.Run())
}

// machine is a Power that remembers what was done to it.
type machine struct {
	mu   sync.Mutex
	on   bool
	offs int
	ons  int
}

func (m *machine) On() error  { m.mu.Lock(); defer m.mu.Unlock(); m.on = true; m.ons++; return nil }
func (m *machine) Off() error { m.mu.Lock(); defer m.mu.Unlock(); m.on = false; m.offs++; return nil }
func (m *machine) Status() (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.on, nil
}

func (m *machine) state() (on bool, offs, ons int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.on, m.offs, m.ons
}

const testPassword = "s3cret-s3cret"

// startBMC serves a controller on a free loopback port until the test ends.
func startBMC(t *testing.T, power bmc.Power, faults *bmc.Faults) Device {
	t.Helper()
	server, err := bmc.Listen(bmc.Config{Listen: "127.0.0.1:0", User: "fencer", Password: testPassword, Power: power, Faults: faults})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the controller ended with %v", err)
		}
	})
	return testDevice(t, "bmc", server.Addr().String())
}

func testDevice(t *testing.T, name, address string) Device {
	t.Helper()
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte(testPassword+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return Device{
		Name: name, Type: TypeIPMI, Address: address, User: "fencer", PasswordFile: file,
		CipherSuite: 3, Timeout: 4 * time.Second, Poll: 50 * time.Millisecond,
	}
}

func attempt(t *testing.T, d Device, action string) AttemptResult {
	t.Helper()
	in, err := json.Marshal(Attempt{Version: 1, Device: d, Password: testPassword, Action: action})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if code := AttemptMain(bytes.NewReader(in), &out); code != ExitTold {
		t.Fatalf("exit status %d, output %s", code, out.String())
	}
	var result AttemptResult
	if err := json.Unmarshal(out.Bytes(), &result); err != nil {
		t.Fatalf("output %q: %v", out.String(), err)
	}
	return result
}

func TestOffIsVerified(t *testing.T) {
	m := &machine{on: true}
	d := startBMC(t, m, nil)
	if r := attempt(t, d, ActionStatus); r.Result != ResultOn {
		t.Fatalf("status before: %+v", r)
	}
	r := attempt(t, d, ActionOff)
	if r.Result != ResultOff || r.Error != "" {
		t.Fatalf("off: %+v", r)
	}
	if on, offs, _ := m.state(); on || offs != 1 {
		t.Errorf("machine on=%v after %d orders", on, offs)
	}
	t.Logf("off and verified in %d µs", r.Micros)
	if r := attempt(t, d, ActionOn); r.Result != ResultOn {
		t.Errorf("on: %+v", r)
	}
	if on, _, _ := m.state(); !on {
		t.Error("machine still off")
	}
}

func TestAlreadyOffIsASuccessWithoutAnOrder(t *testing.T) {
	m := &machine{}
	d := startBMC(t, m, nil)
	if r := attempt(t, d, ActionOff); r.Result != ResultOff {
		t.Errorf("off: %+v", r)
	}
	if _, offs, _ := m.state(); offs != 0 {
		t.Errorf("%d orders were sent to a machine that is off", offs)
	}
}

func TestOffWaitsForASlowMachine(t *testing.T) {
	m, faults := &machine{on: true}, &bmc.Faults{}
	faults.Slow(300 * time.Millisecond)
	d := startBMC(t, m, faults)
	r := attempt(t, d, ActionOff)
	if r.Result != ResultOff {
		t.Fatalf("off: %+v", r)
	}
	if r.Micros < 300_000 {
		t.Errorf("said off after %d µs, before the machine was", r.Micros)
	}
}

// TestAMachineSlowerThanTheTry: the try has failed, and the next finds it off
// without an order.
func TestAMachineSlowerThanTheTry(t *testing.T) {
	t.Parallel()
	m, faults := &machine{on: true}, &bmc.Faults{}
	faults.Slow(8 * time.Second)
	d := startBMC(t, m, faults) // its try is half as long
	if r := attempt(t, d, ActionOff); r.Result != ResultFailed || !strings.Contains(r.Error, "still reads on") {
		t.Errorf("off: %+v", r)
	}
	for limit := time.Now().Add(time.Minute); ; <-time.After(10 * time.Millisecond) {
		if on, _, _ := m.state(); !on || time.Now().After(limit) {
			break
		}
	}
	_, before, _ := m.state()
	if r := attempt(t, d, ActionOff); r.Result != ResultOff {
		t.Errorf("off again: %+v", r)
	}
	if on, offs, ons := m.state(); on || before == 0 || offs != before || ons != 0 {
		t.Errorf("on %v, cut %d times, %d of them before the second try, powered on %d times", on, offs, before, ons)
	}
}

func TestALyingControllerHasFailed(t *testing.T) {
	t.Parallel()
	m, faults := &machine{on: true}, &bmc.Faults{}
	faults.Lying(true)
	d := startBMC(t, m, faults)
	r := attempt(t, d, ActionOff)
	if r.Result != ResultFailed || !strings.Contains(r.Error, "still reads on") {
		t.Errorf("off: %+v", r)
	}
}

func TestSilenceIsUnknownAndBounded(t *testing.T) {
	faults := &bmc.Faults{}
	faults.Unreachable(true)
	d := startBMC(t, &machine{on: true}, faults)
	d.Timeout = 2 * time.Second
	for _, action := range []string{ActionOff, ActionStatus, ActionOn} {
		started := time.Now()
		r := attempt(t, d, action)
		if r.Result != ResultUnknown || r.Error == "" {
			t.Errorf("%s: %+v", action, r)
		}
		if took := time.Since(started); took > d.Timeout+closeTimeout+5*time.Second {
			t.Errorf("%s took %s, the total deadline is %s", action, took, d.Timeout)
		}
	}
}

func TestAWrongPasswordIsUnknownAndTold(t *testing.T) {
	m, faults := &machine{on: true}, &bmc.Faults{}
	faults.WrongPassword(true)
	d := startBMC(t, m, faults)
	r := attempt(t, d, ActionOff)
	if r.Result != ResultUnknown || r.Error == "" || strings.Contains(r.Error, testPassword) {
		t.Errorf("off: %+v", r)
	}
	if on, _, _ := m.state(); !on {
		t.Error("the machine was powered off with a wrong password")
	}
}

// restarting is a machine whose controller restarts when power is cut, as one
// without a supply of its own does: the session is forgotten.
type restarting struct {
	machine
	restart chan struct{}
}

func (m *restarting) Off() error { close(m.restart); return m.machine.Off() }

func TestAControllerThatForgetsTheSessionIsAskedAnew(t *testing.T) {
	m := &restarting{machine: machine{on: true}, restart: make(chan struct{})}
	port := freeUDPPort(t)
	listen := func() *bmc.Server {
		s, err := bmc.Listen(bmc.Config{Listen: "127.0.0.1:" + strconv.Itoa(port), User: "fencer", Password: testPassword, Power: m})
		if err != nil {
			t.Error(err)
		}
		return s
	}
	first := listen()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		life, end := context.WithCancel(ctx)
		go func() { <-m.restart; end() }()
		_ = first.Serve(life)
		ended <- listen().Serve(ctx)
	}()
	t.Cleanup(func() { cancel(); <-ended })

	d := testDevice(t, "bmc", "127.0.0.1:"+strconv.Itoa(port))
	d.Timeout = 20 * time.Second
	if r := attempt(t, d, ActionOff); r.Result != ResultOff {
		t.Errorf("off: %+v", r)
	}
	if _, offs, _ := m.state(); offs != 1 {
		t.Errorf("power was cut %d times", offs)
	}
}

// forgetful is a machine whose controller acknowledges the first order to power
// off and restarts before it has carried it out.
type forgetful struct {
	machine
	restart chan struct{}
	once    sync.Once
}

func (m *forgetful) Off() error {
	first := false
	m.once.Do(func() { first = true; close(m.restart) })
	if first {
		return nil
	}
	return m.machine.Off()
}

func TestAnOrderThatIsLostWithItsSessionIsGivenAgain(t *testing.T) {
	t.Parallel()
	m := &forgetful{machine: machine{on: true}, restart: make(chan struct{})}
	port := freeUDPPort(t)
	listen := func() *bmc.Server {
		for limit := time.Now().Add(10 * time.Second); ; { // until the kernel has let go of the earlier one
			s, err := bmc.Listen(bmc.Config{Listen: "127.0.0.1:" + strconv.Itoa(port), User: "fencer", Password: testPassword, Power: m})
			if err == nil {
				return s
			}
			if time.Now().After(limit) {
				panic(err)
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	life, end := context.WithCancel(ctx)
	var served sync.WaitGroup
	served.Go(func() { <-m.restart; end() })
	first := listen()
	served.Go(func() { _ = first.Serve(life); _ = listen().Serve(ctx) })
	t.Cleanup(func() { cancel(); m.once.Do(func() { close(m.restart) }); served.Wait() })

	d := testDevice(t, "bmc", "127.0.0.1:"+strconv.Itoa(port))
	d.Timeout = 20 * time.Second
	if r := attempt(t, d, ActionOff); r.Result != ResultOff {
		t.Errorf("off: %+v", r)
	}
	if on, offs, ons := m.state(); on || offs != 1 || ons != 0 {
		t.Errorf("on %v, cut %d times after the restart, powered on %d times", on, offs, ons)
	}
}

// reluctant is a machine whose controller refuses the first orders.
type reluctant struct {
	machine
	refusals atomic.Int32
}

func (m *reluctant) Off() error {
	if m.refusals.Add(-1) >= 0 {
		return errors.New("busy")
	}
	return m.machine.Off()
}

func TestAnOrderThatIsRefusedIsGivenAgain(t *testing.T) {
	t.Parallel()
	m := &reluctant{machine: machine{on: true}}
	m.refusals.Store(2)
	d := startBMC(t, m, nil)
	if r := attempt(t, d, ActionOff); r.Result != ResultOff {
		t.Errorf("off: %+v", r)
	}
	if on, offs, _ := m.state(); on || offs != 1 {
		t.Errorf("on %v, cut %d times", on, offs)
	}
}

func TestAttemptMainRefusesWhatItCannotUse(t *testing.T) {
	good := Device{Name: "bmc", Type: TypeIPMI, Address: "127.0.0.1:623", User: "u"}
	for name, in := range map[string]any{
		"rubbish":       "not an object",
		"version":       Attempt{Version: 2, Device: good, Password: "p", Action: ActionOff},
		"action":        Attempt{Version: 1, Device: good, Password: "p", Action: "cycle"},
		"no password":   Attempt{Version: 1, Device: good, Action: ActionOff},
		"long password": Attempt{Version: 1, Device: good, Password: strings.Repeat("x", 21), Action: ActionOff},
		"type":          Attempt{Version: 1, Device: Device{Name: "x", Type: "abacus", Address: "h", User: "u"}, Password: "p", Action: ActionOff},
	} {
		data, _ := json.Marshal(in)
		var out bytes.Buffer
		if code := AttemptMain(bytes.NewReader(data), &out); code != ExitUsage {
			t.Errorf("%s: exit status %d, output %s", name, code, out.String())
		}
		if !strings.Contains(out.String(), ResultUnknown) {
			t.Errorf("%s: output %s", name, out.String())
		}
	}
}

// childRunner starts this test binary as the attempt's process, as the guard
// starts the daemon's.
func childRunner(t *testing.T) Runner {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return Runner{Run: runFor, Argv: []string{self}, WallMS: func() int64 { return 1 }}
}

func runFor(ctx context.Context, _ cluster.Token, r cluster.RunRequest) (cluster.RunResult, error) {
	return runChild(ctx, r)
}

func runChild(ctx context.Context, r cluster.RunRequest) (cluster.RunResult, error) {
	ctx, cancel := context.WithTimeout(ctx, r.Timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.Argv[0], r.Argv[1:]...)
	cmd.Env = append(os.Environ(), childEnv+"=1")
	cmd.Stdin = bytes.NewReader(r.Stdin)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	result := cluster.RunResult{ExitCode: cmd.ProcessState.ExitCode(), Stdout: out.Bytes(), Stderr: errOut.Bytes()}
	if result.ExitCode < 0 && err != nil {
		result.Error = err.Error()
	}
	return result, nil
}

func TestRunnerDrivesRealChildren(t *testing.T) {
	left, right, broken := &machine{on: true}, &machine{on: true}, &bmc.Faults{}
	broken.WrongPassword(true)
	a, b, c := startBMC(t, left, nil), startBMC(t, right, nil), startBMC(t, &machine{on: true}, broken)
	a.Name, b.Name, c.Name = "left", "right", "broken"
	runner := childRunner(t)

	attempts, proven := runner.Off(t.Context(), live(7), [][]Device{{c}, {a, b}})
	if !proven || len(attempts) != 3 {
		t.Fatalf("proven=%v attempts=%+v", proven, attempts)
	}
	for _, m := range []*machine{left, right} {
		if on, _, _ := m.state(); on {
			t.Error("a supply still gives power")
		}
	}
	if _, proven := runner.Off(t.Context(), live(7), [][]Device{{a, c}}); proven {
		t.Error("proven although one of two supplies did not confirm")
	}
	if on := runner.On(t.Context(), live(7), []Device{a, b}); on[0].Result != ResultOn || on[1].Result != ResultOn {
		t.Errorf("on: %+v", on)
	}
	if got, proven := runner.Status(t.Context(), live(7), [][]Device{{a, b}}); proven || got[0].Result != ResultOn {
		t.Errorf("status: %+v, proven %v", got, proven)
	}
}

func TestARunThatTellsNothingIsUnknown(t *testing.T) {
	d := testDevice(t, "bmc", "127.0.0.1:1")
	off := []byte(`{"v":1,"result":"off","us":1}`)
	for name, out := range map[string]cluster.RunResult{
		"killed":        {ExitCode: -1, Error: "killed at its deadline", Stdout: off},
		"rubbish":       {Stdout: []byte("ok")},
		"empty":         {},
		"version":       {Stdout: []byte(`{"v":9,"result":"off"}`)},
		"bad exit":      {ExitCode: 2, Stdout: off},
		"unknown state": {Stdout: []byte(`{"v":1,"result":"OFF\n"}`)},
	} {
		runner := Runner{WallMS: func() int64 { return 1 }, Run: func(context.Context, cluster.Token, cluster.RunRequest) (cluster.RunResult, error) {
			return out, nil
		}}
		if got, proven := runner.Off(t.Context(), live(1), [][]Device{{d}}); proven || got[0].Result != ResultUnknown {
			t.Errorf("%s: %+v, proven %v", name, got, proven)
		}
	}
	failing := Runner{WallMS: func() int64 { return 1 }, Run: func(context.Context, cluster.Token, cluster.RunRequest) (cluster.RunResult, error) {
		return cluster.RunResult{}, errors.New("guard is gone")
	}}
	if got, proven := failing.Off(t.Context(), live(1), [][]Device{{d}}); proven || !strings.Contains(got[0].Error, "guard is gone") {
		t.Errorf("%+v, proven %v", got, proven)
	}
}

func TestPasswordTravelsOnStandardInputOnly(t *testing.T) {
	d := testDevice(t, "bmc", "127.0.0.1:1")
	var seen cluster.RunRequest
	runner := Runner{Argv: []string{"pvcnoded", "fence-attempt"}, WallMS: func() int64 { return 1 }, Run: func(_ context.Context, _ cluster.Token, r cluster.RunRequest) (cluster.RunResult, error) {
		seen = r
		return cluster.RunResult{}, nil
	}}
	runner.Off(t.Context(), live(7), [][]Device{{d}})
	if strings.Contains(fmt.Sprint(seen.Argv, seen.Env), testPassword) || !bytes.Contains(seen.Stdin, []byte(testPassword)) {
		t.Errorf("request %+v", seen)
	}
	if seen.Owner != cluster.OwnerPrimary || seen.Epoch != 7 {
		t.Errorf("the child hangs on %s, epoch %d: it would outlive the role", seen.Owner, seen.Epoch)
	}
}

// TestOffAgainstOpenIPMI is the second opinion: Debian's simulator, whose
// implementation of the protocol is independent of the client's.
func TestOffAgainstOpenIPMI(t *testing.T) {
	if _, err := exec.LookPath("ipmi_sim"); err != nil {
		t.Skip("ipmi_sim is not installed (package openipmi)")
	}
	d, state := startSimulator(t)
	if r := attempt(t, d, ActionStatus); r.Result != ResultOn {
		t.Fatalf("status: %+v", r)
	}
	r := attempt(t, d, ActionOff)
	if r.Result != ResultOff {
		t.Fatalf("off: %+v", r)
	}
	if data, _ := os.ReadFile(state); strings.TrimSpace(string(data)) != "0" {
		t.Errorf("the simulator's machine is %q", data)
	}
	t.Logf("off and verified in %d µs", r.Micros)
	if r := attempt(t, d, ActionOn); r.Result != ResultOn {
		t.Errorf("on: %+v", r)
	}
	if r := attempt(t, d, ActionStatus); r.Result != ResultOn {
		t.Errorf("status after on: %+v", r)
	}
}

const simulatorLAN = `name "node1"
set_working_mc 0x20
  startlan 1
    addr 127.0.0.1 %d
    priv_limit admin
    allowed_auths_callback none md2 md5 straight
    allowed_auths_user none md2 md5 straight
    allowed_auths_operator none md2 md5 straight
    allowed_auths_admin none md2 md5 straight
    guid a123456789abcdefa123456789abcdef
  endlan
  chassis_control "%s 0x20"
  user 2 true "fencer" "%s" admin 10 none md2 md5 straight
`

const simulatorEMU = `mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr
sel_enable 0x20 1000 0x0a
mc_enable 0x20
`

const simulatorChassis = `#!/bin/sh
# called as: 0x20 get power | 0x20 set power 0|1
if [ "$2" = get ]; then echo "power:$(cat %[1]s)"; fi
if [ "$2" = set ] && [ "$3" = power ]; then echo "$4" > %[1]s; fi
exit 0
`

func startSimulator(t *testing.T) (Device, string) {
	t.Helper()
	dir := t.TempDir()
	state, script := filepath.Join(dir, "power"), filepath.Join(dir, "chassis")
	port := freeUDPPort(t)
	write := func(name, text string, mode os.FileMode) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("power", "1\n", 0o600)
	write("chassis", fmt.Sprintf(simulatorChassis, state), 0o700)
	write("lan.conf", fmt.Sprintf(simulatorLAN, port, script, testPassword), 0o600)
	write("sim.emu", simulatorEMU, 0o600)
	cmd := exec.Command("ipmi_sim", "-c", "lan.conf", "-f", "sim.emu", "-s", dir, "-d", "-n")
	cmd.Dir = dir
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	d := testDevice(t, "sim", "127.0.0.1:"+strconv.Itoa(port))
	for deadline := time.Now().Add(10 * time.Second); ; {
		if r := attempt(t, d, ActionStatus); r.Result == ResultOn {
			return d, state
		} else if time.Now().After(deadline) {
			t.Fatalf("the simulator does not answer: %+v", r)
		}
	}
}

func freeUDPPort(t *testing.T) int {
	t.Helper()
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).Port
}
