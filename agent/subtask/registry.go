// Package subtask keeps what an activity has running, goroutines and child
// processes, so that the activity is really over when it is said to be.
//
// A registry ends by a ladder, with a deadline a rung:
//
//	cancel with cause ──Grace──► kill the children ──Kill──► name the stragglers, with stacks
//
// A goroutine that will not end cannot be killed in Go: whoever is told of a
// straggler gives up its roles and exits. What may block for ever therefore
// runs in a child process.
package subtask

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"
)

// Errors of this package.
var (
	// ErrStopped says that the registry is being stopped or is over.
	ErrStopped = errors.New("the activity is being stopped")
	// ErrFull says that the registry holds as much as it may.
	ErrFull = errors.New("too many subtasks")
)

// Child is a child process as the registry needs it; *proc.Process is one.
type Child interface {
	Kill()                 // ends it and all it started, without waiting
	Done() <-chan struct{} // closed when it has ended
}

// Ladder is how long each rung of a stop lasts. A rung of zero is passed at once.
type Ladder struct {
	Grace time.Duration // from the cancellation to the killing of children
	Kill  time.Duration // from the killing to the naming of stragglers
}

// Straggler is something that survived a stop.
type Straggler struct {
	Name  string
	Child bool   // a child process, else a goroutine
	Stack string // a goroutine's stack, "" if it ended meanwhile
}

// StragglerError tells what survived a stop.
type StragglerError struct {
	Activity   string
	Cause      error
	Stragglers []Straggler
}

// Error names the stragglers, without their stacks.
func (e *StragglerError) Error() string {
	var names []string
	for _, s := range e.Stragglers {
		kind := "goroutine"
		if s.Child {
			kind = "child process"
		}
		names = append(names, fmt.Sprintf("%s %s", kind, s.Name))
	}
	return fmt.Sprintf("stop %s (%v): still there: %s", e.Activity, e.Cause, strings.Join(names, ", "))
}

// Unwrap returns the cause of the stop.
func (e *StragglerError) Unwrap() error { return e.Cause }

// maxErrors bounds how many subtasks' errors are kept.
const maxErrors = 16

// Registry holds what one activity has running. All methods may be called from
// several goroutines.
type Registry struct {
	name   string
	max    int
	ctx    context.Context
	cancel context.CancelCauseFunc

	mu      sync.Mutex
	stopped bool
	next    uint64
	tasks   map[uint64]*task
	errs    []error
	changed chan struct{} // closed and renewed when a task ends
}

type task struct {
	name      string
	child     Child  // nil for a goroutine
	goroutine string // its id, "" until it runs
}

// New makes a registry for the named activity that holds at most max subtasks;
// its context descends from parent.
func New(parent context.Context, name string, max int) *Registry {
	r := &Registry{name: name, max: max, tasks: map[uint64]*task{}, changed: make(chan struct{})}
	r.ctx, r.cancel = context.WithCancelCause(parent)
	return r
}

// Context is the activity's; it ends, with the cause, when Stop begins.
func (r *Registry) Context() context.Context { return r.ctx }

// Go runs fn in a goroutine that Stop and Wait wait for. A panic becomes its
// error. The error is ErrStopped or ErrFull, and fn does not run then.
func (r *Registry) Go(name string, fn func(ctx context.Context) error) error {
	id, t, err := r.add(name, nil)
	if err != nil {
		return err
	}
	go func() {
		r.runs(t)
		err := errors.New("it ended its goroutine")
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
			}
			r.end(id, name, err)
		}()
		err = fn(r.ctx)
	}()
	return nil
}

// Adopt registers a child process. Where the registry is being stopped or is
// full the child is killed at once, so that none ever runs unregistered.
func (r *Registry) Adopt(name string, c Child) error {
	id, _, err := r.add(name, c)
	if err != nil {
		c.Kill()
		return err
	}
	go func() { // ends with the child
		<-c.Done()
		r.end(id, name, nil)
	}()
	return nil
}

func (r *Registry) add(name string, c Child) (uint64, *task, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped || r.ctx.Err() != nil {
		return 0, nil, fmt.Errorf("start %s in %s: %w", name, r.name, ErrStopped)
	}
	if len(r.tasks) >= r.max {
		return 0, nil, fmt.Errorf("start %s in %s: %w: it holds %d", name, r.name, ErrFull, r.max)
	}
	r.next++
	t := &task{name: name, child: c}
	r.tasks[r.next] = t
	return r.next, t, nil
}

// runs notes which goroutine a task is.
func (r *Registry) runs(t *task) {
	id := goroutineID()
	r.mu.Lock()
	t.goroutine = id
	r.mu.Unlock()
}

// end takes a task out and wakes those who wait.
func (r *Registry) end(id uint64, name string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.tasks, id)
	if err != nil && len(r.errs) < maxErrors {
		r.errs = append(r.errs, fmt.Errorf("%s: %w", name, err))
	}
	close(r.changed)
	r.changed = make(chan struct{})
}

// Len returns how many subtasks there are.
func (r *Registry) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.tasks)
}

// Err joins the errors of the subtasks that have ended, the first sixteen.
func (r *Registry) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return errors.Join(r.errs...)
}

// Wait waits until no subtask is left. The error is the context's cause.
func (r *Registry) Wait(ctx context.Context) error {
	for {
		r.mu.Lock()
		empty, changed := len(r.tasks) == 0, r.changed
		r.mu.Unlock()
		if empty {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", r.name, context.Cause(ctx))
		}
	}
}

// Stop ends everything by the ladder and returns nil once nothing is left.
// Nothing can be registered from its beginning on. The error is a
// *StragglerError. When ctx ends the remaining rungs are passed at once. Stop
// may be called again; the first cause stays.
func (r *Registry) Stop(ctx context.Context, cause error, l Ladder) error {
	r.mu.Lock()
	r.stopped = true
	r.mu.Unlock()
	r.cancel(cause)
	if r.waitAtMost(ctx, l.Grace) {
		return nil
	}
	for _, t := range r.list() {
		if t.child != nil {
			t.child.Kill()
		}
	}
	if r.waitAtMost(ctx, l.Kill) {
		return nil
	}
	left := r.stragglers()
	if len(left) == 0 {
		return nil
	}
	return &StragglerError{Activity: r.name, Cause: context.Cause(r.ctx), Stragglers: left}
}

// waitAtMost reports whether nothing is left within d.
func (r *Registry) waitAtMost(ctx context.Context, d time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return r.Wait(ctx) == nil
}

// list copies the tasks in the order of their names.
func (r *Registry) list() []task {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]task, 0, len(r.tasks))
	for _, t := range r.tasks {
		all = append(all, *t)
	}
	slices.SortFunc(all, func(a, b task) int { return strings.Compare(a.name, b.name) })
	return all
}

// stragglers names what is left, with stacks.
func (r *Registry) stragglers() []Straggler {
	var left []Straggler
	stacks := allStacks()
	for _, t := range r.list() {
		left = append(left, Straggler{Name: t.name, Child: t.child != nil, Stack: stacks[t.goroutine]})
	}
	return left
}

// goroutineID reads the running goroutine's number off its stack's first line,
// "goroutine 12 [running]:". It serves to name a straggler, nothing else.
func goroutineID() string {
	buf := make([]byte, 64)
	return idOf(buf[:runtime.Stack(buf, false)])
}

func idOf(stack []byte) string {
	rest, ok := bytes.CutPrefix(stack, []byte("goroutine "))
	if !ok {
		return ""
	}
	id, _, _ := bytes.Cut(rest, []byte(" "))
	return string(id)
}

// maxStacks bounds the dump of all goroutines, in bytes.
const maxStacks = 8 << 20

// allStacks returns every goroutine's stack by its number.
func allStacks() map[string]string {
	buf := make([]byte, 64<<10)
	n := runtime.Stack(buf, true)
	for n == len(buf) && n < maxStacks {
		buf = make([]byte, 2*n)
		n = runtime.Stack(buf, true)
	}
	stacks := map[string]string{}
	for stack := range bytes.SplitSeq(buf[:n], []byte("\n\n")) {
		if id := idOf(stack); id != "" {
			stacks[id] = string(stack)
		}
	}
	return stacks
}
