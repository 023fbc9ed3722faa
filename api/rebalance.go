package api

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"pvc.internal/cluster"
)

// RebalanceView is the newest rebalance that was ordered.
type RebalanceView struct {
	// State is none, ordered, running, done, failed or stopped.
	State string        `json:"state"`
	ID    string        `json:"id,omitempty"`
	By    string        `json:"by,omitempty"`
	AtMS  int64         `json:"at_ms,omitempty"` // unix milliseconds
	Done  int           `json:"done"`            // moves that are finished
	Total int           `json:"total"`           // of all that were found necessary
	Text  string        `json:"text,omitempty"`
	Stop  bool          `json:"stop"` // its end is ordered
	Epoch cluster.Epoch `json:"epoch,omitempty"`
}

// RebalanceNone is the state before the first rebalance.
const RebalanceNone = "none"

// RebalanceAnswer is what became of an order about a rebalance.
type RebalanceAnswer struct {
	Message   string        `json:"message"`
	Already   bool          `json:"already"` // nothing had to be ordered
	Rebalance RebalanceView `json:"rebalance"`
}

func rebalanceRoutes() []route {
	wait := []param{{name: "wait", kind: argDuration, about: "answer when it has ended, or after this long"}}
	also := append(ordered202(RebalanceAnswer{}), otherAnswer{http.StatusConflict, "It has failed or was stopped while it was waited for; or somebody else has changed it at the same moment", either{RebalanceAnswer{}, Message{}}})
	return []route{
		{method: get, path: "/rebalance", summary: "The newest rebalance, and how far it is", handle: (*Server).getRebalance, reply: RebalanceView{}},
		{method: post, path: "/rebalance", summary: "Order a rebalance: chains are filled up and spread, and a finished one resets auto-reprovision's count", need: RoleOperate, handle: (*Server).postRebalance, reply: RebalanceAnswer{}, also: also, params: wait},
		{method: post, path: "/rebalance/stop", summary: "Order the running rebalance to be stopped after its present move", need: RoleOperate, handle: (*Server).postRebalanceStop, reply: RebalanceAnswer{}, also: also, params: wait},
	}
}

func rebalanceView(v cluster.Versioned[cluster.Rebalance]) RebalanceView {
	r := v.Value
	switch {
	case v.Err != nil:
		return RebalanceView{State: string(WorkloadUnreadable), Text: v.Err.Error()}
	case !v.Present:
		return RebalanceView{State: RebalanceNone}
	}
	return RebalanceView{r.State, r.ID, r.By, r.AtMS, r.Done, r.Total, r.Text, r.Stop, r.Epoch}
}

func (s *Server) getRebalance(r *request) (answer, error) {
	return s.facts(r.ctx, func(st state) (any, error) { return rebalanceView(st.snap.Rebalance), nil })
}

// rebalanceWrite is a change of the rebalance's record.
type rebalanceWrite struct {
	next    cluster.Rebalance
	text    string
	already bool
}

func (s *Server) postRebalance(r *request) (answer, error) {
	id := newOrderID()
	return s.orderRebalance(r, id, func(st state, v cluster.Versioned[cluster.Rebalance]) (rebalanceWrite, *failure) {
		if v.Present && v.Err == nil && !v.Value.Ended() {
			return rebalanceWrite{next: v.Value, already: true, text: fmt.Sprintf("A rebalance is %s already, by %s: %d of %d moves are done.", v.Value.State, v.Value.By, v.Value.Done, v.Value.Total)}, nil
		}
		return rebalanceWrite{next: cluster.Rebalance{Version: 1, ID: id, By: r.caller.name, AtMS: time.Now().UnixMilli(), State: cluster.RebalanceOrdered},
			text: "Ordered: a rebalance of the workloads." + st.laterText()}, nil
	})
}

func (s *Server) postRebalanceStop(r *request) (answer, error) {
	return s.orderRebalance(r, newOrderID(), func(_ state, v cluster.Versioned[cluster.Rebalance]) (rebalanceWrite, *failure) {
		next := v.Value
		switch {
		case v.Err != nil:
			return rebalanceWrite{}, refuse(http.StatusBadRequest, fmt.Sprintf("The record of the rebalance cannot be read (%v); nothing was ordered. `pvc rebalance` orders a new one.", v.Err))
		case !v.Present || v.Value.Ended():
			return rebalanceWrite{next: next, already: true, text: "No rebalance runs, so that nothing has to be stopped."}, nil
		case v.Value.Stop:
			return rebalanceWrite{next: next, already: true, text: "The end of the rebalance is ordered already; it comes after the present move."}, nil
		}
		next.Stop = true
		return rebalanceWrite{next: next, text: "Ordered: the rebalance ends after its present move. What was moved stays."}, nil
	})
}

var rebalanceKey = cluster.Key{Kind: cluster.KeyRebalance}

// orderRebalance writes the order by compare-and-set. id names the write in the
// history, by which one whose reply was lost is found again.
func (s *Server) orderRebalance(r *request, id string, decide func(state, cluster.Versioned[cluster.Rebalance]) (rebalanceWrite, *failure)) (answer, error) {
	var lost *rebalanceWrite
	for range askAttempts {
		st, err := s.fresh(r.ctx, lost != nil)
		if err != nil {
			return answer{}, err
		}
		if lost != nil {
			written, err := s.rebalanceWritten(r.ctx, id)
			if err != nil {
				return answer{}, lostReply()
			}
			if written {
				return s.rebalanceAnswer(r, *lost)
			}
		}
		if fail := s.leasesMissing(r.ctx, st); fail != nil && lost != nil {
			return answer{}, lostReply()
		} else if fail != nil {
			return answer{}, fail
		}
		seen := st.snap.Rebalance
		w, fail := decide(st, seen)
		switch {
		case fail != nil && lost != nil:
			return answer{}, lostReply()
		case fail != nil:
			return answer{}, fail
		case w.already:
			return s.rebalanceAnswer(r, w)
		}
		event := s.event(r, cluster.EventRebalanceOrder, w.text, map[string]string{"order": id, "rebalance": w.next.ID})
		result := s.commit(r.ctx, "api.rebalance", event, cluster.Put(rebalanceKey, seen, w.next))
		switch result.Outcome {
		case cluster.OutcomeOK:
			version := newVersion(result, seen)
			s.awaitEcho(r.ctx, func(now *cluster.Snapshot) bool {
				return now.Rebalance.Present && now.Rebalance.Version >= version
			})
			return s.rebalanceAnswer(r, w)
		case cluster.OutcomeConflict:
			awaitChange(r.ctx, st)
		case cluster.OutcomeUnknown:
			lost = &w
			awaitChange(r.ctx, st)
		default:
			return answer{}, outcomeError(result)
		}
	}
	if lost != nil {
		return answer{}, lostReply()
	}
	return answer{}, fmt.Errorf("write the order of a rebalance: %w in each of %d attempts; nothing was ordered, ask again", cluster.ErrConflict, askAttempts)
}

func (s *Server) rebalanceWritten(ctx context.Context, id string) (bool, error) {
	events, err := s.deps.Details.ReadHistory(ctx, eventsLooked)
	return slices.ContainsFunc(events, func(e cluster.Event) bool {
		return e.Kind == cluster.EventRebalanceOrder && e.Fields["order"] == id
	}), err
}

// rebalanceAnswer answers an order that stands: at once, or when the rebalance has
// ended.
func (s *Server) rebalanceAnswer(r *request, w rebalanceWrite) (answer, error) {
	out := RebalanceAnswer{Message: w.text, Already: w.already, Rebalance: rebalanceView(cluster.Versioned[cluster.Rebalance]{Present: w.next.ID != "", Value: w.next})}
	a := answer{status: http.StatusAccepted, body: out, change: w.text}
	if w.already {
		a.status, a.change = http.StatusOK, ""
	}
	wait := r.args.wait(0)
	if wait <= 0 || w.next.ID == "" || w.already && w.next.Ended() {
		return a, nil
	}
	ctx, cancel := context.WithTimeout(r.ctx, wait)
	defer cancel()
	for {
		st := s.view.current(s.now())
		if v := st.snap.Rebalance; v.Present && v.Err == nil {
			switch out.Rebalance = rebalanceView(v); {
			case v.Value.ID != w.next.ID && out.Rebalance.AtMS >= w.next.AtMS:
				out.Message = fmt.Sprintf("Another rebalance was ordered since, by %s.", v.Value.By)
				return answer{status: http.StatusConflict, body: out, change: w.text}, nil
			case v.Value.ID == w.next.ID && v.Value.Ended():
				return rebalanceEnded(out, v.Value), nil
			}
		}
		select {
		case <-st.changed:
		case <-ctx.Done():
			a.status, a.body = http.StatusAccepted, out
			return a, nil
		case <-s.stopping:
			a.status, a.body = http.StatusAccepted, out
			return a, nil
		}
	}
}

func rebalanceEnded(out RebalanceAnswer, v cluster.Rebalance) answer {
	status := http.StatusConflict
	switch {
	case v.State == cluster.RebalanceDone:
		status, out.Message = http.StatusOK, fmt.Sprintf("The rebalance is done: %d of %d moves.", v.Done, v.Total)
	case v.State == cluster.RebalanceStopped && v.Stop:
		status, out.Message = http.StatusOK, fmt.Sprintf("The rebalance was stopped: %d of %d moves are done.", v.Done, v.Total)
	default:
		out.Message = fmt.Sprintf("The rebalance is %s: %d of %d moves are done.", v.State, v.Done, v.Total)
	}
	if v.Text != "" {
		out.Message += " " + capital(v.Text)
	}
	return answer{status: status, body: out, change: out.Message}
}
