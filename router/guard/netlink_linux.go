package guard

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
	"pvc.internal/router"
)

// The marks by which the guard knows its own addresses: a routing-protocol
// number in IFA_PROTO (Linux 5.18) and, where the interface's name leaves room
// for it, an IPv4 label.
const (
	addressProto = 0x70
	labelSuffix  = ":pvc"
	ifaProto     = 11 // IFA_PROTO, absent from x/sys
	forever      = 0xffffffff
)

var native = binary.NativeEndian

// nlsock is a netlink socket for short exchanges with the kernel, which handles
// a request, or a batch of them, within the sendto: when that returns, every
// acknowledgement is queued and nothing needs to be waited for. Not safe for
// concurrent use.
type nlsock struct {
	fd   int
	to   unix.SockaddrNetlink
	seq  uint32
	recv []byte
}

func openNetlink(protocol int) (*nlsock, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket %d: %w", protocol, err)
	}
	s := &nlsock{fd: fd, to: unix.SockaddrNetlink{Family: unix.AF_NETLINK}, recv: make([]byte, 64<<10)}
	if err := unix.Bind(fd, &s.to); err != nil {
		s.close()
		return nil, fmt.Errorf("bind netlink socket %d: %w", protocol, err)
	}
	// An acknowledgement without a copy of the request: smaller, and the same.
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	return s, nil
}

func (s *nlsock) close() { _ = unix.Close(s.fd) }

// ackError is the first refusal within a batch.
type ackError struct {
	seq   uint32 // the refused message's
	errno unix.Errno
}

func (e *ackError) Error() string { return e.errno.Error() }
func (e *ackError) Unwrap() error { return e.errno }

// exec sends prepared messages in one datagram and reads their acknowledgements.
// It calls failed for each refused message, which says whether that counts; nil
// means all do. It returns the first error that counts.
func (s *nlsock) exec(batch []byte, failed func(seq uint32, errno unix.Errno) bool) error {
	s.drain()
	for {
		err := unix.Sendto(s.fd, batch, 0, &s.to)
		if err == nil {
			break
		}
		if err != unix.EINTR {
			return fmt.Errorf("send %d bytes of netlink: %w", len(batch), err)
		}
	}
	var first error
	missing := acksOf(batch)
	for {
		n, ok := s.next()
		if !ok {
			if first == nil && missing > 0 { // lost for want of memory: not known to be done
				return fmt.Errorf("the kernel did not acknowledge %d of %d netlink messages: %w", missing, acksOf(batch), unix.ENOBUFS)
			}
			return first
		}
		for m := s.recv[:n]; len(m) >= unix.SizeofNlMsghdr; {
			length, typ, seq := int(native.Uint32(m)), native.Uint16(m[4:]), native.Uint32(m[8:])
			if length < unix.SizeofNlMsghdr || length > len(m) {
				break
			}
			if typ == unix.NLMSG_ERROR && length >= unix.SizeofNlMsghdr+4 {
				missing--
				errno := unix.Errno(-int32(native.Uint32(m[unix.SizeofNlMsghdr:])))
				if errno != 0 && first == nil && (failed == nil || failed(seq, errno)) {
					first = &ackError{seq: seq, errno: errno}
				}
			}
			m = m[min(align4(length), len(m)):]
		}
	}
}

// acksOf counts the messages of a batch that the kernel is to acknowledge.
func acksOf(batch []byte) (count int) {
	for m := batch; len(m) >= unix.SizeofNlMsghdr; {
		length := int(native.Uint32(m))
		if length < unix.SizeofNlMsghdr || length > len(m) {
			return count
		}
		if native.Uint16(m[6:])&unix.NLM_F_ACK != 0 {
			count++
		}
		m = m[min(align4(length), len(m)):]
	}
	return count
}

// next reads one datagram that is there already.
func (s *nlsock) next() (int, bool) {
	for {
		n, err := unix.Read(s.fd, s.recv) // not Recvfrom, which allocates the sender
		switch err {
		case nil:
			return n, true
		case unix.EINTR:
		default:
			return 0, false
		}
	}
}

// drain forgets what an earlier, broken-off exchange left.
func (s *nlsock) drain() {
	for {
		if _, ok := s.next(); !ok {
			return
		}
	}
}

// ask sends one request and calls each with the payload of every answer of
// the type. A dump whose end does not arrive, or during which something has
// changed (EINTR), is an error: what it lacks is not known to be absent.
func (s *nlsock) ask(request []byte, typ uint16, each func(payload []byte)) error {
	s.drain()
	if err := unix.Sendto(s.fd, request, 0, &s.to); err != nil {
		return fmt.Errorf("send netlink request: %w", err)
	}
	for {
		n, ok := s.next()
		switch {
		case !ok && native.Uint16(request[6:])&unix.NLM_F_DUMP == unix.NLM_F_DUMP:
			return fmt.Errorf("the kernel broke a netlink dump off: %w", unix.ENOBUFS)
		case !ok:
			return nil // a single answer ends by this, a dump by NLMSG_DONE below
		}
		if done, err := readAnswers(s.recv[:n], typ, each); done || err != nil {
			return err
		}
	}
}

// readAnswers reads one datagram of ask's answers, and reports whether it ended
// the dump.
func readAnswers(m []byte, typ uint16, each func(payload []byte)) (done bool, err error) {
	for len(m) >= unix.SizeofNlMsghdr {
		length, t, flags := int(native.Uint32(m)), native.Uint16(m[4:]), native.Uint16(m[6:])
		if length < unix.SizeofNlMsghdr || length > len(m) {
			return false, nil
		}
		ends := t == unix.NLMSG_DONE || t == unix.NLMSG_ERROR
		switch {
		case flags&unix.NLM_F_DUMP_INTR != 0 && (t == unix.NLMSG_DONE || t == typ):
			return true, unix.EINTR
		case ends && length >= unix.SizeofNlMsghdr+4:
			// A dump that fails in its middle says so in its end.
			if errno := unix.Errno(-int32(native.Uint32(m[unix.SizeofNlMsghdr:]))); errno != 0 {
				return true, errno
			}
		case t == typ:
			each(m[unix.SizeofNlMsghdr:length])
		}
		if t == unix.NLMSG_DONE {
			return true, nil
		}
		m = m[min(align4(length), len(m)):]
	}
	return false, nil
}

func align4(n int) int { return (n + 3) &^ 3 }

// addresses is the kernel's table of addresses, as far as the guard touches it.
// The lock is held over each change and never while waiting for anything but
// the kernel's own.
type addresses struct {
	mu     sync.Mutex
	sock   *nlsock
	dump   []byte
	remove []byte          // DELADDR of everything present, built beforehand for the end of the role
	until  cluster.Instant // earliest end of the lifetimes set last
}

func openAddresses() (*addresses, error) {
	sock, err := openNetlink(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	req := nl.NewNetlinkRequest(unix.RTM_GETADDR, unix.NLM_F_DUMP)
	req.AddData(nl.NewIfAddrmsg(unix.AF_UNSPEC))
	return &addresses{sock: sock, dump: req.Serialize()}, nil
}

func (a *addresses) close() { a.sock.close() }

// list reads the kernel's addresses, loopback's included. The caller holds mu.
func (a *addresses) list() ([]router.KernelAddress, error) {
	var found []router.KernelAddress
	var err error
	for range 5 { // a dump that met a change in its middle is read again
		found = found[:0]
		err = a.sock.ask(a.dump, unix.RTM_NEWADDR, func(payload []byte) {
			if k, ok := a.parse(payload); ok {
				found = append(found, k)
			}
		})
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read the kernel's addresses: %w", err)
	}
	return found, nil
}

// parse reads one RTM_NEWADDR.
func (a *addresses) parse(p []byte) (router.KernelAddress, bool) {
	if len(p) < unix.SizeofIfAddrmsg {
		return router.KernelAddress{}, false
	}
	bits, index := int(p[1]), native.Uint32(p[4:])
	var local, address netip.Addr
	label, proto := "", byte(0)
	for attrs := p[unix.SizeofIfAddrmsg:]; len(attrs) >= 4; {
		length, typ := int(native.Uint16(attrs)), native.Uint16(attrs[2:])
		if length < 4 || length > len(attrs) {
			break
		}
		value := attrs[4:length]
		switch typ {
		case unix.IFA_LOCAL:
			local, _ = netip.AddrFromSlice(value)
		case unix.IFA_ADDRESS:
			address, _ = netip.AddrFromSlice(value)
		case unix.IFA_LABEL:
			label = strings.TrimRight(string(value), "\x00")
		case ifaProto:
			if len(value) > 0 {
				proto = value[0]
			}
		}
		attrs = attrs[min(align4(length), len(attrs)):]
	}
	if !local.IsValid() {
		local = address
	}
	if !local.IsValid() {
		return router.KernelAddress{}, false
	}
	name := a.name(index)
	ours := proto == addressProto || label != "" && label == name+labelSuffix
	return router.KernelAddress{Prefix: netip.PrefixFrom(local, bits), Interface: name, Index: int(index), Ours: ours}, true
}

// name resolves an interface's index, "#<index>" if it is gone.
func (a *addresses) name(index uint32) string {
	ifr, _ := unix.NewIfreq("x")
	ifr.SetUint32(index)
	if err := unix.IoctlIfreq(a.sock.fd, unix.SIOCGIFNAME, ifr); err != nil {
		return fmt.Sprintf("#%d", index)
	}
	return ifr.Name()
}

// index resolves an interface's name.
func (a *addresses) index(name string) (uint32, error) {
	ifr, err := unix.NewIfreq(name)
	if err == nil {
		err = unix.IoctlIfreq(a.sock.fd, unix.SIOCGIFINDEX, ifr)
	}
	if err != nil {
		return 0, fmt.Errorf("interface %q: %w", name, err)
	}
	return ifr.Uint32(), nil
}

// request builds NEWADDR or DELADDR for one address of ours.
func (a *addresses) request(typ, flags int, index uint32, ifname string, p netip.Prefix, lifetime uint32) []byte {
	a.sock.seq++
	req := nl.NewNetlinkRequest(typ, unix.NLM_F_ACK|flags)
	req.Seq = a.sock.seq
	family := unix.AF_INET6
	if p.Addr().Is4() {
		family = unix.AF_INET
	}
	msg := nl.NewIfAddrmsg(family)
	msg.Index, msg.Prefixlen = index, uint8(p.Bits())
	if p.Addr().IsLinkLocalUnicast() {
		msg.Scope = unix.RT_SCOPE_LINK
	}
	req.AddData(msg)
	raw := p.Addr().AsSlice()
	req.AddData(nl.NewRtAttr(unix.IFA_LOCAL, raw))
	req.AddData(nl.NewRtAttr(unix.IFA_ADDRESS, raw))
	if typ == unix.RTM_DELADDR {
		return req.Serialize()
	}
	preferred := lifetime
	if family == unix.AF_INET {
		if label := ifname + labelSuffix; len(label) < unix.IFNAMSIZ {
			req.AddData(nl.NewRtAttr(unix.IFA_LABEL, nl.ZeroTerminated(label)))
		}
		if b, ok := broadcastOf(p); ok {
			req.AddData(nl.NewRtAttr(unix.IFA_BROADCAST, b))
		}
	} else {
		// No duplicate address detection: the lease has settled who has it. And
		// never preferred, so that no connection of this host's own is made from
		// an address that will leave it.
		preferred = 0
		req.AddData(nl.NewRtAttr(unix.IFA_FLAGS, native.AppendUint32(nil, unix.IFA_F_NODAD)))
	}
	cache := nl.IfaCacheInfo{IfaCacheinfo: unix.IfaCacheinfo{Prefered: preferred, Valid: lifetime}} //nolint:misspell // the kernel's own name
	req.AddData(nl.NewRtAttr(unix.IFA_CACHEINFO, cache.Serialize()))
	req.AddData(nl.NewRtAttr(ifaProto, []byte{addressProto}))
	return req.Serialize()
}

// broadcastOf is the highest address of an IPv4 prefix that has room for one.
func broadcastOf(p netip.Prefix) ([]byte, bool) {
	if p.Bits() >= 31 {
		return nil, false
	}
	b := p.Addr().As4()
	v := binary.BigEndian.Uint32(b[:]) | (1<<(32-p.Bits()) - 1)
	return binary.BigEndian.AppendUint32(nil, v), true
}

// add adds addresses that list has not shown, all in one batch. One that is
// there meanwhile without our mark is refused by the kernel (EEXIST) and never
// taken over. The caller holds mu.
func (a *addresses) add(wanted []cluster.FloatingAddress, lifetime uint32) error {
	var batch []byte
	bySeq := map[uint32]cluster.FloatingAddress{}
	for _, w := range wanted {
		index, err := a.index(w.Interface)
		if err != nil {
			return fmt.Errorf("add address %s: %w", w, err)
		}
		batch = append(batch, a.request(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, index, w.Interface, w.Prefix, lifetime)...)
		bySeq[a.sock.seq] = w
	}
	if len(batch) == 0 {
		return nil
	}
	err := a.sock.exec(batch, nil)
	var ack *ackError
	if errors.As(err, &ack) {
		return fmt.Errorf("add address %s: %w", bySeq[ack.seq], ack.errno)
	}
	return err
}

// refresh sets the lifetime of addresses that list has just shown as ours, all
// in one batch. One that the kernel removed meanwhile is re-created by this, so
// the caller reads the clock again afterwards. The caller holds mu.
func (a *addresses) refresh(present []router.KernelAddress, lifetime uint32) error {
	var batch []byte
	for _, k := range present {
		batch = append(batch, a.request(unix.RTM_NEWADDR, unix.NLM_F_REPLACE, uint32(k.Index), k.Interface, k.Prefix, lifetime)...)
	}
	if len(batch) == 0 {
		return nil
	}
	return a.sock.exec(batch, nil)
}

// prepare builds the batch that removes these addresses, for removeNow. The
// caller holds mu.
func (a *addresses) prepare(present []router.KernelAddress) {
	a.remove = a.remove[:0]
	for _, k := range present {
		a.remove = append(a.remove, a.request(unix.RTM_DELADDR, 0, uint32(k.Index), k.Interface, k.Prefix, 0)...)
	}
}

// removeNow sends what prepare has built. An address that is gone already is no
// error. The caller holds mu.
func (a *addresses) removeNow() error {
	if len(a.remove) == 0 {
		return nil
	}
	return a.sock.exec(a.remove, countsForRemoval)
}

func countsForRemoval(_ uint32, errno unix.Errno) bool {
	return errno != unix.EADDRNOTAVAIL && errno != unix.ENODEV
}

// removeOurs removes every address that carries our mark and is not to be kept,
// and verifies it against the kernel. The caller holds mu.
func (a *addresses) removeOurs(keep ...netip.Prefix) (removed []router.KernelAddress, err error) {
	for range 5 {
		all, err := a.list()
		if err != nil {
			return removed, err
		}
		var ours, kept []router.KernelAddress
		for _, k := range all {
			switch {
			case !k.Ours:
			case slices.Contains(keep, k.Prefix):
				kept = append(kept, k)
			default:
				ours = append(ours, k)
			}
		}
		if len(ours) == 0 {
			a.prepare(kept) // the end of those is to find its requests made (I3)
			return removed, nil
		}
		a.prepare(ours)
		if err := a.removeNow(); err != nil {
			return removed, fmt.Errorf("remove addresses: %w", err)
		}
		removed = append(removed, ours...)
	}
	return removed, fmt.Errorf("remove addresses: somebody adds %s again as often as it is removed", removed[len(removed)-1].Prefix)
}

// protectForeign keeps a later removal of these addresses of ours from taking
// foreign ones with it: where ours is the first of its IPv4 subnet on the
// interface, the kernel would delete the others unless told to promote them.
func (a *addresses) protectForeign(added []cluster.FloatingAddress) {
	for i, w := range added {
		same := func(b cluster.FloatingAddress) bool { return b.Prefix.Addr().Is4() && b.Interface == w.Interface }
		if !w.Prefix.Addr().Is4() || slices.ContainsFunc(added[:i], same) {
			continue
		}
		path := "/proc/sys/net/ipv4/conf/" + w.Interface + "/promote_secondaries"
		if raw, err := os.ReadFile(path); err == nil && len(raw) > 0 && raw[0] == '0' {
			_ = os.WriteFile(path, []byte("1\n"), 0o644) // read-only /proc: then as the kernel does it
		}
	}
}
