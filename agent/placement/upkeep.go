package placement

import (
	"fmt"
	"maps"
	"slices"

	"pvc.internal/cluster"
)

// Do is what a movable workload needs next.
type Do string

// What is done for a movable workload. Each rests on what was found, and is found
// anew before the next.
//
//	         no chain, or its node proven dead
//	   ┌──────────────────────────────────────────┐
//	   ▼                                          │
//	place ──▶ start ──▶ running ──▶ (its copy ended) ──▶ start … ──▶ fail
//	   │        ▲          │
//	   ▼        │          └──▶ stop (not wanted) ──▶ stopped
//	stopped (no place) ────▶ place, once there is one
const (
	DoNothing Do = ""
	DoPlace   Do = "place"   // pick a node, write it, start it there
	DoStart   Do = "start"   // on Node
	DoLeave   Do = "leave"   // its starts on Node have failed: move it elsewhere, or start it there again
	DoStop    Do = "stop"    // on Node
	DoEnd     Do = "end"     // a copy on Node that the record does not know: stop it, loudly
	DoMove    Do = "move"    // go on with the unfinished move
	DoRunning Do = "running" // write that it runs
	DoStopped Do = "stopped" // write that it is stopped
	DoFail    Do = "fail"    // write that its starts have failed too often
	DoWait    Do = "wait"    // nothing can be told: Why
	DoSteady  Do = "steady"  // write that its failed starts are past: it has run for long
)

// Case is a movable workload as it was found. It is never edited.
type Case struct {
	Workload cluster.Workload
	// Reports are what nodes have said of it; one that is unknown counts as none.
	Reports map[cluster.NodeID]cluster.CopyReport
	// Proven are the nodes whose present start is proven dead; Recover those of them
	// whose workloads restart elsewhere.
	Proven, Recover map[cluster.NodeID]bool
	// Removed are nodes that are no members any more.
	Removed map[cluster.NodeID]bool
	// Ready are nodes whose domain state is ready.
	Ready map[cluster.NodeID]bool
	// Steady says that it has run for so long that earlier failed starts are past.
	Steady bool
	// Ended says that what ran has ended with an earlier start of its node's daemon:
	// that of itself is no reason to go elsewhere, or to be given up.
	Ended bool
}

// Step is what to do, where, and why.
type Step struct {
	Do   Do
	Node cluster.NodeID
	Why  string
}

// report is what the node has said; false: nothing that counts.
func (c Case) report(n cluster.NodeID) (cluster.CopyReport, bool) {
	r, ok := c.Reports[n]
	return r, ok && !r.Unknown
}

// Gone reports whether nothing of the workload can run on the node any more.
func (c Case) Gone(n cluster.NodeID) bool {
	return n == cluster.NoCopy || c.Proven[n] || c.Removed[n]
}

// Upkeep says what a movable workload needs. It never has a second copy started: a
// start is only ever on the chain's node, and the chain changes only once nothing
// runs on the node before (I4).
func Upkeep(c Case) Step {
	w := c.Workload
	known := Places(w)
	if w.Next != nil {
		known = append(known, w.Next.From...)
	}
	for _, n := range slices.Sorted(maps.Keys(c.Reports)) {
		if r, ok := c.report(n); ok && (r.State == cluster.CopyActive || r.Left) && !slices.Contains(known, n) && !c.Gone(n) {
			return Step{DoEnd, n, fmt.Sprintf("a copy of it runs on %s, where its record has none", n)}
		}
	}
	if w.Next != nil && w.Request == nil {
		return Step{Do: DoMove, Node: w.Next.Chain[0]}
	}
	if w.Next != nil {
		return Step{} // the request goes on with it
	}
	if !w.Wanted {
		return c.unwanted()
	}
	return c.wanted()
}

func (c Case) unwanted() Step {
	w, head := c.Workload, c.Workload.Head()
	r, ok := c.report(head)
	switch {
	case c.Gone(head) || ok && r.State == cluster.CopyMissing:
		if w.State != cluster.WorkloadStopped || w.Reason != "" {
			return Step{Do: DoStopped}
		}
		return Step{}
	case !ok:
		return Step{DoWait, head, c.silence(head)}
	case r.State == cluster.CopyDead && !r.Left && w.State == cluster.WorkloadStopped:
		return Step{} // it was stopped, and the driver tells no more than that its data is there
	}
	return Step{Do: DoStop, Node: head}
}

func (c Case) wanted() Step {
	w, head := c.Workload, c.Workload.Head()
	switch {
	case head == cluster.NoCopy:
		if w.State == cluster.WorkloadStopped && !w.Autostart || w.State == cluster.WorkloadFailed {
			return Step{}
		}
		return Step{Do: DoPlace}
	case c.Proven[head] && !c.Recover[head]:
		return Step{DoWait, head, fmt.Sprintf("its node %s is proven dead and its workloads are not restarted elsewhere (policy none)", head)}
	case c.Gone(head):
		return Step{DoPlace, head, fmt.Sprintf("its node %s is gone", head)}
	}
	r, ok := c.report(head)
	switch {
	case !ok:
		return Step{DoWait, head, c.silence(head)}
	case r.State == cluster.CopyActive:
		return c.active()
	case w.State == cluster.WorkloadFailed:
		return Step{}
	case w.Attempts >= MaxAttempts && !c.ended():
		return Step{DoFail, head, w.Reason}
	case !c.Ready[head]:
		return Step{DoWait, head, fmt.Sprintf("it does not run, and its node %s is not ready for workloads", head)}
	case Elsewhere(w.Attempts) && !c.ended():
		return Step{Do: DoLeave, Node: head}
	}
	return Step{Do: DoStart, Node: head}
}

func (c Case) active() Step {
	switch w := c.Workload; {
	case w.State != cluster.WorkloadRunning:
		return Step{Do: DoRunning, Node: w.Head()}
	case w.Attempts > 0 && c.Steady:
		return Step{Do: DoSteady, Node: w.Head()}
	}
	return Step{}
}

// ended reports whether what ran as it should has ended with its node's daemon.
func (c Case) ended() bool { return c.Ended && c.Workload.State == cluster.WorkloadRunning }

func (c Case) silence(n cluster.NodeID) string {
	if r, ok := c.Reports[n]; ok && r.Error != "" {
		return fmt.Sprintf("node %s cannot tell whether it runs: %s", n, r.Error)
	}
	return fmt.Sprintf("node %s does not answer, and is not proven dead", n)
}
