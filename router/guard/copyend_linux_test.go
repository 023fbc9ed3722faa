package guard

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
	"pvc.internal/proc"
)

// A stop that was ordered hangs when the node's right ends: the copy that it was to
// stop dies at the deadline all the same, and is taken down by a further stop (I3).
func TestACopyWhoseStopHangsEndsWithTheNodesRight(t *testing.T) {
	c, _ := newCopies(t, 10*time.Minute)
	spec := c.agent("copy-web")
	spec.StopTimeout = 10 * time.Minute
	spec.Stop = []string{"/bin/sh", "-c", `cd $DIR; [ -e hang ] && { rm hang; echo >stopping; sleep 1000; exit 1; }; rm -f up`}
	c.mustStart(spec)
	pid := c.number("pid")
	c.touch("hang")
	stopped := make(chan error, 1)
	go func() { stopped <- c.stopCopy("copy-web") }()
	c.eventually(patience, "its stop runs", func() bool { return c.there("stopping") })
	if !alive(pid) {
		t.Fatal("the copy has ended before its stop has")
	}
	deadline := clock.Now().Add(700 * time.Millisecond)
	if err := c.client.Extend(c.ctx(), cluster.RoleDeadline{Owner: cluster.OwnerNode, Epoch: cluster.NodeEpoch, Deadline: deadline}); err != nil {
		t.Fatal(err)
	}
	c.goneAt(deadline, pid)
	if err := <-stopped; err == nil {
		t.Error("a stop that was cut off is said to have succeeded")
	}
	c.eventually(patience, "it is taken down", func() bool { return !c.there("up") && len(c.state().Services) == 0 && len(c.state().Faults) == 0 })
}

// A stop that hangs at the end of the node's right holds up only its own copy, which is
// dead by then: the right begins anew, other copies start, and whoever asks whether the
// earlier one has ended waits. That copy is shown as left, and not started beside its
// own stop.
func TestAStopThatHangsHoldsUpNoRight(t *testing.T) {
	c, _ := newCopies(t, 10*time.Minute)
	slow := c.slow("copy-slow")
	c.mustStart(slow)
	pid := c.number("pid")
	c.touch("hang")
	events, unsubscribe := c.client.Subscribe()
	defer unsubscribe()
	ended := make(chan error, 1)
	waits, stopWaiting := context.WithTimeout(context.Background(), 10*patience)
	defer stopWaiting()
	go func() { ended <- c.client.End(waits, cluster.OwnerNode, cluster.NodeEpoch) }()
	c.eventually(patience, "what ran is dead, and its stop runs", func() bool { return !alive(pid) && c.there("stopping") })
	c.eventually(patience, "the node's right begins anew", func() bool {
		d := cluster.RoleDeadline{Owner: cluster.OwnerNode, Epoch: cluster.NodeEpoch, Deadline: clock.Now().Add(10 * time.Minute)}
		return c.client.Begin(c.ctx(), d) == nil
	})
	c.mustStart(cluster.ServiceSpec{Name: "copy-own", Kind: cluster.ServiceHook, Command: []string{"sleep", "1000"}})
	if s, held := c.held("copy-slow"); !held || s.Running || !s.Left || !s.Ending || s.Owner != cluster.OwnerNode {
		t.Errorf("what is left is shown as %+v", s)
	}
	if faults := strings.Join(c.state().Faults, " "); !strings.Contains(faults, "copy-slow") || strings.Contains(faults, "end of") {
		t.Errorf("faults: %s", faults)
	}
	if err := c.startCopy(slow); !errors.Is(err, cluster.ErrRefused) || !strings.Contains(err.Error(), "copy-slow") {
		t.Errorf("a start beside its own stop: %v, want ErrRefused", err)
	}
	select {
	case err := <-ended:
		t.Fatalf("the earlier right is said to have ended: %v", err)
	default:
	}
	if n := len(proc.Services(c.cfg.SlicePath)); n != 2 {
		t.Errorf("%d groups, want that of the other copy and that of one stop", n)
	}
	c.remove("hang")
	if err := <-ended; err != nil {
		t.Errorf("once its stop has ended: %v", err)
	}
	for told := false; !told; {
		select {
		case e := <-events:
			told = e.Kind == "ended" && e.Owner == cluster.OwnerNode
		case <-waits.Done():
			t.Fatal("it is not told that all of it has ended")
		}
	}
	c.eventually(patience, "nothing is told any more", func() bool { return len(c.state().Faults) == 0 })
	c.mustStart(slow)
	if s, held := c.held("copy-slow"); !held || !s.Running || s.Ending || c.number("pid") == pid {
		t.Errorf("started anew: %+v", s)
	}
	if s, held := c.held("copy-own"); !held || !s.Running {
		t.Errorf("the other copy: %+v", s)
	}
}

// A guard that dies then leaves it to the next one, which takes nothing else down.
func TestWhatWasLeftBehindIsTheNextGuards(t *testing.T) {
	c, _ := newCopies(t, 10*time.Minute)
	c.mustStart(c.address("copy-ip"))
	c.touch("stuck")
	now, cancel := context.WithTimeout(context.Background(), grace)
	_ = c.client.End(now, cluster.OwnerNode, cluster.NodeEpoch)
	cancel()
	c.eventually(patience, "the node's right begins anew", func() bool {
		d := cluster.RoleDeadline{Owner: cluster.OwnerNode, Epoch: cluster.NodeEpoch, Deadline: clock.Now().Add(10 * time.Minute)}
		return c.client.Begin(c.ctx(), d) == nil
	})
	c.mustStart(cluster.ServiceSpec{Name: "copy-own", Kind: cluster.ServiceHook, Command: []string{"sleep", "1000"}})
	c.kill()
	c.start()
	if s, held := c.held("copy-own"); !held || !s.Running {
		t.Errorf("the copy of the new right: %+v", s)
	}
	if s, held := c.held("copy-ip"); !held || !s.Left || !s.Ending {
		t.Errorf("what was left behind: %+v", s)
	}
	c.remove("stuck")
	c.eventually(patience, "it is taken down", func() bool { _, held := c.held("copy-ip"); return !held && !c.there("up") })
}
