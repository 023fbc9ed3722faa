package zkhandler

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"pvc.internal/cluster"
)

func TestParseServers(t *testing.T) {
	for in, want := range map[string]string{
		"zk1": "zk1:2181", "zk1:2182": "zk1:2182", "10.0.0.1": "10.0.0.1:2181",
		"::1": "[::1]:2181", "[::1]": "[::1]:2181", "[fe80::1%eth0]:2183": "[fe80::1%eth0]:2183",
		" zk1:2181 ": "zk1:2181", //nolint:gocritic // the blanks are what is tested
	} {
		got, err := parseServers([]string{in})
		if err != nil || !slices.Equal(got, []string{want}) {
			t.Errorf("%q: got %v, %v, want %s", in, got, err, want)
		}
	}
	for in, word := range map[string]string{
		"": "empty", "zk1:2181/chroot": "zookeeper.root", "zk1,zk2": "commas", "zk1:0": "port",
		"zk1:70000": "port", "zk1:": "port", "[zk1]:2181": "IPv6", "1:2:3": "[::1]:2181", ":2181": "host",
		"[::1]2181": "after", "a b": "host",
	} {
		if _, err := parseServers([]string{in}); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%q: got %v, want an error with %q", in, err, word)
		}
	}
	if _, err := parseServers(nil); err == nil {
		t.Error("an empty list was accepted")
	}
}

func TestRingPrefersOwnServerAndLeavesSilentOnes(t *testing.T) {
	dead := false
	r := newHostRing([]string{"own", "b", "c"}, func() bool { return dead })
	next := func() string {
		s, sleep := r.Next()
		if sleep {
			t.Fatal("asked for the library's sleep while alive")
		}
		return s
	}
	if got := next(); got != "own" {
		t.Fatalf("first dial goes to %s", got)
	}
	r.Connected()
	r.silent()
	second := next()
	if second == "own" {
		t.Fatal("went back to the server that fell silent")
	}
	r.Connected()
	if third := next(); third == second || third == "own" {
		t.Fatalf("after %s was lost: %s, want the one not under suspicion", second, third)
	}
	if got := next(); got != "own" {
		t.Fatalf("then %s, want own", got)
	}
	if got := next(); got != second {
		t.Fatalf("then %s, want %s", got, second)
	}
	r.Connected()
	if got := next(); got != "own" {
		// own was tried without success meanwhile, so it may only come after the third
		if got == second {
			t.Fatalf("returned at once to the lost %s", got)
		}
	}
	dead = true
	if _, sleep := r.Next(); !sleep {
		t.Fatal("a dead session's library is never told to look at its quit channel")
	}
}

func TestEveryKeyHasItsPath(t *testing.T) {
	s, err := newSchema("/x/")
	must(t, err)
	for key, want := range map[cluster.Key]string{
		{Kind: cluster.KeyClusterName}:                                     "/x/config",
		{Kind: cluster.KeyPrimaryNode}:                                     "/x/config/primary_node",
		{Kind: cluster.KeyLease}:                                           "/x/agent/lease/primary",
		{Kind: cluster.KeyKeepalive, Node: "hv1"}:                          "/x/nodes/hv1/keepalive",
		{Kind: cluster.KeyPluginField, Node: "hv1", Name: "disk/last_run"}: "/x/nodes/hv1/monitoring_data/disk/last_run",
		{Kind: cluster.KeyLog, Node: "hv1"}:                                "/x/logs/hv1/messages",
		{Kind: cluster.KeyFault, Name: "f1/status"}:                        "/x/faults/f1/status",
	} {
		if got, err := s.path(key); got != want || err != nil {
			t.Errorf("%v: got %s, %v, want %s", key, got, err, want)
		}
	}
	for _, key := range []cluster.Key{
		{}, {Kind: 200}, {Kind: cluster.KeyKeepalive}, {Kind: cluster.KeyKeepalive, Node: "a/b"},
		{Kind: cluster.KeyKeepalive, Node: "none"}, {Kind: cluster.KeyLease, Node: "hv1"}, {Kind: cluster.KeyLease, Name: "x"},
		{Kind: cluster.KeyNodeField, Node: "hv1"}, {Kind: cluster.KeyNodeField, Node: "hv1", Name: "../x"},
		{Kind: cluster.KeyNodeField, Node: "hv1", Name: "a//b"}, {Kind: cluster.KeyFaultRoot, Name: "a/b"},
	} {
		if got, err := s.path(key); err == nil {
			t.Errorf("%v: got %s, want an error", key, got)
		}
	}
	for kind := cluster.KeyNone + 1; kind <= cluster.KeyRebalance; kind++ {
		if patterns[kind] == "" {
			t.Errorf("kind %d has no path", kind)
		}
	}
	for _, root := range []string{"x", "/a//b", "/zookeeper", "/a/../b"} {
		if _, err := newSchema(root); err == nil {
			t.Errorf("root %q was accepted", root)
		}
	}
}

func TestLockChildrenAreOrderedByTheirLastTenDigits(t *testing.T) {
	for name, want := range map[string]int64{
		"ffffffffffffffffffffffffffffffff__lock__0000000001":  1,
		"00000000000000000000000000000000__rlock__0000000002": 2,
		"_c_0123-lock-0000000003":                             3,
		"_c_x__lock__0000000004":                              4,
	} {
		if got, ok := lockSequence(name); got != want || !ok {
			t.Errorf("%s: %d %v", name, got, ok)
		}
	}
	for _, name := range []string{"sync_lock", "", "__lock__", "x__lock__123", "lease-0000000001"} {
		if _, ok := lockSequence(name); ok {
			t.Errorf("%q is taken for a lock child", name)
		}
	}
}

func TestCodecSpellsAsPVCDoes(t *testing.T) {
	for _, c := range []struct {
		kind  cluster.KeyKind
		value any
		want  string
	}{
		{cluster.KeyMaintenance, true, "true"}, {cluster.KeyMaintenance, false, "false"},
		{cluster.KeyKeepalive, int64(1700000000), "1700000000"},
		{cluster.KeyDomainState, cluster.DomainFenceFlush, "fence-flush"},
		{cluster.KeyPrimaryNode, cluster.NoNode, "none"},
		{cluster.KeyFailover, cluster.FailoverSettings{Enabled: true, MaxCount: 1}, `{"v":1,"enabled":true,"timeout_s":0,"max_count":1,"count":0}`},
	} {
		if got, err := encode(c.kind, c.value); string(got) != c.want || err != nil {
			t.Errorf("%v: got %s, %v, want %s", c.value, got, err, c.want)
		}
	}
	for _, c := range []struct {
		kind  cluster.KeyKind
		value any
	}{
		{cluster.KeyMaintenance, "true"}, {cluster.KeyDaemonState, cluster.DaemonState("rnu")}, {cluster.KeyLease, cluster.Alive{}},
		{cluster.KeyKeepalive, "1"}, {cluster.KeyLease, nil}, {cluster.KeyHistory, 7},
	} {
		if got, err := encode(c.kind, c.value); err == nil {
			t.Errorf("kind %d took %T %v as %s", c.kind, c.value, c.value, got)
		}
	}
	if v, err := decodeBool([]byte(" True\n")); !v || err != nil {
		t.Errorf("PVC's True: %v %v", v, err)
	}
	if v, err := decodeSeconds([]byte("1700000000.25")); v != 1700000000 || err != nil {
		t.Errorf("seconds with a fraction: %d %v", v, err)
	}
	if v, err := decodeLease([]byte(`{"v":9,"holder":"hv1","epoch":3,"ttl_ms":2800,"future":[1]}`)); v.Epoch != 3 || err != nil {
		t.Errorf("a newer program's lease: %+v %v", v, err)
	}
	if _, err := decodeLease([]byte(`{"v":1,"epoch":9007199254740992}`)); err != nil {
		t.Errorf("the largest epoch: %v", err)
	}
	if v, err := decodeWorkload([]byte(`{"v":9,"name":"w","id":"x","kind":"movable","driver":"exec","state":"of a newer program","future":[1]}`)); v.ID != "x" || err != nil {
		t.Errorf("a newer program's workload: %+v %v", v, err)
	}
	for _, bad := range []string{"", "none", `{}`, `{"v":1,"name":"w","id":"x","kind":"movable","driver":"of a newer program"}`,
		`{"v":1,"name":"w","id":"x","kind":"movable","driver":"exec","chain":["a","b"]}`, `{"v":1,"name":"w","id":"x","kind":"replicated","driver":"exec","chain":["a","a"]}`,
		`{"v":1,"name":"w","id":"x","kind":"replicated","driver":"exec","next":{"id":"m","chain":["a"],"epoch":9007199254740993}}`} {
		if v, err := decodeWorkload([]byte(bad)); err == nil || v.Name != "" {
			t.Errorf("%s is taken for a workload: %+v", bad, v)
		}
	}
	const above = `{"v":1,"id":"x","holder":"","epoch":9007199254740993}`
	_, ofLease := decodeLease([]byte(above))
	_, ofTransition := decodeTransition([]byte(above))
	_, ofFence := decodeFence([]byte(above))
	if ofLease == nil || ofTransition == nil || ofFence == nil {
		t.Errorf("an epoch above the largest: lease %v, transition %v, fence %v", ofLease, ofTransition, ofFence)
	}
}

// FuzzDecode: no input may crash a decoder, and what decodes must encode to
// something that decodes to the same.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{"", "none", "true", "1700000000", "run", `{"v":1,"holder":"hv1","epoch":3,"ttl_ms":1}`, `{"v":1,"node":"a","incarnation":"x"}`,
		`{"v":1,"name":"w","id":"x","kind":"movable","driver":"exec","chain":["a"],"next":{"id":"m","chain":["b"]},"request":{"id":"r","op":"stop"}}`,
		`{"v":1,"enabled":true,"max_nodes":2,"reset":"r"}`, `{"v":1,"id":"r","state":"running"}`, "[]", "null", "\xff"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		again(t, cluster.KeyLease, data, decodeLease)
		again(t, cluster.KeyAlive, data, decodeRecord[cluster.Alive])
		again(t, cluster.KeyFailover, data, decodeRecord[cluster.FailoverSettings])
		again(t, cluster.KeyMaintenance, data, decodeBool)
		again(t, cluster.KeyKeepalive, data, decodeSeconds)
		again(t, cluster.KeyPrimaryNode, data, decodePrimary)
		again(t, cluster.KeyDaemonState, data, decodeDaemonState)
		again(t, cluster.KeyRouterState, data, decodeRouterState)
		again(t, cluster.KeyDomainState, data, decodeDomainState)
		again(t, cluster.KeyNodeMode, data, decodeMode)
		decodeTransition(data)
		decodeFence(data)
		again(t, cluster.KeyFenceOrder, data, decodeFenceOrder)
		again(t, cluster.KeyWorkload, data, decodeWorkload)
		again(t, cluster.KeyReprovision, data, decodeReprovision)
		again(t, cluster.KeyRebalance, data, decodeRebalance)
		endedWorkload(data)
		endedRebalance(data)
		endedReset(data)
		decodeRecord[cluster.Event](data)
		decodeLockOwner(data)
	})
}

func again[T any](t *testing.T, kind cluster.KeyKind, data []byte, decode func([]byte) (T, error)) {
	value, err := decode(data)
	if err != nil {
		return
	}
	text, err := encode(kind, value)
	if err != nil {
		t.Fatalf("kind %d: %v decoded from %q cannot be encoded: %v", kind, value, data, err)
	}
	value, _ = decode(text) // the version is stamped now
	text, _ = encode(kind, value)
	if back, err := decode(text); err != nil || !reflect.DeepEqual(back, value) {
		t.Fatalf("kind %d: %v became %v, %v", kind, value, back, err)
	}
}
