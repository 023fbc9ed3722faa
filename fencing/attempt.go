package fencing

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"pvc.internal/cluster"
)

// The actions of an attempt.
const (
	ActionOff    = "off"    // take power and poll until it reads off
	ActionStatus = "status" // read once
	ActionOn     = "on"     // order power on; does not wait for it
	ActionTest   = "test"   // reach the device, log in, read the power state; changes nothing

	// ActionSoft is no device's: the node itself is asked to stop.
	ActionSoft = "soft"
)

// The results of an attempt, as they stand in the record.
const (
	ResultOff     = "off"     // read off by status
	ResultOn      = "on"      // read on, or the order to go on was acknowledged
	ResultUnknown = "unknown" // no power state could be read: never a success
	ResultFailed  = "failed"  // it was told to go off and still reads on at the deadline

	// ResultStopped is the node's own word after ActionSoft; it proves nothing.
	ResultStopped = "stopped"
)

// Attempt is what a child process is told on its standard input: one action of
// one device. Its password travels nowhere else.
type Attempt struct {
	Version     int                 `json:"v"`
	Device      Device              `json:"device"`
	Password    string              `json:"password"`
	Action      string              `json:"action"`
	Node        cluster.NodeID      `json:"node,omitempty"`        // whose power it is
	Incarnation cluster.Incarnation `json:"incarnation,omitempty"` // the one to be fenced, where there is one
}

// Format implements fmt.Formatter without the password, whatever the verb.
func (a Attempt) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "%s at device %q", a.Action, a.Device.Name)
}

// AttemptResult is what the child prints on its standard output.
type AttemptResult struct {
	Version int    `json:"v"`
	Result  string `json:"result"`
	Error   string `json:"error,omitempty"`
	Micros  int64  `json:"us"`

	Fault Fault    `json:"fault,omitempty"` // of a failed test: what kind of failure
	Notes []string `json:"notes,omitempty"` // of a test: what works but should be known
}

// The exit statuses of AttemptMain.
const (
	ExitTold  = 0 // a result was printed, whatever it says
	ExitUsage = 2 // the request could not be understood; nothing was sent
)

// maxAttemptInput bounds what is read of standard input.
const maxAttemptInput = 64 << 10

// AttemptMain is the body of the hidden subcommand that makes one attempt: it
// reads an Attempt as JSON, carries it out within the device's total deadline
// and prints an AttemptResult. The process exists so that an order in flight
// dies with the role that gave it: a stopped agent must not send it on waking
// (I5). It writes nothing else and returns the exit status.
func AttemptMain(stdin io.Reader, stdout io.Writer) int {
	var a Attempt
	decoder := json.NewDecoder(io.LimitReader(stdin, maxAttemptInput))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&a); err != nil {
		return printResult(stdout, AttemptResult{Result: ResultUnknown, Error: "read the attempt: " + err.Error()}, ExitUsage)
	}
	a.Device = a.Device.withDefaults()
	if err := a.validate(); err != nil {
		return printResult(stdout, AttemptResult{Result: ResultUnknown, Error: err.Error()}, ExitUsage)
	}
	started := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), a.Device.Timeout)
	defer cancel()
	result := a.do(ctx)
	result.Micros = time.Since(started).Microseconds()
	return printResult(stdout, result, ExitTold)
}

func (a Attempt) validate() error {
	if a.Version != 1 {
		return fmt.Errorf("attempt of version %d: this program knows 1", a.Version)
	}
	switch a.Action {
	case ActionOff, ActionStatus, ActionOn, ActionTest:
	default:
		return fmt.Errorf("action %q is not one of off, status, on, test", a.Action)
	}
	if a.Password != "" || a.Device.Type.needsPassword() {
		if err := a.Device.checkPassword(NewSecret(a.Password), "the attempt"); err != nil {
			return err
		}
	}
	return a.Device.Validate()
}

// powerDevice is a device in the hands of one attempt. Each method returns a
// result also where it returns an error, and ends with ctx.
type powerDevice interface {
	// off takes power and returns ResultOff once it reads off, nothing else.
	off(ctx context.Context) (string, error)
	status(ctx context.Context) (string, error)
	on(ctx context.Context) (string, error)
}

// power makes the device of its type; Validate has passed.
func (a Attempt) power() powerDevice {
	password := NewSecret(a.Password)
	switch a.Device.Type {
	case TypeRedfish:
		return newRedfish(a.Device, password)
	case TypeAgent:
		return agentDevice{device: a.Device, password: password, node: a.Node}
	case TypeExec:
		return execDevice{device: a.Device, password: password, node: a.Node, incarnation: a.Incarnation}
	}
	return ipmiDevice{device: a.Device, password: a.Password}
}

func (a Attempt) do(ctx context.Context) AttemptResult {
	device := a.power()
	var r AttemptResult
	var err error
	switch a.Action {
	case ActionOff:
		r.Result, err = device.off(ctx)
	case ActionStatus:
		r.Result, err = device.status(ctx)
	case ActionOn:
		r.Result, err = device.on(ctx)
	case ActionTest:
		r, err = test(ctx, device)
	}
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("%w (total deadline %s)", err, a.Device.Timeout)
		}
		// A device's or a program's own words may repeat what it was told.
		r.Error = clip(NewSecret(a.Password).Scrub(err.Error()))
	}
	return r
}

func printResult(w io.Writer, r AttemptResult, code int) int {
	r.Version = 1
	if err := json.NewEncoder(w).Encode(r); err != nil {
		return ExitUsage // nobody can read it: the caller takes it for unknown
	}
	return code
}
