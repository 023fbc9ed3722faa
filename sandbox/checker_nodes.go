package sandbox

import (
	"fmt"
	"slices"
	"time"

	"pvc.internal/cluster"
)

// away is a time in which a fault had taken all servers away.
type away struct {
	from, to cluster.Instant // to: Forever while it lasts
}

// storeAways are those times, by when records were written. Each ends with the
// first write that was taken: something else has started enough servers again.
func storeAways(entries []Entry) []away {
	var out []away
	open := cluster.Never
	for _, e := range entries {
		fault := e.Kind == KindStore && e.By == byFault
		switch {
		case open.IsZero() && fault && !e.On:
			open = e.At
		case !open.IsZero() && (fault && e.On || e.Written > open):
			out = append(out, away{open, e.At})
			open = cluster.Never
		}
	}
	if !open.IsZero() {
		out = append(out, away{open, cluster.Forever})
	}
	return out
}

// promisesTo are the promises that the other coordinators gave the holder.
func promisesTo(entries []Entry, holder Entry) []Entry {
	var out []Entry
	for _, e := range entries {
		if e.Kind == KindPromise && e.By == string(holder.Node) && e.Node != holder.Node {
			out = append(out, e)
		}
	}
	return out
}

// instants are when the entries were, within [from, to].
func instants(entries []Entry, from, to cluster.Instant) []cluster.Instant {
	var out []cluster.Instant
	for _, e := range entries {
		if e.At >= from && e.At <= to {
			out = append(out, e.At)
		}
	}
	return out
}

// promised is until when the promises that were given before the instant may
// carry the holder. Every other coordinator must have promised, each no earlier
// than it was asked, and the question's send instant is what counts: so none
// of the newest ones may have been over. That rests on what the others say of
// themselves, and blinds nobody: who breaks the word that he has logged makes
// two answer, which is seen without it, and who was never asked has logged none.
func (e Entry) promised(promises []Entry, before cluster.Instant, limits Limits) cluster.Instant {
	if len(e.Peers) == 0 {
		return cluster.Never // it asks nobody
	}
	until := cluster.Forever
	for _, peer := range e.Peers {
		if peer == e.Node {
			continue
		}
		newest := cluster.Never
		for _, p := range promises {
			if p.Node == peer && p.At < before {
				newest = max(newest, p.At.Add(time.Duration(p.TTLMillis)*time.Millisecond-limits.Grace))
			}
		}
		until = min(until, newest)
	}
	return until
}

// checkProofs is I4: what counts as a dead-proof is one, and nothing is served
// by whoever still owes one.
func checkProofs(entries []Entry) []Violation {
	var out []Violation
	registered := map[cluster.Incarnation]cluster.Instant{}
	present := map[cluster.NodeID]cluster.Incarnation{}
	powerless := map[cluster.NodeID]cluster.Instant{}
	judged := map[string]bool{}
	for i, e := range entries {
		switch e.Kind {
		case KindIncarnation:
			registered[e.Incarnation], present[e.Node] = e.At, e.Incarnation
		case KindPower:
			if !e.On && e.By == "" {
				powerless[e.Node] = e.At
			}
		case KindHook:
			if e.On {
				out = append(out, owesProof(entries[:i], entries[i:], e)...)
			}
		case KindFence:
			if !proven(e) || judged[e.Name] {
				continue
			}
			judged[e.Name] = true
			since, known := registered[e.Incarnation]
			switch {
			case e.Text == "":
				out = append(out, Violation{"I4", e.At, fmt.Sprintf("the fence of %s (%s) is in stage %s without a dead-proof", e.Node, e.Incarnation, e.Stage)})
			case e.Text == "verified_off" && known && powerless[e.Node] < since:
				out = append(out, Violation{"I4", e.At, fmt.Sprintf("%s counts as %s, though its power was never taken since %s registered", e.Node, e.Text, e.Incarnation)})
			case e.Text == "returned" && known && present[e.Node] == e.Incarnation:
				out = append(out, Violation{"I4", e.At, fmt.Sprintf("%s counts as %s, though no later start than %s has registered", e.Node, e.Text, e.Incarnation)})
			}
		}
	}
	return out
}

// proven reports whether the fence's stage says that there is a dead-proof.
func proven(e Entry) bool {
	switch e.Stage {
	case cluster.FenceFenced, cluster.FenceRecover, cluster.FenceDone:
		return true
	}
	return false
}

// owesProof objects to a service that starts where the lease says that the
// death of an earlier holder is not proven.
func owesProof(before, after []Entry, started Entry) []Violation {
	i := lastOf(before, KindLease)
	if i < 0 || before[i].Node != started.Node || len(before[i].Unproven) == 0 {
		return nil
	}
	if j := slices.IndexFunc(after, func(e Entry) bool { return e.Kind == KindLease }); j < 0 || !after[j].After.IsZero() {
		return nil // the proof may have come in a write that was not seen
	}
	return []Violation{{"I4", started.At, fmt.Sprintf("service %s was started on %s, which still owed the dead-proof of %v", started.Name, started.Node, before[i].Unproven)}}
}

// lastOf is the index of the last entry of the kind, −1 if there is none.
func lastOf(entries []Entry, kind Kind) int {
	for i, e := range slices.Backward(entries) {
		if e.Kind == kind {
			return i
		}
	}
	return -1
}

// checkMajority is I6: half or more of the nodes are never fenced at once, and
// nobody is while the store is away for all. What an operator orders counts
// for nothing: it is a person's decision.
func checkMajority(entries []Entry) []Violation {
	var out []Violation
	present := map[cluster.NodeID]cluster.Incarnation{}
	gone := map[cluster.NodeID]Entry{} // under fire or fenced, and not back
	ordered := map[cluster.NodeID]bool{}
	var ttl time.Duration
	aways := storeAways(entries)
	for _, e := range entries {
		switch e.Kind {
		case KindLease:
			ttl = time.Duration(e.TTLMillis) * time.Millisecond
		case KindIncarnation:
			present[e.Node] = e.Incarnation
			if f, ok := gone[e.Node]; ok && f.Incarnation != e.Incarnation {
				delete(gone, e.Node)
			}
		case KindFence:
			ordered[e.Node] = e.Order != ""
			_, already := gone[e.Node]
			switch {
			case e.Stage == cluster.FenceCanceled || e.Stage == cluster.FenceFailed || e.Stage == cluster.FenceManual:
				delete(gone, e.Node)
			case shot(e) && !already && present[e.Node] == e.Incarnation:
				gone[e.Node] = e
				if 2*len(gone) >= len(present) && e.Order == "" {
					out = append(out, Violation{"I6", e.At, fmt.Sprintf("%s is fenced by %s, which makes %d of %d nodes", e.Node, e.By, len(gone), len(present))})
				}
			}
		case KindPower:
			if e.On || e.By != "bmc" || e.Text == wasOn(false) || ordered[e.Node] {
				continue
			}
			for _, a := range aways {
				if e.At > a.from.Add(ttl) && e.At < a.to {
					out = append(out, Violation{"I6", e.At, fmt.Sprintf("%s was powered off %v after the store had gone away for all", e.Node, e.At.Sub(a.from))})
				}
			}
		}
	}
	return out
}

// shot reports whether the fence's stage says that the node's power is being
// taken, or has been.
func shot(e Entry) bool {
	switch e.Stage {
	case cluster.FencePowerOff, cluster.FenceVerify, cluster.FenceFenced:
		return true
	}
	return false
}

// checkRest is I7: once a fault has healed the cluster comes to rest by itself.
func checkRest(entries []Entry, limits Limits) []Violation {
	var out []Violation
	var healed Entry
	late := func(at cluster.Instant) {
		if d := at.Sub(healed.At); !healed.At.IsZero() && limits.Converge > 0 && d > limits.Converge {
			out = append(out, Violation{"I7", healed.At.Add(limits.Converge), fmt.Sprintf("not at rest %v after %s had healed", d, healed.Name)})
		}
		healed = Entry{}
	}
	for _, e := range entries {
		if e.Kind != KindFault {
			continue
		}
		switch e.Text {
		case stepHealed:
			late(e.At)
			healed = e
		case stepRest, stepInject:
			late(e.At)
		case stepUnrest:
			out = append(out, Violation{"I7", e.At, fmt.Sprintf("the cluster does not come to rest after %s: %s", e.Name, e.By)})
			healed = Entry{}
		}
	}
	if len(entries) > 0 {
		late(entries[len(entries)-1].At)
	}
	return out
}

// maintenanceSlack is for how long after maintenance was switched on somebody
// may not have heard of it.
const maintenanceSlack = 2 * time.Second

// checkIntents is I8: at rest every acknowledged wish has been served or
// answered, and maintenance is what was acknowledged last, and is obeyed.
func checkIntents(entries []Entry) []Violation {
	var out []Violation
	wish, holder, maintenance := "", "", false
	var since cluster.Instant // of the maintenance that is on
	intended := ""            // the maintenance that was acknowledged last
	claimed := map[string]bool{}
	for _, e := range entries {
		switch {
		case e.Kind == KindPrimary:
			wish = e.Text
		case e.Kind == KindLease:
			holder = string(e.Node)
		case e.Kind == KindMaintenance:
			maintenance, since = e.On, e.At
		case e.Kind == KindIntent && e.Name == intentMaintenance:
			intended = e.Text
		case e.Kind == KindFence:
			fresh := !claimed[e.Name]
			claimed[e.Name] = true
			if fresh && maintenance && e.Order == "" && e.Stage == cluster.FenceClaimed && e.since().Sub(since) > maintenanceSlack {
				out = append(out, Violation{"I8", e.At, fmt.Sprintf("%s claimed a fence of %s in maintenance", e.By, e.Node)})
			}
		case e.Kind == KindFault && e.Text == stepRest:
			if wish != "" && wish != holder {
				out = append(out, Violation{"I8", e.At, fmt.Sprintf("the wish for %q is neither served nor answered at rest: %s is primary", wish, holder)})
			}
			if intended != "" && intended != onOff(maintenance) {
				out = append(out, Violation{"I8", e.At, fmt.Sprintf("maintenance %s was acknowledged and is lost: it is %s", intended, onOff(maintenance))})
			}
		}
	}
	return out
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

// How a restart is judged: for so long before it nothing of a hand-over may have
// been going on, so long before the deadline its Resume must have been written,
// since its acknowledgement counts, and for so long after it is watched.
const (
	resumeQuiet  = 10 * time.Second
	resumeMargin = 300 * time.Millisecond
	resumeWatch  = time.Second
)

// checkRestarts is I9: a holder whose new start has resumed the role within
// its deadline has lost neither an address nor a service.
func checkRestarts(entries []Entry, limits Limits) []Violation {
	var out []Violation
	var was, earlier Entry // the two leases before
	for _, e := range entries {
		if e.Kind != KindLease {
			continue
		}
		last, before := was, earlier
		was, earlier = e, was
		if before.Incarnation != last.Incarnation {
			before = last
		}
		// The start that was killed need not have seen its last renewal
		// acknowledged: then the deadline is that of the one before.
		resumed := e.Node != "" && e.Node == last.Node && e.Incarnation != last.Incarnation && e.After.IsZero() &&
			e.At.Add(resumeMargin) <= before.deadline(limits)
		if !resumed || disturbed(entries, e.Node, last.At.Add(-resumeQuiet), e.At) {
			continue
		}
		for _, lost := range entries {
			if lost.Node == e.Node && !lost.On && (lost.Kind == KindHeld || lost.Kind == KindHook) &&
				lost.At >= last.At && lost.At <= e.At.Add(resumeWatch) && !disturbed(entries, e.Node, e.At+1, lost.At) {
				out = append(out, Violation{"I9", lost.At, fmt.Sprintf("%s lost %s%s though its agent's restart resumed the role %v after the last renewal",
					lost.Node, lost.Addr, lost.Name, e.At.Sub(last.At))})
			}
		}
	}
	return out
}

// disturbed reports whether anything but the agent's restart was happening to
// the node in [from, to]: a hand-over, its power, its guard.
func disturbed(entries []Entry, n cluster.NodeID, from, to cluster.Instant) bool {
	return slices.ContainsFunc(entries, func(e Entry) bool {
		if e.At < from || e.At > to {
			return false
		}
		switch e.Kind {
		case KindTransition, KindPrimary:
			return true
		case KindPower, KindCut:
			return e.Node == n
		case KindProgram:
			return e.Node == n && e.Name != progAgent || e.Text == "SIGTERM"
		}
		return false
	})
}

// checkKeepalives is I10: between two keepalives of one start of an agent that
// nothing was done to, while the others were writing, none is missing.
func checkKeepalives(entries []Entry, limits Limits) []Violation {
	if limits.Missed == 0 {
		return nil
	}
	var out []Violation
	last := map[cluster.NodeID]Entry{}
	started := map[cluster.NodeID]cluster.Instant{}
	for _, e := range entries {
		if e.Kind == KindIncarnation || e.Kind == KindDaemon {
			started[e.Node] = e.At
		}
		if e.Kind != KindKeepalive || e.Written.IsZero() {
			continue
		}
		was, seen := last[e.Node]
		last[e.Node] = e
		gap := e.At.Sub(was.At)
		if !seen || e.N != was.N+1 || gap <= limits.Missed || started[e.Node] >= was.At {
			continue
		}
		if harmedBetween(entries, e.Node, was.At.Add(-limits.Missed), e.At) || !othersWrote(entries, e.Node, was.At, e.At, limits.Missed) {
			continue
		}
		out = append(out, Violation{"I10", e.At, fmt.Sprintf("%s wrote no keepalive for %v, though it lived and the store answered", e.Node, gap)})
	}
	return out
}

// harmedBetween reports whether something may have kept the node from the
// store: its own network, its agent, or any of the servers. Their network is
// one of the coordinators': a server that is cut off, if only one way and from
// one other, leaves its clients, and as leader or follower its quorum.
func harmedBetween(entries []Entry, n cluster.NodeID, from, to cluster.Instant) bool {
	servers := map[cluster.NodeID]bool{}
	cuts := map[[2]string]bool{} // that are on, by node and name
	for _, e := range entries {
		if e.At > to {
			break
		}
		within := e.At >= from
		switch e.Kind {
		case KindLease:
			for _, c := range e.Peers {
				servers[c] = true
			}
		case KindCut:
			cut := [2]string{string(e.Node), e.Name}
			if within && (e.Node == n || servers[e.Node] && (e.On || cuts[cut])) {
				return true
			}
			if delete(cuts, cut); e.On {
				cuts[cut] = true
			}
		case KindPower:
			// A lost server takes its clients' sessions along, and may be the leader.
			if within && !e.On {
				return true
			}
		case KindProgram:
			if within && (e.Name == progZooKeeper || e.Node == n) {
				return true
			}
		case KindStore, KindLoad:
			if within {
				return true
			}
		}
	}
	for cut := range cuts { // that have been on all along
		if node := cluster.NodeID(cut[0]); node == n || servers[node] {
			return true
		}
	}
	return false
}

// othersWrote reports whether the other nodes' keepalives and the lease went on
// being written from the one instant to the other.
func othersWrote(entries []Entry, n cluster.NodeID, from, to cluster.Instant, missed time.Duration) bool {
	at := from
	for _, e := range entries {
		if e.Node == n || e.Written.IsZero() || e.Kind != KindKeepalive && e.Kind != KindLease || e.At <= from || e.At >= to {
			continue
		}
		if e.At.Sub(at) > missed/2 {
			return false
		}
		at = e.At
	}
	return to.Sub(at) <= missed/2
}
