package router

import (
	"bytes"
	"encoding/hex"
	"net"
	"net/netip"
	"testing"
)

var mac = net.HardwareAddr{0x02, 0xaa, 0xbb, 0xcc, 0xdd, 0xee}

func TestAnnouncementsOfAnIPv4Address(t *testing.T) {
	frames := AnnounceFrames(mac, netip.MustParseAddr("10.0.0.10"), false)
	want := []string{
		"ffffffffffff02aabbccddee0806" + "0001080006040001" + "02aabbccddee0a00000a" + "0000000000000a00000a",
		"ffffffffffff02aabbccddee0806" + "0001080006040002" + "02aabbccddee0a00000a" + "ffffffffffff0a00000a",
	}
	for i, w := range want {
		if got := hex.EncodeToString(frames[i]); got != w {
			t.Errorf("frame %d:\n got %s\nwant %s", i, got, w)
		}
	}
}

func TestAnnouncementOfAnIPv6Address(t *testing.T) {
	for forwarding, flags := range map[bool]string{false: "20", true: "a0"} {
		f := AnnounceFrames(mac, netip.MustParseAddr("fd77::10"), forwarding)[0]
		want := "33330000000102aabbccddee86dd" + "60000000" + "00203aff" +
			"fd770000000000000000000000000010" + "ff020000000000000000000000000001" + "8800"
		if got := hex.EncodeToString(f); got[:len(want)] != want || got[116:118] != flags {
			t.Errorf("got %s\nwant it to begin with %s, and flags %s", got, want, flags)
		}
		if !checksumHolds(f) {
			t.Error("checksum does not hold")
		}
	}
}

// checksumHolds sums pseudo header and body, checksum included: all ones.
func checksumHolds(f []byte) bool {
	var sum uint32
	for _, part := range [][]byte{f[22:54], {0, 0, 0, byte(len(f) - 54)}, {0, 0, 0, 58}, f[54:]} {
		for i := 0; i < len(part); i += 2 {
			sum += uint32(part[i])<<8 | uint32(part[i+1])
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return sum == 0xffff
}

func TestProbesChangeNobodysTableAndAnswersAreRead(t *testing.T) {
	v4, v6 := netip.MustParseAddr("10.0.0.10"), netip.MustParseAddr("fd77::10")
	if p := ProbeFrame(mac, v4); !bytes.Equal(p[28:32], make([]byte, 4)) {
		t.Errorf("ARP probe has a sender address: %x", p)
	}
	p := ProbeFrame(mac, v6)
	if !bytes.Equal(p[22:38], make([]byte, 16)) || len(p) != 78 || !checksumHolds(p) {
		t.Errorf("ND probe: source %x, %d bytes, checksum holds %v", p[22:38], len(p), checksumHolds(p))
	}
	for _, a := range []netip.Addr{v4, v6} {
		for _, f := range AnnounceFrames(mac, a, false) {
			if hw, ok := AnswerTo(f, a); !ok || hw.String() != mac.String() {
				t.Errorf("announcement of %s is not read as a claim: %v %v", a, hw, ok)
			}
		}
		if _, ok := AnswerTo(ProbeFrame(mac, a), a); ok {
			t.Errorf("a probe for %s is read as a claim", a)
		}
	}
}

func FuzzAnswerTo(f *testing.F) {
	f.Add(AnnounceFrames(mac, netip.MustParseAddr("10.0.0.10"), false)[0])
	f.Add(AnnounceFrames(mac, netip.MustParseAddr("fd77::10"), false)[0])
	f.Fuzz(func(t *testing.T, frame []byte) {
		AnswerTo(frame, netip.MustParseAddr("10.0.0.10")) // must not panic
		AnswerTo(frame, netip.MustParseAddr("fd77::10"))
	})
}

func TestAClaimNamesTheAddressThatNeighboursLearn(t *testing.T) {
	v6 := netip.MustParseAddr("fd77::10")
	relay := net.HardwareAddr{0x02, 0, 0, 0, 0, 1}
	f := AnnounceFrames(mac, v6, false)[0]
	copy(f[6:12], relay) // as of a host that answers for another
	if a, hw, ok := Claim(f); !ok || a != v6 || hw.String() != mac.String() {
		t.Errorf("with the option: %v %v %v, want the option's", a, hw, ok)
	}
	if _, hw, ok := Claim(f[:78]); !ok || hw.String() != relay.String() {
		t.Errorf("without the option: %v %v, want the frame's sender", hw, ok)
	}
	f[21] = 64
	if _, _, ok := Claim(f); ok {
		t.Error("an advertisement from beyond a router is a claim")
	}
}
