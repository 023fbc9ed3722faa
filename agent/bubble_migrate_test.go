package agent_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
	"pvc.internal/zkhandler/zktest"
)

const schemaPath = "/agent/schema"

func factsPath(n cluster.NodeID) string { return "/agent/facts/" + string(n) }

// oldCluster is a bubble whose programs all are of the first schema.
func oldCluster() bubbleOptions {
	o := nodesCalled("hv1", "hv2", "hv3")
	o.newest = cluster.FirstSchema
	return o
}

// upgrade stops the node's daemon in order and starts the newest program, or the
// one that is held back to the schema.
func (b *bubble) upgrade(n cluster.NodeID, newest int) {
	b.t.Helper()
	b.nodes[n].stop()
	<-b.nodes[n].done
	b.newest[n] = newest
	b.start(n)
	b.eventually(10*time.Second, string(n)+" runs again", func() bool { return b.read("/nodes/"+string(n)+"/daemonstate") == "run" })
}

// migrated is how often the history says that the schema was raised.
func (b *bubble) migrated() (times int) {
	for _, h := range b.store.History() {
		var e cluster.Event
		if strings.HasPrefix(h.Path, "/agent/history/") && h.Op == "create" && json.Unmarshal(h.Data, &e) == nil && e.Kind == cluster.EventMigrated {
			times++
		}
	}
	return times
}

// factsOf are the node's published facts; ok is false while there are none of
// its present start.
func (b *bubble) factsOf(n cluster.NodeID) (cluster.Facts, bool) {
	f, ok, err := cluster.DecodeFacts(b.read(factsPath(n)))
	var alive cluster.Alive
	_ = json.Unmarshal([]byte(b.read("/agent/alive/"+string(n))), &alive)
	return f, ok && err == nil && f.Incarnation == alive.Incarnation
}

// atNewest waits until the tree has the newest schema, once told of, and every
// node of the names publishes its facts.
func (b *bubble) atNewest(limit time.Duration, names ...cluster.NodeID) {
	b.t.Helper()
	b.eventually(limit, "the tree has schema 2 and the nodes' facts", func() bool {
		for _, n := range names {
			f, ok := b.factsOf(n)
			if !ok || f.Leaves["activeschema"] != "2" || b.read("/nodes/"+string(n)+"/activeschema") != "2" {
				return false
			}
		}
		return b.read(schemaPath) == "2"
	})
	if n := b.migrated(); n != 1 {
		b.t.Errorf("the history tells %d times that the schema was raised, want once", n)
	}
	b.schemaOnlyGrows()
}

// schemaOnlyGrows checks every write that the tree's schema has seen.
func (b *bubble) schemaOnlyGrows() {
	b.t.Helper()
	last := ""
	for _, h := range b.store.History() {
		if h.Path != schemaPath || h.Op != "set" {
			continue
		}
		if string(h.Data) <= last {
			b.t.Errorf("the schema was written %q after %q", h.Data, last)
		}
		last = string(h.Data)
	}
}

// crowd plants nodes of the newest program that have stopped in order, so that the
// migration takes several batches.
func (b *bubble) crowd(many int) {
	for i := range many {
		n := fmt.Sprintf("/nodes/old%03d", i)
		b.store.Set(n, []byte("hypervisor"))
		b.store.Set(n+"/daemonstate", []byte("stop"))
		b.store.Set(fmt.Sprintf("/agent/nodes/old%03d", i), []byte(`{"v":1,"id":"x","incarnation":"x.1","latest_schema":2}`))
	}
}

// One node after the other gets the newer program: until the last one has it all
// write the old form, and one that is taken back goes on. Then the tree is raised
// once, nothing of the role moves, and an older program is refused.
func TestTheSchemaWaitsForTheLastOldProgram(t *testing.T) {
	inBubble(t, oldCluster(), func(b *bubble) {
		b.elect("hv1")
		old := func(n cluster.NodeID, latest string) func() bool {
			return func() bool {
				return b.read(schemaPath) == "1" && b.read("/nodes/"+string(n)+"/activeschema") == "1" && b.read("/nodes/"+string(n)+"/latestschema") == latest &&
					b.store.Children("/agent/facts") == nil && b.read(factsPath(n)) == ""
			}
		}
		b.eventually(5*time.Second, "the old form is told of", old("hv1", "1"))
		for _, n := range []cluster.NodeID{"hv3", "hv2"} {
			b.upgrade(n, 2)
			b.eventually(5*time.Second, string(n)+" tells what it could write", old(n, "2"))
		}
		b.upgrade("hv3", 1) // taken back: whatever stands in a leaf of the newer one, its own start counts
		b.store.Set("/nodes/hv3/latestschema", []byte("2"))
		b.upgrade("hv1", 2)
		b.settles(20 * time.Second)
		b.always(10*time.Second, "while hv3 runs the old program the schema stays", func() bool { return b.read(schemaPath) == "1" && b.migrated() == 0 })
		b.upgrade("hv3", 2)
		p := b.settles(20 * time.Second)
		epoch := b.lease().Epoch
		b.atNewest(20*time.Second, "hv1", "hv2", "hv3")
		if l := b.lease(); l.Holder != p || l.Epoch != epoch {
			b.t.Errorf("the role went from %s (epoch %d) to %s (%d) with the migration", p, epoch, l.Holder, l.Epoch)
		}
		b.eventually(time.Second, "the lock is given back", func() bool { return b.converged() == p })

		b.nodes["hv2"].stop()
		<-b.nodes["hv2"].done
		b.newest["hv2"] = 1
		refused := b.start("hv2")
		<-refused.done
		if !errors.Is(refused.err, cluster.ErrSchemaNewer) || !strings.Contains(refused.err.Error(), "pvc cluster restore") {
			b.t.Errorf("the old program ended with %v, want %v and the remedy", refused.err, cluster.ErrSchemaNewer)
		}
	})
}

func (b *bubble) lease() (l cluster.Lease) {
	_ = json.Unmarshal([]byte(b.read(leasePath)), &l)
	return l
}

// checks are the versions that a Multi checks, by path.
func checks(o zktest.OpInfo) map[string]int32 {
	found := map[string]int32{}
	for _, op := range o.Ops {
		if op.Op == "check" || op.Op == "set" {
			found[op.Path] = op.Version
		}
	}
	return found
}

// Each batch rests on the lease, the lock's child and the schema as they were
// read, the last one on every node's record, and each registration on the schema:
// of two that meet only one is carried out.
func TestEveryBatchRestsOnWhatItWasJudgedBy(t *testing.T) {
	inBubble(t, oldCluster(), func(b *bubble) {
		b.ripe(crowdSize)
		batches, registrations := 0, 0
		b.store.DropReply("", func(o zktest.OpInfo) bool {
			if o.Op != "multi" {
				return false
			}
			on := checks(o)
			if v, there := on[schemaPath]; o.Touches("/agent/alive/hv1") && (!there || v < 0) {
				t.Errorf("a registration does not rest on the schema: %+v", on)
			} else if there && o.Touches("/agent/alive/hv1") {
				registrations++
			}
			set := slices.ContainsFunc(o.Ops, func(op zktest.OpInfo) bool { return op.Op == "set" && op.Path == schemaPath })
			if !set && !o.Touches("/agent/facts") && !o.TouchesBelow("/agent/facts/old") {
				return false
			}
			batches++
			locked := slices.ContainsFunc(o.Ops, func(op zktest.OpInfo) bool {
				return op.Op == "check" && strings.HasPrefix(op.Path, wishPath+"/") && op.Version == 0
			})
			for _, path := range []string{leasePath, schemaPath} {
				if v, there := on[path]; !there || v < 0 {
					t.Errorf("batch %d does not rest on %s: %+v", batches, path, on)
				}
			}
			if _, records := on["/agent/nodes/hv3"]; !locked || set && !records {
				t.Errorf("batch %d: the lock checked %v, the nodes' records %v", batches, locked, records)
			}
			return false
		})
		began := time.Now()
		b.start("hv1")
		b.atNewest(60*time.Second, "hv1", "hv2", "hv3")
		if batches < 7 || registrations == 0 {
			b.t.Errorf("%d batches and %d registrations were seen", batches, registrations)
		}
		if held := b.longestLock(began); held > 400*time.Millisecond {
			b.t.Errorf("the role's lock was held for %v", held)
		}
	})
}

// longestLock is for how long a child of the role's lock stood at most, of those
// that were made since.
func (b *bubble) longestLock(since time.Time) (longest time.Duration) {
	made := map[string]time.Time{}
	for _, h := range b.store.History() {
		if !strings.HasPrefix(h.Path, wishPath+"/") || h.At.Before(since) {
			continue
		}
		switch h.Op {
		case "create":
			made[h.Path] = h.At
		case "delete":
			if at, known := made[h.Path]; known {
				longest = max(longest, h.At.Sub(at))
			}
			delete(made, h.Path)
		}
	}
	for path, at := range made {
		if strings.Contains(path, "__lock__") {
			longest = max(longest, time.Since(at))
		}
	}
	return longest
}

// A program that runs when the schema is raised beyond it, as a hand or a restore
// can, goes on for as long as its session lasts, and ends with it.
func TestAnOutgrownProgramDoesNotRegisterAgain(t *testing.T) {
	inBubble(t, oldCluster(), func(b *bubble) {
		b.elect("hv1")
		b.store.Set(schemaPath, []byte("2"))
		b.always(10*time.Second, "nobody ends for that", func() bool { return b.converged() == "hv1" })
		b.store.Expire("hv3")
		b.eventually(20*time.Second, "hv3 ends", func() bool { return b.nodes["hv3"].ended() })
		if err := b.nodes["hv3"].err; !errors.Is(err, cluster.ErrSchemaNewer) {
			b.t.Errorf("it ended with %v, want %v", err, cluster.ErrSchemaNewer)
		}
	})
}

// Who stands against the next schema: a node that may run an older program, or
// that was only given up for lost; not one that stopped in order.
func TestAStoppedNodeDoesNotHoldTheSchemaBackALostOneDoes(t *testing.T) {
	inBubble(t, oldCluster(), func(b *bubble) {
		b.elect("hv1")
		b.powerOff("hv3") // nobody fences here: it is lost, and nothing is proven
		for _, n := range []cluster.NodeID{"hv2", "hv1"} {
			b.upgrade(n, 2)
		}
		b.always(15*time.Second, "a lost node's old program may come back", func() bool { return b.read(schemaPath) == "1" })
		b.start("hv3")
		b.eventually(15*time.Second, "hv3 runs again", func() bool {
			return b.read("/agent/alive/hv3") != "" && b.read("/nodes/hv3/daemonstate") == "run"
		})
		b.nodes["hv3"].stop()
		<-b.nodes["hv3"].done
		b.always(4*time.Minute, "a node that has just stopped may be started again", func() bool { return b.read(schemaPath) == "1" })
		b.atNewest(2*time.Minute, "hv1", "hv2")
	})
}

// ripe brings a cluster with many stopped nodes to where the next look of the
// primary begins the migration, and returns the primary.
func (b *bubble) ripe(many int) cluster.NodeID {
	b.t.Helper()
	b.elect("hv1")
	b.crowd(many)
	for _, n := range []cluster.NodeID{"hv2", "hv3"} {
		b.upgrade(n, 2)
	}
	b.nodes["hv1"].stop()
	<-b.nodes["hv1"].done
	b.newest["hv1"] = 2
	return "hv1"
}

// midway waits until some, but not all, of the records are made.
func (b *bubble) midway(many int) {
	b.t.Helper()
	b.eventually(20*time.Second, "the first records are made", func() bool { return len(b.store.Children("/agent/facts")) > 0 })
	if n := len(b.store.Children("/agent/facts")); n > many || b.read(schemaPath) != "1" {
		b.t.Fatalf("%d records are made at once, and the schema is %s: nothing to interrupt", n, b.read(schemaPath))
	}
}

const crowdSize = 120

// The migrator dies in the middle: the next primary goes on from where it stood.
func TestAMigrationIsCarriedOnByTheNextPrimary(t *testing.T) {
	inBubble(t, oldCluster(), func(b *bubble) {
		b.ripe(crowdSize)
		b.start("hv1")
		b.midway(crowdSize)
		dead := b.seen.holder()
		b.kill(dead)
		b.eventually(15*time.Second, "another primary", func() bool { p := b.primary(); return p != "" && p != dead })
		b.start(dead)
		b.atNewest(40*time.Second, "hv1", "hv2", "hv3")
		if n := len(b.store.Children("/agent/facts")); n != crowdSize+3 {
			b.t.Errorf("%d records of facts, want %d", n, crowdSize+3)
		}
	})
}

// The session is lost between two batches, a reply with each kind of batch, and a
// batch is committed late: it is done once all the same, and the role stays.
func TestAMigrationBearsLostRepliesAndSessions(t *testing.T) {
	last := zktest.Does("multi", schemaPath)
	first := func(o zktest.OpInfo) bool { return o.Op == "multi" && o.TouchesBelow("/agent/facts/old") }
	final := func(o zktest.OpInfo) bool {
		return last(o) && slices.ContainsFunc(o.Ops, func(op zktest.OpInfo) bool { return op.Path == schemaPath && op.Op == "set" })
	}
	for name, plant := range map[string]func(b *bubble, p string) *zktest.Rule{
		"reply of a batch lost":      func(b *bubble, p string) *zktest.Rule { return b.store.DropReply(p, first) },
		"reply of the last lost":     func(b *bubble, p string) *zktest.Rule { return b.store.DropReply(p, final) },
		"the last lost on its way":   func(b *bubble, p string) *zktest.Rule { return b.store.DropRequest(p, final) },
		"the last committed late":    func(b *bubble, p string) *zktest.Rule { return b.store.LateCommit(p, final, 3*time.Second) },
		"a batch committed late":     func(b *bubble, p string) *zktest.Rule { return b.store.LateCommit(p, first, 3*time.Second) },
		"the session lost meanwhile": nil,
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, oldCluster(), func(b *bubble) {
				b.ripe(crowdSize)
				var rules []*zktest.Rule
				if plant != nil {
					for _, p := range []string{"hv1", "hv2", "hv3"} {
						rules = append(rules, plant(b, p))
					}
				}
				b.start("hv1")
				b.midway(crowdSize)
				if plant == nil {
					b.store.Expire(string(b.seen.holder()))
				}
				b.atNewest(60*time.Second, "hv1", "hv2", "hv3")
				hits := 0
				for _, r := range rules {
					hits += r.Hits()
				}
				if plant != nil && hits == 0 {
					b.t.Error("the loss was never met")
				}
			})
		})
	}
}

// A migrator that was cut off with its last batch on the way: somebody else is
// primary and has migrated by the time that it could arrive, or it arrived and
// nobody migrates again.
func TestADeposedMigratorDoesNothingMore(t *testing.T) {
	for name, late := range map[string]time.Duration{"before the other": 500 * time.Millisecond, "after the other": 5 * time.Second} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, oldCluster(), func(b *bubble) {
				b.ripe(crowdSize)
				for _, p := range []string{"hv1", "hv2", "hv3"} {
					b.store.LateCommit(p, func(o zktest.OpInfo) bool { return o.Op == "multi" && o.TouchesBelow("/agent/facts/old05") }, late)
				}
				b.start("hv1")
				b.midway(crowdSize)
				p := b.seen.holder()
				b.store.Partition(string(p))
				b.eventually(15*time.Second, "another primary", func() bool { h := b.seen.holder(); return h != "" && h != p })
				b.heal(p)
				b.atNewest(60*time.Second, "hv1", "hv2", "hv3")
			})
		})
	}
}

// A switch in the middle of a migration is as quick as any, and the new primary
// goes on.
func TestASwitchDoesNotWaitForAMigration(t *testing.T) {
	inBubble(t, oldCluster(), func(b *bubble) {
		b.ripe(3 * crowdSize)
		b.start("hv1")
		b.midway(3 * crowdSize)
		to := cluster.NodeID("hv2")
		if b.seen.holder() == to {
			to = "hv3"
		}
		b.wish(string(to))
		b.eventually(3*time.Second, "the role is at "+string(to), func() bool { return b.primary() == to })
		if b.read(schemaPath) != "1" {
			b.t.Error("the migration was over before the switch: nothing is shown")
		}
		b.atNewest(60*time.Second, "hv1", "hv2", "hv3")
	})
}

// A node that is removed while the tree is migrated leaves no record of facts
// behind, and one that comes later gets its own.
func TestFactsComeAndGoWithTheirNode(t *testing.T) {
	inBubble(t, nodesCalled("hv1", "hv2", "hv3"), func(b *bubble) {
		b.elect("hv1")
		b.eventually(10*time.Second, "all tell their facts", func() bool {
			for _, n := range []cluster.NodeID{"hv1", "hv2", "hv3"} {
				if _, ok := b.factsOf(n); !ok {
					return false
				}
			}
			return true
		})
		b.store.Set("/nodes/hv2/vcpualloc", []byte("7")) // by somebody else: no collector of ours has it
		b.eventually(65*time.Second, "what another wrote stands in the facts", func() bool {
			f, _ := b.factsOf("hv2")
			return f.Leaves["vcpualloc"] == "7"
		})
		b.store.Delete(factsPath("hv3"))
		b.eventually(70*time.Second, "a record that was deleted is made again", func() bool { _, ok := b.factsOf("hv3"); return ok })
	})
}
