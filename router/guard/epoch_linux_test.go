package guard

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// A pre-flight for an epoch that this host's guard would refuse says so, before
// anything has been taken down elsewhere (I2).
func TestAPreflightForALowerEpochSaysSo(t *testing.T) {
	b := newBed(t, true)
	b.begin(5, 300*time.Millisecond)
	b.eventually(2*time.Second, "the role is over", func() bool { return len(b.state().Deadlines) == 0 })
	ask := func(e cluster.Epoch) []string {
		res, err := b.client.Preflight(b.ctx(), cluster.PreflightRequest{Addresses: all, Epoch: e})
		if err != nil {
			t.Fatal(err)
		}
		return res.Problems
	}
	b.eventually(2*time.Second, "the end is verified", func() bool { ask(6); return b.state().MaxEpoch == 6 }) // a contention that came to nothing
	ask(7)                                                                                                     // and one more, after the agent has read MaxEpoch 6
	if problems := ask(6); len(problems) == 0 {
		d := cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: 6, Deadline: clock.Now().Add(time.Second)}
		begin, end := b.client.Begin(b.ctx(), d), b.client.End(b.ctx(), cluster.OwnerPrimary, 6)
		t.Errorf("the pre-flight for epoch 6 finds no problem; Begin says %v, End says %v (stale: %v, on which the agent sweeps the guard)",
			begin, end, errors.Is(end, cluster.ErrStaleEpoch))
	}
}

// Beside a role that lives the next epoch is written down, and the role goes on: who
// resumes it waits for no disk then (I2, I9).
func TestTheNextEpochIsOnDiskBeforeTheRoleIsResumed(t *testing.T) {
	b := newBed(t, true)
	b.kill()
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	b.cfg.StateFile = filepath.Join(dir, "guard.json")
	b.start()
	b.begin(7, time.Minute, all...)
	res, err := b.client.Preflight(b.ctx(), cluster.PreflightRequest{Epoch: 8})
	if err != nil || len(res.Problems) > 0 {
		t.Fatalf("pre-flight beside a living role: %q %v", res.Problems, err)
	}
	b.mustExtend(7, time.Minute)
	if s := b.state(); s.MaxEpoch != 7 || len(s.Addresses) != 3 || len(s.GateOpen) != 3 {
		t.Errorf("the role after the next epoch was written down: %+v", s)
	}
	if err := os.Rename(dir, dir+".away"); err != nil { // a disk that takes nothing any more
		t.Fatal(err)
	}
	b.begin(8, time.Minute, all...)
	if s := b.state(); s.MaxEpoch != 8 || len(s.Addresses) != 3 || len(s.GateOpen) != 3 {
		t.Errorf("the role that was resumed: %+v", s)
	}
	next := cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: 9, Deadline: clock.Now().Add(time.Minute)}
	if err := b.client.Begin(b.ctx(), next); err == nil {
		t.Error("an epoch that is not on disk was served")
	}
}

// What was written ahead stays on disk when another line is raised, and is served
// without another write.
func TestAnEpochWrittenAheadIsNotTakenBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "guard.json")
	start := map[string]cluster.Epoch{"primary": 7}
	g := &Guard{cfg: Config{StateFile: path}, max: maps.Clone(start), written: maps.Clone(start)}
	if err := errors.Join(g.writeAhead("primary", 8), g.persistEpoch("other", 3), g.writeAhead("primary", 6)); err != nil {
		t.Fatal(err)
	}
	if got, err := readEpochs(path); err != nil || got["primary"] != 8 || got["other"] != 3 {
		t.Errorf("on disk: %v (%v), want primary 8 and other 3", got, err)
	}
	if g.max["primary"] != 7 {
		t.Errorf("epoch %d is served already, want 7", g.max["primary"])
	}
	if err := errors.Join(os.Remove(path), g.persistEpoch("primary", 8)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err == nil || g.max["primary"] != 8 {
		t.Errorf("epoch %d, want 8, and no other write of it (%v)", g.max["primary"], err)
	}
}
