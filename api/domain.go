package api

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"pvc.internal/cluster"
)

// domainWish is what POST /node/<n>/domain-state asks for.
type domainWish struct {
	asks  cluster.DomainState // what is written; the node answers it
	ends  cluster.DomainState // with this
	texts [4]string           // asked, asked already, so already, so after the wait; %q is the node
}

var domainWishes = map[string]domainWish{
	"flush": {cluster.DomainFlush, cluster.DomainFlushed, [4]string{
		"Removing node %q from active service.", "Node %q is already being removed from active service.",
		"Node %q is already flushed.", "Removed node %q from active service."}},
	"ready": {cluster.DomainUnflush, cluster.DomainReady, [4]string{
		"Restoring node %q to active service.", "Node %q is already being restored to active service.",
		"Node %q is already ready.", "Restored node %q to active service."}},
}

func (d domainWish) text(i int, n cluster.NodeID) string { return fmt.Sprintf(d.texts[i], n) }

// postDomainState writes the wish by compare-and-set. The node itself answers
// it, once nothing that it knows of runs there. Of what it does not manage
// nobody can say that it has been moved: then the wish is refused, since a node
// that reads "flushed" is switched off in that belief.
func (s *Server) postDomainState(r *request) (answer, error) {
	want := domainWishes[r.args.text("state")]
	sent := false
	for range askAttempts {
		st, err := s.fresh(r.ctx, sent)
		if err != nil {
			return answer{}, err
		}
		n, known := st.snap.Nodes[r.node()]
		if !known {
			return answer{}, refuse(http.StatusBadRequest, fmt.Sprintf("No node named %q is present in the cluster.", cut(string(r.node()))))
		}
		switch n.Domain.Value {
		case want.asks:
			text := want.text(1, n.Name)
			if sent {
				text = want.text(0, n.Name)
			}
			return s.domainAnswer(r, n.Name, want, text)
		case want.ends:
			if sent { // asked and answered
				return done(want.text(3, n.Name))
			}
			return done(want.text(2, n.Name))
		}
		if no := s.cannotAnswer(r, st, n, want); no != nil {
			return answer{}, no
		}
		text := want.text(0, n.Name)
		result := s.commit(r.ctx, "api.domain_state", s.event(r, "domain_state", text, map[string]string{"node": string(n.Name), "to": string(want.asks)}),
			cluster.Set(cluster.Key{Kind: cluster.KeyDomainState, Node: n.Name}, n.Domain.Version, want.asks))
		switch result.Outcome {
		case cluster.OutcomeOK:
			return s.domainAnswer(r, n.Name, want, text)
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
	return answer{}, fmt.Errorf("write the domain state of node %s: %w in each of %d attempts; nothing was changed, ask again", r.node(), cluster.ErrConflict, askAttempts)
}

// cannotAnswer says why nobody could carry the wish out, nil if the node can.
func (s *Server) cannotAnswer(r *request, st state, n cluster.NodeView, want domainWish) *failure {
	bad := func(format string, more ...any) *failure {
		return refuse(http.StatusBadRequest, fmt.Sprintf(format, more...))
	}
	switch {
	case n.Domain.Value == cluster.DomainFenceFlush:
		return bad("Node %q is being recovered after its fence; nothing was changed. Ask again when its domain state is \"flushed\".", n.Name)
	case n.Daemon.Value != cluster.DaemonRun:
		return bad("Node %q is not active: its daemon state is %q. Nothing was changed.", n.Name, n.Daemon.Value)
	case !n.Alive.Present:
		return bad("Node %q is not active: its daemon has no live session. Nothing was changed.", n.Name)
	case want.asks != cluster.DomainFlush:
		return nil
	}
	ctx, done := patiently(r.ctx)
	defer done()
	f := s.figuresOf(ctx, st, n, false)
	if f.err != nil {
		return refuse(http.StatusServiceUnavailable, fmt.Sprintf("Whether anything runs on node %q could not be read (%v); nothing was changed. Ask again.", n.Name, f.err))
	}
	running := slices.DeleteFunc(strings.Fields(f.leaves["runningdomains"]), st.managed)
	if len(running) == 0 {
		return nil
	}
	text := fmt.Sprintf("Node %q was not set to \"flush\": %d workloads run there (%s), which this version does not manage: it can neither move them away nor say that they are gone. The node's domain state is still %q. Move what runs there by the means that started it.",
		n.Name, len(running), cut(strings.Join(running, ", ")), n.Domain.Value)
	if st.holder() == n.Name {
		text += fmt.Sprintf(" It holds the primary role, which `pvc node secondary %s --wait` moves.", n.Name)
	}
	return refuse(http.StatusNotImplemented, text)
}

// domainAnswer answers a wish that stands: at once, or when the node has
// answered it.
func (s *Server) domainAnswer(r *request, node cluster.NodeID, want domainWish, text string) (answer, error) {
	wait := r.args.wait(0)
	if wait <= 0 {
		s.awaitEcho(r.ctx, func(now *cluster.Snapshot) bool {
			is := now.Nodes[node].Domain.Value
			return is == want.asks || is == want.ends
		})
		return done(text)
	}
	ctx, cancel := context.WithTimeout(r.ctx, wait)
	defer cancel()
	for {
		st := s.view.current(s.now())
		switch is := st.snap.Nodes[node].Domain.Value; {
		case is == want.ends:
			return done(want.text(3, node))
		case ctx.Err() != nil:
			return answer{}, refuse(http.StatusGatewayTimeout, fmt.Sprintf("%s It has not done so within %s: its domain state is %q.%s The wish stands; `pvc node log %s` may say what keeps it.", text, wait.Round(time.Millisecond), is, st.leftText(node, is), node))
		}
		select {
		case <-st.changed:
		case <-ctx.Done():
		case <-s.stopping:
			cancel()
		}
	}
}

// drainLeft are the workloads that a node's flush still has to move away, or that
// are still to come back to it.
func (st state) drainLeft(node cluster.NodeID, is cluster.DomainState) []string {
	var left []string
	for _, name := range st.workloads() {
		v := workloadView(name, st.snap.Workloads[name])
		if is == cluster.DomainFlush && v.touches(node) || is == cluster.DomainUnflush && v.Home == node {
			left = append(left, name)
		}
	}
	return left
}

func (st state) leftText(node cluster.NodeID, is cluster.DomainState) string {
	left := st.drainLeft(node, is)
	if len(left) == 0 {
		return ""
	}
	return fmt.Sprintf(" Left: %s; `pvc explain WORKLOAD` says what one waits for.", cut(strings.Join(left, ", ")))
}
