package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
)

// ErrAbandoned is why Run returns where something of an activity cannot be ended.
var ErrAbandoned = errors.New("something of an activity cannot be ended")

// Executioner is a Guard that can end this process, wherever it hangs.
type Executioner interface {
	// EndCaller has this process killed that long from now. ctx bounds the wait for
	// the answer only. A guard of an earlier program refuses.
	EndCaller(ctx context.Context, within time.Duration) error
}

const (
	// abandonWithin is how long a daemon that gives up lives at most. The guard is
	// asked to end the role at once within it; later the role's deadline does.
	abandonWithin = time.Second
	// lastWords is how long a daemon that gives up waits for its log, where the
	// stacks of what hangs are to appear.
	lastWords = 200 * time.Millisecond
)

// abandon ends this daemon where something of an activity cannot be ended: Go
// kills no goroutine, so the process goes, and the guard is the executioner of
// what hangs on the role, and of the process. Nothing is waited for that may be
// what hangs, the log included.
//
//	              ┌─ role ended at the guard, last words ──▶ exits
//	straggler ──▶ ┼─ own timer ──abandonWithin──▶ exits
//	              └─ guard ──abandonWithin──▶ killed
//
// Whichever comes first. It returns only where there is no Deps.Exit.
func (a *Agent) abandon(stopWork context.CancelCauseFunc, why error) {
	a.goWithin(abandonWithin)
	go a.d.Log.Error("the daemon gives up its roles and ends", zap.Error(why)) // ends with the process, as all here
	ctx, cancel := context.WithTimeout(context.Background(), abandonWithin)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		epoch, deadline, _ := a.dec.status().Role.Holds()
		ended <- a.exec.endRole(ctx, cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: epoch, Deadline: deadline})
	}()
	var err error
	select {
	case err = <-ended:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		go a.d.Log.Error("ending the role's effects failed; the guard ends them at its deadline", zap.Error(err))
	}
	stopWork(why)
	pause(context.Background(), lastWords)
	if a.d.Exit != nil {
		a.d.Exit()
	}
}

// goWithin makes sure that this process is gone that long from now, whatever
// hangs in it: by its own timer, and by the guard, which needs nothing of it any
// more once it has been asked.
func (a *Agent) goWithin(d time.Duration) {
	if a.d.Exit == nil {
		return
	}
	time.AfterFunc(d, a.d.Exit)
	g, ok := a.d.Guard.(Executioner)
	if !ok {
		return
	}
	go func() { // ends with the process
		ctx, cancel := context.WithTimeout(context.Background(), d)
		defer cancel()
		if err := g.EndCaller(ctx, d); err != nil {
			a.d.Log.Warn("the guard will not kill this process, which ends by its own timer", zap.Error(err))
		}
	}()
}

// watchStuck abandons this daemon once something of an activity cannot be ended,
// unless it ends in order already: its last write is to be `stop` then, and the
// shutdown script does not wait for what hangs. What it returns is closed when the
// roles are given up, or work has ended. Run itself may be what hangs, in its log,
// so that nothing of this is Run's.
func (a *Agent) watchStuck(ctx, work context.Context, end, stopWork context.CancelCauseFunc) <-chan struct{} {
	given := make(chan struct{})
	go func() {
		defer close(given)
		select {
		case why := <-a.activities.Abandoned():
			why = fmt.Errorf("%w: %w", ErrAbandoned, why)
			if end(why); errors.Is(context.Cause(ctx), ErrAbandoned) {
				a.abandon(stopWork, why)
			}
		case <-work.Done():
		}
	}()
	return given
}

// abandoned waits until the roles are given up, where that is why ctx has ended,
// and returns why; nil: it is not.
func abandoned(ctx context.Context, given <-chan struct{}) error {
	why := context.Cause(ctx)
	if !errors.Is(why, ErrAbandoned) {
		return nil
	}
	<-given
	return why
}
