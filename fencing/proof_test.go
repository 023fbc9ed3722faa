package fencing

import (
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
)

func TestHasReturned(t *testing.T) {
	r := cluster.FenceRecord{Node: "b", Incarnation: "boot1.a", Keepalive: 7}
	view := func(record, alive cluster.Incarnation, keepalive int64) cluster.NodeView {
		n := cluster.NodeView{Keepalive: cluster.Versioned[int64]{Present: true, Mzxid: keepalive}}
		n.Record = cluster.Versioned[cluster.NodeRecord]{Present: true, Value: cluster.NodeRecord{Incarnation: record}}
		n.Alive = cluster.Versioned[cluster.Alive]{Present: alive != "", Value: cluster.Alive{Incarnation: alive}}
		return n
	}
	session := func(n cluster.NodeView, mzxid int64) cluster.NodeView { n.Alive.Mzxid = mzxid; return n }
	for name, c := range map[string]struct {
		view          cluster.NodeView
		proof         string
		back, ordered bool // ordered: it also ends a fence that an operator ordered
	}{
		"still dead":              {view("boot1.a", "boot1.a", 7), "", false, false},
		"its alive lingers":       {view("boot1.a", "boot1.a", 7), "", false, false},
		"a new session":           {session(view("boot1.a", "boot1.a", 7), 8), "", true, false},
		"a fresh keepalive":       {view("boot1.a", "boot1.a", 8), "", true, false},
		"a new boot":              {view("boot2.b", "boot2.b", 8), ProofReturned, true, true},
		"a new boot's alive":      {view("boot1.a", "boot2.b", 7), ProofReturned, true, true},
		"a new record, not seen":  {view("boot2.b", "", 7), ProofReturned, true, true},
		"a new start, same boot":  {view("boot1.b", "boot1.b", 8), "", true, true},
		"a boot that is a prefix": {view("boot.b", "boot.b", 8), ProofReturned, true, true},
	} {
		ret, back := HasReturned(r, c.view)
		if back != c.back || ret.Proof != c.proof || (ret.Detail == "") == back || ret.NewStart != c.ordered {
			t.Errorf("%s: %+v, %v", name, ret, back)
		}
		order := r
		order.Order, order.Stage = "o1", cluster.FenceClaimed
		if _, back := returnedFrom(order, false, c.view); back != c.ordered {
			t.Errorf("%s: ends an ordered fence: %v", name, back)
		}
		if _, back := returnedFrom(order, true, c.view); back != c.back {
			t.Errorf("%s: ends an ordered fence that is forgotten: %v", name, back)
		}
		for _, stage := range []cluster.FenceStage{cluster.FenceFailed, cluster.FenceManual} {
			order.Stage = stage
			if _, back := returnedFrom(order, false, c.view); back != c.back {
				t.Errorf("%s: ends an ordered fence that is %s: %v", name, stage, back)
			}
		}
	}
}

// lan: Q·K is 4 s, W 5 s. The bound without a stored descriptor is 4 + 2·5 + 1.
func TestWatchdogProof(t *testing.T) {
	const seen = cluster.Instant(100 * time.Second)
	good := func() WatchdogEvidence {
		e := WatchdogEvidence{Incarnation: "boot.1", StopAfter: cluster.ProfileLAN().StopAfter()}
		e.Node.Keepalive = cluster.Versioned[int64]{Present: true, SeenAt: seen}
		e.Node.Record = cluster.Versioned[cluster.NodeRecord]{Present: true, Value: cluster.NodeRecord{
			Incarnation: "boot.1", Watchdog: &cluster.WatchdogWord{Armed: true, Hardware: true, Stored: true, TimeoutMS: 5000, StopMS: 4000},
		}}
		return e
	}
	word := func(edit func(*cluster.WatchdogWord)) func(*WatchdogEvidence) {
		return func(e *WatchdogEvidence) {
			w := *e.Node.Record.Value.Watchdog
			edit(&w)
			e.Node.Record.Value.Watchdog = &w
		}
	}
	for name, c := range map[string]struct {
		edit    func(*WatchdogEvidence)
		after   time.Duration // the last keepalive seen
		missing string
	}{
		"armed, stored":                   {func(*WatchdogEvidence) {}, 10 * time.Second, ""},
		"the kernel feeds once more":      {word(func(w *cluster.WatchdogWord) { w.Stored = false }), 15 * time.Second, ""},
		"an earlier promise":              {func(e *WatchdogEvidence) { e.Promised = seen - 1 }, 10 * time.Second, ""},
		"a promise beyond":                {func(e *WatchdogEvidence) { e.Promised = seen.Add(2 * time.Second) }, 12 * time.Second, ""},
		"led for long":                    {func(e *WatchdogEvidence) { e.Leads = seen.Add(4 * time.Second) }, 10 * time.Second, ""},
		"led since a moment ago":          {func(e *WatchdogEvidence) { e.Leads = seen.Add(63 * time.Second) }, 69 * time.Second, ""},
		"its own Q·K is longer":           {word(func(w *cluster.WatchdogWord) { w.StopMS = 30_000 }), 36 * time.Second, ""},
		"its own Q·K is shorter":          {word(func(w *cluster.WatchdogWord) { w.StopMS = 1000 }), 10 * time.Second, ""},
		"what the device granted":         {word(func(w *cluster.WatchdogWord) { w.TimeoutMS = 60_000 }), 65 * time.Second, ""},
		"softdog":                         {word(func(w *cluster.WatchdogWord) { w.Hardware = false }), 0, "trust_softdog"},
		"not armed":                       {word(func(w *cluster.WatchdogWord) { w.Armed = false }), 0, "no armed watchdog"},
		"no time-out":                     {word(func(w *cluster.WatchdogWord) { w.TimeoutMS = 0 }), 0, "0 ms"},
		"a time-out past belief":          {word(func(w *cluster.WatchdogWord) { w.TimeoutMS = 1 << 40 }), 0, "is none"},
		"no word":                         {func(e *WatchdogEvidence) { e.Node.Record.Value.Watchdog = nil }, 0, "no armed watchdog"},
		"another start's word":            {func(e *WatchdogEvidence) { e.Incarnation = "boot.0" }, 0, "another start"},
		"a record that cannot be read":    {func(e *WatchdogEvidence) { e.Node.Record.Err = cluster.ErrConflict }, 0, "cannot be read"},
		"no record":                       {func(e *WatchdogEvidence) { e.Node.Record.Present = false }, 0, "cannot be read"},
		"no keepalive seen":               {func(e *WatchdogEvidence) { e.Node.Keepalive.Present = false }, 0, "no keepalive"},
		"a keepalive of no known instant": {func(e *WatchdogEvidence) { e.Node.Keepalive.SeenAt = cluster.Never }, 0, "no keepalive"},
	} {
		e := good()
		c.edit(&e)
		from, missing := WatchdogProof(e)
		if c.missing != "" {
			if from != cluster.Forever || !strings.Contains(missing, c.missing) {
				t.Errorf("%s: from %d, missing %q", name, from, missing)
			}
			continue
		}
		if from != seen.Add(c.after) || missing != "" {
			t.Errorf("%s: %s after the last keepalive, missing %q; want %s", name, from.Sub(seen), missing, c.after)
		}
	}
	soft := good()
	word(func(w *cluster.WatchdogWord) { w.Hardware = false })(&soft)
	soft.TrustSoftdog = true
	if from, missing := WatchdogProof(soft); from != seen.Add(10*time.Second) || missing != "" {
		t.Errorf("a trusted softdog: %s, %q", from.Sub(seen), missing)
	}
}

func TestConfirmProof(t *testing.T) {
	for name, c := range map[string]struct {
		order cluster.FenceOrder
		ok    bool
	}{
		"whole":     {cluster.FenceOrder{By: "ann", Reason: "pulled both plugs"}, true},
		"no reason": {cluster.FenceOrder{By: "ann"}, false},
		"blank":     {cluster.FenceOrder{By: "ann", Reason: " \t"}, false},
		"nobody":    {cluster.FenceOrder{Reason: "pulled both plugs"}, false},
	} {
		detail, refusal := ConfirmProof(c.order)
		if (refusal == nil) != c.ok || c.ok && (!strings.Contains(detail, "ann") || !strings.Contains(detail, "pulled both plugs")) {
			t.Errorf("%s: %q, %+v", name, detail, refusal)
		}
		if refusal != nil && refusal.Code != cluster.RefuseNoReason {
			t.Errorf("%s: %s", name, refusal.Code)
		}
	}
}
