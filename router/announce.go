package router

import (
	"encoding/binary"
	"net"
	"net/netip"
)

// Sizes and numbers of the frames below.
const (
	etherARP  = 0x0806
	etherIPv6 = 0x86dd
	arpSize   = 42
	ndSize    = 14 + 40 + 24 + 8

	icmpNeighborSolicit = 135
	icmpNeighborAdvert  = 136
)

var (
	broadcast  = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	allNodes   = netip.MustParseAddr("ff02::1")
	allNodesHW = net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
	noHW       = net.HardwareAddr{0, 0, 0, 0, 0, 0}
)

// AnnounceFrames returns the frames by which the owner of an address tells its
// neighbours: for IPv4 a gratuitous ARP in the request and in the reply form,
// since neighbours differ in which they heed; for IPv6 one unsolicited
// neighbour advertisement. forwarding says that this host routes on the
// interface, which an advertisement must not deny.
func AnnounceFrames(mac net.HardwareAddr, addr netip.Addr, forwarding bool) [][]byte {
	if addr.Is4() {
		return [][]byte{
			arpFrame(broadcast, mac, 1, mac, addr, noHW, addr),
			arpFrame(broadcast, mac, 2, mac, addr, broadcast, addr),
		}
	}
	return [][]byte{unsolicitedNA(mac, addr, forwarding)}
}

// ProbeFrame returns the question "does anybody have this address?", asked so
// that nobody's neighbour table changes: an ARP probe with an empty sender, or
// a neighbour solicitation from the unspecified address.
func ProbeFrame(mac net.HardwareAddr, addr netip.Addr) []byte {
	if addr.Is4() {
		return arpFrame(broadcast, mac, 1, mac, netip.IPv4Unspecified(), noHW, addr)
	}
	return probeNS(mac, addr)
}

// AnswerTo reads a frame and reports the hardware address it gives for the
// address, if it claims that one.
func AnswerTo(frame []byte, addr netip.Addr) (net.HardwareAddr, bool) {
	claimed, mac, ok := Claim(frame)
	return mac, ok && claimed == addr
}

// Claim reads a frame by which a host says that an address is its own: an ARP
// packet with that sender (an answer, an announcement, or a question of its
// own), or a neighbour advertisement. The hardware address is the one that the
// neighbours learn from it, whoever sent the frame; it shares frame's memory.
func Claim(frame []byte) (netip.Addr, net.HardwareAddr, bool) {
	if len(frame) < 14 {
		return netip.Addr{}, nil, false
	}
	switch binary.BigEndian.Uint16(frame[12:]) {
	case etherARP:
		if len(frame) >= arpSize && string(frame[14:20]) == "\x00\x01\x08\x00\x06\x04" {
			return netip.AddrFrom4([4]byte(frame[28:32])), net.HardwareAddr(frame[22:28]), true
		}
	case etherIPv6: // another hop limit than 255 is a router's away, and heeded by nobody
		if len(frame) >= 14+40+24 && frame[20] == 58 && frame[21] == 255 && frame[54] == icmpNeighborAdvert {
			return netip.AddrFrom16([16]byte(frame[62:78])), learnedFromNA(frame), true
		}
	}
	return netip.Addr{}, nil, false
}

// learnedFromNA is the target link-layer option's address, or the frame's
// sender where the advertisement has none.
func learnedFromNA(frame []byte) net.HardwareAddr {
	for options := frame[78:]; len(options) >= 8; {
		size := 8 * int(options[1])
		if options[0] == 2 && size == 8 {
			return net.HardwareAddr(options[2:8])
		}
		if size == 0 || size > len(options) {
			break
		}
		options = options[size:]
	}
	return net.HardwareAddr(frame[6:12])
}

func arpFrame(dst, src net.HardwareAddr, op uint16, sha net.HardwareAddr, spa netip.Addr, tha net.HardwareAddr, tpa netip.Addr) []byte {
	f := make([]byte, 0, arpSize)
	f = append(f, dst...)
	f = append(f, src...)
	f = binary.BigEndian.AppendUint16(f, etherARP)
	f = append(f, 0, 1, 8, 0, 6, 4) // Ethernet, IPv4, their address lengths
	f = binary.BigEndian.AppendUint16(f, op)
	f = append(f, sha...)
	f = append(f, spa.AsSlice()...)
	f = append(f, tha...)
	return append(f, tpa.AsSlice()...)
}

func unsolicitedNA(mac net.HardwareAddr, addr netip.Addr, forwarding bool) []byte {
	flags := byte(0x20) // override: replace what you know
	if forwarding {
		flags |= 0x80 // or the neighbours would drop routes through us
	}
	return ndFrame(allNodesHW, mac, addr, allNodes, icmpNeighborAdvert, flags, addr, 2, mac)
}

func probeNS(mac net.HardwareAddr, addr netip.Addr) []byte {
	a := addr.As16()
	group := [16]byte{0xff, 0x02, 11: 1, 12: 0xff, 13: a[13], 14: a[14], 15: a[15]}
	hw := net.HardwareAddr{0x33, 0x33, 0xff, a[13], a[14], a[15]}
	// A solicitation from the unspecified address carries no link-layer option.
	return ndFrame(hw, mac, netip.IPv6Unspecified(), netip.AddrFrom16(group), icmpNeighborSolicit, 0, addr, 0, nil)
}

// ndFrame builds an ND packet; option 0 means none.
func ndFrame(dst, src net.HardwareAddr, from, to netip.Addr, typ, flags byte, target netip.Addr, option byte, mac net.HardwareAddr) []byte {
	body := []byte{typ, 0, 0, 0, flags, 0, 0, 0}
	body = append(body, target.AsSlice()...)
	if option != 0 {
		body = append(append(body, option, 1), mac...)
	}
	binary.BigEndian.PutUint16(body[2:], icmpv6Checksum(from, to, body))
	f := make([]byte, 0, ndSize)
	f = append(f, dst...)
	f = append(f, src...)
	f = binary.BigEndian.AppendUint16(f, etherIPv6)
	f = append(f, 0x60, 0, 0, 0)
	f = binary.BigEndian.AppendUint16(f, uint16(len(body)))
	f = append(f, 58, 255) // ICMPv6; any other hop limit than 255 is ignored
	f = append(f, from.AsSlice()...)
	f = append(f, to.AsSlice()...)
	return append(f, body...)
}

// icmpv6Checksum sums the pseudo header and the body, whose own checksum field
// must be zero.
func icmpv6Checksum(from, to netip.Addr, body []byte) uint16 {
	var sum uint32
	add := func(b []byte) {
		for i := 0; i+1 < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
	}
	add(from.AsSlice())
	add(to.AsSlice())
	sum += uint32(len(body)) + 58
	add(body)
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
