package activity

import (
	"errors"
	"strings"
	"testing"

	"pvc.internal/cluster"
)

func TestConditionsAreCheckedInTheirOrder(t *testing.T) {
	all := Holdings{Leader: true, Lease: leaseA, Self: "a", Held: five, Set: five}
	other := []rival{{id: "drain-1", name: "drain", domain: "cluster", root: "drain-1"}}
	with := func(change func(*asked, *situation)) (asked, situation) {
		a, s := asked{quorum: cluster.Majority(), domain: "cluster", root: "me"}, situation{holdings: all}
		change(&a, &s)
		return a, s
	}
	child := func(l cluster.NodeLeaseID) func(*asked, *situation) {
		return func(a *asked, _ *situation) { a.child, a.lease = true, l }
	}
	for name, c := range map[string]struct {
		change func(*asked, *situation)
		want   cluster.RefusalCode
		says   string
	}{
		"all holds":                    {func(*asked, *situation) {}, "", ""},
		"domain before all else":       {func(a *asked, s *situation) { s.rivals, s.holdings = other, Holdings{Self: "a"} }, cluster.RefuseDomainConflict, "drain-1"},
		"another domain":               {func(a *asked, s *situation) { s.rivals, a.domain = other, "backup" }, "", ""},
		"one's own root's domain":      {func(a *asked, s *situation) { s.rivals, a.root = other, "drain-1" }, "", ""},
		"root, not the leader":         {func(_ *asked, s *situation) { s.holdings.Leader = false }, cluster.RefuseNotLeader, "ask the leader"},
		"child of the current lease":   {child(leaseA), "", ""},
		"S164 child of an older lease": {child(cluster.NodeLeaseID{Holder: "a", Start: "s0", Epoch: 7}), cluster.RefuseNoLease, "its token"},
		"child, lease before leader": {func(a *asked, s *situation) { child(leaseB)(a, s); s.holdings.Leader = false },
			cluster.RefuseNoLease, "its token"},
		"child, not the leader":    {func(a *asked, s *situation) { child(leaseA)(a, s); s.holdings.Leader = false }, cluster.RefuseNotLeader, ""},
		"no quorum":                {func(_ *asked, s *situation) { s.holdings.Held = five[:2] }, cluster.RefuseNoQuorum, "c d e"},
		"a quorum names strangers": {func(a *asked, _ *situation) { a.quorum = cluster.All("a", "zz") }, cluster.RefuseNoQuorum, "leases of zz"},
		"an empty quorum set":      {func(_ *asked, s *situation) { s.holdings.Set = nil }, cluster.RefuseNoQuorum, "empty"},
		"unsafe without quorum":    {func(a *asked, s *situation) { a.unsafe, s.holdings.Held = true, nil }, "", ""},
		"unsafe, not the leader":   {func(a *asked, s *situation) { a.unsafe, s.holdings = true, Holdings{Self: "a"} }, cluster.RefuseNotLeader, ""},
		"unsafe child, not the leader": {func(a *asked, s *situation) { child(leaseA)(a, s); a.unsafe, s.holdings.Leader = true, false },
			cluster.RefuseNotLeader, ""},
		"unsafe, domain taken":    {func(a *asked, s *situation) { a.unsafe, s.rivals = true, other }, cluster.RefuseDomainConflict, ""},
		"unsafe, older lease":     {func(a *asked, s *situation) { child(leaseB)(a, s); a.unsafe = true }, cluster.RefuseNoLease, ""},
		"follower, nobody served": {func(a *asked, _ *situation) { a.quorum = cluster.Follower() }, cluster.RefuseNoLease, "serves no leader"},
		"follower of another": {func(a *asked, s *situation) {
			a.quorum, s.granted, s.holdings = cluster.Follower(), leaseB, Holdings{Self: "a"}
		},
			"", ""},
		"follower, its leader's own lease missing": {func(a *asked, s *situation) {
			a.quorum, s.granted, s.holdings.Held = cluster.Follower(), leaseA, five[1:]
		}, cluster.RefuseNoQuorum, "lease of itself"},
	} {
		r := check(with(c.change))
		switch {
		case r == nil && c.want != "", r != nil && r.Code != c.want, r != nil && !strings.Contains(r.Detail, c.says):
			t.Errorf("%s: %+v, want %q with %q", name, r, c.want, c.says)
		}
	}
}

func TestQuorumsThatMeanNothingAreRefused(t *testing.T) {
	for _, q := range []cluster.Quorum{
		{}, cluster.Each(), cluster.Each(cluster.Majority(), cluster.Each()),
		cluster.Each(cluster.Follower(), cluster.Majority()), // A15
		cluster.Each(cluster.Majority(), cluster.Each(cluster.Follower())),
		{Kind: cluster.QuorumAll, Nodes: []cluster.NodeID{}}, cluster.All("none"), cluster.Majority("a", "b c"),
	} {
		if r := malformed(q); r == nil || r.Code != cluster.RefuseActivitySpec {
			t.Errorf("%q: %+v", q, r)
		}
		if r := malformed(q); r != nil && mixes(q) && !strings.Contains(r.Detail, "mixes") {
			t.Errorf("%q: %+v", q, r)
		}
	}
	for _, q := range []cluster.Quorum{cluster.Follower(), cluster.All(), cluster.Majority("a", "b"), cluster.Each(cluster.Majority(), cluster.All("x"))} {
		if r := malformed(q); r != nil {
			t.Errorf("%q: %+v", q, r)
		}
	}
}

func TestWhatARunningActivityRestsOn(t *testing.T) {
	for name, c := range map[string]struct {
		quorum  cluster.Quorum
		held    string
		granted cluster.NodeLeaseID
		goesOn  bool
	}{
		"S157 two of five lost":                  {cluster.Majority(), "abc", leaseA, true},
		"S157 three of five lost":                {cluster.Majority(), "ab", leaseA, false},
		"S158 one named is lost":                 {cluster.Each(cluster.Majority(), cluster.All("e")), "abcd", leaseA, false},
		"S161 the leader's own lease":            {cluster.All(), "bcde", leaseA, true},
		"S161 the same, nobody is served":        {cluster.Majority(), "bc", cluster.NodeLeaseID{}, true},
		"its own lease goes to another leader":   {cluster.Majority(), "bc", leaseB, false},
		"another leader is served, quorum holds": {cluster.Majority(), "bcd", leaseB, true},
		"S161 follower's work":                   {cluster.Follower(), "bcde", leaseA, false},
		"follower's work":                        {cluster.Follower(), "a", leaseA, true},
		"follower's work, another is served":     {cluster.Follower(), "abcde", leaseB, false},
	} {
		var held []cluster.NodeID
		for _, n := range c.held {
			held = append(held, cluster.NodeID(n))
		}
		h := Holdings{Leader: true, Lease: leaseA, Self: "a", Held: held, Set: five}
		err := holds(asked{quorum: c.quorum, lease: leaseA}, situation{holdings: h, granted: c.granted}, nil)
		if (err == nil) != c.goesOn {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What began in one term of a leader does not go on in the next, whose leases
// are other ones, though as many are held; neither safe nor unsafe.
func TestNothingOutlivesTheTermItBeganIn(t *testing.T) {
	again := cluster.NodeLeaseID{Holder: "a", Start: "s9", Epoch: 9}
	for _, unsafe := range []bool{false, true} {
		of := asked{quorum: cluster.Majority(), lease: leaseA, unsafe: unsafe}
		h := Holdings{Leader: true, Lease: leaseA, Self: "a", Held: five, Set: five}
		if err := holds(of, situation{holdings: h}, nil); err != nil {
			t.Errorf("in its own term (unsafe: %t): %v", unsafe, err)
		}
		h.Lease = again
		if err := holds(of, situation{holdings: h, granted: again}, nil); !errors.Is(err, cluster.ErrNodeLeaseLost) {
			t.Errorf("in the next term (unsafe: %t): %v", unsafe, err)
		}
		h.Leader = false
		if err := holds(of, situation{holdings: h}, nil); !errors.Is(err, cluster.ErrLeadershipLost) {
			t.Errorf("leading no more (unsafe: %t): %v", unsafe, err)
		}
	}
}
