package agent

import "pvc.internal/agent/activity"

// Activities is what admits and ends the agent's activities.
func (a *Agent) Activities() *activity.Manager { return a.activities.Manager() }
