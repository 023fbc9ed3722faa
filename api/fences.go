package api

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"pvc.internal/cluster"
)

// FencesView is what is known of fences: of the whole cluster, or of one node.
type FencesView struct {
	Fences  []cluster.FenceRecord `json:"fences"`
	Orders  []cluster.FenceOrder  `json:"orders"`  // of operators, not carried out yet
	History []cluster.Event       `json:"history"` // of fences and orders, newest first
	// Devices are the newest published tests of each device, by node and then as
	// the device is configured.
	Devices []DeviceTest `json:"devices"`
	// Doubt says what of this could not be read, so that it may be missing;
	// empty: nothing.
	Doubt string `json:"doubt,omitempty"`
}

// DeviceTest is a published test of a fence device with who made it.
type DeviceTest struct {
	By cluster.NodeID `json:"by"`
	cluster.DeviceReport
}

// Finding is what the test found, in words: ready, or the fault with its detail
// and, where the tester has named one, the cure.
func (d DeviceTest) Finding() string {
	if d.Fault == "" {
		return "ready"
	}
	if rest, whole := strings.CutPrefix(d.Detail, fmt.Sprintf("device %s of node %s (%s): ", d.Device, d.Node, d.Type)); whole {
		return rest
	}
	return d.Fault + ": " + d.Detail
}

// FenceAnswer is what became of an operator's order.
type FenceAnswer struct {
	Message string `json:"message"`
	Already bool   `json:"already"` // nothing had to be ordered
	// Order is what stands now for the primary to carry out; null where
	// nothing had to be ordered.
	Order *cluster.FenceOrder `json:"order,omitempty"`
	// Fence is the node's fence record as it was when the order was written.
	Fence *cluster.FenceRecord `json:"fence,omitempty"`
}

// The kinds of the history's entries that tell of fences.
const (
	eventFence  = "fence"
	eventOrder  = "fence_order"
	eventDevice = "fence_device" // a fence device has failed, or is well again
)

var fenceKinds = []string{eventFence, eventOrder, cluster.EventOrderRefused, eventDevice}

// The bounds of what is read of the history for a list of fences.
const (
	fenceEvents  = 20  // answered unless asked otherwise
	eventsLooked = 500 // newest of all kinds that are looked through at most
	eventsEach   = 10  // of them for each that is to be answered
)

var fencesParams = []param{{name: "limit", kind: argInt, min: 1, max: eventsLooked, about: fmt.Sprintf("how many events of the history; %d otherwise", fenceEvents)}}

var fenceParams = []param{
	{name: "action", kind: argText, required: true, choices: []string{cluster.OrderFence, cluster.OrderConfirm, cluster.OrderCancel, cluster.OrderTest},
		about: "fence: take its power; confirm: you vouch that it has none; cancel: before power is ordered off; test: ask its devices whether they could be used"},
	{name: "reason", kind: argText, about: "why, for the history; confirm needs one, and whatever is unsafe"},
	{name: "unsafe", kind: argBool, about: "with fence: its first try needs no majority of the node leases; all else is looked at"},
}

func (s *Server) getFences(r *request) (answer, error) {
	return s.facts(r.ctx, func(st state) (any, error) {
		c := st.cluster()
		return s.fencesView(r, st, FencesView{Fences: c.Fences, Orders: c.Orders}, ""), nil
	})
}

func (s *Server) getFence(r *request) (answer, error) {
	return s.facts(r.ctx, func(st state) (any, error) {
		n, known := st.snap.Nodes[r.node()]
		if !known {
			return nil, nodeNotFound()
		}
		v := FencesView{Fences: []cluster.FenceRecord{}, Orders: []cluster.FenceOrder{}}
		if n.Fence.Present && n.Fence.Err == nil {
			v.Fences = append(v.Fences, n.Fence.Value)
		}
		if n.Order.Present && n.Order.Err == nil {
			v.Orders = append(v.Orders, n.Order.Value)
		}
		return s.fencesView(r, st, v, n.Name), nil
	})
}

// fencesView adds what snapshots leave out: the history and the devices' tests,
// of the node, or of all where it is empty.
func (s *Server) fencesView(r *request, st state, v FencesView, only cluster.NodeID) FencesView {
	v.History, v.Devices = []cluster.Event{}, []DeviceTest{}
	if st.away > 0 {
		return v
	}
	limit := r.args.number("limit", fenceEvents)
	events, err := s.deps.Details.ReadHistory(r.ctx, min(eventsLooked, eventsEach*limit))
	if err != nil { // the records are worth having without it
		v.Doubt = fmt.Sprintf("the history cannot be read: %v", err)
	}
	for _, e := range slices.Backward(events) {
		if len(v.History) < limit && slices.Contains(fenceKinds, e.Kind) && (only == "" || e.Fields["node"] == string(only)) {
			v.History = append(v.History, e)
		}
	}
	names := st.names()
	if only != "" {
		names = []cluster.NodeID{only}
	}
	v.Devices = s.deviceTests(r.ctx, st, names)
	return v
}

// deviceTests reads the newest published tests of the nodes' fence devices, a
// few nodes at a time. What is not published, or cannot be read, is missing;
// nothing is made up for it.
func (s *Server) deviceTests(ctx context.Context, st state, nodes []cluster.NodeID) []DeviceTest {
	tests := []DeviceTest{}
	if st.away > 0 {
		return tests
	}
	found := make([]cluster.FenceTests, len(nodes))
	var readers sync.WaitGroup
	places := make(chan struct{}, nodeReaders)
	for i, n := range nodes {
		places <- struct{}{}
		readers.Go(func() {
			defer func() { <-places }()
			text, err := s.deps.Texts.ReadText(ctx, cluster.Key{Kind: cluster.KeyFenceTests, Node: n})
			if err == nil && text.Present {
				_ = json.Unmarshal([]byte(text.Value), &found[i]) // rubbish reads as nothing
			}
		})
	}
	readers.Wait()
	for _, of := range found {
		for _, d := range of.Devices {
			tests = append(tests, DeviceTest{of.By, d})
		}
	}
	return tests
}

// longestReason bounds what an operator writes into the history.
const longestReason = 500

// newOrder is the order that the request asks for, for the start of the node
// that is registered now.
func newOrder(r *request) (cluster.FenceOrder, *failure) {
	o := cluster.FenceOrder{Version: 1, ID: newOrderID(), Node: r.node(), Action: r.args.text("action"), Reason: r.args.text("reason"),
		By: r.caller.name, UnixMS: time.Now().UnixMilli(), Unsafe: r.args.truth("unsafe")}
	blank := true
	for _, c := range o.Reason {
		if unicode.IsControl(c) {
			return o, badArgument("reason", "Must be one line of plain text.")
		}
		blank = blank && unicode.IsSpace(c)
	}
	switch {
	case len(o.Reason) > longestReason:
		return o, badArgument("reason", fmt.Sprintf("Must have at most %d bytes.", longestReason))
	case o.Unsafe && o.Action != cluster.OrderFence:
		return o, badArgument("unsafe", "Only a fence can be ordered without a majority of the node leases.")
	case o.Unsafe && blank:
		return o, badArgument("reason", "A reason must be specified: why this cannot wait until the primary holds a majority of the node leases.")
	case o.Action == cluster.OrderConfirm && blank:
		return o, badArgument("reason", "A reason must be specified: who has seen that the node has no power, and how.")
	}
	return o, nil
}

func newOrderID() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails since Go 1.24
	return hex.EncodeToString(b[:])
}

// postFence writes an operator's order by compare-and-set on a fresh view. The
// primary carries it out and checks all of it again where it acts. A lost reply
// is settled (settleOrder) before the order is written again, so that one that
// was answered meanwhile does not stand a second time.
func (s *Server) postFence(r *request) (answer, error) {
	order, fail := newOrder(r)
	if fail != nil {
		return answer{}, fail
	}
	var lost *lostOrder
	for range askAttempts {
		st, err := s.fresh(r.ctx, lost != nil)
		if err != nil {
			return answer{}, err
		}
		n, known := st.snap.Nodes[order.Node]
		if !known {
			return answer{}, refuse(http.StatusBadRequest, fmt.Sprintf("No node named %q is present in the cluster; nothing was ordered. Nodes: %s.", order.Node, joinNodes(st.names())))
		}
		if lost != nil {
			a, settled, err := s.settleOrder(r.ctx, order, n, *lost)
			if err != nil || settled == orderWritten {
				return a, err
			}
			if settled == orderFailed {
				lost = nil
			}
		}
		if lost == nil { // else the very same is written again
			order.Incarnation = st.meant(n, order.Action)
		}
		d, no := st.decideOrder(n, order, s.wordsFor(r.ctx, st, order))
		switch {
		case no != nil && lost != nil:
			return answer{}, lostReply()
		case no != nil:
			return answer{}, no
		case d.already:
			return answer{status: http.StatusOK, body: FenceAnswer{Message: d.text, Already: lost == nil, Fence: fenceOf(n)}}, nil
		}
		result := s.commit(r.ctx, "api.fence_order", s.orderEvent(r, order, d), d.op(n, order))
		switch result.Outcome {
		case cluster.OutcomeOK:
			return s.orderStands(r.ctx, order, n, d)
		case cluster.OutcomeConflict:
			awaitChange(r.ctx, st)
		case cluster.OutcomeUnknown:
			lost = &lostOrder{d, n.Order}
			awaitChange(r.ctx, st)
		default:
			return answer{}, outcomeError(result)
		}
	}
	if lost != nil {
		return answer{}, lostReply()
	}
	return answer{}, fmt.Errorf("write the fence order: %w in each of %d attempts; nothing was ordered, look at /fences and ask again", cluster.ErrConflict, askAttempts)
}

// lostOrder is a write about an order whose reply was lost: it has happened or
// still may, on the order's record as it was seen and on no other.
type lostOrder struct {
	decision
	seen cluster.Versioned[cluster.FenceOrder]
}

// What is known of a lostOrder.
type orderSettled uint8

const (
	orderOpen    orderSettled = iota // it may still happen: the same on the same version settles it
	orderWritten                     // it happened
	orderFailed                      // it did not and cannot any more
)

// settleOrder says what became of a write whose reply was lost. What stands is
// the order itself, or the history has the entry that was written with it, also
// where the order has been answered since.
func (s *Server) settleOrder(ctx context.Context, o cluster.FenceOrder, n cluster.NodeView, lost lostOrder) (answer, orderSettled, error) {
	now := n.Order
	if now.Present && now.Value.ID == o.ID {
		a, err := ordered(o, n, "Ordered, and not carried out yet.")
		return a, orderWritten, err
	}
	events, err := s.deps.Details.ReadHistory(ctx, eventsLooked)
	if err != nil {
		return answer{}, orderOpen, lostReply()
	}
	written := slices.ContainsFunc(events, func(e cluster.Event) bool { return e.Kind == eventOrder && e.Fields["order"] == o.ID })
	switch {
	case written && lost.withdraws:
		return answer{status: http.StatusOK, body: FenceAnswer{Message: lost.text, Fence: fenceOf(n)}, change: lost.text}, orderWritten, nil
	case written:
		a, err := ordered(o, n, "Ordered. Whether it was answered already, and how, is shown by `pvc fence list`.")
		return a, orderWritten, err
	case now.Present != lost.seen.Present || now.Version != lost.seen.Version || now.Mzxid != lost.seen.Mzxid:
		return answer{}, orderFailed, nil
	}
	return answer{}, orderOpen, nil
}

// wordsFor are the coordinators' words where the decision needs them: a node
// that answers probes is alive, whatever ZooKeeper shows.
func (s *Server) wordsFor(ctx context.Context, st state, o cluster.FenceOrder) []NodeWord {
	if o.Action != cluster.OrderConfirm {
		return nil
	}
	return s.readWords(ctx, st, st.coordinators())
}

func (s *Server) orderEvent(r *request, o cluster.FenceOrder, d decision) cluster.Event {
	fields := map[string]string{"node": string(o.Node), "order": o.ID, "action": o.Action, "incarnation": string(o.Incarnation)}
	if o.Reason != "" {
		fields["reason"] = o.Reason
	}
	text := "ordered"
	if o.Unsafe {
		fields["unsafe"] = "true"
		text = "ordered, with or without a majority of the node leases"
	}
	if d.withdraws {
		text = "order taken back"
	}
	return s.event(r, eventOrder, fmt.Sprintf("%s: %s of node %s", text, o.Action, o.Node), fields)
}

// orderStands answers once this server's own reads show what was written.
func (s *Server) orderStands(ctx context.Context, o cluster.FenceOrder, n cluster.NodeView, d decision) (answer, error) {
	s.awaitEcho(ctx, func(now *cluster.Snapshot) bool {
		seen := now.Nodes[o.Node].Order
		return seen.Present != n.Order.Present || seen.Version != n.Order.Version || seen.Mzxid != n.Order.Mzxid
	})
	if d.withdraws {
		return answer{status: http.StatusOK, body: FenceAnswer{Message: d.text, Fence: fenceOf(n)}, change: d.text}, nil
	}
	return ordered(o, n, d.text)
}

func ordered(o cluster.FenceOrder, n cluster.NodeView, text string) (answer, error) {
	return answer{status: http.StatusAccepted, body: FenceAnswer{Message: text, Order: &o, Fence: fenceOf(n)}, change: text}, nil
}

func fenceOf(n cluster.NodeView) *cluster.FenceRecord {
	if !n.Fence.Present || n.Fence.Err != nil || n.Fence.Value.ID == "" {
		return nil
	}
	f := n.Fence.Value
	return &f
}

// awaitChange waits a moment for the view to show what a write conflicted with:
// an order is no record of the role's, which a refresh would read anew.
func awaitChange(ctx context.Context, st state) {
	patience := time.NewTimer(refreshRetry)
	defer patience.Stop()
	select {
	case <-st.changed:
	case <-patience.C:
	case <-ctx.Done():
	}
}
