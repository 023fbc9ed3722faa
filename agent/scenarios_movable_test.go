package agent_test

import (
	"fmt"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// A program that ends at once wherever it is started, after each start was taken for
// one that has worked: it is given up after five, and does not go from node to node
// for ever.
func TestWhatEndsAtOnceEverywhereIsGivenUp(t *testing.T) {
	for _, lives := range []time.Duration{20 * time.Millisecond, 300 * time.Millisecond} {
		t.Run(fmt.Sprint(lives), func(t *testing.T) {
			inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
				stop, ended := make(chan struct{}), make(chan struct{})
				go func() {
					defer close(ended)
					for {
						select {
						case <-stop:
							return
						case <-time.After(lives):
						}
						for _, n := range w.active("job") {
							w.set(func() { w.host(n).copies["job"] = &worldCopy{state: cluster.CopyDead, start: 1} })
						}
					}
				}()
				b.movable("job")
				moves := func() int { return len(b.told(cluster.EventWorkload)) }
				b.eventually(3*time.Minute, "it is failed", func() bool { return b.workload("job").State == cluster.WorkloadFailed })
				if n := moves(); n > 6 {
					t.Errorf("the history tells %d times of it", n)
				}
				close(stop)
				<-ended
			})
		})
	}
}
