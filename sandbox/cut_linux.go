package sandbox

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// cut is traffic of the cluster network that a node's kernel drops. It outlives
// a power cut of the node, as a bad cable does.
type cut struct {
	in, out bool
	ports   []int      // of TCP, at either end; none: everything
	peer    netip.Addr // only from and to this address; the zero address: everybody
}

// storePorts are those of a ZooKeeper server: for clients, for the leader, for elections.
var storePorts = []int{zkClientPort, zkPeerPort, zkElectionPort}

const cutTable = "pvc_sandbox_cut"

// rules are the cut's in one direction, in the language of nft.
func (c cut) rules(inward bool) []string {
	match, far := `oifname "`+linkCluster+`"`, " ip daddr "
	if inward {
		match, far = `iifname "`+linkCluster+`"`, " ip saddr "
	}
	if c.peer.IsValid() {
		match += far + c.peer.String()
	}
	if len(c.ports) == 0 {
		return []string{match + " drop"}
	}
	ports := strings.Trim(strings.Join(strings.Fields(fmt.Sprint(c.ports)), ", "), "[]")
	return []string{match + " tcp dport { " + ports + " } drop", match + " tcp sport { " + ports + " } drop"}
}

// cutScript replaces all cuts of a node by these, in one transaction of nft.
func cutScript(cuts map[string]cut) string {
	var in, out []string
	names := make([]string, 0, len(cuts))
	for name := range cuts {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if c := cuts[name]; c.in {
			in = append(in, c.rules(true)...)
		}
		if c := cuts[name]; c.out {
			out = append(out, c.rules(false)...)
		}
	}
	chain := func(hook string, rules []string) string {
		return fmt.Sprintf(" chain %s {\n  type filter hook %s priority -310; policy accept;\n  %s\n }\n", hook, hook, strings.Join(rules, "\n  "))
	}
	return fmt.Sprintf("table inet %[1]s { }\ndelete table inet %[1]s\ntable inet %[1]s {\n%[2]s%[3]s}\n",
		cutTable, chain("input", in), chain("output", out))
}

// setCut puts the cut of that name into force; nil ends it. On a node without
// power it takes effect when that boots.
func (n *Node) setCut(name string, c *cut) error {
	n.cutMu.Lock()
	_, was := n.cuts[name]
	switch {
	case c != nil && n.cuts == nil:
		n.cuts = map[string]cut{name: *c}
	case c != nil:
		n.cuts[name] = *c
	default:
		delete(n.cuts, name)
	}
	n.cutMu.Unlock()
	if c == nil && !was {
		return nil
	}
	n.sandbox.history.Add(Entry{Kind: KindCut, Node: n.Plan.Name, Name: name, On: c != nil})
	ns, err := n.namespace()
	if err != nil {
		return nil //nolint:nilerr // without power: it finds its cuts when it boots
	}
	defer ns.close()
	return n.applyCuts(ns)
}

// applyCuts has the node's kernel drop what is cut now.
func (n *Node) applyCuts(ns *namespace) error {
	n.cutMu.Lock()
	defer n.cutMu.Unlock()
	script := cutScript(n.cuts)
	return ns.do(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		cmd := exec.CommandContext(ctx, "nft", "-f", "-")
		cmd.Stdin = strings.NewReader(script)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("cut the network of %s (needs Debian's package nftables): %w: %s", n.Plan.Name, err, strings.TrimSpace(string(out)))
		}
		return nil
	})
}

// restoreCuts puts into force, in a node that has just booted, what was cut before.
func (n *Node) restoreCuts(pid int) error {
	n.cutMu.Lock()
	none := len(n.cuts) == 0
	n.cutMu.Unlock()
	if none {
		return nil
	}
	ns, err := namespaceOf(pid)
	if err != nil {
		return err
	}
	defer ns.close()
	return n.applyCuts(ns)
}

// mendCuts ends all cuts of the node.
func (n *Node) mendCuts() error {
	n.cutMu.Lock()
	var names []string
	for name := range n.cuts {
		names = append(names, name)
	}
	n.cutMu.Unlock()
	for _, name := range names {
		if err := n.setCut(name, nil); err != nil {
			return err
		}
	}
	return nil
}

// setLink plugs one of the node's networks in or out; a node without power has
// none that could be.
func (n *Node) setLink(up bool, link string) error {
	n.sandbox.history.Add(Entry{Kind: KindCut, Node: n.Plan.Name, Name: "link " + link, On: !up})
	if !n.Powered() {
		return nil
	}
	return n.sandbox.net.setPorts(n.Plan, up, link)
}

// storeAway records that all ZooKeeper servers were taken away, or are back.
func (s *Sandbox) storeAway(away bool) {
	s.history.Add(Entry{Kind: KindStore, By: byFault, On: !away})
}

// byFault marks what the sandbox itself brought about.
const byFault = "fault"
