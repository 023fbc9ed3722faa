package agent

import "pvc.internal/agent/activity"

// Activities is what admits and ends the agent's activities.
func (a *Agent) Activities() *activity.Manager { return a.activities.Manager() }

// Rounds is how the agent asks for copies and orders something of them.
func (a *Agent) Rounds() *copyRounds { return a.rounds }
