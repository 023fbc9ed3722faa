package failover

import (
	"fmt"
	"slices"
	"time"

	"pvc.internal/cluster"
)

// judge holds what one frame's verdicts have in common.
type judge struct {
	frame   *Frame
	stable  bool // the set of down nodes is that of the last frame
	settled bool // a round was observed since the start
	left    int  // of the budget
	down    int  // nodes that are down, or under a fence
	total   int
	calm    int // frames in a row, this one included, with less than half silent
}

func newJudge(s State, f Frame, down []cluster.NodeID) judge {
	j := judge{frame: &f, stable: slices.Equal(s.set, down), settled: s.settled, total: 1 + f.Others} // oneself
	silent := 0
	j.left = f.Settings.MaxCount - f.Settings.Count - uncounted(f)
	for i := range f.Nodes {
		n := &f.Nodes[i]
		if n.Name == f.Self {
			continue
		}
		j.total++
		underWay := n.fence().ID != "" && !n.fence().Ended()
		if (n.Liveness.Down() && !n.Leaving) || underWay {
			j.down++
			if underWay || n.Liveness > cluster.LiveLate {
				silent++
			}
		}
	}
	if 2*silent < j.total {
		j.calm = s.calm + 1
	}
	return j
}

// veto is one thing that may stand against acting on a node.
type veto struct {
	name string
	ask  func(judge, Node) cluster.Refusal
}

// vetoes in the order in which they are asked; the first that stands is told.
var vetoes = []veto{
	{"dead", judge.notDead},
	{"switched on", judge.switchedOff},
	{"mine to do", judge.notMine},
	{"settled", judge.unsettled},
	{"set of down nodes stable", judge.unstable},
	{"less than half down", judge.tooMany},
	{"quorum of node leases", judge.noQuorum},
	{"last copy of a workload", judge.lastCopy},
	{"fence device", judge.noDevice},
	{"budget", judge.spent},
}

// Check is one veto's answer, for whoever asks why a node is (not) fenced.
type Check struct {
	Name string
	// Refusal is what stands against acting; an empty code: nothing.
	Refusal cluster.Refusal
	// Unused says that the part which would know is not in use yet.
	Unused bool
}

// Explain answers all vetoes on one down node of the frame, as the next Step
// would ask them; nil for a node that is up, excused or not in the frame.
func Explain(s State, f Frame, node cluster.NodeID) []Check {
	down := candidates(f)
	set := make([]cluster.NodeID, 0, len(down))
	for _, n := range down {
		if weighs(n, s.Down[n.Name], f.needed()) {
			set = append(set, n.Name)
		}
	}
	j := newJudge(s, f, set)
	for _, n := range down {
		if n.Name != node {
			continue
		}
		checks := make([]Check, 0, len(vetoes))
		for _, v := range vetoes {
			c := Check{Name: v.name, Refusal: v.ask(j, n)}
			c.Unused = (v.name == "quorum of node leases" && !f.Quorum.InUse) || (v.name == "last copy of a workload" && !n.LastCopy.InUse)
			checks = append(checks, c)
		}
		return checks
	}
	return nil
}

// verdict says whether the node's time has come, and what stands against
// acting. A refusal without a verdict is a warning ahead of time.
func (j judge) verdict(n Node, held NodeState) (cluster.Refusal, bool) {
	if held.Stage < StageNearlyDown || handled(n) {
		return cluster.Refusal{}, false
	}
	if held.Stage == StageNearlyDown {
		if j.stable {
			return cluster.Refusal{}, false
		}
		return j.changing(n), false
	}
	for _, v := range vetoes {
		if refusal := v.ask(j, n); refusal.Code != "" {
			return refusal, true
		}
	}
	return cluster.Refusal{}, true
}

// handled reports whether a fence of exactly this incarnation is under way or
// over: what remains of it is the fencer's.
func handled(n Node) bool {
	r := n.fence()
	if r.ID == "" || r.Incarnation != n.Incarnation || !r.Stage.Known() {
		return false
	}
	return r.Stage != cluster.FenceCanceled && r.Stage != cluster.FenceManual
}

func refuse(code cluster.RefusalCode, n Node, format string, args ...any) cluster.Refusal {
	return cluster.Refusal{Code: code, Node: n.Name, Detail: fmt.Sprintf("node %s: ", n.Name) + fmt.Sprintf(format, args...)}
}

func (j judge) notDead(n Node) cluster.Refusal {
	switch {
	case n.Liveness == cluster.LiveDead:
		return cluster.Refusal{}
	case n.Mixed != "":
		return refuse(cluster.RefuseMixedPicture, n, "silent, but %s; look at the network between the coordinators", n.Mixed)
	case n.Liveness == cluster.LiveSuspect:
		return refuse(cluster.RefuseAliveStill, n, "silent, but its ZooKeeper session still lives; fenced once that has ended")
	}
	return refuse(cluster.RefuseNotSuspectEnough, n, "%s for the whole time-out, but not dead", n.Liveness)
}

func (j judge) switchedOff(n Node) cluster.Refusal {
	switch {
	case !j.frame.Settings.Enabled:
		return refuse(cluster.RefuseDisabled, n, "dead, but automatic failover is disabled")
	case j.frame.Maintenance:
		return refuse(cluster.RefuseMaintenance, n, "dead, but the cluster is in maintenance")
	}
	return cluster.Refusal{}
}

// notMine: only the primary acts, and on the holder of the role only whoever
// has taken the role from it.
func (j judge) notMine(n Node) cluster.Refusal {
	switch {
	case n.Name == j.frame.Holder:
		return refuse(cluster.RefuseNotPrimary, n, "dead, but it still holds the primary role; its successor acts")
	case !j.frame.Primary:
		return refuse(cluster.RefuseNotPrimary, n, "dead, but this node is not the primary")
	case j.frame.Holder != "" && j.frame.Holder != j.frame.Self:
		return refuse(cluster.RefuseNotPrimary, n, "dead, but node %s holds the primary role now", j.frame.Holder)
	}
	return cluster.Refusal{}
}

func (j judge) unsettled(n Node) cluster.Refusal {
	if j.settled {
		return cluster.Refusal{}
	}
	return refuse(cluster.RefuseFirstRound, n, "dead, but the first round only observes")
}

func (j judge) unstable(n Node) cluster.Refusal {
	if j.stable {
		return cluster.Refusal{}
	}
	return j.changing(n)
}

func (j judge) changing(n Node) cluster.Refusal {
	return refuse(cluster.RefuseSetChanging, n, "going down, but so are others: the down nodes were not the same in the last two rounds")
}

// tooMany: nobody fences half or more of the nodes (I6). Nodes that were fenced
// and are not back count: the window lasts until they are. So do nodes that are
// silent with an excuse, but for those that said that they stop. Once fewer are
// down, whoever still is gets the whole time again: when a network heals, its
// nodes come back one after the other, each at its next keepalive, and the last
// of them is no deader than the first. Late nodes do not begin that time anew, or
// an election of ZooKeeper's would put off the fence of who caused it.
func (j judge) tooMany(n Node) cluster.Refusal {
	if 2*j.down < j.total {
		if j.calm >= j.frame.needed() {
			return cluster.Refusal{}
		}
		return refuse(cluster.RefuseTooMany, n, "dead, but half or more of the nodes were silent a moment ago, and others have returned since; it is judged %s after that", time.Duration(j.frame.needed())*j.frame.interval())
	}
	return refuse(cluster.RefuseTooMany, n, "dead, but %d of %d nodes are down, which is half or more", j.down, j.total)
}

func (j judge) noQuorum(n Node) cluster.Refusal {
	if q := j.frame.Quorum; q.InUse && q.Against != "" {
		return refuse(cluster.RefuseNoQuorum, n, "dead, but there is no quorum of node leases: %s", q.Against)
	}
	return cluster.Refusal{}
}

func (j judge) lastCopy(n Node) cluster.Refusal {
	if n.LastCopy.InUse && n.LastCopy.Against != "" {
		return refuse(cluster.RefuseLastCopy, n, "dead, but a workload would lose its last copy: %s", n.LastCopy.Against)
	}
	return cluster.Refusal{}
}

// noDevice: a record of this incarnation ended for want of a device; only an
// operator's confirmation or the node's return changes that.
func (j judge) noDevice(n Node) cluster.Refusal {
	if r := n.fence(); r.Stage == cluster.FenceManual && r.Incarnation == n.Incarnation {
		return refuse(cluster.RefuseNoDevice, n, "dead, but no fence device is configured for it; configure one, or confirm by hand that it has no power")
	}
	return cluster.Refusal{}
}

func (j judge) spent(n Node) cluster.Refusal {
	if j.left > 0 {
		return cluster.Refusal{}
	}
	s := j.frame.Settings
	return refuse(cluster.RefuseBudget, n, "dead, but of %d failovers %d are spent and %d under way; reset the count", s.MaxCount, s.Count, s.MaxCount-s.Count-j.left)
}
