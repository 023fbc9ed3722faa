package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"pvc.internal/cluster"
)

// PrimaryNode is the answer of /status/primary_node.
type PrimaryNode struct {
	PrimaryNode string `json:"primary_node"`
}

// The outcomes of a switch.
const (
	OutcomeWaiting    = "waiting" // asked, and no hand-over has begun for it
	OutcomeRunning    = "running"
	OutcomeDone       = "done"
	OutcomeAborted    = "aborted"
	OutcomeSuperseded = "superseded" // another wish, or a failover, came between
)

// SwitchAnswer is what became of an operator's wish.
type SwitchAnswer struct {
	Message     string              `json:"message"`
	From        string              `json:"from"` // who held the role when it was asked
	To          string              `json:"to"`   // a node's name, or "none" for the best other candidate
	Already     bool                `json:"already"`
	DryRun      bool                `json:"dry_run"`
	Possible    bool                `json:"possible"`
	Refusals    []cluster.Refusal   `json:"refusals,omitempty"`
	WishVersion int32               `json:"wish_version"`   // names this wish; the transition that serves it carries it
	Task        string              `json:"task,omitempty"` // what /tasks/<id> tells of it by
	Outcome     string              `json:"outcome,omitempty"`
	Reason      string              `json:"reason,omitempty"`
	Transition  *cluster.Transition `json:"transition,omitempty"`
}

// wish is what shall be written to primary_node, or why it stands there.
type wish struct {
	value   string
	text    string // what is answered
	already bool   // nothing has to be written
}

func (s *Server) getPrimaryNode(r *request) (answer, error) {
	a, err := s.facts(r.ctx, func(st state) (any, error) { return PrimaryNode{string(st.holder())}, nil })
	if err == nil && a.body == (PrimaryNode{}) {
		return answer{status: http.StatusNoContent}, nil
	}
	return a, err
}

func (s *Server) postCoordinatorState(r *request) (answer, error) {
	decide := func(st state) (wish, *refusal) { return st.wishPrimary(r.node()) }
	if r.args.text("state") == "secondary" {
		decide = func(st state) (wish, *refusal) { return st.wishSecondary(r.node()) }
	}
	w, _, err := s.askFor(r, decide)
	if err != nil {
		return answer{}, err
	}
	return done(w.text)
}

// refusal is why a wish is not written: the code for programs, the text for
// people.
type refusal struct {
	code cluster.RefusalCode
	node cluster.NodeID
	text string
}

func (f *refusal) failure() *failure { return refuse(http.StatusBadRequest, f.text) }

func (f *refusal) value() cluster.Refusal {
	return cluster.Refusal{Code: f.code, Node: f.node, Detail: f.text}
}

// unable says why the node could not take the role, nil if nothing is known
// against it.
func (st state) unable(name cluster.NodeID) *refusal {
	n, known := st.snap.Nodes[name]
	no := func(code cluster.RefusalCode, format string, more ...any) *refusal {
		return &refusal{code, name, fmt.Sprintf(format, append([]any{name}, more...)...)}
	}
	switch {
	case !known:
		return no(cluster.RefuseNotRunning, "No node named %q is present in the cluster.")
	case n.Mode.Value != cluster.Coordinator:
		return no(cluster.RefuseNotCoordinator, "Cannot change coordinator state on non-coordinator node %q.")
	case n.Daemon.Value != cluster.DaemonRun:
		return no(cluster.RefuseNotRunning, "Node %q is not active: its daemon state is %q.", n.Daemon.Value)
	case n.Settles():
		return no(cluster.RefuseNotRunning, "Node %q is not active: "+settlingText+".")
	case !n.Alive.Present:
		return no(cluster.RefuseNotRunning, "Node %q is not active: its daemon has no live session.")
	case st.late > 0 && st.silence(n) > st.late:
		return no(cluster.RefuseNotRunning, "Node %q is not active: no keepalive for %s.", st.silence(n).Round(100*time.Millisecond))
	case n.Fence.Present && n.Fence.Err == nil && !n.Fence.Value.Ended() && n.Fence.Value.Incarnation == n.Alive.Value.Incarnation:
		return no(cluster.RefuseOwnFencePending, "Node %q is being fenced.")
	}
	return nil
}

// wishPrimary decides what makes the node primary.
func (st state) wishPrimary(target cluster.NodeID) (wish, *refusal) {
	if no := st.unable(target); no != nil {
		return wish{}, no
	}
	w := wish{value: string(target)}
	switch {
	case st.wish() != w.value:
		w.text = fmt.Sprintf("Setting node %q in primary coordinator state.", target)
	case st.holder() == target:
		w.already, w.text = true, fmt.Sprintf("Node %q is already in primary coordinator state.", target)
	default:
		w.already, w.text = true, fmt.Sprintf("Node %q is already being set in primary coordinator state.", target)
	}
	return w, nil
}

// wishSecondary decides what makes the node give the role up.
func (st state) wishSecondary(target cluster.NodeID) (wish, *refusal) {
	n, known := st.snap.Nodes[target]
	if !known || n.Mode.Value != cluster.Coordinator || n.Daemon.Value != cluster.DaemonRun {
		return wish{}, st.unable(target)
	}
	w := wish{value: cluster.NoNode}
	if st.holder() != target {
		if st.wish() == string(target) {
			return wish{}, &refusal{cluster.RefuseNotPrimary, target,
				fmt.Sprintf("Node %q is about to become primary; name the node that shall be primary instead.", target)}
		}
		w.already, w.text = true, fmt.Sprintf("Node %q is already in secondary coordinator state.", target)
		return w, nil
	}
	if st.wish() != string(target) {
		w.already, w.text = true, fmt.Sprintf("Node %q is already being set in secondary coordinator state.", target)
		return w, nil
	}
	if no := st.noCandidateBut(target); no != nil {
		return wish{}, no
	}
	w.text = fmt.Sprintf("Setting node %q in secondary coordinator state.", target)
	return w, nil
}

// noCandidateBut says why nobody but the node could take the role, nil if
// somebody could.
func (st state) noCandidateBut(holder cluster.NodeID) *refusal {
	var reasons []string
	for _, name := range st.names() {
		if name == holder || st.snap.Nodes[name].Mode.Value != cluster.Coordinator {
			continue
		}
		no := st.unable(name)
		if no == nil {
			return nil
		}
		reasons = append(reasons, no.text)
	}
	why := "it is the only coordinator."
	if len(reasons) > 0 {
		why = "no other coordinator could take it. " + strings.Join(reasons, " ")
	}
	return &refusal{cluster.RefuseNoCandidate, holder, fmt.Sprintf("Node %q keeps the primary role: %s", holder, why)}
}

// askAttempts bounds the compare-and-set of a wish.
const askAttempts = 5

// askFor writes the wish by compare-and-set on a fresh view. A lost reply is
// settled by asking again on the same version: either the first write stands
// and the view shows it, or the second does and the first cannot any more (I8).
// It returns the version that the wish got, or stands at.
func (s *Server) askFor(r *request, decide func(state) (wish, *refusal)) (wish, int32, error) {
	var asked *wish
	var first *cluster.Versioned[string]
	for range askAttempts {
		st, err := s.fresh(r.ctx, asked != nil)
		if err != nil {
			return wish{}, 0, err
		}
		seen := st.snap.PrimaryNode
		if asked != nil && seen.Value == asked.value {
			return *asked, seen.Version, nil // the write whose reply was lost
		}
		if first == nil {
			first = &seen
		}
		w, no := decide(st)
		if no == nil && asked == nil && !w.already && st.outrun(*first) {
			return wish{}, 0, refuse(http.StatusConflict, fmt.Sprintf("Nothing was changed: at the same moment %q was asked to be primary, and that stands; node %q holds the role now. `pvc history --kind wish` says by whom. Ask again if it shall be otherwise all the same.", seen.Value, st.holder()))
		}
		if no != nil && asked != nil {
			return wish{}, 0, lostReply()
		}
		if no != nil {
			return wish{}, 0, no.failure()
		}
		if w.already {
			return w, seen.Version, nil
		}
		result := s.commit(r.ctx, "api.wish", s.event(r, "wish", w.text, map[string]string{"to": w.value}),
			cluster.Put(cluster.Key{Kind: cluster.KeyPrimaryNode}, seen, w.value))
		switch result.Outcome {
		case cluster.OutcomeOK:
			version := newVersion(result, seen)
			s.awaitEcho(r.ctx, func(now *cluster.Snapshot) bool { return now.PrimaryNode.Version >= version })
			return w, version, nil
		case cluster.OutcomeConflict:
		case cluster.OutcomeUnknown:
			asked = &w
		default:
			return wish{}, 0, outcomeError(result)
		}
	}
	if asked != nil {
		return wish{}, 0, lostReply()
	}
	return wish{}, 0, fmt.Errorf("write primary_node: %w in each of %d attempts; look at /cluster and ask again", cluster.ErrConflict, askAttempts)
}

// outrun reports whether somebody else has asked for a node since the wish was
// first seen: of two who ask at the same moment the second has not seen what it
// would undo. The wish for nobody in particular, and for who holds the role, is
// in nobody's way.
func (st state) outrun(first cluster.Versioned[string]) bool {
	now := st.snap.PrimaryNode
	return (now.Version != first.Version || now.Mzxid != first.Mzxid) && now.Value != first.Value && st.wish() != cluster.NoNode && st.wish() != string(st.holder())
}

// newVersion is the version that a Put gave the record.
func newVersion[T any](r cluster.TxnResult, seen cluster.Versioned[T]) int32 {
	if len(r.Versions) > 0 {
		return r.Versions[0]
	}
	if seen.Present {
		return seen.Version + 1
	}
	return 0
}

// fresh returns the view after a sync with the store's leader. A store that is
// just changing its server is waited for; one that has been away is not, unless
// unsettled: a write's reply was lost, and until the request's deadline what
// became of it is worth the wait.
func (s *Server) fresh(ctx context.Context, unsettled bool) (state, error) {
	patience := time.NewTimer(storePatience)
	defer patience.Stop()
	for {
		snap, err := s.deps.Store.Refresh(ctx)
		if err == nil {
			return s.freshState(snap)
		}
		st := s.view.current(s.now())
		if !unsettled && st.away > storePatience {
			return state{}, s.awayFailure(err.Error(), nil)
		}
		retry := time.NewTimer(refreshRetry)
		select {
		case <-retry.C:
			continue
		case <-patience.C:
			if unsettled {
				continue // the context ends it
			}
		case <-ctx.Done():
		}
		retry.Stop()
		if unsettled {
			return state{}, lostReply()
		}
		return state{}, s.awayFailure(err.Error(), nil)
	}
}

// lostReply is the one failure after which something may have changed.
func lostReply() *failure {
	return refuse(http.StatusGatewayTimeout, "ZooKeeper's reply was lost and what became of the change cannot be told now: it may have happened, or may still. Look at /cluster before asking again.")
}

// refreshRetry is how soon a refresh that failed is tried again.
const refreshRetry = 50 * time.Millisecond

func (s *Server) freshState(snap *cluster.Snapshot) (state, error) {
	s.view.adopt(snap)
	st := s.view.current(s.now())
	st.snap = snap // the one that was asked for, whatever arrived since
	if !snap.ClusterName.Present {
		return state{}, refuse(http.StatusBadRequest, "There is no cluster yet: make one with `pvc cluster init --name NAME`.")
	}
	return st, nil
}

// commit sends the operations together with their entry in the history.
func (s *Server) commit(ctx context.Context, purpose string, e cluster.Event, ops ...cluster.Op) cluster.TxnResult {
	ops = append(ops, cluster.Op{Kind: cluster.OpCreateSequential, Key: cluster.Key{Kind: cluster.KeyHistory}, Value: e})
	return s.deps.Store.Commit(ctx, cluster.Txn{Purpose: purpose, Ops: ops})
}

func (s *Server) event(r *request, kind, text string, fields map[string]string) cluster.Event {
	fields["by"], fields["from"] = r.caller.name, r.http.RemoteAddr
	return cluster.Event{Version: 1, UnixMS: time.Now().UnixMilli(), Node: s.cfg.Node, Kind: kind, Text: text, Fields: fields}
}

// outcomeError turns a transaction that did not happen, or may not have, into
// an error of the vocabulary.
func outcomeError(r cluster.TxnResult) error {
	class := cluster.ErrUnknown
	switch r.Outcome {
	case cluster.OutcomeConflict:
		class = cluster.ErrConflict
	case cluster.OutcomeNotSent:
		class = cluster.ErrNotLive
	case cluster.OutcomeRefused:
		class = cluster.ErrAuth
		if errors.Is(r.Err, cluster.ErrTooLarge) {
			class = cluster.ErrTooLarge
		}
	}
	if r.Err == nil || errors.Is(r.Err, class) {
		return fmt.Errorf("write: %w", class)
	}
	return fmt.Errorf("write: %w: %w", class, r.Err)
}

func (s *Server) postSwitch(r *request) (answer, error) {
	to, from := r.args.text("to"), cluster.NodeID(r.args.text("from"))
	decide := func(st state) (wish, *refusal) { return st.wishSwitch(to, from) }
	before, err := s.fresh(r.ctx, false)
	if err != nil {
		return answer{}, err
	}
	out := SwitchAnswer{From: string(before.holder()), To: to, Possible: true}
	if r.args.truth("dry_run") {
		return dryRun(out, before, decide)
	}
	w, version, err := s.askFor(r, decide)
	if err != nil {
		return answer{}, err
	}
	out.Message, out.Already, out.WishVersion, out.Task = w.text, w.already, version, switchTask(version)
	if wait := r.args.wait(0); wait > 0 {
		return s.awaitSwitch(r.ctx, out, wait)
	}
	status := http.StatusAccepted
	if w.already {
		status = http.StatusOK
	}
	return answer{status: status, body: out, change: w.text}, nil
}

func dryRun(out SwitchAnswer, st state, decide func(state) (wish, *refusal)) (answer, error) {
	out.DryRun = true
	w, no := decide(st)
	if no != nil {
		out.Possible, out.Message, out.Refusals = false, no.text, []cluster.Refusal{no.value()}
		return ok(out)
	}
	out.Message, out.Already = w.text, w.already
	return ok(out)
}

func (st state) wishSwitch(to string, from cluster.NodeID) (wish, *refusal) {
	if from != "" && to != cluster.NoNode && st.holder() != from {
		return wish{}, &refusal{cluster.RefuseNotPrimary, from, fmt.Sprintf("Node %q does not hold the primary role; %q does.", from, st.holder())}
	}
	if to != cluster.NoNode {
		return st.wishPrimary(cluster.NodeID(to))
	}
	if from == "" {
		from = st.holder()
	}
	if from == "" {
		return wish{}, &refusal{cluster.RefuseNotPrimary, "", "Nobody holds the primary role, so nobody can give it up."}
	}
	return st.wishSecondary(from)
}

// awaitSwitch answers when the switch has ended, or with what is known when the
// wait is over.
func (s *Server) awaitSwitch(ctx context.Context, out SwitchAnswer, wait time.Duration) (answer, error) {
	over := time.NewTimer(wait)
	defer over.Stop()
	settled := time.NewTimer(wait)
	defer settled.Stop()
	var inferred time.Time // since when its end is seen by the wish alone
	for waiting := true; waiting; {
		st := s.view.current(s.now())
		view := st.cluster()
		out.Outcome, out.Reason = view.SwitchOutcome(out.From, out.To, out.WishVersion)
		out.Transition = view.Transition
		switch ended := out.Outcome == OutcomeAborted || out.Outcome == OutcomeSuperseded; {
		case out.Outcome == OutcomeDone:
			return answer{status: http.StatusOK, body: out, change: out.Message}, nil
		case ended && view.WishTells(out.From, out.To, out.WishVersion) && (inferred.IsZero() || time.Since(inferred) < WishSettles):
			if inferred.IsZero() {
				inferred = time.Now()
				settled.Reset(WishSettles)
			}
		case ended:
			out.Message = "The switch was " + out.Outcome + ": " + out.Reason
			return answer{status: http.StatusConflict, body: out, change: out.Message}, nil
		}
		select {
		case <-st.changed:
		case <-settled.C:
		case <-over.C:
			waiting = false
		case <-ctx.Done():
			waiting = false
		case <-s.stopping:
			waiting = false
		}
	}
	return answer{status: http.StatusAccepted, body: out, change: out.Message}, nil
}

// WishSettles is how long the end of a switch is looked at again of which primary_node
// alone tells: records are read one by one, and what the hand-over says of its end may
// arrive after it.
const WishSettles = 500 * time.Millisecond

// WishTells reports whether SwitchOutcome's word on a wish rests on primary_node alone,
// and on no hand-over of it.
func (c ClusterView) WishTells(from, to string, wishVersion int32) bool {
	return c.Transition == nil || !WishServedBy(*c.Transition, from, to, wishVersion)
}

// SwitchOutcome judges the view against a wish: from held the role when it was
// asked that to (a node or "none") shall hold it, and the wish got this version.
func (c ClusterView) SwitchOutcome(from, to string, wishVersion int32) (outcome, reason string) {
	if t := c.Transition; t != nil && WishServedBy(*t, from, to, wishVersion) {
		switch t.State {
		case cluster.TransitionDone:
			return OutcomeDone, ""
		case cluster.TransitionAborted:
			if t.SupersededBy != "" {
				return OutcomeSuperseded, "superseded by " + t.SupersededBy
			}
			return OutcomeAborted, t.Error
		}
		return OutcomeRunning, ""
	}
	switch {
	case to == cluster.NoNode && c.PrimaryNode != "" && c.PrimaryNode != from && c.acts(c.PrimaryNode),
		to != cluster.NoNode && c.PrimaryNode == to && c.acts(to):
		return OutcomeDone, ""
	case c.Transition != nil && c.Transition.Running():
		return OutcomeRunning, "another hand-over runs"
	case c.PrimaryWanted == to:
		return OutcomeWaiting, ""
	case to == cluster.NoNode && c.PrimaryWanted == from:
		return OutcomeAborted, fmt.Sprintf("node %s keeps the role, since nobody else could take it; `pvc explain primary` says why", from)
	case to == cluster.NoNode:
		return OutcomeRunning, "" // the holder has named a candidate
	}
	return OutcomeSuperseded, fmt.Sprintf("primary_node was set to %q meanwhile; the history says by whom", c.PrimaryWanted)
}

// WishServedBy reports whether the hand-over serves a wish: the wish for a node
// by its own version, the wish for "none" by the one after it, which the holder
// writes to name the candidate.
func WishServedBy(t cluster.Transition, from, to string, wishVersion int32) bool {
	if t.Cause != cluster.CauseSwitch {
		return false
	}
	return t.WishVersion == wishVersion ||
		to == cluster.NoNode && string(t.From) == from && t.WishVersion == wishVersion+1
}

// acts reports whether the node shows itself as primary.
func (c ClusterView) acts(name string) bool {
	for _, n := range c.Nodes {
		if string(n.Name) == name {
			return n.CoordinatorState == cluster.RouterPrimary
		}
	}
	return false
}
