package sandbox

import (
	"encoding/binary"
	"net"
	"net/netip"
)

// probeFrame is a whole Ethernet frame that carries a probe to one node's MAC.
// Everything but the probe's round is fixed when it is made.
type probeFrame struct {
	raw     []byte
	payload int // offset of the probe
	udp     int // offset of the UDP header
	pseudo  uint32
}

// newProbeFrame lays out Ethernet, IPv4 or IPv6, UDP and an empty probe.
func newProbeFrame(srcMAC, dstMAC net.HardwareAddr, src, dst netip.AddrPort) *probeFrame {
	f := &probeFrame{}
	raw := append(append([]byte{}, dstMAC...), srcMAC...)
	const udpLen = 8 + probeSize
	if dst.Addr().Is4() {
		raw = append(raw, 0x08, 0x00)
		ip := make([]byte, 20)
		ip[0], ip[8], ip[9] = 0x45, 64, 17
		binary.BigEndian.PutUint16(ip[2:], 20+udpLen)
		copy(ip[12:], src.Addr().AsSlice())
		copy(ip[16:], dst.Addr().AsSlice())
		binary.BigEndian.PutUint16(ip[10:], ^fold(sum(0, ip)))
		raw = append(raw, ip...)
	} else {
		raw = append(raw, 0x86, 0xdd)
		ip := make([]byte, 40)
		ip[0], ip[6], ip[7] = 0x60, 17, 64
		binary.BigEndian.PutUint16(ip[4:], udpLen)
		copy(ip[8:], src.Addr().AsSlice())
		copy(ip[24:], dst.Addr().AsSlice())
		raw = append(raw, ip...)
	}
	f.udp = len(raw)
	f.payload = f.udp + 8
	raw = append(raw, make([]byte, udpLen)...)
	binary.BigEndian.PutUint16(raw[f.udp:], src.Port())
	binary.BigEndian.PutUint16(raw[f.udp+2:], dst.Port())
	binary.BigEndian.PutUint16(raw[f.udp+4:], udpLen)
	f.pseudo = sum(sum(17+udpLen, src.Addr().AsSlice()), dst.Addr().AsSlice())
	f.raw = raw
	return f
}

// fill puts the probe in and returns the frame, ready to be sent.
func (f *probeFrame) fill(addr int, round uint64) []byte {
	putProbe(f.raw[f.payload:], probeEach, addr, round)
	binary.BigEndian.PutUint16(f.raw[f.udp+6:], 0)
	check := ^fold(sum(f.pseudo, f.raw[f.udp:]))
	if check == 0 {
		check = 0xffff
	}
	binary.BigEndian.PutUint16(f.raw[f.udp+6:], check)
	return f.raw
}

// sum adds big-endian 16-bit words, as RFC 1071 does.
func sum(start uint32, b []byte) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		start += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		start += uint32(b[0]) << 8
	}
	return start
}

func fold(s uint32) uint16 {
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}
