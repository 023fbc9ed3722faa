package guard

import (
	"errors"
	"net/netip"
	"os/exec"
	"testing"
	"time"
)

// inGate runs f with a gate of its own in a namespace.
func inGate(t *testing.T, f func(g *gate, b *bed)) {
	b := newBed(t, false) // its guard has no gate
	inNamespace(t, b.host, func() {
		g, err := openGate("pvc_test")
		if err != nil {
			t.Error(err)
			return
		}
		defer g.close()
		g.mu.Lock()
		defer g.mu.Unlock()
		if err := g.build(addrsOf(all)); err != nil {
			t.Error(err)
			return
		}
		f(g, b)
	})
}

// TestADeadElementCannotBeRenewed is the second line of I3: what the kernel has
// timed out stays out, even beside an element that still lives.
func TestADeadElementCannotBeRenewed(t *testing.T) {
	inGate(t, func(g *gate, _ *bed) {
		// Long enough that a busy machine does not come too late to refresh them.
		if err := g.openFor(addrsOf(all), time.Second); err != nil {
			t.Error(err)
			return
		}
		began := time.Now()
		if err := g.refresh(1200 * time.Millisecond); err != nil {
			t.Errorf("refresh of living elements: %v", err)
		}
		for living, err := g.living(); len(living) > 0; living, err = g.living() {
			if err != nil || time.Since(began) > 30*time.Second {
				t.Errorf("elements outlive their timeout: %v %v", living, err)
				return
			}
		}
		if took := time.Since(began); took < 1100*time.Millisecond { // how late it is found depends on the machine
			t.Errorf("elements of 1.2 s lived %v", took)
		}
		if err := g.refresh(time.Second); !errors.Is(err, errGateLost) {
			t.Errorf("refresh of dead elements: %v, want it refused", err)
		}
		if living, err := g.living(); len(living) != 0 || err != nil {
			t.Errorf("after the refused refresh: %v %v", living, err)
		}
		if err := g.openFor(addrsOf(all), time.Second); err != nil {
			t.Errorf("open anew: %v", err)
		}
		if living, _ := g.living(); len(living) != 3 {
			t.Errorf("after opening anew: %v", living)
		}
	})
}

func TestTheGateNoticesWhatOthersChange(t *testing.T) {
	for name, args := range map[string][]string{
		"table deleted":   {"delete", "table", "inet", "pvc_test"},
		"rules flushed":   {"flush", "chain", "arp", "pvc_test", "out"},
		"element deleted": {"delete", "element", "inet", "pvc_test", "open4", "{ 10.77.0.10 }"},
		"set flushed":     {"flush", "set", "arp", "pvc_test", "managed4"},
		"not ours":        {"add", "table", "inet", "another"},
	} {
		t.Run(name, func(t *testing.T) {
			inGate(t, func(g *gate, b *bed) {
				if err := g.openFor([]netip.Addr{v4a.Prefix.Addr()}, time.Minute); err != nil {
					t.Error(err)
				}
				if err := g.check(); err != nil {
					t.Errorf("before: %v", err)
				}
				cmd := exec.Command("nsenter", append([]string{"--net=/run/netns/" + b.host, "nft"}, args...)...)
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Errorf("nft: %v: %s", err, out)
				}
				if err := g.check(); errors.Is(err, errGateLost) != (name != "not ours") {
					t.Errorf("check: %v", err)
				}
			})
		})
	}
}
