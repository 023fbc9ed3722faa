package agent

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"pvc.internal/agent/activity"
	"pvc.internal/agent/role"
	"pvc.internal/cluster"
)

// questionSoft asks a node that is about to lose its power to end by itself what
// it protects (protocol §6, stage soft): a softQuestion, answered by a
// softAnswer or refused. It is put again until all has ended, and may come late
// or twice.
const questionSoft = "soft"

// softQuestion names the fence, and the one start of the node that it is about (I5).
type softQuestion struct {
	Fence       string              `json:"fence"`
	Node        cluster.NodeID      `json:"node"`
	Incarnation cluster.Incarnation `json:"incarnation"`
	Epoch       cluster.Epoch       `json:"epoch"` // of the asker, who is primary
	// Token is the right of the fence's activity, anew with each question. None
	// where the asker uses no node leases: of an earlier program, too.
	Token *cluster.TokenWire `json:"token,omitempty"`
}

// softAnswer is what has become of the node's protected work.
type softAnswer struct {
	Stopped bool `json:"stopped"` // nothing of it is left; else it is being ended
}

// softStop is a node's part in the soft stage, as the one who asks and as the
// one who is asked. Neither side takes an answer for a proof of anything: power
// is taken all the same.
//
// The asked node obeys whom it serves: the stop is work for the leader that it
// has granted its lease, in an activity of its own, and lease and epoch are
// looked at in the very step that ends something. So a primary that was stopped
// for longer than its lease, one whose lease this node never gave, and a copy of
// a question end nothing, and a node that has lost ZooKeeper still can obey.
//
// Where either side uses no node leases it obeys exactly the primary whose fence
// record, in stage soft, names this start of it, and makes sure of that by a write
// that checks both records: a late question finds the record elsewhere. Who cannot
// write cannot know, and refuses. Nothing is lost by a refusal: the same node must
// have stopped by itself Q·K after its last acknowledged keepalive, and by the
// promises of all others, who fence it no sooner (I4).
//
// The daemon goes on: state `stop` would make the node one that is never fenced,
// and nobody would start it again if the fence is canceled. It only gives up what
// it holds, and contends again like one that gave up the role.
type softStop struct {
	c     Config
	d     Deps
	dec   *decider
	heard func(n cluster.NodeID) bool // its keepalives are seen to change now
	// remote runs what the leader that this node serves orders; nil: node leases
	// are not in use here.
	remote serving
}

// serving is the activity manager of a node that serves a leader.
type serving interface {
	RunRemote(ctx context.Context, w cluster.TokenWire, s activity.Spec, body activity.Body) error
}

// newSoft makes it, and has it answer.
func (w *nodeWatch) newSoft() *softStop {
	s := &softStop{c: w.c, d: w.d, dec: w.dec, heard: func(n cluster.NodeID) bool {
		return w.reach.judged.Load().hears(n, w.d.Clock.Now(), w.c.Timing.KeepaliveInterval)
	}}
	if w.d.Peers != nil {
		w.d.Peers.Handle(questionSoft, s.answer)
	}
	return s
}

// ---- who asks

// Answers reports whether the node can be asked to stop by itself: as far as is
// known without asking, it answers this node, or it lives by its keepalives. It
// does not block, and costs a fence of a silent node nothing.
func (a *Agent) Answers(n cluster.NodeID) bool {
	s := a.watch.soft
	return s.d.Peers != nil && (s.d.Peers.Probes()[n] == cluster.ProbeAnswered || s.heard(n))
}

// AskToStop asks the start of the node that the fence record names to end what
// it protects, by the right of the fence's activity, and returns nil once it says
// that nothing of that is left. It fails when one question stays without an answer
// for 0.3 K, is refused, or when ctx or the activity ends.
func (a *Agent) AskToStop(ctx context.Context, t cluster.Token, r cluster.FenceRecord) error {
	return a.watch.soft.ask(ctx, t, r)
}

func (s *softStop) ask(ctx context.Context, t cluster.Token, r cluster.FenceRecord) error {
	if s.d.Peers == nil {
		return fmt.Errorf("ask node %s to stop: nodes do not talk directly: %w", r.Node, cluster.ErrRefused)
	}
	for {
		body, err := s.question(t, r)
		if err != nil {
			return fmt.Errorf("ask node %s to stop: %w", r.Node, err)
		}
		asking, cancel := context.WithTimeout(ctx, s.wait())
		raw, err := s.d.Peers.Ask(asking, r.Node, questionSoft, body)
		cancel()
		var said softAnswer
		if err == nil {
			err = json.Unmarshal(raw, &said)
		}
		switch {
		case err != nil:
			return fmt.Errorf("ask node %s to stop: %w", r.Node, err)
		case said.Stopped:
			return nil
		}
		if pause(ctx, s.pause()); ctx.Err() != nil {
			return fmt.Errorf("node %s has not stopped what it protects in time: %w", r.Node, context.Cause(ctx))
		}
	}
}

// question is one question about a stop. Each is a command of its own: a copy of
// one is refused.
func (s *softStop) question(t cluster.Token, r cluster.FenceRecord) ([]byte, error) {
	if err := t.Check(); err != nil {
		return nil, err
	}
	q := softQuestion{Fence: r.ID, Node: r.Node, Incarnation: r.Incarnation, Epoch: r.Epoch}
	if s.remote != nil {
		w, err := t.Wire(rand.Text())
		if err != nil {
			return nil, err
		}
		q.Token = &w
	}
	return json.Marshal(q)
}

// wait is how long one question may stay without an answer, as a probe's. The
// asked node takes two thirds of it at most to look at the records.
func (s *softStop) wait() time.Duration { return s.c.Timing.KeepaliveInterval * 3 / 10 }

// pause is between two questions about one stop, and between two looks at a
// record that is still on its way.
func (s *softStop) pause() time.Duration { return s.c.Timing.KeepaliveInterval / 20 }

// ---- who is asked

// answer stops what is here if the question is about this start of the node and
// its asker the leader that this node serves, or the primary that fences it.
func (s *softStop) answer(ctx context.Context, from cluster.NodeID, body []byte) ([]byte, error) {
	var q softQuestion
	if err := json.Unmarshal(body, &q); err != nil {
		return nil, fmt.Errorf("read the question: %w: %w", err, cluster.ErrRefused)
	}
	if q.Fence == "" || q.Node != s.c.Node || q.Incarnation != s.c.Incarnation {
		return nil, fmt.Errorf("fence %q is of start %q of node %q, and this is start %q of %s: %w",
			q.Fence, q.Incarnation, q.Node, s.c.Incarnation, s.c.Node, cluster.ErrRefused)
	}
	obey := s.obeyRecords
	if q.Token != nil && s.remote != nil {
		obey = s.obeyLeader
	}
	stopped, err := obey(ctx, from, q)
	if err != nil {
		s.d.Log.Warn("asked to stop what this node protects, and refused", zap.String("peer", string(from)),
			zap.String("fence", q.Fence), zap.Error(err))
		return nil, err
	}
	return json.Marshal(softAnswer{Stopped: stopped})
}

// softDomain is apart from the cluster's: what an asked node still does itself,
// as the leader that it was, must not be in the way of its end.
const softDomain cluster.ActivityDomain = "soft"

// obeyLeader carries the stop out as work for the leader whom this node serves.
// The records are not asked, and only one that is at hand and says that this
// fence was called off is heeded.
func (s *softStop) obeyLeader(ctx context.Context, from cluster.NodeID, q softQuestion) (bool, error) {
	fence := s.dec.status().Snapshot.Nodes[s.c.Node].Fence
	switch {
	case q.Token.Lease.Holder != from || q.Token.Lease.Epoch != q.Epoch:
		return false, fmt.Errorf("node %s asks at epoch %d by the lease of %s: %w", from, q.Epoch, q.Token.Lease, cluster.ErrRefused)
	case fence.Present && fence.Err == nil && fence.Value.ID == q.Fence && fence.Value.Stage == cluster.FenceCanceled:
		return false, fmt.Errorf("fence %q is in stage %s: %w", q.Fence, fence.Value.Stage, cluster.ErrRefused)
	}
	var ended atomic.Bool
	err := s.remote.RunRemote(ctx, *q.Token, activity.Spec{Name: "soft-stop", Domain: softDomain, Timeout: -1},
		func(ctx context.Context, a *activity.Activity) error {
			stopped, err := s.decided(ctx, from, q, a.Token().Check)
			if err != nil {
				return err
			}
			for end := s.d.Clock.Now().Add(s.wait() * 2 / 3); !stopped && ctx.Err() == nil && s.d.Clock.Now().Before(end); {
				pause(ctx, s.pause()/4)
				stopped = idle(s.dec.status().Role)
			}
			ended.Store(stopped)
			return nil
		})
	if err != nil {
		return false, fmt.Errorf("node %s is not obeyed: %w: %w", from, err, cluster.ErrRefused)
	}
	return ended.Load(), nil
}

// obeyRecords stops what is here if the records bear the question out.
func (s *softStop) obeyRecords(ctx context.Context, from cluster.NodeID, q softQuestion) (bool, error) {
	looking, cancel := context.WithTimeout(ctx, s.wait()*2/3)
	err := s.vouched(looking, from, q)
	cancel()
	if err != nil {
		return false, err
	}
	return s.decided(ctx, from, q, func() error { return nil })
}

// decided stops what is here in the decider's goroutine, if leave is given there.
func (s *softStop) decided(ctx context.Context, from cluster.NodeID, q softQuestion, leave func() error) (stopped bool, err error) {
	ran := s.dec.call(ctx, func(ctx context.Context) {
		if err = leave(); err == nil {
			stopped, err = s.stop(ctx, from, q)
		}
	})
	if !ran {
		return false, errors.New("this daemon does not decide on anything yet, or any more")
	}
	return stopped, err
}

// idle reports that nothing of the role is left here.
func idle(r role.State) bool { return r.Mode != role.Dropping && !r.Mode.Holding() }

// vouched makes sure that the asker is the primary, and that its fence of this
// very start is in the stage in which a node is asked. Where the records are
// still on their way here it looks again until ctx ends.
func (s *softStop) vouched(ctx context.Context, from cluster.NodeID, q softQuestion) error {
	why := cluster.ErrNotLive
	for ctx.Err() == nil && s.dec.status().Snapshot.Live {
		snap, err := s.d.Store.Refresh(ctx)
		if err != nil {
			return fmt.Errorf("this node cannot read the fence record: %w: %w", err, cluster.ErrRefused)
		}
		lease, fence := snap.Lease, snap.Nodes[s.c.Node].Fence
		if why = s.names(lease, fence, from, q); why == nil {
			r := s.d.Store.Commit(ctx, cluster.Txn{Purpose: "fence.soft", Ops: []cluster.Op{
				cluster.Check(cluster.Key{Kind: cluster.KeyLease}, lease.Version),
				cluster.Check(cluster.Key{Kind: cluster.KeyFence, Node: s.c.Node}, fence.Version),
			}})
			switch r.Outcome {
			case cluster.OutcomeOK:
				return nil
			case cluster.OutcomeConflict: // mostly a renewal in between
				why = errors.New("the lease or the fence record has changed")
			default:
				return fmt.Errorf("this node cannot make sure of its fence record: %s: %w: %w", r.Outcome, r.Err, cluster.ErrRefused)
			}
		}
		pause(ctx, s.pause())
	}
	return fmt.Errorf("whether node %s is to stop this one cannot be made sure of: %w: %w", from, why, cluster.ErrRefused)
}

// names reports what is missing for the records to bear the question out.
func (s *softStop) names(lease cluster.Versioned[cluster.Lease], fence cluster.Versioned[cluster.FenceRecord], from cluster.NodeID, q softQuestion) error {
	l, f := lease.Value, fence.Value
	switch {
	case !lease.Present || lease.Err != nil || l.Holder != from || l.Epoch != q.Epoch:
		return fmt.Errorf("node %s is not the primary of epoch %d", from, q.Epoch)
	case !fence.Present || fence.Err != nil || f.ID != q.Fence || f.Incarnation != s.c.Incarnation:
		return fmt.Errorf("no fence record %q names this start of the node", q.Fence)
	case f.By != from || f.Epoch != q.Epoch || f.Stage != cluster.FenceSoft:
		return fmt.Errorf("fence %q is in stage %s, by %s at epoch %d", f.ID, f.Stage, f.By, f.Epoch)
	}
	return nil
}

// stop ends the role and what hangs on it, and reports whether nothing of it is
// left, which is so once the guard has verified it. A role of a later epoch than
// the asker's is not his to end (I2). The decider runs it.
func (s *softStop) stop(ctx context.Context, from cluster.NodeID, q softQuestion) (bool, error) {
	if epoch, _, holds := s.dec.state.Holds(); holds && epoch > q.Epoch || s.dec.outage.epoch > q.Epoch {
		return false, fmt.Errorf("epoch %d of the asker has been followed by epoch %d: %w: %w",
			q.Epoch, max(epoch, s.dec.outage.epoch), cluster.ErrStaleEpoch, cluster.ErrRefused)
	}
	if s.dec.state.Mode.Holding() {
		s.dec.decide(ctx, role.Event{NodeEnded: fmt.Sprintf("node %s, the primary of epoch %d, is about to take this node's power (fence %s)", from, q.Epoch, q.Fence)})
	}
	stopped := idle(s.dec.state)
	s.d.Log.Warn("this node's power is about to be taken; what it protects is ended", zap.String("peer", string(from)),
		zap.String("fence", q.Fence), zap.Uint64("epoch", uint64(q.Epoch)), zap.Bool("stopped", stopped))
	return stopped, nil
}
