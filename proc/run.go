package proc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"pvc.internal/cluster"
)

// DefaultOutputLimit is how much of each of standard output and standard error
// is kept, in bytes, unless a Command says otherwise.
const DefaultOutputLimit = 64 << 10

// DefaultTimeout bounds a Run whose Command names no timeout.
const DefaultTimeout = 60 * time.Second

// waitDelay is how long Run waits, after killing, for the kernel to be rid of
// the child and for its output to be read.
const waitDelay = time.Second

// Command is a program to run.
type Command struct {
	// Argv is the program and its arguments. A program without a slash is
	// looked up in PATH. No shell ever sees it.
	Argv []string
	// Stdin is fed to the program (Run only); secrets travel here, never in Argv.
	Stdin []byte
	// Env is added to the little that a child gets: PATH, HOME and the C locale.
	// Nothing else of this process's environment is passed on: neither its
	// secrets nor the socket by which it notifies systemd.
	Env map[string]string
	// Timeout ends a Run; zero means DefaultTimeout.
	Timeout time.Duration
	// OutputLimit bounds each captured stream in bytes; zero means DefaultOutputLimit.
	OutputLimit int
	// Dir is the working directory; empty means "/".
	Dir string
	// Slice is the control group, as a path from the hierarchy's root
	// ("pvc.slice"), below which the child's own group is made; empty means the
	// caller's own.
	Slice string
	// Output is where a child of Start writes; nil means this process's standard error.
	Output *os.File
	// User is whom the program runs as, a name of this host's, with that user's
	// groups and home; empty means as this process. Only root may name another.
	User string
	// Ordinary takes from a run what this process may have taken for itself alone
	// (makeOrdinary); what outlives this process never has it.
	Ordinary bool
	// Within puts the child into what another Process holds (Act only): its end is
	// this one's end, too. Slice is not used then.
	Within *Process

	noGroup bool // tests: as if there were no control groups
}

// Result is how a Run ended.
type Result struct {
	ExitCode  int    // −1 when a signal ended it or it never ran
	Signal    string // name of the signal that ended it, "" for none
	Stdout    []byte
	Stderr    []byte
	Truncated bool // more was printed than OutputLimit; the rest was read and dropped
	Killed    bool // ended by the deadline or by the context
	Duration  time.Duration
	Left      *Process // what survives SIGKILL so far (ErrStraggler); nil for nothing
}

// Run runs the program to its end and returns once it, and everything it
// started, is gone. A non-zero exit status is not an error. The error wraps
// ErrNotStarted when the program never ran, cluster.ErrDeadline when it was
// killed at its timeout, the context's cause when it was killed by that, and
// ErrStraggler when something of it survives SIGKILL (a process in state D);
// the result is valid as far as it goes in each case.
func Run(ctx context.Context, c Command) (Result, error) {
	if c.Timeout <= 0 {
		c.Timeout = DefaultTimeout
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.Timeout,
		fmt.Errorf("killed after %v: %w", c.Timeout, cluster.ErrDeadline))
	defer cancel()
	began := time.Now()
	p, s, err := c.launchCaptured(runPrefix)
	if err != nil {
		return Result{ExitCode: -1, Duration: time.Since(began)}, err
	}
	var r Result
	select {
	case <-p.done:
	case <-ctx.Done():
		r.Killed = true
	}
	grace, cancelGrace := context.WithTimeout(context.WithoutCancel(ctx), waitDelay)
	defer cancelGrace()
	ended := p.end(grace, 0)
	if ended != nil {
		r.Left = p
	}
	r.ExitCode = -1
	select {
	case <-p.done:
		r.ExitCode, r.Signal = p.exit.Code, p.exit.Signal
	default: // survives; its waiter ends when the kernel lets it go
	}
	s.finish(&r, time.Now().Add(waitDelay))
	r.Duration = time.Since(began)
	if r.Killed {
		return r, errors.Join(fmt.Errorf("run %s: %w", p.name, context.Cause(ctx)), ended)
	}
	return r, ended
}

// lookup finds the program and explains what is wrong with a command.
func (c Command) lookup() (string, error) {
	if len(c.Argv) == 0 || c.Argv[0] == "" {
		return "", fmt.Errorf("run a command: %w: it is empty", ErrNotStarted)
	}
	path, err := exec.LookPath(c.Argv[0])
	if err != nil {
		return "", fmt.Errorf("find program: %w: %w", ErrNotStarted, err)
	}
	return filepath.Abs(path) // the child's working directory is another
}

// environ is the child's whole environment.
func (c Command) environ(mark string) []string {
	env := []string{"LC_ALL=C.UTF-8", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	for _, name := range []string{"PATH", "HOME"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	if c.User != "" { // its HOME is below, not this process's
		env = append(env, "USER="+c.User, "LOGNAME="+c.User)
	}
	for name, value := range c.Env {
		env = append(env, name+"="+value)
	}
	if mark != "" {
		env = append(env, markName+"="+mark)
	}
	return env // exec keeps the last of equal names
}

// label makes a program's name fit for a directory.
func label(name string) string {
	clean := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' {
			return r
		}
		return '_'
	}, name)
	return clean[:min(len(clean), 64)]
}
