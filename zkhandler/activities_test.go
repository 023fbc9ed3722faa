package zkhandler_test

import (
	"strings"
	"testing"

	"github.com/go-zookeeper/zk"

	"pvc.internal/cluster"
)

// The records of activities come back as they were written; one that nobody can
// judge is named, and hides no other.
func activitiesAreRead(t *testing.T, e *env) {
	h, c := e.live(t, "a", nil), e.bare(t)
	if list, err := h.ReadActivities(soon(t)); err != nil || len(list) != 0 {
		t.Fatalf("%+v, %v", list, err)
	}
	key := func(id string) cluster.Key { return cluster.Key{Kind: cluster.KeyActivity, Name: id} }
	r := cluster.ActivityRecord{Epoch: 4, Incarnation: "b.1", Stop: &cluster.ActivityStop{ID: "o", By: "ada"},
		Activity: cluster.Activity{ID: "drain-a", Name: "drain", Node: "hv1", Quorum: "majority", State: cluster.ActivityRunning}}
	commit := func(want cluster.Outcome, ops ...cluster.Op) {
		t.Helper()
		wantOutcome(t, h.Commit(soon(t), cluster.Txn{Purpose: "activities", Ops: ops}), want)
	}
	commit(cluster.OutcomeOK, cluster.Create(key("drain-a"), r))
	commit(cluster.OutcomeConflict, cluster.Create(key("drain-a"), r))
	commit(cluster.OutcomeRefused, cluster.Create(key("drain-b"), "text"))
	for name, rubbish := range map[string]string{"e1": "", "e2": "[]", "e3": `{"v":1,"id":"e3","node":"hv1"}`, "e4": `{"v":1,"id":"other","node":"hv1","incarnation":"b.1"}`,
		"e5": `{"v":1,"id":"e5","node":"hv1","incarnation":"b.1","epoch":18446744073709551615}`} {
		_, err := c.Create(e.root+"/agent/activities/"+name, []byte(rubbish), 0, zk.WorldACL(zk.PermAll))
		must(t, err)
	}
	list, err := h.ReadActivities(soon(t))
	if err != nil || len(list) != 6 {
		t.Fatalf("%+v, %v", list, err)
	}
	got := list[0]
	if v := got.Value; got.Err != nil || v.Version != 1 || v.ID != "drain-a" || v.Epoch != 4 || v.Stop == nil || v.Stop.By != "ada" || got.Mzxid == 0 || got.SeenAt == 0 {
		t.Errorf("%+v", got)
	}
	for _, bad := range list[1:] {
		if !bad.Present || bad.Err == nil || !strings.HasPrefix(string(bad.Value.ID), "e") || bad.Value.Node != "" {
			t.Errorf("%+v", bad)
		}
	}
	r.Stop = nil
	commit(cluster.OutcomeOK, cluster.Set(key("drain-a"), got.Version, r))
	one, err := h.ReadActivity(soon(t), "drain-a")
	if err != nil || !one.Present || one.Version != got.Version+1 || one.Value.Stop != nil {
		t.Errorf("%+v, %v", one, err)
	}
	commit(cluster.OutcomeOK, cluster.Delete(key("drain-a"), one.Version))
	if one, err = h.ReadActivity(soon(t), "drain-a"); err != nil || one.Present {
		t.Errorf("%+v, %v", one, err)
	}
	if _, err = h.ReadActivity(soon(t), "a/b"); err == nil {
		t.Error("a name that is none was read")
	}
}
