package api

import (
	"errors"
	"strings"
	"testing"

	"pvc.internal/cluster"
)

const failoverPath = "/api/v1/settings/autoFailover"

func TestAutoFailoverSettings(t *testing.T) {
	w := newWorld(t)
	status, body := w.get(failoverPath)
	w.expect("defaults", status, body, 200, `{"enabled":true,"timeout":5,"maxCount":1,"count":0}`)
	status, body = w.do("POST", failoverPath, "application/json", `{"enabled":true,"timeout":30,"maxCount":3}`)
	w.expect("change", status, body, 200, `{"message":"Automatic failover is enabled: a dead node is fenced after 30 s of silence; 0 of 3 failovers are spent.","already":false,"settings":{"enabled":true,"timeout":30,"maxCount":3,"count":0}}`)
	if f := w.store.snap.Failover.Value; f != (cluster.FailoverSettings{Version: 1, Enabled: true, Timeout: 30, MaxCount: 3}) {
		t.Errorf("written: %+v", f)
	}
	if e := w.store.history[0]; e.Kind != "settings" || e.Fields["timeout"] != "0 → 30" || e.Fields["maxCount"] != "1 → 3" || e.Fields["enabled"] != "" || e.Fields["by"] != "anyone" {
		t.Errorf("history: %+v", e)
	}
	_, body = w.post(failoverPath, "maxCount=3")
	if a := decode[SettingsAnswer](t, body); !a.Already || a.Settings.Timeout != 30 || w.store.commits != 1 {
		t.Errorf("the same again: %s after %d commits", body, w.store.commits)
	}
	_, body = w.post(failoverPath, "enabled=false")
	if a := decode[SettingsAnswer](t, body); a.Settings != (AutoFailover{false, 30, 3, 0}) || !strings.Contains(a.Message, "is disabled: no node is fenced") {
		t.Errorf("disabled: %s", body)
	}
	_, body = w.post(failoverPath, "enabled=true&timeout=2")
	if a := decode[SettingsAnswer](t, body); a.Settings.Timeout != 5 || !strings.Contains(a.Message, "The timeout of 2 s has no effect: a node counts as dead after 5s") {
		t.Errorf("too short: %s", body)
	}
}

// Wrong values are answered by name and change nothing, nor does a check.
func TestAutoFailoverSettingsAreChecked(t *testing.T) {
	w := newWorld(t)
	for form, want := range map[string]string{
		"":                             `{"errors":{"enabled":"One of \"enabled\", \"timeout\" and \"maxCount\" must be supplied"}}`,
		"just_validate=1":              `{"errors":{"enabled":"One of \"enabled\", \"timeout\" and \"maxCount\" must be supplied"}}`,
		"enabled=perhaps":              `{"errors":{"enabled":"The value of \"enabled\" must be true or false"}}`,
		"timeout=0":                    `{"errors":{"timeout":"The value of \"timeout\" must be a positive integer in a range from 1 to 3600"}}`,
		"timeout=3601&maxCount=101":    `{"errors":{"maxCount":"The value of \"maxCount\" must be a positive integer in a range from 1 to 100","timeout":"The value of \"timeout\" must be a positive integer in a range from 1 to 3600"}}`,
		"maxCount=1.5&just_validate=1": `{"errors":{"maxCount":"The value of \"maxCount\" must be a positive integer in a range from 1 to 100"}}`,
		"max_count=1":                  `{"errors":{"max_count":"There is no such argument here; known: enabled, timeout, maxCount, just_validate."}}`,
	} {
		status, body := w.post(failoverPath, form)
		w.expect(form, status, body, 400, want)
	}
	status, body := w.post(failoverPath, "enabled=false&timeout=3600&maxCount=100&just_validate=1")
	w.expect("valid", status, body, 200, `{"errors":null}`)
	status, body = w.post(failoverPath+"/resetCount", "just_validate=1")
	w.expect("reset checked", status, body, 200, `{"errors":null}`)
	if w.store.commits != 0 {
		t.Errorf("a check or a refusal wrote %d times", w.store.commits)
	}
}

// A failover that is counted while the settings change stays counted.
func TestSettingsKeepACountThatMoves(t *testing.T) {
	w := newWorld(t)
	spend := func(s *cluster.Snapshot) {
		f := cluster.FailoverSettings{Version: 1, Enabled: true, MaxCount: 1, Count: 1}
		s.Failover = cluster.Versioned[cluster.FailoverSettings]{Present: true, Value: f, Version: s.Failover.Version + 1}
	}
	w.edit(func(s *cluster.Snapshot) { s.Failover = present(cluster.DefaultFailoverSettings()) })
	w.store.beforeCommit = spend
	if status, body := w.post(failoverPath, "maxCount=2"); status != 200 || decode[SettingsAnswer](t, body).Settings.Count != 1 {
		t.Errorf("%d %s", status, body)
	}
	_, body := w.post(failoverPath+"/resetCount", "")
	if a := decode[SettingsAnswer](t, body); a.Settings.Count != 0 || a.Settings.MaxCount != 2 || a.Already {
		t.Errorf("reset: %s", body)
	}
	if f := w.store.snap.Failover.Value; f.Count != 0 || f.MaxCount != 2 {
		t.Errorf("written: %+v", f)
	}
}

// A lost reply is settled: the reset happens once, whatever became of it.
func TestResetCountAfterALostReply(t *testing.T) {
	for _, applied := range []bool{true, false} {
		w := newWorld(t)
		w.edit(func(s *cluster.Snapshot) {
			s.Failover = present(cluster.FailoverSettings{Version: 1, Enabled: true, MaxCount: 1, Count: 1})
		})
		w.store.outcomes, w.store.unknownApplied = []cluster.Outcome{cluster.OutcomeUnknown}, applied
		status, body := w.post(failoverPath+"/resetCount", "")
		if a := decode[SettingsAnswer](t, body); status != 200 || a.Already || a.Settings.Count != 0 || len(w.store.history) != 1 {
			t.Errorf("applied %t: %d %s, %d events", applied, status, body, len(w.store.history))
		}
	}
}

// A record that cannot be read is told, and can be written anew.
func TestUnreadableSettings(t *testing.T) {
	w := newWorld(t)
	w.edit(func(s *cluster.Snapshot) {
		s.Failover = cluster.Versioned[cluster.FailoverSettings]{Present: true, Version: 4, Err: errors.New(`"x" is not a JSON object`)}
	})
	if status, body := w.get(failoverPath); status != 500 || !strings.Contains(body, "nodes go by the defaults") {
		t.Errorf("%d %s", status, body)
	}
	if status, body := w.post(failoverPath, "enabled=true"); status != 200 || w.store.commits != 1 {
		t.Errorf("%d %s", status, body)
	}
}

func TestClientReadsSettingsErrors(t *testing.T) {
	w := newWorld(t, onAnyPort)
	address, stop := w.serve()
	client, _ := NewClient(ClientConfig{URL: address})
	_, err := client.SetAutoFailover(t.Context(), "", "never", "0", false)
	expectClass(t, err, cluster.ErrRefused, `maxCount: The value of "maxCount" must be a positive integer in a range from 1 to 100; timeout: The value of "timeout"`)
	if a, err := client.ResetFailoverCount(t.Context()); err != nil || !a.Already {
		t.Errorf("%+v %v", a, err)
	}
	_, err = client.SetDomainState(t.Context(), "hv2", "flush")
	expectClass(t, err, cluster.ErrRefused, "this version does not manage")
	_ = stop()
}
