package api

import (
	"errors"
	"fmt"
	"net/http"
	"slices"

	"pvc.internal/cluster"
)

// TransitionAnswer is the running or last hand-over; null before the first.
type TransitionAnswer struct {
	Running    bool                `json:"running"`
	Transition *cluster.Transition `json:"transition"`
}

func (s *Server) getVersion(*request) (answer, error) { return ok(Message{"PVC API version 1.0"}) }

// postInitialize asks the store itself whether there is a cluster: the snapshot
// may be older than the one that was just made.
func (s *Server) postInitialize(r *request) (answer, error) {
	name := r.args.text("name")
	if name == "" {
		name = s.cfg.ClusterName
	}
	if err := cluster.NodeID(name).Validate(); err != nil {
		return answer{}, badArgument("name", fmt.Sprintf("%q cannot name a cluster: use 1–63 letters, digits, '-', '_' or '.', and not \"none\".", name))
	}
	err := s.deps.Initializer.Initialize(r.ctx, name, r.args.truth("overwrite"))
	if errors.Is(err, cluster.ErrConflict) || errors.Is(err, cluster.ErrRefused) {
		return answer{}, refuse(http.StatusBadRequest, "Cluster contains data and overwrite not set: "+err.Error())
	}
	if err != nil {
		return answer{}, err
	}
	s.awaitEcho(r.ctx, func(now *cluster.Snapshot) bool { return now.ClusterName.Present && now.ClusterName.Value == name })
	return done("Successfully initialized cluster")
}

func (s *Server) getCluster(r *request) (answer, error) {
	return s.facts(r.ctx, func(st state) (any, error) { return st.cluster(), nil })
}

func (s *Server) getTransition(r *request) (answer, error) {
	return s.facts(r.ctx, func(st state) (any, error) {
		t := st.cluster().Transition
		return TransitionAnswer{t != nil && t.Running(), t}, nil
	})
}

func (s *Server) getHistory(r *request) (answer, error) {
	limit, kind := r.args.number("limit", 100), r.args.text("kind")
	ask := limit
	if kind != "" {
		ask = 1000 // of one kind there may be few among many
	}
	events, err := s.deps.Details.ReadHistory(r.ctx, ask)
	if err != nil {
		return answer{}, fmt.Errorf("read the history: %w", err)
	}
	chosen := []cluster.Event{}
	for _, e := range slices.Backward(events) {
		if (kind == "" || e.Kind == kind) && len(chosen) < limit {
			chosen = append(chosen, e)
		}
	}
	return ok(chosen)
}

func (s *Server) getHealthz(*request) (answer, error) { return ok(Message{"alive"}) }

func (s *Server) getReadyz(*request) (answer, error) {
	st := s.view.current(s.now())
	if !st.readable() {
		return answer{}, s.awayFailure("not ready", nil)
	}
	return ok(Message{"ready"})
}
