package sandbox

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"pvc.internal/cluster"
)

// Violation is a broken invariant, with the entries that show it.
type Violation struct {
	Invariant string          `json:"invariant"` // I1 … I10
	At        cluster.Instant `json:"t"`
	Text      string          `json:"text"`
}

// Limits are what the checker allows for the way it measures.
type Limits struct {
	// Noise is the measured resolution of answers.
	Noise time.Duration
	// Events is how late the end of a service is stamped at worst; zero: Noise.
	Events time.Duration
	// Grace is the profile's G: a holder stops that much before its ttl ends.
	Grace time.Duration
	// Converge is how long after a fault has healed the cluster may take to come
	// to rest; zero: I7 is judged by what the sandbox itself waited for.
	Converge time.Duration
	// Missed is a gap between two keepalives in which one is missing; zero: I10
	// is not judged.
	Missed time.Duration
	// Right is how long after its last acknowledged keepalive a node may run copies
	// of workloads (Q·K), Stop what ending one may take; a Right of zero: that is not
	// judged.
	Right, Stop time.Duration
}

// The steps of a fault, in the text of its entries.
const (
	stepInject = "inject"
	stepHeal   = "heal"
	stepHealed = "healed"
	stepRest   = "rest"   // the cluster rests again
	stepUnrest = "unrest" // it was waited for in vain; By says what is missing
	stepEnd    = "end"
)

// intentMaintenance is the name of an operator's acknowledged maintenance, "on" or "off".
const (
	intentMaintenance = "maintenance"
	intentPrimary     = "primary_node"
)

// Check examines a history for broken invariants; none found is nil. It is
// pure: the same history always gives the same answer.
func Check(history []Entry, limits Limits) []Violation {
	entries := slices.Clone(history)
	slices.SortStableFunc(entries, func(a, b Entry) int { return cmp.Compare(a.At, b.At) })
	boundUnseen(entries)
	var out []Violation
	out = append(out, checkAnswers(entries)...)
	out = append(out, checkServices(entries, limits)...)
	out = append(out, checkEpochs(entries)...)
	written := byWriting(entries)
	out = append(out, checkDeadlines(written, limits)...)
	out = append(out, checkFences(written)...)
	stamped := byStamp(entries)
	out = append(out, checkProofs(stamped)...)
	out = append(out, checkMajority(stamped)...)
	out = append(out, checkRest(entries, limits)...)
	out = append(out, checkIntents(stamped)...)
	out = append(out, checkRestarts(written, limits)...)
	out = append(out, checkKeepalives(written, limits)...)
	out = append(out, checkCopies(entries, limits)...)
	out = append(out, checkRights(written, limits)...)
	out = append(out, checkKeys(entries)...)
	slices.SortStableFunc(out, func(a, b Violation) int { return cmp.Compare(a.At, b.At) })
	return out
}

// byWriting moves the records to when ZooKeeper's leader took their writes: who
// looks on sees them later, after a lost connection by seconds. A fence whose
// first writes nobody has seen is put where its claim says that it began.
func byWriting(entries []Entry) []Entry {
	out := slices.Clone(entries)
	for i, e := range out {
		switch {
		case e.Written.IsZero():
		case e.Kind == KindFence:
			out[i].At = e.since()
		default:
			out[i].At = e.Written
		}
	}
	slices.SortStableFunc(out, func(a, b Entry) int { return cmp.Compare(a.At, b.At) })
	return out
}

// byStamp moves the records to when they were written as they were seen, though
// writes before that were not: a proof is no older than the write that has it.
func byStamp(entries []Entry) []Entry {
	out := slices.Clone(entries)
	for i, e := range out {
		if !e.Written.IsZero() {
			out[i].At = e.Written
		}
	}
	slices.SortStableFunc(out, func(a, b Entry) int { return cmp.Compare(a.At, b.At) })
	return out
}

// unseenSpan is for how long at most writes of a record may have gone unseen
// before the one that was seen, while the sandbox's own link was well: the
// watch had shown none of them.
const unseenSpan = 500 * time.Millisecond

// unseenMargin is how much earlier than a lease something else must have been
// seen to have been read before it: what a new connection reads comes at once.
const unseenMargin = 100 * time.Millisecond

// boundUnseen bounds, in place, since when writes of a lease may have gone
// unseen. That is longer than unseenSpan where the link itself was held up, say
// by a server that was stopped: then nothing newer than its last news had been
// seen of any record. News come in the order of the writes, so that whatever
// was written before them had been seen, too. What a new connection reads is
// shown once all of it has been read, so that until then it is no news. The
// entries are in the order in which they were read.
func boundUnseen(entries []Entry) {
	next, news := 0, cluster.Never // the newest write that was seen in entries[:next]
	lost := cluster.Never          // since when the link is not live
	for i, e := range entries {
		switch {
		case e.Kind == KindStore && e.By == "" && !e.On && lost.IsZero():
			lost = e.At
		case e.Kind == KindStore && e.By == "" && e.On:
			lost = cluster.Never
		}
		if e.Kind != KindLease || e.Written.IsZero() || e.After.IsZero() {
			continue
		}
		shown := e.At.Add(-unseenMargin)
		if !lost.IsZero() {
			shown = min(shown, lost)
		}
		for ; entries[next].At <= shown; next++ {
			news = max(news, entries[next].Written)
		}
		entries[i].After = max(e.After, min(e.Written.Add(-unseenSpan), news))
	}
}

// since is from when on the record may have said what it says.
func (e Entry) since() cluster.Instant {
	switch {
	case e.Written.IsZero():
		return e.At.Add(-unseenSpan) // seen, but nobody knows when it was written
	case e.After.IsZero():
		return e.Written
	case e.Kind == KindFence || e.Kind == KindLease:
		// Of a fence no earlier than its claim, by its own word.
		return min(e.After, e.Written)
	}
	return max(e.After, e.Written.Add(-unseenSpan))
}

// checkAnswers is I1 for addresses: no round that two nodes answered.
func checkAnswers(entries []Entry) []Violation {
	var out []Violation
	for _, e := range entries {
		if e.Kind == KindTwice {
			out = append(out, Violation{"I1", e.At, fmt.Sprintf("%v answered for %s at the same time, for %v",
				e.Nodes, e.Addr, e.Until.Sub(e.At)+probePeriod)})
		}
	}
	return out
}

// checkServices is I1 for primary-only services: never two at once, beyond the
// noise with which the end of a process is noticed.
func checkServices(entries []Entry, limits Limits) []Violation {
	return ranTwice(entries, limits, KindHook, "I1", "service")
}

// ranTwice lists where two processes of one name ran at once, beyond the noise with
// which the end of a process is noticed.
func ranTwice(entries []Entry, limits Limits, kind Kind, invariant, what string) []Violation {
	var out []Violation
	noise := limits.Events
	if noise == 0 {
		noise = limits.Noise
	}
	type run struct {
		node cluster.NodeID
		at   cluster.Instant
	}
	running := map[string]map[cluster.NodeID]int{}
	overlap := map[string]run{}
	for _, e := range entries {
		if e.Kind != kind {
			continue
		}
		nodes := running[e.Name]
		if nodes == nil {
			nodes = map[cluster.NodeID]int{}
			running[e.Name] = nodes
		}
		if e.On {
			nodes[e.Node]++
		} else if nodes[e.Node]--; nodes[e.Node] <= 0 {
			delete(nodes, e.Node)
		}
		total := 0
		for _, n := range nodes {
			total += n
		}
		began, open := overlap[e.Name]
		switch {
		case total > 1 && !open:
			overlap[e.Name] = run{e.Node, e.At}
		case total <= 1 && open:
			delete(overlap, e.Name)
			if d := e.At.Sub(began.at); d > noise {
				out = append(out, Violation{invariant, began.at, fmt.Sprintf("%s %s ran twice for %v; the second was on %s", what, e.Name, d, began.node)})
			}
		}
	}
	for name, began := range overlap {
		out = append(out, Violation{invariant, began.at, fmt.Sprintf("%s %s runs twice to the end of the history; the second is on %s", what, name, began.node)})
	}
	return out
}

// checkEpochs is I2: the lease's epoch never falls, and another holder or
// incarnation always has a larger one.
func checkEpochs(entries []Entry) []Violation {
	var out []Violation
	var last, holder Entry // last lease seen; last one that was held
	for _, e := range entries {
		if e.Kind != KindLease {
			continue
		}
		if e.Epoch < last.Epoch {
			out = append(out, Violation{"I2", e.At, fmt.Sprintf("epoch fell from %d (%s) to %d (%s)", last.Epoch, last.Node, e.Epoch, e.Node)})
		}
		last = e
		if e.Node == "" {
			continue
		}
		if holder.Node != "" && e.Epoch <= holder.Epoch && (e.Node != holder.Node || e.Incarnation != holder.Incarnation) {
			out = append(out, Violation{"I2", e.At, fmt.Sprintf("%s (%s) holds the role with epoch %d, which %s (%s) had",
				e.Node, e.Incarnation, e.Epoch, holder.Node, holder.Incarnation)})
		}
		holder = e
	}
	return out
}

// checkDeadlines is I3: the holder is silent by its last renewal + ttl − grace.
// The renewal is counted from when ZooKeeper's leader took it, which is never
// before it was sent, and it counts as the last one only if a successor has
// taken over or a write proved that there was no newer: what is reported is a
// violation for certain.
func checkDeadlines(entries []Entry, limits Limits) []Violation {
	var out []Violation
	var holder Entry
	var expired cluster.Instant // the holder's latest KindExpired
	for _, e := range entries {
		switch {
		case e.Kind == KindExpired && e.Node == holder.Node && e.Epoch == holder.Epoch && e.N == holder.N:
			expired = e.At
		case e.Kind == KindLease:
			out = append(out, unrenewed(entries, holder, expired, limits)...)
			if holder.Node != "" && e.Node != holder.Node && e.Node != "" {
				out = append(out, lateAnswers(entries, holder, e, max(holder.deadline(limits), e.At), limits)...)
			}
			if e.Node != "" {
				holder = e
			}
			expired = cluster.Never
		}
	}
	return append(out, unrenewed(entries, holder, expired, limits)...)
}

// deadline is when the effects of a lease end at the latest.
func (e Entry) deadline(limits Limits) cluster.Instant {
	at := e.At
	if !e.Written.IsZero() {
		at = at.Add(wallTick)
	}
	return at.Add(time.Duration(e.TTLMillis)*time.Millisecond - limits.Grace)
}

// unrenewed lists the holder's answers between its deadline, as the promises of
// the others moved it, and the last proof that it had not been renewed.
func unrenewed(entries []Entry, holder Entry, expired cluster.Instant, limits Limits) []Violation {
	if expired.IsZero() {
		return nil
	}
	var out []Violation
	promises := promisesTo(entries, holder)
	for _, e := range entries {
		if e.Kind != KindAnswer || e.Node != holder.Node || e.At >= expired {
			continue
		}
		// It was wrong longest just before a promise, or at the answers' end.
		worst, at := time.Duration(0), cluster.Never
		until := min(e.Until, expired)
		for _, x := range append(instants(promises, e.At, until), until) {
			if over := x.Sub(max(holder.deadline(limits), holder.promised(promises, x, limits))); over > worst {
				worst, at = over, x
			}
		}
		if worst > limits.Noise {
			out = append(out, Violation{"I3", at, fmt.Sprintf("%s answered for %s until %v after its deadline (epoch %d, not renewed)",
				e.Node, e.Addr, worst, holder.Epoch)})
		}
	}
	return out
}

// lateAnswers lists the earlier holder's answers after its deadline, up to the
// instant at which it is the holder again.
func lateAnswers(entries []Entry, holder, successor Entry, deadline cluster.Instant, limits Limits) []Violation {
	until := cluster.Forever
	for _, e := range entries {
		if e.Kind == KindLease && e.At > successor.At && e.Node == holder.Node {
			until = e.since()
			break
		}
	}
	var out []Violation
	for _, e := range entries {
		if e.Kind != KindAnswer || e.Node != holder.Node || e.Until <= deadline.Add(limits.Noise) {
			continue
		}
		if e.At >= until.Add(-limits.Noise) {
			continue // of the later role: it answers once its write is acknowledged
		}
		out = append(out, Violation{"I3", e.Until, fmt.Sprintf("%s answered for %s until %v after its deadline (epoch %d, successor %s)",
			e.Node, e.Addr, e.Until.Sub(deadline), holder.Epoch, successor.Node)})
	}
	return out
}

// checkFences is I5: whatever a BMC switched off was the incarnation that a
// fence record named; an off of a machine that was off already harms nobody.
func checkFences(entries []Entry) []Violation {
	var out []Violation
	incarnation := map[cluster.NodeID]cluster.Incarnation{}
	fence := map[cluster.NodeID]Entry{}
	for _, e := range entries {
		switch {
		case e.Kind == KindIncarnation:
			incarnation[e.Node] = e.Incarnation
		case e.Kind == KindFence:
			fence[e.Node] = e
		case e.Kind == KindPower && e.By == "bmc" && !e.On:
			if e.Text == wasOn(false) {
				continue
			}
			f, ok := fence[e.Node]
			switch {
			case !ok:
				out = append(out, Violation{"I5", e.At, fmt.Sprintf("%s was powered off though no fence record named it", e.Node)})
			case f.Incarnation != incarnation[e.Node]:
				out = append(out, Violation{"I5", e.At, fmt.Sprintf("%s was powered off as incarnation %s, but was %s by then",
					e.Node, f.Incarnation, incarnation[e.Node])})
			}
		}
	}
	return out
}
