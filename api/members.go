package api

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"
	"unicode"

	"pvc.internal/cluster"
)

// MembersView is who belongs to the cluster and who counts for majorities.
type MembersView struct {
	// Quorum is the set of coordinators that count for majorities of node leases;
	// null while the cluster has none, or it cannot be read (Doubt).
	Quorum    *cluster.QuorumSet    `json:"quorum"`
	Uncounted []cluster.NodeID      `json:"uncounted"` // registered coordinators that do not count
	Removed   []cluster.RemovedNode `json:"removed"`   // hosts that stay out
	Order     *cluster.MemberOrder  `json:"order"`     // an operator's, not carried out yet
	History   []cluster.Event       `json:"history"`   // of members and orders, newest first
	// Doubt says what of this could not be read; empty: nothing.
	Doubt string `json:"doubt,omitempty"`
}

// MemberAnswer is what became of an operator's order about a node's membership.
type MemberAnswer struct {
	Message string `json:"message"`
	Already bool   `json:"already"` // nothing had to be ordered
	// Order is what stands now for the primary to carry out; null where nothing
	// had to be ordered.
	Order *cluster.MemberOrder `json:"order,omitempty"`
}

var memberKinds = []string{cluster.EventMember, cluster.EventMemberOrder, cluster.EventMemberRefused, cluster.EventMemberOut}

var membersParams = []param{{name: "limit", kind: argInt, min: 1, max: eventsLooked, about: fmt.Sprintf("how many events of the history; %d otherwise", fenceEvents)}}

var memberReason = param{name: "reason", kind: argText, about: "why, for the history"}

var memberAddParams = []param{
	{name: "mode", kind: argText, choices: []string{string(cluster.Coordinator), string(cluster.Hypervisor)}, about: "coordinator: it counts for majorities; hypervisor: it does not; otherwise as it registers"},
	{name: "host", kind: argText, about: "the id of a removed host that is to be let in again by this name"},
	memberReason,
}

func memberRoutes() []route {
	return []route{
		{method: get, path: "/members", summary: "Who counts for majorities, who was removed, and what is ordered of that", handle: (*Server).getMembers, reply: MembersView{}, params: membersParams},
		{method: del, path: "/members/order", summary: "Take back the order about a node's membership that stands", need: RoleOperate, handle: (*Server).deleteMemberOrder, reply: MemberAnswer{}, params: []param{
			{name: "node", kind: argText, required: true, complain: "The name of the node that the order is about must be specified.", about: "the node that it is about"}}},
		{method: put, path: "/node/{node}", summary: "Order a node to be let in, and to count or not", need: RoleOperate, handle: (*Server).putNode, reply: MemberAnswer{}, also: ordered202(MemberAnswer{}), params: memberAddParams},
		{method: del, path: "/node/{node}", summary: "Order a node that is gone to be removed, with its records", need: RoleOperate, handle: (*Server).deleteNode, reply: MemberAnswer{}, also: ordered202(MemberAnswer{}), params: []param{memberReason}},
	}
}

func (s *Server) getMembers(r *request) (answer, error) {
	return s.facts(r.ctx, func(st state) (any, error) {
		v := st.members()
		if st.away > 0 {
			return v, nil
		}
		limit := r.args.number("limit", fenceEvents)
		events, err := s.deps.Details.ReadHistory(r.ctx, min(eventsLooked, eventsEach*limit))
		if err != nil { // the records are worth having without it
			v.Doubt = joinDoubt(v.Doubt, fmt.Sprintf("the history cannot be read: %v", err))
		}
		for _, e := range slices.Backward(events) {
			if len(v.History) < limit && slices.Contains(memberKinds, e.Kind) {
				v.History = append(v.History, e)
			}
		}
		return v, nil
	})
}

func joinDoubt(have, more string) string {
	if have == "" {
		return more
	}
	return have + "; " + more
}

func (st state) members() MembersView {
	v := MembersView{Uncounted: []cluster.NodeID{}, Removed: []cluster.RemovedNode{}, History: []cluster.Event{}}
	if st.snap == nil {
		return v
	}
	s := st.snap
	if s.Quorum.Err != nil {
		v.Doubt = fmt.Sprintf("the quorum set (/agent/quorum) cannot be read: %v", s.Quorum.Err)
	} else if s.Quorum.Present {
		set := s.Quorum.Value
		v.Quorum = &set
		v.Uncounted = append(v.Uncounted, st.uncounted()...)
	}
	if s.Members.Err != nil {
		v.Doubt = joinDoubt(v.Doubt, fmt.Sprintf("who was removed (/agent/members) cannot be read: %v", s.Members.Err))
	}
	v.Removed = append(v.Removed, s.Members.Value.Removed...)
	if s.MemberOrder.Present && s.MemberOrder.Err == nil {
		o := s.MemberOrder.Value
		v.Order = &o
	}
	return v
}

// uncounted are the registered coordinators that are not in the quorum set, or
// by whose name another host is.
func (st state) uncounted() []cluster.NodeID {
	set := st.snap.Quorum.Value
	var names []cluster.NodeID
	for _, name := range st.names() {
		n := st.snap.Nodes[name]
		if n.Mode.Value != cluster.Coordinator || !n.Record.Present {
			continue
		}
		if id := n.Record.Value.ID; !set.Has(name) || set.IDs[name] != "" && id != "" && set.IDs[name] != id {
			names = append(names, name)
		}
	}
	return names
}

func (s *Server) putNode(r *request) (answer, error) {
	return s.orderMember(r, cluster.MemberOrder{Action: cluster.MemberAdd, Mode: cluster.Mode(r.args.text("mode")), Host: r.args.text("host")})
}

func (s *Server) deleteNode(r *request) (answer, error) {
	return s.orderMember(r, cluster.MemberOrder{Action: cluster.MemberRemove})
}

// newMemberOrder completes the order and checks what of it was typed.
func newMemberOrder(r *request, o cluster.MemberOrder) (cluster.MemberOrder, *failure) {
	o.Version, o.ID, o.Node, o.Reason, o.By, o.UnixMS = 1, newOrderID(), r.node(), r.args.text("reason"), r.caller.name, time.Now().UnixMilli()
	if err := o.Node.Validate(); err != nil {
		return o, refuse(http.StatusBadRequest, err.Error()+"; nothing was ordered.")
	}
	for name, text := range map[string]string{"reason": o.Reason, "host": o.Host} {
		if slices.ContainsFunc([]rune(text), unicode.IsControl) || len(text) > longestReason {
			return o, badArgument(name, fmt.Sprintf("Must be one line of plain text of at most %d bytes.", longestReason))
		}
	}
	return o, nil
}

// orderMember writes an order by compare-and-set on a fresh view. The primary
// carries it out and checks all of it again where it acts. A lost reply is
// settled before the order is written again.
func (s *Server) orderMember(r *request, o cluster.MemberOrder) (answer, error) {
	o, fail := newMemberOrder(r, o)
	if fail != nil {
		return answer{}, fail
	}
	return s.writeMember(r, o.ID, func(st state, lost bool) (memberWrite, *failure) {
		if !lost && o.Action == cluster.MemberRemove { // a lost write is made again as it was
			o.Host = st.snap.Nodes[o.Node].Record.Value.ID
		}
		d, fail := st.decideMember(o)
		if fail != nil || d.already {
			return memberWrite{decision: d, stands: st.standing(o)}, fail
		}
		return memberWrite{
			decision: d, stands: &o,
			op:    cluster.Put(cluster.Key{Kind: cluster.KeyMemberOrder}, st.snap.MemberOrder, o),
			event: s.memberEvent(r, o, fmt.Sprintf("ordered: %s of node %s", o.Action, o.Node)),
		}, nil
	})
}

// deleteMemberOrder takes back the order that stands, if it is about that node.
func (s *Server) deleteMemberOrder(r *request) (answer, error) {
	node, id := cluster.NodeID(r.args.text("node")), newOrderID()
	return s.writeMember(r, id, func(st state, _ bool) (memberWrite, *failure) {
		o := st.snap.MemberOrder
		switch {
		case o.Err != nil: // nobody can carry that out either
		case !o.Present:
			d, _ := already("No order about a node's membership stands; nothing was changed. `pvc history` says what became of the last.")
			return memberWrite{decision: d}, nil
		case o.Value.Node != node:
			_, fail := no("The order that stands is to %s node %q, by %s, and not about node %q; nothing was changed.", o.Value.Action, o.Value.Node, o.Value.By, node)
			return memberWrite{}, fail
		}
		text := fmt.Sprintf("The order to %s node %q is taken back; what of it was carried out already stays.", o.Value.Action, node)
		e := s.memberEvent(r, o.Value, fmt.Sprintf("order taken back: %s of node %s", o.Value.Action, node))
		e.Fields["withdrawal"] = id
		return memberWrite{decision: decision{text: text}, op: cluster.EndMemberOrder(o), event: e}, nil //nolint:nilerr // an order that cannot be read is taken back, too
	})
}

func (s *Server) memberEvent(r *request, o cluster.MemberOrder, text string) cluster.Event {
	fields := map[string]string{"node": string(o.Node), "order": o.ID, "action": o.Action}
	for name, value := range map[string]string{"mode": string(o.Mode), "host": o.Host, "reason": o.Reason} {
		if value != "" {
			fields[name] = value
		}
	}
	return s.event(r, cluster.EventMemberOrder, text, fields)
}

// memberWrite is a write of the order's record with its entry in the history.
type memberWrite struct {
	decision
	op     cluster.Op
	event  cluster.Event
	stands *cluster.MemberOrder // what stands once it is written; nil: nothing
}

func (w memberWrite) answer(text string) (answer, error) {
	status := http.StatusOK
	if w.stands != nil {
		status = http.StatusAccepted
	}
	a := answer{status: status, body: MemberAnswer{Message: text, Already: w.already, Order: w.stands}, change: text}
	if w.already {
		a.status, a.change = http.StatusOK, ""
	}
	return a, nil
}

// writeMember decides and writes until it is known what became of it. id names
// the write in the history, as its order or its withdrawal.
func (s *Server) writeMember(r *request, id string, decide func(st state, lost bool) (memberWrite, *failure)) (answer, error) {
	var lost *memberWrite
	var at cluster.Versioned[cluster.MemberOrder]
	for range askAttempts {
		st, err := s.fresh(r.ctx, lost != nil)
		if err != nil {
			return answer{}, err
		}
		now := st.snap.MemberOrder
		if lost != nil {
			written, err := s.memberWritten(r.ctx, id)
			switch {
			case err != nil:
				return answer{}, lostReply()
			case written:
				return lost.answer(lost.text)
			case now.Present != at.Present || now.Version != at.Version || now.Mzxid != at.Mzxid:
				lost = nil // it can happen no more
			}
		}
		w, fail := decide(st, lost != nil)
		switch {
		case fail != nil && lost != nil:
			return answer{}, lostReply()
		case fail != nil:
			return answer{}, fail
		case w.already:
			return w.answer(w.text)
		}
		result := s.commit(r.ctx, "api.member_order", w.event, w.op)
		switch result.Outcome {
		case cluster.OutcomeOK:
			s.awaitEcho(r.ctx, func(seen *cluster.Snapshot) bool {
				o := seen.MemberOrder
				return o.Present != now.Present || o.Version != now.Version || o.Mzxid != now.Mzxid
			})
			return w.answer(w.text)
		case cluster.OutcomeConflict:
			awaitChange(r.ctx, st)
		case cluster.OutcomeUnknown:
			lost, at = &w, now
			awaitChange(r.ctx, st)
		default:
			return answer{}, outcomeError(result)
		}
	}
	if lost != nil {
		return answer{}, lostReply()
	}
	return answer{}, fmt.Errorf("write the membership order: %w in each of %d attempts; nothing was ordered, look at /members and ask again", cluster.ErrConflict, askAttempts)
}

// memberWritten reports whether the history has the entry that is written with
// the order, or with its withdrawal, also where it has been answered since.
func (s *Server) memberWritten(ctx context.Context, id string) (bool, error) {
	events, err := s.deps.Details.ReadHistory(ctx, eventsLooked)
	return slices.ContainsFunc(events, func(e cluster.Event) bool {
		return e.Kind == cluster.EventMemberOrder && (e.Fields["order"] == id || e.Fields["withdrawal"] == id)
	}), err
}

// Members returns who belongs to the cluster, with at most limit events of the
// history; 0 is the server's own limit.
func (c *Client) Members(ctx context.Context, limit int) (MembersView, error) {
	values := url.Values{}
	if limit > 0 {
		values.Set("limit", fmt.Sprint(limit))
	}
	return fetch[MembersView](ctx, c, get, "/members", values)
}

// AddNode orders a node to be let in; mode is "coordinator", "hypervisor" or
// empty for what the node registers as, host the id of a removed host that is
// meant, or empty. It returns when the order is written, not when it is carried out.
func (c *Client) AddNode(ctx context.Context, node, mode, host, reason string) (MemberAnswer, error) {
	return fetch[MemberAnswer](ctx, c, put, "/node/"+url.PathEscape(node), url.Values{"mode": {mode}, "host": {host}, "reason": {reason}})
}

// RemoveNode orders a node to be removed. It returns when the order is written.
func (c *Client) RemoveNode(ctx context.Context, node, reason string) (MemberAnswer, error) {
	return fetch[MemberAnswer](ctx, c, del, "/node/"+url.PathEscape(node)+query("reason", reason), nil)
}

// CancelMemberOrder takes back the order about that node's membership.
func (c *Client) CancelMemberOrder(ctx context.Context, node string) (MemberAnswer, error) {
	return fetch[MemberAnswer](ctx, c, del, "/members/order"+query("node", node), nil)
}

// query is one argument in a path: of a DELETE no body is read.
func query(name, value string) string {
	if value == "" {
		return ""
	}
	return "?" + url.Values{name: {value}}.Encode()
}
