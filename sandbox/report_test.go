package sandbox

import (
	"bytes"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"pvc.internal/cluster"
)

func measured(fault string, silences ...float64) Result {
	r := Result{Fault: fault, Text: fault, SuspectMS: -1, DeadMS: -1, ClaimedMS: -1, OffMS: -1, CleanMS: -1}
	for i, s := range silences {
		r.Addresses = append(r.Addresses, AddressResult{Name: FloatingAddresses()[i%3].Name, SilenceMS: s})
	}
	return r
}

func TestSummaryTakesEachRunsLongestSilence(t *testing.T) {
	sums := Summarise([]Result{measured("a", 10, 30), measured("b", 5), measured("a", 50, 20), measured("a", 40)})
	if len(sums) != 2 || sums[0].Fault != "a" || sums[0].Runs != 3 || sums[0].SilenceMedian != 40 || sums[0].SilenceWorst != 50 {
		t.Errorf("summary %+v, want a: 3 runs, median 40, worst 50", sums)
	}
	if sums[0].OffWorst != -1 {
		t.Errorf("verified off %v though it never happened", sums[0].OffWorst)
	}
}

func TestReportSaysWhatIsBelowResolutionAndWhatWasBroken(t *testing.T) {
	res := measured("a", 3, 8, 9)
	res.ResolutionMS = 5
	res.Addresses[0].TwiceMS, res.Addresses[0].TwiceRounds = 2, 1 // a single round is a fact, whatever the floor
	rep := Report{NoiseMS: 5, Results: []Result{res}, Violations: []Violation{{"I1", 1, "two answered"}}}
	said := res.Line(0.1) + tableOf(rep)
	for _, want := range []string{"silence below/8/9 ms", "answered twice 2 ms", "below", "resolution", " 2 ms ", "BROKEN I1"} {
		if !strings.Contains(said, want) {
			t.Errorf("nothing says %q:\n%s", want, said)
		}
	}
	if rep.Err() == nil {
		t.Error("a broken invariant is no error")
	}
	rep.Violations = nil
	if err := rep.Err(); err != nil {
		t.Errorf("a sound report is an error: %v", err)
	}
	rep.Results[0].Error = "not converged"
	if rep.Err() == nil {
		t.Error("a cluster that did not converge is no error")
	}
}

func TestWhatIsNotProvenOfAnOverlapIsTold(t *testing.T) {
	res := measured("a", 3, 8, 9)
	res.Addresses[1].TwiceRounds, res.Addresses[1].TwiceMS, res.Addresses[1].TwiceMostMS = 17, 34, 206
	res.LateAnswers, res.LostAnswers = 12, 5
	rep := Report{Results: []Result{res}}
	said := res.Line(0.1) + tableOf(rep)
	rep.Summary = Summarise(rep.Results)
	said += tableOf(rep)
	if n := strings.Count(said, "34–206"); n != 3 {
		t.Errorf("told %d times, want in the line and both tables:\n%s", n, said)
	}
	for _, want := range []string{"12 answers came more than 300ms late", "5 answers came so late that they count for nothing"} {
		if !strings.Contains(said, want) {
			t.Errorf("nothing says %q:\n%s", want, said)
		}
	}
}

// TestSummaryTellsOfFencesAndKeepalives: what rounds of troubles are run for
// that nobody may be fenced for.
func TestSummaryTellsOfFencesAndKeepalives(t *testing.T) {
	keepalive := func(n cluster.NodeID, version uint64, at int) Entry {
		return Entry{At: ms(at + 1), Written: ms(at), Kind: KindKeepalive, Node: n, N: version}
	}
	r := measured("starve", 5)
	r.fillKeepalives([]Entry{
		keepalive("hv1", 1, 0), keepalive("hv1", 2, 5000), keepalive("hv1", 3, 9500), // the first gap was before
		keepalive("hv1", 4, 11200), keepalive("hv1", 6, 16000), // one was not seen
		{At: ms(16500), Kind: KindIncarnation, Node: "hv1"},
		keepalive("hv1", 7, 19000), keepalive("hv1", 8, 20000),
		keepalive("hv2", 1, 10000), keepalive("hv2", 2, 11300),
		{At: ms(9000), Kind: KindFence, Name: "earlier", Node: "hv2", Stage: cluster.FenceClaimed},
		{At: ms(12000), Kind: KindFence, Name: "f1", Node: "hv2", Stage: cluster.FenceClaimed},
		{At: ms(12100), Kind: KindFence, Name: "f1", Node: "hv2", Stage: cluster.FencePowerOff},
		keepalive("hv2", 3, 90000), // after the end
	}, ms(9100), ms(30000))
	if r.Fences != 1 || r.KeepaliveMS != 4500 {
		t.Errorf("%d fences, %v ms, want 1 and 4500", r.Fences, r.KeepaliveMS)
	}
	other := measured("starve", 5)
	other.KeepaliveMS = 1100
	rep := Report{Results: []Result{r, other}, Summary: Summarise([]Result{r, other})}
	if said, want := tableOf(rep), "starve: 2 rounds, 1 fences begun; a node's keepalives at most 4.50 s apart, in the median round 2.80 s"; !strings.Contains(said, want) {
		t.Errorf("nothing says %q:\n%s", want, said)
	}
}

func tableOf(rep Report) string {
	var b bytes.Buffer
	rep.Table(&b)
	return b.String()
}

func TestEachMeasureHasItsOwnResolution(t *testing.T) {
	res := measured("a", 30, 30, 30)
	res.ResolutionMS = 40 // of silences
	res.Addresses[0].HeldTwiceMS = 6
	if line := res.Line(2); !strings.Contains(line, "silence below resolution") || !strings.Contains(line, "held twice 6 ms") {
		t.Errorf("a coarse silence hides what was held twice: %s", line)
	}
	if line := res.Line(7); !strings.Contains(line, "answered twice never, held twice below resolution") {
		t.Errorf("held twice is told finer than it was measured: %s", line)
	}
}

func TestAStalledProberPutsASilenceBetweenTwoBounds(t *testing.T) {
	res := measured("a", 45, 12, 12)
	res.ResolutionMS, res.StallMS = 5, 31
	res.Addresses[0].UnaskedMS = 30
	if line := res.Line(1); !strings.Contains(line, "15–45/12/12 ms") || !strings.Contains(line, "prober itself did not run for 31 ms") {
		t.Errorf("the line hides the stall: %s", line)
	}
	res.Addresses[0].UnaskedMS = 42
	if line := res.Line(1); !strings.Contains(line, "below/12/12 ms") {
		t.Errorf("a stall passes for a silence: %s", line)
	}
}

func TestEverythingFitsATerminalOf120Columns(t *testing.T) {
	rep := Report{Profile: "lan", Coordinators: 5, Hypervisors: 3, NoiseMS: 123.4, EventNoiseMS: 23.4, PeriodMS: 2, Seconds: 359, Hooks: true}
	for _, f := range Faults() {
		res := measured(f.Text, 2999, 3001, 2999)
		res.Before, res.After, res.StallMS, res.LateAnswers = "hv1", "hv2", 123, 17
		if f.stays == nil {
			res.SuspectMS, res.OffMS = 5123, 9456
		}
		res.Addresses[2].UnaskedMS = 10
		res.LostAnswers = 65536
		rep.Results = append(rep.Results, res)
	}
	said := tableOf(rep)
	for _, r := range rep.Results {
		said += r.Line(rep.EventNoiseMS) + "\n"
	}
	rep.Summary = Summarise(rep.Results)
	said += tableOf(rep)
	for line := range strings.Lines(said) {
		if n := utf8.RuneCountInString(strings.TrimSpace(line)); n > 120 {
			t.Errorf("%d columns: %s", n, line)
		}
	}
}

func TestOneSeedGivesOneOrder(t *testing.T) {
	draw := func() (names []string) {
		s := Drawn(Faults(), 7, time.Hour)
		for range 20 {
			step, _ := s()
			names = append(names, step.Fault.Name)
		}
		return names
	}
	if a, b := draw(), draw(); strings.Join(a, " ") != strings.Join(b, " ") {
		t.Errorf("one seed, two orders:\n%v\n%v", a, b)
	}
}

func TestDifferencesRecordWhatTheCheckerNeeds(t *testing.T) {
	snap := &cluster.Snapshot{
		Lease: cluster.Versioned[cluster.Lease]{Present: true, Mzxid: 5,
			Value: cluster.Lease{Holder: "hv1", Incarnation: "x", Epoch: 3, TTLMillis: 2800, N: 9}},
		Nodes: map[cluster.NodeID]cluster.NodeView{"hv2": {
			Record: cluster.Versioned[cluster.NodeRecord]{Present: true, Value: cluster.NodeRecord{Incarnation: "y"}},
			Fence: cluster.Versioned[cluster.FenceRecord]{Present: true, Mzxid: 6,
				Value: cluster.FenceRecord{Incarnation: "y", Stage: cluster.FencePowerOff}}}},
	}
	kinds := map[Kind]Entry{}
	for _, e := range differences(nil, snap) {
		kinds[e.Kind] = e
	}
	if l := kinds[KindLease]; l.Node != "hv1" || l.Epoch != 3 || l.TTLMillis != 2800 || l.N != 9 {
		t.Errorf("lease recorded as %+v", l)
	}
	if kinds[KindIncarnation].Incarnation != "y" || kinds[KindFence].Stage != cluster.FencePowerOff {
		t.Errorf("recorded %+v", kinds)
	}
	if again := differences(snap, snap); len(again) != 0 {
		t.Errorf("nothing changed, yet recorded %+v", again)
	}
}

// A record's entry tells when it was written, and whether all its writes were seen.
func TestRecordsAreDatedByTheServersClock(t *testing.T) {
	seen := now()
	wall := time.Now()
	at := func(version int32, ago time.Duration) cluster.Versioned[cluster.Lease] {
		return cluster.Versioned[cluster.Lease]{Present: true, Version: version, SeenAt: seen, WrittenMS: wall.Add(-ago).UnixMilli()}
	}
	near := func(got cluster.Instant, ago time.Duration) bool {
		off := seen.Add(-ago).Sub(got) // the millisecond below
		return off > -wallTick && off < 3*wallTick
	}
	before := at(6, 400*time.Millisecond)
	if e := dated(before, at(7, 40*time.Millisecond), Entry{}); e.At != seen || !near(e.Written, 40*time.Millisecond) || !e.After.IsZero() {
		t.Errorf("the next version: %+v, seen %d", e, seen)
	}
	if e := dated(before, at(9, 40*time.Millisecond), Entry{}); !near(e.Written, 40*time.Millisecond) || !near(e.After, 400*time.Millisecond) {
		t.Errorf("two versions unseen: %+v", e)
	}
	var none cluster.Versioned[cluster.Lease]
	if e := dated(none, at(0, 0), Entry{}); e.Written > e.At || !e.After.IsZero() {
		t.Errorf("a new record: %+v", e)
	}
	if e := dated(none, at(4, 0), Entry{}); e.After.IsZero() {
		t.Errorf("an old record seen for the first time: %+v", e)
	}
	if e := dated(before, at(7, -time.Hour), Entry{}); !e.Written.IsZero() {
		t.Errorf("written in the future, the clock was set: %+v", e)
	}
}
