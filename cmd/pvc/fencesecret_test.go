package main

import (
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"pvc.internal/api"
	"pvc.internal/fencing"
)

// What leaves for the server is sealed, and opened by the key alone.
func TestASecretLeavesSealed(t *testing.T) {
	const password = "not-for-anybody"
	key := filepath.Join(t.TempDir(), "fence.key")
	if got := local(t, "", "fence", "key", "--out", key); got.code != exitOK {
		t.Fatalf("%+v", got)
	}
	s := newServer(t, map[string]any{"POST /secret/bmc": api.Message{Message: "The secret bmc was set."}})
	got := pvc(t, s, password+"\n", "fence", "secret", "set", "bmc", "--key", key)
	form, err := url.ParseQuery(strings.TrimPrefix(s.lastAsked(), "POST /secret/bmc "))
	if err != nil || got.code != exitOK || !strings.Contains(got.out, "bmc was set") {
		t.Fatalf("%v %+v", err, got)
	}
	opened, err := fencing.Open(key, form.Get("sealed"))
	if err != nil || opened.Reveal() != password || strings.Contains(s.lastAsked()+got.out+got.err, password) {
		t.Errorf("%v: asked %q, said %+v", err, s.lastAsked(), got)
	}
	for _, c := range []struct{ stdin, line, want string }{
		{password, "fence secret set", "needs a secret's name"},
		{password, "fence secret set a/b --key " + key, "does not name a secret"},
		{"", "fence secret set bmc --key " + key, "no password"},
		{"x", "fence secret set bmc " + password, "takes the secret's name only"},
		{"x", "fence secret set bmc --to age1 --key " + key, "not both"},
	} {
		s := newServer(t, nil)
		got := pvc(t, s, c.stdin, strings.Fields(c.line)...)
		if got.code != exitUsage || !strings.Contains(got.err, c.want) || strings.Contains(got.err, password) || s.lastAsked() != "" {
			t.Errorf("%q: %+v, asked %q", c.line, got, s.lastAsked())
		}
	}
}
