package activity

import (
	"context"
	"errors"
	"testing"

	"pvc.internal/cluster"
)

// handClock is moved by the test.
type handClock struct{ now cluster.Instant }

func (c *handClock) Now() cluster.Instant { return c.now }

// A role's tokens live while its context, its deadline and its epoch do, looked
// at when the effect is asked for; another owner's have nothing to do with it.
func TestWhatARolesTokenLooksAt(t *testing.T) {
	ended := errors.New("the role has ended")
	clock := &handClock{now: 100}
	m := New(Config{Self: "a", Clock: clock})
	role := cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: 7, Deadline: 200}
	ctx, end := context.WithCancelCause(t.Context())
	r := m.Hold(ctx, role)
	own := m.Hold(t.Context(), cluster.RoleDeadline{Owner: cluster.OwnerNode, Epoch: 1, Deadline: 150})
	token := r.Token()
	lives := func(what string, want error) {
		t.Helper()
		err := token.Check()
		if want == nil && err != nil || want != nil && (!errors.Is(err, want) || !errors.Is(err, cluster.ErrNoToken)) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}
	lives("begun", nil)
	if token.Epoch() != 7 || token.Activity() != "primary-7" {
		t.Errorf("the token is %s", token)
	}
	clock.now = 199
	lives("right before the deadline", nil)
	clock.now = 200
	lives("at the deadline", cluster.ErrDeadline)
	r.Extend(300)
	lives("extended", nil)
	r.Extend(200)
	lives("shortened again", cluster.ErrDeadline)
	r.Extend(300)
	if own.Token().Live() {
		t.Error("the node's own right lives by the role's deadline")
	}

	again := m.Hold(t.Context(), cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: 8, Deadline: 400})
	lives("a later epoch has begun", cluster.ErrStaleEpoch)
	if !again.Token().Live() {
		t.Error(again.Token().Check())
	}
	role.Deadline = 300
	token = m.Hold(ctx, role).Token()
	lives("begun anew", nil)
	end(ended)
	lives("its context has ended", ended)
}

// What a role orders of its guard is no order to another node, and what nobody
// holds gives nothing.
func TestARolesTokenHasNoWireForm(t *testing.T) {
	m := New(Config{Self: "a", Clock: &handClock{}})
	r := m.Hold(t.Context(), cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: 7, Deadline: 200})
	if w, err := r.Token().Wire("r1"); err == nil {
		t.Errorf("a role's token goes out as %+v", w)
	}
	var nobody *Right
	nobody.Extend(1000)
	if err := nobody.Token().Check(); !errors.Is(err, cluster.ErrNoToken) {
		t.Errorf("nobody's: %v", err)
	}
	if timeless := New(Config{Self: "a"}).Hold(t.Context(), cluster.RoleDeadline{Deadline: cluster.Forever}); timeless.Token().Live() {
		t.Error("a right lives though nobody tells the time")
	}
}
