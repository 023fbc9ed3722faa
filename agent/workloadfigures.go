package agent

import (
	"errors"
	"sync"
	"time"

	"pvc.internal/cluster"
)

var knownWorkloadStates = []cluster.WorkloadState{cluster.WorkloadNew, cluster.WorkloadStarting, cluster.WorkloadRunning, cluster.WorkloadMoving,
	cluster.WorkloadRecovering, cluster.WorkloadStopped, cluster.WorkloadFailed, cluster.WorkloadUnsafe, cluster.WorkloadFaulty}

// passCounts counts passes and what they do.
type passCounts struct {
	mu      sync.Mutex
	ends    map[string]uint64
	applies map[string]uint64
	took    time.Duration
	last    instant
}

// ended counts one pass.
func (c *passCounts) ended(err error, now cluster.Instant, took time.Duration) {
	var no *cluster.RefusedActivity
	end := "failed"
	switch {
	case err == nil:
		end = "done"
		c.last.set(now)
	case errors.As(err, &no):
		end = "refused"
	case interrupted(err):
		end = "interrupted"
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ends == nil {
		c.ends = map[string]uint64{}
	}
	c.ends[end]++
	c.took = took
}

// applied counts one apply.
func (c *passCounts) applied(err error) {
	end := "done"
	if err != nil {
		if end = "failed"; interrupted(err) {
			end = "interrupted"
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.applies == nil {
		c.applies = map[string]uint64{}
	}
	c.applies[end]++
}
