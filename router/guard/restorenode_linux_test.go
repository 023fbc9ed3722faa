package guard

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// leave has the guard die, and the node's right end before the next one starts: what
// runs here now is left over.
func (c *copies) leave() {
	c.t.Helper()
	over := clock.Now().Add(500 * time.Millisecond)
	if err := c.client.Extend(c.ctx(), cluster.RoleDeadline{Owner: cluster.OwnerNode, Epoch: cluster.NodeEpoch, Deadline: over}); err != nil {
		c.t.Fatal(err)
	}
	c.kill()
	c.eventually(patience, "the deadline passes", func() bool { return clock.Now() > over })
	c.start()
}

// slow is an agent whose stop does not end while "hang" is there.
func (c *copies) slow(name string) cluster.ServiceSpec {
	s := c.agent(name)
	s.Stop = []string{"/bin/sh", "-c", `cd $DIR; echo >stopping; while [ -e hang ]; do sleep 0.05; done; rm -f up; echo x >>stops`}
	s.StopTimeout, s.StartTimeout = 10*time.Minute, time.Second
	return s
}

// A guard serves at once, whatever of an earlier one's is still being taken down: the
// roles, their addresses and other copies do not wait for a stop that hangs. What ran
// is dead at once (I3, I4); the copy itself is shown as left, is not started beside its
// own stop, and not said to be gone, until that is over.
func TestAStopThatHangsKeepsOnlyItsOwnCopyWaiting(t *testing.T) {
	c, _ := newCopies(t, time.Minute)
	slow := c.slow("copy-slow")
	c.mustStart(slow)
	pid := c.number("pid")
	c.touch("hang")
	c.leave()
	c.eventually(patience, "what ran is dead, and its stop runs", func() bool { return !alive(pid) && c.there("stopping") })
	c.right(time.Minute)
	c.begin(1, time.Minute, v4a)
	if s := c.state(); len(s.Addresses) != 1 {
		t.Errorf("the role's address is not there: %+v", s)
	}
	other := cluster.ServiceSpec{Name: "copy-own", Kind: cluster.ServiceHook, Command: []string{"sleep", "1000"}}
	c.mustStart(other)
	if s, held := c.held("copy-slow"); !held || s.Running || !s.Left || !s.Ending {
		t.Errorf("what is left is shown as %+v", s)
	}
	if err := c.startCopy(slow); !errors.Is(err, cluster.ErrRefused) || !strings.Contains(err.Error(), "earlier guard") {
		t.Errorf("a start beside its own stop: %v, want ErrRefused with the reason", err)
	}
	short, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if err := c.client.StopCopy(short, may(77), "copy-slow"); err == nil {
		t.Error("what is left is said to be stopped while its stop hangs")
	}
	run := cluster.RunRequest{Argv: []string{"touch", c.file("ran")}, Timeout: 10 * time.Second}
	if _, err := c.client.RunInCopy(c.ctx(), may(77), "copy-slow", run); !errors.Is(err, cluster.ErrRefused) || c.there("ran") {
		t.Errorf("a program run within what is being ended: %v, want ErrRefused", err)
	}
	_ = os.Remove(c.file("hang"))
	if err := c.stopCopy("copy-slow"); err != nil || c.there("up") {
		t.Errorf("once its stop ends: %v, up %v", err, c.there("up"))
	}
	c.mustStart(slow)
	if s, held := c.held("copy-slow"); !held || !s.Running || s.Ending || !c.there("up") {
		t.Errorf("started anew: %+v, up %v", s, c.there("up"))
	}
	c.leave() // the deadline of the new right ends all of it again
	c.eventually(patience, "all is down", func() bool { s := c.state(); return !c.there("up") && len(s.Services)+len(s.Faults) == 0 })
}

// A stop that fails again and again is told as a fault, and a copy that is started
// once it has succeeded is not taken down by it.
func TestWhatIsLeftIsTakenDownBeforeItIsStartedAnew(t *testing.T) {
	c, _ := newCopies(t, time.Minute)
	c.mustStart(c.address("copy-ip"))
	c.touch("stuck")
	c.leave()
	c.right(time.Minute)
	c.eventually(patience, "a fault tells it", func() bool { return strings.Contains(strings.Join(c.state().Faults, " "), "copy-ip") })
	again := make(chan error, 1)
	go func() { again <- c.startCopy(c.address("copy-ip")) }()
	if s, held := c.held("copy-ip"); !held || !s.Ending {
		t.Errorf("shown as %+v while its stop fails", s)
	}
	_ = os.Remove(c.file("stuck"))
	if err := <-again; err != nil || !c.there("up") {
		t.Errorf("started once it is down: %v, up %v", err, c.there("up"))
	}
	pause(leftoverPause + leftoverPause/2) // a further try would take it down
	if s, held := c.held("copy-ip"); !held || !s.Running || !c.there("up") || len(c.state().Faults) != 0 {
		t.Errorf("afterwards: %+v, up %v, faults %v", s, c.there("up"), c.state().Faults)
	}
}

// The next primary role waits for what is left of the last one: its services may be
// what the role would start.
func TestNoPrimaryRoleBeginsBesideLeftoversOfTheLast(t *testing.T) {
	c, _ := newCopies(t, time.Minute)
	c.begin(1, time.Minute)
	if err := c.client.StartService(c.ctx(), cluster.OwnerPrimary, 1, c.slow("primary-only")); err != nil {
		t.Fatal(err)
	}
	c.touch("hang")
	c.leave()
	c.right(time.Minute)
	next := cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: 2, Deadline: clock.Now().Add(time.Minute)}
	if err := c.client.Begin(c.ctx(), next); !errors.Is(err, cluster.ErrRefused) || !strings.Contains(err.Error(), "primary-only") {
		t.Errorf("a role beside what is left of the last: %v, want ErrRefused with its name", err)
	}
	short, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if err := c.client.End(short, cluster.OwnerPrimary, 2); err == nil {
		t.Error("the last role is said to have ended while something of it is left")
	}
	_ = os.Remove(c.file("hang"))
	c.eventually(patience, "the role begins once all is gone", func() bool {
		next.Deadline = clock.Now().Add(time.Minute)
		return c.client.Begin(c.ctx(), next) == nil
	})
	if c.there("up") {
		t.Error("the role began before what was left was down")
	}
}
