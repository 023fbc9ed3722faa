package api

import (
	"strings"
	"testing"

	"pvc.internal/cluster"
)

func faultyWorld(t *testing.T) *world {
	w := newWorld(t)
	w.store.faults = map[string]map[string]string{
		"disk": {"first_time": "2026-01-01 10:00:00", "last_time": "2026-01-02 10:00:00", "ack_time": "", "status": "new", "delta": "25", "message": "a disk is full"},
		"fan":  {"first_time": "2026-01-01 11:00:00", "last_time": "2026-01-01 12:00:00", "ack_time": "", "status": "new", "delta": "5", "message": "a fan stands"},
	}
	return w
}

const (
	diskJSON = `{"id":"disk","last_reported":"2026-01-02 10:00:00","first_reported":"2026-01-01 10:00:00","acknowledged_at":"","status":"new","health_delta":25,"message":"a disk is full"}`
	fanJSON  = `{"id":"fan","last_reported":"2026-01-01 12:00:00","first_reported":"2026-01-01 11:00:00","acknowledged_at":"","status":"new","health_delta":5,"message":"a fan stands"}`
)

func TestFaultsAreListed(t *testing.T) {
	w := faultyWorld(t)
	for path, want := range map[string]string{
		"/api/v1/faults":                         "[" + diskJSON + "," + fanJSON + "]",
		"/api/v1/faults?sort_key=first_reported": "[" + fanJSON + "," + diskJSON + "]",
		"/api/v1/faults?sort_key=health_delta":   "[" + fanJSON + "," + diskJSON + "]",
		"/api/v1/faults/fan":                     "[" + fanJSON + "]",
	} {
		status, body := w.get(path)
		w.expect(path, status, body, 200, want)
	}
	status, body := w.get("/api/v1/faults?sort_key=colour")
	w.expect("sort key", status, body, 400, `{"message":{"sort_key":"A valid sort key must be specified"}}`)
	status, body = w.get("/api/v1/faults/rust")
	w.expect("unknown", status, body, 404, `{"message":"No fault with ID rust found"}`)
	w.store.faults = nil
	status, body = w.get("/api/v1/faults")
	w.expect("none", status, body, 200, `[]`)
	w.store.faults = map[string]map[string]string{"odd": {"delta": "much", "message": "odd"}}
	if _, body := w.get("/api/v1/faults"); !strings.Contains(body, `counts as 0`) {
		t.Errorf("rubbish: %s", body)
	}
}

func TestFaultsAreAcknowledged(t *testing.T) {
	w := faultyWorld(t)
	status, body := w.do("PUT", "/api/v1/faults/disk", "", "")
	w.expect("one", status, body, 200, `{"message":"Successfully acknowledged fault(s) disk"}`)
	disk := w.store.faults["disk"]
	if disk["status"] != "ack" || disk["ack_time"] == "" || w.store.faults["fan"]["status"] != "new" {
		t.Errorf("%v", w.store.faults)
	}
	if e := w.store.history[0]; e.Kind != "fault" || e.Text != "fault disk was acknowledged: a disk is full" {
		t.Errorf("history: %+v", e)
	}
	status, body = w.do("PUT", "/api/v1/faults", "", "")
	w.expect("all", status, body, 200, `{"message":"Successfully acknowledged fault(s) disk, fan"}`)
	if w.store.commits != 2 || w.store.faults["fan"]["status"] != "ack" {
		t.Errorf("%d commits: %v", w.store.commits, w.store.faults)
	}
	status, body = w.do("PUT", "/api/v1/faults/rust", "", "")
	w.expect("unknown", status, body, 404, `{"message":"No fault with ID rust found"}`)
}

// What was done before a failure is told, and a lost reply is no refusal.
func TestFaultsAreChangedInPart(t *testing.T) {
	w := faultyWorld(t)
	w.store.outcomes = []cluster.Outcome{cluster.OutcomeOK, cluster.OutcomeNotSent}
	status, body := w.do("PUT", "/api/v1/faults", "", "")
	w.expect("in part", status, body, 503, `{"message":"Of 2 faults these were acknowledged: disk; at fault fan it failed: write: not connected to ZooKeeper. Ask again for the rest."}`)
	w = faultyWorld(t)
	w.store.outcomes, w.store.unknownApplied = []cluster.Outcome{cluster.OutcomeUnknown}, true
	status, body = w.do("DELETE", "/api/v1/faults/disk", "", "")
	w.expect("lost reply", status, body, 200, `{"message":"Successfully deleted fault(s) disk"}`)
	if len(w.store.history) != 1 || len(w.store.faults) != 1 {
		t.Errorf("%d events, %v", len(w.store.history), w.store.faults)
	}
}

func TestFaultsAreDeleted(t *testing.T) {
	w := faultyWorld(t)
	w.store.beforeCommit = func(*cluster.Snapshot) { w.store.faults["disk"]["details"] = "sda" } // another writer
	status, body := w.do("DELETE", "/api/v1/faults/disk", "", "")
	w.expect("one", status, body, 200, `{"message":"Successfully deleted fault(s) disk"}`)
	if len(w.store.faults) != 1 {
		t.Errorf("%v", w.store.faults)
	}
	status, body = w.do("DELETE", "/api/v1/faults", "", "")
	w.expect("all", status, body, 200, `{"message":"Successfully deleted fault(s) fan"}`)
	if status, body := w.do("DELETE", "/api/v1/faults/fan", "", ""); status != 404 {
		t.Errorf("%d %s", status, body)
	}
}
