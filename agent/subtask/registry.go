// Package subtask keeps what an activity has running, goroutines and child
// processes, so that the activity is really over when it is said to be.
//
// A registry ends by a ladder, with a deadline a rung:
//
//	cancel with cause, ask the children ──Grace──► kill them ──Kill──► name the stragglers, with stacks ──► Abandon
//
// A goroutine that will not end cannot be killed in Go: whoever is told of a
// straggler gives up its roles and exits. What may block for ever therefore
// runs in a child process.
//
// Registries nest: what one made by Sub holds, those above it hold, too. They
// share one lock, which nobody holds while he waits, so that a child which
// registers with a parent that waits for it is always answered.
package subtask

import (
	"context"
	"errors"
	"fmt"
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

// errEnded is the error of a subtask whose function called runtime.Goexit.
var errEnded = errors.New("it ended its goroutine")

// Child is a child process as the registry needs it; *proc.Process is one.
type Child interface {
	// Kill ends it and all it started, without waiting.
	Kill()
	// Done is closed when its main process has ended; what that started may live on.
	Done() <-chan struct{}
	// Stop asks it to end, kills it and all it started after the grace, or once
	// its main process or ctx has ended, and returns nil when nothing of it is left.
	Stop(ctx context.Context, grace time.Duration) error
}

// Ladder is how long each rung of a stop lasts. A rung of zero is passed at once.
type Ladder struct {
	Grace time.Duration // from the cancellation to the killing of children
	Kill  time.Duration // from the killing to the naming of stragglers
}

// Options are a registry's. The zero Options serve.
type Options struct {
	// Max is how many subtasks it may hold at once; zero means DefaultMax.
	Max int
	// Together ends the context of all when the first of them fails, with its
	// error as the cause; Join then stops the rest.
	Together bool
	// Abandon is the last rung: it is called once, with what survived a Stop, and
	// gives up all that this process may do, since a goroutine has no other end
	// than the process's. It is not inherited by nested registries.
	Abandon func(*StragglerError)
}

// DefaultMax is how many subtasks a registry holds at most unless told.
const DefaultMax = 4096

// maxErrors and maxShot bound how many subtasks' errors, and names of those
// that were killed, are kept.
const (
	maxErrors = 16
	maxShot   = 256
)

// Registry holds what one activity has running. All methods may be called from
// several goroutines.
type Registry struct {
	name   string
	o      Options
	parent *Registry // nil for the outermost
	ctx    context.Context
	cancel context.CancelCauseFunc
	killed context.Context // ends when the children are to be killed
	kill   context.CancelFunc

	mu        *sync.Mutex // the outermost's; guards what follows in all of them
	stopped   bool
	killing   bool // the kill's rung has been reached: what starts from now on is killed
	abandoned bool
	tasks     map[*task]struct{}
	shot      []string // the children that a stop had to kill, by name
	errs      []error
	changed   chan struct{} // closed and renewed when a task ends
}

// task is an entry of a registry and of all above it.
type task struct {
	name      string // with those of the registries below the outermost
	process   bool   // a child process, perhaps still being started
	child     Child  // nil for a goroutine, and until a process has started
	goroutine string // its id, or that of who starts the process; "" until it runs
	shot      bool   // it had to be killed
}

// New makes a registry for the named activity; its context descends from parent.
func New(parent context.Context, name string, o Options) *Registry {
	return newRegistry(parent, context.WithoutCancel(parent), name, o)
}

// Sub makes a registry within this one. It can be stopped by itself and is
// stopped with this one. Its context carries ctx's values and ends with ctx and
// with this registry's.
func (r *Registry) Sub(ctx context.Context, name string, o Options) *Registry {
	s := newRegistry(ctx, r.killed, name, o)
	s.parent, s.mu = r, r.mu
	context.AfterFunc(r.ctx, func() { s.cancel(context.Cause(r.ctx)) }) // forgotten with r, which ends
	return s
}

// newRegistry makes an outermost registry. Killing is a Stop's decision, never
// the end of the context above, which only asks.
func newRegistry(ctx, killed context.Context, name string, o Options) *Registry {
	if o.Max <= 0 {
		o.Max = DefaultMax
	}
	r := &Registry{name: name, o: o, mu: &sync.Mutex{}, tasks: map[*task]struct{}{}, changed: make(chan struct{})}
	r.ctx, r.cancel = context.WithCancelCause(ctx)
	r.killed, r.kill = context.WithCancel(killed)
	return r
}

// Context is the activity's; it ends, with the cause, when Stop begins.
func (r *Registry) Context() context.Context { return r.ctx }

// Go runs fn in a goroutine that Stop and Wait wait for. A panic becomes its
// error, a *PanicError. The error is ErrStopped or ErrFull, and fn does not run
// then.
func (r *Registry) Go(name string, fn func(ctx context.Context) error) error {
	t := &task{name: name}
	if err := r.add(t, false); err != nil {
		return err
	}
	go func() {
		r.runs(t)
		err := errEnded
		defer func() {
			if p := recover(); p != nil {
				err = &PanicError{Value: p, Stack: string(debug.Stack())}
			}
			r.end(t, err)
		}()
		err = fn(r.ctx)
	}()
	return nil
}

// Start runs a child process that is registered before it begins, so that a
// stop waits for it, and kills it, however far its start got. The error is
// ErrStopped or ErrFull, where start is not called, or start's own; with
// ErrStopped the child may have been started, and its end is waited for.
func (r *Registry) Start(name string, start func() (Child, error)) error {
	t := &task{name: name, process: true, goroutine: goroutineID()}
	if err := r.add(t, false); err != nil {
		return err
	}
	watched := false
	defer func() {
		if !watched {
			r.end(t, nil) // start panicked or failed: its caller is told
		}
	}()
	c, err := start()
	if err != nil {
		return fmt.Errorf("start %s in %s: %w", name, r.name, err)
	}
	watched = true
	r.watch(t, c)
	if r.ctx.Err() != nil {
		return fmt.Errorf("start %s in %s: %w", name, r.name, ErrStopped)
	}
	return nil
}

// Adopt registers a child process that runs already. Where the registry is being
// stopped, is over or is full, the child is killed at once and the error says
// so; Stop and Wait wait for its end even then, so that none ever runs
// unregistered. Prefer Start.
func (r *Registry) Adopt(name string, c Child) error {
	t := &task{name: name, process: true}
	refused := r.add(t, true)
	r.watch(t, c)
	if refused != nil {
		r.shoot(t, c)
	}
	return refused
}

// watch waits for a child's end: when nothing of it is left, not when its main
// process has ended. What that leaves behind is killed.
func (r *Registry) watch(t *task, c Child) {
	r.mu.Lock()
	t.child, t.goroutine = c, ""
	late := false
	for s := r; s != nil; s = s.parent {
		late = late || s.killing
	}
	r.mu.Unlock()
	if late {
		r.shoot(t, c) // the rung was reached before there was anything to kill
	}
	go func() { // ends with the child
		select {
		case <-c.Done():
		case <-r.ctx.Done():
		}
		for c.Stop(r.killed, untilKilled) != nil {
			time.Sleep(survivorPause)
		}
		r.end(t, nil)
	}()
}

// A child that is asked to end has until its registry says that it is killed;
// who survives that is killed again after a pause.
const (
	untilKilled   = 24 * time.Hour
	survivorPause = 50 * time.Millisecond
)

// shoot kills a child and notes that it was necessary.
func (r *Registry) shoot(t *task, c Child) {
	r.mu.Lock()
	_, lives := r.tasks[t]
	for s := r; s != nil && lives && !t.shot; s = s.parent {
		if len(s.shot) < maxShot {
			s.shot = append(s.shot, t.name)
		}
	}
	t.shot = true
	r.mu.Unlock()
	if lives {
		c.Kill()
	}
}

// add enters a task here and above. One that is refused is entered nevertheless
// where it lives already and is only to be waited for.
func (r *Registry) add(t *task, lives bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for s := r; s.parent != nil; s = s.parent {
		t.name = s.name + "/" + t.name
	}
	var refused error
	for s := r; s != nil && refused == nil; s = s.parent {
		switch {
		case s.stopped || s.ctx.Err() != nil:
			refused = fmt.Errorf("start %s in %s: %w", t.name, s.name, ErrStopped)
		case len(s.tasks) >= s.o.Max:
			refused = fmt.Errorf("start %s in %s: %w: it holds %d", t.name, s.name, ErrFull, s.o.Max)
		}
	}
	if refused != nil && !lives {
		return refused
	}
	for s := r; s != nil; s = s.parent {
		s.tasks[t] = struct{}{}
	}
	return refused
}

// runs notes which goroutine a task is.
func (r *Registry) runs(t *task) {
	id := goroutineID()
	r.mu.Lock()
	t.goroutine = id
	r.mu.Unlock()
}

// end takes a task out, here and above, and wakes those who wait.
func (r *Registry) end(t *task, err error) {
	if err != nil {
		err = fmt.Errorf("%s: %w", t.name, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil && len(r.errs) < maxErrors {
		r.errs = append(r.errs, err)
	}
	if err != nil && r.o.Together {
		r.cancel(err) // the first one's stays the cause
	}
	for s := r; s != nil; s = s.parent {
		delete(s.tasks, t)
		close(s.changed)
		s.changed = make(chan struct{})
	}
}

// Len returns how many subtasks there are, those of nested registries included.
func (r *Registry) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.tasks)
}

// Names lists the subtasks that there are, in order.
func (r *Registry) Names() []string {
	var names []string
	for _, t := range r.list() {
		names = append(names, t.name)
	}
	return names
}

// Shot lists the child processes that had to be killed, in that order, the
// first few hundred.
func (r *Registry) Shot() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.shot)
}

// Err joins the errors of the subtasks that have ended, the first sixteen in the
// order in which they ended; those of nested registries are theirs.
func (r *Registry) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return errors.Join(r.errs...)
}

// Wait waits until no subtask is left. The error is the context's cause. Who is
// a subtask itself waits for itself, until ctx ends.
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

// Join waits until no subtask is left and returns the first error of one. Where
// the registry's context or ctx ends first, by the failure of one of several
// that run Together, say, the rest is stopped by the ladder; the error then is
// the cause, joined with a *StragglerError if there is one.
func (r *Registry) Join(ctx context.Context, l Ladder) error {
	both, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(r.ctx, func() { cancel(context.Cause(r.ctx)) })()
	if r.Wait(both) != nil {
		// What is left is ended before anybody is told, whatever ended ctx.
		stopped := r.Stop(context.WithoutCancel(ctx), context.Cause(both), l)
		return errors.Join(context.Cause(r.ctx), stopped)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.errs) > 0 {
		return r.errs[0]
	}
	return nil
}

// Stop ends everything by the ladder and returns nil once nothing is left.
// Nothing can be registered from its beginning on. The error is a
// *StragglerError, which Options.Abandon has been told by then. When ctx ends the
// remaining rungs are passed at once. Stop may be called again, and while another
// goroutine stops: the first cause stays, each caller's rungs are its own.
func (r *Registry) Stop(ctx context.Context, cause error, l Ladder) error {
	r.mu.Lock()
	r.stopped = true
	r.mu.Unlock()
	r.cancel(cause)
	if r.waitAtMost(ctx, l.Grace) {
		r.kill() // whatever is adopted from now on is killed
		return nil
	}
	r.mu.Lock()
	r.killing = true
	r.mu.Unlock()
	for _, t := range r.list() {
		if t.child != nil {
			r.shoot(t.task, t.child)
		}
	}
	r.kill()
	if r.waitAtMost(ctx, l.Kill) {
		return nil
	}
	left := r.stragglers()
	if len(left) == 0 {
		return nil
	}
	err := &StragglerError{Activity: r.name, Cause: context.Cause(r.ctx), Stragglers: left}
	r.mu.Lock()
	first := !r.abandoned
	r.abandoned = true
	r.mu.Unlock()
	if first && r.o.Abandon != nil {
		r.o.Abandon(err)
	}
	return err
}

// waitAtMost reports whether nothing is left within d.
func (r *Registry) waitAtMost(ctx context.Context, d time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return r.Wait(ctx) == nil
}

// entry is a task as it was when it was listed.
type entry struct {
	*task
	name      string
	child     Child
	goroutine string
}

// list copies the tasks in the order of their names.
func (r *Registry) list() []entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]entry, 0, len(r.tasks))
	for t := range r.tasks {
		all = append(all, entry{t, t.name, t.child, t.goroutine})
	}
	slices.SortFunc(all, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	return all
}
