package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"pvc.internal/agent/activity"
	"pvc.internal/agent/subtask"
	"pvc.internal/cluster"
	"pvc.internal/zkhandler"
	"pvc.internal/zkhandler/zktest"
)

const activityPaths = "/agent/activities/"

// activityBench is one node's activities over an in-memory ZooKeeper.
type activityBench struct {
	*activities
	t       *testing.T
	ctx     context.Context
	server  *zktest.Server
	store   *zkhandler.Handler
	primary bool
	stopRun func()
	wait    sync.WaitGroup
}

var benchLease = cluster.NodeLeaseID{Holder: "hv1", Start: "s1", Epoch: 5}

func withActivities(t *testing.T, run func(t *testing.T, b *activityBench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &activityBench{t: t, server: zktest.New(zktest.Options{})}
		defer b.server.Close()
		ctx, cancel := context.WithCancel(t.Context())
		defer b.wait.Wait()
		defer cancel()
		b.ctx = ctx
		clock := benchClock{time.Now()}
		var err error
		b.store, err = zkhandler.New(zkhandler.Config{Servers: b.server.Servers(), SessionTimeout: 6 * time.Second, WatchNodes: true, Dial: b.server.Dialer("hv1")}, clock, zap.NewNop(), nil)
		if err != nil {
			t.Fatal(err)
		}
		b.wait.Go(func() { _ = b.store.Run(ctx) })
		b.until("a session", func() bool { return b.store.State().Phase == zkhandler.Live })
		if err := b.store.Initialize(ctx, "test", false); err != nil {
			t.Fatal(err)
		}
		for _, n := range []cluster.NodeID{"hv1", "hv2"} {
			if err := b.store.EnsureNode(ctx, n, cluster.Coordinator); err != nil {
				t.Fatal(err)
			}
			b.server.Set("/agent/nodes/"+string(n), []byte(fmt.Sprintf(`{"v":1,"id":"%s","incarnation":"boot-%s.1"}`, n, n)))
		}
		b.server.Set("/agent/lease/primary", []byte(`{"v":1,"holder":"hv1","incarnation":"boot-hv1.1","epoch":5,"ttl_ms":2800}`))
		b.begin("boot-hv1.1")
		run(t, b)
		b.end()
	})
}

// begin starts the activities of one start of the daemon.
func (b *activityBench) begin(incarnation cluster.Incarnation) {
	b.server.Set("/agent/nodes/hv1", []byte(fmt.Sprintf(`{"v":1,"id":"hv1","incarnation":"%s"}`, incarnation)))
	snaps, unsubscribe := b.store.Subscribe()
	var mu sync.Mutex
	var latest *cluster.Snapshot
	c := Config{Node: "hv1", Incarnation: incarnation, Timing: cluster.ProfileLAN(), WallMS: func() int64 { return time.Now().UnixMilli() }}
	b.activities = newActivities(c, Deps{Clock: benchClock{time.Now()}, Log: zap.NewNop(), Store: b.store}, b.store, nil, func() (bool, *cluster.Snapshot) {
		mu.Lock()
		defer mu.Unlock()
		return b.primary, latest
	})
	ctx, stop := context.WithCancel(b.ctx)
	over := make(chan struct{})
	b.wait.Go(func() {
		for {
			select {
			case s := <-snaps:
				mu.Lock()
				latest = s
				mu.Unlock()
			case <-ctx.Done():
				return
			}
		}
	})
	b.wait.Go(func() { defer close(over); b.run(ctx) })
	b.stopRun = func() { stop(); unsubscribe(); <-over }
	b.lead("hv1")
}

// end ends the daemon in order.
func (b *activityBench) end() {
	ctx, cancel := context.WithTimeout(b.ctx, time.Minute)
	defer cancel()
	if err := b.Close(ctx); err != nil {
		b.t.Errorf("close: %v", err)
	}
	b.stopRun()
}

func (b *activityBench) lead(held ...cluster.NodeID) {
	b.manager.Update(activity.Holdings{Leader: true, Lease: benchLease, Held: held, Set: []cluster.NodeID{"hv1"}})
}

// until waits for a condition.
func (b *activityBench) until(what string, is func() bool) {
	b.t.Helper()
	for end := time.Now().Add(2 * time.Minute); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			b.t.Fatalf("%s: never", what)
		}
	}
}

// stays fails if the condition ever ceases to hold within the time.
func (b *activityBench) stays(what string, span time.Duration, is func() bool) {
	b.t.Helper()
	for end := time.Now().Add(span); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if !is() {
			b.t.Fatalf("%s: no more", what)
		}
	}
}

// running starts an activity whose body waits for its end, and then does the rest.
func (b *activityBench) running(s activity.Spec, bodies ...activity.Body) cluster.ActivityID {
	b.t.Helper()
	ids := make(chan cluster.ActivityID, 1)
	b.wait.Go(func() {
		_ = b.manager.Run(b.ctx, s, func(ctx context.Context, a *activity.Activity) error {
			ids <- a.ID()
			if len(bodies) > 0 {
				return bodies[0](ctx, a)
			}
			<-ctx.Done()
			return context.Cause(ctx)
		})
	})
	select {
	case id := <-ids:
		return id
	case <-time.After(time.Minute):
		b.t.Fatal("it never runs")
		return ""
	}
}

func drain() activity.Spec { return activity.Spec{Name: "drain", Quorum: cluster.Majority()} }

// record is what the store has; ok is false for none.
func (b *activityBench) record(id cluster.ActivityID) (r cluster.ActivityRecord, ok bool) {
	raw, there := b.server.Get(activityPaths + string(id))
	if there {
		if err := json.Unmarshal(raw, &r); err != nil {
			b.t.Fatal(err)
		}
	}
	return r, there
}

func (b *activityBench) state(id cluster.ActivityID) cluster.ActivityState {
	r, _ := b.record(id)
	return r.State
}

func (b *activityBench) records() []string { return b.server.Children("/agent/activities") }

// told are the history's entries about activities, "state" each or their kind.
func (b *activityBench) told(kinds ...string) []cluster.Event {
	b.t.Helper()
	events, err := b.store.ReadHistory(b.ctx, -1)
	if err != nil {
		return nil // not now
	}
	return slices.DeleteFunc(events, func(e cluster.Event) bool { return !slices.Contains(kinds, e.Kind) })
}

func (b *activityBench) states(id cluster.ActivityID) string {
	var states []string
	for _, e := range b.told(cluster.EventActivity) {
		if e.Fields["activity"] == string(id) {
			states = append(states, e.Fields["state"])
		}
	}
	return strings.Join(states, " ")
}

// order writes a stop into the record, at this very instant.
func (b *activityBench) order(id cluster.ActivityID, order string) {
	b.t.Helper()
	r, there := b.record(id)
	if !there || r.Stop != nil {
		b.t.Fatalf("there is no record to write a stop into: %+v", r)
	}
	r.Stop = &cluster.ActivityStop{ID: order, By: "ann", Reason: "it hangs"}
	raw, err := json.Marshal(r)
	if err != nil {
		b.t.Fatal(err)
	}
	b.server.Set(activityPaths+string(id), raw)
}

// answers are the entries that answer an order.
func (b *activityBench) answers(order string) []cluster.Event {
	return slices.DeleteFunc(b.told(cluster.EventActivity, cluster.EventActivityRefused), func(e cluster.Event) bool { return e.Fields["order"] != order })
}

// What runs has a record until it is over; the history tells its beginning and its end.
func TestWhatRunsHasARecordUntilItIsOver(t *testing.T) {
	withActivities(t, func(t *testing.T, b *activityBench) {
		id := b.running(drain())
		b.until("its record", func() bool { return b.state(id) == cluster.ActivityRunning })
		if r, _ := b.record(id); r.Epoch != 5 || r.Incarnation != "boot-hv1.1" || r.Node != "hv1" || r.Name != "drain" || r.Quorum != "majority" || r.Version != 1 {
			t.Errorf("%+v", r)
		}
		b.lead() // the lease of hv1 itself still counts as held while nobody else is served
		b.manager.Update(activity.Holdings{})
		b.until("its end", func() bool { return len(b.records()) == 0 })
		b.until("its story", func() bool { return strings.HasSuffix(b.states(id), "ended") })
		if got := b.states(id); got != "running ending ended" {
			t.Errorf("told: %s", got)
		}
		last := b.told(cluster.EventActivity)
		if e := last[len(last)-1]; e.Fields["cause"] != "leadership_lost" {
			t.Errorf("%+v", e)
		}
	})
}

// What ends by itself and at once is told in two words; what waits long in one
// more, with what it waits for, and has a record by which it can be ended.
func TestWhatPassesByItselfIsNotToldAndWhatWaitsIsToldOnce(t *testing.T) {
	withActivities(t, func(t *testing.T, b *activityBench) {
		quick := b.running(drain(), func(context.Context, *activity.Activity) error { return nil })
		b.until("its end", func() bool { return strings.HasSuffix(b.states(quick), "ended") })
		if got := b.states(quick); got != "running ended" {
			t.Errorf("told of the quick one: %s", got)
		}
		first := b.running(drain())
		var failed error
		done := make(chan struct{})
		b.wait.Go(func() {
			defer close(done)
			failed = b.manager.Run(b.ctx, activity.Spec{Name: "rebalance", Quorum: cluster.Majority()}, func(context.Context, *activity.Activity) error { return nil })
		})
		b.until("the record of what waits", func() bool { return len(b.records()) == 2 })
		var waits cluster.ActivityRecord
		for _, name := range b.records() {
			if r, _ := b.record(cluster.ActivityID(name)); r.State == cluster.ActivityWaiting {
				waits = r
			}
		}
		if waits.Waits == nil || waits.Waits.Code != cluster.RefuseDomainConflict || !strings.Contains(waits.Waits.Detail, string(first)) {
			t.Fatalf("%+v", waits)
		}
		b.stays("it is told once", 5*time.Second, func() bool { return b.states(waits.ID) == "waiting" })
		b.order(waits.ID, "o1")
		<-done
		var no *cluster.RefusedActivity
		if !errors.As(failed, &no) || no.Code != cluster.RefuseEnding {
			t.Errorf("%v", failed)
		}
		b.until("the answer", func() bool { return len(b.answers("o1")) == 1 && len(b.records()) == 1 })
		if got := b.states(waits.ID); got != "waiting refused" {
			t.Errorf("told: %s", got)
		}
	})
}

// The same refusal again and again does not fill the history.
func TestTheSameRefusalIsToldOnceAMinute(t *testing.T) {
	withActivities(t, func(t *testing.T, b *activityBench) {
		b.manager.Update(activity.Holdings{})
		begun := time.Now()
		for time.Since(begun) < 90*time.Second {
			s := drain()
			s.Timeout = -1
			if err := b.manager.Run(b.ctx, s, nil); !errors.Is(err, cluster.ErrRefused) {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		b.until("the second telling", func() bool { return len(b.told(cluster.EventActivity)) == 2 })
		if e := b.told(cluster.EventActivity)[0]; e.Fields["refusal"] != string(cluster.RefuseNotLeader) {
			t.Errorf("%+v", e)
		}
	})
}

// An operator's stop ends it, says what was killed, and is answered once.
func TestAStopIsCarriedOutAndAnswered(t *testing.T) {
	withActivities(t, func(t *testing.T, b *activityBench) {
		child := newStubborn()
		id := b.running(drain(), func(ctx context.Context, a *activity.Activity) error {
			if err := a.Start("copy", child.start); err != nil {
				return err
			}
			<-ctx.Done()
			return nil
		})
		b.until("its record", func() bool { return b.state(id) == cluster.ActivityRunning })
		b.order(id, "o1")
		b.until("the answer", func() bool { return len(b.answers("o1")) > 0 })
		e := b.answers("o1")[0]
		if e.Fields["state"] != "ended" || e.Fields["killed"] != "copy" || e.Fields["cause"] != "stopped" || !strings.Contains(e.Text, "ann: it hangs") {
			t.Errorf("%+v", e)
		}
		b.stays("answered once", 5*time.Second, func() bool { return len(b.answers("o1")) == 1 && len(b.records()) == 0 })
	})
}

// A hard failover is not interrupted; the order is answered, and the next one too.
func TestAStopOfAHardFailoverIsRefused(t *testing.T) {
	withActivities(t, func(t *testing.T, b *activityBench) {
		id := b.running(activity.Spec{Name: "failover", Quorum: cluster.Majority(), Urgency: activity.Failover})
		b.until("its record", func() bool { return b.state(id) == cluster.ActivityRunning })
		if r, _ := b.record(id); !r.Hard {
			t.Errorf("its record does not say that nobody interrupts it, so that an API would take the order: %+v", r)
		}
		for _, o := range []string{"o1", "o2"} {
			b.order(id, o)
			b.until("the answer", func() bool { return len(b.answers(o)) == 1 })
			if e := b.answers(o)[0]; e.Kind != cluster.EventActivityRefused || e.Fields["code"] != string(cluster.RefuseUninterrupted) || e.Fields["activity"] != string(id) {
				t.Errorf("%+v", e)
			}
			if r, there := b.record(id); !there || r.Stop != nil || r.State != cluster.ActivityRunning {
				t.Errorf("after the refusal: %+v", r)
			}
		}
	})
}

// An activity that ends by itself at the very moment of the order answers it by
// its end, whichever write comes first.
func TestAStopOfWhatEndsByItselfIsAnswered(t *testing.T) {
	withActivities(t, func(t *testing.T, b *activityBench) {
		finish := make(chan struct{})
		id := b.running(drain(), func(context.Context, *activity.Activity) error { <-finish; return nil })
		b.until("its record", func() bool { return b.state(id) == cluster.ActivityRunning })
		b.server.Delay("hv1", 100*time.Millisecond)
		close(finish)
		synctest.Wait() // it is over here, and the record not gone yet
		b.order(id, "o1")
		b.server.Delay("hv1", 0)
		b.until("the answer", func() bool { return len(b.answers("o1")) > 0 })
		if e := b.answers("o1")[0]; e.Fields["state"] != "ended" || e.Fields["cause"] != "" {
			t.Errorf("%+v", e)
		}
		b.stays("answered once", 5*time.Second, func() bool { return len(b.answers("o1")) == 1 && len(b.records()) == 0 })
		if got := b.states(id); got != "running ended" {
			t.Errorf("told: %s", got)
		}
	})
}

// A lost reply to any write, carried out or not, neither loses nor doubles a
// word, and leaves no record behind.
func TestALostReplyNeitherLosesNorDoubles(t *testing.T) {
	for _, lose := range []struct {
		name string
		rule func(*zktest.Server, func(zktest.OpInfo) bool)
	}{
		{"done", func(s *zktest.Server, m func(zktest.OpInfo) bool) { s.DropReply("hv1", m) }},
		{"not done", func(s *zktest.Server, m func(zktest.OpInfo) bool) { s.DropRequest("hv1", m) }},
		{"done late", func(s *zktest.Server, m func(zktest.OpInfo) bool) { s.LateCommit("hv1", m, 100*time.Millisecond) }},
	} {
		for _, at := range []string{"create", "set", "delete"} {
			t.Run(at+" "+lose.name, func(t *testing.T) {
				withActivities(t, func(t *testing.T, b *activityBench) {
					touches := func(o zktest.OpInfo) bool {
						return slices.ContainsFunc(o.Ops, func(sub zktest.OpInfo) bool { return sub.Op == at && sub.TouchesBelow(activityPaths) })
					}
					if at != "set" {
						lose.rule(b.server, touches)
					}
					slow := make(chan struct{})
					id := b.running(drain(), func(ctx context.Context, _ *activity.Activity) error { <-ctx.Done(); <-slow; return nil })
					b.until("its record", func() bool { return b.state(id) == cluster.ActivityRunning })
					b.stays("it stands", 3*time.Second, func() bool { return b.state(id) == cluster.ActivityRunning })
					b.order(id, "o1")
					if at == "set" {
						lose.rule(b.server, touches)
					}
					b.until("ending", func() bool { return b.state(id) == cluster.ActivityEnding })
					close(slow)
					b.until("the answer", func() bool { return len(b.answers("o1")) > 0 })
					b.stays("answered once", 90*time.Second, func() bool { return len(b.answers("o1")) <= 1 })
					b.until("nothing is left", func() bool { return len(b.records()) == 0 })
					if got := b.states(id); got != "running ending ended" {
						t.Errorf("told: %s", got)
					}
				})
			})
		}
	}
}

// While the store is away nothing waits; what is told stands there afterwards.
func TestTheStoreAwayDelaysNobody(t *testing.T) {
	withActivities(t, func(t *testing.T, b *activityBench) {
		b.server.Partition("hv1")
		begun := time.Now()
		for range 3 {
			if err := b.manager.Run(b.ctx, drain(), func(context.Context, *activity.Activity) error { return nil }); err != nil {
				t.Fatal(err)
			}
		}
		id := b.running(drain())
		if took := time.Since(begun); took > 0 {
			t.Errorf("activities waited %s for the store", took)
		}
		time.Sleep(20 * time.Second)
		b.server.Heal("hv1")
		b.until("the story", func() bool { return len(b.told(cluster.EventActivity)) >= 7 && b.state(id) == cluster.ActivityRunning })
		if told := b.told(cluster.EventActivity); len(told) > 8 { // one that stands there twice is read as one
			t.Errorf("%d entries", len(told))
		}
	})
}

// More than the queues hold is counted, and the oldest stay.
func TestWhatDoesNotFitIsCounted(t *testing.T) {
	withActivities(t, func(t *testing.T, b *activityBench) {
		b.server.Partition("hv1")
		const runs = activityEvents
		for range runs {
			if err := b.manager.Run(b.ctx, drain(), func(context.Context, *activity.Activity) error { return nil }); err != nil {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		b.server.Heal("hv1")
		b.until("the count", func() bool { return len(b.told("history_lost")) > 0 })
		if lost := b.told("history_lost")[0].Fields["count"]; lost != fmt.Sprint(2*runs-activityEvents) {
			t.Errorf("%s are missing", lost)
		}
	})
}

// A daemon that was killed leaves records; its next start answers for them.
func TestALaterStartSweepsItsOwnLeftovers(t *testing.T) {
	withActivities(t, func(t *testing.T, b *activityBench) {
		id := b.running(drain())
		b.until("its record", func() bool { return b.state(id) == cluster.ActivityRunning })
		b.stopRun() // as if killed
		b.order(id, "o1")
		killed := b.activities
		b.begin("boot-hv1.2")
		other := b.running(drain())
		b.until("the sweep", func() bool { return len(b.answers("o1")) == 1 })
		e := b.answers("o1")[0]
		if e.Fields["state"] != "ended" || e.Fields["cause"] != cluster.CauseInterrupted || e.Fields["activity"] != string(id) {
			t.Errorf("%+v", e)
		}
		b.until("only the living has a record", func() bool { return slices.Equal(b.records(), []string{string(other)}) })
		ctx, cancel := context.WithTimeout(b.ctx, time.Minute)
		defer cancel()
		_ = killed.manager.Close(ctx)
	})
}

// A record whose making was lost, and that comes when all is over, goes again
// without a word.
func TestARecordThatCameLateGoes(t *testing.T) {
	withActivities(t, func(t *testing.T, b *activityBench) {
		b.until("the first look", func() bool { return len(b.records()) == 0 })
		time.Sleep(10 * time.Second)
		rule := b.server.DropReply("hv1", func(o zktest.OpInfo) bool { return o.Op == "multi" && o.TouchesBelow("/agent/history") })
		b.running(drain(), func(context.Context, *activity.Activity) error { return nil })
		b.until("the lost reply", func() bool { return rule.Hits() == 1 })
		late := cluster.ActivityRecord{Version: 1, Epoch: 5, Incarnation: "boot-hv1.1",
			Activity: cluster.Activity{ID: "drain-late", Name: "drain", Node: "hv1", Quorum: "majority", State: cluster.ActivityRunning}}
		raw, err := json.Marshal(late)
		if err != nil {
			t.Fatal(err)
		}
		b.server.Set(activityPaths+"drain-late", raw)
		b.until("it goes", func() bool { return len(b.records()) == 0 })
		if got := b.states("drain-late"); got != "" {
			t.Errorf("told: %s", got)
		}
	})
}

func TestWhatASweepTakesForOver(t *testing.T) {
	good := func() activityCase {
		n := cluster.NodeView{Name: "hv2"}
		n.Record = cluster.Versioned[cluster.NodeRecord]{Present: true, SeenAt: 1, Value: cluster.NodeRecord{Incarnation: "hv2.1"}}
		return activityCase{
			record: cluster.Versioned[cluster.ActivityRecord]{Present: true, Value: cluster.ActivityRecord{
				Activity: cluster.Activity{ID: "drain-1", Node: "hv2", Quorum: "majority", State: cluster.ActivityRunning}, Epoch: 4, Incarnation: "hv2.1"}},
			self: "hv1", incarnation: "hv1.1", leads: true, epoch: 5, led: time.Minute, node: n, known: true,
		}
	}
	alive := func(c *activityCase) { c.node.Alive.Present = true }
	dead := func(c *activityCase) {
		c.node.Fence = cluster.Versioned[cluster.FenceRecord]{Present: true, Value: cluster.FenceRecord{ID: "f", Incarnation: "hv2.1", Stage: cluster.FenceFenced, Proof: "off"}}
	}
	for _, x := range []struct {
		name string
		edit []func(*activityCase)
		want string // in the word; empty: it may live
	}{
		{"an earlier leader's, gone", nil, "loss of its leader"},
		{"an earlier leader's that lives", []func(*activityCase){alive}, ""},
		{"an earlier leader's, just now", []func(*activityCase){func(c *activityCase) { c.led = time.Second }}, ""},
		{"of this very epoch", []func(*activityCase){func(c *activityCase) { c.record.Value.Epoch = 5 }}, ""},
		{"of a later epoch", []func(*activityCase){func(c *activityCase) { c.record.Value.Epoch = 6 }}, ""},
		{"seen by no primary", []func(*activityCase){dead, func(c *activityCase) { c.leads = false }}, ""},
		{"work for a leader", []func(*activityCase){func(c *activityCase) { c.record.Value.Quorum = "follower" }}, ""},
		{"work for a leader, of a dead node", []func(*activityCase){dead, func(c *activityCase) { c.record.Value.Quorum = "follower" }}, "proven dead"},
		{"a dead node's", []func(*activityCase){dead, func(c *activityCase) { c.record.Value.Epoch = 5 }}, "loss of its node, which is proven dead"},
		{"another start was fenced", []func(*activityCase){alive, dead, func(c *activityCase) { c.node.Fence.Value.Incarnation = "hv2.0" }}, ""},
		{"of an earlier start", []func(*activityCase){alive, func(c *activityCase) { c.node.Record.Value.Incarnation = "hv2.2" }}, "started anew"},
		{"of a node that is not read yet", []func(*activityCase){func(c *activityCase) { c.node.Record = cluster.Versioned[cluster.NodeRecord]{} }}, ""},
		{"of a node that was removed", []func(*activityCase){func(c *activityCase) { c.known = false }}, "not in the cluster"},
		{"unreadable", []func(*activityCase){func(c *activityCase) { c.record.Err = errors.New("rubbish") }}, "rubbish"},
		{"unreadable, just now", []func(*activityCase){func(c *activityCase) { c.record.Err, c.led = errors.New("rubbish"), 0 }}, ""},
		{"one's own", []func(*activityCase){func(c *activityCase) {
			c.record.Value.Node, c.record.Value.Incarnation, c.mine = "hv1", "hv1.1", true
		}}, ""},
		{"one's own that came late", []func(*activityCase){func(c *activityCase) { c.record.Value.Node, c.record.Value.Incarnation = "hv1", "hv1.1" }}, cameLate},
		{"one's own of an earlier start", []func(*activityCase){func(c *activityCase) {
			c.record.Value.Node, c.record.Value.Incarnation, c.leads = "hv1", "hv1.0", false
		}}, "end of the daemon"},
	} {
		c := good()
		for _, edit := range x.edit {
			edit(&c)
		}
		if why := c.over(); (why == "") != (x.want == "") || !strings.Contains(why, x.want) {
			t.Errorf("%s: %q", x.name, why)
		}
	}
}

// The next primary tells what the loss of its leader has interrupted, once, and
// only after those who live had their time.
func TestTheNextPrimarySweepsWhatItsPredecessorLeft(t *testing.T) {
	withActivities(t, func(t *testing.T, b *activityBench) {
		left := cluster.ActivityRecord{Version: 1, Epoch: 4, Incarnation: "boot-hv2.1", Stop: &cluster.ActivityStop{ID: "o1", By: "ann"},
			Activity: cluster.Activity{ID: "drain-x", Name: "drain", Node: "hv2", Quorum: "majority", State: cluster.ActivityRunning}}
		raw, err := json.Marshal(left)
		if err != nil {
			t.Fatal(err)
		}
		b.server.Set(activityPaths+"drain-x", raw)
		b.server.Set(activityPaths+"junk-x", []byte("junk"))
		b.stays("nobody but a primary sweeps", 30*time.Second, func() bool { return len(b.records()) == 2 })
		b.server.DropReply("hv1", func(o zktest.OpInfo) bool { return o.Op == "multi" && o.TouchesBelow(activityPaths) })
		b.primary = true
		b.until("the sweep", func() bool { return len(b.records()) == 0 })
		b.stays("told once", time.Minute, func() bool { return len(b.answers("o1")) == 1 })
		if e := b.answers("o1")[0]; e.Fields["node"] != "hv2" || e.Node != "hv1" || !strings.Contains(e.Text, "interrupted by the loss of its leader") {
			t.Errorf("%+v", e)
		}
	})
}

// What survives its stop makes the daemon give up, and the operator is told.
func TestWhatSurvivesAbandonsTheDaemon(t *testing.T) {
	withActivities(t, func(t *testing.T, b *activityBench) {
		free := make(chan struct{})
		id := b.running(drain(), func(ctx context.Context, _ *activity.Activity) error { <-free; return nil })
		b.until("its record", func() bool { return b.state(id) == cluster.ActivityRunning })
		b.order(id, "o1")
		select {
		case err := <-b.Abandoned():
			if !strings.Contains(err.Error(), string(id)) || !strings.Contains(err.Error(), "goroutine body") {
				t.Errorf("%v", err)
			}
		case <-time.After(time.Minute):
			t.Fatal("nobody is told")
		}
		b.until("the answer", func() bool { return len(b.answers("o1")) == 1 })
		if e := b.answers("o1")[0]; e.Fields["survives"] != "body" || e.Fields["state"] != "ending" {
			t.Errorf("%+v", e)
		}
		if r, there := b.record(id); !there || r.Stop != nil || !slices.Equal(r.Survives, []string{"body"}) {
			t.Errorf("%v, %+v", there, r)
		}
		close(free)
	})
}

// stubborn is a child that has to be killed.
type stubborn struct {
	once sync.Once
	done chan struct{}
}

func newStubborn() *stubborn { return &stubborn{done: make(chan struct{})} }

func (s *stubborn) start() (subtask.Child, error) { return s, nil }
func (s *stubborn) Kill()                         { s.once.Do(func() { close(s.done) }) }
func (s *stubborn) Done() <-chan struct{}         { return s.done }

func (s *stubborn) Stop(ctx context.Context, grace time.Duration) error {
	pause(ctx, grace)
	s.Kill()
	return nil
}
