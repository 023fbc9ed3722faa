package sandbox

import (
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// fencedNode is a history of three nodes in which nothing is wrong: hv1 is
// primary; hv3 loses its power, is fenced and comes back; all come to rest.
func fencedNode() []Entry {
	h := []Entry{
		{At: ms(10), Kind: KindStore, On: true},
		{At: ms(20), Kind: KindIncarnation, Node: "hv1", Incarnation: "b1.a"},
		{At: ms(20), Kind: KindIncarnation, Node: "hv2", Incarnation: "b2.a"},
		{At: ms(20), Kind: KindIncarnation, Node: "hv3", Incarnation: "b3.a"},
		{At: ms(90), Kind: KindPrimary, Text: "hv1"},
		{At: ms(100), Written: ms(99), Kind: KindLease, Node: "hv1", Incarnation: "b1.a", Epoch: 1, N: 1, TTLMillis: 2800},
		{At: ms(110), Until: ms(30000), Kind: KindAnswer, Node: "hv1", Addr: "v4"},
		{At: ms(110), Kind: KindHeld, Node: "hv1", Addr: "v4", On: true},
		{At: ms(120), Kind: KindHook, Node: "hv1", Name: "beacon", On: true},
		{At: ms(10000), Kind: KindFault, Name: "power-loss", Text: stepInject},
		{At: ms(10000), Kind: KindPower, Node: "hv3"},
		{At: ms(15500), Kind: KindFence, Name: "f1", Node: "hv3", Incarnation: "b3.a", By: "hv1", Stage: cluster.FenceClaimed},
		{At: ms(15600), Kind: KindFence, Name: "f1", Node: "hv3", Incarnation: "b3.a", By: "hv1", Stage: cluster.FencePowerOff},
		{At: ms(15700), Kind: KindPower, Node: "hv3", By: "bmc", Text: wasOn(false)},
		{At: ms(16000), Kind: KindFence, Name: "f1", Node: "hv3", Incarnation: "b3.a", By: "hv1", Stage: cluster.FenceFenced, Text: "verified_off"},
		{At: ms(16100), Kind: KindPower, Node: "hv3", On: true},
		{At: ms(16200), Kind: KindFence, Name: "f1", Node: "hv3", Incarnation: "b3.a", By: "hv1", Stage: cluster.FenceDone, Text: "verified_off"},
		{At: ms(17000), Kind: KindFault, Name: "power-loss", Text: stepHealed},
		{At: ms(18500), Kind: KindIncarnation, Node: "hv3", Incarnation: "b3.b"},
		{At: ms(20000), Kind: KindFault, Name: "power-loss", Text: stepRest},
		{At: ms(30000), Kind: KindFault, Name: "power-loss", Text: stepEnd},
	}
	for i := range 59 { // renewals and the others' keepalives
		at := 600 + 500*i
		h = append(h, Entry{At: ms(at + 1), Written: ms(at), Kind: KindLease, Node: "hv1", Incarnation: "b1.a", Epoch: 1, N: uint64(i + 2), TTLMillis: 2800})
		if i%2 == 0 {
			h = append(h, Entry{At: ms(at + 2), Written: ms(at + 1), Kind: KindKeepalive, Node: "hv2", N: uint64(i / 2)})
		}
	}
	return h
}

func nodeLimits() Limits {
	return Limits{Noise: 5 * time.Millisecond, Grace: 300 * time.Millisecond, Converge: 30 * time.Second, Missed: 2500 * time.Millisecond}
}

// without drops what the function names.
func without(h []Entry, drop func(Entry) bool) []Entry {
	var out []Entry
	for _, e := range h {
		if !drop(e) {
			out = append(out, e)
		}
	}
	return out
}

func edited(h []Entry, edit func(*Entry)) []Entry {
	for i := range h {
		edit(&h[i])
	}
	return h
}

func TestCheckerAcceptsASoundFence(t *testing.T) {
	if got := Check(fencedNode(), nodeLimits()); len(got) != 0 {
		t.Errorf("objects to a sound history: %+v", got)
	}
}

// TestCheckerObjectsToWhatIsWrongWithNodes feeds one broken history, or more,
// for each invariant about nodes.
func TestCheckerObjectsToWhatIsWrongWithNodes(t *testing.T) {
	for name, c := range map[string]struct {
		invariant, says string
		plant           func([]Entry) []Entry
	}{
		"a fence is done without a proof": {"I4", "without a dead-proof", func(h []Entry) []Entry {
			return edited(h, func(e *Entry) {
				if e.Kind == KindFence {
					e.Text = ""
				}
			})
		}},
		"a lying device is believed": {"I4", "power was never taken", func(h []Entry) []Entry {
			return without(h, func(e Entry) bool { return e.Kind == KindPower })
		}},
		"an older loss of power is taken for a proof": {"I4", "power was never taken", func(h []Entry) []Entry {
			return append(without(h, func(e Entry) bool { return e.Kind == KindPower }), Entry{At: ms(15), Kind: KindPower, Node: "hv3"})
		}},
		"returned, though nothing came back": {"I4", "no later start", func(h []Entry) []Entry {
			return edited(h, func(e *Entry) {
				if e.Kind == KindFence && e.Text != "" {
					e.Text = "returned"
				}
			})
		}},
		"a service starts under a lease that owes a proof": {"I4", "still owed", func(h []Entry) []Entry {
			h = append(h, Entry{At: ms(119), Written: ms(118), Kind: KindLease, Node: "hv1", Incarnation: "b1.a", Epoch: 1, N: 1, TTLMillis: 2800, Unproven: []cluster.NodeID{"hv2"}})
			return h
		}},
		"half of the nodes are fenced": {"I6", "2 of 3 nodes", func(h []Entry) []Entry {
			return append(h, Entry{At: ms(16300), Kind: KindFence, Name: "f2", Node: "hv2", Incarnation: "b2.a", By: "hv1", Stage: cluster.FencePowerOff})
		}},
		"a node is fenced while the store is away for all": {"I6", "gone away for all", func(h []Entry) []Entry {
			h = append(unwritten(h, 11000, 22000), Entry{At: ms(11000), Kind: KindStore, By: byFault}, Entry{At: ms(22000), Kind: KindStore, By: byFault, On: true})
			return edited(h, func(e *Entry) {
				if e.Kind == KindPower && e.By == "bmc" {
					e.Text = wasOn(true)
				}
			})
		}},
		"the cluster never rests again": {"I7", "not at rest", func(h []Entry) []Entry {
			h = without(h, func(e Entry) bool { return e.Kind == KindFault && e.Text == stepRest })
			return append(h, Entry{At: ms(60000), Kind: KindNote})
		}},
		"the cluster was waited for in vain": {"I7", "the fence of hv3", func(h []Entry) []Entry {
			return append(h, Entry{At: ms(29000), Kind: KindFault, Name: "power-loss", Text: stepUnrest, By: "the fence of hv3 is in stage verify"})
		}},
		"a wish is forgotten": {"I8", `the wish for "hv2"`, func(h []Entry) []Entry {
			return append(h, Entry{At: ms(19000), Kind: KindPrimary, Text: "hv2"})
		}},
		"maintenance is lost": {"I8", "maintenance on was acknowledged", func(h []Entry) []Entry {
			return append(h, Entry{At: ms(5000), Kind: KindIntent, Name: intentMaintenance, Text: "on"}, Entry{At: ms(5000), Kind: KindMaintenance, On: true},
				Entry{At: ms(16900), Kind: KindMaintenance})
		}},
		"a fence in maintenance": {"I8", "in maintenance", func(h []Entry) []Entry {
			return append(h, Entry{At: ms(5000), Kind: KindMaintenance, On: true})
		}},
		"a restart takes the address away": {"I9", "lost v4", func(h []Entry) []Entry {
			return append(resumed(h), Entry{At: ms(26200), Kind: KindHeld, Node: "hv1", Addr: "v4"})
		}},
		"a restart ends the service": {"I9", "lost beacon", func(h []Entry) []Entry {
			return append(resumed(h), Entry{At: ms(26700), Kind: KindHook, Node: "hv1", Name: "beacon"})
		}},
		"a living agent misses keepalives": {"I10", "hv2 wrote no keepalive for 4s", stuck},
		"a living agent misses keepalives, another hypervisor cut off": {"I10", "hv2 wrote no keepalive for 4s", func(h []Entry) []Entry {
			return append(withPeers(stuck(h)), Entry{At: ms(22000), Kind: KindCut, Node: "hv4", Name: "x", On: true})
		}},
		"a living agent misses keepalives, a server's cut long mended": {"I10", "hv2 wrote no keepalive for 4s", func(h []Entry) []Entry {
			return append(withPeers(stuck(h)), Entry{At: ms(5000), Kind: KindCut, Node: "hv3", Name: "x", On: true}, Entry{At: ms(6000), Kind: KindCut, Node: "hv3", Name: "x"},
				Entry{At: ms(23000), Kind: KindCut, Node: "hv3", Name: "x"})
		}},
	} {
		t.Run(name, func(t *testing.T) {
			got := Check(c.plant(fencedNode()), nodeLimits())
			for _, v := range got {
				if v.Invariant == c.invariant && strings.Contains(v.Text, c.says) {
					return
				}
			}
			t.Errorf("found %+v, want a violation of %s that says %q", got, c.invariant, c.says)
		})
	}
}

// resumed has a new start of hv1's agent resume the role at 26.55 s.
func resumed(h []Entry) []Entry {
	return edited(h, func(e *Entry) {
		if e.Kind == KindLease && e.At > ms(26500) {
			e.Incarnation, e.Epoch = "b1.b", 2
		}
	})
}

// stuck takes three keepalives of hv2 out of the history.
func stuck(h []Entry) []Entry {
	h = without(h, func(e Entry) bool { return e.Kind == KindKeepalive && e.N >= 22 && e.N <= 24 })
	return edited(h, func(e *Entry) {
		if e.Kind == KindKeepalive && e.N > 24 {
			e.N -= 3
		}
	})
}

// unwritten drops what was written in between.
func unwritten(h []Entry, from, to int) []Entry {
	return without(h, func(e Entry) bool { return e.Written > ms(from) && e.Written < ms(to) })
}

// withPeers lets the lease name the coordinators.
func withPeers(h []Entry) []Entry {
	return edited(h, func(e *Entry) {
		if e.Kind == KindLease {
			e.Peers = []cluster.NodeID{"hv1", "hv2", "hv3"}
		}
	})
}

// TestCheckerKnowsWhatIsNoFault: what looks like a breach and is none.
func TestCheckerKnowsWhatIsNoFault(t *testing.T) {
	for name, plant := range map[string]func([]Entry) []Entry{
		"an operator may fence half": func(h []Entry) []Entry {
			return append(h, Entry{At: ms(16300), Kind: KindFence, Name: "f2", Node: "hv2", Incarnation: "b2.a", By: "hv1", Stage: cluster.FencePowerOff, Order: "o1"})
		},
		"another node, once the first is back": func(h []Entry) []Entry {
			return append(h, Entry{At: ms(19000), Kind: KindFence, Name: "f2", Node: "hv2", Incarnation: "b2.a", By: "hv1", Stage: cluster.FencePowerOff})
		},
		"a fence that failed holds no place": func(h []Entry) []Entry {
			h = without(h, func(e Entry) bool { return e.Kind == KindFence && e.At > ms(15650) })
			return append(h, Entry{At: ms(16000), Kind: KindFence, Name: "f1", Node: "hv3", Incarnation: "b3.a", Stage: cluster.FenceFailed},
				Entry{At: ms(16300), Kind: KindFence, Name: "f2", Node: "hv2", Incarnation: "b2.a", By: "hv1", Stage: cluster.FencePowerOff})
		},
		"an order that was out when the store went": func(h []Entry) []Entry {
			h = append(h, Entry{At: ms(15650), Kind: KindStore, By: byFault}, Entry{At: ms(22000), Kind: KindStore, By: byFault, On: true})
			return edited(h, func(e *Entry) {
				if e.Kind == KindPower && e.By == "bmc" {
					e.Text = wasOn(true)
				}
			})
		},
		"servers that others have started meanwhile": func(h []Entry) []Entry {
			h = append(unwritten(h, 11000, 14000), Entry{At: ms(11000), Kind: KindStore, By: byFault}, Entry{At: ms(22000), Kind: KindStore, By: byFault, On: true})
			return edited(h, func(e *Entry) {
				if e.Kind == KindPower && e.By == "bmc" {
					e.Text = wasOn(true)
				}
			})
		},
		"a proof whose earlier writes were not seen": func(h []Entry) []Entry {
			h = without(h, func(e Entry) bool { return e.Kind == KindFence || e.Kind == KindPower && !e.On })
			return append(h, Entry{At: ms(15700), Kind: KindPower, Node: "hv3"},
				Entry{At: ms(16300), Written: ms(16200), After: ms(15500), Kind: KindFence, Name: "f1", Node: "hv3", Incarnation: "b3.a", Stage: cluster.FenceDone, Text: "verified_off"})
		},
		"an agent that was stopped": func(h []Entry) []Entry {
			return append(stuck(h), Entry{At: ms(23000), Kind: KindProgram, Node: "hv2", Name: progAgent, Text: "SIGSTOP"})
		},
		"a node that was cut off before": func(h []Entry) []Entry {
			return append(stuck(h), Entry{At: ms(5000), Kind: KindCut, Node: "hv2", Name: "x", On: true})
		},
		"a node whose server was cut off from another one": func(h []Entry) []Entry {
			return append(withPeers(stuck(h)), Entry{At: ms(22000), Kind: KindCut, Node: "hv3", Name: "x", On: true}, Entry{At: ms(27000), Kind: KindCut, Node: "hv3", Name: "x"})
		},
		"a node whose server was mended too late for it": func(h []Entry) []Entry {
			return append(withPeers(stuck(h)), Entry{At: ms(15000), Kind: KindCut, Node: "hv3", Name: "x", On: true}, Entry{At: ms(22500), Kind: KindCut, Node: "hv3", Name: "x"})
		},
		"a store that did not answer": func(h []Entry) []Entry {
			return without(stuck(h), func(e Entry) bool { return e.Kind == KindLease && e.At > ms(22700) && e.At < ms(25000) })
		},
		"writes that were not seen": func(h []Entry) []Entry {
			return without(h, func(e Entry) bool { return e.Kind == KindKeepalive && e.N >= 22 && e.N <= 24 })
		},
		"a restart that came too late loses all": func(h []Entry) []Entry {
			h = without(resumed(h), func(e Entry) bool {
				return e.Kind == KindLease && e.At > ms(26500) && e.At < ms(29000) || e.Kind == KindAnswer
			})
			return append(h, Entry{At: ms(28500), Kind: KindHeld, Node: "hv1", Addr: "v4"})
		},
		"a restart in a hand-over": func(h []Entry) []Entry {
			return append(resumed(h), Entry{At: ms(26200), Kind: KindHook, Node: "hv1", Name: "beacon"}, Entry{At: ms(25000), Kind: KindTransition, Name: "t"})
		},
		"maintenance switched off before the fence": func(h []Entry) []Entry {
			return append(h, Entry{At: ms(5000), Kind: KindMaintenance, On: true}, Entry{At: ms(6000), Kind: KindMaintenance})
		},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Check(plant(fencedNode()), nodeLimits()); len(got) != 0 {
				t.Errorf("objects: %+v", got)
			}
		})
	}
}

// With the failsafe the promises of the others carry the holder while they
// cannot write either, and no longer. The store as the sandbox itself sees it
// is no measure: its own server may answer all along, late or with old news.
func TestCheckerKnowsHowFarPromisesCarry(t *testing.T) {
	peers := []cluster.NodeID{"hv1", "hv2", "hv3"}
	promise := func(by cluster.NodeID, at int, to string) Entry {
		return Entry{At: ms(at), Kind: KindPromise, Node: by, By: to, TTLMillis: 2800}
	}
	outage := func(peers []cluster.NodeID, answersUntil int, promises ...Entry) []Entry {
		return append(promises,
			Entry{At: ms(1000), Written: ms(999), Kind: KindLease, Node: "hv1", Incarnation: "b1.a", Epoch: 1, N: 1, TTLMillis: 2800, Peers: peers},
			Entry{At: ms(1000), Until: ms(answersUntil), Kind: KindAnswer, Node: "hv1", Addr: "v4"},
			Entry{At: ms(40000), Kind: KindExpired, Node: "hv1", Epoch: 1, N: 1})
	}
	both := func(at int) []Entry { return []Entry{promise("hv2", at, "hv1"), promise("hv3", at+5, "hv1")} }
	for name, c := range map[string]struct {
		history []Entry
		says    string // empty: nothing is wrong
	}{
		"nobody promised, it ends in time":     {outage(peers, 3504), ""},
		"nobody promised, it goes on":          {outage(peers, 3600), "until 100ms after"},
		"goes on by promises":                  {outage(peers, 4904, both(2400)...), ""},
		"goes on by promises, and beyond":      {outage(peers, 5000, both(2400)...), "until 100ms after"},
		"by promises time and again":           {outage(peers, 6404, append(both(2400), both(3900)...)...), ""},
		"only one has promised":                {outage(peers, 3600, promise("hv2", 2400, "hv1")), "until 100ms after"},
		"only one has promised again":          {outage(peers, 5005, append(both(2400), promise("hv2", 3900, "hv1"))...), "until 100ms after"},
		"what was promised to another":         {outage(peers, 3600, promise("hv2", 2400, "hv1"), promise("hv3", 2400, "hv2")), "until 100ms after"},
		"what it promised itself":              {outage(peers, 3600, promise("hv2", 2400, "hv1"), promise("hv1", 2400, "hv1")), "until 100ms after"},
		"a promise after its end heals no gap": {outage(peers, 6000, both(3900)...), "until 405ms after"},
		"its failsafe is off":                  {outage(nil, 3600, both(2400)...), "until 100ms after"},
	} {
		t.Run(name, func(t *testing.T) {
			got := Check(c.history, nodeLimits())
			switch {
			case c.says == "" && len(got) != 0:
				t.Errorf("objects: %+v", got)
			case c.says != "" && (len(got) != 1 || got[0].Invariant != "I3" || !strings.Contains(got[0].Text, c.says)):
				t.Errorf("found %+v, want one violation of I3 that says %q", got, c.says)
			}
		})
	}
}

// A cut of the leader's server alone: the others' writes are without an answer
// while they elect another, so both promise, though the sandbox's own session
// never notices. Taken from a run that an earlier checker objected to.
func TestCheckerKnowsOfPromisesInAnElection(t *testing.T) {
	history := func(promises ...Entry) []Entry {
		return append(promises,
			Entry{At: ms(2460), Written: ms(2456), Kind: KindLease, Node: "hv2", Epoch: 2, N: 18, TTLMillis: 2800, Peers: []cluster.NodeID{"hv1", "hv2", "hv3"}},
			Entry{At: ms(0), Until: ms(5951), Kind: KindAnswer, Node: "hv2", Addr: "v4"},
			Entry{At: ms(6036), Kind: KindExpired, Node: "hv2", Epoch: 2, N: 18},
			Entry{At: ms(6921), Written: ms(6899), Kind: KindLease, Node: "hv3", Epoch: 4, N: 2, TTLMillis: 2800})
	}
	promise := func(by cluster.NodeID, at int) Entry {
		return Entry{At: ms(at), Kind: KindPromise, Node: by, By: "hv2", TTLMillis: 2800}
	}
	if got := Check(history(promise("hv1", 3704), promise("hv3", 3708)), nodeLimits()); len(got) != 0 {
		t.Errorf("objects: %+v", got)
	}
	if got := Check(history(promise("hv1", 3704)), nodeLimits()); len(got) != 1 || !strings.Contains(got[0].Text, "until 994ms after its deadline (epoch 2, not renewed)") {
		t.Errorf("found %+v, want an objection: hv3 has promised nothing", got)
	}
}
