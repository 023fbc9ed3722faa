package doctor

import (
	"errors"
	"testing"

	"pvc.internal/cluster"
)

// counted are the records of coordinators a to d, which live, and of what else a
// test makes of them.
func counted(set []cluster.NodeID, change func(s *cluster.Snapshot)) Records {
	s := &cluster.Snapshot{Nodes: map[cluster.NodeID]cluster.NodeView{}}
	for _, n := range []cluster.NodeID{"a", "b", "c", "d"} {
		s.Nodes[n] = cluster.NodeView{
			Name: n, Mode: present(cluster.Coordinator), Daemon: present(cluster.DaemonRun), Alive: present(cluster.Alive{}),
			Record: present(cluster.NodeRecord{ID: "id-" + string(n)}),
		}
	}
	s.Quorum = present(cluster.QuorumSet{Nodes: set, IDs: map[cluster.NodeID]string{"a": "id-a"}})
	if change != nil {
		change(s)
	}
	return Records{Snapshot: s}
}

func present[T any](v T) cluster.Versioned[T] { return cluster.Versioned[T]{Present: true, Value: v} }

func TestMembers(t *testing.T) {
	all := []cluster.NodeID{"a", "b", "c", "d"}
	edit := func(n cluster.NodeID, change func(*cluster.NodeView)) func(*cluster.Snapshot) {
		return func(s *cluster.Snapshot) { v := s.Nodes[n]; change(&v); s.Nodes[n] = v }
	}
	for name, c := range map[string]struct {
		set     []cluster.NodeID
		change  func(*cluster.Snapshot)
		verdict Verdict // of the one finding; empty: none at all
		subject string
		words   []string
	}{
		"all count":                     {all, nil, OK, "quorum set", []string{"4 coordinators", "a, b, c, d"}},
		"one lives and does not count":  {all[:3], nil, Warning, "d", []string{"lives and counts for no majority", "a, b, c", "pvc node add d --coordinator"}},
		"one that is down says nothing": {all[:3], edit("d", func(v *cluster.NodeView) { v.Daemon.Value = cluster.DaemonStop }), OK, "quorum set", []string{"3"}},
		"one that has lost its session": {all[:3], edit("d", func(v *cluster.NodeView) { v.Alive.Present = false }), OK, "quorum set", nil},
		"a hypervisor":                  {all[:3], edit("d", func(v *cluster.NodeView) { v.Mode.Value = cluster.Hypervisor }), OK, "quorum set", nil},
		"a stranger by a counted name":  {all, edit("a", func(v *cluster.NodeView) { v.Record.Value.ID = "new" }), Warning, "a", []string{"another host", "new", "id-a"}},
		"a counted one is not there":    {append(all, "gone"), nil, Problem, "gone", []string{"not registered", "pvc node remove gone"}},
		"two": {all[:2], func(s *cluster.Snapshot) { delete(s.Nodes, "c"); delete(s.Nodes, "d") }, Warning, "quorum set",
			[]string{"two coordinators", "have three"}},
		"one alone":         {all[:1], func(s *cluster.Snapshot) { delete(s.Nodes, "b"); delete(s.Nodes, "c"); delete(s.Nodes, "d") }, OK, "quorum set", nil},
		"no record":         {all, func(s *cluster.Snapshot) { s.Quorum = cluster.Versioned[cluster.QuorumSet]{} }, "", "", nil},
		"unreadable":        {all, func(s *cluster.Snapshot) { s.Quorum.Err = errors.New("rubbish") }, Problem, "quorum set", []string{"rubbish"}},
		"unreadable leaves": {all, func(s *cluster.Snapshot) { s.Members.Present, s.Members.Err = true, errors.New("rubbish") }, Problem, "members", []string{"rubbish", "/agent/members"}},
	} {
		t.Run(name, func(t *testing.T) {
			found := Members(counted(c.set, c.change))
			if c.verdict == "" {
				if len(found) > 0 {
					t.Error(said(found))
				}
				return
			}
			if len(found) != 1 {
				t.Errorf("%d findings:\n%s", len(found), said(found))
			}
			expect(t, found, c.verdict, CheckCluster, c.subject, c.words...)
		})
	}
}
