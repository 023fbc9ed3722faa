package main

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"

	"pvc.internal/agent"
	"pvc.internal/cluster"
	"pvc.internal/cmd/settings"
	"pvc.internal/fencing"
	"pvc.internal/peer"
)

var _ agent.Peers = (*peer.Node)(nil)

// talk is this node's part in the talk between nodes. Its agent is set before
// start; the zero value's node is nil: nodes do not talk directly.
type talk struct {
	node   *peer.Node
	agent  *agent.Agent
	config agent.Config
	clock  cluster.Clock
}

// loadIdentity reads the certificate that the settings name; nil without the
// section.
func loadIdentity(s settings.Node) (*peer.Identity, error) {
	if !s.Peer.Set() {
		return nil, nil
	}
	return peer.LoadIdentity(s.Peer.Files(), s.Cluster.Name, s.Node.Name, nil)
}

// newTalk reads this node's identity and prepares to answer, ask and probe.
func newTalk(s settings.Node, c agent.Config, clock cluster.Clock, log *zap.Logger) (*talk, error) {
	t := &talk{config: c, clock: clock}
	id, err := loadIdentity(s)
	if err != nil {
		return nil, err
	}
	if id == nil {
		log.Info("nodes do not talk directly: a silent node is judged by its session alone, and there is no failsafe; see peer in pvcnoded.yaml")
		return t, nil
	}
	t.node = peer.NewNode(peer.NodeConfig{
		Self: c.Node, Interval: s.Timing.KeepaliveInterval, Server: peer.ServerConfig{Listen: s.Peer.Listen, Allow: func(n cluster.NodeID) error { return t.agent.Welcome(n) }},
		Status: t.status, Address: func(n cluster.NodeID) string { return t.agent.PeerAddress(n) },
	}, id, clock, log)
	return t, nil
}

// join gives the agent its peers.
func (t *talk) join(d *agent.Deps) {
	if t.node != nil { // an interface that holds a nil pointer is not nil
		d.Peers, d.Faults = t.node, t.node.Faults
	}
}

// start answers the others and probes until the function that it returns is
// called, which is to be after the agent's last keepalive.
func (t *talk) start(ctx context.Context) (end func()) {
	if t.node == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		t.node.Run(ctx)
	}()
	return func() { cancel(); <-done }
}

// promised is the end of this node's last promise to another that it may go on
// with its work; it is asked by fences only, and so after the agent is set.
func (t *talk) promised(n cluster.NodeID) cluster.Instant { return t.agent.Promised(n) }

// soft is how a fencer asks a node to stop by itself; nil where nodes do not talk
// directly.
func (t *talk) soft() fencing.Soft {
	if t.node == nil { // an interface that holds a nil pointer is not nil
		return nil
	}
	return softly{t}
}

// softly asks through the agent, which is set before anything is fenced.
type softly struct{ t *talk }

// Answers implements fencing.Soft.
func (s softly) Answers(n cluster.NodeID) bool { return s.t.agent.Answers(n) }

// Stop implements fencing.Soft.
func (s softly) Stop(ctx context.Context, t cluster.Token, r cluster.FenceRecord) error {
	return s.t.agent.AskToStop(ctx, t, r)
}

// status is this node's answer to a probe.
func (t *talk) status() peer.Status {
	live, since, acked := t.agent.StoreLink()
	now := t.clock.Now()
	link := peer.StoreLink{Live: live, Acknowledged: -1}
	if !since.IsZero() {
		link.Since = max(now.Sub(since), 0)
	}
	if !acked.IsZero() {
		link.Acknowledged = max(now.Sub(acked), 0)
	}
	return peer.Status{Node: t.config.Node, Incarnation: t.config.Incarnation, Store: link}
}

// checkIdentity says what is wrong with the certificate, where there is to be one.
func checkIdentity(s settings.Node) (warning string, err error) {
	id, err := loadIdentity(s)
	if err != nil {
		return "", fmt.Errorf("peer: %w", err)
	}
	if id == nil {
		return "", nil
	}
	return id.Expiry(time.Now()).Text, nil
}
