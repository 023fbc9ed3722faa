package guard

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
)

var heldAddress = cluster.FloatingAddress{Name: "a", Prefix: netip.MustParsePrefix("10.77.0.10/24"), Interface: "up0"}

func TestADefenceIsThreeRoundsAndAtMostOneEachTenthOfASecond(t *testing.T) {
	free := func(time.Time) time.Duration { return 0 }
	begin := time.Unix(1000, 0)
	tn := turn{address: heldAddress}
	var rounds []time.Duration
	for at := time.Duration(0); at < time.Second; at += time.Millisecond {
		now := begin.Add(at)
		if at == 0 || at == 50*time.Millisecond || at == 60*time.Millisecond {
			tn.claim(now)
		}
		if tn.take(now, free) {
			rounds = append(rounds, at/time.Millisecond)
		}
	}
	want := []time.Duration{0, 10, 20, 100, 110, 120} // the claims at 50 and 60 ms are answered as soon as may be
	if len(rounds) != len(want) {
		t.Fatalf("rounds at %d ms, want %d", rounds, want)
	}
	for i := range want {
		if rounds[i] != want[i] {
			t.Fatalf("rounds at %d ms, want %d", rounds, want)
		}
	}
}

func TestAllDefencesTogetherAreBounded(t *testing.T) {
	d := newDefender(zap.NewNop(), nil, nil, nil)
	begin := time.Unix(1000, 0)
	turns := make([]turn, 300)
	began := 0
	for at := time.Duration(0); at < 3*time.Second; at += time.Millisecond {
		now := begin.Add(at)
		for i := range turns {
			turns[i].claim(now)
			before := turns[i].begun
			if turns[i].take(now, d.spend) && turns[i].begun != before {
				began++
			}
		}
	}
	if began != 3*defenceBudget {
		t.Errorf("%d defences in 3 s of unending claims, want %d", began, 3*defenceBudget)
	}
}

func TestAConflictIsAFaultUntilHalfAMinuteAfterItsLastClaim(t *testing.T) {
	faults, events, lives := map[string]string{}, 0, true
	d := newDefender(zap.NewNop(), func(netip.Addr) bool { return lives },
		func(subject, text string) {
			if faults[subject] = text; text == "" {
				delete(faults, subject)
			}
		}, func(cluster.GuardEvent) { events++ })
	d.hold([]cluster.FloatingAddress{heldAddress})
	start := d.held[heldAddress]
	at := start.Add
	if !d.claimed(heldAddress, "02:00:00:00:00:01", at(900*time.Millisecond)) {
		t.Error("the previous holder's tail is not answered")
	}
	if d.tellConflicts(at(900 * time.Millisecond)); len(faults) != 0 {
		t.Errorf("the previous holder's tail is a fault: %v", faults)
	}
	for _, after := range []time.Duration{2 * time.Second, 20 * time.Second} {
		d.claimed(heldAddress, "02:00:00:00:00:01", at(after))
		d.tellConflicts(at(after))
	}
	text := faults["conflict of 10.77.0.10 on up0"]
	for _, want := range []string{"10.77.0.10", "up0", "02:00:00:00:00:01"} {
		if !strings.Contains(text, want) {
			t.Errorf("fault %q does not name %s", text, want)
		}
	}
	for i := range 100 { // two strangers in turns
		now := at(21*time.Second + time.Duration(i)*10*time.Millisecond)
		d.claimed(heldAddress, "02:00:00:00:00:0"+string(rune('2'+i%2)), now)
		d.tellConflicts(now)
	}
	if events > 4 {
		t.Errorf("%d events for strangers that take turns within a second", events)
	}
	if d.tellConflicts(at(51 * time.Second)); len(faults) != 1 {
		t.Errorf("30 s after the last claim but one: %v", faults)
	}
	if d.tellConflicts(at(52 * time.Second)); len(faults) != 0 {
		t.Errorf("30 s after the last claim: %v", faults)
	}
	lives = false
	if d.claimed(heldAddress, "02:00:00:00:00:01", at(time.Minute)) || d.tellConflicts(at(time.Minute)) < time.Minute || len(faults) != 0 {
		t.Error("a claim counts although the role has ended")
	}
}
