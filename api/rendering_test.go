package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
)

// reads is how often a node was read since it was last asked.
func (w *world) reads() int {
	w.store.mu.Lock()
	defer w.store.mu.Unlock()
	n := w.store.nodeReads
	w.store.nodeReads = 0
	return n
}

// rendered waits for the renderings that requests begin and do not wait for,
// until one is of this very moment.
func (w *world) rendered() {
	for {
		w.get("/api/v1/status")
		w.server.renderings.mu.Lock()
		m := w.server.renderings.next
		w.server.renderings.mu.Unlock()
		if m == nil {
			return
		}
		<-m.done
	}
}

func (w *world) leaf(n cluster.NodeID, leaf, value string) {
	w.store.mu.Lock()
	defer w.store.mu.Unlock()
	w.store.leaves[n][leaf] = value
}

// A node's figures are read once a keepalive, however many ask, and only those
// of the node that wrote one.
func TestFiguresAreReadOnceAKeepalive(t *testing.T) {
	w := newWorld(t)
	ask := func() int {
		for range 20 {
			for _, path := range []string{"/api/v1/node", "/api/v1/status", "/api/v1/node/hv1", "/api/v1/node?daemon_state=run"} {
				if status, body := w.get(path); status != 200 {
					t.Fatalf("%s: %d %s", path, status, body)
				}
			}
		}
		return w.reads()
	}
	if n := ask(); n != 3 {
		t.Errorf("at first: %d reads", n)
	}
	w.later(renderFresh)
	if n := ask(); n != 0 {
		t.Errorf("without a keepalive: %d reads", n)
	}
	w.rendered() // nothing is under way any more
	w.leaf("hv2", "memused", "4444")
	w.beat("hv2")
	w.rendered()
	if n := ask(); n != 1 {
		t.Errorf("after a keepalive: %d reads", n)
	}
	if _, body := w.get("/api/v1/node?limit=hv2"); decode[[]Node](t, body)[0].Memory.Used != 4444 {
		t.Errorf("the new figure does not show: %s", body)
	}
	w.later(figuresKept) // what others write beside the keepalive
	if n := ask(); n != 3 {
		t.Errorf("after long: %d reads", n)
	}
	w.edit(func(s *cluster.Snapshot) { delete(s.Nodes, "hv3") })
	w.node("hv4", func(n *cluster.NodeView) { n.Daemon = present(cluster.DaemonRun) })
	if _, body := w.get("/api/v1/node"); len(decode[[]Node](t, body)) != 3 || w.server.figures.of["hv3"] != nil {
		t.Errorf("a node that is gone is kept: %s", body)
	}
}

// Who has changed something reads it back at once, whatever was shared before.
func TestRenderingsShowOnesOwnChange(t *testing.T) {
	w := newWorld(t)
	for on := range 6 {
		want := fmt.Sprint(on%2 == 0)
		if status, body := w.post("/api/v1/status", "state="+want); status != 200 {
			t.Fatal(body)
		}
		if _, body := w.get("/api/v1/status"); decode[Status](t, body).Maintenance != want {
			t.Fatalf("after %s: %s", want, body)
		}
		state := []cluster.DomainState{cluster.DomainFlushed, cluster.DomainReady}[on%2]
		w.node("hv2", func(n *cluster.NodeView) { n.Domain.Value = state })
		if _, body := w.get("/api/v1/node?limit=hv2"); decode[[]Node](t, body)[0].DomainState != string(state) {
			t.Fatalf("after %s: %s", state, body)
		}
	}
	if n := w.reads(); n != 3 {
		t.Errorf("%d reads for what stands in the snapshot", n)
	}
}

// A store that does not answer holds nobody up who asks for what has been
// answered before; that something could not be read is told in the end.
func TestAHungReadHoldsNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ticking := tickingClock{time.Now(), w.clock.Now()}
		w.server.view.clock, w.server.deps.Clock, w.store.clock = ticking, ticking, ticking
		w.edit(func(*cluster.Snapshot) {})
		w.get("/api/v1/node")
		w.store.hang = make(chan struct{})
		w.node("hv2", func(n *cluster.NodeView) { n.Keepalive.Version++ })
		for range 50 {
			time.Sleep(renderFresh)
			began := time.Now()
			status, body := w.get("/api/v1/node")
			if took := time.Since(began); status != 200 || took > 0 {
				t.Errorf("%d after %s: %s", status, took, body)
			}
		}
		if n := w.reads(); n > 3+3*3 {
			t.Errorf("%d reads", n)
		}
		if _, body := w.get("/api/v1/node?limit=hv2"); len(decode[[]Node](t, body)[0].Faults) != 1 {
			t.Errorf("what could not be read is not told: %s", body)
		}
		close(w.store.hang)
		w.server.renderings.close()
	})
}

// While the store is away the last figures are answered, marked as such.
func TestStaleFigures(t *testing.T) {
	w := newWorld(t)
	w.get("/api/v1/node")
	w.away()
	for _, path := range []string{"/api/v1/node", "/api/v1/status", "/api/v1/node/hv2", "/api/v1/node/hv2/daemon-state", "/api/v1/cluster", "/api/v1/tasks"} {
		status, body := w.get(path)
		a := decode[struct {
			Stale bool            `json:"stale"`
			Away  float64         `json:"away_seconds"`
			Last  json.RawMessage `json:"last"`
		}](t, body)
		if status != 503 || !a.Stale || a.Away < 12 || len(a.Last) < 3 {
			t.Errorf("%s: %d %s", path, status, body)
		}
		if strings.HasSuffix(path, "/node") && decode[[]Node](t, string(a.Last))[1].Memory.Used != 3000 {
			t.Errorf("%s: %s", path, a.Last)
		}
	}
	if status, body := w.get("/readyz"); status != 503 || !strings.Contains(body, "away for 12s") {
		t.Errorf("%d %s", status, body)
	}
	if status, _ := w.get("/healthz"); status != 200 {
		t.Errorf("healthz: %d", status)
	}
}

// What has not changed is not sent again to who has it.
func TestETag(t *testing.T) {
	w := newWorld(t)
	ask := func(tag string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(http.MethodGet, "/api/v1/node", nil)
		r.Host = "127.0.0.1"
		r.Header.Set("If-None-Match", tag)
		answer := httptest.NewRecorder()
		w.server.Handler().ServeHTTP(answer, r)
		return answer
	}
	first := ask("")
	tag := first.Header().Get("ETag")
	if again := ask(`"x", ` + tag); first.Code != 200 || len(tag) < 10 || again.Code != 304 || again.Body.Len() > 0 {
		t.Errorf("%d %q, then %d %s", first.Code, tag, again.Code, again.Body)
	}
	w.later(renderFresh)
	w.rendered() // made anew, and the same
	if again := ask(tag); again.Code != 304 {
		t.Errorf("the same list has another name: %d", again.Code)
	}
	w.leaf("hv2", "memused", "4444")
	w.beat("hv2")
	w.rendered()
	if again := ask(tag); again.Code != 200 || again.Header().Get("ETag") == tag {
		t.Errorf("another list has the same name: %d", again.Code)
	}
}

// BenchmarkRequests is what one request about a hundred nodes costs the server.
func BenchmarkRequests(b *testing.B) {
	for _, path := range []string{"/node", "/status"} {
		b.Run(path[1:], func(b *testing.B) {
			t := &testing.T{}
			w := newWorld(t, func(*Config) {})
			w.crowd(100)
			w.server.log = zap.NewNop()
			r := httptest.NewRequest(http.MethodGet, Prefix+path, nil)
			r.Host = "127.0.0.1"
			b.ReportAllocs()
			for b.Loop() {
				answer := httptest.NewRecorder()
				answer.Body = nil
				w.server.Handler().ServeHTTP(answer, r)
				if answer.Code != 200 {
					b.Fatal(answer.Code)
				}
			}
		})
	}
}
