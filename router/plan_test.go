package router

import (
	"net/netip"
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"

	"pvc.internal/cluster"
)

func addr(name, prefix, ifname string) cluster.FloatingAddress {
	return cluster.FloatingAddress{Name: name, Prefix: netip.MustParsePrefix(prefix), Interface: ifname}
}

func kernelAddr(prefix, ifname string, ours bool) KernelAddress {
	return KernelAddress{Prefix: netip.MustParsePrefix(prefix), Interface: ifname, Index: 2, Ours: ours}
}

func TestPlanAddresses(t *testing.T) {
	a := addr("a", "10.0.0.10/24", "up")
	for name, c := range map[string]struct {
		wanted []cluster.FloatingAddress
		kernel []KernelAddress
		want   AddressPlan
	}{
		"absent":            {[]cluster.FloatingAddress{a}, nil, AddressPlan{Add: []cluster.FloatingAddress{a}}},
		"there":             {[]cluster.FloatingAddress{a}, []KernelAddress{kernelAddr("10.0.0.10/24", "up", true)}, AddressPlan{Keep: []KernelAddress{kernelAddr("10.0.0.10/24", "up", true)}}},
		"not wanted":        {nil, []KernelAddress{kernelAddr("10.0.0.10/24", "up", true)}, AddressPlan{Remove: []KernelAddress{kernelAddr("10.0.0.10/24", "up", true)}}},
		"foreign":           {nil, []KernelAddress{kernelAddr("10.0.0.10/24", "up", false)}, AddressPlan{}},
		"foreign elsewhere": {[]cluster.FloatingAddress{a}, []KernelAddress{kernelAddr("10.0.0.10/32", "lo", false)}, AddressPlan{Conflicts: []Conflict{{a, kernelAddr("10.0.0.10/32", "lo", false)}}}},
		"other length":      {[]cluster.FloatingAddress{a}, []KernelAddress{kernelAddr("10.0.0.10/16", "up", true)}, AddressPlan{Add: []cluster.FloatingAddress{a}, Remove: []KernelAddress{kernelAddr("10.0.0.10/16", "up", true)}}},
	} {
		if got := PlanAddresses(c.wanted, c.kernel); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s:\n got %+v\nwant %+v", name, got, c.want)
		}
	}
}

// TestPlanNeverTouchesForeignAddresses draws small tables at random.
func TestPlanNeverTouchesForeignAddresses(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		prefixes := []string{"10.0.0.10/24", "10.0.0.10/16", "10.0.0.11/24", "fd00::1/64"}
		ifs := []string{"up", "down"}
		var wanted []cluster.FloatingAddress
		for range rapid.IntRange(0, 3).Draw(t, "wanted") {
			wanted = append(wanted, addr("x", rapid.SampledFrom(prefixes).Draw(t, "prefix"), rapid.SampledFrom(ifs).Draw(t, "if")))
		}
		var kernel []KernelAddress
		for range rapid.IntRange(0, 5).Draw(t, "kernel") {
			kernel = append(kernel, kernelAddr(rapid.SampledFrom(prefixes).Draw(t, "prefix"), rapid.SampledFrom(ifs).Draw(t, "if"), rapid.Bool().Draw(t, "ours")))
		}
		p := PlanAddresses(wanted, kernel)
		for _, k := range append(p.Keep, p.Remove...) {
			if !k.Ours {
				t.Fatalf("foreign address %v in the plan", k)
			}
		}
		for _, a := range p.Add {
			for _, k := range kernel {
				if !k.Ours && k.Prefix.Addr() == a.Prefix.Addr() {
					t.Fatalf("%v is added beside the foreign %v", a, k)
				}
			}
		}
	})
}

// TestLifetimesKeepTheirBounds checks both rules against what the kernel was
// measured to make of a lifetime: it ends N − 0.02 … N + 1.0 s after it was set.
func TestLifetimesKeepTheirBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := cluster.Instant(rapid.Int64Range(1, int64(time.Hour)).Draw(t, "now"))
		deadline := now.Add(time.Duration(rapid.Int64Range(1, int64(70*time.Second)).Draw(t, "left")))
		n := time.Duration(GatedLifetime(now, deadline)) * time.Second
		if earliest := now.Add(n - lifetimeEarly); earliest < deadline.Add(lifetimeSlack) {
			t.Fatalf("gated: may end %v after the deadline, less than 0.2 s", earliest.Sub(deadline))
		}
		if latest := now.Add(n + time.Second); latest > deadline.Add(2300*time.Millisecond) {
			t.Fatalf("gated: may linger %v after the deadline", latest.Sub(deadline))
		}
		n = time.Duration(UngatedLifetime(now, deadline)) * time.Second
		if n > 0 && now.Add(n+lifetimeLate) > deadline {
			t.Fatalf("ungated: may end %v after the taker's instant", now.Add(n+lifetimeLate).Sub(deadline))
		}
		if n+time.Second+lifetimeLate <= deadline.Sub(now) {
			t.Fatalf("ungated: %v is not the largest that fits into %v", n, deadline.Sub(now))
		}
	})
}
