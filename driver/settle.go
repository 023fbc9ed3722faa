package driver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"pvc.internal/cluster"
)

// settlePoll is between two looks at what is left.
const settlePoll = 50 * time.Millisecond

// errSettling refuses what would give a copy something, or change it.
var errSettling = errors.New("this node is being stopped with all its copies")

// Settle has all copies here end by their own rules, each within its own limit. It
// is for a node whose guard stops, too: as long as the daemon runs the node's right
// goes on, and a copy that is killed while it saves has lost what it was saving. From
// its call on only stops are carried out here, and what a copy is counts as not known,
// so that nobody judges what ends just now; a host is not used again after it.
// letGo has the guard stop one service and returns when nothing of it is left
// (router.Client.LetGo). The error names what is left when ctx has ended.
func (h *Host) Settle(ctx context.Context, letGo func(ctx context.Context, service string) error) error {
	h.mu.Lock()
	h.settling = true
	for _, t := range h.turns {
		if t.cancel != nil && t.what != lookTurn && !overtakes(cluster.CopyOp(t.what)) {
			t.cancel(errSettling)
		}
	}
	h.mu.Unlock()
	var failed error
	for {
		left, err := h.services(ctx)
		if err == nil && len(left) == 0 {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("copies that did not end (%s): %w", strings.Join(left, ", "), errors.Join(context.Cause(ctx), err, failed))
		}
		failed = letAllGo(ctx, left, letGo)
		select {
		case <-ctx.Done():
		case <-time.After(settlePoll):
		}
	}
}

// services names what the guard holds of copies.
func (h *Host) services(ctx context.Context) (names []string, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), heldLimit)
	defer cancel()
	state, err := h.guard.State(ctx)
	for _, s := range state.Services {
		if _, is := WorkloadOf(s.Name); is && s.Owner == cluster.OwnerNode {
			names = append(names, s.Name)
		}
	}
	slices.Sort(names)
	return names, err
}

// letAllGo lets go of services beside each other.
func letAllGo(ctx context.Context, names []string, letGo func(ctx context.Context, service string) error) error {
	var all sync.WaitGroup
	failed := make([]error, len(names))
	for i, name := range names {
		all.Go(func() { failed[i] = letGo(ctx, name) })
	}
	all.Wait()
	return errors.Join(failed...)
}

// settles reports why an order is not carried out any more.
func (h *Host) settles(op cluster.CopyOp) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.settling && !overtakes(op) {
		return errSettling
	}
	return nil
}
