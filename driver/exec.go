package driver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"os/user"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"pvc.internal/cluster"
)

// The parameters of an exec workload, besides env_NAME.
const (
	execCommand      = "command"       // the program that runs as long as the copy
	execCheck        = "check"         // exits 0 while that serves; none: running is enough
	execStartTimeout = "start_timeout" // until the check has passed; default 30 s
	execStopTimeout  = "stop_timeout"  // SIGTERM to SIGKILL; default 10 s
	execRestart      = "restart"       // how long after its own end it is started again here; none: never
	execUser         = "user"          // whom it runs as; default root
	execEnv          = "env_"          // env_NAME=value
)

// The bounds of times that are parameters.
const (
	defaultStartTimeout = 30 * time.Second
	defaultStopTimeout  = 10 * time.Second
	longestTimeout      = 10 * time.Minute
	shortestRestart     = 100 * time.Millisecond
	execCheckLimit      = 3 * time.Second
)

var environmentName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,63}$`)

// ExecGuard is what the driver needs of the guard: checks run there, too, since what
// hardens the agent's own unit is not for them.
type ExecGuard interface {
	Guard
	// Look runs a program that changes nothing, of which nothing is left.
	Look(ctx context.Context, r cluster.RunRequest) (cluster.RunResult, error)
}

// Exec runs a program of one's own as a movable workload: it is active while it
// runs, and, where there is a check, while that passes. Its standard output and
// error go to the guard's journal.
type Exec struct {
	node  cluster.NodeID
	guard ExecGuard
}

// NewExec makes the driver.
func NewExec(node cluster.NodeID, guard ExecGuard) *Exec { return &Exec{node: node, guard: guard} }

// Check implements Driver.
func (d *Exec) Check(_ context.Context, w cluster.Workload) error {
	s, err := d.service(w)
	if err != nil {
		return err
	}
	if err := d.programs(s, w.Name, found); err != nil {
		return err
	}
	if s.User != "" {
		if _, err := user.Lookup(s.User); err != nil {
			return fmt.Errorf("workload %q: node %s has no user %q: %w: %w", w.Name, d.node, s.User, err, cluster.ErrRefused)
		}
	}
	return nil
}

func found(program string) error {
	_, err := exec.LookPath(program)
	return err
}

// programs reports which of the workload's programs this node cannot run.
func (d *Exec) programs(s cluster.ServiceSpec, workload string, missing func(program string) error) error {
	for _, argv := range [][]string{s.Command, s.Check} {
		if len(argv) == 0 {
			continue
		}
		if err := missing(argv[0]); err != nil {
			return fmt.Errorf("workload %q: a program of it cannot be run on node %s: %w: install it there, with its path as the settings name it: %w", workload, d.node, err, cluster.ErrRefused)
		}
	}
	return nil
}

// service is the workload as the guard runs it.
func (d *Exec) service(w cluster.Workload) (cluster.ServiceSpec, error) {
	s := cluster.ServiceSpec{Name: ServiceName(w.Name), Kind: cluster.ServiceHook, Note: w.ID,
		StartTimeout: defaultStartTimeout, StopTimeout: defaultStopTimeout,
		Env: []string{"PVC_WORKLOAD=" + w.Name, "PVC_NODE=" + string(d.node)}}
	if w.Kind != cluster.WorkloadMovable {
		return s, fmt.Errorf("workload %q: driver exec runs movable workloads only: it can promote nothing: %w", w.Name, cluster.ErrRefused)
	}
	for _, name := range slices.Sorted(maps.Keys(w.Params)) {
		if err := execParam(&s, name, w.Params[name]); err != nil {
			return s, fmt.Errorf("workload %q: parameter %s: %w: %w", w.Name, name, err, cluster.ErrRefused)
		}
	}
	if len(s.Command) == 0 {
		return s, fmt.Errorf("workload %q: driver exec needs the parameter command: the program and its arguments: %w", w.Name, cluster.ErrRefused)
	}
	return s, nil
}

// execParam takes one parameter into the service.
func execParam(s *cluster.ServiceSpec, name, value string) (err error) {
	switch name {
	case execCommand:
		s.Command, err = SplitWords(value)
	case execCheck:
		s.Check, err = SplitWords(value)
	case execStartTimeout:
		s.StartTimeout, err = duration(value, time.Second)
	case execStopTimeout:
		s.StopTimeout, err = duration(value, 100*time.Millisecond)
	case execRestart:
		s.Restart, err = duration(value, shortestRestart)
	case execUser:
		s.User = value
	default:
		variable, is := strings.CutPrefix(name, execEnv)
		if !is {
			return errors.New("driver exec knows command, check, start_timeout, stop_timeout, restart, user, and env_NAME")
		}
		if !environmentName.MatchString(variable) {
			return fmt.Errorf("%q is no name of an environment variable", variable)
		}
		s.Env = append(s.Env, variable+"="+value)
	}
	return err
}

// duration reads a time from least to longestTimeout, "1.5s" or whole seconds.
func duration(text string, least time.Duration) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if seconds, numErr := strconv.Atoi(text); numErr == nil {
		d, err = time.Duration(seconds)*time.Second, nil
	}
	if err != nil || d < least || d > longestTimeout {
		return 0, fmt.Errorf("%q is no time from %s to %s: write 500ms, 30s or 2m", text, least, longestTimeout)
	}
	return d, nil
}

// SplitWords cuts a command line into its words. No shell is involved: words are
// separated by blanks, '…' and "…" keep theirs, and a backslash, but within '…',
// takes the next character as it is. Nothing is expanded, redirected or piped:
// where that is wanted the words are sh, -c and the script in quotes.
func SplitWords(line string) ([]string, error) {
	var words []string
	var word strings.Builder
	within, quote, escaped := false, rune(0), false
	for _, c := range line {
		switch {
		case escaped:
			word.WriteRune(c)
			escaped = false
		case c == '\\' && quote != '\'':
			escaped, within = true, true
		case quote != 0:
			if c == quote {
				quote = 0
			} else {
				word.WriteRune(c)
			}
		case c == '\'' || c == '"':
			quote, within = c, true
		case c == ' ' || c == '\t' || c == '\n':
			if within {
				words = append(words, word.String())
				word.Reset()
				within = false
			}
		default:
			word.WriteRune(c)
			within = true
		}
	}
	if quote != 0 || escaped {
		return nil, errors.New("a quote or a backslash at its end is not completed")
	}
	if within {
		words = append(words, word.String())
	}
	if len(words) == 0 || words[0] == "" {
		return nil, errors.New("it names no program")
	}
	return words, nil
}

// Probe implements Driver.
func (d *Exec) Probe(ctx context.Context, w cluster.Workload) (cluster.CopyReport, error) {
	s, err := d.service(w)
	if err != nil {
		return cluster.CopyReport{}, err
	}
	state, here, err := serviceOf(ctx, d.guard, w)
	if err != nil {
		return cluster.CopyReport{}, err
	}
	r := reportOf(w, state, here)
	if r.State != cluster.CopyActive || len(s.Check) == 0 {
		return r, nil
	}
	res, err := d.guard.Look(ctx, cluster.RunRequest{Argv: s.Check, Env: environment(s), Timeout: execCheckLimit})
	switch {
	case err != nil:
		return cluster.CopyReport{}, fmt.Errorf("its check could not be run: %w", err)
	case ctx.Err() != nil:
		return cluster.CopyReport{}, fmt.Errorf("its check has not ended in time: %w", context.Cause(ctx))
	case res.Error != "":
		r.State, r.Error, r.Left = cluster.CopyDead, "it runs, and its check fails: "+res.Error, true
	case res.ExitCode != 0:
		r.State, r.Left = cluster.CopyDead, true
		r.Error = fmt.Sprintf("it runs, and its check fails with status %d: %s", res.ExitCode, strings.TrimSpace(string(res.Stderr)+string(res.Stdout)))
	}
	return r, nil
}

func environment(s cluster.ServiceSpec) map[string]string {
	vars := map[string]string{}
	for _, line := range s.Env {
		name, value, _ := strings.Cut(line, "=")
		vars[name] = value
	}
	return vars
}

// serviceOf finds the workload's copy among what the guard holds.
func serviceOf(ctx context.Context, g Guard, w cluster.Workload) (s cluster.ServiceState, here bool, err error) {
	state, err := g.State(ctx)
	if err != nil {
		return s, false, fmt.Errorf("ask the guard for the copy of workload %q: %w", w.Name, err)
	}
	i := slices.IndexFunc(state.Services, func(s cluster.ServiceState) bool {
		return s.Name == ServiceName(w.Name) && s.Owner == cluster.OwnerNode
	})
	if i < 0 {
		return s, false, nil
	}
	return state.Services[i], true, nil
}

// reportOf is what a copy is that needs nothing but to run.
func reportOf(w cluster.Workload, s cluster.ServiceState, here bool) cluster.CopyReport {
	r := cluster.CopyReport{State: cluster.CopyMissing}
	switch {
	case !here:
	case s.Note != "" && s.Note != w.ID:
		r.State, r.Error, r.Left = cluster.CopyDead, "something of an earlier workload of this name is here, which a start replaces", s.Running || s.Left
	case s.Running:
		r.State, r.Error = cluster.CopyActive, s.Error
		r.Start = fmt.Sprintf("%d.%d", s.PID, s.Starts)
	default:
		r.State, r.Error, r.Left = cluster.CopyDead, s.Error, s.Left
	}
	return r
}

// Order implements Driver.
func (d *Exec) Order(ctx context.Context, t cluster.Token, o cluster.CopyOrder) (cluster.CopyReport, error) {
	w := o.Workload
	switch o.Op {
	case cluster.CopyStart:
		s, err := d.service(w)
		if err == nil {
			err = d.guard.StartCopy(ctx, t, s)
			if bad := d.Check(ctx, w); err != nil && bad != nil { // says what to do
				err = fmt.Errorf("%w (%v)", err, bad) //nolint:errorlint // which refused nothing: it was tried
			}
		}
		return after(ctx, d, w, err)
	case cluster.CopyStop, cluster.CopyDestroy:
		return after(ctx, d, w, d.guard.StopCopy(ctx, t, ServiceName(w.Name)))
	}
	return cluster.CopyReport{Unknown: true}, fmt.Errorf("workload %q: driver %s cannot %s a copy: %w", w.Name, w.Driver, o.Op, cluster.ErrRefused)
}

// after looks at the copy once an order has been tried, and says what is true then.
func after(ctx context.Context, d Driver, w cluster.Workload, tried error) (cluster.CopyReport, error) {
	look, cancel := context.WithTimeout(context.WithoutCancel(ctx), probeLimit)
	defer cancel()
	r, err := d.Probe(look, w)
	if err != nil {
		r = cluster.CopyReport{Unknown: true, Error: err.Error()}
	}
	if tried != nil {
		return r, tried
	}
	return r, err
}
