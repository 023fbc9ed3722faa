package fencing

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"pvc.internal/cluster"
)

// childSlack is what a child gets beyond its device's total deadline to start
// and to print its result, before it is killed.
const childSlack = 2 * time.Second

// Runner makes attempts, each in a child process of its own that dies with the
// role of whoever ordered it.
type Runner struct {
	// Run starts one program under a deadline's owner and waits for it
	// (the guard's), by the token of whom it belongs to, which it asks at the
	// last instant before.
	Run func(ctx context.Context, t cluster.Token, r cluster.RunRequest) (cluster.RunResult, error)
	// Argv is the program that calls AttemptMain, with its arguments.
	Argv []string
	// WallMS reads the wall clock in unix milliseconds, for the record's readers.
	WallMS func() int64
	// Owner is what the children hang on; empty is cluster.OwnerPrimary.
	Owner cluster.DeadlineOwner

	node        cluster.NodeID // see For
	incarnation cluster.Incarnation
	token       cluster.Token // of the activity that the children belong to
	lost        *atomic.Bool  // an attempt was begun, and whether it has ended is not known; nil: nobody asks
}

// For returns a runner whose attempts know which node and which incarnation of
// it they are about; a program of the operator's is told both.
func (r Runner) For(node cluster.NodeID, incarnation cluster.Incarnation) Runner {
	r.node, r.incarnation, r.lost = node, incarnation, new(atomic.Bool)
	return r
}

// Off walks the node's levels until one proves it off. It returns every
// attempt made, and whether every device of one level confirmed. It orders
// nothing once the token is dead.
func (r Runner) Off(ctx context.Context, token cluster.Token, levels [][]Device) ([]cluster.FenceAttempt, bool) {
	r.token = token
	return r.walk(ctx, levels, ActionOff)
}

// Status reads every device of each level until one level reads off as a whole,
// in children of the token's activity.
func (r Runner) Status(ctx context.Context, token cluster.Token, levels [][]Device) ([]cluster.FenceAttempt, bool) {
	r.token = token
	return r.walk(ctx, levels, ActionStatus)
}

// On orders the devices on, all at once; it does not wait for the node. It
// orders nothing once the token is dead.
func (r Runner) On(ctx context.Context, token cluster.Token, devices []Device) []cluster.FenceAttempt {
	r.token = token
	return r.together(ctx, devices, ActionOn)
}

func (r Runner) walk(ctx context.Context, levels [][]Device, action string) ([]cluster.FenceAttempt, bool) {
	var all []cluster.FenceAttempt
	ladder := NewLadder(levels)
	for level := ladder.Level(); level != nil && ctx.Err() == nil; level = ladder.Level() {
		results := r.together(ctx, level, action)
		all = append(all, results...)
		ladder = ladder.Report(results)
	}
	return all, ladder.Proven()
}

// together tries the devices of one level at the same time: a machine with two
// supplies must not be cut one after the other's deadline.
func (r Runner) together(ctx context.Context, devices []Device, action string) []cluster.FenceAttempt {
	results := make([]cluster.FenceAttempt, len(devices))
	var wait sync.WaitGroup
	for i, device := range devices {
		wait.Go(func() { results[i] = r.one(ctx, device, action) })
	}
	wait.Wait()
	return results
}

func (r Runner) one(ctx context.Context, d Device, action string) cluster.FenceAttempt {
	attempt := cluster.FenceAttempt{Device: d.Name, Action: action, StartedUnixMS: r.WallMS(), Result: ResultUnknown}
	result, err := r.child(ctx, d, action)
	if err != nil {
		attempt.Error = err.Error()
		return attempt
	}
	attempt.Result, attempt.Error, attempt.Micros = result.Result, result.Error, result.Micros
	return attempt
}

// unordered notes that an attempt was never made: its result is no device's.
func (r Runner) unordered() {
	if r.lost != nil {
		r.lost.Store(true)
	}
}

func (r Runner) child(ctx context.Context, d Device, action string) (AttemptResult, error) {
	limit := d.withDefaults().Timeout + childSlack
	ctx, cancel := context.WithTimeout(ctx, askShare(d.withDefaults())+limit+childSlack) // the reading of the password included
	defer cancel()
	password, err := d.password(ctx)
	if err != nil {
		return AttemptResult{}, err
	}
	stdin, err := json.Marshal(Attempt{Version: 1, Device: d, Password: password, Action: action, Node: r.node, Incarnation: r.incarnation})
	if err != nil {
		return AttemptResult{}, fmt.Errorf("encode the attempt at device %q: %w", d.Name, err)
	}
	owner := r.Owner
	if owner == "" {
		owner = cluster.OwnerPrimary
	}
	if action == ActionOff || action == ActionOn {
		if err := r.token.Check(); err != nil { // a device is only looked at by no right of anybody's
			r.unordered()
			return AttemptResult{}, fmt.Errorf("%s is not ordered of device %q: %w", action, d.Name, err)
		}
	}
	out, err := r.Run(ctx, r.token, cluster.RunRequest{Owner: owner, Epoch: r.token.Epoch(), Argv: r.Argv, Stdin: stdin, Timeout: limit})
	if err != nil {
		if r.lost != nil && !errors.Is(err, cluster.ErrRefused) && !errors.Is(err, cluster.ErrStaleEpoch) {
			r.lost.Store(true) // the guard may have begun it
		}
		return AttemptResult{}, fmt.Errorf("run %s at device %q: %w", action, d.Name, err)
	}
	return parseResult(d, action, out)
}

// parseResult takes nothing for off but a child that ended well and says so:
// a killed child, rubbish or another version is unknown.
func parseResult(d Device, action string, out cluster.RunResult) (AttemptResult, error) {
	var result AttemptResult
	err := json.Unmarshal(out.Stdout, &result)
	switch {
	case out.Error != "":
		return AttemptResult{}, fmt.Errorf("%s at device %q ended without a result: %s", action, d.Name, out.Error)
	case err != nil || result.Version != 1:
		return AttemptResult{}, fmt.Errorf("%s at device %q printed no result (exit status %d): %s", action, d.Name, out.ExitCode, firstLine(out.Stderr))
	case out.ExitCode != ExitTold:
		return AttemptResult{}, fmt.Errorf("%s at device %q: exit status %d: %s", action, d.Name, out.ExitCode, result.Error)
	}
	switch result.Result {
	case ResultOff, ResultOn, ResultFailed:
	default:
		result.Result = ResultUnknown
	}
	return result, nil
}

func firstLine(b []byte) string {
	line, _, _ := strings.Cut(string(b), "\n")
	const most = 200
	if len(line) > most {
		line = strings.ToValidUTF8(line[:most], "")
	}
	return line
}
