package fencing

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"pvc.internal/cluster"
	"pvc.internal/proc"
)

// execOutput is how much of each of a program's streams is kept, in bytes.
const execOutput = 8 << 10

// The exit statuses by which a program tells a power state.
const (
	exitOn  = 0
	exitOff = 2
)

func (d Device) validateExec() error {
	switch {
	case len(d.Argv) == 0:
		return errors.New("argv is missing: the program and its arguments")
	case !filepath.IsAbs(d.Argv[0]):
		return fmt.Errorf("argv: %q is no absolute path; which program runs must not depend on PATH", d.Argv[0])
	}
	return nil
}

// execDevice is a program of the operator's. It finds the action (off, on,
// status), the node and the incarnation in its environment, and the password, if
// any, as a line on its standard input. What off says is not believed: status
// has to read off.
type execDevice struct {
	device      Device
	password    Secret
	node        cluster.NodeID
	incarnation cluster.Incarnation
}

func (d execDevice) off(ctx context.Context) (string, error) {
	// A program that hangs in status must not keep the power on for ever.
	asking, cancel := context.WithTimeout(ctx, askShare(d.device))
	result, err := d.status(asking)
	cancel()
	if err == nil && result == ResultOff {
		return ResultOff, nil
	}
	return offThenRead(ctx, d.device, func(ctx context.Context) error { return d.order(ctx, ActionOff) }, d.status)
}

func (d execDevice) on(ctx context.Context) (string, error) {
	if err := d.order(ctx, ActionOn); err != nil {
		return ResultUnknown, err
	}
	return ResultOn, nil
}

func (d execDevice) status(ctx context.Context) (string, error) {
	out, err := d.run(ctx, ActionStatus)
	if err != nil {
		return ResultUnknown, err
	}
	return readExit(d.device, out)
}

func (d execDevice) order(ctx context.Context, action string) error {
	out, err := d.run(ctx, action)
	if err == nil && out.ExitCode != 0 {
		err = fmt.Errorf("%s by device %q: %s", action, d.device.Name, ended(out))
	}
	return err
}

func (d execDevice) run(ctx context.Context, action string) (proc.Result, error) {
	command := proc.Command{
		Argv:        d.device.Argv,
		Env:         map[string]string{"PVC_FENCE_ACTION": action, "PVC_FENCE_NODE": string(d.node), "PVC_FENCE_INCARNATION": string(d.incarnation)},
		OutputLimit: execOutput,
	}
	if !d.password.Empty() {
		command.Stdin = []byte(d.password.Reveal() + "\n")
	}
	return runProgram(ctx, d.device, action, command, d.password)
}

// runProgram runs a device's program within what is left of the attempt. What it
// prints is rid of the secret here, before anything is cut or quoted.
func runProgram(ctx context.Context, d Device, action string, c proc.Command, secret Secret) (proc.Result, error) {
	if err := ctx.Err(); err != nil {
		return proc.Result{ExitCode: -1}, fmt.Errorf("%s by device %q: %w", action, d.Name, err)
	}
	c.Timeout = remaining(ctx, d.Timeout)
	out, err := proc.Run(ctx, c)
	out.Stdout, out.Stderr = []byte(secret.Scrub(string(out.Stdout))), []byte(secret.Scrub(string(out.Stderr)))
	switch {
	case errors.Is(err, proc.ErrNotStarted):
		return out, faulty(FaultMisconfigured, fmt.Errorf("%s by device %q: %w", action, d.Name, err))
	case err != nil:
		return out, faulty(FaultUnreachable, fmt.Errorf("%s by device %q: %w; it said: %s", action, d.Name, err, complaint(out)))
	case out.ExitCode < 0:
		return out, fmt.Errorf("%s by device %q: the program was ended by %s", action, d.Name, out.Signal)
	}
	return out, nil
}

// readExit turns the end of a program's status into a power state. Status 2 is
// off, but it is also how a shell ends on a syntax error, Python on a missing
// script and many a parser on a wrong argument: all of these complain on
// standard error, so that with a complaint the word itself is needed (I5).
func readExit(d Device, out proc.Result) (string, error) {
	switch {
	case out.ExitCode == exitOn:
		return ResultOn, nil
	case out.ExitCode == exitOff && (saysOff(out.Stdout) || len(strings.TrimSpace(string(out.Stderr))) == 0):
		return ResultOff, nil
	case out.ExitCode == exitOff:
		return ResultUnknown, fmt.Errorf("status by device %q: %s; with a complaint on standard error this counts as off only if it also prints a line off", d.Name, ended(out))
	}
	err := fmt.Errorf("status by device %q: %s", d.Name, ended(out))
	return ResultUnknown, faulty(agentFault(out), err)
}

// saysOff reports whether a line of the output is off, or ends in ": off" as
// the fence agents have it.
func saysOff(stdout []byte) bool {
	for line := range strings.Lines(string(stdout)) {
		line = strings.ToLower(strings.TrimSpace(line))
		if line == "off" || strings.HasSuffix(line, "status: off") {
			return true
		}
	}
	return false
}

// ended tells how a program ended and what it said about it.
func ended(out proc.Result) string {
	return fmt.Sprintf("exit status %d, %s", out.ExitCode, complaint(out))
}

func complaint(out proc.Result) string {
	text := strings.TrimSpace(errorLines(string(out.Stderr)))
	if text == "" {
		text = strings.TrimSpace(string(out.Stdout))
	}
	if text == "" {
		return "nothing was printed"
	}
	const most = 400 // the last words matter
	if len(text) > most {
		text = "…" + strings.ToValidUTF8(text[len(text)-most:], "")
	}
	return fmt.Sprintf("%q", strings.Join(strings.Fields(text), " "))
}

// errorLines keeps the lines that fence agents mark as errors, if there are
// any: an interpreter's warnings say nothing about a device.
func errorLines(text string) string {
	var marked strings.Builder
	for line := range strings.Lines(text) {
		if strings.Contains(line, "ERROR: ") {
			marked.WriteString(line)
		}
	}
	if marked.Len() == 0 {
		return text
	}
	return marked.String()
}

// askShare is what the question whether the power is off already may cost
// before the order goes out all the same.
func askShare(d Device) time.Duration { return min(d.Timeout/4, 5*time.Second) }

// readReserve is what an order leaves of the attempt for reading the outcome.
func readReserve(d Device) time.Duration { return min(d.Timeout/3, 5*time.Second) }

// readShare is what one reading may cost: of one that hangs a second is made,
// and one that is merely slow has the most of what is left.
func readShare(left time.Duration) time.Duration { return max(left*2/3, time.Second) }

// offThenRead gives the order and reads the power state until it is off. Each
// order is bounded so that there is time left to read: a program that hangs may
// have taken the power all the same.
//
// An order that was not acknowledged is given again while there is time. That is
// harmless: to power off is idempotent, nothing here ever powers on, and while
// this attempt is out the record stands at power_off, which keeps any later
// start of the node from registering (I5).
func offThenRead(ctx context.Context, d Device, order func(context.Context) error, status func(context.Context) (string, error)) (string, error) {
	last, readErr, orderErr := ResultUnknown, error(nil), error(nil)
	var again time.Time // when the order may be given; zero: at once, whatever is left
	for ordered, denied := false, 0; ; {
		left := remaining(ctx, d.Timeout) - readReserve(d)
		if !ordered && (again.IsZero() || left > 0 && !time.Now().Before(again)) {
			err := within(ctx, max(left, time.Millisecond), order)
			ordered, again = err == nil, time.Now().Add(d.Timeout/10)
			if orderErr == nil || !errors.Is(err, context.DeadlineExceeded) {
				orderErr = err // that one more was cut off says less than why the last was refused
			}
		}
		result := ResultUnknown
		err := within(ctx, readShare(remaining(ctx, d.Timeout)), func(ctx context.Context) (err error) { result, err = status(ctx); return err })
		switch {
		case result == ResultOff && err == nil:
			return ResultOff, nil
		case ctx.Err() != nil && (readErr != nil || last != ResultUnknown):
			// The read that the deadline cut off is no news.
		case result == ResultOn && err == nil:
			last, readErr = ResultFailed, nil
		default:
			last, readErr = ResultUnknown, err
		}
		if denied = deniedInTurn(d, denied, err); denied > deniedMost {
			return ResultUnknown, errors.Join(orderErr, err)
		}
		if !sleep(ctx, d.Poll) {
			return last, notOff(d, last, errors.Join(orderErr, readErr))
		}
	}
}

// deniedInTurn counts refused logins one after the other: an account that is
// locked by repetition would be of no use to anybody. A program of the
// operator's has exit statuses of its own, which say nothing of a login.
func deniedInTurn(d Device, before int, err error) int {
	if err == nil || d.Type != TypeAgent || faultOf(err) != FaultDenied {
		return 0
	}
	return before + 1
}

// within calls do with so much of ctx at most.
func within(ctx context.Context, limit time.Duration, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return do(ctx)
}

// notOff says that the attempt is over and the power is not verified off.
func notOff(d Device, last string, detail error) error {
	at := ""
	if d.Address != "" {
		at = " at " + d.Address
	}
	err := fmt.Errorf("device %q%s: power state not readable within %s", d.Name, at, d.Timeout)
	if last == ResultFailed {
		err = fmt.Errorf("device %q%s still reads on %s after the attempt to power off began", d.Name, at, d.Timeout)
	}
	return errors.Join(err, detail)
}
