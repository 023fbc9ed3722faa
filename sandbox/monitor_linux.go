package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
)

// addressEvent is an address that came to an interface or went from it. A
// lifetime that is stepped reads as one that comes again.
type addressEvent struct {
	at   cluster.Instant
	addr netip.Addr
	link uint32
	on   bool
}

// addressSocket opens a netlink socket that hears of all addresses of a namespace.
func addressSocket(ns *namespace) (int, error) {
	fd := -1
	err := ns.do(func() error {
		var err error
		if fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR})
	})
	if err != nil && fd >= 0 {
		_ = unix.Close(fd)
		fd = -1
	}
	return fd, err
}

// readAddressEvents reads what the socket holds; lost means that the kernel
// had to drop some.
func readAddressEvents(fd int, buf []byte, tell func(addressEvent)) (lost bool) {
	for {
		n, err := unix.Read(fd, buf)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOBUFS):
			lost = true
			continue
		case err != nil || n == 0:
			return lost
		}
		at := now()
		messages, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			continue
		}
		for i := range messages {
			if e, ok := addressOf(&messages[i]); ok {
				e.at = at
				tell(e)
			}
		}
	}
}

func addressOf(m *syscall.NetlinkMessage) (e addressEvent, ok bool) {
	if m.Header.Type != unix.RTM_NEWADDR && m.Header.Type != unix.RTM_DELADDR || len(m.Data) < unix.SizeofIfAddrmsg {
		return e, false
	}
	attrs, err := syscall.ParseNetlinkRouteAttr(m)
	if err != nil {
		return e, false
	}
	for _, a := range attrs {
		// IPv4 has both, equal but on point-to-point links; IPv6 the latter.
		if a.Attr.Type == unix.IFA_LOCAL || a.Attr.Type == unix.IFA_ADDRESS && !e.addr.IsValid() {
			e.addr, _ = netip.AddrFromSlice(a.Value)
		}
	}
	e.link = nativeUint32(m.Data[4:8])
	e.on = m.Header.Type == unix.RTM_NEWADDR
	return e, e.addr.IsValid()
}

// addressWatch records when a floating address comes and goes in one node's
// kernel, by that namespace's netlink events.
type addressWatch struct {
	s    *Sandbox
	node NodePlan
	fd   int
	held map[string]map[uint32]bool // address → interfaces that carry it
	buf  []byte
}

// watchAddresses subscribes in the namespace of the process pid.
func watchAddresses(s *Sandbox, p NodePlan, pid int) (*addressWatch, error) {
	ns, err := namespaceOf(pid)
	if err != nil {
		return nil, err
	}
	defer ns.close()
	w := &addressWatch{s: s, node: p, held: map[string]map[uint32]bool{}, buf: make([]byte, 1<<16)}
	if w.fd, err = addressSocket(ns); err != nil {
		return nil, fmt.Errorf("watch the addresses of %s: %w", p.Name, err)
	}
	if err := s.events.add(w.fd, w.read); err != nil {
		_ = unix.Close(w.fd)
		return nil, fmt.Errorf("watch the addresses of %s: %w", p.Name, err)
	}
	return w, nil
}

func (w *addressWatch) read() {
	if readAddressEvents(w.fd, w.buf, w.take) {
		w.s.history.Add(Entry{Kind: KindNote, Node: w.node.Name, Text: "the kernel dropped address events: what is held twice may be incomplete"})
	}
}

func (w *addressWatch) take(e addressEvent) {
	for _, a := range FloatingAddresses() {
		if a.Prefix.Addr() != e.addr.Unmap() {
			continue
		}
		links := w.held[a.Name]
		if links == nil {
			links = map[uint32]bool{}
			w.held[a.Name] = links
		}
		was := len(links) > 0
		if e.on {
			links[e.link] = true
		} else {
			delete(links, e.link)
		}
		if is := len(links) > 0; is != was {
			w.s.history.Add(Entry{At: e.at, Kind: KindHeld, Node: w.node.Name, Addr: a.Name, On: is})
		}
	}
}

// close ends the watch; its socket no longer keeps the namespace.
func (w *addressWatch) close() {
	if w == nil {
		return
	}
	w.s.events.remove(w.fd)
	for name, links := range w.held {
		if len(links) > 0 { // the node's power went: nothing holds the address any more
			w.s.history.Add(Entry{Kind: KindHeld, Node: w.node.Name, Addr: name, On: false})
		}
	}
}

// eventProbes is how often EventNoise tries.
const eventProbes = 50

// EventNoise measures how late an event of the kernel is stamped at worst: it
// adds an address to the client's loopback interface, takes it away, and so on.
func (s *Sandbox) EventNoise(ctx context.Context) (time.Duration, error) {
	h, err := netlink.NewHandleAt(netns.NsHandle(s.net.client.fd()))
	if err != nil {
		return 0, fmt.Errorf("measure the noise of events: %w", err)
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return 0, fmt.Errorf("measure the noise of events: %w", err)
	}
	fd, err := addressSocket(s.net.client)
	if err != nil {
		return 0, fmt.Errorf("measure the noise of events: %w", err)
	}
	seen := make(chan cluster.Instant, 4*eventProbes)
	buf := make([]byte, 1<<16)
	if err := s.events.add(fd, func() { readAddressEvents(fd, buf, func(e addressEvent) { seen <- e.at }) }); err != nil {
		_ = unix.Close(fd)
		return 0, err
	}
	defer s.events.remove(fd)
	addr, _ := netlink.ParseAddr("127.0.76.77/32")
	var worst time.Duration
	for i := range eventProbes {
		change := h.AddrAdd
		if i%2 == 1 {
			change = h.AddrDel
		}
		began := now()
		if err := change(lo, addr); err != nil {
			return 0, fmt.Errorf("measure the noise of events: %w", err)
		}
		select {
		case at := <-seen:
			worst = max(worst, at.Sub(began))
		case <-ctx.Done():
			return 0, ctx.Err()
		}
		if err := pause(ctx, 5*time.Millisecond); err != nil {
			return 0, err
		}
	}
	return worst, nil
}
