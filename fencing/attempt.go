package fencing

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// The actions of an attempt.
const (
	ActionOff    = "off"    // take power and poll until it reads off
	ActionStatus = "status" // read once
	ActionOn     = "on"     // order power on; does not wait for it
)

// The results of an attempt, as they stand in the record.
const (
	ResultOff     = "off"     // read off by status
	ResultOn      = "on"      // read on, or the order to go on was acknowledged
	ResultUnknown = "unknown" // no power state could be read: never a success
	ResultFailed  = "failed"  // it was told to go off and still reads on at the deadline
)

// Attempt is what a child process is told on its standard input: one action of
// one device. Its password travels nowhere else.
type Attempt struct {
	Version  int    `json:"v"`
	Device   Device `json:"device"`
	Password string `json:"password"`
	Action   string `json:"action"`
}

// AttemptResult is what the child prints on its standard output.
type AttemptResult struct {
	Version int    `json:"v"`
	Result  string `json:"result"`
	Error   string `json:"error,omitempty"`
	Micros  int64  `json:"us"`
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
	case ActionOff, ActionStatus, ActionOn:
	default:
		return fmt.Errorf("action %q is not one of off, status, on", a.Action)
	}
	if len(a.Password) < 1 || len(a.Password) > maxPassword {
		return fmt.Errorf("password of device %q: want 1–%d bytes, has %d", a.Device.Name, maxPassword, len(a.Password))
	}
	return a.Device.Validate()
}

func (a Attempt) do(ctx context.Context) AttemptResult {
	device := ipmiDevice{device: a.Device, password: a.Password}
	var result string
	var err error
	switch a.Action {
	case ActionOff:
		result, err = device.off(ctx)
	case ActionStatus:
		result, err = device.status(ctx)
	case ActionOn:
		result, err = device.on(ctx)
	}
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("%w (total deadline %s)", err, a.Device.Timeout)
		}
		return AttemptResult{Result: result, Error: err.Error()}
	}
	return AttemptResult{Result: result}
}

func printResult(w io.Writer, r AttemptResult, code int) int {
	r.Version = 1
	if err := json.NewEncoder(w).Encode(r); err != nil {
		return ExitUsage // nobody can read it: the caller takes it for unknown
	}
	return code
}
