package router

import (
	"net/netip"
	"time"

	"pvc.internal/cluster"
)

// KernelAddress is an address as the kernel reports it.
type KernelAddress struct {
	Prefix    netip.Prefix // the address itself, not masked, with its length
	Interface string
	Index     int  // the interface's
	Ours      bool // carries the guard's mark; every other is foreign and never touched
}

// Conflict is a wanted address that this host has already, without our mark.
type Conflict struct {
	Wanted  cluster.FloatingAddress
	Present KernelAddress
}

// AddressPlan is what is to be done so that exactly the wanted addresses carry
// our mark. Foreign addresses appear in Conflicts only.
type AddressPlan struct {
	Add       []cluster.FloatingAddress // wanted, absent
	Keep      []KernelAddress           // wanted, present, ours
	Remove    []KernelAddress           // ours, not wanted
	Conflicts []Conflict                // wanted, present as somebody else's
}

// PlanAddresses compares the wanted addresses with the kernel's. It edits
// neither. An address of ours on another interface or with another prefix
// length than wanted is removed and added anew; a foreign one with the same IP,
// on whatever interface, is a conflict, and the wanted one is not added.
func PlanAddresses(wanted []cluster.FloatingAddress, kernel []KernelAddress) AddressPlan {
	var p AddressPlan
	keep := make([]bool, len(kernel))
	for _, w := range wanted {
		present, foreign := false, false
		for i, k := range kernel {
			switch {
			case !k.Ours && k.Prefix.Addr() == w.Prefix.Addr():
				foreign = true
				p.Conflicts = append(p.Conflicts, Conflict{Wanted: w, Present: k})
			case k.Ours && k.Prefix == w.Prefix && k.Interface == w.Interface:
				present = true
				keep[i] = true
			}
		}
		if !present && !foreign {
			p.Add = append(p.Add, w)
		}
	}
	for i, k := range kernel {
		switch {
		case keep[i]:
			p.Keep = append(p.Keep, k)
		case k.Ours:
			p.Remove = append(p.Remove, k)
		}
	}
	return p
}

// The kernel's lifetimes, as measured: one of N seconds ends N − 0.02 s …
// N + 1.0 s after it was set, since the kernel looks at most once a second.
const (
	lifetimeEarly = 20 * time.Millisecond
	lifetimeLate  = 1050 * time.Millisecond
	// lifetimeSlack keeps an address, behind the gate, past the role's own end,
	// so that it never goes while the role may still be renewed.
	lifetimeSlack = 200 * time.Millisecond
	// longestLifetime, in seconds, keeps a far deadline within 32 bits.
	longestLifetime = 1 << 30
)

// GatedLifetime is the valid_lft in whole seconds for an address behind a gate:
// the smallest that cannot end before the deadline + 0.2 s. The gate, not the
// lifetime, is what keeps I3 then; the address lingers at most 2.3 s behind it.
// It is at least 1.
func GatedLifetime(now, deadline cluster.Instant) uint32 {
	need := deadline.Add(lifetimeSlack).Sub(now) + lifetimeEarly
	if need <= time.Second {
		return 1
	}
	return uint32(min((need+time.Second-1)/time.Second, longestLifetime))
}

// UngatedLifetime is the valid_lft in whole seconds where there is no gate: the
// largest that certainly ends by last, the instant from which a taker may
// answer for the address (send + L + M). Zero: none fits any more, and the
// address is left to run out.
func UngatedLifetime(now, last cluster.Instant) uint32 {
	room := last.Sub(now) - lifetimeLate
	if room < time.Second {
		return 0
	}
	return uint32(min(room/time.Second, longestLifetime))
}
