package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"pvc.internal/api"
)

// reloadable is a whole pvcapid that has read a settings file.
type reloadable struct {
	t            *testing.T
	config, keys string
	api          string // more keys of the section
	url          string
	notify       *net.UnixConn
}

const head = "node: {name: hv1}\ncluster: {name: demo}\nzookeeper: {servers: [\"127.0.0.1:1\"]}\n"

func startReloadable(t *testing.T) *reloadable {
	t.Helper()
	dir := t.TempDir()
	r := &reloadable{t: t, config: filepath.Join(dir, "pvcapid.yaml"), keys: filepath.Join(dir, "keys"), notify: notifySocket(t)}
	r.key("first")
	r.settings("")
	ended := make(chan int, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { ended <- serveFile(ctx, r.config, os.Stderr) }()
	t.Cleanup(func() { cancel(); <-ended })
	status := r.told("READY=1")
	_, address, _ := strings.Cut(status, "listening on [")
	r.url = "http://" + strings.TrimRight(address, "]\n")
	return r
}

func (r *reloadable) settings(more string) {
	r.t.Helper()
	content := head + "api: {listen: [\"127.0.0.1:0\"], keys_file: " + r.keys + r.api + "}\n" + more
	if err := os.WriteFile(r.config, []byte(content), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

func (r *reloadable) key(key string) {
	r.t.Helper()
	line := fmt.Sprintf("ops:admin:%x\n", sha256.Sum256([]byte(key)))
	if err := os.WriteFile(r.keys, []byte(line), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// told waits for a message to the service manager that holds the text.
func (r *reloadable) told(text string) string {
	r.t.Helper()
	buffer := make([]byte, 4096)
	_ = r.notify.SetReadDeadline(time.Now().Add(60 * time.Second))
	for {
		n, err := r.notify.Read(buffer)
		if err != nil {
			r.t.Fatalf("never told %q: %v", text, err)
		}
		if message := string(buffer[:n]); strings.Contains(message, text) {
			return message
		}
	}
}

// reload sends the signal and returns the status that the unit has afterwards.
func (r *reloadable) reload() string {
	r.t.Helper()
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		r.t.Fatal(err)
	}
	if begin := r.told("RELOADING=1"); !strings.Contains(begin, "MONOTONIC_USEC=") || strings.Contains(begin, "READY=1") {
		r.t.Errorf("told %q", begin)
	}
	return r.told("READY=1")
}

// takes reports whether the daemon takes a key.
func (r *reloadable) takes(key string) bool {
	r.t.Helper()
	client, err := api.NewClient(api.ClientConfig{URL: r.url, Key: key, Timeout: 30 * time.Second})
	if err != nil {
		r.t.Fatal(err)
	}
	_, err = client.Timing(r.t.Context())
	return err == nil
}

// open reports whether /healthz answers without a key.
func (r *reloadable) open() bool {
	r.t.Helper()
	answer, err := http.Get(r.url + "/healthz")
	if err != nil {
		r.t.Fatal(err)
	}
	_ = answer.Body.Close()
	return answer.StatusCode != http.StatusUnauthorized
}

// A reload reads the keys anew and names what it cannot adopt; settings that are
// refused change nothing.
func TestReload(t *testing.T) {
	r := startReloadable(t)
	if !r.takes("first") || r.takes("second") {
		t.Fatal("the first key is not the one that counts")
	}
	r.key("second")
	if status := r.reload(); !strings.Contains(status, "STATUS=listening on") || r.takes("first") || !r.takes("second") {
		t.Errorf("another key: %q", status)
	}
	r.api = ", protect_all: true"
	r.settings("")
	if before, status, after := r.open(), r.reload(), r.open(); !before || after || !strings.Contains(status, "listening on") {
		t.Errorf("protect_all: open %v before, %v after: %q", before, after, status)
	}
	r.key("third")
	r.settings("timing: {profile: pvc}\nlog: {level: warn}\n")
	if status := r.reload(); !strings.Contains(status, "restart needed: ") || !strings.Contains(status, "timing.profile") || strings.Contains(status, "log.level") || !r.takes("third") {
		t.Errorf("another profile: %q", status)
	}
	r.key("fourth")
	r.settings("timing: [\n")
	if status := r.reload(); !strings.Contains(status, "settings refused") || !r.takes("third") || r.takes("fourth") {
		t.Errorf("a broken file: %q", status)
	}
	r.settings("")
	if err := os.Remove(r.keys); err != nil {
		t.Fatal(err)
	}
	if status := r.reload(); !strings.Contains(status, "settings refused") || !r.takes("third") {
		t.Errorf("keys that are gone: %q", status)
	}
	r.key("fifth")
	if status := r.reload(); !strings.Contains(status, "listening on") || !r.takes("fifth") || r.takes("third") {
		t.Errorf("all is mended: %q", status)
	}
}
