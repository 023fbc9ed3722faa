package zkhandler_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"

	"pvc.internal/cluster"
	"pvc.internal/zkhandler"
)

// Who counts, who was removed and what is ordered of that reaches everybody; all
// that is kept of a node goes in one write, and nothing is made of a node that
// was removed. A tree from before there was such a record gets it with the next
// node that registers.
func membersComeAndGo(t *testing.T, e *env) {
	h, c := e.live(t, "a", func(c *zkhandler.Config) { c.Resync = time.Hour }), e.bare(t)
	must(t, c.Delete(e.root+"/agent/members", -1))
	must(t, h.EnsureNode(soon(t), "hv1", cluster.Coordinator))
	must(t, h.EnsureNode(soon(t), "hv2", cluster.Coordinator))
	snapshots, cancel := h.Subscribe()
	defer cancel()
	until := func(what string, ok func(*cluster.Snapshot) bool) *cluster.Snapshot {
		t.Helper()
		var last *cluster.Snapshot
		limit := time.After(5 * time.Second)
		for {
			select {
			case last = <-snapshots:
				if ok(last) {
					return last
				}
			case <-limit:
				t.Fatalf("%s: %+v", what, last)
			}
		}
	}
	commit := func(want cluster.Outcome, ops ...cluster.Op) {
		t.Helper()
		wantOutcome(t, h.Commit(soon(t), cluster.Txn{Purpose: "members", Ops: ops}), want)
	}
	seen := until("the emptied record is not seen", func(s *cluster.Snapshot) bool { return s.Members.Mzxid != 0 && s.Nodes["hv2"].Record.SeenAt > 0 })
	if seen.Members.Present || seen.Quorum.Present || seen.MemberOrder.Present || seen.Quorum.SeenAt.IsZero() {
		t.Errorf("%+v, %+v, %+v", seen.Members, seen.Quorum, seen.MemberOrder)
	}
	quorum, order := cluster.Key{Kind: cluster.KeyQuorumSet}, cluster.Key{Kind: cluster.KeyMemberOrder}
	commit(cluster.OutcomeRefused, cluster.Create(quorum, cluster.QuorumSet{})) // never empty
	set := cluster.QuorumSet{Nodes: []cluster.NodeID{"hv1", "hv2"}, IDs: map[cluster.NodeID]string{"hv1": "x"}, Epoch: 3, N: 1}
	commit(cluster.OutcomeOK, cluster.Create(quorum, set), cluster.Create(order, cluster.MemberOrder{ID: "o", Action: cluster.MemberRemove, Node: "hv1"}))
	seen = until("the set is not seen", func(s *cluster.Snapshot) bool { return s.Quorum.Present && s.MemberOrder.Present })
	if q := seen.Quorum.Value; seen.Quorum.Err != nil || q.Version != 1 || !slices.Equal(q.Nodes, set.Nodes) || q.IDs["hv1"] != "x" || q.Epoch != 3 {
		t.Errorf("%+v", seen.Quorum)
	}

	commit(cluster.OutcomeOK, cluster.Create(cluster.Key{Kind: cluster.KeyNodeRecord, Node: "hv1"}, cluster.NodeRecord{ID: "x"}),
		cluster.Create(cluster.Key{Kind: cluster.KeyFenceOrder, Node: "hv1"}, nil))
	for _, p := range []string{"/nodes/hv1/monitoring_data/disk", "/nodes/hv1/monitoring_data/disk/last_run", "/agent/views/hv1", "/nodes/hv1/unknown leaf"} {
		_, err := c.Create(e.root+p, []byte("{}"), 0, zk.WorldACL(zk.PermAll))
		must(t, err)
	}
	leaves, err := h.NodeRecords(soon(t), "hv1")
	must(t, err)
	ops := []cluster.Op{cluster.EndMemberOrder(seen.MemberOrder), cluster.Put(cluster.Key{Kind: cluster.KeyMembers}, seen.Members, cluster.Members{}.Removing(cluster.RemovedNode{Node: "hv1", Host: "x"}, 3)),
		cluster.Create(cluster.Key{Kind: cluster.KeyAlive, Node: "hv1"}, cluster.Alive{}), cluster.Delete(cluster.Key{Kind: cluster.KeyAlive, Node: "hv1"}, 0)}
	for _, leaf := range leaves {
		ops = append(ops, cluster.Delete(leaf.Key, leaf.Version))
	}
	commit(cluster.OutcomeOK, cluster.Set(cluster.Key{Kind: cluster.KeyKeepalive, Node: "hv1"}, cluster.AnyVersion, int64(5)))
	commit(cluster.OutcomeConflict, ops...) // it has moved
	for i := range ops {
		if ops[i].Key.Kind == cluster.KeyKeepalive {
			ops[i].Version++
		}
	}
	commit(cluster.OutcomeOK, ops...)
	until("it is still seen", func(s *cluster.Snapshot) bool {
		_, there := s.Nodes["hv1"]
		_, out := s.Members.Value.Out("hv1", "")
		return !there && out && !s.MemberOrder.Present && s.MemberOrder.Version == 1
	})
	for _, p := range []string{"/nodes/hv1", "/agent/nodes/hv1", "/agent/views/hv1", "/agent/alive/hv1", "/logs/hv1"} {
		if there, _, err := c.Exists(e.root + p); there || err != nil {
			t.Errorf("%s is left: %v, %v", p, there, err)
		}
	}
	if leaves, err := h.NodeRecords(soon(t), "hv1"); len(leaves) != 0 || err != nil {
		t.Errorf("of a node that is no more: %v, %v", leaves, err)
	}
	wantErr(t, h.EnsureNode(soon(t), "hv1", cluster.Coordinator), cluster.ErrRemoved)
	must(t, h.EnsureNode(soon(t), "hv2", cluster.Coordinator))
	must(t, h.EnsureNode(soon(t), "hv3", cluster.Coordinator))

	for path, rubbish := range map[string]string{
		"/agent/quorum": `{"v":1,"nodes":["hv1","hv1"]}`, "/agent/members": `{"v":1,"removed":[{"node":"a/b"}]}`, "/agent/member-order": `{"v":1,"id":"o"}`,
	} {
		_, err := c.Set(e.root+path, []byte(rubbish), -1)
		must(t, err)
	}
	bad := until("rubbish is not seen", func(s *cluster.Snapshot) bool {
		return s.Quorum.Err != nil && s.Members.Err != nil && s.MemberOrder.Err != nil
	})
	if !strings.Contains(bad.Quorum.Err.Error(), "twice") || len(bad.Quorum.Value.Nodes)+len(bad.Members.Value.Removed) != 0 {
		t.Errorf("%v, %+v", bad.Quorum.Err, bad.Members.Value)
	}
	if err := h.EnsureNode(soon(t), "hv4", cluster.Coordinator); err == nil || errors.Is(err, cluster.ErrRemoved) || !strings.Contains(err.Error(), "cannot be read") {
		t.Errorf("while nobody can tell who was removed: %v", err)
	}
}
