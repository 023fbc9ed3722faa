package sandbox

import (
	"strings"
	"testing"
	"time"
)

// movedWorkload is a history in which nothing is wrong: "job" runs on hv2, whose
// keepalives end; its copy ends with its right, and a second later it runs on hv3.
func movedWorkload() []Entry {
	h := []Entry{
		{At: ms(10), Kind: KindStore, On: true},
		{At: ms(200), Kind: KindCopy, Name: "job", Node: "hv2", On: true},
		{At: ms(14000), Kind: KindCopy, Name: "job", Node: "hv2"},
		{At: ms(15000), Kind: KindCopy, Name: "job", Node: "hv3", On: true},
		{At: ms(25000), Kind: KindKeys, Name: "cache", N: 20000, On: true},
	}
	for i := range 25 {
		at := 100 + 1000*i
		if i < 10 {
			h = append(h, Entry{At: ms(at), Kind: KindKeepalive, Node: "hv2", N: uint64(i)})
		}
		h = append(h, Entry{At: ms(at), Kind: KindKeepalive, Node: "hv3", N: uint64(i)})
	}
	return h
}

func workloadLimits() Limits {
	l := nodeLimits()
	l.Missed, l.Right, l.Stop = 0, 5*time.Second, 500*time.Millisecond
	return l
}

func TestCheckerOnWorkloads(t *testing.T) {
	for name, c := range map[string]struct {
		change    func([]Entry) []Entry
		invariant string
		words     string
	}{
		"nothing wrong": {func(h []Entry) []Entry { return h }, "", ""},
		"two copies at once": {func(h []Entry) []Entry {
			h[3].At = ms(13000)
			return h
		}, "I4", "workload job ran twice"},
		"two copies to the end": {func(h []Entry) []Entry {
			return append(h, Entry{At: ms(24000), Kind: KindCopy, Name: "job", Node: "hv3", On: true})
		}, "I4", "to the end of the history"},
		"a copy past the node's right": {func(h []Entry) []Entry {
			h[2].At, h[3].At = ms(16000), ms(17000)
			return h
		}, "I4", "after the end of its right"},
		"a copy that never ends on a node that is gone": {func(h []Entry) []Entry {
			return without(h, func(e Entry) bool { return e.Kind == KindCopy && (e.Node == "hv3" || !e.On) })
		}, "I4", "after the end of its right"},
		"past the right, but the store was away": {func(h []Entry) []Entry {
			h[2].At, h[3].At = ms(16000), ms(17000)
			return append(h, Entry{At: ms(10000), Kind: KindStore}, Entry{At: ms(12000), Kind: KindStore, On: true})
		}, "", ""},
		"keys lost while armed": {func(h []Entry) []Entry {
			h[4].Lost = 3
			return h
		}, "I8", "3 of 20000 keys"},
		"keys lost where nothing was promised": {func(h []Entry) []Entry {
			h[4].Lost, h[4].On = 3, false
			return h
		}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			found := Check(c.change(movedWorkload()), workloadLimits())
			switch {
			case c.invariant == "" && len(found) > 0:
				t.Errorf("found %v", found)
			case c.invariant != "" && (len(found) != 1 || found[0].Invariant != c.invariant || !strings.Contains(found[0].Text, c.words)):
				t.Errorf("found %v, want one of %s: %q", found, c.invariant, c.words)
			}
		})
	}
}
