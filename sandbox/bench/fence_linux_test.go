package bench

import (
	"testing"
	"time"

	"pvc.internal/cluster"
	"pvc.internal/sandbox"
)

func at(seconds float64) cluster.Instant {
	return cluster.Instant(100*time.Second + time.Duration(seconds*float64(time.Second)))
}

func lease(s float64, holder cluster.NodeID) sandbox.Entry {
	return sandbox.Entry{At: at(s), Kind: sandbox.KindLease, Node: holder}
}

func judged(s float64, by string) sandbox.Entry {
	return sandbox.Entry{At: at(s), Kind: sandbox.KindView, Node: "hv1", By: by, Text: cluster.LiveDead.String()}
}

func fence(s float64, stage cluster.FenceStage) sandbox.Entry {
	return sandbox.Entry{At: at(s), Kind: sandbox.KindFence, Node: "hv1", Stage: stage}
}

func faultStep(s float64, step string) sandbox.Entry {
	return sandbox.Entry{At: at(s), Kind: sandbox.KindFault, Node: "hv1", Text: step}
}

func TestAClaimCountsFromWhatTheSuccessorHasSeen(t *testing.T) {
	ready := []sandbox.Entry{lease(-3, "hv3"), lease(-2, "hv1"), faultStep(0, "inject")} // the role was brought to hv1
	for name, c := range map[string]struct {
		entries []sandbox.Entry
		want    float64
		ok      bool
	}{
		"dead last":                   {[]sandbox.Entry{lease(2, "hv2"), judged(4, "hv3"), judged(4.5, "hv2"), fence(4.75, cluster.FenceClaimed)}, 250, true},
		"the role last":               {[]sandbox.Entry{judged(1, "hv2"), lease(2, "hv2"), fence(2.5, cluster.FenceClaimed)}, 500, true},
		"published after the claim":   {[]sandbox.Entry{lease(2, "hv2"), judged(4, "hv3"), fence(4.7, cluster.FencePowerOff), judged(4.8, "hv2")}, 0, true},
		"never claimed":               {[]sandbox.Entry{lease(2, "hv2"), judged(4, "hv2")}, 0, false},
		"claimed and nobody took it":  {[]sandbox.Entry{judged(4, "hv2"), fence(4.7, cluster.FenceClaimed)}, 0, false},
		"only an earlier one's end":   {[]sandbox.Entry{lease(2, "hv2"), fence(2.1, cluster.FenceDone)}, 0, false},
		"later leases change nothing": {[]sandbox.Entry{lease(2, "hv2"), lease(3, "hv2"), judged(4, "hv2"), fence(4.25, cluster.FenceClaimed)}, 250, true},
	} {
		ms, ok := claim(append(append([]sandbox.Entry{}, ready...), c.entries...), "hv1")
		if ok != c.ok || ms != c.want {
			t.Errorf("%s: %v ms, %v; want %v, %v", name, ms, ok, c.want, c.ok)
		}
	}
}

func TestAColdStartCountsFromTheQuorum(t *testing.T) {
	store := func(s float64, on bool) sandbox.Entry {
		return sandbox.Entry{At: at(s), Kind: sandbox.KindStore, By: "fault", On: on}
	}
	primary := func(s float64) sandbox.Entry {
		return sandbox.Entry{At: at(s), Kind: sandbox.KindHeld, Node: "hv2", On: true}
	}
	session := sandbox.Entry{At: at(6), Kind: sandbox.KindStore, On: true} // the sandbox's own
	if ms, ok := coldStart([]sandbox.Entry{primary(-1), store(0, false), store(5, true), session, primary(7.5), primary(9)}); !ok || ms != 2500 {
		t.Errorf("%v ms, %v; want 2500", ms, ok)
	}
	for name, entries := range map[string][]sandbox.Entry{
		"no quorum": {store(0, false), primary(7)}, "nobody": {store(0, false), store(5, true)}, "nothing": nil,
	} {
		if ms, ok := coldStart(entries); ok {
			t.Errorf("%s: %v ms", name, ms)
		}
	}
	if n := claimed([]sandbox.Entry{fence(1, cluster.FenceClaimed), fence(2, cluster.FenceVerify), fence(3, cluster.FenceDone)}); n != 1 {
		t.Errorf("%d fences, want 1", n)
	}
}
