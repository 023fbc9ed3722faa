package fencing

import (
	"errors"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"pvc.internal/cluster"
)

var allStages = []cluster.FenceStage{
	cluster.FenceClaimed, cluster.FenceSoft, cluster.FencePowerOff, cluster.FenceVerify, cluster.FenceFenced,
	cluster.FenceRecover, cluster.FenceDone, cluster.FenceFailed, cluster.FenceManual, cluster.FenceCanceled,
}

// edges is the whole machine: every pair that is not here is refused.
var edges = map[cluster.FenceStage]map[EventKind]cluster.FenceStage{
	cluster.FenceClaimed: {
		EventProceed: cluster.FencePowerOff, EventSoftFirst: cluster.FenceSoft, EventReturned: cluster.FenceCanceled,
		EventWithdrawn: cluster.FenceCanceled, EventNoDevice: cluster.FenceManual, EventProof: cluster.FenceFenced,
		EventHeld: cluster.FenceManual,
	},
	cluster.FenceSoft: {
		EventProceed: cluster.FencePowerOff, EventReturned: cluster.FenceCanceled, EventWithdrawn: cluster.FenceCanceled,
		EventProof: cluster.FenceFenced, EventHeld: cluster.FenceManual,
	},
	cluster.FencePowerOff: {EventProceed: cluster.FenceVerify, EventFailed: cluster.FenceFailed, EventProof: cluster.FenceFenced},
	cluster.FenceVerify:   {EventProceed: cluster.FenceFenced, EventFailed: cluster.FenceFailed, EventProof: cluster.FenceFenced},
	cluster.FenceFenced:   {EventProceed: cluster.FenceRecover},
	cluster.FenceRecover:  {EventProceed: cluster.FenceDone},
	cluster.FenceFailed: {
		EventRetry: cluster.FenceClaimed, EventReturned: cluster.FenceCanceled, EventWithdrawn: cluster.FenceCanceled,
		EventNoDevice: cluster.FenceManual, EventProof: cluster.FenceFenced, EventHeld: cluster.FenceManual,
	},
	cluster.FenceManual: {EventReturned: cluster.FenceCanceled, EventWithdrawn: cluster.FenceCanceled, EventProof: cluster.FenceFenced},
}

func TestEveryEdgeOfTheMachine(t *testing.T) {
	for _, from := range allStages {
		for kind := EventProceed; kind <= EventHeld; kind++ {
			r := cluster.FenceRecord{ID: "f", Stage: from, Tries: 2, Epoch: 5}
			next, err := Next(r, Event{Kind: kind, ID: "f", Try: 2, Epoch: 5, Proof: ProofConfirmed})
			want, ok := edges[from][kind]
			if !ok {
				if !errors.Is(err, ErrIllegal) || !reflect.DeepEqual(next, r) {
					t.Errorf("%s in %s: %s, %v", kind, from, next.Stage, err)
				}
				continue
			}
			if err != nil || next.Stage != want {
				t.Errorf("%s in %s: %s, %v; want %s", kind, from, next.Stage, err, want)
			}
			if armed := want == cluster.FencePowerOff; armed != (next.Tries == 3) {
				t.Errorf("%s in %s: try %d", kind, from, next.Tries)
			}
		}
	}
}

func TestNoStageIsWithoutAnExit(t *testing.T) {
	for _, from := range allStages {
		ended := cluster.FenceRecord{Stage: from}.Ended()
		if exits := len(edges[from]); !ended && exits == 0 {
			t.Errorf("%s leads nowhere and is no end", from)
		}
	}
}

func TestLateResultsOfOlderFencesAreDropped(t *testing.T) {
	r := cluster.FenceRecord{ID: "new", Stage: cluster.FencePowerOff, Tries: 2, Epoch: 5}
	for name, e := range map[string]Event{
		"record": {Kind: EventProceed, ID: "old", Try: 2, Epoch: 5},
		"try":    {Kind: EventProceed, ID: "new", Try: 1, Epoch: 5},
		"epoch":  {Kind: EventProceed, ID: "new", Try: 2, Epoch: 4},
	} {
		if next, err := Next(r, e); !errors.Is(err, ErrStale) || !reflect.DeepEqual(next, r) {
			t.Errorf("an older %s: %+v, %v", name, next, err)
		}
	}
}

// Whatever happens in whatever order: fenced is reached through verify or a
// named proof only, always has a proof, and no input is edited.
func TestNoRunOfEventsFencesWithoutProof(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := cluster.FenceRecord{ID: "f", Stage: cluster.FenceClaimed}
		for range rapid.IntRange(1, 40).Draw(t, "events") {
			e := Event{
				Kind: EventKind(rapid.IntRange(0, int(EventHeld)+1).Draw(t, "kind")),
				ID:   "f", Try: r.Tries, Proof: rapid.SampledFrom([]string{"", ProofConfirmed}).Draw(t, "proof"),
				Attempts: []cluster.FenceAttempt{{Device: "d", Result: ResultOff}},
			}
			before := r
			before.Attempts = slices.Clone(r.Attempts)
			next, err := Next(r, e)
			if !reflect.DeepEqual(before, r) {
				t.Fatalf("the input was edited: %+v", r)
			}
			if err == nil && next.Stage == cluster.FenceFenced {
				verified := r.Stage == cluster.FenceVerify && e.Kind == EventProceed && next.Proof == ProofVerifiedOff
				vouched := e.Kind == EventProof && e.Proof != "" && next.Proof == e.Proof
				if !verified && !vouched {
					t.Fatalf("%s from %s fenced with proof %q", e.Kind, r.Stage, next.Proof)
				}
			}
			if len(next.Attempts) > maxAttempts {
				t.Fatalf("%d attempts kept", len(next.Attempts))
			}
			r = next
		}
	})
}

func TestDueAndBackoff(t *testing.T) {
	at := func(s cluster.FenceStage, tries int) cluster.Versioned[cluster.FenceRecord] {
		return cluster.Versioned[cluster.FenceRecord]{Present: true, SeenAt: cluster.Instant(time.Minute), Value: cluster.FenceRecord{ID: "f", Stage: s, Tries: tries}}
	}
	now := cluster.Instant(time.Minute)
	for _, s := range allStages {
		want := !slices.Contains([]cluster.FenceStage{cluster.FenceDone, cluster.FenceCanceled, cluster.FenceManual, cluster.FenceFailed}, s)
		if Due(at(s, 1), now) != want {
			t.Errorf("%s due: %v", s, !want)
		}
	}
	for tries, backoff := range map[int]time.Duration{1: 5 * time.Second, 2: 10 * time.Second, 4: 40 * time.Second, 5: time.Minute, 1000: time.Minute} {
		r := at(cluster.FenceFailed, tries)
		if Backoff(tries) != backoff || Due(r, now.Add(backoff-1)) || !Due(r, now.Add(backoff)) {
			t.Errorf("after %d tries the backoff is %s", tries, Backoff(tries))
		}
	}
	if Due(cluster.Versioned[cluster.FenceRecord]{}, now) {
		t.Error("an absent record is due")
	}
}

// The newest result of each device outlives any number of tries: by it the
// device is given power again.
func TestTheNewestResultOfEachDeviceIsKept(t *testing.T) {
	r := cluster.FenceRecord{ID: "f", Stage: cluster.FencePowerOff, Attempts: results("left=off")}
	for range 3 * maxAttempts {
		r.Attempts = appendAttempts(r.Attempts, results("right=failed", "bmc=unknown"))
	}
	if len(r.Attempts) != maxAttempts+1 || r.Attempts[0].Device != "left" || r.Attempts[0].Result != ResultOff {
		t.Errorf("kept %d, the oldest is %+v", len(r.Attempts), r.Attempts[0])
	}
	if got := r.Attempts[len(r.Attempts)-1].Device; got != "bmc" {
		t.Errorf("the newest is of %s", got)
	}
}
