package fencing

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"pvc.internal/cluster"
	"pvc.internal/proc"
)

// Fault says why a device could not be used if it were needed now.
type Fault string

// The faults. A device without one is ready.
const (
	FaultUnreachable   Fault = "unreachable"   // no answer, or none in time
	FaultDenied        Fault = "denied"        // it answered and refused the login
	FaultMisconfigured Fault = "misconfigured" // the settings cannot work as they stand
	FaultUnclear       Fault = "unclear"       // it answered, but told no power state
)

// faultError gives an error its kind.
type faultError struct {
	fault Fault
	err   error
}

func (e *faultError) Error() string { return e.err.Error() }
func (e *faultError) Unwrap() error { return e.err }

func faulty(fault Fault, err error) error { return &faultError{fault: fault, err: err} }

// faultOf is the kind of an error that a device gave.
func faultOf(err error) Fault {
	if known := (*faultError)(nil); errors.As(err, &known) {
		return known.fault
	}
	if network := (net.Error)(nil); errors.As(err, &network) || errors.Is(err, context.DeadlineExceeded) {
		return FaultUnreachable
	}
	return faultOfWords(err)
}

// faultOfWords judges by the text: the ipmi client's errors have no type.
func faultOfWords(err error) Fault {
	said := strings.ToLower(err.Error())
	contains := func(words ...string) bool {
		return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(said, w) })
	}
	switch {
	case contains("deadline", "timeout", "connection refused", "no matching ipmi response"):
		return FaultUnreachable
	case contains("rakp", "unauthorized", "insufficient privilege"):
		return FaultDenied
	}
	return FaultUnclear
}

// checker is a device with more to test than that its power state reads.
type checker interface {
	// check returns what an operator should know of a device that works.
	check(ctx context.Context) (notes []string, err error)
}

// test reaches the device, logs in and reads the power state. It orders nothing.
func test(ctx context.Context, device powerDevice) (AttemptResult, error) {
	r := AttemptResult{Result: ResultUnknown}
	var err error
	if more, ok := device.(checker); ok {
		if r.Notes, err = more.check(ctx); err != nil {
			r.Fault = faultOf(err)
			return r, err
		}
	}
	if r.Result, err = device.status(ctx); err != nil {
		r.Fault = faultOf(err)
		return r, err
	}
	if r.Result != ResultOff && r.Result != ResultOn {
		r.Fault = FaultUnclear
	}
	return r, nil
}

// DeviceTest is how a device's test went.
type DeviceTest struct {
	Node   cluster.NodeID `json:"node"`
	Device string         `json:"device"`
	Type   DeviceType     `json:"type"`
	Fault  Fault          `json:"fault,omitempty"` // empty: ready
	Power  string         `json:"power"`           // on, off or unknown
	Detail string         `json:"detail,omitempty"`
	Notes  []string       `json:"notes,omitempty"`
	Micros int64          `json:"us"`
}

// Ready reports whether the device could be used now.
func (t DeviceTest) Ready() bool { return t.Fault == "" }

// String tells a person what was found and, of a fault, what to do.
func (t DeviceTest) String() string {
	text := fmt.Sprintf("device %s of node %s (%s): ", t.Device, t.Node, t.Type)
	if t.Ready() {
		text += fmt.Sprintf("ready; power is %s, read in %d ms", t.Power, t.Micros/1000)
	} else {
		text += fmt.Sprintf("%s: %s. %s", t.Fault, strings.TrimRight(strings.Join(strings.Fields(t.Detail), " "), ". "), remedies[t.Fault])
	}
	for _, note := range t.Notes {
		text += "; note: " + note
	}
	return text
}

// remedies are what a person can do about each fault.
var remedies = map[Fault]string{
	FaultUnreachable:   "Check the address, the device's own supply and link, and the firewall; until then this node cannot be fenced by it",
	FaultDenied:        "Check user and password, and that the account may control power; repeated tries may lock it",
	FaultMisconfigured: "Correct the device's settings on every coordinator",
	FaultUnclear:       "Compare with the vendor's own tool; a power state that cannot be read is never taken for off",
}

// Tester asks devices whether they could be used, before they are needed. Its
// attempts hang on no role and order no power change, so that any coordinator
// may test at any time.
type Tester struct {
	Config Config   // as given; defaults are filled in
	Argv   []string // the program that calls AttemptMain, with its arguments
	// Run starts it; nil is package proc, below the calling process.
	Run func(ctx context.Context, r cluster.RunRequest) (cluster.RunResult, error)
}

// testsAtOnce bounds how many devices are asked at the same time.
const testsAtOnce = 8

// Test asks every device of every node, at most eight at a time, and returns
// one result for each, ordered by node and then as configured. It takes at most
// the longest device timeout times an eighth of their number, and ends with ctx.
func (t Tester) Test(ctx context.Context) []DeviceTest {
	config := t.Config.WithDefaults()
	var results []DeviceTest
	var devices []Device
	names := make([]string, 0, len(config.Nodes))
	for name := range config.Nodes {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		for _, level := range config.Nodes[name].Levels {
			for _, device := range level {
				results = append(results, DeviceTest{Node: cluster.NodeID(name), Device: device.Name, Type: device.Type})
				devices = append(devices, device)
			}
		}
	}
	var wait sync.WaitGroup
	turns := make(chan struct{}, testsAtOnce)
	for i := range devices {
		wait.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			t.one(ctx, devices[i], &results[i])
		})
	}
	wait.Wait()
	return results
}

func (t Tester) one(ctx context.Context, d Device, into *DeviceTest) {
	into.Power = ResultUnknown
	fail := func(fault Fault, err error) { into.Fault, into.Detail = fault, err.Error() }
	if err := errors.Join(d.Validate(), d.validateSecret()); err != nil {
		fail(FaultMisconfigured, err)
		return
	}
	if _, err := d.secret(ctx); err != nil {
		fail(FaultMisconfigured, err)
		return
	}
	run := t.Run
	if run == nil {
		run = runBelow
	}
	below := func(ctx context.Context, _ cluster.Token, r cluster.RunRequest) (cluster.RunResult, error) {
		return run(ctx, r)
	}
	runner := Runner{Run: below, Argv: t.Argv}.For(into.Node, "")
	result, err := runner.child(ctx, d, ActionTest)
	if err != nil {
		fail(FaultUnclear, err)
		return
	}
	into.Fault, into.Detail, into.Micros = result.Fault, result.Error, result.Micros
	into.Notes = slices.Concat(result.Notes, d.exposed(ctx))
	if into.Power = result.Result; into.Power != ResultOn && into.Power != ResultOff && into.Fault == "" {
		into.Fault, into.Detail = FaultUnclear, "no power state could be read"
	}
}

// exposed notes a password that others on this machine can read.
func (d Device) exposed(ctx context.Context) []string {
	if d.PasswordFile == "" {
		return nil
	}
	if file, err := secretFiles.read(ctx, d.PasswordFile, maxSealed); err == nil && file.mode.Perm()&0o077 != 0 {
		return []string{fmt.Sprintf("%s has mode %#o, so that others on this machine can read the password; chmod 600 it", d.PasswordFile, file.mode.Perm())}
	}
	return nil
}

// runBelow runs a program below this process.
func runBelow(ctx context.Context, r cluster.RunRequest) (cluster.RunResult, error) {
	out, err := proc.Run(ctx, proc.Command{Argv: r.Argv, Stdin: r.Stdin, Env: r.Env, Timeout: r.Timeout})
	result := cluster.RunResult{ExitCode: out.ExitCode, Stdout: out.Stdout, Stderr: out.Stderr}
	if err != nil {
		result.Error = err.Error()
	} else if out.ExitCode < 0 {
		result.Error = "ended by " + out.Signal
	}
	return result, nil
}

// clip bounds a text that goes into records.
func clip(text string) string {
	const most = 1000
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}

// remaining is how long ctx still lives.
func remaining(ctx context.Context, otherwise time.Duration) time.Duration {
	if end, ok := ctx.Deadline(); ok {
		return time.Until(end)
	}
	return otherwise
}
