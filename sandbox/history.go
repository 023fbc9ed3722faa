package sandbox

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"

	"pvc.internal/cluster"
)

// Kind says what an Entry records.
type Kind string

// The kinds of entry.
const (
	KindPower       Kind = "power"       // a node's power: Node, On, By ("bmc", "watchdog" or empty: the fact itself)
	KindHeld        Kind = "held"        // an address in a node's kernel: Node, Addr, On
	KindAnswer      Kind = "answer"      // a node answered for an address from At to Until without a break: Node, Addr
	KindTwice       Kind = "twice"       // two nodes answered in one round, At to Until: Addr, Nodes
	KindSilence     Kind = "silence"     // nobody answered from At to Until: Addr
	KindHook        Kind = "hook"        // the primary-only service's process: Node, On
	KindLease       Kind = "lease"       // the lease as seen: Node (holder), Incarnation, Epoch, N, TTLMillis
	KindExpired     Kind = "expired"     // a write proved the lease to be as it was, though its deadline has passed: Node (holder), Epoch, N
	KindPromise     Kind = "promise"     // a coordinator bound itself not to take the role: Node, By (the holder), TTLMillis (from At on)
	KindIncarnation Kind = "incarnation" // a node's daemon registered: Node, Incarnation
	KindFence       Kind = "fence"       // a fence record as seen: Node, Incarnation, Epoch, Stage, Text (proof)
	KindDaemon      Kind = "daemon"      // a node's daemon state as seen: Node, Text
	KindRouter      Kind = "router"      // a node's router state as seen: Node, Text
	KindPrimary     Kind = "primary"     // primary_node as seen: Text
	KindView        Kind = "view"        // how a coordinator judges a node, as it publishes: Node, By (the coordinator), Text
	KindTransition  Kind = "transition"  // a hand-over as seen to begin: Name (id), By (from), Node (to), Text (cause)
	KindKeepalive   Kind = "keepalive"   // a node's keepalive as seen: Node, N (the record's version)
	KindMaintenance Kind = "maintenance" // the maintenance switch as seen: On
	KindIntent      Kind = "intent"      // an operator's write was acknowledged: Name ("primary_node", "maintenance"), Text
	KindStore       Kind = "store"       // On: the sandbox's own session is live; By "fault": all servers were taken away, or are back
	KindCut         Kind = "cut"         // a node's network: Node, Name (what is cut), On: it is cut now
	KindProgram     Kind = "program"     // a node's program was signalled or started: Node, Name, Text (the signal, or "start")
	KindCopy        Kind = "copy"        // the process of a workload's copy: Name (workload), Node, On
	KindWorkload    Kind = "workload"    // a workload's record as seen: Name, Nodes (chain), By (state), Text (reason)
	KindKeys        Kind = "keys"        // a workload's keys were counted: Name, N (acknowledged), Lost, On: losing none was promised
	KindLoad        Kind = "load"        // the machine itself is kept busy (On) or no more
	KindFault       Kind = "fault"       // a fault's step: Text ("inject", "heal", "healed", "rest", "unrest", "end"), Name
	KindNote        Kind = "note"        // anything for people: Text
)

// Entry is one line of the history. At and Until are CLOCK_BOOTTIME, in
// nanoseconds, of the one machine that all nodes share.
type Entry struct {
	At    cluster.Instant `json:"t"`
	Until cluster.Instant `json:"until,omitempty"`
	// Written is when ZooKeeper's leader took the write of a record that was
	// seen at At, to the millisecond below: its own clock's word, which is this
	// machine's. Zero: not known.
	Written cluster.Instant `json:"written,omitempty"`
	// After is set where writes of the record between the one seen before, at
	// After, and this one were never seen.
	After       cluster.Instant     `json:"after,omitempty"`
	Kind        Kind                `json:"kind"`
	Name        string              `json:"name,omitempty"`
	Node        cluster.NodeID      `json:"node,omitempty"`
	Nodes       []cluster.NodeID    `json:"nodes,omitempty"`
	Addr        string              `json:"addr,omitempty"`
	On          bool                `json:"on,omitempty"`
	By          string              `json:"by,omitempty"`
	Incarnation cluster.Incarnation `json:"incarnation,omitempty"`
	Epoch       cluster.Epoch       `json:"epoch,omitempty"`
	N           uint64              `json:"n,omitempty"`
	TTLMillis   int64               `json:"ttl_ms,omitempty"`
	Stage       cluster.FenceStage  `json:"stage,omitempty"`
	// Peers are, of a lease, whom its holder asks before it goes on without the
	// store; none: its failsafe is off.
	Peers []cluster.NodeID `json:"peers,omitempty"`
	// Unproven are, of a lease, the lost holders whose dead-proofs it owes.
	Unproven []cluster.NodeID `json:"unproven,omitempty"`
	// Order is, of a fence, the operator's order that made it.
	Order string `json:"order,omitempty"`
	// Lost is, of a workload's keys, how many of the acknowledged ones are gone.
	Lost uint64 `json:"lost,omitempty"`
	Text string `json:"text,omitempty"`
}

// History is append-only: kept in memory for the checker and written as JSON
// lines for people. It is safe for concurrent use, and adding never waits for
// a disk: who measures adds.
type History struct {
	mu      sync.Mutex
	entries []Entry
	more    chan struct{} // something is to be written; nil without a file
	written chan struct{} // closed when the writer has ended
	closed  bool
}

// OpenHistory starts a history in the file; an empty path keeps it in memory.
func OpenHistory(path string) (*History, error) {
	h := &History{}
	if path == "" {
		return h, nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return nil, fmt.Errorf("open the history: %w", err)
	}
	h.more, h.written = make(chan struct{}, 1), make(chan struct{})
	go h.write(f, h.more)
	return h, nil
}

// write brings the entries to the file until more is closed.
func (h *History) write(f *os.File, more <-chan struct{}) {
	defer close(h.written)
	defer f.Close()
	w, done := bufio.NewWriter(f), 0
	e := json.NewEncoder(w)
	for open := true; open; {
		_, open = <-more
		h.mu.Lock()
		entries := h.entries[done:]
		h.mu.Unlock()
		for i := range entries {
			_ = e.Encode(entries[i])
		}
		done += len(entries)
		_ = w.Flush()
	}
}

// Add appends an entry, stamped with the present instant unless it has one.
func (h *History) Add(e Entry) {
	if e.At.IsZero() {
		e.At = now()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.entries = append(h.entries, e)
	if h.more == nil || h.closed {
		return
	}
	select {
	case h.more <- struct{}{}:
	default: // the writer has been told already
	}
}

// Entries returns what has been recorded so far, in the order of recording.
func (h *History) Entries() []Entry {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]Entry(nil), h.entries...)
}

// Since returns the entries that touch the time from the instant on.
func (h *History) Since(from cluster.Instant) []Entry {
	var out []Entry
	for _, e := range h.Entries() {
		if e.At >= from || e.Until >= from {
			out = append(out, e)
		}
	}
	return out
}

// Close writes out what is not yet in the file; later entries stay in memory.
func (h *History) Close() {
	h.mu.Lock()
	ending := h.more != nil && !h.closed
	h.closed = true
	h.mu.Unlock()
	if ending {
		close(h.more)
		<-h.written
	}
}

// ReadHistory reads JSON lines as OpenHistory's file holds them.
func ReadHistory(r io.Reader) ([]Entry, error) {
	var out []Entry
	d := json.NewDecoder(r)
	for {
		var e Entry
		err := d.Decode(&e)
		if err == io.EOF {
			return out, nil
		}
		if err != nil {
			return out, fmt.Errorf("read the history after %d entries: %w", len(out), err)
		}
		out = append(out, e)
	}
}
