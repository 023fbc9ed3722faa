package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"pvc.internal/cluster"
)

// relay forwards a loopback port of this machine to the pvcapid of whichever
// coordinator accepts, the primary first. The daemon listens on its node's own
// loopback; the relay connects from inside that namespace.
type relay struct {
	s      *Sandbox
	ln     net.Listener
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// startRelay listens; "none" gives a nil relay.
func startRelay(s *Sandbox, listen string) (*relay, error) {
	if listen == "none" {
		return nil, nil
	}
	host, _, err := net.SplitHostPort(listen)
	if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
		return nil, fmt.Errorf("relay on %q: only a loopback address and port, such as 127.0.0.1:7370", listen)
	}
	ln, err := new(net.ListenConfig).Listen(context.Background(), "tcp", listen)
	if err != nil {
		return nil, fmt.Errorf("relay the API (choose another port with --api): %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &relay{s: s, ln: ln, ctx: ctx, cancel: cancel}
	r.wg.Go(r.accept)
	return r, nil
}

// URL is where the API answers on this machine; empty without a relay.
func (s *Sandbox) URL() string {
	if s.relay == nil {
		return ""
	}
	return "http://" + s.relay.ln.Addr().String()
}

func (r *relay) accept() {
	for {
		conn, err := r.ln.Accept()
		if err != nil {
			return
		}
		r.wg.Go(func() { r.forward(conn) })
	}
}

func (r *relay) forward(conn net.Conn) {
	defer conn.Close()
	back, err := r.s.DialAPI(r.ctx)
	if err != nil {
		return // the caller sees the connection end
	}
	defer back.Close()
	stop := context.AfterFunc(r.ctx, func() { _ = conn.Close(); _ = back.Close() })
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = io.Copy(back, conn); closeWrite(back) })
	wg.Go(func() { _, _ = io.Copy(conn, back); closeWrite(conn) })
	wg.Wait()
}

func closeWrite(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.CloseWrite()
	}
}

// DialAPI connects to a coordinator's pvcapid, the primary's first.
func (s *Sandbox) DialAPI(ctx context.Context) (net.Conn, error) {
	var order []*Node
	if p := s.Node(s.holder()); p != nil {
		order = append(order, p)
	}
	order = append(order, s.coordinators()...)
	err := errors.New("no coordinator is on")
	for _, n := range order {
		var conn net.Conn
		if conn, err = n.DialAPI(ctx); err == nil {
			return conn, nil
		}
	}
	return nil, err
}

// DialAPI connects to this node's pvcapid.
func (n *Node) DialAPI(ctx context.Context) (net.Conn, error) {
	ns, err := n.namespace()
	if err != nil {
		return nil, err
	}
	defer ns.close()
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return ns.dial(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", apiPort))
}

func (r *relay) close() {
	_ = r.ln.Close()
	r.cancel()
	r.wg.Wait()
}

// holder is the lease's present holder as last seen; empty if nobody or unknown.
func (s *Sandbox) holder() cluster.NodeID {
	if s.store == nil {
		return ""
	}
	snap := s.store.latest()
	if snap == nil || !snap.Lease.Present {
		return ""
	}
	return snap.Lease.Value.Holder
}
