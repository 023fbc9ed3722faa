package api

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"pvc.internal/cluster"
)

const mostReprovisioned = 100

// AutoReprovision are auto-reprovision's settings and what it has spent.
type AutoReprovision struct {
	Enabled  bool `json:"enabled"`
	MaxNodes int  `json:"max_nodes"` // nodes until somebody resets the count
	Count    int  `json:"count"`     // of them spent
	// Nodes are those that were reprovisioned since the last reset, and Remains what is
	// left to be done about them, for people; both absent where there are none.
	Nodes   []cluster.NodeID `json:"nodes,omitempty"`
	Remains []string         `json:"remains,omitempty"`
}

// ReprovisionAnswer is what became of a change of auto-reprovision's settings.
type ReprovisionAnswer struct {
	Message  string          `json:"message"`
	Already  bool            `json:"already"` // they were so before
	Settings AutoReprovision `json:"settings"`
	// Order is a reset's, which the primary carries out.
	Order string `json:"order,omitempty"`
}

const maxNodesComplaint = `The value of "maxNodes" must be a positive integer`

var autoReprovisionParams = []param{
	{name: "enabled", kind: argBool, required: true, complain: `The value of "enabled" must be true or false`, about: "whether a workload whose active copy came back empty is promoted elsewhere; disabling sets maxNodes to 1 and the count to 0"},
	{name: "maxNodes", kind: argInt, min: 1, max: 1 << 30, complain: maxNodesComplaint, about: fmt.Sprintf("on how many nodes until somebody resets the count, 1–%d; needed with enabled=true", mostReprovisioned)},
	{name: "just_validate", kind: argBool, about: "only check the values; nothing is changed"},
}

func reprovisionRoutes() []route {
	return []route{
		{method: get, path: "/settings/autoReprovision", summary: "Auto-reprovision's settings and what it has spent", handle: (*Server).getAutoReprovision, reply: AutoReprovision{}},
		{method: post, path: "/settings/autoReprovision", settings: true, summary: "Change auto-reprovision's settings", need: RoleOperate, handle: (*Server).postAutoReprovision, reply: either{ReprovisionAnswer{}, SettingsErrors{}}, params: autoReprovisionParams},
		{method: post, path: "/settings/autoReprovision/resetCount", settings: true, summary: "Order auto-reprovision's count to be reset; the primary does it", need: RoleOperate, handle: (*Server).postResetReprovision, reply: either{ReprovisionAnswer{}, SettingsErrors{}}, also: ordered202(ReprovisionAnswer{}), params: []param{
			{name: "just_validate", kind: argBool, about: "nothing is changed"},
			{name: "wait", kind: argDuration, about: "answer when the primary has done it, or after this long"}}},
	}
}

// reprovision are the settings as the primary goes by them.
func (st state) reprovision() cluster.ReprovisionSettings {
	if p := st.snap.Reprovision; p.Present && p.Err == nil {
		return p.Value
	}
	return cluster.DefaultReprovisionSettings()
}

func autoReprovision(p cluster.ReprovisionSettings) AutoReprovision {
	a := AutoReprovision{Enabled: p.Enabled, MaxNodes: p.MaxNodes, Count: p.Count, Nodes: p.Nodes}
	for _, n := range p.Nodes {
		a.Remains = append(a.Remains, emptyText(n))
	}
	if p.Enabled && !p.Armed() {
		a.Remains = append(a.Remains, "nothing is reprovisioned any more: a further copy that comes back empty is brought online empty, until a rebalance has ended well, or the count is reset (`pvc settings autoreprovision reset`)")
	}
	return a
}

// emptyText says what remains of a node that was reprovisioned.
func emptyText(n cluster.NodeID) string {
	return fmt.Sprintf("%s is empty: rebalance when healthy (`pvc rebalance --wait`)", n)
}

func (s *Server) getAutoReprovision(r *request) (answer, error) {
	return s.facts(r.ctx, func(st state) (any, error) {
		if err := st.snap.Reprovision.Err; err != nil {
			return nil, refuse(http.StatusInternalServerError, fmt.Sprintf(
				"The record of the settings cannot be read (%v); `pvc settings autoreprovision enable --max-nodes 1` writes it anew.", err))
		}
		return autoReprovision(st.reprovision()), nil
	})
}

func (s *Server) postAutoReprovision(r *request) (answer, error) {
	enabled, most := r.args.truth("enabled"), r.args.number("maxNodes", 0)
	switch {
	case enabled && !r.args.has("maxNodes"):
		return answer{}, settingsFailure(map[string]string{"maxNodes": maxNodesComplaint})
	case most > mostReprovisioned:
		return answer{}, settingsFailure(map[string]string{"maxNodes": fmt.Sprintf("%s in a range from 1 to %d", maxNodesComplaint, mostReprovisioned)})
	case r.args.truth("just_validate"):
		return ok(SettingsErrors{})
	}
	return s.changeReprovision(r, newOrderID(), func(_ state, p cluster.ReprovisionSettings) (cluster.ReprovisionSettings, string) {
		if !enabled {
			return cluster.ReprovisionSettings{Version: 1, MaxNodes: 1, Pass: p.Pass, Done: p.Done},
				"Auto-reprovision is disabled: a workload whose active copy came back empty is brought online empty. The maximum is 1 and the count 0 again."
		}
		p.Version, p.Enabled, p.MaxNodes = 1, true, most
		return p, reprovisionText(p)
	})
}

// reprovisionText says what holds now, and what of it has no effect.
func reprovisionText(p cluster.ReprovisionSettings) string {
	text := fmt.Sprintf("Auto-reprovision is enabled: %d of %d nodes are spent.", p.Count, p.MaxNodes)
	if !p.Armed() {
		text += " Nothing is reprovisioned any more until a rebalance has ended well, or the count is reset."
	}
	return text
}

// postResetReprovision writes the wish for a reset, which the primary carries out
// as an activity: a pass that spends of the count at that moment is not undone.
func (s *Server) postResetReprovision(r *request) (answer, error) {
	if r.args.truth("just_validate") {
		return ok(SettingsErrors{})
	}
	id := newOrderID()
	a, err := s.changeReprovision(r, id, func(st state, p cluster.ReprovisionSettings) (cluster.ReprovisionSettings, string) {
		switch {
		case p.Reset != "":
			id = p.Reset
			return p, "A reset of the count is ordered already and has not been carried out yet."
		case p.Count == 0 && len(p.Nodes) == 0:
			return p, "The count is 0 already."
		}
		p.Reset = id
		return p, "Ordered: the count of auto-reprovision is reset by the primary." + st.laterText()
	})
	if err != nil {
		return answer{}, err
	}
	out, is := a.body.(ReprovisionAnswer)
	if !is || out.Settings.Count == 0 && out.Already {
		return a, nil
	}
	a.status, out.Order = http.StatusAccepted, id
	a.body = out
	if wait := r.args.wait(0); wait > 0 {
		return s.awaitReset(r.ctx, a, out, wait)
	}
	return a, nil
}

// awaitReset answers when the primary has reset the count.
func (s *Server) awaitReset(ctx context.Context, a answer, out ReprovisionAnswer, wait time.Duration) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		st := s.view.current(s.now())
		p := st.reprovision()
		out.Settings = autoReprovision(p)
		if p.Done == out.Order || p.Reset != out.Order && p.Count == 0 {
			out.Message = "The count of auto-reprovision is 0. " + reprovisionText(p)
			return answer{status: http.StatusOK, body: out, change: a.change}, nil
		}
		select {
		case <-st.changed:
		case <-ctx.Done():
			a.body = out
			return a, nil
		case <-s.stopping:
			a.body = out
			return a, nil
		}
	}
}

var reprovisionKey = cluster.Key{Kind: cluster.KeyReprovision}

// changeReprovision writes the changed record by compare-and-set on a fresh view:
// what a janitor's pass spends meanwhile is counted, never undone. A lost reply is
// settled as in askFor.
func (s *Server) changeReprovision(r *request, id string, change func(state, cluster.ReprovisionSettings) (cluster.ReprovisionSettings, string)) (answer, error) {
	sent := false
	for range askAttempts {
		st, err := s.fresh(r.ctx, sent)
		if err != nil {
			return answer{}, err
		}
		seen, old := st.snap.Reprovision, st.reprovision()
		next, text := change(st, old)
		if sameReprovision(old, next) && seen.Err == nil {
			return ok(ReprovisionAnswer{Message: text, Already: !sent, Settings: autoReprovision(next)})
		}
		event := s.event(r, "settings", text, reprovisionFields(old, next))
		event.Fields["order"] = id
		result := s.commit(r.ctx, "api.reprovision", event, cluster.Put(reprovisionKey, seen, next))
		switch result.Outcome {
		case cluster.OutcomeOK:
			version := newVersion(result, seen)
			s.awaitEcho(r.ctx, func(now *cluster.Snapshot) bool {
				return now.Reprovision.Present && now.Reprovision.Version >= version
			})
			return answer{status: http.StatusOK, body: ReprovisionAnswer{Message: text, Settings: autoReprovision(next)}, change: text}, nil
		case cluster.OutcomeConflict:
			awaitChange(r.ctx, st)
		case cluster.OutcomeUnknown:
			sent = true
			awaitChange(r.ctx, st)
		default:
			return answer{}, outcomeError(result)
		}
	}
	if sent {
		return answer{}, lostReply()
	}
	return answer{}, fmt.Errorf("write auto-reprovision's settings: %w in each of %d attempts; nothing was changed, ask again", cluster.ErrConflict, askAttempts)
}

func sameReprovision(a, b cluster.ReprovisionSettings) bool {
	return a.Enabled == b.Enabled && a.MaxNodes == b.MaxNodes && a.Count == b.Count && a.Reset == b.Reset && len(a.Nodes) == len(b.Nodes)
}

// reprovisionFields are what changed, for the history.
func reprovisionFields(old, next cluster.ReprovisionSettings) map[string]string {
	fields := map[string]string{}
	note := func(name, before, after string) {
		if before != after {
			fields[name] = before + " → " + after
		}
	}
	note("enabled", strconv.FormatBool(old.Enabled), strconv.FormatBool(next.Enabled))
	note("maxNodes", strconv.Itoa(old.MaxNodes), strconv.Itoa(next.MaxNodes))
	note("count", strconv.Itoa(old.Count), strconv.Itoa(next.Count))
	return fields
}
