package activity

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"pvc.internal/agent/subtask"
	"pvc.internal/cluster"
	"pvc.internal/proc"
)

// TestALostLeaseKillsRealChildren has an activity whose programs ignore SIGTERM,
// fork twice and begin sessions of their own: none of them is in /proc any more
// when the loss has settled.
func TestALostLeaseKillsRealChildren(t *testing.T) {
	const script = `trap '' TERM; echo $$ >>$F
		(setsid sh -c 'trap "" TERM; echo $$ >>$F; while :; do sleep 1; done' &)
		while :; do sleep 1; done`
	m := New(Config{Self: "a", Ladder: subtask.Ladder{Grace: 50 * time.Millisecond, Kill: time.Minute}})
	m.Update(Holdings{Leader: true, Lease: leaseA, Held: five, Set: five})
	file := filepath.Join(t.TempDir(), "pids")
	pids, ended := make(chan []int, 1), make(chan error, 1)
	go func() {
		ended <- m.Run(t.Context(), ordinary(cluster.Majority()), func(ctx context.Context, a *Activity) error {
			err := a.Start("resists", func() (subtask.Child, error) {
				p, err := proc.StartBound(proc.Command{Argv: []string{"/bin/sh", "-c", script}, Env: map[string]string{"F": file}})
				if err == nil {
					t.Cleanup(func() { _ = p.Stop(context.Background(), 0) })
				}
				return p, err
			})
			if err == nil {
				pids <- await(ctx, file, 2)
			}
			<-ctx.Done()
			return err
		})
	}()
	var all []int
	select {
	case all = <-pids:
	case err := <-ended:
		t.Fatal(err)
	}
	m.Update(Holdings{Leader: true, Lease: leaseA, Held: five[:2], Set: five})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := m.Settled(ctx); err != nil {
		t.Fatal(err)
	}
	for _, pid := range all {
		if lives(pid) {
			t.Errorf("process %d runs although the loss has settled", pid)
		}
	}
	if err := <-ended; len(all) != 2 || cluster.EndCode(err) != "quorum_lost" || m.Counts().Killed != 1 {
		t.Errorf("%v; of %v %d were killed", err, all, m.Counts().Killed)
	}
	if err := m.Close(ctx); err != nil {
		t.Error(err)
	}
}

// await reads the pids that the programs wrote down, a line each.
func await(ctx context.Context, file string, n int) []int {
	for ; ctx.Err() == nil; <-time.After(2 * time.Millisecond) {
		raw, _ := os.ReadFile(file)
		var pids []int
		for line := range strings.Lines(string(raw)) {
			if pid, err := strconv.Atoi(strings.TrimSuffix(line, "\n")); err == nil && strings.HasSuffix(line, "\n") {
				pids = append(pids, pid)
			}
		}
		if len(pids) >= n {
			return pids
		}
	}
	return nil
}

// lives reads in /proc whether a process runs; one that is not yet reaped does not.
func lives(pid int) bool {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	_, after, _ := strings.Cut(string(raw), ") ")
	return !strings.HasPrefix(after, "Z") && !strings.HasPrefix(after, "X")
}
