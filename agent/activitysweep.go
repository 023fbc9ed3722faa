package agent

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
)

// The times of the sweep.
const (
	// sweepEvery is how often a primary looks for what others left behind.
	sweepEvery = 30 * time.Second
	// sweepGrace is for how long after a takeover those who live tell of their own.
	sweepGrace = 10 * time.Second
)

// sweepLate are the pauses of the looks for a record whose making was lost, and
// that came after all.
var sweepLate = []time.Duration{10 * time.Second, time.Minute}

// activitySweep is when records are looked for that nobody ends any more: this
// node's own after its start, everybody's where it is primary.
type activitySweep struct {
	own   bool // what an earlier start of this node left is gone
	again []time.Time
	epoch cluster.Epoch // of the role; 0: not primary
	since time.Time     // of that epoch
	next  time.Time
}

// lookAgain has this node look for late records of its own.
func (s *activitySweep) lookAgain() {
	s.again = nil
	for _, d := range sweepLate {
		s.again = append(s.again, time.Now().Add(d))
	}
}

// due reports whether it is time for a look.
func (s *activitySweep) due(leads bool, epoch cluster.Epoch) bool {
	now, due := time.Now(), !s.own
	if len(s.again) > 0 && !now.Before(s.again[0]) {
		s.again, due = s.again[1:], true
	}
	switch {
	case !leads:
		s.epoch = 0
		return due
	case s.epoch != epoch:
		s.epoch, s.since, s.next = epoch, now, now
	}
	if now.Before(s.next) {
		return due
	}
	if s.next = now.Add(sweepEvery); now.Before(s.since.Add(sweepGrace)) {
		s.next = s.since.Add(sweepGrace)
	}
	return true
}

// sweepDue looks for records of what is over, if it is time, and deletes them
// with a word in the history.
func (k *activityKeeper) sweepDue(ctx context.Context) {
	leads, snap := k.role()
	if k.records == nil || snap == nil || !snap.Live || !snap.Complete {
		return
	}
	self := snap.Nodes[k.c.Node].Record
	if !self.Present || self.Err != nil || self.Value.Incarnation != k.c.Incarnation {
		return // not registered yet
	}
	lease := snap.Lease
	leads = leads && lease.Present && lease.Err == nil && lease.Value.HeldBy(k.c.Node, k.c.Incarnation)
	if !k.sweep.due(leads, lease.Value.Epoch) {
		return
	}
	reading, cancel := context.WithTimeout(ctx, k.c.Timing.CollectorDeadline)
	all, err := k.records.ReadActivities(reading)
	cancel()
	if err != nil {
		k.d.Log.Debug("the activities' records could not be read", zap.Error(err))
		k.sweep.lookAgain()
		return
	}
	done := true
	for _, v := range all {
		c := activityCase{record: v, self: k.c.Node, incarnation: k.c.Incarnation, leads: leads, epoch: k.sweep.epoch, led: time.Since(k.sweep.since)}
		c.node, c.known = snap.Nodes[v.Value.Node]
		_, c.mine = k.kept[v.Value.ID]
		if why := c.over(); why != "" && !k.remove(ctx, c, why) {
			done = false
		}
	}
	k.sweep.own = k.sweep.own || done
}

// activityCase is all that a record is judged by.
type activityCase struct {
	record      cluster.Versioned[cluster.ActivityRecord]
	self        cluster.NodeID
	incarnation cluster.Incarnation // of this daemon
	mine        bool                // this daemon knows it
	leads       bool
	epoch       cluster.Epoch
	led         time.Duration // since this node gained the role at that epoch
	node        cluster.NodeView
	known       bool // there is such a node
}

// cameLate is why a record goes whose activity is over and told of.
const cameLate = "its record was written after its end"

// over says why an activity is over that its record says to run; empty: it may
// live. This node's own are judged by what it knows. Of another node a start that
// has been followed by another, or is proven dead, is over, and where its session
// has ended too all that it ran as an earlier leader: those effects have ended
// before the role could be taken (I3). Its work for a leader may go on until it
// is proven dead.
func (c activityCase) over() string {
	r := c.record.Value
	if c.record.Err != nil {
		if !c.leads || c.led < sweepGrace {
			return ""
		}
		return fmt.Sprintf("its record cannot be read (%v)", c.record.Err)
	}
	if r.Node == c.self {
		switch {
		case r.Incarnation != c.incarnation:
			return "interrupted by the end of the daemon that ran it"
		case !c.mine:
			return cameLate
		}
		return ""
	}
	loss := "interrupted by the loss of its leader"
	if r.Quorum == cluster.Follower().String() || r.Epoch >= c.epoch {
		loss = "interrupted by the loss of its node"
	}
	n := c.node.Record
	f := c.node.Fence
	switch {
	case !c.leads:
		return ""
	case !c.known:
		return loss + ", which is not in the cluster any more"
	case n.SeenAt.IsZero() || n.Err != nil:
		return "" // not read yet
	case n.Present && n.Value.Incarnation != r.Incarnation:
		return loss + ", whose daemon was started anew"
	case f.Present && f.Err == nil && f.Value.Incarnation == r.Incarnation && provenDead(f.Value):
		return loss + ", which is proven dead"
	case r.Quorum != cluster.Follower().String() && r.Epoch < c.epoch && !c.node.Alive.Present && c.led >= sweepGrace:
		return loss
	}
	return ""
}

// provenDead reports whether a fence's start is proven dead.
func provenDead(f cluster.FenceRecord) bool {
	switch f.Stage {
	case cluster.FenceFenced, cluster.FenceRecover, cluster.FenceDone:
		return f.Proof != ""
	}
	return false
}

// remove deletes a record as it was judged, with a word in the history, and with
// the answer to a stop that stood in it. It goes under this start's registration,
// or, of another node, under the very role that it was judged in (I2). False: to
// be tried again.
func (k *activityKeeper) remove(ctx context.Context, c activityCase, why string) bool {
	r := c.record.Value
	key := cluster.Key{Kind: cluster.KeyActivity, Name: string(r.ID)}
	ops := []cluster.Op{{}, cluster.Delete(key, c.record.Version)}
	if why != cameLate || r.Stop != nil {
		ops = append(ops, cluster.Op{Kind: cluster.OpCreateSequential, Key: cluster.Key{Kind: cluster.KeyHistory}, Value: k.sweptEvent(r, why)})
	}
	removing, cancel := context.WithTimeout(ctx, orderWrite)
	defer cancel()
	for {
		snap, err := k.d.Store.Refresh(removing)
		if err != nil {
			return false
		}
		lease, self := snap.Lease, snap.Nodes[k.c.Node].Record
		switch {
		case r.Node == k.c.Node && c.record.Err == nil:
			ops[0] = cluster.Check(cluster.Key{Kind: cluster.KeyNodeRecord, Node: k.c.Node}, self.Version)
		case !lease.Present || !lease.Value.HeldBy(k.c.Node, k.c.Incarnation) || lease.Value.Epoch != c.epoch:
			return false
		default:
			ops[0] = cluster.Check(cluster.Key{Kind: cluster.KeyLease}, lease.Version)
		}
		res := k.d.Store.Commit(removing, cluster.Txn{Purpose: "activities.sweep", Ops: ops})
		if res.Outcome == cluster.OutcomeOK {
			k.d.Log.Info("the record of an activity that is over was removed", zap.String("activity", string(r.ID)), zap.String("peer", string(r.Node)), zap.String("reason", why))
			return true
		}
		if res.Outcome != cluster.OutcomeConflict || res.FailedOp != 0 || removing.Err() != nil {
			k.sweep.lookAgain() // what became of it shows itself then
			return res.Outcome == cluster.OutcomeConflict
		}
		pause(removing, orderConflict)
	}
}

func (k *activityKeeper) sweptEvent(r cluster.ActivityRecord, why string) cluster.Event {
	a := r.Activity
	a.State, a.Running, a.Cause, a.Detail = cluster.ActivityEnded, nil, cluster.CauseInterrupted, why
	e := cluster.ActivityEvent{Activity: bounded(a), UnixMS: k.c.WallMS()}.Event()
	if e.Node = k.c.Node; r.Node != "" {
		e.Fields["node"] = string(r.Node)
	}
	if r.Stop != nil {
		e.Fields["order"] = r.Stop.ID
	}
	return e
}
