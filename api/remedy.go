package api

import "pvc.internal/cluster"

// remedies say what to do about a refusal; every code has one.
var remedies = map[cluster.RefusalCode]string{
	cluster.RefuseMaintenance:      "When the work is done: `pvc cluster maintenance off`.",
	cluster.RefuseNotPrimary:       "Nothing: only the primary acts. `pvc explain primary` says who that is.",
	cluster.RefuseNotCoordinator:   "Choose a coordinator, or change node.mode there and restart its daemon.",
	cluster.RefuseNotRunning:       "Look at `systemctl status pvcnoded` there.",
	cluster.RefuseFirstRound:       "Wait a few seconds; if it stays, read pvcnoded's log there.",
	cluster.RefuseRecentStart:      "Wait for one role_ttl (`pvc timing`).",
	cluster.RefuseGaveUp:           "Wait for one role_ttl (`pvc timing`).",
	cluster.RefuseUnhealthy:        "Repair what the detail names; the test is repeated at each keepalive.",
	cluster.RefuseStoreNotLive:     "See that ZooKeeper has a majority and that the node reaches it.",
	cluster.RefuseLeaseAbsent:      "Find out who deleted it; it is made anew after about a minute.",
	cluster.RefuseLeaseUnreadable:  "Is an older daemon running beside newer ones? Upgrade all; never edit the record.",
	cluster.RefuseNoCandidate:      "Bring another coordinator up: `pvc node list`.",
	cluster.RefuseTooMany:          "Look at the network and at ZooKeeper first: half of the nodes do not fail at once.",
	cluster.RefuseBudget:           "Find out why it happened so often, then `pvc settings autofailover --reset-count`.",
	cluster.RefuseObserverBlind:    "Wait a few seconds; if it stays: load, swapping or pauses of that machine.",
	cluster.RefuseDisabled:         "If that is not meant: `pvc settings autofailover --enabled=true`.",
	cluster.RefuseNoDevice:         "Describe its device under fencing.nodes on every coordinator, or start the node again.",
	cluster.RefuseOwnFencePending:  "Wait until the fence has ended: `pvc fence list`.",
	cluster.RefuseAliveStill:       "Wait for its ZooKeeper session to end (session_timeout, `pvc timing`).",
	cluster.RefuseNotSuspectEnough: "Wait; the evidence says which proof is missing.",
	cluster.RefuseDeadProof:        "Wait for the old holder's fence (`pvc fence list`), or start the old holder again.",
	cluster.RefuseSetChanging:      "Nothing if it passes; else find the node that comes and goes: `pvc node watch`.",
}
