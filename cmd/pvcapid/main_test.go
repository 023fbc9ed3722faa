package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"pvc.internal/agent"
	"pvc.internal/api"
	"pvc.internal/cluster"
	"pvc.internal/cmd/settings"
	"pvc.internal/proc"
	"pvc.internal/zkhandler"
	"pvc.internal/zkhandler/zktest"
)

// daemonUnderTest is the whole of pvcapid over an ensemble in memory.
type daemonUnderTest struct {
	t      *testing.T
	store  *zktest.Server
	client *api.Client
	notify *net.UnixConn
	stop   func() error
	writer *zkhandler.Handler // of the node registered last
}

func start(t *testing.T) *daemonUnderTest {
	t.Helper()
	store := zktest.New(zktest.Options{TickTime: 50 * time.Millisecond})
	t.Cleanup(store.Close)
	notify := notifySocket(t)
	s := settings.API{Node: settings.Identity{Name: "hv1"}, Cluster: settings.Cluster{Name: "demo"},
		Timing: cluster.ProfileFast(), API: settings.Listener{Listen: []string{"127.0.0.1:0"}}}
	p, err := assembleOver(zkConfig(store, "api"), s, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.run(ctx) }()
	select {
	case <-p.server.Ready():
	case err := <-ended:
		t.Fatal(err)
	}
	stopped := false
	stop := func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return <-ended
	}
	t.Cleanup(func() { _ = stop() })
	client, err := api.NewClient(api.ClientConfig{URL: "http://" + p.server.Addrs()[0].String(), Timeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return &daemonUnderTest{t: t, store: store, client: client, notify: notify, stop: stop}
}

func zkConfig(store *zktest.Server, client string) zkhandler.Config {
	return zkhandler.Config{Servers: store.Servers(), Dial: store.Dialer(client), SessionTimeout: time.Second,
		RequestTimeout: 300 * time.Millisecond, WatchNodes: true}
}

func notifySocket(t *testing.T) *net.UnixConn {
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return c
}

func (d *daemonUnderTest) told(want string) {
	d.t.Helper()
	buffer := make([]byte, 1024)
	_ = d.notify.SetReadDeadline(time.Now().Add(5 * time.Second))
	n, err := d.notify.Read(buffer)
	if err != nil || !strings.Contains(string(buffer[:n]), want) {
		d.t.Errorf("systemd was told %q (%v), want %q", buffer[:n], err, want)
	}
}

// eventually calls see on each view until it is content.
func (d *daemonUnderTest) eventually(what string, see func(api.ClusterView) bool) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), 10*time.Second)
	defer cancel()
	if err := d.client.Watch(ctx, func(e api.WatchEvent) bool { return e.View == nil || !see(*e.View) }); err != nil {
		d.t.Fatalf("%s: %v", what, err)
	}
}

// node registers a running coordinator as its agent would.
func (d *daemonUnderTest) node(name cluster.NodeID) {
	d.t.Helper()
	h, err := zkhandler.New(zkConfig(d.store, string(name)), proc.BootClock{}, zap.NewNop(), nil)
	if err != nil {
		d.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx) }()
	d.t.Cleanup(func() { cancel(); <-ended })
	snaps, done := h.Subscribe()
	defer done()
	for snap := range snaps {
		if snap != nil && snap.Live {
			break
		}
	}
	d.writer = h
	if err := h.EnsureNode(d.t.Context(), name, cluster.Coordinator); err != nil {
		d.t.Fatal(err)
	}
	r := h.Commit(d.t.Context(), cluster.Txn{Purpose: "test", Ops: []cluster.Op{
		cluster.Create(cluster.Key{Kind: cluster.KeyAlive, Node: name}, cluster.Alive{Version: 1, Incarnation: "b.1"}),
		cluster.Set(cluster.Key{Kind: cluster.KeyDaemonState, Node: name}, cluster.AnyVersion, cluster.DaemonRun),
		cluster.Set(cluster.Key{Kind: cluster.KeyKeepalive, Node: name}, cluster.AnyVersion, int64(1)),
	}})
	if r.Outcome != cluster.OutcomeOK {
		d.t.Fatalf("register %s: %v %v", name, r.Outcome, r.Err)
	}
}

// The life of a new cluster, as an operator sees it.
func TestLife(t *testing.T) {
	d := start(t)
	d.told("READY=1")
	d.eventually("the store is reached", func(v api.ClusterView) bool { return v.Store.Complete })

	_, err := d.client.Switch(t.Context(), "hv1", "", false)
	expect(t, err, cluster.ErrRefused, "There is no cluster yet")
	if _, err := d.client.Initialize(t.Context(), "demo", false); err != nil {
		t.Fatal(err)
	}
	_, err = d.client.Initialize(t.Context(), "demo", false)
	expect(t, err, cluster.ErrRefused, "Cluster contains data and overwrite not set")
	if v, err := d.client.Cluster(t.Context()); err != nil || v.ClusterName != "demo" || !v.Lease.Present {
		t.Errorf("after init: %+v %v", v, err)
	}

	d.node("hv1")
	d.eventually("hv1 runs", func(v api.ClusterView) bool {
		return len(v.Nodes) == 1 && v.Nodes[0].DaemonState == cluster.DaemonRun && v.Nodes[0].Alive
	})
	nodes, err := d.client.Nodes(t.Context(), url.Values{"daemon_state": {"run"}})
	if err != nil || len(nodes) != 1 || nodes[0].CoordinatorState != "secondary" || len(nodes[0].Faults) > 0 {
		t.Errorf("nodes: %+v %v", nodes, err)
	}
	a, err := d.client.Switch(t.Context(), "hv1", "", false)
	if err != nil || a.Message != `Setting node "hv1" in primary coordinator state.` {
		t.Errorf("switch: %+v %v", a, err)
	}
	if v, err := d.client.Cluster(t.Context()); err != nil || v.PrimaryWanted != "hv1" {
		t.Errorf("the wish does not show at once: %+v %v", v, err)
	}
	events, err := d.client.History(t.Context(), 10, "")
	if err != nil || len(events) != 1 || events[0].Kind != "wish" || events[0].Fields["to"] != "hv1" {
		t.Errorf("history: %+v %v", events, err)
	}
	if err := d.stop(); err != nil {
		t.Error(err)
	}
	d.told("STOPPING=1")
}

// A lost reply to the wish is settled against the real protocol: one version
// more, whether the write had happened or not (I8).
func TestLostReply(t *testing.T) {
	for name, lose := range map[string]func(*zktest.Server){
		"reply":   func(s *zktest.Server) { s.DropReply("api", zktest.Does("multi", "/config/primary_node")).Times(1) },
		"request": func(s *zktest.Server) { s.DropRequest("api", zktest.Does("multi", "/config/primary_node")).Times(1) },
	} {
		t.Run(name, func(t *testing.T) {
			d := start(t)
			d.eventually("the store is reached", func(v api.ClusterView) bool { return v.Store.Complete })
			if _, err := d.client.Initialize(t.Context(), "demo", false); err != nil {
				t.Fatal(err)
			}
			d.node("hv1")
			d.eventually("hv1 runs", func(v api.ClusterView) bool {
				return len(v.Nodes) == 1 && v.Nodes[0].Alive && v.Nodes[0].DaemonState == cluster.DaemonRun
			})
			lose(d.store)
			a, err := d.client.Switch(t.Context(), "hv1", "", false)
			if err != nil || a.Already || a.WishVersion != 1 {
				t.Errorf("%+v %v", a, err)
			}
		})
	}
}

// What agents publish is what the API reads, field by field.
func TestViewsAreTheAgents(t *testing.T) {
	refusal := cluster.Refusal{Code: cluster.RefuseBudget, Node: "hv2", Detail: "spent"}
	published, err := json.Marshal(agent.View{Version: 1, Mode: "idle", Epoch: 4, Refusals: []cluster.Refusal{refusal}, Problems: []string{"p"},
		Nodes: map[cluster.NodeID]agent.NodeSeen{"hv2": {Liveness: "dead", Excuse: "e", Refusal: &refusal}}, Blind: "b", Maintenance: true, MaintenanceVersion: 3})
	if err != nil {
		t.Fatal(err)
	}
	var read cluster.View
	d := json.NewDecoder(bytes.NewReader(published))
	d.DisallowUnknownFields()
	if err := d.Decode(&read); err != nil {
		t.Fatalf("%v in %s", err, published)
	}
	if again, _ := json.Marshal(read); !bytes.Equal(again, published) {
		t.Errorf("published %s\nread      %s", published, again)
	}
}

// Maintenance, settings, faults and explanations over the real tree.
func TestOperatorsOrders(t *testing.T) {
	d := start(t)
	d.eventually("the store is reached", func(v api.ClusterView) bool { return v.Store.Complete })
	if _, err := d.client.Initialize(t.Context(), "demo", false); err != nil {
		t.Fatal(err)
	}
	d.node("hv1")
	d.eventually("hv1 runs", func(v api.ClusterView) bool { return len(v.Nodes) == 1 && v.Nodes[0].Alive })
	on := api.MaintenanceOrder{On: true, Owner: "ada", Wait: 300 * time.Millisecond}
	_, err := d.client.Maintenance(t.Context(), on)
	expect(t, err, cluster.ErrDeadline, "hv1 (it has published no view yet)")
	d.write(cluster.Create(cluster.Key{Kind: cluster.KeyView, Node: "hv1"}, cluster.View{Version: 1, Mode: "idle", Maintenance: true, MaintenanceVersion: 1,
		Refusals: []cluster.Refusal{{Code: cluster.RefuseUnhealthy, Detail: "no interface upstream"}}}))
	on.Wait = 10 * time.Second
	if a, err := d.client.Maintenance(t.Context(), on); err != nil || !slices.Equal(a.Confirmed, []cluster.NodeID{"hv1"}) {
		t.Errorf("maintenance: %+v %v", a, err)
	}
	e, err := d.client.Explain(t.Context(), "primary")
	if err != nil || !slices.ContainsFunc(e.Refusals, func(r api.Objected) bool { return r.By == "hv1" && r.Code == cluster.RefuseUnhealthy }) {
		t.Errorf("explain: %+v %v", e, err)
	}

	if a, err := d.client.SetAutoFailover(t.Context(), "", "60", "", false); err != nil || a.Settings.Timeout != 60 {
		t.Errorf("settings: %+v %v", a, err)
	}
	if f, err := d.client.AutoFailover(t.Context()); err != nil || f != (api.AutoFailover{Enabled: true, Timeout: 60, MaxCount: 1}) {
		t.Errorf("settings read back: %+v %v", f, err)
	}

	leaf := func(name, text string) cluster.Op {
		return cluster.Create(cluster.Key{Kind: cluster.KeyFault, Name: "disk/" + name}, text)
	}
	d.write(cluster.Create(cluster.Key{Kind: cluster.KeyFaultRoot, Name: "disk"}, ""), leaf("status", "new"), leaf("ack_time", ""), leaf("delta", "25"), leaf("message", "full"))
	if _, err := d.client.AcknowledgeFault(t.Context(), "disk"); err != nil {
		t.Error(err)
	}
	if f, err := d.client.Faults(t.Context()); err != nil || len(f) != 1 || f[0].Status != "ack" || f[0].AcknowledgedAt == "" || f[0].HealthDelta != 25 {
		t.Errorf("faults: %+v %v", f, err)
	}
	if _, err := d.client.DeleteFault(t.Context(), ""); err != nil {
		t.Error(err)
	}
	if f, err := d.client.Faults(t.Context()); err != nil || len(f) != 0 {
		t.Errorf("faults after the deletion: %+v %v", f, err)
	}
}

// write commits as another client of the store.
func (d *daemonUnderTest) write(ops ...cluster.Op) {
	d.t.Helper()
	if r := d.writer.Commit(d.t.Context(), cluster.Txn{Purpose: "test", Ops: ops}); r.Outcome != cluster.OutcomeOK {
		d.t.Fatalf("write: %v %v", r.Outcome, r.Err)
	}
}

// An outage is told, with its length, within the request's deadline; the
// daemon comes back by itself.
func TestOutage(t *testing.T) {
	d := start(t)
	d.eventually("the store is reached", func(v api.ClusterView) bool { return v.Store.Complete })
	if _, err := d.client.Initialize(t.Context(), "demo", false); err != nil {
		t.Fatal(err)
	}
	d.store.Outage()
	d.eventually("the outage is seen", func(v api.ClusterView) bool { return !v.Store.Live })
	_, err := d.client.Cluster(t.Context())
	expect(t, err, api.ErrUnreachable, "ZooKeeper has been away for")
	_, err = d.client.Maintenance(t.Context(), api.MaintenanceOrder{On: true, Owner: "ada"})
	expect(t, err, api.ErrUnreachable, "ZooKeeper has been away for")
	d.store.Resume()
	d.eventually("the store is back", func(v api.ClusterView) bool { return v.Store.Live && v.Store.Complete })
	if _, err := d.client.Maintenance(t.Context(), api.MaintenanceOrder{On: true, Owner: "ada"}); err != nil {
		t.Error(err)
	}
}

func expect(t *testing.T, err, class error, text string) {
	t.Helper()
	if !errors.Is(err, class) || !strings.Contains(err.Error(), text) {
		t.Errorf("%v is not %v with %q", err, class, text)
	}
}

func TestCommandLine(t *testing.T) {
	folder := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}

	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--version"}, exitOK, ""},
		{[]string{"-x"}, exitUsage, "-x"},
		{[]string{"serve"}, exitUsage, `"serve" is not understood`},
		{[]string{"-c", filepath.Join(folder, "none.yaml")}, exitSettings, "none.yaml"},
		{[]string{"-c", file("good.yaml", head), "-check"}, exitOK, ""},
		{[]string{"-c", file("typo.yaml", head+"apii: {}\n")}, exitSettings, "apii"},
		{[]string{"-c", file("open.yaml", head+"api: {listen: [\"0.0.0.0:7370\"]}\n")}, exitSettings, "0.0.0.0:7370"},
		{[]string{"-c", file("nokeys.yaml", head+"api: {listen: [\"0.0.0.0:7370\"], keys_file: "+folder+"/missing}\n")}, exitSettings, "keys_file"},
	} {
		var out, errs bytes.Buffer
		if code := run(t.Context(), c.args, &out, &errs); code != c.code || !strings.Contains(errs.String(), c.want) {
			t.Errorf("%q: exit %d, %s", c.args, code, errs.String())
		}
	}
}
