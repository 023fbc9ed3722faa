package sandbox

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// rounds makes one round each 2 ms from t = 0; each letter says who answered:
// '.' nobody, 'a' node 0, 'b' node 1, 'X' both, '?' both in a torn round.
func rounds(script string) []round {
	var out []round
	for i, c := range script {
		r := round{at: cluster.Instant(time.Duration(i+1) * probePeriod)}
		for j := range r.asked {
			r.asked[j] = noNode
		}
		switch c {
		case 'a':
			r.asked[0], r.each[0] = 0, 1
		case 'b':
			r.asked[0], r.each[0] = 1, 2
		case 'X':
			r.asked[0], r.each[0] = 0, 3
		case '?':
			r.asked[0], r.each[0] = 0, 3
			r.took[0] = 2 * sharpRound
		}
		out = append(out, r)
	}
	return out
}

func TestWindowTellsSilenceAndOverlap(t *testing.T) {
	cases := []struct {
		script         string
		silence, twice time.Duration
		overlapping    int
		open           bool
	}{
		{"aaaaaaaaaa", 2, 0, 0, false},
		{"aaa....bbb", 10, 0, 0, false},
		{"aaaXXXbbb", 2, 4, 3, false},
		{"aaaX.Xbbb", 4, 4, 2, false},
		{"aaaa?bbbb", 2, 0, 0, false}, // each at its right time, for all one knows
		{"aaa?abbbb", 2, 0, 1, false}, // a answered after b had
		{"aaab?bbbb", 2, 0, 1, false}, // b answered before a
		{"aaaa??bbb", 2, 2, 2, false},
		{"aaa.......", 14, 0, 0, true},
	}
	for _, c := range cases {
		to := cluster.Instant(time.Duration(len(c.script)) * probePeriod)
		rep := reportWindow(0, 0, to, rounds(c.script))
		if rep.Silence.Length() != c.silence*time.Millisecond || rep.Open != c.open {
			t.Errorf("%s: silence %v (open %v), want %v ms (%v)", c.script, rep.Silence.Length(), rep.Open, int(c.silence), c.open)
		}
		if rep.Twice.Length() != c.twice*time.Millisecond || rep.Rounds != c.overlapping {
			t.Errorf("%s: twice %v in %d rounds, want %v ms in %d", c.script, rep.Twice.Length(), rep.Rounds, int(c.twice), c.overlapping)
		}
	}
}

// What is proven never exceeds what two nodes were seen to answer, and what is
// possible covers all that nobody has seen: the prober did not run ('-'), nobody
// at all answered, a round was torn.
func TestTheBoundsOfAnOverlap(t *testing.T) {
	for _, c := range []struct {
		script       string
		proven, most time.Duration // in ms
	}{
		{"aaaXXXbbb", 6, 6},
		{"aaaaaabbb", 0, 0},
		{"aaaX----------------XXbbb", 6, 38}, // not asked within
		{"aaa-----XXX-----bbb", 6, 26},       // nor before and after
		{"aaaXX..............XXbbb", 8, 36},  // nobody answered within
		{"aaaXXbbbbbbbbbbbbbbbXXXaa", 6, 6},  // two, parted by knowledge
		{"aaaXXXXX" + strings.Repeat("-", 100) + "bbb", 10, 210},
		{"aaaX" + strings.Repeat("-", 100) + "Xaaa", 4, 204}, // once called one of 204 ms
		{"aaa----XXXX", 8, 16},                               // to the window's end
	} {
		var rs []round
		for _, r := range rounds(c.script) {
			if i := int(r.at/cluster.Instant(probePeriod)) - 1; c.script[i] != '-' {
				rs = append(rs, r)
			}
		}
		proven, most := reportWindow(0, 0, rs[len(rs)-1].at, rs).Overlap()
		if proven != c.proven*time.Millisecond || most != c.most*time.Millisecond {
			t.Errorf("%.40s: %v to %v, want %d to %d ms", c.script, proven, most, c.proven, c.most)
		}
	}
}

// Answers that come after their round was final count when they were given.
func TestAnOverlapOfWhichTheAnswersComeLate(t *testing.T) {
	l, h := newRoundLog(), &History{}
	runs := newAnswerRuns(h, FloatingAddresses(), []NodePlan{{Name: "hv1"}, {Name: "hv2"}})
	first := cluster.Instant(time.Second)
	at := func(n int) cluster.Instant { return first.Add(time.Duration(n) * probePeriod) }
	var late []uint64
	for n := range 4 * settleRounds {
		number := l.begin(at(n))
		l.answered(number, probeAnswer{kind: probeEach, addr: 0, node: 0, round: number})
		if n >= 100 && n < 200 { // both hold it for 0.2 s, but the second's process does not run for longer
			late = append(late, number)
		}
		if n == 200+2*settleRounds {
			runs.upTo(l)
			for _, r := range late {
				l.answered(number, probeAnswer{kind: probeEach, addr: 0, node: 1, round: r})
			}
		}
	}
	rep := l.window(0, at(0), at(4*settleRounds))
	if proven, most := rep.Overlap(); proven != 200*time.Millisecond || most != proven || rep.Rounds != 100 {
		t.Errorf("%v to %v in %d rounds, want 200 ms in 100", proven, most, rep.Rounds)
	}
	if l.late.Load() != 100 || l.unkept() != 0 {
		t.Errorf("%d late, %d of them not kept", l.late.Load(), l.unkept())
	}
	runs.upTo(l)
	runs.late(l)
	runs.late(l) // once only
	runs.flush()
	var twice, second int
	for _, e := range h.Entries() {
		if e.Kind == KindTwice && e.At == at(100) && e.Until == at(199) && len(e.Nodes) == 2 {
			twice++
		}
		if e.Kind == KindAnswer && e.Node == "hv2" && e.At == at(100) && e.Until == at(199) {
			second++
		}
	}
	if twice != 1 || second != 1 {
		t.Errorf("recorded %+v", h.Entries())
	}
}

func TestLateAnswersThatDoNotFitAreCounted(t *testing.T) {
	l := newRoundLog()
	for n := range 2 * settleRounds {
		l.begin(cluster.Instant(time.Second).Add(time.Duration(n) * probePeriod))
	}
	for range tardyKept + 7 {
		l.answered(2*settleRounds-1, probeAnswer{kind: probeEach, addr: 3, node: 7, round: 5})
	}
	if l.unkept() != 7 || len(l.tardyFrom(0)) != tardyKept || l.tardyFrom(tardyKept - 1)[0] != (tardyAnswer{5, 3, 7}) {
		t.Errorf("%d not kept, %d kept", l.unkept(), len(l.tardyFrom(0)))
	}
}

func TestSilenceCountsFromTheLastAnswerBeforeTheWindow(t *testing.T) {
	all := rounds("aa....bb")
	rep := reportWindow(0, all[4].at, all[7].at, all)
	if want := all[6].at.Sub(all[1].at); rep.Silence.Length() != want {
		t.Errorf("silence %v, want %v", rep.Silence.Length(), want)
	}
}

func TestASilenceThatEndsJustAfterTheWindowHasEnded(t *testing.T) {
	all := rounds("aaaaa.....aa")
	rep := reportWindow(0, all[0].at, all[9].at, all)
	if want := all[10].at.Sub(all[4].at); rep.Silence.Length() != want || rep.Open {
		t.Errorf("silence %v (open %v), want %v, ended", rep.Silence.Length(), rep.Open, want)
	}
	if rep := reportWindow(0, all[0].at, all[9].at, all[:10]); !rep.Open {
		t.Error("a silence of which nobody has seen the end is not open")
	}
}

func TestAStalledProberIsTold(t *testing.T) {
	all := rounds("aaaaaaaa")
	for i := 4; i < len(all); i++ {
		all[i].at += cluster.Instant(50 * time.Millisecond)
	}
	rep := reportWindow(0, all[0].at, all[7].at, all)
	if want := 50*time.Millisecond + probePeriod; rep.Stall != want {
		t.Errorf("stall %v, want %v", rep.Stall, want)
	}
}

func TestHeldTwice(t *testing.T) {
	held := func(at int, node cluster.NodeID, on bool) Entry {
		return Entry{At: ms(at), Kind: KindHeld, Node: node, Addr: "v4", On: on}
	}
	entries := []Entry{held(10, "hv1", true), held(100, "hv2", true), held(130, "hv1", false), held(200, "hv1", true), held(205, "hv2", false)}
	if got := heldTwice(entries, "v4", ms(0), ms(1000)).Length(); got != 30*time.Millisecond {
		t.Errorf("held twice for %v, want 30 ms", got)
	}
	if got := heldTwice(entries, "v4", ms(120), ms(1000)).Length(); got != 10*time.Millisecond {
		t.Errorf("in a later window: %v, want 10 ms", got)
	}
	if got := heldTwice(entries[:2], "v4", ms(0), ms(500)).Length(); got != 400*time.Millisecond {
		t.Errorf("still held twice at the end: %v, want 400 ms", got)
	}
}

func TestProbeAnswerRoundTrip(t *testing.T) {
	var b [probeSize]byte
	putProbe(b[:], probeEach, 2, 1<<40+7)
	if _, ok := parseAnswer(b[:]); ok {
		t.Error("a question passes for an answer")
	}
	stamp(b[:], 1, 99)
	a, ok := parseAnswer(b[:])
	if want := (probeAnswer{kind: probeEach, addr: 2, node: 1, round: 1<<40 + 7}); !ok || a != want {
		t.Errorf("read %+v (%v), want %+v", a, ok, want)
	}
}

func TestFrameChecksumsAreRight(t *testing.T) {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	for _, pair := range [][2]string{{"192.0.2.2:40000", "192.0.2.200:7399"}, {"[fd00::2]:40000", "[fd00::c8]:7399"}} {
		f := newProbeFrame(mac, mac, netip.MustParseAddrPort(pair[0]), netip.MustParseAddrPort(pair[1]))
		raw := f.fill(1, 12345)
		if got := fold(sum(f.pseudo, raw[f.udp:])); got != 0xffff {
			t.Errorf("%v: the UDP checksum does not add up: %#x", pair, got)
		}
		if raw[12] == 0x08 && fold(sum(0, raw[14:34])) != 0xffff {
			t.Errorf("%v: the IPv4 checksum does not add up", pair)
		}
	}
}
