package peer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
)

// Bounds on connections. Nobody who has not shown a certificate can take the
// place of somebody who has.
const (
	maxShaking        = 128 // handshakes at once
	maxShakingPerHost = 32  // more than a client begins at once
	maxPerNode        = 64  // connections of one node; a client has 40 at most
	maxConnections    = 512
	handshakeTimeout  = 2 * time.Second
	lingerTimeout     = 500 * time.Millisecond
)

// secured is a connection whose other end is known. The HTTP server sees it as
// a plain one.
type secured struct {
	*tls.Conn
	from    cluster.NodeID
	chain   []*x509.Certificate
	usedBy  uint64 // generation of the identity that accepted the chain
	release func()
	once    sync.Once
}

// Close closes the connection and frees its place.
func (c *secured) Close() error {
	c.once.Do(c.release)
	return c.Conn.Close()
}

// doorman is the listener of the HTTP server: it shakes hands with whoever
// connects, each in a goroutine of its own, and hands on those it knows.
type doorman struct {
	inner net.Listener
	id    *Identity
	allow func(cluster.NodeID) error
	log   *zap.Logger

	ready chan *secured
	ctx   context.Context
	end   context.CancelFunc
	owned sync.WaitGroup

	mu      sync.Mutex
	shaking map[string]int // by host
	total   int            // of shaking
	nodes   map[cluster.NodeID]int
	open    int // of nodes
	failed  error
	quiet   time.Time // no complaint is logged before
	muted   int
}

func newDoorman(l net.Listener, id *Identity, allow func(cluster.NodeID) error, log *zap.Logger) *doorman {
	d := &doorman{inner: l, id: id, allow: allow, log: log, ready: make(chan *secured),
		shaking: map[string]int{}, nodes: map[cluster.NodeID]int{}}
	d.ctx, d.end = context.WithCancel(context.Background())
	d.owned.Add(1)
	go d.acceptAll()
	return d
}

// Accept returns the next connection whose other end is a node.
func (d *doorman) Accept() (net.Conn, error) {
	select {
	case c := <-d.ready:
		return c, nil
	case <-d.ctx.Done():
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.failed != nil {
			return nil, d.failed
		}
		return nil, net.ErrClosed
	}
}

// Close stops accepting and waits until no handshake is left.
func (d *doorman) Close() error {
	d.end()
	err := d.inner.Close()
	d.owned.Wait()
	return err
}

// Addr is where it listens.
func (d *doorman) Addr() net.Addr { return d.inner.Addr() }

func (d *doorman) acceptAll() {
	defer d.owned.Done()
	backoff := 5 * time.Millisecond
	for {
		raw, err := d.inner.Accept()
		switch {
		case err == nil:
			backoff = 5 * time.Millisecond
			d.admit(raw)
			continue
		case d.ctx.Err() != nil:
			return
		case errors.Is(err, net.ErrClosed):
			d.mu.Lock()
			d.failed = err
			d.mu.Unlock()
			d.end()
			return
		}
		// Out of descriptors, or a connection that was gone at once.
		d.complain("A peer's connection could not be accepted", zap.Error(err))
		if !pause(d.ctx, backoff) {
			return
		}
		backoff = min(2*backoff, time.Second)
	}
}

// admit begins a handshake, or closes the connection where too many are under
// way already.
func (d *doorman) admit(raw net.Conn) {
	host := hostOf(raw)
	d.mu.Lock()
	full := d.total >= maxShaking || d.shaking[host] >= maxShakingPerHost
	if !full {
		d.total++
		d.shaking[host]++
	}
	d.mu.Unlock()
	if full {
		_ = raw.Close()
		d.complain("Too many connections without a certificate; one was closed", zap.String("from", host))
		return
	}
	d.owned.Go(func() {
		conn, err := d.shake(raw)
		d.mu.Lock()
		if d.total--; d.shaking[host] <= 1 {
			delete(d.shaking, host)
		} else {
			d.shaking[host]--
		}
		d.mu.Unlock()
		if err != nil && d.ctx.Err() != nil {
			return // this node is shutting down
		}
		if err != nil {
			d.complain("A peer's connection was refused", zap.String("from", host), zap.Error(err))
			return
		}
		select {
		case d.ready <- conn:
		case <-d.ctx.Done():
			_ = conn.Close()
		}
	})
}

// shake does the handshake and books the connection on its node.
func (d *doorman) shake(raw net.Conn) (*secured, error) {
	// An expired certificate is shown all the same: the asker refuses it, and
	// can then say what is wrong with whom.
	m := d.id.current.Load()
	ctx, cancel := context.WithTimeout(d.ctx, handshakeTimeout)
	defer cancel()
	var from cluster.NodeID
	conn := tls.Server(raw, &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{m.cert},
		// The chain is verified below, by this project's own rules and words.
		ClientAuth: tls.RequireAnyClientCert,
		// A resumed session would skip the certificate.
		SessionTicketsDisabled: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			name, err := m.verify(s.PeerCertificates, x509.ExtKeyUsageClientAuth, d.id.now())
			if err == nil {
				err = d.allow(name.Node)
			}
			from = name.Node
			return err
		},
	})
	if err := conn.HandshakeContext(ctx); err != nil {
		d.id.lookSoon() // perhaps it is this side whose files are old
		linger(raw)
		return nil, err
	}
	if err := d.book(from); err != nil {
		_ = raw.Close()
		return nil, err
	}
	return &secured{Conn: conn, from: from, chain: conn.ConnectionState().PeerCertificates, usedBy: m.generation,
		release: func() { d.release(from) }}, nil
}

// linger closes so that the alert sent before reaches the other end: a socket
// closed with unread data resets, and a reset overtakes the alert.
func linger(raw net.Conn) {
	if half, ok := raw.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		_ = raw.SetReadDeadline(time.Now().Add(lingerTimeout))
		_, _ = io.CopyN(io.Discard, raw, MaxBody)
	}
	_ = raw.Close()
}

func (d *doorman) book(n cluster.NodeID) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.nodes[n] >= maxPerNode || d.open >= maxConnections {
		return &Error{Class: cluster.ErrRefused, Node: n, Reason: "it has too many connections open"}
	}
	d.nodes[n]++
	d.open++
	return nil
}

func (d *doorman) release(n cluster.NodeID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.open--
	if d.nodes[n]--; d.nodes[n] == 0 {
		delete(d.nodes, n)
	}
}

// complain logs at most once each ten seconds: strangers must not fill a disk.
func (d *doorman) complain(what string, facts ...zap.Field) {
	d.mu.Lock()
	now := time.Now()
	if now.Before(d.quiet) {
		d.muted++
		d.mu.Unlock()
		return
	}
	muted := d.muted
	d.quiet, d.muted = now.Add(10*time.Second), 0
	d.mu.Unlock()
	d.log.Warn(what, append(facts, zap.Int("unlogged_before", muted))...)
}

func hostOf(c net.Conn) string {
	host, _, err := net.SplitHostPort(c.RemoteAddr().String())
	if err != nil {
		return c.RemoteAddr().String()
	}
	return host
}
