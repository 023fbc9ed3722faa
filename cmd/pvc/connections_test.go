package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pvc.internal/api"
)

// typist runs pvc as somebody with an own connections file and no other settings.
func typist(t *testing.T) (file string, run_ func(stdin string, words ...string) outcome) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "pvc", "connections.yaml")
	t.Setenv("PVC_CONNECTIONS", file)
	for _, name := range []string{"PVC_API", "PVC_CONNECTION", "PVC_API_KEY"} {
		t.Setenv(name, "")
		os.Unsetenv(name)
	}
	return file, func(stdin string, words ...string) outcome {
		var out, errs bytes.Buffer
		code := run(t.Context(), append([]string{"pvc"}, words...), strings.NewReader(stdin), &out, &errs)
		return outcome{code, out.String(), errs.String()}
	}
}

// keyed is a server that lists one node, named as the key that it was sent.
func keyed(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewEncoder(w).Encode([]api.Node{{Name: "key:" + r.Header.Get("X-Api-Key")}})
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// A name stands for servers and a key; the first one is used where none is named,
// and what is given on the line is used before what is set around it.
func TestConnections(t *testing.T) {
	file, do := typist(t)
	one, two := keyed(t), keyed(t)
	keyFile := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(keyFile, []byte("from-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	if got := do("sesame\n", "connection", "add", "prod", gone.URL, one, "--store-key"); got.code != exitOK {
		t.Fatalf("%+v", got)
	}
	if got := do("", "connection", "add", "test", two, "--key-file", keyFile); got.code != exitOK {
		t.Fatalf("%+v", got)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	uses := func(want string, words ...string) {
		t.Helper()
		if got := do("", append(words, "node", "list")...); !strings.Contains(got.out, want) {
			t.Errorf("%q: %+v, want %q", words, got, want)
		}
	}
	uses("key:sesame")
	uses("key:from-file", "--connection", "test")
	uses("key:sesame", "--connection=prod")
	uses("key: ", "--api", two) // a stored key is never sent to another server
	t.Setenv("PVC_CONNECTION", "test")
	uses("key:from-file")
	uses("key:sesame", "--connection", "prod")
	uses("key: ", "--api", two)
	t.Setenv("PVC_API", two)
	uses("key:sesame", "--connection", "prod")
	if got := do("", "node", "list"); got.code != exitUsage || !strings.Contains(got.err, "give one of them") {
		t.Errorf("both set: %+v", got)
	}
	os.Unsetenv("PVC_CONNECTION")
	t.Setenv("PVC_API_KEY", "around")
	uses("key:around")
	uses("key:sesame", "--connection", "prod") // and not the one that is set for another
	os.Unsetenv("PVC_API")
	if got := do("", "connection", "use", "test"); got.code != exitOK {
		t.Errorf("%+v", got)
	}
	uses("key:from-file")
	if got := do("", "--connection", "tset", "node", "list"); got.code != exitUsage || !strings.Contains(got.err, "prod, test") {
		t.Errorf("%+v", got)
	}
}

func TestConnectionsAreShownWithoutKeys(t *testing.T) {
	file, do := typist(t)
	if got := do("", "connection", "list"); got.code != exitOK || !strings.Contains(got.out, "no connections") {
		t.Errorf("%+v", got)
	}
	do("sesame\n", "connection", "add", "prod", "http://hv1:7370", "http://hv2:7370", "--store-key")
	for _, words := range []string{"connection list", "connection show prod", "connection list -o json", "connection show prod -o yaml", "connection use prod -o json"} {
		got := do("", strings.Fields(words)...)
		if got.code != exitOK || strings.Contains(got.out+got.err, "sesame") || !strings.Contains(got.out, "http://hv2:7370") {
			t.Errorf("%s: %+v", words, got)
		}
	}
	for words, want := range map[string]struct {
		code int
		text string
	}{
		"connection add prod http://hv1:7370":                               {exitRefused, "--force replaces it"},
		"connection add other hv1":                                          {exitUsage, "write it like"},
		"connection add other":                                              {exitUsage, "needs a NAME and the URL"},
		"connection add ../x http://hv1:7370":                               {exitUsage, "no name for a connection"},
		"connection add x http://hv1:7370 --ca /none":                       {exitUsage, "/none"},
		"connection add x http://hv1:7370 --store-key --key-file /dev/null": {exitUsage, "not both"},
		"connection show none":                                              {exitRefused, "known: prod"},
		"connection use none":                                               {exitRefused, "known: prod"},
		"connection remove none":                                            {exitRefused, "known: prod"},
		"connection remove prod":                                            {exitUsage, "not confirmed"},
		"connection remove prod other":                                      {exitUsage, `"other"`},
	} {
		if got := do("", strings.Fields(words)...); got.code != want.code || !strings.Contains(got.err, want.text) {
			t.Errorf("%s: %+v", words, got)
		}
	}
	if got := do("prod\n", "connection", "remove", "prod"); got.code != exitOK {
		t.Errorf("%+v", got)
	}
	if raw, err := os.ReadFile(file); err != nil || strings.Contains(string(raw), "sesame") {
		t.Errorf("%s, %v", raw, err)
	}
}

// A file that others can read or write is refused, before any server is asked.
func TestConnectionsFileMustBePrivate(t *testing.T) {
	file, do := typist(t)
	s := keyed(t)
	do("", "connection", "add", "prod", s)
	for _, mode := range []os.FileMode{0o644, 0o640, 0o606, 0o660} {
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
		for _, words := range []string{"node list", "connection list", "connection add x " + s, "connection use prod"} {
			if got := do("", strings.Fields(words)...); got.code != exitRefused || !strings.Contains(got.err, "chmod 600 "+file) {
				t.Errorf("%04o: %s: %+v", mode, words, got)
			}
		}
		if got := do("", "--api", s, "node", "list"); got.code != exitOK {
			t.Errorf("%04o: what needs no connection: %+v", mode, got)
		}
	}
	for text, want := range map[string]string{"v: 2\n": "version 2", "v: 1\nconections: {}\n": "conections", "v: [\n": "yaml"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, 0o600); err != nil {
			t.Fatal(err)
		}
		if got := do("", "node", "list"); got.code != exitFailed || !strings.Contains(got.err, want) || !strings.Contains(got.err, file) {
			t.Errorf("%q: %+v", text, got)
		}
	}
}
