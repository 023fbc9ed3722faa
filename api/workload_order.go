package api

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"pvc.internal/cluster"
)

// WorkloadOrder is what became of an operator's change or order of a workload.
type WorkloadOrder struct {
	Message string `json:"message"`
	Already bool   `json:"already"`         // nothing had to be written
	Order   string `json:"order,omitempty"` // its id, by which /tasks/<id> tells of it
	// Outcome is waiting, done, refused or superseded, of an order that was waited for.
	Outcome  string        `json:"outcome,omitempty"`
	Workload *WorkloadView `json:"workload,omitempty"` // as seen last
}

// OutcomeRefused is the outcome of an order that the primary has not carried out.
const OutcomeRefused = "refused"

// workloadWrite is a change of a workload's record with its entry in the history.
type workloadWrite struct {
	next    cluster.Workload
	text    string // what is answered
	event   string // the history's text
	already bool   // nothing has to be written
	stands  bool   // the same order stands already, and its end can be waited for
	order   string
	version int32 // of the record, once it is written
}

func (w workloadWrite) answerBody() WorkloadOrder {
	v := workloadView(w.next.Name, cluster.Versioned[cluster.Workload]{Value: w.next, Version: w.version})
	return WorkloadOrder{Message: w.text, Already: w.already, Order: w.order, Workload: &v}
}

// accepted answers without waiting.
func (w workloadWrite) accepted(status int) (answer, error) {
	a := answer{status: status, body: w.answerBody(), change: w.text}
	if w.already {
		a.status, a.change = http.StatusOK, ""
	}
	return a, nil
}

func readableWorkload(name string, seen cluster.Versioned[cluster.Workload]) *failure {
	switch {
	case seen.Err != nil:
		return refuse(http.StatusBadRequest, fmt.Sprintf("The record of workload %q cannot be read (%v); it is left alone, and nothing was changed. A newer program may have written it; else restore it from a backup.", name, seen.Err))
	case !seen.Present:
		return noWorkload(name)
	}
	return nil
}

// writeWorkload decides and writes until it is known what became of it: on the
// version that the decision was made on, so that whoever decides on an old view
// conflicts, and decides anew. id names the write in the history, by which one
// whose reply was lost is found again.
func (s *Server) writeWorkload(r *request, name, id string, decide func(state, cluster.Versioned[cluster.Workload]) (workloadWrite, *failure)) (workloadWrite, error) {
	var lost *workloadWrite
	var at cluster.Versioned[cluster.Workload]
	for range askAttempts {
		st, err := s.fresh(r.ctx, lost != nil)
		if err != nil {
			return workloadWrite{}, err
		}
		seen := st.snap.Workloads[name]
		if lost != nil {
			written, err := s.workloadWritten(r.ctx, id)
			switch {
			case err != nil:
				return workloadWrite{}, lostReply()
			case written:
				return *lost, nil
			case seen.Present != at.Present || seen.Version != at.Version || seen.Mzxid != at.Mzxid:
				lost = nil // it can happen no more
			}
		}
		if fail := s.leasesMissing(r.ctx, st); fail != nil && lost != nil {
			return workloadWrite{}, lostReply()
		} else if fail != nil {
			return workloadWrite{}, fail
		}
		w, fail := decide(st, seen)
		switch {
		case fail != nil && lost != nil:
			return workloadWrite{}, lostReply()
		case fail != nil:
			return workloadWrite{}, fail
		case w.already:
			w.version = seen.Version
			return w, nil
		}
		w.order, w.version = id, newVersion(cluster.TxnResult{}, seen)
		event := s.event(r, cluster.EventWorkloadOrder, w.event, map[string]string{"workload": name, "order": id})
		result := s.commit(r.ctx, "api.workload", event, cluster.Put(cluster.Key{Kind: cluster.KeyWorkload, Name: name}, seen, w.next))
		switch result.Outcome {
		case cluster.OutcomeOK:
			s.awaitEcho(r.ctx, func(now *cluster.Snapshot) bool { v := now.Workloads[name]; return v.Present && v.Version >= w.version })
			return w, nil
		case cluster.OutcomeConflict:
			awaitChange(r.ctx, st)
		case cluster.OutcomeUnknown:
			lost, at = &w, seen
			awaitChange(r.ctx, st)
		default:
			return workloadWrite{}, outcomeError(result)
		}
	}
	if lost != nil {
		return workloadWrite{}, lostReply()
	}
	return workloadWrite{}, fmt.Errorf("write the record of workload %q: %w in each of %d attempts; nothing was changed, look at it (`pvc workload info %s`) and ask again", name, cluster.ErrConflict, askAttempts, name)
}

// workloadWritten reports whether the history has the entry that is written with
// the change, also where it has been answered since.
func (s *Server) workloadWritten(ctx context.Context, id string) (bool, error) {
	events, err := s.deps.Details.ReadHistory(ctx, eventsLooked)
	return slices.ContainsFunc(events, func(e cluster.Event) bool {
		return e.Kind == cluster.EventWorkloadOrder && e.Fields["order"] == id
	}), err
}

func (s *Server) deleteWorkload(r *request) (answer, error) {
	return s.postOrder(r, cluster.WorkloadRemove)
}

// postOrder writes an operator's order into the workload's record. The primary
// carries it out, after having checked all of it again.
func (s *Server) postOrder(r *request, op cluster.WorkloadOp) (answer, error) {
	o := cluster.WorkloadRequest{ID: newOrderID(), Op: op, Node: cluster.NodeID(r.args.text("node")), Destroy: r.args.truth("destroy"), By: r.caller.name, AtMS: time.Now().UnixMilli()}
	if o.Node != "" && o.Node.Validate() != nil {
		return answer{}, badArgument("node", "That is no node's name.")
	}
	written, err := s.writeWorkload(r, r.workload(), o.ID, func(st state, seen cluster.Versioned[cluster.Workload]) (workloadWrite, *failure) {
		if fail := readableWorkload(r.workload(), seen); fail != nil {
			return workloadWrite{}, fail
		}
		return st.decideWorkload(o, seen.Value)
	})
	if err != nil {
		return answer{}, err
	}
	if wait := r.args.wait(0); wait > 0 && (!written.already || written.stands) {
		return s.awaitOrder(r.ctx, written, wait, (*awaited).answered)
	}
	return written.accepted(http.StatusAccepted)
}

// decideWorkload says what becomes of an order about the workload as it is seen,
// or why nothing is ordered.
func (st state) decideWorkload(o cluster.WorkloadRequest, w cluster.Workload) (workloadWrite, *failure) {
	if p := w.Request; p != nil && p.Op == o.Op && p.Node == o.Node && p.Destroy == o.Destroy {
		return workloadWrite{next: w, already: true, stands: true, order: p.ID, text: fmt.Sprintf("The order to %s, by %s since %s, stands already and has not been carried out yet.",
			orderText(*p, w.Name), p.By, time.UnixMilli(p.AtMS).Format(faultTime))}, nil
	}
	so, fail := st.opposes(o, w)
	switch {
	case fail != nil:
		return workloadWrite{}, fail
	case so != "" && w.Request == nil && w.Next == nil: // else what is so is about to change
		return workloadWrite{next: w, already: true, text: so}, nil
	}
	next := w.Clone()
	next.Request = &o
	switch o.Op {
	case cluster.WorkloadStart:
		next.Wanted = true
	case cluster.WorkloadStop:
		next.Wanted = false
	}
	text := "Ordered: " + orderText(o, w.Name) + "."
	if w.Request != nil {
		text += fmt.Sprintf(" It takes the place of the order to %s, by %s, which had not been carried out yet.", orderText(*w.Request, w.Name), w.Request.By)
	}
	return workloadWrite{next: next, text: text + st.laterText(), event: "ordered: " + orderText(o, w.Name)}, nil
}

// orderText says what is ordered.
func orderText(o cluster.WorkloadRequest, name string) string {
	switch {
	case o.Op == cluster.WorkloadMove && o.Node != "":
		return fmt.Sprintf("move workload %s to node %s", name, o.Node)
	case o.Op == cluster.WorkloadPromote:
		return fmt.Sprintf("promote the copy of workload %s on node %s", name, o.Node)
	case o.Op == cluster.WorkloadRemove && o.Destroy:
		return fmt.Sprintf("remove workload %s with its last copy", name)
	}
	return fmt.Sprintf("%s workload %s", o.Op, name)
}

// opposes says why the order is refused; or that what it asks for is so already.
func (st state) opposes(o cluster.WorkloadRequest, w cluster.Workload) (already string, refused *failure) {
	bad := func(format string, more ...any) *failure {
		return refuse(http.StatusBadRequest, fmt.Sprintf(format, more...)+" Nothing was ordered.")
	}
	if o.Node != "" {
		if _, known := st.snap.Nodes[o.Node]; !known {
			return "", badArgument("node", fmt.Sprintf("No node named %q is present in the cluster; nodes: %s.", o.Node, joinNodes(st.names())))
		}
	}
	if w.Request != nil && w.Request.Op == cluster.WorkloadRemove && o.Op != cluster.WorkloadRemove {
		return "", bad("Workload %q is being removed, by %s.", w.Name, w.Request.By)
	}
	runs := w.Wanted && w.State == cluster.WorkloadRunning
	switch o.Op {
	case cluster.WorkloadMove:
		return st.opposesMove(o, w, bad)
	case cluster.WorkloadPromote:
		switch {
		case w.Kind != cluster.WorkloadReplicated:
			return "", bad("Workload %q is movable: there is one copy, and nothing to promote. `pvc workload move %s --node %s` moves it.", w.Name, w.Name, o.Node)
		case !w.Wanted:
			return "", bad("Workload %q is not to run; `pvc workload start %s` first.", w.Name, w.Name)
		case !slices.Contains(w.Chain, o.Node):
			return "", bad("Node %q is not in the chain of workload %q (%s), so that it has no copy to promote.", o.Node, w.Name, chainText(w.Chain))
		case w.Head() == o.Node && runs:
			return fmt.Sprintf("The copy of workload %q on node %q is the active one already.", w.Name, o.Node), nil
		}
	case cluster.WorkloadStart:
		if runs {
			return fmt.Sprintf("Workload %q runs already.", w.Name), nil
		}
	case cluster.WorkloadStop:
		if !w.Wanted && w.State == cluster.WorkloadStopped {
			return fmt.Sprintf("Workload %q is stopped already.", w.Name), nil
		}
	case cluster.WorkloadRemove:
		if !o.Destroy && lastCopy(w) {
			return "", bad("Workload %q has copies (%s), and removing it takes the last one, with its data. Ask with --destroy (destroy=true) if that is meant.", w.Name, chainText(w.Chain))
		}
	}
	return "", nil
}

// lastCopy reports whether a removal takes data away: not of what has no chain
// yet, and not of a movable workload that is stopped, or has failed, whose data is its
// own; the primary looks whether it really runs nowhere.
func lastCopy(w cluster.Workload) bool {
	stopped := w.Kind == cluster.WorkloadMovable && (w.State == cluster.WorkloadStopped || w.State == cluster.WorkloadFailed)
	return len(w.Members()) > 0 && !stopped || w.Next != nil
}

func (st state) opposesMove(o cluster.WorkloadRequest, w cluster.Workload, bad func(string, ...any) *failure) (string, *failure) {
	switch {
	case !w.Wanted:
		return "", bad("Workload %q is not to run; `pvc workload start %s` first.", w.Name, w.Name)
	case o.Node == "":
		return "", nil
	case len(w.Nodes) > 0 && !slices.Contains(w.Nodes, o.Node):
		return "", bad("Workload %q may not have a copy on node %q, only on %s; `pvc workload set %s --nodes` changes that.", w.Name, o.Node, joinNodes(w.Nodes), w.Name)
	case st.snap.Nodes[o.Node].Domain.Value != cluster.DomainReady:
		return "", bad("Node %q is not ready for workloads: its domain state is %q.", o.Node, st.snap.Nodes[o.Node].Domain.Value)
	case w.Head() == o.Node && w.State == cluster.WorkloadRunning:
		return fmt.Sprintf("Workload %q is on node %q already.", w.Name, o.Node), nil
	}
	return "", nil
}

// awaited is an order that is waited for.
type awaited struct {
	workloadWrite
	seen bool // the record as written, or later, was seen
}

// awaitOrder answers when the order has come to its end, or with what is known
// when the wait is over.
func (s *Server) awaitOrder(ctx context.Context, w workloadWrite, wait time.Duration, judge func(*awaited, cluster.Versioned[cluster.Workload]) (outcome, text string)) (answer, error) {
	over := time.NewTimer(wait)
	defer over.Stop()
	a, out := &awaited{workloadWrite: w}, w.answerBody()
	for waiting := true; waiting; {
		st := s.view.current(s.now())
		v := st.snap.Workloads[w.next.Name]
		text := ""
		if out.Outcome, text = judge(a, v); text != "" {
			out.Message = text
		}
		if out.Workload = nil; v.Present {
			view := workloadView(w.next.Name, v)
			out.Workload = &view
		}
		switch out.Outcome {
		case OutcomeDone:
			return answer{status: http.StatusOK, body: out, change: out.Message}, nil
		case OutcomeRefused, OutcomeSuperseded:
			return answer{status: http.StatusConflict, body: out, change: out.Message}, nil
		}
		select {
		case <-st.changed:
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

// gone judges a record that is older than the write, or is none of this
// workload's any more; empty: go on looking at it.
func (a *awaited) gone(v cluster.Versioned[cluster.Workload]) (outcome, text string) {
	name := a.next.Name
	removing := a.next.Request != nil && a.next.Request.Op == cluster.WorkloadRemove
	switch {
	case v.Err != nil:
		return OutcomeRefused, fmt.Sprintf("The record of workload %q cannot be read now: %v.", name, v.Err)
	case v.Present && v.Value.ID == a.next.ID && v.Version < a.version:
		return OutcomeWaiting, ""
	case v.Present && v.Value.ID == a.next.ID:
		a.seen = true
		return "", ""
	case !a.seen && a.version == 0:
		return OutcomeWaiting, "" // it has just been added
	case removing:
		return OutcomeDone, fmt.Sprintf("Removed workload %q.", name)
	}
	return OutcomeSuperseded, fmt.Sprintf("Workload %q was removed meanwhile; `pvc history --kind %s` says by whom.", name, cluster.EventWorkloadOrder)
}

// answered judges an order by the record's answer.
func (a *awaited) answered(v cluster.Versioned[cluster.Workload]) (outcome, text string) {
	if outcome, text := a.gone(v); outcome != "" {
		return outcome, text
	}
	w := v.Value
	switch {
	case w.Answer != nil && w.Answer.ID == a.order && w.Answer.Done:
		return OutcomeDone, w.Answer.Text
	case w.Answer != nil && w.Answer.ID == a.order:
		return OutcomeRefused, w.Answer.Text
	case w.Request != nil && w.Request.ID == a.order:
		return OutcomeWaiting, ""
	case w.Request != nil:
		return OutcomeSuperseded, fmt.Sprintf("Another order has taken its place before it was carried out: %s, by %s.", orderText(*w.Request, w.Name), w.Request.By)
	}
	return OutcomeSuperseded, fmt.Sprintf("Another order has come after it; `pvc history --kind %s` says by whom, `pvc workload info %s` how it is now.", cluster.EventWorkloadOrder, w.Name)
}

// added judges a workload that is to run by its state.
func (a *awaited) added(v cluster.Versioned[cluster.Workload]) (outcome, text string) {
	if outcome, text := a.gone(v); outcome != "" {
		return outcome, text
	}
	w := v.Value
	switch w.State {
	case cluster.WorkloadRunning:
		return OutcomeDone, fmt.Sprintf("Workload %q runs on %s (chain: %s).", w.Name, w.Head(), chainText(w.Chain))
	case cluster.WorkloadFailed, cluster.WorkloadFaulty, cluster.WorkloadUnsafe, cluster.WorkloadStopped:
		return OutcomeRefused, fmt.Sprintf("Workload %q was added, and is %s: %s.", w.Name, w.State, orUnknown(w.Reason))
	}
	return OutcomeWaiting, ""
}

func orUnknown(reason string) string {
	if reason == "" {
		return "no reason was told"
	}
	return reason
}
