package failover

import (
	"fmt"

	"pvc.internal/cluster"
)

// judge holds what one frame's verdicts have in common.
type judge struct {
	frame   Frame
	stable  bool // the set of down nodes is that of the last frame
	settled bool // a round was observed since the start and since the role was gained
	left    int  // of the budget
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
	for _, veto := range []func(Node) cluster.Refusal{
		j.notDead, j.switchedOff, j.notMine, j.unsettled, j.unstable, j.tooMany, j.noDevice, j.spent,
	} {
		if refusal := veto(n); refusal.Code != "" {
			return refusal, true
		}
	}
	return cluster.Refusal{}, true
}

// handled reports whether a fence of exactly this incarnation is under way or
// over: what remains of it is the fencer's.
func handled(n Node) bool {
	if n.Fence.ID == "" || n.Fence.Incarnation != n.Incarnation || !n.Fence.Stage.Known() {
		return false
	}
	return n.Fence.Stage != cluster.FenceCanceled && n.Fence.Stage != cluster.FenceManual
}

func refuse(code cluster.RefusalCode, n Node, format string, args ...any) cluster.Refusal {
	return cluster.Refusal{Code: code, Node: n.Name, Detail: fmt.Sprintf("node %s: ", n.Name) + fmt.Sprintf(format, args...)}
}

func (j judge) notDead(n Node) cluster.Refusal {
	switch n.Liveness {
	case cluster.LiveDead:
		return cluster.Refusal{}
	case cluster.LiveSuspect:
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
// and are not back count: the window lasts until they are.
func (j judge) tooMany(n Node) cluster.Refusal {
	down, total := 0, 1 // oneself
	for _, other := range j.frame.Nodes {
		if other.Name == j.frame.Self {
			continue
		}
		total++
		underWay := other.Fence.ID != "" && !other.Fence.Ended()
		if (other.Liveness.Down() && !other.Excused) || underWay {
			down++
		}
	}
	if 2*down < total {
		return cluster.Refusal{}
	}
	return refuse(cluster.RefuseTooMany, n, "dead, but %d of %d nodes are down, which is half or more", down, total)
}

// noDevice: a record of this incarnation ended for want of a device; only an
// operator's confirmation or the node's return changes that.
func (j judge) noDevice(n Node) cluster.Refusal {
	if n.Fence.Stage == cluster.FenceManual && n.Fence.Incarnation == n.Incarnation {
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
