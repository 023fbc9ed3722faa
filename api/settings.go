package api

import (
	"fmt"
	"net/http"
	"strconv"
	"time"

	"pvc.internal/cluster"
)

// The ranges of the automatic failover's settings.
const (
	longestFailoverTimeout = 3600 // seconds
	mostFailovers          = 100
)

// AutoFailover are the automatic failover's settings and its spent budget.
type AutoFailover struct {
	Enabled bool `json:"enabled"`
	// Timeout is how many seconds a node must be silent before it is fenced:
	// what was set, or fence_intervals × keepalive_interval.
	Timeout  float64 `json:"timeout"`
	MaxCount int     `json:"maxCount"` // automatic failovers until somebody resets the count
	Count    int     `json:"count"`    // of them spent
}

// SettingsErrors is the answer of a check of settings: null, or each wrong one
// by its name.
type SettingsErrors struct {
	Errors map[string]string `json:"errors"`
}

// SettingsAnswer is what became of a change of settings.
type SettingsAnswer struct {
	Message  string       `json:"message"`
	Already  bool         `json:"already"` // they were so before
	Settings AutoFailover `json:"settings"`
}

func settingsFailure(wrong map[string]string) *failure {
	f := badArguments(wrong)
	f.body = SettingsErrors{wrong}
	return f
}

var autoFailoverParams = []param{
	{name: "enabled", kind: argBool, complain: `The value of "enabled" must be true or false`, about: "whether dead nodes are fenced at all"},
	{name: "timeout", kind: argInt, min: 1, max: longestFailoverTimeout, about: "seconds of silence before a node is fenced; never less than fence_intervals × keepalive_interval",
		complain: fmt.Sprintf(`The value of "timeout" must be a positive integer in a range from 1 to %d`, longestFailoverTimeout)},
	{name: "maxCount", kind: argInt, min: 1, max: mostFailovers, about: "automatic failovers until somebody resets the count",
		complain: fmt.Sprintf(`The value of "maxCount" must be a positive integer in a range from 1 to %d`, mostFailovers)},
	{name: "just_validate", kind: argBool, about: "only check the values; nothing is changed"},
}

func (s *Server) getAutoFailover(r *request) (answer, error) {
	return s.facts(r.ctx, func(st state) (any, error) {
		if err := st.snap.Failover.Err; err != nil {
			return nil, refuse(http.StatusInternalServerError, fmt.Sprintf(
				"The record of the settings cannot be read (%v); until it can, nodes go by the defaults (enabled, one failover). `pvc settings autofailover` with any flag writes it anew.", err))
		}
		return st.autoFailover(st.failover()), nil
	})
}

// failover are the settings as nodes go by them.
func (st state) failover() cluster.FailoverSettings {
	if f := st.snap.Failover; f.Present && f.Err == nil {
		return f.Value
	}
	return cluster.DefaultFailoverSettings()
}

func (st state) autoFailover(f cluster.FailoverSettings) AutoFailover {
	timeout := max(st.late, time.Duration(f.Timeout)*time.Second)
	return AutoFailover{f.Enabled, timeout.Seconds(), f.MaxCount, f.Count}
}

func (s *Server) postAutoFailover(r *request) (answer, error) {
	if !r.args.has("enabled") && !r.args.has("timeout") && !r.args.has("maxCount") {
		return answer{}, settingsFailure(map[string]string{"enabled": `One of "enabled", "timeout" and "maxCount" must be supplied`})
	}
	if r.args.truth("just_validate") {
		return ok(SettingsErrors{})
	}
	return s.changeFailover(r, func(f cluster.FailoverSettings) cluster.FailoverSettings {
		if r.args.has("enabled") {
			f.Enabled = r.args.truth("enabled")
		}
		f.Timeout = int64(r.args.number("timeout", int(f.Timeout)))
		f.MaxCount = r.args.number("maxCount", f.MaxCount)
		return f
	})
}

func (s *Server) postResetFailoverCount(r *request) (answer, error) {
	if r.args.truth("just_validate") {
		return ok(SettingsErrors{})
	}
	return s.changeFailover(r, func(f cluster.FailoverSettings) cluster.FailoverSettings {
		f.Count = 0
		return f
	})
}

var failoverKey = cluster.Key{Kind: cluster.KeyFailover}

// changeFailover writes the changed record by compare-and-set on a fresh view:
// a failover that spends of the budget meanwhile is counted, never undone. A
// lost reply is settled as in askFor.
func (s *Server) changeFailover(r *request, change func(cluster.FailoverSettings) cluster.FailoverSettings) (answer, error) {
	sent := false
	for range askAttempts {
		st, err := s.fresh(r.ctx, sent)
		if err != nil {
			return answer{}, err
		}
		seen, old := st.snap.Failover, st.failover()
		next := change(old)
		next.Version = 1
		text := failoverText(st, next)
		if next == old && seen.Err == nil {
			return ok(SettingsAnswer{text, !sent, st.autoFailover(next)})
		}
		result := s.commit(r.ctx, "api.failover", s.event(r, "settings", text, failoverFields(old, next)), cluster.Put(failoverKey, seen, next))
		switch result.Outcome {
		case cluster.OutcomeOK:
			s.awaitEcho(r.ctx, func(now *cluster.Snapshot) bool { return now.Failover.Value == next })
			return answer{status: http.StatusOK, body: SettingsAnswer{text, false, st.autoFailover(next)}, change: text}, nil
		case cluster.OutcomeConflict:
		case cluster.OutcomeUnknown:
			sent = true
		default:
			return answer{}, outcomeError(result)
		}
	}
	if sent {
		return answer{}, lostReply()
	}
	return answer{}, fmt.Errorf("write the failover settings: %w in each of %d attempts; nothing was changed, ask again", cluster.ErrConflict, askAttempts)
}

// failoverText says what holds now, and what of it has no effect.
func failoverText(st state, f cluster.FailoverSettings) string {
	view := st.autoFailover(f)
	text := fmt.Sprintf("Automatic failover is enabled: a dead node is fenced after %g s of silence; %d of %d failovers are spent.", view.Timeout, f.Count, f.MaxCount)
	switch {
	case !f.Enabled:
		return "Automatic failover is disabled: no node is fenced of the cluster's own accord. The primary role still moves."
	case f.Count >= f.MaxCount:
		text += " No further one happens until the count is reset."
	case f.Timeout > 0 && time.Duration(f.Timeout)*time.Second < st.late:
		text += fmt.Sprintf(" The timeout of %d s has no effect: a node counts as dead after %s (fence_intervals × keepalive_interval) at the earliest.", f.Timeout, st.late)
	}
	return text
}

// failoverFields are what changed, for the history.
func failoverFields(old, next cluster.FailoverSettings) map[string]string {
	fields := map[string]string{}
	note := func(name, before, after string) {
		if before != after {
			fields[name] = before + " → " + after
		}
	}
	note("enabled", strconv.FormatBool(old.Enabled), strconv.FormatBool(next.Enabled))
	note("timeout", strconv.FormatInt(old.Timeout, 10), strconv.FormatInt(next.Timeout, 10))
	note("maxCount", strconv.Itoa(old.MaxCount), strconv.Itoa(next.MaxCount))
	note("count", strconv.Itoa(old.Count), strconv.Itoa(next.Count))
	return fields
}
