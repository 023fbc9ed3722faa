package guard

import (
	"testing"
	"time"

	"pvc.internal/cluster"
)

// What a guard takes over ends at its deadline also while that guard still takes down
// what was past its own: a stop that takes long holds up nothing else (I3).
func TestWhatWasTakenOverEndsWhileLeftoversAreTakenDown(t *testing.T) {
	c, _ := newCopies(t, time.Minute)
	c.mustStart(cluster.ServiceSpec{Name: "copy-own", Kind: cluster.ServiceHook, Command: []string{"sleep", "1000"}})
	pid := c.hook("copy-own").PID
	c.begin(1, 30*time.Second)
	slow := c.address("slow")
	slow.Stop = []string{"/bin/sh", "-c", "sleep 6; echo >$DIR/stopped; rm -f $DIR/up"}
	if err := c.client.StartService(c.ctx(), cluster.OwnerPrimary, 1, slow); err != nil {
		t.Fatal(err)
	}
	over := clock.Now().Add(time.Second)
	for owner, d := range map[cluster.DeadlineOwner]cluster.RoleDeadline{
		cluster.OwnerPrimary: {Owner: cluster.OwnerPrimary, Epoch: 1, Deadline: over},
		cluster.OwnerNode:    {Owner: cluster.OwnerNode, Epoch: cluster.NodeEpoch, Deadline: over.Add(3 * time.Second)},
	} {
		if err := c.client.Extend(c.ctx(), d); err != nil {
			t.Fatalf("extend %s: %v", owner, err)
		}
	}
	c.kill()
	c.eventually(patience, "the role's deadline passes", func() bool { return clock.Now() > over })
	ended := make(chan bool, 1)
	go func() { // whether it has ended before the stop of what was left
		for end := time.Now().Add(patience); alive(pid) && time.Now().Before(end); {
			time.Sleep(5 * time.Millisecond)
		}
		ended <- !c.there("stopped")
	}()
	c.start()
	if !<-ended {
		t.Error("a copy outlived its deadline until what was left had been taken down")
	}
}
