package api

import (
	"encoding/base64"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"pvc.internal/cluster"
)

// sealedWord is something sealed, as far as anybody without a key can see, and
// as a form.
func sealedWord(word string) (sealed, form string) {
	sealed = base64.StdEncoding.EncodeToString([]byte("age-encryption.org/v1\n" + word))
	return sealed, url.Values{"sealed": {sealed}}.Encode()
}

func TestSecrets(t *testing.T) {
	w := newWorld(t)
	status, body := w.get("/api/v1/secrets")
	w.expect("none yet", status, body, 200, `[]`)
	sealed, form := sealedWord("first")
	status, body = w.post("/api/v1/secret/bmc", form)
	w.expect("set", status, body, 200, `{"message":"The secret bmc was set."}`)
	if kept := w.store.secrets["bmc"].Value; kept.Sealed != sealed || kept.By != "anyone" || kept.Version != 1 {
		t.Errorf("kept: %+v", kept)
	}
	if e := w.store.history[0]; e.Kind != "secret" || e.Fields["secret"] != "bmc" || strings.Contains(e.Text, sealed) {
		t.Errorf("history: %+v", e)
	}
	if status, body = w.post("/api/v1/secret/bmc", form); status != 200 || w.store.commits != 1 {
		t.Errorf("the same again: %d %s after %d commits", status, body, w.store.commits)
	}
	again, form := sealedWord("second")
	if status, body = w.post("/api/v1/secret/bmc", form); status != 200 || w.store.secrets["bmc"].Value.Sealed != again {
		t.Errorf("another: %d %s", status, body)
	}
	_, body = w.get("/api/v1/secrets")
	if all := decode[[]SecretView](t, body); len(all) != 1 || all[0].Name != "bmc" || all[0].By != "anyone" || all[0].Trouble != "" || strings.Contains(body, again) {
		t.Errorf("list: %s", body)
	}
	status, body = w.do("DELETE", "/api/v1/secret/bmc", "", "")
	w.expect("remove", status, body, 200, `{"message":"The secret bmc was removed."}`)
	if len(w.store.secrets) != 0 {
		t.Errorf("still there: %+v", w.store.secrets)
	}
	status, body = w.do("DELETE", "/api/v1/secret/bmc", "", "")
	w.expect("remove again", status, body, 404, `{"message":"There is no secret bmc; nothing was changed. `+"`pvc fence secret list`"+` lists them."}`)
}

// What is refused changes nothing, and a password that was sent by mistake is
// not repeated.
func TestSecretsThatAreRefused(t *testing.T) {
	w := newWorld(t)
	core, logs := observer.New(zap.InfoLevel)
	w.server.auditLog = zap.New(core)
	_, form := sealedWord("word")
	for _, c := range []struct{ path, form, want string }{
		{"bmc", "sealed=hunter2", "not a sealed password"},
		{"bmc", "", "must be given"},
		{"-bmc", form, "does not name a secret"},
		{strings.Repeat("b", 65), form, "does not name a secret"},
	} {
		status, body := w.post("/api/v1/secret/"+c.path, c.form)
		if status != 400 || !strings.Contains(body, c.want) || strings.Contains(body, "hunter2") {
			t.Errorf("%s %s: %d %s", c.path, c.form, status, body)
		}
	}
	if w.store.commits != 0 {
		t.Errorf("%d commits", w.store.commits)
	}
	if told := fmt.Sprint(logs.All()); logs.Len() == 0 || strings.Contains(told, "hunter2") || !strings.Contains(told, "[secret]") {
		t.Errorf("the audit: %s", told)
	}
}

// A reply that was lost is settled by looking.
func TestASecretWhoseReplyWasLost(t *testing.T) {
	for _, applied := range []bool{true, false} {
		w := newWorld(t)
		sealed, form := sealedWord("word")
		w.store.outcomes, w.store.unknownApplied = []cluster.Outcome{cluster.OutcomeUnknown}, applied
		status, body := w.post("/api/v1/secret/bmc", form)
		w.expect("set", status, body, 200, `{"message":"The secret bmc was set."}`)
		if w.store.secrets["bmc"].Value.Sealed != sealed {
			t.Errorf("applied %v: not kept", applied)
		}
	}
}
