package api

import (
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func (w *world) page(t *testing.T) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Host = "127.0.0.1:7370"
	answer := httptest.NewRecorder()
	w.server.Handler().ServeHTTP(answer, r)
	if answer.Code != 200 || !strings.HasPrefix(answer.Header().Get("Content-Type"), "text/html") {
		t.Fatalf("%d %s", answer.Code, answer.Header())
	}
	return answer
}

// The page comes with a policy under which nothing but its own script and style
// runs, and it refers to nothing that is elsewhere.
func TestPage(t *testing.T) {
	answer := newWorld(t).page(t)
	policy, text := answer.Header().Get("Content-Security-Policy"), answer.Body.String()
	for element, directive := range map[string]string{"script": "script-src", "style": "style-src"} {
		found := regexp.MustCompile(`(?s)<`+element+`>(.*?)</`+element+`>`).FindAllStringSubmatch(text, -1)
		if len(found) != 1 || strings.Count(text, "<"+element) != 1 {
			t.Fatalf("%d elements %s", len(found), element)
		}
		sum := sha256.Sum256([]byte(found[0][1]))
		if want := directive + " 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"; !strings.Contains(policy, want+";") {
			t.Errorf("the policy %q lacks %s", policy, want)
		}
	}
	for _, want := range []string{"default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"} {
		if !strings.Contains(policy, want) {
			t.Errorf("the policy %q lacks %s", policy, want)
		}
	}
	if strings.Contains(policy, "unsafe") {
		t.Error(policy)
	}
	for _, pattern := range []string{`(?i)https?://`, `(?i)\b(src|srcset|poster|action|formaction|data)\s*=\s*["'][^"']`, `(?i)@import|url\(`, `(?i)\shref="[^#]`, `(?i)\son[a-z]+\s*=\s*"`, `(?i)<(img|link|iframe|object|embed|base)\b`,
		`innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|importScripts|WebSocket|localStorage|document\.cookie`} {
		if found := regexp.MustCompile(pattern).FindString(text); found != "" {
			t.Errorf("the page has %q", found)
		}
	}
	for _, want := range []string{`lang="en"`, `name="viewport"`, `aria-live=`, `focus-visible`, `class="skip"`, `<label for="key">`, `<noscript>`, `@media (max-width`} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %s", want)
		}
	}
}

// What the page asks for and orders is there.
func TestPageAsksForWhatIsThere(t *testing.T) {
	w := newWorld(t)
	asked := regexp.MustCompile(`(?:ask\(|order\([^"]*"[^"]*", |api \+ )"(/[a-zA-Z/]+)(\?[a-z0-9=&]*)?"(, \{)?`).FindAllStringSubmatch(pageText, -1)
	if len(asked) < 9 {
		t.Fatalf("found only %d requests: %q", len(asked), asked)
	}
	for _, a := range asked {
		path := a[1] + a[2]
		if a[1] == "/watch" {
			path += "?wait=0"
		}
		if status, body := w.get(Prefix + path); status != 200 && status != 405 {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	for _, path := range []string{"/switch", "/maintenance"} {
		if !strings.Contains(pageText, `"`+path+`"`) {
			t.Errorf("the page does not order %s", path)
		}
	}
	w = newWorld(t, func(c *Config) { c.KeysFile = keysFile(t) })
	w.page(t) // which holds no secret
	w = newWorld(t, func(c *Config) { c.KeysFile, c.ProtectAll = keysFile(t), true })
	if status, _ := w.get("/"); status != 401 {
		t.Errorf("protect_all: %d", status)
	}
}

// The script is one, where there is something that can read it.
func TestPageScriptIsWellFormed(t *testing.T) {
	node, err := exec.LookPath("node")
	if err != nil {
		t.Skip("no node here to check the script with")
	}
	_, rest, _ := strings.Cut(pageText, "<script>")
	script, _, _ := strings.Cut(rest, "</script>")
	file := filepath.Join(t.TempDir(), "page.js")
	if err := os.WriteFile(file, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), node, "--check", file).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
