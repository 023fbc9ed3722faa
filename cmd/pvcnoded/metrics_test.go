package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"pvc.internal/agent"
)

// told gets the path from the metrics' server, once it answers.
func told(t *testing.T, listen, path string) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+listen+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := http.DefaultClient.Do(req)
		if err != nil {
			if ctx.Err() != nil {
				t.Fatal(err)
			}
			continue // it is only just starting
		}
		defer answer.Body.Close()
		raw, err := io.ReadAll(answer.Body)
		if err != nil {
			t.Fatal(err)
		}
		return answer.StatusCode, string(raw)
	}
}

// freePort returns an address of this host that nobody listens at.
func freePort(t *testing.T) (net.Listener, string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln, ln.Addr().String()
}

func TestMetricsAreToldAndNothingElse(t *testing.T) {
	ln, listen := freePort(t)
	ln.Close()
	m := newMetrics(listen, zap.NewNop())
	end := m.start(t.Context())
	if code, body := told(t, listen, "/metrics"); code != http.StatusOK || !strings.Contains(body, "process_resident_memory_bytes") {
		t.Errorf("%d %s", code, body)
	}
	for _, path := range []string{"/", "/metrics/x", "/debug/pprof/"} {
		if code, _ := told(t, listen, path); code != http.StatusNotFound {
			t.Errorf("%s: %d", path, code)
		}
	}
	if answer, err := http.Post("http://"+listen+"/metrics", "text/plain", strings.NewReader("x")); err != nil || answer.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %v, %v", answer, err)
	} else {
		answer.Body.Close()
	}
	end()
	if conn, err := net.Dial("tcp", listen); err == nil {
		conn.Close()
		t.Error("it listens although it has ended")
	}
	if f := m.faults(); len(f) != 0 {
		t.Errorf("faults %q", f)
	}
}

// TestAPortThatIsTakenIsAFaultAndNothingMore: the daemon goes on, and its end does
// not wait for the next try.
func TestAPortThatIsTakenIsAFaultAndNothingMore(t *testing.T) {
	_, listen := freePort(t)
	m := newMetrics(listen, zap.NewNop())
	deps := agent.Deps{Faults: func() []string { return []string{"another"} }}
	m.join(&deps)
	end := m.start(t.Context())
	var faults []string
	for begin := time.Now(); len(faults) != 2; faults = deps.Faults() {
		if time.Since(begin) > 30*time.Second {
			t.Fatalf("faults %q", faults)
		}
		<-time.After(time.Millisecond)
	}
	for _, want := range []string{listen, "address already in use", "metrics.listen"} {
		if !strings.Contains(faults[0], want) {
			t.Errorf("%q does not say %q", faults[0], want)
		}
	}
	if faults[1] != "another" {
		t.Errorf("the other faults are %q", faults[1:])
	}
	end()
}

func TestMetricsThatAreSwitchedOffListenNowhere(t *testing.T) {
	m := newMetrics("", zap.NewNop())
	m.start(t.Context())()
	if len(m.faults()) != 0 {
		t.Error(fmt.Sprint(m.faults()))
	}
}
