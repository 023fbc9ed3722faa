package fencing

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
	"pvc.internal/sandbox/bmc"
)

// TestTesterFindsWhatIsWrongBeforeItIsNeeded asks real devices in real child
// processes; none of them is ordered anything.
func TestTesterFindsWhatIsWrongBeforeItIsNeeded(t *testing.T) {
	m, wrong, silent := &machine{on: true}, &bmc.Faults{}, &bmc.Faults{}
	wrong.WrongPassword(true)
	silent.Unreachable(true)
	good, denied, gone := startBMC(t, m, nil), startBMC(t, m, wrong), startBMC(t, m, silent)
	off := startBMC(t, &machine{}, nil)
	noFile := good
	noFile.PasswordFile += ".missing"
	c, refusing := newController(), newController()
	rf, _ := serveRedfish(t, c)
	rfDenied, _ := serveRedfish(t, refusing)
	rfDenied.User = "nobody"
	odd, _ := serveRedfish(t, &controller{power: machine{on: true}, tokens: map[string]bool{}, systems: []string{"1"}, allowed: []string{"On"}})
	script, _ := lab(t, labPower)
	if err := os.Chmod(good.PasswordFile, 0o644); err != nil {
		t.Fatal(err)
	}

	want := map[string]struct {
		device Device
		fault  Fault
		power  string
		words  string // of String
	}{
		"good":   {good, "", ResultOn, "ready; power is on"},
		"off":    {off, "", ResultOff, "ready; power is off"},
		"denied": {denied, FaultDenied, ResultUnknown, "Check user and password"},
		"gone":   {gone, FaultUnreachable, ResultUnknown, "Check the address"},
		"nofile": {noFile, FaultMisconfigured, ResultUnknown, "no such file"},
		"rf":     {rf, "", ResultOn, "ready; power is on"},
		"rfno":   {rfDenied, FaultDenied, ResultUnknown, "the login is refused"},
		"odd":    {odd, FaultMisconfigured, ResultUnknown, "offers no reset of type ForceOff, only On"},
		"exec":   {script, "", ResultOn, "ready; power is on"},
	}
	config := Config{Nodes: map[string]NodeConfig{}}
	for name, w := range want {
		w.device.Name = name
		config.Nodes["node-"+name] = NodeConfig{Levels: [][]Device{{w.device}}}
	}
	runner := childRunner(t)
	results := Tester{Config: config, Argv: runner.Argv, Run: runChild}.Test(t.Context())
	if len(results) != len(want) || !slices.IsSortedFunc(results, func(a, b DeviceTest) int { return strings.Compare(string(a.Node), string(b.Node)) }) {
		t.Fatalf("%d results: %v", len(results), results)
	}
	for _, r := range results {
		w := want[r.Device]
		if r.Fault != w.fault || r.Power != w.power || !strings.Contains(r.String(), w.words) || !strings.Contains(r.String(), "of node node-"+r.Device) {
			t.Errorf("%s: fault %q, power %q: %s", r.Device, r.Fault, r.Power, r)
		}
		if strings.Contains(r.String(), testPassword) {
			t.Errorf("%s tells the password", r)
		}
		if (r.Device == "good") != strings.Contains(r.String(), "mode 0644") {
			t.Errorf("password file's mode: %s", r)
		}
		t.Log(r)
	}
	if _, offs, ons := m.state(); offs+ons != 0 || len(c.orders) != 0 {
		t.Error("a test changed the power")
	}
}

// TestTesterRunsBelowItself without a guard, by package proc.
func TestTesterRunsBelowItself(t *testing.T) {
	d := startBMC(t, &machine{on: true}, nil)
	config := Config{Nodes: map[string]NodeConfig{"hv2": {Levels: [][]Device{{d}}}}}
	for program, ready := range map[string]bool{"/bin/true": false, "/no/such/program": false} {
		results := Tester{Config: config, Argv: []string{program}}.Test(t.Context())
		if len(results) != 1 || results[0].Ready() != ready || results[0].Power != ResultUnknown {
			t.Errorf("%s: %v", program, results)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if results := (Tester{Config: config, Argv: []string{"/bin/sleep", "9"}}).Test(ctx); len(results) != 1 || results[0].Ready() {
		t.Errorf("%v", results)
	}
}

// TestTwoSuppliesOfWhichOneLies: a level of two devices of different types
// proves nothing while one still reads on, whatever the other says, and however
// often; both are ordered, and the level below is tried.
func TestTwoSuppliesOfWhichOneLies(t *testing.T) {
	honest, liar := newController(), newController()
	liar.lying = true
	left, _ := serveRedfish(t, honest)
	right, _ := serveRedfish(t, liar)
	left.Name, right.Name, right.Timeout = "left", "right", time.Second
	m := &machine{on: true}
	agent := ipmilan(t, m, nil)
	agent.Name, agent.Timeout = "agent", 20*time.Second
	runner := childRunner(t).For("hv2", "boot.1")

	attempts, proven := runner.Off(t.Context(), live(7), [][]Device{{left, right}})
	if proven || result(attempts, "left") != ResultOff || result(attempts, "right") != ResultFailed {
		t.Fatalf("proven %v: %+v", proven, attempts)
	}
	if len(honest.orders) != 1 || len(liar.orders) != 1 {
		t.Errorf("orders %v and %v", honest.orders, liar.orders)
	}
	if attempts, proven := runner.Status(t.Context(), live(7), [][]Device{{left, right}}); proven {
		t.Errorf("proven by status: %+v", attempts)
	}
	attempts, proven = runner.Off(t.Context(), live(7), [][]Device{{left, right}, {agent}})
	if on, _, _ := m.state(); !proven || result(attempts, "agent") != ResultOff || on {
		t.Errorf("the next level: proven %v: %+v", proven, attempts)
	}
	// The liar is repaired; an agent and a controller prove it together.
	_ = m.On()
	liar.mu.Lock()
	liar.lying = false
	liar.mu.Unlock()
	if attempts, proven = runner.Off(t.Context(), live(7), [][]Device{{right, agent}}); !proven {
		t.Errorf("a mixed level: %+v", attempts)
	}
	if attempts, proven = runner.Status(t.Context(), live(7), [][]Device{{right, agent}}); !proven {
		t.Errorf("a mixed level read again: %+v", attempts)
	}
}

// TestAWholeFenceByTwoSupplies of which one lies at first: no role record is
// touched before both read off.
func TestAWholeFenceByTwoSupplies(t *testing.T) {
	b := newBench(t)
	honest, liar := newController(), newController()
	liar.lying = true
	left, _ := serveRedfish(t, honest)
	right, _ := serveRedfish(t, liar)
	left.Name, right.Name, right.Timeout = "left", "right", time.Second
	b.Config = Config{Nodes: map[string]NodeConfig{"b": {Levels: [][]Device{{left, right}}}}}.WithDefaults()
	b.Runner = childRunner(t)
	r, _, err := b.Fence(t.Context(), live(7), b.action())
	if err != nil || r.Stage != cluster.FenceFailed || r.Proof != "" || b.store.get(bRouter) != cluster.RouterPrimary {
		t.Fatalf("stage %s, proof %q, router state %v: %v", r.Stage, r.Proof, b.store.get(bRouter), err)
	}
	liar.mu.Lock()
	liar.lying = false
	liar.mu.Unlock()
	r, _, err = b.Resume(t.Context(), live(7), "b")
	if err != nil || r.Stage != cluster.FenceDone || r.Proof != ProofVerifiedOff || b.store.get(bRouter) != cluster.RouterSecondary {
		t.Errorf("stage %s, proof %q, router state %v: %v", r.Stage, r.Proof, b.store.get(bRouter), err)
	}
	if !honest.power.on || !liar.power.on {
		t.Error("not both supplies were given power again")
	}
}

// result is the newest of a device.
func result(attempts []cluster.FenceAttempt, device string) string {
	newest := ""
	for _, a := range attempts {
		if a.Device == device {
			newest = a.Result
		}
	}
	return newest
}
