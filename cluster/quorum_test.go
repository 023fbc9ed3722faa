package cluster

import "testing"

func TestQuorumSatisfied(t *testing.T) {
	abc := []NodeID{"a", "b", "c"}
	cases := []struct {
		q    Quorum
		held []NodeID
		set  []NodeID
		want bool
	}{
		{Follower(), []NodeID{"a"}, abc, true},
		{Follower(), []NodeID{"b"}, abc, false},
		{All(), abc, abc, true},
		{All(), []NodeID{"a", "b"}, abc, false},
		{All(), nil, nil, false},
		{Majority(), []NodeID{"a", "b"}, abc, true},
		{Majority(), []NodeID{"a"}, abc, false},
		{Majority(), []NodeID{"a", "a", "x", "y"}, abc, false},
		{Majority(), []NodeID{"a", "b"}, []NodeID{"a", "b", "c", "d"}, false},
		{Majority(), nil, nil, false},
		{All("b", "c"), []NodeID{"b", "c"}, abc, true},
		{All("b", "d"), abc, abc, false},
		{Majority("b", "b", "b", "c", "d"), []NodeID{"b"}, abc, false},
		{Each(Majority(), All("c")), []NodeID{"a", "b"}, abc, false},
		{Each(Majority(), All("c")), []NodeID{"a", "c"}, abc, true},
		{Each(), abc, abc, false},
		{Quorum{}, abc, abc, false},
	}
	for _, c := range cases {
		if got := c.q.Satisfied("a", c.held, c.set); got != c.want {
			t.Errorf("%v with %v of %v: %v, want %v", c.q, c.held, c.set, got, c.want)
		}
	}
}

func TestQuorumString(t *testing.T) {
	if got := Each(Follower(), All(), Majority("a", "b")).String(); got != "[follower all majority(a b)]" {
		t.Error(got)
	}
}
