package cluster

// RefusalCode says why nothing was done; it is stable and shown to operators.
type RefusalCode string

// The refusals of the role and of fencing.
const (
	RefuseMaintenance      RefusalCode = "maintenance"
	RefuseNotPrimary       RefusalCode = "not_primary"
	RefuseNotCoordinator   RefusalCode = "not_coordinator"
	RefuseNotRunning       RefusalCode = "not_running"
	RefuseFirstRound       RefusalCode = "unsettled"
	RefuseRecentStart      RefusalCode = "recent_registration"
	RefuseGaveUp           RefusalCode = "gave_up_recently"
	RefuseUnhealthy        RefusalCode = "preflight_failed"
	RefuseStoreNotLive     RefusalCode = "store_not_live"
	RefuseLeaseAbsent      RefusalCode = "lease_absent"
	RefuseLeaseUnreadable  RefusalCode = "lease_unreadable"
	RefuseNoCandidate      RefusalCode = "no_candidate"
	RefuseTooMany          RefusalCode = "too_many_at_once"
	RefuseBudget           RefusalCode = "budget_spent"
	RefuseObserverBlind    RefusalCode = "observer_unhealthy"
	RefuseDisabled         RefusalCode = "disabled"
	RefuseNoDevice         RefusalCode = "no_fence_device"
	RefuseOwnFencePending  RefusalCode = "own_fence_pending"
	RefuseAliveStill       RefusalCode = "alive_still_present"
	RefuseNotSuspectEnough RefusalCode = "not_dead"
	RefuseDeadProof        RefusalCode = "dead_proof_missing"
	RefuseSetChanging      RefusalCode = "down_set_changing"
)

// Refusal is a decision not to act, with its reason.
type Refusal struct {
	Code   RefusalCode `json:"code"`
	Node   NodeID      `json:"node,omitempty"`
	Detail string      `json:"detail"`
}
