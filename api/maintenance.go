package api

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"pvc.internal/cluster"
)

// MaintenanceAnswer is what became of turning maintenance on or off.
type MaintenanceAnswer struct {
	Message     string          `json:"message"`
	Already     bool            `json:"already"`
	Maintenance MaintenanceView `json:"maintenance"`
	// Confirmed are the live nodes that have published that they see the switch
	// so, Unconfirmed the others; both only where the answer was waited for.
	Confirmed   []cluster.NodeID `json:"confirmed,omitempty"`
	Unconfirmed []Unconfirmed    `json:"unconfirmed,omitempty"`

	version int32 // of the flag as it stands
}

// Unconfirmed is a live node that has not confirmed the maintenance switch.
type Unconfirmed struct {
	Node cluster.NodeID `json:"node"`
	Why  string         `json:"why"`
}

func (s *Server) getMaintenance(r *request) (answer, error) {
	return s.facts(r.ctx, func(st state) (any, error) { return maintenanceView(st.snap), nil })
}

func (s *Server) postStatus(r *request) (answer, error) {
	a, err := s.turnMaintenance(r, cluster.MaintenanceRecord{Owner: r.caller.name})
	if err != nil {
		return answer{}, err
	}
	return done(a.Message)
}

func (s *Server) postMaintenance(r *request) (answer, error) {
	record := cluster.MaintenanceRecord{Owner: r.args.text("owner"), Reason: r.args.text("reason")}
	if record.Owner == "" {
		record.Owner = r.caller.name
	}
	if text := r.args.text("expires"); text != "" {
		d, err := time.ParseDuration(text)
		if err != nil || d <= 0 {
			return answer{}, badArgument("expires", "Must be a duration above zero, like 2h or 30m.")
		}
		record.ExpiresMS = time.Now().Add(d).UnixMilli()
	}
	a, err := s.turnMaintenance(r, record)
	if err != nil {
		return answer{}, err
	}
	return answer{status: http.StatusOK, body: a, change: a.Message}, nil
}

// turnMaintenance writes the switch and, where that is asked for, waits for
// every live node's echo.
func (s *Server) turnMaintenance(r *request, record cluster.MaintenanceRecord) (MaintenanceAnswer, error) {
	on := r.args.truth("state")
	a, err := s.setMaintenance(r, on, record)
	if wait := r.args.wait(0); err == nil && wait > 0 {
		return s.awaitMaintenance(r.ctx, on, a, wait)
	}
	return a, err
}

var maintenanceTexts = map[bool]struct{ already, done string }{
	true:  {"Cluster is already in maintenance mode", "Successfully set cluster in maintenance mode"},
	false: {"Cluster is already in normal mode", "Successfully set cluster in normal mode"},
}

// setMaintenance writes the flag that PVC's tools read and our record of who
// and why, in one transaction. An unknown outcome is settled as in askFor.
func (s *Server) setMaintenance(r *request, on bool, record cluster.MaintenanceRecord) (MaintenanceAnswer, error) {
	texts := maintenanceTexts[on]
	record.Version, record.SinceMS = 1, time.Now().UnixMilli()
	if !on {
		record = cluster.MaintenanceRecord{Version: 1}
	}
	sent := false
	for range askAttempts {
		st, err := s.fresh(r.ctx, sent)
		if err != nil {
			return MaintenanceAnswer{}, err
		}
		if flag := st.snap.Maintenance; flag.Err == nil && flag.Present && flag.Value == on {
			a := MaintenanceAnswer{Message: texts.already, Already: true, Maintenance: maintenanceView(st.snap), version: flag.Version}
			if sent {
				a.Message, a.Already = texts.done, false
			}
			return a, nil
		}
		result := s.commit(r.ctx, "api.maintenance",
			s.event(r, "maintenance", texts.done, map[string]string{"owner": record.Owner, "reason": record.Reason}),
			cluster.Put(cluster.Key{Kind: cluster.KeyMaintenance}, st.snap.Maintenance, on),
			cluster.Put(cluster.Key{Kind: cluster.KeyMaintenanceRecord}, st.snap.MaintenanceRecord, record))
		switch result.Outcome {
		case cluster.OutcomeOK:
			s.awaitEcho(r.ctx, func(now *cluster.Snapshot) bool { return now.Maintenance.Value == on })
			return MaintenanceAnswer{Message: texts.done, version: newVersion(result, st.snap.Maintenance),
				Maintenance: MaintenanceView{on, record.Owner, record.Reason, record.SinceMS, record.ExpiresMS}}, nil
		case cluster.OutcomeConflict:
		case cluster.OutcomeUnknown:
			sent = true
		default:
			return MaintenanceAnswer{}, outcomeError(result)
		}
	}
	if sent {
		return MaintenanceAnswer{}, lostReply()
	}
	return MaintenanceAnswer{}, fmt.Errorf("write maintenance: %w in each of %d attempts; ask again", cluster.ErrConflict, askAttempts)
}

// echoLook is how often the views of nodes that have not confirmed are read.
const echoLook = 100 * time.Millisecond

// awaitMaintenance returns once every node with a live session publishes that
// it sees the switch so: from then on nobody acts on what it was before. When
// the wait is over it fails with the nodes that have not; the switch stays.
func (s *Server) awaitMaintenance(ctx context.Context, on bool, a MaintenanceAnswer, wait time.Duration) (MaintenanceAnswer, error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		st := s.view.current(s.now())
		if flag := st.snap.Maintenance; flag.Value != on && flag.Version > a.version {
			return a, overturned(on)
		}
		confirmed, missing := s.echoes(ctx, st, on, a.version)
		if st.readable() && ctx.Err() == nil { // else a read that was cut short proves nothing
			a.Confirmed, a.Unconfirmed = confirmed, missing
			if len(missing) == 0 {
				return a, nil
			}
		}
		look := time.NewTimer(echoLook)
		select {
		case <-look.C:
			continue
		case <-ctx.Done():
			look.Stop()
			return a, a.unconfirmed(on, wait)
		case <-s.stopping:
			look.Stop()
			return a, refuse(http.StatusGatewayTimeout, fmt.Sprintf("Maintenance is set %s, and this pvcapid is being stopped before every node has confirmed it. Ask again, with --wait, at another (--api).", onOff(on)))
		}
	}
}

// echoes parts the live nodes by whether they have confirmed.
func (s *Server) echoes(ctx context.Context, st state, on bool, version int32) (confirmed []cluster.NodeID, missing []Unconfirmed) {
	var live []cluster.NodeID
	for _, name := range st.names() {
		if st.snap.Nodes[name].Alive.Present {
			live = append(live, name)
		}
	}
	for _, w := range s.readWords(ctx, st, live) {
		switch {
		case w.View != nil && w.View.Maintenance == on && w.View.MaintenanceVersion >= version:
			confirmed = append(confirmed, w.Node)
		case w.Doubt != "":
			missing = append(missing, Unconfirmed{w.Node, w.Doubt})
		default:
			missing = append(missing, Unconfirmed{w.Node, "it has not yet seen this switch; what it last confirmed was maintenance " + onOff(w.View.Maintenance)})
		}
	}
	return confirmed, missing
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

func overturned(on bool) *failure {
	return refuse(http.StatusConflict, fmt.Sprintf("Maintenance was set %s, and somebody has set it %s again meanwhile; `pvc history --kind maintenance` says who. Ask again if it is still to be %s.",
		onOff(on), onOff(!on), onOff(on)))
}

// unconfirmed is the failure after the wait: what stands, who has not seen it,
// and what that means.
func (a MaintenanceAnswer) unconfirmed(on bool, wait time.Duration) *failure {
	if len(a.Unconfirmed) == 0 { // nothing could be read
		a.Message = fmt.Sprintf("Maintenance is set %s, but whether the nodes have seen it cannot be told: ZooKeeper did not answer during the %s. Once it is back `pvc cluster maintenance %s --wait` asks again.", onOff(on), wait, onOff(on))
		return &failure{status: http.StatusGatewayTimeout, body: a, text: a.Message}
	}
	var reasons []string
	for _, u := range a.Unconfirmed {
		reasons = append(reasons, fmt.Sprintf("%s (%s)", u.Node, u.Why))
	}
	meaning := "may still take the primary role or fence of its own accord"
	if !on {
		meaning = "still neither takes the primary role nor fences of its own accord"
	}
	a.Message = fmt.Sprintf("Maintenance is set %s and stays so, but not every live node confirmed it within %s: %s. A node that has not %s. See `pvc explain %s` and pvcnoded's log there; then ask again with --wait.",
		onOff(on), wait, strings.Join(reasons, ", "), meaning, a.Unconfirmed[0].Node)
	return &failure{status: http.StatusGatewayTimeout, body: a, text: a.Message}
}
