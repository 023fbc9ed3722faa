package sandbox

import (
	"encoding/binary"
	"math/bits"
	"sort"
	"sync/atomic"
	"time"

	"pvc.internal/cluster"
)

// A probe is a UDP datagram that every node's responder answers from the
// address it was sent to, if its kernel has delivered it: so an answer proves
// that the node holds the address and that its gate is open.
//
//	offset 0  magic "PVCp"
//	       4  kind: probeAsk or probeEach
//	       5  index of the floating address
//	       6  node index that answers (filled in by the responder)
//	       7  reserved
//	       8  round, 64 bits
//	      16  CLOCK_BOOTTIME at which the responder read it (filled in)
//	      24  the responder's incarnation: its pid's start, CLOCK_BOOTTIME (filled in)
const (
	probeSize = 32
	// probeAsk goes through the client's ordinary stack: what a user sees.
	probeAsk byte = 1
	// probeEach goes as a raw frame to one node's MAC, so that no neighbour
	// cache hides a second holder.
	probeEach byte = 2
)

var probeMagic = [4]byte{'P', 'V', 'C', 'p'}

func putProbe(b []byte, kind byte, addr int, round uint64) {
	copy(b, probeMagic[:])
	b[4], b[5], b[6], b[7] = kind, byte(addr), 0xff, 0
	binary.BigEndian.PutUint64(b[8:], round)
	clear(b[16:probeSize])
}

type probeAnswer struct {
	kind  byte
	addr  int
	node  int
	round uint64
}

// parseAnswer reads a responder's answer; ok is false for anything else.
func parseAnswer(b []byte) (a probeAnswer, ok bool) {
	if len(b) < probeSize || [4]byte(b[:4]) != probeMagic || b[6] == 0xff {
		return a, false
	}
	return probeAnswer{kind: b[4], addr: int(b[5]), node: int(b[6]), round: binary.BigEndian.Uint64(b[8:])}, true
}

// Limits of a round's compact record.
const (
	maxAddresses = 4
	maxNodes     = 8
	noNode       = 0xff
)

// round is what one round of probes brought.
type round struct {
	at    cluster.Instant             // sent
	took  [maxAddresses]time.Duration // to send the frames of one address
	asked [maxAddresses]uint8
	each  [maxAddresses]uint8 // bit n: node n answered the frame sent to its MAC
}

// sharpRound bounds how long one address's frames of a round may take to leave: in a
// round torn by the scheduler two nodes may both be asked at their right time,
// one after the other, and that is no overlap.
const sharpRound = time.Millisecond

// roundLog keeps the newest rounds. One thread, the prober's, writes; it never
// waits for a reader, since a reader that is descheduled with a lock in its
// hand would stop the clock of all measuring. Rounds become final settleRounds
// later and do not change from then on; readers see final ones only.
type roundLog struct {
	chunks [chunksKept]atomic.Pointer[[chunkRounds]round]
	next   atomic.Uint64 // number of the next round
	// latest is when each node gave its newest ordinary answer.
	latest [maxAddresses][maxNodes]atomic.Int64
	late   atomic.Uint64 // answers that came after their round was final
	// tardy holds what was answered in those, as tardyAnswer packs it.
	tardy [tardyKept]atomic.Uint64
}

// tardyKept is how many answers that came too late for their round are kept,
// for the whole life of a sandbox: 60 s of one node that is behind.
const tardyKept = 1 << 16

// A tardyAnswer is a node's answer to a frame of a round that was final by then.
type tardyAnswer struct {
	number     uint64
	addr, node int
}

func (t tardyAnswer) pack() uint64 {
	return t.number<<16 | uint64(t.addr)<<8 | uint64(t.node) | 1<<15
}

func unpackTardy(v uint64) tardyAnswer {
	return tardyAnswer{number: v >> 16, addr: int(v >> 8 & 0x7f), node: int(v & 0xff)}
}

const (
	chunkRounds = 4096 // 8 s, 200 KB: appended without ever being copied
	chunksKept  = 152  // twenty minutes
	// settleRounds is how many rounds later a round's answers are all in.
	settleRounds = 150
)

func newRoundLog() *roundLog { return &roundLog{} }

// begin adds a round and returns its number; the prober's alone.
func (l *roundLog) begin(at cluster.Instant) uint64 {
	number := l.next.Load()
	slot := &l.chunks[number/chunkRounds%chunksKept]
	if number%chunkRounds == 0 {
		slot.Store(new([chunkRounds]round))
	}
	r := &slot.Load()[number%chunkRounds]
	r.at = at
	for i := range r.asked {
		r.asked[i] = noNode
	}
	l.next.Store(number + 1)
	return number
}

// open returns a round that may still change; the prober's alone.
func (l *roundLog) open(number uint64) *round {
	next := l.next.Load()
	if number >= next || next-number > settleRounds {
		return nil
	}
	return &l.chunks[number/chunkRounds%chunksKept].Load()[number%chunkRounds]
}

// sent notes how long the frames of a round took to leave, by address.
func (l *roundLog) sent(number uint64, took [maxAddresses]time.Duration) {
	if r := l.open(number); r != nil {
		r.took = took
	}
}

// answered files an answer that was read while the round current was the
// newest. An ordinary answer counts where it arrived, since that is when the
// client was served (the kernel may hold a datagram back for a neighbour); an
// answer to a frame counts in the round that sent it, since that is when the
// node accepted it.
func (l *roundLog) answered(current uint64, a probeAnswer) {
	if a.addr >= maxAddresses || a.node >= maxNodes {
		return
	}
	if a.kind == probeAsk {
		if r := l.open(current); r != nil {
			r.asked[a.addr] = uint8(a.node)
			l.latest[a.addr][a.node].Store(int64(r.at))
		}
		return
	}
	if r := l.open(a.round); r != nil {
		r.each[a.addr] |= 1 << a.node
	} else if a.round < current {
		// The node did accept the frame when it was sent; only the news is old.
		if n := l.late.Add(1) - 1; n < tardyKept {
			l.tardy[n].Store(tardyAnswer{a.round, a.addr, a.node}.pack())
		}
	}
}

// tardyFrom returns the late answers from the nth on that are known by now.
func (l *roundLog) tardyFrom(n uint64) []tardyAnswer {
	var out []tardyAnswer
	for ; n < min(l.late.Load(), tardyKept); n++ {
		v := l.tardy[n].Load()
		if v == 0 {
			break // being written
		}
		out = append(out, unpackTardy(v))
	}
	return out
}

// unkept is how many late answers could not be kept: they count for nothing.
func (l *roundLog) unkept() uint64 { return max(l.late.Load(), tardyKept) - tardyKept }

// final returns the numbers [first, end) of the rounds that can be read.
func (l *roundLog) final() (first, end uint64) {
	next := l.next.Load()
	if next <= settleRounds {
		return 0, 0
	}
	const kept = (chunksKept - 1) * chunkRounds // the oldest chunk may be on its way out
	if next > kept {
		first = next - kept
	}
	return first, next - settleRounds
}

// copy returns a final round, without what was answered late.
func (l *roundLog) copy(number uint64) round {
	return l.chunks[number/chunkRounds%chunksKept].Load()[number%chunkRounds]
}

// span returns the final rounds sent in [from, to], with what was answered late.
func (l *roundLog) span(from, to cluster.Instant) []round {
	first, end := l.final()
	lo := first + uint64(sort.Search(int(end-first), func(i int) bool { return l.copy(first+uint64(i)).at >= from }))
	var out []round
	for n := lo; n < end; n++ {
		r := l.copy(n)
		if r.at > to {
			break
		}
		out = append(out, r)
	}
	for _, t := range l.tardyFrom(0) {
		if t.number >= lo && t.number-lo < uint64(len(out)) {
			out[t.number-lo].each[t.addr] |= 1 << t.node
		}
	}
	return out
}

// Span is a stretch of time.
type Span struct {
	From, To cluster.Instant
}

// Length is how long the span is.
func (s Span) Length() time.Duration { return s.To.Sub(s.From) }

// AddressReport is what the probes say of one address in a window.
type AddressReport struct {
	// Silence is the stretch without an answer of which most is proven: asked
	// and not answered.
	Silence Span
	// Unasked is how long the prober itself did not run in that stretch: the
	// client's true silence lies between Silence − Unasked and Silence.
	Unasked time.Duration
	// Open is true when that stretch had not ended by the window's end.
	Open bool
	// Twice is the longest run of rounds that two nodes answered (runGap apart at most); Rounds is
	// how many such rounds there were in all. A round is a fact, whatever the noise.
	Twice  Span
	Rounds int
	// Blind is how long in that run nobody was asked: the overlap that is proven
	// lasted Twice − Blind. Beside is how much longer than Twice it can have
	// been: up to the nearest rounds before and after of which it is known that
	// one node alone answered.
	Blind, Beside time.Duration
	// Answered counts the rounds with an ordinary answer.
	Answered int
	// Stall is the longest pause between two rounds: what is shorter than
	// that, and whole within it, nobody has seen.
	Stall time.Duration
	// Torn counts rounds with two answers that prove nothing (see judge).
	Torn int
}

// Overlap is the bounds of the longest overlap of answers, zero for none: at
// least one period where there was any.
func (r AddressReport) Overlap() (proven, most time.Duration) {
	if r.Rounds == 0 {
		return 0, 0
	}
	proven = r.Twice.Length() - r.Blind + probePeriod
	return proven, r.Twice.Length() + r.Beside + probePeriod
}

// Proven is the part of the silence in which the prober did ask.
func (r AddressReport) Proven() time.Duration { return r.Silence.Length() - r.Unasked }

// window reports on the address over the rounds sent in [from, to], as far as
// they are final.
func (l *roundLog) window(addr int, from, to cluster.Instant) AddressReport {
	const before, after = 60 * time.Second, time.Second // where the answers around the window are looked for
	return reportWindow(addr, from, to, l.span(from.Add(-before), to.Add(after)))
}

// verdict is what a round says of an overlap.
type verdict uint8

const (
	single verdict = iota
	unsure
	double
)

// judge says whether two nodes answered at the same time in the round rs[k]. In
// a round whose frames left within sharpRound two answers are enough. In one
// torn by the scheduler both may have been asked at their right time, one after
// the other: it is an overlap only if the node asked first also answers the
// next round, or the one asked last had answered the round before.
func judge(rs []round, k, addr int) verdict {
	r := rs[k]
	both := r.each[addr]
	if both&(both-1) == 0 {
		return single
	}
	if r.took[addr] <= sharpRound {
		return double
	}
	first, last := both&-both, uint8(1)<<(7-bits.LeadingZeros8(both))
	if k+1 < len(rs) && rs[k+1].each[addr]&^last&both != 0 || k > 0 && rs[k-1].each[addr]&^first&both != 0 {
		return double
	}
	return unsure
}

// reportWindow is window's arithmetic.
func reportWindow(addr int, from, to cluster.Instant, rs []round) AddressReport {
	var rep AddressReport
	rep.silences(addr, from, to, rs)
	rep.overlaps(addr, from, to, rs)
	return rep
}

// overlap is a run of rounds that two nodes answered.
type overlap struct {
	Span
	blind         time.Duration   // within: nobody was asked, or nobody at all answered
	before, after cluster.Instant // the nearest rounds that one node alone answered; after is zero for none yet
}

// overlaps fills in what two nodes answered. Only rounds that are known to have
// been answered by one alone part two runs: where nobody asked, or nobody at
// all answered, nobody knows.
func (rep *AddressReport) overlaps(addr int, from, to cluster.Instant, rs []round) {
	var runs []overlap
	var run *overlap          // the current one
	var unknown time.Duration // since the run's last round
	alone, last := from, from // the last round that one alone answered; the last one
	for k, r := range rs {
		if r.at < from || r.at > to {
			continue
		}
		if gap := r.at.Sub(last); gap > 2*probePeriod {
			unknown += gap - probePeriod
		}
		last = r.at
		switch v := judge(rs, k, addr); {
		case v == unsure:
			rep.Torn++
			unknown += probePeriod
		case v == double:
			rep.Rounds++
			if run == nil {
				runs = append(runs, overlap{Span: Span{r.at, r.at}, before: alone})
				run, unknown = &runs[len(runs)-1], 0
			}
			run.To, run.after = r.at, cluster.Never
			run.blind += unknown
			unknown = 0
		case r.each[addr] == 0:
			unknown += probePeriod
		default:
			alone = r.at
			if run != nil && run.after.IsZero() {
				run.after = r.at
			}
			if run != nil && r.at.Sub(run.To) > runGap {
				run = nil // a lost datagram in between does not part a run
			}
		}
	}
	for i, o := range runs {
		if o.after.IsZero() {
			o.after = to
		}
		if i == 0 || o.Length()-o.blind > rep.Twice.Length()-rep.Blind {
			rep.Twice, rep.Blind = o.Span, o.blind
			rep.Beside = max(0, o.From.Sub(o.before)-probePeriod) + max(0, o.after.Sub(o.To)-probePeriod)
		}
	}
}

// silences fills in all but the overlaps. Rounds after the window tell when a
// silence that had not ended by then did end.
func (rep *AddressReport) silences(addr int, from, to cluster.Instant, rs []round) {
	lastAnswer, lastRound := cluster.Never, cluster.Never
	var unasked time.Duration // since the last answer
	longest := func(s Span, open bool) {
		if s.Length()-unasked > rep.Proven() || rep.Silence.Length() == 0 {
			rep.Silence, rep.Unasked, rep.Open = s, unasked, open
		}
	}
	for _, r := range rs {
		within := r.at >= from && r.at <= to
		if gap := r.at.Sub(lastRound); !lastRound.IsZero() {
			if within {
				rep.Stall = max(rep.Stall, gap)
			}
			if gap > 2*probePeriod {
				unasked += gap - probePeriod
			}
		}
		lastRound = r.at
		if r.asked[addr] == noNode {
			continue
		}
		if r.at >= from {
			if lastAnswer.IsZero() {
				lastAnswer, unasked = from, 0
			}
			longest(Span{lastAnswer, r.at}, false)
		}
		if r.at > to {
			return
		}
		if within {
			rep.Answered++
		}
		lastAnswer, unasked = r.at, 0
	}
	if lastAnswer.IsZero() {
		lastAnswer = from
	}
	if to.Sub(lastAnswer) >= 4*probePeriod { // else the window just ends between two answers
		longest(Span{lastAnswer, to}, true)
	}
}

// runGap is the longest pause between two answers of one stretch, and the
// shortest silence that is recorded.
const runGap = 20 * time.Millisecond

// probePeriod is how often every floating address is asked.
const probePeriod = 2 * time.Millisecond
