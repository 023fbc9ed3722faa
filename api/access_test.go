package api

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"pvc.internal/cluster"
)

// writeKeys replaces a keys file: each name is its own role, and its key is
// "key of NAME".
func writeKeys(t *testing.T, path string, names ...string) {
	t.Helper()
	text := ""
	for _, name := range names {
		text += fmt.Sprintf("%s:%s:%x\n", name, name, sha256.Sum256([]byte("key of "+name)))
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// reload gives the server its configuration once more, changed.
func (w *world) reload(change func(*Config)) error {
	c := w.server.cfg
	change(&c)
	return w.server.Reload(c)
}

// A reload goes for the next request on: a revoked key is refused, a new one is
// let in.
func TestReloadOfKeys(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	writeKeys(t, path, "read", "operate")
	w := newWorld(t, func(c *Config) { c.KeysFile = path })
	status := func(key string) int {
		code, _ := w.do(http.MethodGet, "/api/v1/node/hv1/daemon-state", "", "", "X-Api-Key", key)
		return code
	}
	if a, b := status("key of read"), status("key of admin"); a != 200 || b != 401 {
		t.Fatalf("before: %d %d", a, b)
	}
	writeKeys(t, path, "operate", "admin")
	if a, b := status("key of read"), status("key of admin"); a != 200 || b != 401 {
		t.Errorf("a file that changes is no reload: %d %d", a, b)
	}
	if err := w.reload(func(c *Config) { c.ProtectAll = true }); err != nil {
		t.Fatal(err)
	}
	if a, b := status("key of read"), status("key of admin"); a != 401 || b != 200 {
		t.Errorf("after: %d %d", a, b)
	}
	if code, _ := w.get("/readyz"); code != 401 {
		t.Errorf("protect_all was not adopted: %d", code)
	}
}

// What needs a restart is refused by its name, what cannot be read by its path,
// and then nothing is changed.
func TestReloadThatIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	writeKeys(t, path, "read")
	w := newWorld(t, func(c *Config) { c.KeysFile = path })
	other := filepath.Join(t.TempDir(), "other")
	writeKeys(t, other, "admin")
	empty := filepath.Join(t.TempDir(), "empty")
	writeKeys(t, empty)
	for want, change := range map[string]func(*Config){
		"api.listen":           func(c *Config) { c.KeysFile, c.Listen = other, []string{"127.0.0.1:1"} },
		"api.auth":             func(c *Config) { c.KeysFile, c.Auth = other, AuthNone },
		"taking both away":     func(c *Config) { c.KeysFile = "" },
		"node.name":            func(c *Config) { c.KeysFile, c.Node = other, "hv9" },
		"cluster.name":         func(c *Config) { c.KeysFile, c.ClusterName = other, "other" },
		"timing":               func(c *Config) { c.KeysFile, c.Timing.KeepaliveInterval = other, time.Hour },
		"restart it":           func(c *Config) { c.KeysFile, c.RequestTimeout = other, time.Second },
		"open api.keys_file":   func(c *Config) { c.KeysFile = "/nonexistent/keys" },
		"holds no key":         func(c *Config) { c.KeysFile = empty },
		"they belong together": func(c *Config) { c.KeysFile, c.TLS.Cert = other, "/nonexistent/cert" },
		"client certificates":  func(c *Config) { c.KeysFile, c.TLS.ClientCA = other, "/nonexistent/ca" },
		"turning TLS on":       func(c *Config) { c.KeysFile, c.TLS = other, TLSFiles{Cert: other, Key: other} },
	} {
		before := w.server.access.Load()
		if err := w.reload(change); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
		if w.server.access.Load() != before {
			t.Errorf("%s: something was adopted all the same", want)
		}
	}
	if code, _ := w.do(http.MethodGet, "/api/v1/node/hv1/daemon-state", "", "", "X-Api-Key", "key of read"); code != 200 {
		t.Errorf("the key from before: %d", code)
	}
}

// A watch ends when its key is revoked, and goes on when it is not.
func TestRevokedKeyEndsItsWatch(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	writeKeys(t, path, "read", "operate")
	w := newWorld(t, onAnyPort, func(c *Config) { c.KeysFile = path })
	url, stop := w.serve()
	defer func() { _ = stop() }()
	open := func(name, accept string) *http.Response {
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
		t.Cleanup(cancel)
		since := w.server.view.current(w.clock.Now()).version
		request, _ := http.NewRequestWithContext(ctx, http.MethodGet, url+"/api/v1/watch?wait=60&since="+since, nil)
		request.Header.Set("X-Api-Key", "key of "+name)
		request.Header.Set("Accept", accept)
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = response.Body.Close() })
		return response
	}
	revoked, kept := open("read", "text/event-stream"), open("operate", "text/event-stream") //nolint:bodyclose // at the test's end
	polled := make(chan int, 1)
	go func() { polled <- open("read", "").StatusCode }()                                                  //nolint:bodyclose // at the test's end
	for limit := time.Now().Add(30 * time.Second); w.server.watching() < 3; time.Sleep(time.Millisecond) { // else the poll begins after the reload, and proves nothing
		if time.Now().After(limit) {
			t.Fatalf("only %d watch", w.server.watching())
		}
	}
	writeKeys(t, path, "operate")
	if err := w.reload(func(*Config) {}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(revoked.Body); err != nil { // which ends, within its context
		t.Errorf("the revoked key's watch: %v", err)
	}
	if status := <-polled; status != 401 {
		t.Errorf("the revoked key's long poll: %d", status)
	}
	w.node("hv2", func(n *cluster.NodeView) { n.Daemon = present(cluster.DaemonStop) })
	lines := bufio.NewScanner(kept.Body)
	for lines.Scan() {
		if strings.Contains(lines.Text(), `"stop"`) {
			return
		}
	}
	t.Errorf("the other watch ended too: %v", lines.Err())
}

// watching is how many watch now.
func (s *Server) watching() int { return len(s.watchers) }

// handshake connects and returns the certificate that the server shows.
func handshake(t *testing.T, address string) *x509.Certificate {
	t.Helper()
	dialer := &tls.Dialer{NetDialer: &net.Dialer{Timeout: 30 * time.Second}, Config: &tls.Config{InsecureSkipVerify: true}} // it is looked at here
	c, err := dialer.DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.(*tls.Conn).ConnectionState().PeerCertificates[0]
}

// A certificate that is renewed on disk is used from the next handshake on. Half
// of one leaves the last in use, and is told.
func TestRenewedCertificate(t *testing.T) {
	core, logs := observer.New(zap.WarnLevel)
	ours := newAuthority(t)
	serverCert := func(name string) {
		ours.issue("server", &x509.Certificate{Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}})
	}
	serverCert("first")
	pair := &renewedPair{files: TLSFiles{Cert: ours.file("server.pem"), Key: ours.file("server.key")}, log: zap.New(core)}
	if err := pair.load(); err != nil {
		t.Fatal(err)
	}
	shows := func() string {
		pair.looked = time.Time{} // as after certificateLook
		c, err := pair.certificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		return c.Leaf.Subject.CommonName
	}
	if got := shows(); got != "first" {
		t.Fatal(got)
	}
	oldKey, err := os.ReadFile(ours.file("server.key"))
	if err != nil {
		t.Fatal(err)
	}
	serverCert("second")
	newKey, _ := os.ReadFile(ours.file("server.key"))
	_ = os.WriteFile(ours.file("server.key"), oldKey, 0o600) // the certificate is there, its key is not yet
	if a, b := shows(), shows(); a != "first" || b != "first" || logs.Len() != 1 {
		t.Errorf("half renewed: %s %s, told %d times", a, b, logs.Len())
	}
	_ = os.WriteFile(ours.file("server.key"), append(newKey, '\n'), 0o600)
	if got := shows(); got != "second" {
		t.Errorf("renewed: %s", got)
	}
	_ = os.Remove(ours.file("server.pem"))
	if got := shows(); got != "second" {
		t.Errorf("removed: %s", got)
	}
}

// A server under load picks the renewed certificate up, and a reload the client
// authority: a certificate of the former one is refused on a connection that is
// open already.
func TestReloadOfCertificates(t *testing.T) {
	ours, next := newAuthority(t), newAuthority(t)
	ours.issue("server", &x509.Certificate{Subject: pkix.Name{CommonName: "first"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}})
	w := newWorld(t, onAnyPort, func(c *Config) {
		c.TLS = TLSFiles{Cert: ours.file("server.pem"), Key: ours.file("server.key"), ClientCA: ours.file("ca.pem")}
	})
	_, stop := w.serve()
	defer func() { _ = stop() }()
	address := w.server.Addrs()[0].String()
	client, err := NewClient(ClientConfig{URL: "https://" + address, TLS: ours.client("olga", "operate"), Timeout: 30 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Cluster(t.Context()); err != nil {
		t.Fatal(err)
	}
	ours.issue("server", &x509.Certificate{Subject: pkix.Name{CommonName: "second"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}})
	for limit := time.Now().Add(30 * time.Second); handshake(t, address).Subject.CommonName != "second"; {
		if time.Now().After(limit) {
			t.Fatal("the renewed certificate is not shown")
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err := w.reload(func(c *Config) { c.TLS.ClientCA = next.file("ca.pem") }); err != nil {
		t.Fatal(err)
	}
	_, err = client.Cluster(t.Context()) // on the connection from before
	if err == nil || !strings.Contains(err.Error(), "X-Api-Key Authentication required.") {
		t.Errorf("a certificate of the former authority: %v", err)
	}
	files := next.client("nina", "operate")
	files.ClientCA = ours.file("ca.pem") // which the server's own is of still
	client, err = NewClient(ClientConfig{URL: "https://" + address, TLS: files, Timeout: 30 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Cluster(t.Context()); err != nil {
		t.Errorf("a certificate of the present one: %v", err)
	}
}

// Whoever has one address of an IPv6 network has them all.
func TestFailuresAreCountedByNetwork(t *testing.T) {
	for from, want := range map[string]string{
		"192.0.2.7:80": "192.0.2.7", "[::ffff:192.0.2.7]:80": "192.0.2.7", "[::1]:80": "::1",
		"[2001:db8:1:2:3:4:5:6]:80": "2001:db8:1:2::/64", "[fe80::1%eth0]:80": "fe80::/64", "@": "@",
	} {
		if got := remoteHost(&http.Request{RemoteAddr: from}); got != want {
			t.Errorf("%s: %s, want %s", from, got, want)
		}
	}
}

// The record of changes is written whatever the log's level.
func TestAuditAtEveryLevel(t *testing.T) {
	core, logs := observer.New(zap.ErrorLevel)
	store := newFakeStore(&fakeClock{now: 1})
	server, err := New(Config{Auth: AuthNone}, Deps{store, store, store, store, store, store, store.clock, nil}, zap.New(core), nil)
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest(post, "/api/v1/status", nil)
	server.Handler().ServeHTTP(httptest.NewRecorder(), r)
	if all := logs.All(); len(all) != 1 || all[0].LoggerName != "audit" || all[0].ContextMap()["path"] != "/api/v1/status" {
		t.Errorf("%+v", all)
	}
}

// Refusals of strangers are recorded, so many an address and window; changes
// are always, without what may be secret.
func TestAuditOfStrangers(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	path := filepath.Join(t.TempDir(), "keys")
	writeKeys(t, path, "read", "operate")
	w := newWorld(t, func(c *Config) { c.KeysFile = path })
	w.server.auditLog = zap.New(core)
	for range 100 {
		w.do(http.MethodGet, "/api/v1/node", "", "", "X-Api-Key", "guess")
	}
	if n := logs.FilterMessage("request refused").Len(); n != strangersEach {
		t.Errorf("%d refusals were recorded, want %d", n, strangersEach)
	}
	first := logs.All()[0].ContextMap()
	if first["from"] == "" || first["path"] != "/api/v1/node" || first["status"] != int64(401) {
		t.Errorf("%v", first)
	}
	w.server.strangers.until = time.Time{} // the next window
	w.server.strangers.each = failureCount{}
	w.do("POST", "/api/v1/status?state=true", "", "", "X-Api-Key", "guess")
	last := logs.All()[logs.Len()-1].ContextMap()
	if last["left_out_before"] != int64(90) || last["status"] != int64(429) {
		t.Errorf("%v", last)
	}
	w.server.failedAuth = failureCount{}
	w.do("POST", "/api/v1/status?state=true", "", "", "X-Api-Key", "key of read")
	last = logs.All()[logs.Len()-1].ContextMap()
	if last["who"] != "read" || last["status"] != int64(403) {
		t.Errorf("the wrong role: %v", last)
	}
	w.do("POST", "/api/v1/status", "application/json", `{"state":"true","password":"hunter2"}`, "X-Api-Key", "key of operate")
	last = logs.All()[logs.Len()-1].ContextMap()
	if last["who"] != "operate" || last["status"] != int64(200) || !strings.Contains(fmt.Sprint(last["result"]), "Successfully set") {
		t.Errorf("a change: %v", last)
	}
	for _, e := range logs.All() {
		if text := fmt.Sprint(e.ContextMap()); strings.Contains(text, "guess") || strings.Contains(text, "hunter2") || strings.Contains(text, "key of") {
			t.Errorf("a secret was written down: %s", text)
		}
	}
	if got := redacted(args{"api_key": "a", "Token": "b", "state": strings.Repeat("ä", 300)}); got["api_key"] != "[secret]" || got["Token"] != "[secret]" || len(got["state"]) > longestAudited+4 {
		t.Errorf("%v", got)
	}
}
