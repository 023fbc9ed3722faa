package api

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"pvc.internal/cluster"
)

func TestSwitch(t *testing.T) {
	w := newWorld(t)
	status, body := w.post("/api/v1/switch", "to=hv2&dry_run=true")
	w.expect("dry run", status, body, 200, `{"message":"Setting node \"hv2\" in primary coordinator state.","from":"hv1","to":"hv2","already":false,"dry_run":true,"possible":true,"wish_version":0}`)
	status, body = w.post("/api/v1/switch", "to=hv3&dry_run=1")
	w.expect("dry run refused", status, body, 200, `{"message":"Cannot change coordinator state on non-coordinator node \"hv3\".","from":"hv1","to":"hv3","already":false,"dry_run":true,"possible":false,"refusals":[{"code":"not_coordinator","node":"hv3","detail":"Cannot change coordinator state on non-coordinator node \"hv3\"."}],"wish_version":0}`)
	if w.store.commits != 0 {
		t.Fatal("a dry run wrote something")
	}
	status, body = w.post("/api/v1/switch", "to=hv2")
	w.expect("switch", status, body, 202, `{"message":"Setting node \"hv2\" in primary coordinator state.","from":"hv1","to":"hv2","already":false,"dry_run":false,"possible":true,"wish_version":8,"task":"switch-8"}`)
	status, body = w.post("/api/v1/switch", "to=hv2")
	w.expect("again", status, body, 200, `{"message":"Node \"hv2\" is already being set in primary coordinator state.","from":"hv1","to":"hv2","already":true,"dry_run":false,"possible":true,"wish_version":8,"task":"switch-8"}`)
	for form, text := range map[string]string{
		"":                                `{"message":{"to":"A node's name must be specified, or \"none\" for the best other candidate."}}`,
		"to=hv1&at=noon":                  `{"message":{"at":"There is no such argument here; known: to, from, wait, dry_run."}}`,
		"to=hv1&wait=1h":                  `{"message":{"wait":"Must be a duration up to 2m0s, like \"5s\" or bare seconds."}}`,
		"to=hv1&dry_run=perhaps&wait=no!": `{"message":{"dry_run":"Must be true or false.","wait":"Must be a duration up to 2m0s, like \"5s\" or bare seconds."}}`,
		"to=nobody":                       `{"message":"No node named \"nobody\" is present in the cluster."}`,
		"to=hv1&from=hv2":                 `{"message":"Node \"hv2\" does not hold the primary role; \"hv1\" does."}`,
	} {
		status, body := w.post("/api/v1/switch", form)
		w.expect(form, status, body, 400, text)
	}
}

func TestSwitchToNone(t *testing.T) {
	w := newWorld(t)
	if status, body := w.post("/api/v1/switch", "to=none&from=hv1"); status != 202 || w.store.snap.PrimaryNode.Value != "none" {
		t.Errorf("%d %s", status, body)
	}
	w = newWorld(t)
	w.edit(func(s *cluster.Snapshot) { s.Lease.Value.Holder = "" })
	status, body := w.post("/api/v1/switch", "to=none")
	w.expect("nobody", status, body, 400, `{"message":"Nobody holds the primary role, so nobody can give it up."}`)
}

// move writes a transition for the wish and what goes with it.
func (w *world) move(state cluster.TransitionState, phase cluster.Phase, failed string) {
	w.edit(func(s *cluster.Snapshot) {
		s.Transition = present(cluster.Transition{Version: 1, ID: "t1", From: "hv1", To: "hv2", Cause: cluster.CauseSwitch,
			State: state, Phase: phase, WishVersion: 8, Error: failed})
		if state == cluster.TransitionDone {
			s.Lease.Value.Holder = "hv2"
		}
	})
}

func TestSwitchWaits(t *testing.T) {
	for _, c := range []struct {
		name    string
		end     func(*world)
		status  int
		outcome string
	}{
		{"done", func(w *world) {
			w.move(cluster.TransitionRunning, cluster.PhaseStop, "")
			w.move(cluster.TransitionDone, cluster.PhaseDone, "")
		}, 200, OutcomeDone},
		{"aborted", func(w *world) { w.move(cluster.TransitionAborted, cluster.PhaseAnnounce, "no interface") }, 409, OutcomeAborted},
		{"overtaken", func(w *world) {
			w.edit(func(s *cluster.Snapshot) { s.PrimaryNode.Value, s.PrimaryNode.Version = "hv1", 9 })
		}, 409, OutcomeSuperseded},
		{"aborted, of which the wish is seen first", func(w *world) {
			w.edit(func(s *cluster.Snapshot) { s.PrimaryNode.Value, s.PrimaryNode.Version = "hv1", 9 })
			time.Sleep(100 * time.Millisecond)
			w.move(cluster.TransitionAborted, cluster.PhaseAnnounce, "no interface")
		}, 409, OutcomeAborted},
		{"never", func(w *world) {}, 202, OutcomeWaiting},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				go func() {
					time.Sleep(time.Second)
					c.end(w)
				}()
				started := time.Now()
				status, body := w.post("/api/v1/switch", "to=hv2&wait=20")
				a := decode[SwitchAnswer](t, body)
				if status != c.status || a.Outcome != c.outcome {
					t.Errorf("%d %s", status, body)
				}
				if took := time.Since(started); took > 20*time.Second || c.outcome != OutcomeWaiting && took > time.Second+WishSettles {
					t.Errorf("took %s", took)
				}
			})
		})
	}
}

func TestSwitchOutcome(t *testing.T) {
	view := func(change func(*ClusterView)) ClusterView {
		v := ClusterView{PrimaryNode: "hv1", PrimaryWanted: "hv2", Nodes: []NodeSummary{
			{Name: "hv1", CoordinatorState: cluster.RouterPrimary}, {Name: "hv2", CoordinatorState: cluster.RouterSecondary}}}
		change(&v)
		return v
	}
	with := func(s cluster.TransitionState, version int32) *cluster.Transition {
		return &cluster.Transition{ID: "x", Cause: cluster.CauseSwitch, State: s, WishVersion: version}
	}
	for name, c := range map[string]struct {
		view ClusterView
		to   string
		want string
	}{
		"asked":              {view(func(*ClusterView) {}), "hv2", OutcomeWaiting},
		"an older one ended": {view(func(v *ClusterView) { v.Transition = with(cluster.TransitionDone, 3) }), "hv2", OutcomeWaiting},
		"an older one runs":  {view(func(v *ClusterView) { v.Transition = with(cluster.TransitionRunning, 3) }), "hv2", OutcomeRunning},
		"ours runs":          {view(func(v *ClusterView) { v.Transition = with(cluster.TransitionRunning, 8) }), "hv2", OutcomeRunning},
		"ours is aborted": {view(func(v *ClusterView) {
			v.Transition, v.PrimaryWanted = with(cluster.TransitionAborted, 8), "hv1"
		}), "hv2", OutcomeAborted},
		"failover did it": {view(func(v *ClusterView) {
			v.PrimaryNode = "hv2"
			v.Nodes[1].CoordinatorState = cluster.RouterPrimary
		}), "hv2", OutcomeDone},
		"holds, not yet acting":       {view(func(v *ClusterView) { v.PrimaryNode = "hv2" }), "hv2", OutcomeWaiting},
		"none, refused by the holder": {view(func(v *ClusterView) { v.PrimaryWanted = "hv1" }), "none", OutcomeAborted},
		"none, a candidate is named":  {view(func(*ClusterView) {}), "none", OutcomeRunning},
		"none, its switch is aborted": {view(func(v *ClusterView) {
			v.Transition, v.PrimaryWanted = with(cluster.TransitionAborted, 9), "hv1"
			v.Transition.From = "hv1"
		}), "none", OutcomeAborted},
		"none, another's switch is done": {view(func(v *ClusterView) {
			v.Transition, v.PrimaryWanted = with(cluster.TransitionDone, 9), "none"
			v.Transition.From = "hv3"
		}), "none", OutcomeWaiting},
		"none, moved": {view(func(v *ClusterView) { v.PrimaryNode, v.Nodes[1].CoordinatorState = "hv2", "primary" }), "none", OutcomeDone},
		"none, asked": {view(func(v *ClusterView) { v.PrimaryWanted = "none" }), "none", OutcomeWaiting},
	} {
		if got, reason := c.view.SwitchOutcome("hv1", c.to, 8); got != c.want {
			t.Errorf("%s: %s (%s), want %s", name, got, reason, c.want)
		}
	}
}

func TestMaintenanceWithReason(t *testing.T) {
	w := newWorld(t)
	status, body := w.do("POST", "/api/v1/maintenance", "application/json", `{"state":true,"owner":"ada","reason":"disk","expires":"2h"}`)
	a := decode[MaintenanceAnswer](t, body)
	if status != 200 || a.Maintenance.Owner != "ada" || a.Maintenance.Reason != "disk" || a.Maintenance.ExpiresMS-a.Maintenance.SinceMS != 7200_000 {
		t.Errorf("%d %s", status, body)
	}
	if _, body := w.get("/api/v1/maintenance"); decode[MaintenanceView](t, body) != a.Maintenance {
		t.Errorf("read back: %s", body)
	}
	if e := w.store.history[0]; e.Kind != "maintenance" || e.Fields["owner"] != "ada" || e.Fields["by"] != "anyone" {
		t.Errorf("history: %+v", e)
	}
	status, body = w.post("/api/v1/maintenance", "state=on&expires=never")
	w.expect("expires", status, body, 400, `{"message":{"expires":"Must be a duration above zero, like 2h or 30m."}}`)
}

func TestHistoryAndExplain(t *testing.T) {
	w := newWorld(t)
	for i := range 5 {
		w.store.history = append(w.store.history, cluster.Event{UnixMS: int64(i), Kind: []string{"fence", "transition"}[i%2]})
	}
	_, body := w.get("/api/v1/history?limit=2&kind=fence")
	if e := decode[[]cluster.Event](t, body); len(e) != 2 || e[0].UnixMS != 4 || e[1].UnixMS != 2 {
		t.Errorf("history: %s", body)
	}
	w.node("hv2", func(n *cluster.NodeView) { n.Daemon = present(cluster.DaemonStop) })
	_, body = w.get("/api/v1/explain/primary")
	if e := decode[Explanation](t, body); e.Verdict != "Node hv1 holds the role, epoch 4." || len(e.Refusals) != 1 || e.Refusals[0].Node != "hv2" {
		t.Errorf("explain: %s", body)
	}
	_, body = w.get("/api/v1/explain/hv2")
	if e := decode[Explanation](t, body); e.Verdict != "Stopped on purpose; it is not fenced." || len(e.Missing) != 1 {
		t.Errorf("explain: %s", body)
	}
	if status, body := w.get("/api/v1/explain/nobody"); status != 404 || !strings.Contains(body, "nodes: hv1, hv2, hv3") {
		t.Errorf("%d %s", status, body)
	}
	w.edit(func(s *cluster.Snapshot) { s.Lease.Present = false })
	if _, body := w.get("/api/v1/explain/primary"); decode[Explanation](t, body).Refusals[0].Code != cluster.RefuseLeaseAbsent {
		t.Errorf("explain: %s", body)
	}
}

func TestTiming(t *testing.T) {
	_, body := newWorld(t).get("/api/v1/timing")
	v := decode[TimingView](t, body)
	worst := map[string]float64{}
	for _, c := range v.Worst {
		worst[c.Name] = c.Seconds
	}
	for name, want := range map[string]float64{"detect": 6, "fence": 26.5, "recover": 26.5, "holder_stops": 2.5} {
		if worst[name] != want {
			t.Errorf("%s: %g s, want %g", name, worst[name], want)
		}
	}
	if v.Profile != "lan" || worst["take_over"] != 3.0 || worst["take_over_median"] != 2.75 || len(v.Settings) != 18 {
		t.Errorf("%s", body)
	}
}

// A version changes with the view and with nothing else.
func TestVersionIgnoresAges(t *testing.T) {
	w := newWorld(t)
	version := func() string { return w.server.view.current(w.clock.Now()).version }
	running := cluster.Transition{Version: 1, ID: "t1", State: cluster.TransitionRunning, Phase: cluster.PhaseAnnounce}
	w.edit(func(s *cluster.Snapshot) { s.Transition = present(running) })
	before := version()
	running.Ready++ // a candidate that waits stamps it each keepalive
	w.edit(func(s *cluster.Snapshot) { s.Transition = present(running) })
	w.clock.advance(500 * time.Millisecond)
	w.edit(func(s *cluster.Snapshot) { s.Lease.Value.N++; s.Lease.SeenAt = w.clock.Now(); s.Zxid++ })
	w.node("hv2", func(n *cluster.NodeView) { n.Keepalive = seen(int64(2), w.clock.Now()) })
	if version() != before {
		t.Error("a renewal or a keepalive counted as a change")
	}
	w.node("hv2", func(n *cluster.NodeView) { n.Daemon = present(cluster.DaemonShutdown) })
	if version() == before {
		t.Error("a daemon state did not count as a change")
	}
	before = version()
	w.edit(func(s *cluster.Snapshot) { s.Live = false })
	if version() == before {
		t.Error("losing the store did not count as a change")
	}
}

// The expiry of the lease is a change that no snapshot announces.
func TestExpiryWakesWatchers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		w.server.view.clock = tickingClock{time.Now(), w.clock.Now()}
		w.server.deps.Clock, w.store.clock = w.server.view.clock, w.server.view.clock
		go w.server.Follow(ctx)
		synctest.Wait()
		st := w.server.view.current(w.server.now())
		if st.holder() != "hv1" {
			t.Fatal("no holder at first")
		}
		started := time.Now()
		<-st.changed
		if took := time.Since(started).Round(100 * time.Millisecond); took != 2900*time.Millisecond {
			t.Errorf("woken after %s", took)
		}
		if h := w.server.view.current(w.server.now()).holder(); h != "" {
			t.Errorf("holder after the expiry: %q", h)
		}
	})
}

// tickingClock runs with the bubble's time.
type tickingClock struct {
	epoch time.Time
	start cluster.Instant
}

func (c tickingClock) Now() cluster.Instant { return c.start.Add(time.Since(c.epoch)) }

func TestLongPoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		_, body := w.get("/api/v1/watch") // no version: at once
		first := decode[ClusterView](t, body)

		started := time.Now()
		_, body = w.get("/api/v1/watch?wait=5&since=" + first.Version)
		if again := decode[ClusterView](t, body); again.Version != first.Version || time.Since(started) != 5*time.Second {
			t.Errorf("an idle poll answered %s after %s", again.Version, time.Since(started))
		}
		go func() {
			time.Sleep(time.Second)
			w.node("hv2", func(n *cluster.NodeView) { n.Daemon = present(cluster.DaemonStop) })
		}()
		started = time.Now()
		_, body = w.get("/api/v1/watch?since=" + first.Version)
		if next := decode[ClusterView](t, body); next.Nodes[1].DaemonState != "stop" || time.Since(started) != time.Second {
			t.Errorf("a change answered %s after %s", body, time.Since(started))
		}
		started = time.Now() // another server's version
		w.get("/api/v1/watch?since=someoneelse-3")
		if time.Since(started) != 0 {
			t.Error("a foreign version was waited on")
		}
	})
}

// serve runs the server on a real socket.
func (w *world) serve() (url string, stop func() error) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.server.Run(ctx) }()
	select {
	case <-w.server.Ready():
	case err := <-ended:
		w.t.Fatal(err)
	}
	return "http://" + w.server.Addrs()[0].String(), func() error { cancel(); return <-ended }
}

func onAnyPort(c *Config) { c.Listen = []string{"127.0.0.1:0"} }

func TestServerSentEvents(t *testing.T) {
	w := newWorld(t, onAnyPort)
	url, stop := w.serve()
	request, _ := http.NewRequest(http.MethodGet, url+"/api/v1/watch", nil)
	request.Header.Set("Accept", "text/event-stream")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	lines := bufio.NewScanner(response.Body)
	next := func(event string) (id, data string) {
		for lines.Scan() {
			name, value, _ := strings.Cut(lines.Text(), ": ")
			switch {
			case name == "event" && value == event:
				event = "" // the next data is ours
			case name == "id":
				id = value
			case name == "data" && event == "":
				return id, value
			}
		}
		t.Fatal("the stream ended: ", lines.Err())
		return
	}
	id, data := next("cluster")
	if v := decode[ClusterView](t, data); v.Version != id || v.PrimaryNode != "hv1" {
		t.Errorf("first: %s %s", id, data)
	}
	w.node("hv2", func(n *cluster.NodeView) { n.Router = present(cluster.RouterTakeover) })
	second, data := next("cluster")
	if v := decode[ClusterView](t, data); second == id || v.Nodes[1].CoordinatorState != "takeover" {
		t.Errorf("second: %s %s", second, data)
	}
	if _, data := next("ages"); len(decode[Ages](t, data)) != 3 {
		t.Errorf("ages: %s", data)
	}
	started := time.Now() // a stop does not wait for its watchers
	if err := stop(); err != nil || time.Since(started) > shutdownGrace/2 {
		t.Errorf("stop: %v after %s", err, time.Since(started))
	}
}

func TestClientResumesAWatch(t *testing.T) {
	w := newWorld(t, onAnyPort)
	address, stop := w.serve()
	var first net.Conn
	proxy := newCutter(t, strings.TrimPrefix(address, "http://"), &first)
	client, err := NewClient(ClientConfig{URL: "http://" + proxy, Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	var seen []string
	err = client.Watch(t.Context(), func(e WatchEvent) bool {
		switch {
		case e.View != nil:
			seen = append(seen, string(e.View.Nodes[1].DaemonState))
			if len(seen) == 1 {
				_ = first.Close()
				w.node("hv2", func(n *cluster.NodeView) { n.Daemon = present(cluster.DaemonStop) })
			}
		case e.Lost != nil:
			seen = append(seen, "lost")
		}
		return len(seen) < 3
	})
	if err != nil || !slices.Equal(seen, []string{"run", "lost", "stop"}) {
		t.Errorf("%v %v", seen, err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// newCutter forwards connections and shows the first, to be cut.
func newCutter(t *testing.T, to string, first *net.Conn) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				_ = in.Close()
				continue
			}
			if *first == nil {
				*first = in
			}
			go pipe(in, out)
			go pipe(out, in)
		}
	}()
	return l.Addr().String()
}

func pipe(from, to net.Conn) {
	defer from.Close()
	defer to.Close()
	buffer := make([]byte, 4096)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func TestListenNeedsAuth(t *testing.T) {
	keys := keysFile(t)
	for _, c := range []struct {
		config Config
		want   string // "" allowed
	}{
		{Config{}, ""},
		{Config{Listen: []string{"127.0.0.1:7370", "[::1]:7370", "localhost:7370"}}, ""},
		{Config{Listen: []string{"0.0.0.0:7370"}}, "reachable from other hosts"},
		{Config{Listen: []string{":7370"}}, "reachable from other hosts"},
		{Config{Listen: []string{"127.0.0.1:7370", "10.0.0.1:7370"}}, "10.0.0.1:7370"},
		{Config{Listen: []string{"10.0.0.1:7370"}, Auth: "none"}, ""},
		{Config{Listen: []string{"10.0.0.1:7370"}, KeysFile: keys}, ""},
		{Config{Listen: []string{"10.0.0.1"}}, "not host:port"},
		{Config{Auth: "off"}, `write "none"`},
		{Config{TLS: TLSFiles{ClientCA: "ca.pem"}}, "needs api.tls.cert"},
		{Config{TLS: TLSFiles{Cert: "/nonexistent/c", Key: "/nonexistent/k"}}, "load api.tls.cert"},
		{Config{KeysFile: "/nonexistent/keys"}, "open api.keys_file"},
	} {
		_, err := New(c.config, Deps{Clock: &fakeClock{}}, zap.NewNop(), nil)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c.config, err)
		}
	}
}

func keysFile(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "keys")
	text := "# keys\n\n"
	for name, role := range map[string]string{"rita": "read", "olga": "operate", "adam": "admin"} {
		text += fmt.Sprintf("%s:%s:%x\n", name, role, sha256.Sum256([]byte("key of "+name)))
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestKeys(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.KeysFile = keysFile(t) })
	const path = "/api/v1/node/hv2/coordinator-state"
	for _, c := range []struct {
		name, method, path, key string
		status                  int
		body                    string // "" any
	}{
		{"none", http.MethodGet, "/api/v1/node/hv1/daemon-state", "", 401, `{"message":"X-Api-Key Authentication required."}`},
		{"wrong", http.MethodGet, "/api/v1/node/hv1/daemon-state", "guess", 401, `{"message":"X-Api-Key Authentication failed."}`},
		{"reader reads", http.MethodGet, "/api/v1/node/hv1/daemon-state", "key of rita", 200, ""},
		{"before arguments", "POST", path + "?state=rubbish", "", 401, `{"message":"X-Api-Key Authentication required."}`},
		{"reader changes", "POST", path + "?state=primary", "key of rita", 403, `{"message":"This needs the role \"operate\"; \"rita\" has the role \"read\"."}`},
		{"operator changes", "POST", path + "?state=primary", "key of olga", 200, ""},
		{"operator initializes", "POST", "/api/v1/initialize", "key of olga", 403, `{"message":"This needs the role \"admin\"; \"olga\" has the role \"operate\"."}`},
		{"admin may", "POST", "/api/v1/initialize", "key of adam", 400, ""},
		{"primary node is open", http.MethodGet, "/api/v1/status/primary_node", "", 200, ""},
		{"probe is open", http.MethodGet, "/readyz", "", 200, ""},
		{"metrics are open", http.MethodGet, "/metrics", "", 200, ""},
		{"document is open", http.MethodGet, "/openapi.json", "", 200, ""},
	} {
		status, body := w.do(c.method, c.path, "", "", "X-Api-Key", c.key)
		if status != c.status || c.body != "" && body != c.body {
			t.Errorf("%s: %d %s", c.name, status, body)
		}
	}
	if by := w.store.history[0].Fields["by"]; by != "olga" {
		t.Errorf("history says it was %q", by)
	}
	for range authFailuresAllowed {
		w.do(http.MethodGet, "/api/v1/node", "", "", "X-Api-Key", "guess")
	}
	if status, _ := w.do(http.MethodGet, "/api/v1/node", "", "", "X-Api-Key", "key of rita"); status != 429 {
		t.Errorf("after many guesses: %d", status)
	}

	w = newWorld(t, func(c *Config) { c.KeysFile, c.ProtectAll = keysFile(t), true })
	for _, path := range []string{"/readyz", "/metrics", "/openapi.json", "/api/v1/status/primary_node"} {
		if status, _ := w.get(path); status != 401 {
			t.Errorf("protect_all: %s is %d", path, status)
		}
	}
}

func TestKeysFileFaults(t *testing.T) {
	for text, want := range map[string]string{
		"":                 "holds no key",
		"name:admin":       "line 1: is not name:role:sha256hex",
		"name:root:00":     `"root" is not a role`,
		"name:admin:mykey": `key "name": the third part is not a SHA-256`,
		"a:read:" + strings.Repeat("ab", 32) + "\nb:admin:" + strings.Repeat("AB", 32): `"a" and "b" have the same key`,
	} {
		path := filepath.Join(t.TempDir(), "keys")
		_ = os.WriteFile(path, []byte(text), 0o600)
		if _, err := loadKeys(path); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "mykey") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// A browser page of another origin, or one that rebinds its name, gets nothing.
func TestForeignPages(t *testing.T) {
	w := newWorld(t)
	if status, _ := w.do("POST", "/api/v1/status", "application/x-www-form-urlencoded", "state=true", "Sec-Fetch-Site", "cross-site"); status != 403 {
		t.Errorf("cross-site post: %d", status)
	}
	r := httptest.NewRequest(http.MethodGet, "/api/v1/node", nil)
	r.Host = "rebound.example:7370"
	answer := httptest.NewRecorder()
	w.server.Handler().ServeHTTP(answer, r)
	if answer.Code != 403 || w.store.commits != 0 {
		t.Errorf("rebound name: %d", answer.Code)
	}
}

func TestAudit(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	w := newWorld(t)
	w.server.auditLog = zap.New(core)
	w.get("/api/v1/node")
	w.post("/api/v1/status", "state=true")
	w.post("/api/v1/node/hv3/coordinator-state", "state=primary")
	w.post("/api/v1/status", "")
	var results []string
	for _, e := range logs.All() {
		m := e.ContextMap()
		results = append(results, fmt.Sprint(m["who"], " ", m["path"], " ", m["status"]))
	}
	want := []string{"anyone /api/v1/status 200", "anyone /api/v1/node/hv3/coordinator-state 400", "anyone /api/v1/status 400"}
	if !slices.Equal(results, want) {
		t.Errorf("%q", results)
	}
}

func TestClientErrors(t *testing.T) {
	w := newWorld(t, onAnyPort)
	address, stop := w.serve()
	client, _ := NewClient(ClientConfig{URL: address})
	if n, err := client.Nodes(t.Context(), url.Values{"limit": {"hv[12]"}}); err != nil || len(n) != 2 {
		t.Errorf("%v %v", n, err)
	}
	_, err := client.Node(t.Context(), "nobody")
	expectClass(t, err, cluster.ErrRefused, "Node not found.")
	w.away()
	_, err = client.Cluster(t.Context())
	expectClass(t, err, ErrUnreachable, "away for 12s")
	_ = stop()
	_, err = client.Cluster(t.Context())
	expectClass(t, err, ErrUnreachable, "is pvcapid running there")

	silent, _ := net.Listen("tcp", "127.0.0.1:0")
	defer silent.Close()
	client, _ = NewClient(ClientConfig{URL: "http://" + silent.Addr().String(), Timeout: 50 * time.Millisecond})
	_, err = client.Cluster(t.Context())
	expectClass(t, err, cluster.ErrDeadline, "did not answer within 50ms")
	if _, err := NewClient(ClientConfig{URL: "localhost:7370"}); err == nil {
		t.Error("a URL without a scheme was accepted")
	}
}

func expectClass(t *testing.T, err, class error, text string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), text) || !errors.Is(err, class) {
		t.Errorf("%v is not %v with %q", err, class, text)
	}
}
