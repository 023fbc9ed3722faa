package sandbox

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"pvc.internal/cluster"
)

// Chaos is troubles at random that overlap, in bouts: after each everything is
// mended, the cluster must come to rest, and the history is checked. A bout
// follows from the seed and its number alone, so that the one that failed can be
// run again by itself, whole or up to some move.

// Move is one trouble of a bout.
type Move struct {
	At      time.Duration `json:"at"` // from the bout's beginning
	Lasting time.Duration `json:"lasting"`
	Trouble string        `json:"trouble"`
	Node    int           `json:"node"`  // index of whom it strikes
	Other   int           `json:"other"` // index of another coordinator, for what goes on between two
}

// String renders the move for people; nodes by the sandbox's names.
func (m Move) String() string {
	return fmt.Sprintf("%5.1f s  %-15s hv%d  for %.1f s (other: hv%d)", m.At.Seconds(), m.Trouble, m.Node+1, m.Lasting.Seconds(), m.Other+1)
}

// Bout is the moves of one bout, by when they strike.
type Bout struct {
	Number int    `json:"number"` // from 1
	Moves  []Move `json:"moves"`
}

// kindOfTrouble is what may be drawn, and for how long it lasts.
type kindOfTrouble struct {
	name, text  string
	weight      int
	least, most time.Duration
	server      bool // strikes coordinators only: it is about their ZooKeeper servers
	workloads   bool // it is about workloads: where none run it is not drawn
}

// troubles lists what chaos is made of.
func troubles() []kindOfTrouble {
	const s, tenth = time.Second, 100 * time.Millisecond
	return []kindOfTrouble{
		{"switch", "a wish for a coordinator, or for none", 6, 0, 0, true, false},
		{"maintenance", "maintenance for a while", 1, 2 * s, 6 * s, false, false},
		{"agent-kill", "kill -9 of the agent", 4, 2 * tenth, 8 * s, false, false},
		{"agent-stop", "SIGSTOP of the agent", 4, 3 * tenth, 8 * s, false, false},
		{"agent-term", "SIGTERM of the agent", 2, s, 6 * s, false, false},
		{"guard-kill", "kill -9 of the guard", 1, 0, 0, false, false},
		{"link-down", "both networks unplugged", 2, s, 10 * s, false, false},
		{"zk-cut", "cut off from ZooKeeper alone", 3, s, 12 * s, false, false},
		{"zk-cut-out", "nothing reaches ZooKeeper", 2, s, 12 * s, false, false},
		{"zk-cut-in", "nothing comes from ZooKeeper", 2, s, 12 * s, false, false},
		{"node-cut", "cut off one way from one coordinator", 2, s, 10 * s, false, false},
		{"mgmt-cut", "management network unplugged", 2, 2 * s, 10 * s, false, false},
		{"power-loss", "power loss", 3, 5 * tenth, 15 * s, false, false},
		{"zk-kill", "kill -9 of the ZooKeeper server", 2, 5 * tenth, 6 * s, true, false},
		{"zk-stop", "SIGSTOP of the ZooKeeper server", 2, 5 * tenth, 6 * s, true, false},
		{"store-stall", "SIGSTOP of every ZooKeeper server", 1, 2 * s, 12 * s, false, false},
		{"bmc-unreachable", "the BMC unreachable", 2, 3 * s, 12 * s, false, false},
		{"bmc-lying", "the BMC says ok and does nothing", 1, 3 * s, 12 * s, false, false},
		{"bmc-password", "the BMC refuses the password", 1, 3 * s, 12 * s, false, false},
		{"bmc-slow", "the BMC takes 3 s to switch", 1, 3 * s, 12 * s, false, false},
		{"fence-order", "an operator orders a fence", 1, 0, 0, false, false},
		{"redis-kill", "kill -9 of the active Redis", 3, 0, 0, false, true},
		{"move", "a workload is ordered to another node", 4, 0, 0, false, true},
		{"drain", "a node is drained for a while", 3, 2 * s, 10 * s, false, true},
	}
}

// selectTroubles returns those that are named, all for none.
func selectTroubles(names []string) ([]kindOfTrouble, error) {
	all := troubles()
	if len(names) == 0 {
		return all, nil
	}
	var known []string
	for _, t := range all {
		known = append(known, t.name)
	}
	for _, n := range names {
		if !slices.Contains(known, n) {
			return nil, fmt.Errorf("no trouble is named %q; there are %s", n, strings.Join(known, ", "))
		}
	}
	return slices.DeleteFunc(all, func(t kindOfTrouble) bool { return !slices.Contains(names, t.name) }), nil
}

// The shape of a bout.
const (
	boutLeast, boutMost   = 10 * time.Second, 20 * time.Second // in which its moves begin
	movesLeast, movesMost = 3, 7
)

// planBout draws a bout; the same arguments always give the same one.
func planBout(seed uint64, number, coordinators, nodes int, kinds []kindOfTrouble) Bout {
	draw := rand.New(rand.NewPCG(seed, uint64(number)))
	between := func(least, most time.Duration) time.Duration {
		return least + time.Duration(draw.Int64N(int64(most-least)+1))
	}
	weights := 0
	for _, k := range kinds {
		weights += k.weight
	}
	length := between(boutLeast, boutMost)
	b := Bout{Number: number}
	for range movesLeast + draw.IntN(movesMost-movesLeast+1) {
		drawn, i := draw.IntN(weights), 0
		for drawn >= kinds[i].weight {
			drawn -= kinds[i].weight
			i++
		}
		m := Move{At: between(0, length), Lasting: between(kinds[i].least, kinds[i].most), Trouble: kinds[i].name, Node: draw.IntN(nodes)}
		if kinds[i].server {
			m.Node %= coordinators
		}
		if coordinators > 1 {
			m.Other = (m.Node + 1 + draw.IntN(coordinators-1)) % coordinators
		}
		b.Moves = append(b.Moves, m)
	}
	slices.SortStableFunc(b.Moves, func(x, y Move) int { return int(x.At - y.At) })
	return b
}

// failingPrefix is the moves that had struck by the instant, given when the
// bout began: what came later cannot have caused it.
func failingPrefix(b Bout, began, at cluster.Instant) []Move {
	return slices.DeleteFunc(slices.Clone(b.Moves), func(m Move) bool { return began.Add(m.At) > at })
}

// ChaosRequest says what chaos to run.
type ChaosRequest struct {
	Seed    uint64        `json:"seed"`
	Lasting time.Duration `json:"lasting"` // a bout that has begun is finished
	// Bout, from 1, runs that one alone; Moves only its first so many moves.
	Bout     int      `json:"bout,omitempty"`
	Moves    int      `json:"moves,omitempty"`
	Troubles []string `json:"troubles,omitempty"` // none: all
}

// Validate reports what cannot be run.
func (r ChaosRequest) Validate() error {
	if _, err := selectTroubles(r.Troubles); err != nil {
		return err
	}
	switch {
	case r.Bout < 0 || r.Moves < 0:
		return fmt.Errorf("bout %d, %d moves: both count from 1", r.Bout, r.Moves)
	case r.Moves > 0 && r.Bout == 0:
		return fmt.Errorf("the first %d moves of which bout? Give its number, too", r.Moves)
	case r.Bout == 0 && (r.Lasting <= 0 || r.Lasting > 24*time.Hour):
		return fmt.Errorf("chaos for %v: more than nothing, at most a day", r.Lasting)
	}
	return nil
}

// ChaosReport is what a run of chaos found.
type ChaosReport struct {
	Seed       uint64      `json:"seed"`
	Profile    string      `json:"profile"`
	Bouts      int         `json:"bouts"` // that ended
	Moves      int         `json:"moves"`
	Fences     int         `json:"fences"`    // nodes that were proven dead
	Handovers  int         `json:"handovers"` // holders of the role, one after the other
	Keepalives int         `json:"keepalives"`
	Violations []Violation `json:"violations"`
	// Failing are the moves of the bout numbered FailingBout that had struck when
	// the first invariant was broken.
	Failing     []Move  `json:"failing_prefix,omitempty"`
	FailingBout int     `json:"failing_bout,omitempty"`
	Seconds     float64 `json:"seconds"`
	Error       string  `json:"error,omitempty"` // why it ended early
}

// Err is nil if no invariant was broken and nothing stopped it.
func (r ChaosReport) Err() error {
	switch {
	case len(r.Violations) > 0:
		return fmt.Errorf("%d times an invariant was broken; the first: %s %s", len(r.Violations), r.Violations[0].Invariant, r.Violations[0].Text)
	case r.Error != "":
		return fmt.Errorf("chaos ended early: %s", r.Error)
	}
	return nil
}

// Text renders the report for people.
func (r ChaosReport) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Seed %d, profile %s: %d bouts, %d moves, %d holders, %d nodes proven dead, %d keepalives, %s in all.\n",
		r.Seed, r.Profile, r.Bouts, r.Moves, r.Handovers, r.Fences, r.Keepalives, time.Duration(r.Seconds*float64(time.Second)).Round(time.Second))
	for _, v := range r.Violations {
		fmt.Fprintf(&b, "BROKEN %s at %.3f s: %s\n", v.Invariant, float64(v.At)/1e9, v.Text)
	}
	if len(r.Violations) == 0 {
		fmt.Fprintln(&b, "Invariants I1 to I10, as far as the history shows them: held.")
		return b.String()
	}
	fmt.Fprintf(&b, "The shortest prefix that failed, of bout %d:\n", r.FailingBout)
	for _, m := range r.Failing {
		fmt.Fprintf(&b, "  %s\n", m)
	}
	fmt.Fprintf(&b, "Again: pvc sandbox chaos --seed %d --bout %d --moves %d\n", r.Seed, r.FailingBout, len(r.Failing))
	return b.String()
}

// count fills in what the history has seen.
func (r *ChaosReport) count(entries []Entry) {
	proofs := map[string]bool{}
	var holder cluster.Epoch
	for _, e := range entries {
		switch {
		case e.Kind == KindKeepalive:
			r.Keepalives++
		case e.Kind == KindFence && proven(e):
			proofs[e.Name] = true
		case e.Kind == KindLease && e.Node != "" && e.Epoch != holder:
			holder = e.Epoch
			r.Handovers++
		}
	}
	r.Fences = len(proofs)
}
