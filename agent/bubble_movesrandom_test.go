package agent_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// upheaval does random things to a cluster that moves workloads about.
type upheaval struct {
	b    *bubble
	w    *copyWorld
	rng  *rand.Rand
	ids  int
	said []string
}

func (u *upheaval) say(format string, args ...any) {
	u.said = append(u.said, time.Now().Format("04:05.000 ")+fmt.Sprintf(format, args...))
}

// trouble is one thing that happens; what it breaks it heals.
func (u *upheaval) trouble() {
	b, w := u.b, u.w
	n := leaseTrio[u.rng.IntN(3)]
	span := time.Duration(u.rng.Int64N(int64(3*time.Second))) + 20*time.Millisecond
	name := []string{"vm0", "vm1", "vm2", "vm3", "cache"}[u.rng.IntN(5)]
	u.ids++
	id := fmt.Sprintf("o%d", u.ids)
	switch u.rng.IntN(15) {
	case 0, 1:
		u.say("move %s to %s", name, n)
		b.order(name, id, cluster.WorkloadMove, n)
	case 2:
		u.say("promote %s on %s", name, n)
		b.order(name, id, cluster.WorkloadPromote, n)
	case 3:
		u.say("flush %s for %v", n, 3*span)
		b.domain(n, cluster.DomainFlush)
		time.Sleep(3 * span)
		b.domain(n, cluster.DomainReady)
	case 4:
		u.say("wish %s", n)
		b.wish(string(n))
	case 5:
		u.say("%s is killed, and back after %v", n, span)
		b.kill(n)
		time.Sleep(span)
		b.start(n)
	case 6:
		u.say("starts and promotions on %s fail for %v", n, span)
		w.set(func() {
			w.fail["start "+string(n)], w.fail["promote "+string(n)] = fmt.Errorf("it fails"), fmt.Errorf("it fails")
		})
		time.Sleep(span)
		w.set(func() { delete(w.fail, "start "+string(n)); delete(w.fail, "promote "+string(n)) })
	case 7:
		other := leaseTrio[(slices.Index(leaseTrio, n)+1)%3]
		u.say("what %s says to %s is lost for %v", n, other, span)
		b.talk.net.Cut(string(n), string(other))
		time.Sleep(span)
		b.talk.net.Heal()
	case 8:
		u.say("orders take %v", span)
		w.set(func() { w.slow = span })
	case 9:
		u.say("rebalance %s", id)
		b.setRebalance(cluster.Rebalance{ID: id, State: cluster.RebalanceOrdered})
	case 10:
		if name == "cache" {
			return
		}
		u.say("the copy of %s on %s ends", name, n)
		w.set(func() { delete(w.host(n).copies, name) })
	case 12, 13:
		if w.state(n, "cache") != cluster.CopyMissing {
			return // two such losses would lose its keys, as they must
		}
		u.say("%s dies, is proven dead, and is back after %v", n, 4*span)
		b.nodeDies(w, n, "migrate")
		time.Sleep(4 * span)
		b.start(n)
	case 14:
		ops := []cluster.CopyOp{cluster.CopyStart, cluster.CopyStop, cluster.CopyPromote, cluster.CopyDemote, cluster.CopyFollow, cluster.CopyMigrateTo, cluster.CopyMigrateFrom}
		op := ops[u.rng.IntN(len(ops))]
		u.say("each %s of %s on %s hangs from now on", op, name, n)
		w.set(func() { w.hangs = fmt.Sprintf("%s %s %s", op, n, name) })
	case 11:
		u.say("%s is cut off from the store for %v", n, span)
		b.store.Partition(string(n))
		time.Sleep(span)
		b.heal(n)
	}
}

// Orders, drains, switches, failures and lost messages, in any order: nothing runs
// twice, nobody serves without what was acknowledged, and once it is calm everything
// runs where its record says.
//
// PVC_MOVES_SEEDS=n tries n seeds, from PVC_MOVES_SEED on.
func TestNothingRunsTwiceInAnyUpheaval(t *testing.T) {
	seeds, from := 3, uint64(0)
	if n, err := strconv.Atoi(os.Getenv("PVC_MOVES_SEEDS")); err == nil {
		seeds = n
		from, _ = strconv.ParseUint(os.Getenv("PVC_MOVES_SEED"), 10, 64)
	}
	for i := range uint64(seeds) {
		seed := from + i
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
				u := &upheaval{b: b, w: w, rng: rand.New(rand.NewPCG(seed, 7))}
				defer func() {
					if t.Failed() {
						for _, s := range u.said {
							t.Log(s)
						}
					}
				}()
				for i := range 4 {
					b.movable(fmt.Sprintf("vm%d", i), func(w *cluster.Workload) { w.Live = i%2 == 0 })
				}
				b.cache(w)
				for range 20 {
					time.Sleep(time.Duration(u.rng.Int64N(int64(4 * time.Second))))
					u.trouble()
				}
				u.say("calm")
				w.set(func() { w.slow, w.hangs = 0, "" })
				for i := range 4 {
					b.order(fmt.Sprintf("vm%d", i), "last", cluster.WorkloadStart, "") // what has failed is started again
				}
				b.eventually(5*time.Minute, "all runs once, as the records say", func() bool {
					for i := range 4 {
						r := b.workload(fmt.Sprintf("vm%d", i))
						if r.Next != nil || r.State != cluster.WorkloadRunning || !slices.Equal(w.active(r.Name), []cluster.NodeID{r.Head()}) {
							return false
						}
					}
					c := b.workload("cache")
					return c.Next == nil && c.State == cluster.WorkloadRunning && slices.Equal(w.active("cache"), []cluster.NodeID{c.Head()})
				})
			})
		})
	}
}
