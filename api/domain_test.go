package api

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pvc.internal/cluster"
)

const domainPath = "/api/v1/node/hv2/domain-state"

// idle takes the workloads that a node publishes away.
func (w *world) idle(n cluster.NodeID) {
	w.store.mu.Lock()
	defer w.store.mu.Unlock()
	w.store.leaves[n]["runningdomains"] = ""
}

// A node never reads "flushed" while workloads run there that nobody has moved.
func TestFlushIsRefusedWhereWorkloadsRun(t *testing.T) {
	w := newWorld(t)
	status, body := w.post(domainPath, "state=flush&wait=true")
	w.expect("flush", status, body, 501, "{\"message\":\"Node \\\"hv2\\\" was not set to \\\"flush\\\": 1 workloads run there (vm-hv2), which this version does not manage: it can neither move them away nor say that they are gone. The node's domain state is still \\\"ready\\\". Move what runs there by the means that started it.\"}")
	if _, body := w.post("/api/v1/node/hv1/domain-state", "state=flush"); !strings.Contains(body, "`pvc node secondary hv1 --wait` moves") {
		t.Errorf("the primary: %s", body)
	}
	status, body = w.post(domainPath, "state=flushed")
	w.expect("bad state", status, body, 400, `{"message":{"state":"A valid state must be specified"}}`)
	status, body = w.post("/api/v1/node/nobody/domain-state", "state=ready")
	w.expect("unknown", status, body, 400, `{"message":"No node named \"nobody\" is present in the cluster."}`)
	w.idle("hv2")
	w.store.readError["hv2"] = cluster.ErrDeadline // it cannot be told
	w.beat("hv2")
	if status, body := w.post(domainPath, "state=flush"); status != 503 {
		t.Errorf("unreadable: %d %s", status, body)
	}
	w.node("hv2", func(n *cluster.NodeView) { n.Daemon = present(cluster.DaemonStop) })
	status, body = w.post(domainPath, "state=flush")
	w.expect("stopped", status, body, 400, `{"message":"Node \"hv2\" is not active: its daemon state is \"stop\". Nothing was changed."}`)
	if w.store.commits != 0 {
		t.Error("a refusal wrote something")
	}
}

func TestFlushAndReady(t *testing.T) {
	w := newWorld(t)
	w.idle("hv2")
	state := func() cluster.DomainState { return w.store.snap.Nodes["hv2"].Domain.Value }
	becomes := func(s cluster.DomainState) { w.node("hv2", func(n *cluster.NodeView) { n.Domain.Value = s }) }
	for _, c := range []struct {
		before cluster.DomainState
		form   string
		body   string
		after  cluster.DomainState
	}{
		{cluster.DomainReady, "state=flush", `{"message":"Removing node \"hv2\" from active service."}`, cluster.DomainFlush},
		{cluster.DomainFlush, "state=flush&wait=false", `{"message":"Node \"hv2\" is already being removed from active service."}`, cluster.DomainFlush},
		{cluster.DomainFlushed, "state=flush&wait=true", `{"message":"Node \"hv2\" is already flushed."}`, cluster.DomainFlushed},
		{cluster.DomainFlushed, "state=ready", `{"message":"Restoring node \"hv2\" to active service."}`, cluster.DomainUnflush},
		{cluster.DomainUnflush, "state=ready", `{"message":"Node \"hv2\" is already being restored to active service."}`, cluster.DomainUnflush},
		{cluster.DomainReady, "state=ready", `{"message":"Node \"hv2\" is already ready."}`, cluster.DomainReady},
	} {
		becomes(c.before)
		status, body := w.post(domainPath, c.form)
		w.expect(string(c.before)+" "+c.form, status, body, 200, c.body)
		if state() != c.after {
			t.Errorf("%s %s: %s", c.before, c.form, state())
		}
	}
	if e := w.store.history; len(e) != 2 || e[0].Kind != "domain_state" || e[0].Fields["to"] != "flush" {
		t.Errorf("history: %+v", e)
	}
	becomes(cluster.DomainFenceFlush)
	if status, body := w.post(domainPath, "state=ready"); status != 400 || state() != cluster.DomainFenceFlush {
		t.Errorf("fence-flush: %d %s", status, body)
	}
}

// wait=true answers when the node has, and says so when it has not.
func TestFlushWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.idle("hv2")
		go func() {
			time.Sleep(2 * time.Second)
			w.node("hv2", func(n *cluster.NodeView) { n.Domain.Value = cluster.DomainFlushed })
		}()
		began := time.Now()
		status, body := w.post(domainPath, "state=flush&wait=true")
		w.expect("waited", status, body, 200, `{"message":"Removed node \"hv2\" from active service."}`)
		if took := time.Since(began); took != 2*time.Second {
			t.Errorf("answered after %s", took)
		}
		status, body = w.post(domainPath, "state=ready&wait=1")
		if status != 504 || !strings.Contains(body, "has not done so within 1s") || w.store.snap.Nodes["hv2"].Domain.Value != cluster.DomainUnflush {
			t.Errorf("unanswered: %d %s", status, body)
		}
	})
}

// A lost reply is settled, whether the write had happened or not.
func TestFlushSettlesALostReply(t *testing.T) {
	for _, applied := range []bool{true, false} {
		w := newWorld(t)
		w.idle("hv2")
		w.store.outcomes, w.store.unknownApplied = []cluster.Outcome{cluster.OutcomeUnknown}, applied
		status, body := w.post(domainPath, "state=flush")
		w.expect("lost", status, body, 200, `{"message":"Removing node \"hv2\" from active service."}`)
		if d := w.store.snap.Nodes["hv2"].Domain; d.Value != cluster.DomainFlush || d.Version != 1 {
			t.Errorf("applied %t: %+v", applied, d)
		}
	}
	w := newWorld(t)
	w.idle("hv2")
	w.store.outcomes = slices.Repeat([]cluster.Outcome{cluster.OutcomeUnknown}, 2*askAttempts)
	if status, body := w.post(domainPath, "state=flush"); status != 504 || !strings.Contains(body, "reply was lost") {
		t.Errorf("%d %s", status, body)
	}
}
