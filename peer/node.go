package peer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
)

// NodeConfig says how one node talks to the others.
type NodeConfig struct {
	Self     cluster.NodeID
	Interval time.Duration // K: between two probes of a node
	Server   ServerConfig
	// Listen opens the ear; nil: TCP at Server.Listen. What fails, or ends, is
	// tried again each second.
	Listen  func(ctx context.Context) (net.Listener, error)
	Dial    Dial                    // nil: the real network
	OwnSide func(addr string) error // as ProberConfig has it
	// Status is this node's answer to a probe; it must not block.
	Status func() Status
	// Address is where a node has published that it answers, host:port; empty:
	// not known. It must not block.
	Address func(cluster.NodeID) string
}

// Node is one node's whole part in the talk: it answers, asks and probes. It is
// safe for concurrent use.
type Node struct {
	config NodeConfig
	id     *Identity
	client *Client
	server *Server
	prober *Prober
	log    *zap.Logger
	deaf   atomic.Pointer[error] // why nobody is answered; nil: all are, or Run has not begun
}

// NewNode makes a node's part; it does nothing before Run.
func NewNode(c NodeConfig, id *Identity, clock cluster.Clock, log *zap.Logger) *Node {
	n := &Node{config: c, id: id, client: NewClient(id, c.Dial), server: NewServer(c.Server, id, c.Status, log), log: log}
	n.prober = NewProber(ProberConfig{Self: c.Self, Interval: c.Interval, OwnSide: c.OwnSide}, n.client, clock, log)
	if n.config.Listen == nil {
		n.config.Listen = n.listenTCP
	}
	return n
}

// Ask puts a question to a node and returns its answer; the error is an *Error.
func (n *Node) Ask(ctx context.Context, to cluster.NodeID, kind string, body []byte) ([]byte, error) {
	addr := n.config.Address(to)
	if addr == "" {
		return nil, &Error{Class: ErrLocal, Node: to, Addr: "an unknown address", Kind: kind,
			Reason: "that node has not published where it answers: set the section peer in its pvcnoded.yaml"}
	}
	return n.client.Ask(ctx, to, addr, kind, body)
}

// Handle has answer answer the questions of a kind, as Server.Handle does;
// before Run only.
func (n *Node) Handle(kind string, answer func(ctx context.Context, from cluster.NodeID, body []byte) ([]byte, error)) {
	n.server.Handle(kind, answer)
}

// Probes are the answers of the nodes that Watch has named.
func (n *Node) Probes() map[cluster.NodeID]cluster.ProbeAnswer { return n.prober.Answers() }

// Watch says whom to probe from now on, by address. It does not block.
func (n *Node) Watch(targets map[cluster.NodeID]string) {
	list := make([]Target, 0, len(targets))
	for _, name := range slices.Sorted(maps.Keys(targets)) {
		list = append(list, Target{name, targets[name]})
	}
	n.prober.SetTargets(list)
}

// Faults says in words, each with its cure, why the others cannot talk to this
// node, or soon cannot; nil while all is well.
func (n *Node) Faults() []string {
	var list []string
	if e := n.id.Expiry(n.id.now()); e.Text != "" {
		list = append(list, e.Text)
	}
	if err := n.deaf.Load(); err != nil {
		list = append(list, fmt.Sprintf("this node answers no other: %v", *err))
	}
	return list
}

// Run answers, probes, and reads the certificate anew when it changes, until
// ctx ends; it returns when all of that has ended.
func (n *Node) Run(ctx context.Context) {
	var owned sync.WaitGroup
	owned.Go(func() { n.id.Run(ctx, n.log) })
	owned.Go(func() { n.prober.Run(ctx) })
	defer n.server.stop() // also where nobody was ever answered
	for ctx.Err() == nil {
		err := n.hear(ctx)
		if ctx.Err() != nil {
			if err != nil {
				n.log.Warn("Answering the other nodes did not end in order", zap.Error(err))
			}
			break
		}
		if n.deaf.Swap(&err) == nil {
			n.log.Error("No other node is answered; tried again each second", zap.Error(err))
		}
		pause(ctx, time.Second)
	}
	owned.Wait()
	n.client.Close()
}

// hear answers until ctx ends or the ear fails.
func (n *Node) hear(ctx context.Context) error {
	l, err := n.config.Listen(ctx)
	if err != nil {
		return err
	}
	if n.deaf.Swap(nil) != nil {
		n.log.Info("The other nodes are answered", zap.String("addr", l.Addr().String()))
	}
	done := make(chan error, 1)
	go func() { done <- n.server.Serve(l) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), n.server.config.Shutdown)
	defer cancel()
	return errors.Join(n.server.Shutdown(bounded), <-done)
}

func (n *Node) listenTCP(ctx context.Context) (net.Listener, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", n.config.Server.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen for peers on %s (peer.listen): %w", n.config.Server.Listen, err)
	}
	return l, nil
}
