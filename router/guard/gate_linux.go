package guard

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// errGateLost says that an element, a rule or the table itself is not there
// although the guard put it there and it has not run out: somebody has flushed
// the firewall, or the right has just expired.
var errGateLost = errors.New("the gate is not as it was made")

// jiffy covers the coarseness of the kernel's timeouts: an element must be gone
// at the deadline, not a tick after it (I3).
const jiffy = time.Millisecond

// The hooks of the arp family, absent from x/sys.
const (
	arpIn  = 0
	arpOut = 1
)

// gate is the guard's nftables table: packets for a managed address pass only
// while its element lives, and the kernel itself ends an element at its
// timeout, so that a stopped guard cannot keep a right alive (I3).
//
// Two tables of one name, for inet and for arp, each with a set of what is
// managed and a set of what is open:
//
//	inet  in, and what is delivered here at prerouting:  daddr managed, not open → drop
//	      in:   ND solicitation for a target managed, not open → drop
//	      out:  saddr managed, not open → drop; ND advertisement likewise
//	arp   in:   request for a managed, not open address → drop
//	      out:  sender managed, not open → drop
//
// Only what this host would answer or send as an owner is dropped: as a
// client it may still reach the address at whoever has it now.
// The lock is held over each exchange with the kernel.
type gate struct {
	mu      sync.Mutex
	sock    *nlsock
	table   string
	managed []netip.Addr
	open    []netip.Addr // those given an element last, whether or not it still lives
	rules   map[string]int
	gen     uint32 // the ruleset's generation after our last look or change
	shutAll []byte // built beforehand for the end of the role
}

func openGate(table string) (*gate, error) {
	sock, err := openNetlink(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	g := &gate{sock: sock, table: table}
	var b batch
	for _, s := range openSets {
		b.add(g.elements(unix.NFT_MSG_DELSETELEM, 0, s, nil, 0))
	}
	g.shutAll = b.bytes()
	return g, nil
}

func (g *gate) close() { g.sock.close() }

// setRef names a set of either table.
type setRef struct {
	family byte
	name   string
	v4     bool
}

var (
	openSets    = []setRef{{unix.NFPROTO_INET, "open4", true}, {unix.NFPROTO_INET, "open6", false}, {unix.NFPROTO_ARP, "open4", true}}
	managedSets = []setRef{{unix.NFPROTO_INET, "managed4", true}, {unix.NFPROTO_INET, "managed6", false}, {unix.NFPROTO_ARP, "managed4", true}}
)

// keys are those of the addresses that belong into the set.
func (s setRef) keys(addrs []netip.Addr) [][]byte {
	var keys [][]byte
	for _, a := range addrs {
		if a.Is4() == s.v4 {
			keys = append(keys, a.AsSlice())
		}
	}
	return keys
}

// batch collects nftables messages that the kernel does all or none of.
type batch struct{ raw []byte }

func (b *batch) add(req *nl.NetlinkRequest) {
	if req == nil {
		return
	}
	if len(b.raw) == 0 {
		b.raw = append(b.raw, batchMark(unix.NFNL_MSG_BATCH_BEGIN)...)
	}
	b.raw = append(b.raw, req.Serialize()...)
}

func (b *batch) bytes() []byte {
	if len(b.raw) == 0 {
		return nil
	}
	return append(b.raw, batchMark(unix.NFNL_MSG_BATCH_END)...)
}

func batchMark(typ int) []byte {
	req := nl.NewNetlinkRequest(typ, 0)
	req.AddData(&nl.Nfgenmsg{ResId: native.Uint16([]byte{0, unix.NFNL_SUBSYS_NFTABLES})}) // big endian
	return req.Serialize()
}

// elements builds a message that adds or deletes elements of a set; deleting
// without naming any empties it. Nothing to add, or no address of the family to
// delete by name, is no message.
func (g *gate) elements(msg, flags int, s setRef, addrs []netip.Addr, timeout time.Duration) *nl.NetlinkRequest {
	keys := s.keys(addrs)
	if len(keys) == 0 && (msg != unix.NFT_MSG_DELSETELEM || addrs != nil) {
		return nil
	}
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|msg, unix.NLM_F_ACK|flags)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: s.family})
	req.AddData(nl.NewRtAttr(unix.NFTA_SET_ELEM_LIST_TABLE, nl.ZeroTerminated(g.table)))
	req.AddData(nl.NewRtAttr(unix.NFTA_SET_ELEM_LIST_SET, nl.ZeroTerminated(s.name)))
	if len(keys) == 0 {
		return req
	}
	list := nl.NewRtAttr(unix.NFTA_SET_ELEM_LIST_ELEMENTS|unix.NLA_F_NESTED, nil)
	for _, k := range keys {
		elem := list.AddRtAttr(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, nil)
		key := elem.AddRtAttr(unix.NFTA_SET_ELEM_KEY|unix.NLA_F_NESTED, nil)
		key.AddRtAttr(unix.NFTA_DATA_VALUE, k)
		if timeout > 0 {
			elem.AddRtAttr(unix.NFTA_SET_ELEM_TIMEOUT, binary.BigEndian.AppendUint64(nil, uint64(timeout.Milliseconds())))
		}
	}
	req.AddData(list)
	return req
}

// commit sends a batch and keeps the generation in step, so that check notices
// what anybody else changes. The caller holds mu.
func (g *gate) commit(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	err := g.sock.exec(b, nil)
	if err == nil {
		g.gen++
		if g.gen == 0 {
			g.gen = 1
		}
		return nil
	}
	var ack *ackError // on the heap, so not before
	if errors.As(err, &ack) && ack.errno == unix.ENOENT {
		return fmt.Errorf("%w: %w", errGateLost, err)
	}
	return fmt.Errorf("change the gate: %w", err)
}

// openFor makes exactly these addresses pass for the time, whether or not they
// had elements: for phase D, an acknowledged abort and Resume only. The caller
// holds mu and reads the clock again afterwards.
func (g *gate) openFor(addrs []netip.Addr, timeout time.Duration) error {
	var b batch
	for _, s := range openSets {
		b.add(g.elements(unix.NFT_MSG_DELSETELEM, 0, s, nil, 0))
		b.add(g.elements(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, s, addrs, timeout))
	}
	if err := g.commit(b.bytes()); err != nil {
		return err
	}
	g.open = slices.Clone(addrs)
	return nil
}

// refresh gives what is open a new timeout, in one batch that deletes each
// element first: once any has run out the kernel refuses the whole, so that a
// process that was stopped cannot renew a dead right. The caller holds mu.
func (g *gate) refresh(timeout time.Duration) error {
	var b batch
	for _, s := range openSets {
		b.add(g.elements(unix.NFT_MSG_DELSETELEM, 0, s, orNone(g.open), 0))
		b.add(g.elements(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, s, orNone(g.open), timeout))
	}
	return g.commit(b.bytes())
}

// orNone keeps "delete these" from meaning "delete all".
func orNone(addrs []netip.Addr) []netip.Addr {
	if addrs == nil {
		return []netip.Addr{}
	}
	return addrs
}

// shut closes the gate for every address. The caller holds mu.
func (g *gate) shut() error {
	g.open = g.open[:0]
	return g.commit(g.shutAll)
}

// manage puts further addresses under the gate. The caller holds mu.
func (g *gate) manage(addrs []netip.Addr) error {
	var fresh []netip.Addr
	for _, a := range addrs {
		if !slices.Contains(g.managed, a) {
			fresh = append(fresh, a)
		}
	}
	var b batch
	for _, s := range managedSets {
		b.add(g.elements(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, s, fresh, 0))
	}
	if err := g.commit(b.bytes()); err != nil {
		return err
	}
	g.managed = append(g.managed, fresh...)
	return nil
}

// generation reads the number of the ruleset's last change by anybody.
func (g *gate) generation() (uint32, error) {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN, 0)
	req.AddData(&nl.Nfgenmsg{})
	var gen uint32
	err := g.sock.ask(req.Serialize(), unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN, func(p []byte) {
		for attrs := p[min(nl.SizeofNfgenmsg, len(p)):]; len(attrs) >= 8; {
			length := int(native.Uint16(attrs))
			if native.Uint16(attrs[2:]) == unix.NFTA_GEN_ID {
				gen = binary.BigEndian.Uint32(attrs[4:])
			}
			if length < 4 || length > len(attrs) {
				return
			}
			attrs = attrs[min(align4(length), len(attrs)):]
		}
	})
	if err != nil || gen == 0 {
		return 0, fmt.Errorf("read the ruleset's generation (%d): %w", gen, err)
	}
	return gen, nil
}

// check reports whether table, sets, rules and the open elements are as they
// were made; errGateLost if not. It looks closely only where somebody else has
// changed the ruleset since. The caller holds mu.
func (g *gate) check() error {
	gen, err := g.generation()
	if err != nil {
		return err
	}
	if gen == g.gen {
		return nil
	}
	if err := g.verify(); err != nil {
		return err
	}
	g.gen = gen
	return nil
}

// verify compares the kernel's table with what build made.
func (g *gate) verify() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("read the gate: %w", err)
	}
	for _, t := range g.tables() {
		for _, c := range g.chains(t) {
			rules, err := conn.GetRules(t, c)
			if err != nil {
				return fmt.Errorf("%w: chain %s: %w", errGateLost, chainKey(c), err)
			}
			if len(rules) != g.rules[chainKey(c)] {
				return fmt.Errorf("%w: chain %s has %d of %d rules", errGateLost, chainKey(c), len(rules), g.rules[chainKey(c)])
			}
		}
	}
	for _, s := range managedSets {
		if err := contains(conn, g.set(s), s.keys(g.managed)); err != nil {
			return err
		}
	}
	for _, s := range openSets {
		if err := contains(conn, g.set(s), s.keys(g.open)); err != nil {
			return err
		}
	}
	return nil
}

func contains(conn *nftables.Conn, set *nftables.Set, keys [][]byte) error {
	have, err := conn.GetSetElements(set)
	if err != nil {
		return fmt.Errorf("%w: set %s: %w", errGateLost, set.Name, err)
	}
	for _, k := range keys {
		if !slices.ContainsFunc(have, func(e nftables.SetElement) bool { return slices.Equal(e.Key, k) }) {
			a, _ := netip.AddrFromSlice(k)
			return fmt.Errorf("%w: %s is missing from set %s", errGateLost, a, set.Name)
		}
	}
	return nil
}

// living returns the addresses whose element lives in each set it belongs to,
// with the shortest time left. The caller holds mu.
func (g *gate) living() (map[netip.Addr]time.Duration, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("read the gate: %w", err)
	}
	left, seen := map[netip.Addr]time.Duration{}, map[netip.Addr]int{}
	for _, s := range openSets {
		have, err := conn.GetSetElements(g.set(s))
		if err != nil {
			return nil, fmt.Errorf("read the gate's set %s: %w", s.name, err)
		}
		for _, e := range have {
			a, ok := netip.AddrFromSlice(e.Key)
			if !ok {
				continue
			}
			if seen[a]++; seen[a] == 1 || e.Expires < left[a] {
				left[a] = e.Expires
			}
		}
	}
	for a, n := range seen {
		if a.Is4() && n < 2 { // half open: ARP without IP, or the other way
			delete(left, a)
		}
	}
	return left, nil
}

func (g *gate) tables() []*nftables.Table {
	return []*nftables.Table{
		{Name: g.table, Family: nftables.TableFamilyINet},
		{Name: g.table, Family: nftables.TableFamilyARP},
	}
}

// set describes a set for the library.
func (g *gate) set(s setRef) *nftables.Set {
	key := nftables.TypeIP6Addr
	if s.v4 {
		key = nftables.TypeIPAddr
	}
	return &nftables.Set{
		Table: &nftables.Table{Name: g.table, Family: nftables.TableFamily(s.family)},
		Name:  s.name, KeyType: key, KeyByteOrder: binaryutil.BigEndian,
		HasTimeout: slices.Contains(openSets, s),
	}
}

func chainKey(c *nftables.Chain) string {
	return fmt.Sprintf("%d/%s", c.Table.Family, c.Name)
}

// chains lists a table's chains. Priority raw: before other people's filters
// and address translation.
func (g *gate) chains(t *nftables.Table) []*nftables.Chain {
	chain := func(name string, hook nftables.ChainHook) *nftables.Chain {
		return &nftables.Chain{Name: name, Table: t, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookRef(hook), Priority: nftables.ChainPriorityRaw}
	}
	if t.Family == nftables.TableFamilyARP {
		return []*nftables.Chain{chain("in", arpIn), chain("out", arpOut)}
	}
	return []*nftables.Chain{
		chain("pre", unix.NF_INET_PRE_ROUTING), chain("in", unix.NF_INET_LOCAL_IN), chain("out", unix.NF_INET_LOCAL_OUT),
	}
}

// build makes the tables anew with every one of the addresses shut, in one
// batch, whatever was there before. The caller holds mu.
func (g *gate) build(addrs []netip.Addr) error {
	err := g.buildWith(true)
	if err != nil { // a kernel without the fib expression: forwarded (translated) packets stay ungated
		err = g.buildWith(false)
	}
	if err != nil {
		return fmt.Errorf("make the gate's nftables tables %q: %w", g.table, err)
	}
	g.managed, g.open = nil, nil
	if g.gen, err = g.generation(); err != nil {
		return err
	}
	return g.manage(addrs)
}

// adopt takes over the tables of an earlier guard if they are exactly as build
// makes them and the open addresses' elements live. The caller holds mu.
func (g *gate) adopt(managed, open []netip.Addr) bool {
	gen, err := g.generation()
	if err != nil {
		return false
	}
	g.rules = map[string]int{}
	for _, t := range g.tables() {
		for _, c := range g.chains(t) {
			g.rules[chainKey(c)] = len(chainRules(chainKey(c), true))
		}
	}
	g.managed, g.open = managed, open
	if g.verify() != nil {
		g.managed, g.open = nil, nil
		return false
	}
	g.gen = gen
	return true
}

func (g *gate) buildWith(fib bool) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	for _, t := range g.tables() {
		conn.AddTable(t) // so that the deletion finds one
		conn.DelTable(t)
		conn.AddTable(t)
	}
	for _, s := range slices.Concat(managedSets, openSets) {
		if err := conn.AddSet(g.set(s), nil); err != nil {
			return err
		}
	}
	g.rules = map[string]int{}
	for _, t := range g.tables() {
		for _, c := range g.chains(t) {
			conn.AddChain(c)
			for _, exprs := range chainRules(chainKey(c), fib) {
				conn.AddRule(&nftables.Rule{Table: t, Chain: c, Exprs: exprs})
				g.rules[chainKey(c)]++
			}
		}
	}
	return conn.Flush()
}

// dropTables removes the gate altogether: for Sweep and tests.
func (g *gate) dropTables() error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	for _, t := range g.tables() {
		conn.AddTable(t)
		conn.DelTable(t)
	}
	return conn.Flush()
}

// chainRules lists the rules of a chain.
func chainRules(key string, fib bool) [][]expr.Any {
	const inet, arp = "1/", "3/"
	switch key {
	case inet + "pre":
		if !fib {
			return nil
		}
		return [][]expr.Any{
			rule(isFamily(unix.NFPROTO_IPV4), deliveredHere(), shutIn(false, expr.PayloadBaseNetworkHeader, 16)),
			rule(isFamily(unix.NFPROTO_IPV6), deliveredHere(), shutIn(true, expr.PayloadBaseNetworkHeader, 24)),
		}
	case inet + "in":
		return [][]expr.Any{
			rule(isFamily(unix.NFPROTO_IPV4), shutIn(false, expr.PayloadBaseNetworkHeader, 16)),
			rule(isFamily(unix.NFPROTO_IPV6), shutIn(true, expr.PayloadBaseNetworkHeader, 24)),
			rule(isND(135), shutIn(true, expr.PayloadBaseTransportHeader, 8)),
		}
	case inet + "out":
		return [][]expr.Any{
			rule(isFamily(unix.NFPROTO_IPV4), shutIn(false, expr.PayloadBaseNetworkHeader, 12)),
			rule(isFamily(unix.NFPROTO_IPV6), shutIn(true, expr.PayloadBaseNetworkHeader, 8)),
			rule(isND(136), shutIn(true, expr.PayloadBaseTransportHeader, 8)),
		}
	case arp + "in": // gratuitous requests of the owner (sender = target) still reach the neighbour table
		return [][]expr.Any{rule(isARPRequest(), shutIn(false, expr.PayloadBaseNetworkHeader, 24), senderIsNot("managed4"))}
	case arp + "out":
		return [][]expr.Any{rule(shutIn(false, expr.PayloadBaseNetworkHeader, 14))}
	}
	return nil
}

// rule joins the matches and drops, counting, what meets all of them.
func rule(matches ...[]expr.Any) []expr.Any {
	return append(slices.Concat(matches...), &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop})
}

// shutIn matches an address at the offset that is managed and not open.
func shutIn(v6 bool, base expr.PayloadBase, offset uint32) []expr.Any {
	size, suffix := uint32(4), "4"
	if v6 {
		size, suffix = 16, "6"
	}
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: size},
		&expr.Lookup{SourceRegister: 1, SetName: "managed" + suffix},
		&expr.Lookup{SourceRegister: 1, SetName: "open" + suffix, Invert: true},
	}
}

func senderIsNot(set string) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 14, Len: 4},
		&expr.Lookup{SourceRegister: 1, SetName: set, Invert: true},
	}
}

func isFamily(proto byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
	}
}

// isND matches an ICMPv6 type; the target is matched as raw payload, since not
// every nft can print, and so not every operator load, a keyword for it.
func isND(icmpType byte) []expr.Any {
	return append(isFamily(unix.NFPROTO_IPV6),
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_ICMPV6}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{icmpType}})
}

func isARPRequest() []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 6, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0, 1}},
	}
}

// deliveredHere matches what the routing table delivers to this host.
func deliveredHere() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, ResultADDRTYPE: true, FlagDADDR: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: native.AppendUint32(nil, unix.RTN_LOCAL)},
	}
}
