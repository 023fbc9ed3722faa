package settings

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"pvc.internal/cluster"
)

// checkAddresses returns the floating addresses.
func checkAddresses(r *report, list []addressFile) []cluster.FloatingAddress {
	names, seen := map[string]bool{}, map[netip.Addr]string{}
	out := make([]cluster.FloatingAddress, 0, len(list))
	for i, a := range list {
		key := fmt.Sprintf("addresses[%d]", i)
		checkName(r, key, a.Name, names)
		prefix, err := floatingPrefix(a.CIDR)
		if err != nil {
			r.refuse(key+".cidr", "%v", err)
		} else if other, ok := seen[prefix.Addr()]; ok {
			r.refuse(key+".cidr", "%s is %s's already", prefix.Addr(), other)
		} else {
			seen[prefix.Addr()] = a.Name
		}
		switch {
		case a.Interface == "":
			r.refuse(key+".interface", "is missing: name the interface that is to carry %s", a.CIDR)
		case len(a.Interface) > 15 || strings.ContainsAny(a.Interface, "/ \t:"):
			r.refuse(key+".interface", "%q cannot be an interface's name: at most 15 characters, no blank, '/' or ':'", a.Interface)
		}
		out = append(out, cluster.FloatingAddress{Name: a.Name, Prefix: prefix, Interface: a.Interface})
	}
	return out
}

// floatingPrefix parses a host address with its prefix length.
func floatingPrefix(s string) (netip.Prefix, error) {
	if s == "" {
		return netip.Prefix{}, fmt.Errorf("is missing: write the address with its prefix length, as 10.0.0.10/24")
	}
	if addr, err := netip.ParseAddr(s); err == nil {
		length := 24
		if addr.Is6() {
			length = 64
		}
		return netip.Prefix{}, fmt.Errorf("%q has no prefix length: write %s/%d if that is the network's", s, s, length)
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is not an address with its prefix length: write 10.0.0.10/24 or fd00::10/64", s)
	}
	a := p.Addr()
	switch {
	case a.Is4In6():
		return netip.Prefix{}, fmt.Errorf("%q is an IPv4 address in IPv6 dress: write it as IPv4", s)
	case a.IsUnspecified() || a.IsLoopback() || a.IsMulticast():
		return netip.Prefix{}, fmt.Errorf("%q cannot float: it is unspecified, loopback or multicast", s)
	case p.Bits() < a.BitLen()-1 && p.Masked().Addr() == a:
		return netip.Prefix{}, fmt.Errorf("%q is the network itself, not an address in it", s)
	case a.Is4() && p.Bits() < 31 && lastOf(p) == a:
		return netip.Prefix{}, fmt.Errorf("%q is the network's broadcast address", s)
	}
	return p, nil
}

// lastOf returns the highest address of an IPv4 prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	return netip.AddrFrom4(b)
}

// checkServices returns the primary-only services, in order.
func checkServices(r *report, list []serviceFile) []cluster.ServiceSpec {
	names := map[string]bool{}
	out := make([]cluster.ServiceSpec, 0, len(list))
	for i, s := range list {
		key := fmt.Sprintf("services[%d]", i)
		checkName(r, key, s.Name, names)
		if strings.HasPrefix(s.Name, "copy-") {
			r.refuse(key+".name", "%q: names that begin with copy- are those of workloads' copies", s.Name)
		}
		checkService(r, key, s)
		out = append(out, cluster.ServiceSpec{
			Name: s.Name, Kind: cluster.ServiceKind(s.Kind), Command: s.Command, Check: s.Check, Unit: s.Unit,
			StartTimeout: orDefault(s.StartTimeout, 10*time.Second),
			StopTimeout:  orDefault(s.StopTimeout, 5*time.Second),
		})
	}
	return out
}

func checkService(r *report, key string, s serviceFile) {
	r.oneOf(key+".kind", s.Kind, string(cluster.ServiceHook), string(cluster.ServiceUnit))
	switch cluster.ServiceKind(s.Kind) {
	case cluster.ServiceHook:
		checkCommand(r, key+".command", s.Command)
		if s.Unit != "" {
			r.refuse(key+".unit", "belongs to kind: unit, this one is a hook")
		}
	case cluster.ServiceUnit:
		checkUnit(r, key+".unit", s.Unit)
		if len(s.Command) > 0 {
			r.refuse(key+".command", "belongs to kind: hook, this one is a unit")
		}
	}
	if len(s.Check) > 0 {
		checkCommand(r, key+".check", s.Check)
	}
	if s.StartTimeout < 0 || s.StopTimeout < 0 {
		r.refuse(key, "start_timeout and stop_timeout cannot be negative")
	}
}

// checkUnit refuses what is no unit's full name, and our own units: stopping
// the guard with the role would end the role's own protection (I3).
func checkUnit(r *report, key, unit string) {
	own := []string{"pvcnoded.service", "pvc-guard.service", "pvc.slice"}
	switch {
	case unit == "":
		r.refuse(key, "is missing: name the unit, as nginx.service")
	case strings.ContainsAny(unit, "/ \t") || !strings.Contains(unit, "."):
		r.refuse(key, "%q is not a unit's full name: write it with its suffix, as nginx.service", unit)
	case slices.Contains(own, unit):
		r.refuse(key, "%s is part of this program and cannot be its service", unit)
	}
}

// checkPlugins returns the plugins with their defaults.
func checkPlugins(r *report, list []Plugin) []Plugin {
	names := map[string]bool{}
	out := make([]Plugin, 0, len(list))
	for i, p := range list {
		key := fmt.Sprintf("plugins[%d]", i)
		checkName(r, key, p.Name, names)
		checkCommand(r, key+".command", p.Command)
		p.Interval = orDefault(p.Interval, time.Minute)
		p.Timeout = orDefault(p.Timeout, 5*time.Second)
		switch {
		case p.Interval < time.Second:
			r.refuse(key+".interval", "%v is too short: at least 1s", p.Interval)
		case p.Timeout <= 0 || p.Timeout > p.Interval:
			r.refuse(key+".timeout", "%v must be more than zero and at most interval %v", p.Timeout, p.Interval)
		}
		out = append(out, p)
	}
	return out
}

func orDefault(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return d
}
