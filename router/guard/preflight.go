package guard

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"pvc.internal/cluster"
	"pvc.internal/router"
)

// defaultProbe is how long a conflict probe waits for an answer.
const defaultProbe = 100 * time.Millisecond

// preflight reports what stands against serving the role on this host now.
func (g *Guard) preflight(ctx context.Context, q cluster.PreflightRequest) cluster.PreflightResult {
	res := cluster.PreflightResult{Problems: []string{}}
	problem := func(format string, args ...any) { res.Problems = append(res.Problems, fmt.Sprintf(format, args...)) }
	present := map[string]bool{}
	for _, a := range q.Addresses {
		if text := interfaceProblem(a); text != "" {
			problem("%s", text)
			continue
		}
		present[a.Name] = true
	}
	plan, err, gateErr := g.look(q.Addresses)
	if err != nil {
		problem("%v", err)
	}
	for _, c := range plan.Conflicts {
		problem("address %s is on this host's interface %s already, put there by somebody else", c.Wanted, c.Present.Interface)
	}
	if gateErr != nil {
		problem("the gate is not in force: %v", gateErr)
	}
	g.mu.Lock()
	err = g.feedingRefuses()
	g.mu.Unlock()
	if err != nil {
		problem("%v", err)
	}
	for _, s := range q.Services {
		if text := g.preflightService(ctx, s); text != "" {
			problem("%s", text)
		}
	}
	if q.Epoch > 0 {
		if err := g.prepareEpoch(q.Epoch); err != nil {
			problem("the role's epoch could not be written down: %v", err)
		}
	}
	if q.Conflicts {
		for _, text := range g.probeAll(ctx, q, present) {
			problem("%s", text)
		}
	}
	g.mu.Lock()
	res.MaxEpoch = g.max[epochLine(cluster.OwnerPrimary)]
	g.mu.Unlock()
	return res
}

// look compares the addresses with the kernel's and checks the gate.
func (g *Guard) look(wanted []cluster.FloatingAddress) (plan router.AddressPlan, err, gateErr error) {
	g.looking.Lock()
	defer g.looking.Unlock()
	g.addrs.mu.Lock()
	plan, err = g.plan(wanted)
	g.addrs.mu.Unlock()
	if g.gate != nil {
		g.gate.mu.Lock()
		gateErr = g.gate.check()
		g.gate.mu.Unlock()
	}
	return plan, err, gateErr
}

func interfaceProblem(a cluster.FloatingAddress) string {
	if err := validAddress(a); err != nil {
		return err.Error()
	}
	ifi, err := net.InterfaceByName(a.Interface)
	switch {
	case err != nil:
		return fmt.Sprintf("address %s: interface %q is not there", a, a.Interface)
	case ifi.Flags&net.FlagUp == 0:
		return fmt.Sprintf("address %s: interface %q is down: `ip link set %s up`", a, a.Interface, a.Interface)
	case ifi.Flags&net.FlagRunning == 0 && ifi.Flags&net.FlagLoopback == 0:
		return fmt.Sprintf("address %s: interface %q has no carrier", a, a.Interface)
	}
	return ""
}

// probeAll asks the network for each usable address, side by side.
func (g *Guard) probeAll(ctx context.Context, q cluster.PreflightRequest, usable map[string]bool) []string {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(q.Timeout, defaultProbe))
	defer cancel()
	known := map[string]bool{}
	for _, m := range q.KnownMACs {
		if hw, err := net.ParseMAC(m); err == nil {
			known[hw.String()] = true
		}
	}
	texts := make([]string, len(q.Addresses))
	var probes sync.WaitGroup
	for i, a := range q.Addresses {
		if !usable[a.Name] {
			continue
		}
		probes.Go(func() {
			mac, err := probeConflict(ctx, a, known)
			switch {
			case err != nil:
				texts[i] = fmt.Sprintf("address %s: conflict probe failed: %v", a, err)
			case mac != nil:
				texts[i] = fmt.Sprintf("address %s is in use by %s, which is not the present holder", a, mac)
			}
		})
	}
	probes.Wait()
	var found []string
	for _, t := range texts {
		if t != "" {
			found = append(found, t)
		}
	}
	return found
}
