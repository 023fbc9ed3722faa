package sandbox

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestABoutFollowsFromItsSeedAndNumber(t *testing.T) {
	kinds := troubles()
	for seed := range uint64(50) {
		for number := 1; number <= 20; number++ {
			b := planBout(seed, number, 3, 5, kinds)
			if again := planBout(seed, number, 3, 5, kinds); !reflect.DeepEqual(b, again) {
				t.Fatalf("seed %d, bout %d: %v, and then %v", seed, number, b, again)
			}
			if len(b.Moves) < movesLeast || len(b.Moves) > movesMost {
				t.Errorf("seed %d, bout %d has %d moves", seed, number, len(b.Moves))
			}
			var last time.Duration
			for _, m := range b.Moves {
				if m.At < last || m.At > boutMost || m.Node < 0 || m.Node > 4 || m.Other < 0 || m.Other > 2 || m.Other == m.Node {
					t.Errorf("seed %d, bout %d: %+v", seed, number, m)
				}
				last = m.At
			}
		}
	}
	if reflect.DeepEqual(planBout(1, 1, 3, 3, kinds).Moves, planBout(2, 1, 3, 3, kinds).Moves) {
		t.Error("two seeds give the same bout")
	}
	if reflect.DeepEqual(planBout(1, 1, 3, 3, kinds).Moves, planBout(1, 2, 3, 3, kinds).Moves) {
		t.Error("two bouts of a seed are the same")
	}
}

// Every trouble is drawn sooner or later, some of them at once, and servers
// are only where coordinators are.
func TestChaosDrawsEveryTroubleAndOverlaps(t *testing.T) {
	drawn, overlaps := map[string]int{}, 0
	server := map[string]bool{}
	for _, k := range troubles() {
		server[k.name] = k.server
	}
	for number := 1; number <= 300; number++ {
		var until time.Duration
		for _, m := range planBout(7, number, 3, 5, troubles()).Moves {
			drawn[m.Trouble]++
			if m.At < until {
				overlaps++
			}
			until = max(until, m.At+m.Lasting)
			if server[m.Trouble] && m.Node > 2 {
				t.Errorf("bout %d: %s strikes hv%d, which has no ZooKeeper server", number, m.Trouble, m.Node+1)
			}
		}
	}
	for _, k := range troubles() {
		if drawn[k.name] == 0 {
			t.Errorf("%s is never drawn", k.name)
		}
	}
	if overlaps < 300 {
		t.Errorf("only %d moves of 300 bouts begin while another lasts", overlaps)
	}
}

func TestTheFailingPrefixIsWhatHadStruck(t *testing.T) {
	b := Bout{Number: 4, Moves: []Move{{At: time.Second, Trouble: "switch"}, {At: 3 * time.Second, Trouble: "zk-kill"}, {At: 9 * time.Second, Trouble: "power-loss"}}}
	prefix := failingPrefix(b, ms(100000), ms(105000))
	if len(prefix) != 2 || prefix[1].Trouble != "zk-kill" {
		t.Errorf("prefix %v, want the first two", prefix)
	}
	rep := ChaosReport{Seed: 77, FailingBout: 4, Failing: prefix, Violations: []Violation{{"I1", ms(105000), "two answered"}}}
	for _, want := range []string{"BROKEN I1", "zk-kill", "--seed 77 --bout 4 --moves 2"} {
		if !strings.Contains(rep.Text(), want) {
			t.Errorf("nothing says %q:\n%s", want, rep.Text())
		}
	}
	if rep.Err() == nil {
		t.Error("a broken invariant is no error")
	}
}

func TestChaosRefusesWhatItCannotRun(t *testing.T) {
	for name, r := range map[string]ChaosRequest{
		"for nothing":           {},
		"for two days":          {Lasting: 48 * time.Hour},
		"an unknown trouble":    {Lasting: time.Minute, Troubles: []string{"earthquake"}},
		"moves of no bout":      {Lasting: time.Minute, Moves: 3},
		"a bout before the 1st": {Bout: -1},
	} {
		if r.Validate() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if err := (ChaosRequest{Bout: 3, Moves: 2, Troubles: []string{"switch", "zk-cut"}}).Validate(); err != nil {
		t.Error(err)
	}
}

func TestEveryTroubleCanBeCarriedOut(t *testing.T) {
	s := &Sandbox{}
	for _, p := range planNodes(3, 0) {
		s.nodes = append(s.nodes, &Node{Plan: p, sandbox: s})
	}
	for _, k := range troubles() {
		tr := s.trouble(Move{Trouble: k.name, Other: 1}, "1-1")
		if tr.strike == nil {
			t.Errorf("%s does nothing", k.name)
		}
		if mends := tr.mend != nil; mends != (k.most > 0) {
			t.Errorf("%s lasts %v to %v; that it is mended is %v", k.name, k.least, k.most, mends)
		}
	}
	if err := s.trouble(Move{Trouble: "earthquake"}, "").strike(t.Context(), nil); err == nil {
		t.Error("a trouble that does not exist was carried out")
	}
}

func TestFaultsAreNamedOnce(t *testing.T) {
	seen := map[string]bool{}
	shown := 0
	for _, f := range Faults() {
		if seen[f.Name] || f.Text == "" || f.prepare == nil || f.inject == nil || f.outcome == nil || f.heal == nil {
			t.Errorf("fault %q is incomplete, or there are two", f.Name)
		}
		seen[f.Name] = true
		if !f.Extra {
			shown++
		}
		if got, err := FaultNamed(f.Name); err != nil || got.Text != f.Text {
			t.Errorf("FaultNamed(%q): %q, %v", f.Name, got.Text, err)
		}
	}
	if shown != 13 {
		t.Errorf("the demo has %d faults, want its thirteen", shown)
	}
	if f, err := FaultNamed("cold-start-10-312"); err != nil || !strings.Contains(f.Text, "312") {
		t.Errorf("a cold start in an order of one's own: %q, %v", f.Text, err)
	}
	for _, wrong := range []string{"cold-start-10-311", "cold-start-10-9", "cold-start-x", "cold-start-10-3 1"} {
		if _, err := FaultNamed(wrong); err == nil {
			t.Errorf("FaultNamed(%q) found one", wrong)
		}
	}
}

func TestACutIsOneTransactionOfNft(t *testing.T) {
	script := cutScript(map[string]cut{
		"a": {in: true, out: true, ports: storePorts},
		"b": {out: true, peer: planNodes(3, 0)[2].Cluster.Addr()},
	})
	for _, want := range []string{
		`iifname "cluster" tcp dport { 2181, 2888, 3888 } drop`, `iifname "cluster" tcp sport { 2181, 2888, 3888 } drop`,
		`oifname "cluster" tcp dport { 2181, 2888, 3888 } drop`, `oifname "cluster" ip daddr 198.51.100.12 drop`,
		"delete table inet " + cutTable,
	} {
		if !strings.Contains(script, want) {
			t.Errorf("nothing says %q:\n%s", want, script)
		}
	}
	if strings.Contains(script, "ip saddr") {
		t.Errorf("a cut outward drops what comes in:\n%s", script)
	}
}
