package driver

import (
	"context"
	"errors"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// refused fails unless nobody comes in by these words.
func (l *redisLab) refused(node cluster.NodeID, user, password string) {
	l.t.Helper()
	if got, err := l.try(node, user, password, "PING"); err == nil {
		l.t.Errorf("%s lets %q in: %v", node, user, got)
	}
}

// pointed has a copy follow another past the driver, as a program gone wild would,
// and tells what becomes of its keys: it returns once the source has refused it.
func (l *redisLab) pointed(from, to cluster.NodeID, secret string) {
	l.t.Helper()
	s := l.admin(from)
	defer s.close()
	before := l.keys(from)
	port := l.w.Params["port"]
	if _, err := s.together(l.t.Context(), []any{"config", "set", "masteruser", redisFollower, "masterauth", secret},
		[]any{"replicaof", l.nodes[to].host, port}); err != nil {
		l.t.Fatal(err)
	}
	source := l.admin(to)
	defer source.close()
	refusals := func() int {
		list, err := source.client.Do(l.t.Context(), "acl", "log").Slice()
		if err != nil {
			l.t.Fatal(err)
		}
		return len(list)
	}
	eventually(l.t, func() error {
		if refusals() == 0 {
			return errors.New("it was not refused yet")
		}
		return nil
	})
	f, err := s.look(l.t.Context())
	if err != nil || f.linkUp || l.keys(from) != before {
		l.t.Errorf("%s follows %s: link up %v, %d keys, before %d (%v)", from, to, f.linkUp, l.keys(from), before, err)
	}
}

// TestACopyThatCameBackEmptyServesNobodyAndEmptiesNobody is what the gate is for.
func TestACopyThatCameBackEmptyServesNobodyAndEmptiesNobody(t *testing.T) {
	t.Parallel()
	l := newRedisLab(t, nil)
	for _, n := range []cluster.NodeID{"hv1", "hv2"} {
		if r := l.must(n, cluster.CopyOrder{Op: cluster.CopyStart}); r.State != cluster.CopyMissing || r.Start == "" {
			t.Fatalf("a fresh copy is %+v", r)
		}
		l.refused(n, "", "")
		l.refused(n, "default", labPassword)
		l.refused(n, redisFollower, "first secret")
	}
	l.pointed("hv2", "hv1", "first secret") // before any verdict

	l.whole("first secret", 200)
	old := l.probe("hv1")
	if old.State != cluster.CopyActive || l.probe("hv2").Follows != "hv1" {
		t.Fatalf("hv1 is %+v, hv2 %+v", old, l.probe("hv2"))
	}
	l.killed("hv1") // and started again by the guard
	back := l.until("hv1", cluster.CopyMissing, func(r cluster.CopyReport) bool { return r.Start != "" })
	if back.Start == old.Start {
		t.Error("another process is the same start")
	}
	l.refused("hv1", "", "")
	l.refused("hv1", "default", labPassword)
	l.refused("hv1", redisFollower, "first secret")
	left := l.until("hv2", cluster.CopyPending, nil)
	if left.History != old.History || !left.HasOffset || left.Follows != "hv1" {
		t.Errorf("the replica that has lost its head is %+v, that was %+v", left, old)
	}
	l.pointed("hv2", "hv1", "first secret") // again, by the last activation's secret
	if n := l.keys("hv2"); n != 200 {
		t.Fatalf("%d keys are left on hv2", n)
	}

	got := l.must("hv2", cluster.CopyOrder{Op: cluster.CopyPromote, Secret: "second secret", Expect: &cluster.CopyExpect{State: cluster.CopyPending, Start: left.Start}})
	if got.State != cluster.CopyActive {
		t.Fatalf("promoted, it is %+v", got)
	}
	l.refused("hv2", redisFollower, "first secret")
	l.pointed("hv1", "hv2", "first secret")
	l.must("hv1", cluster.CopyOrder{Op: cluster.CopyFollow, Secret: "second secret", Source: &cluster.CopySource{Node: "hv2"}})
	l.until("hv1", cluster.CopyReplica, func(r cluster.CopyReport) bool { return r.Follows == "hv2" && r.History == l.probe("hv2").History })
	if n := l.keys("hv1"); n != 200 {
		t.Errorf("%d keys after all", n)
	}
	l.refused("hv1", "default", labPassword) // a replica serves nobody
}

// TestWhatIsActiveIsKnownOverAnAgentsRestart: it stands in the process.
func TestWhatIsActiveIsKnownOverAnAgentsRestart(t *testing.T) {
	t.Parallel()
	l := newRedisLab(t, nil)
	c := l.whole("secret one", 10)
	id := c.ClientID(t.Context()).Val()
	for _, n := range l.nodes {
		n.d.Close()
		n.d = l.driver(n)
	}
	if head, replica := l.probe("hv1"), l.probe("hv2"); head.State != cluster.CopyActive || replica.State != cluster.CopyReplica || replica.Follows != "hv1" {
		t.Errorf("after a restart of the agents: %+v, %+v", head, replica)
	}
	// Orders that are carried out already change nothing that a client would notice.
	before := l.probe("hv2")
	l.must("hv1", cluster.CopyOrder{Op: cluster.CopyStart})
	l.must("hv1", cluster.CopyOrder{Op: cluster.CopyPromote, Secret: "secret two"})
	l.must("hv2", cluster.CopyOrder{Op: cluster.CopyFollow, Secret: "secret two", Source: &cluster.CopySource{Node: "hv1"}})
	after := l.until("hv2", cluster.CopyReplica, nil)
	if after.Start != before.Start || after.History != before.History {
		t.Errorf("before %+v, after %+v", before, after)
	}
	l.refused("hv1", redisFollower, "secret one")
	l.must("hv1", cluster.CopyOrder{Op: cluster.CopyAdmit, Secret: "secret three"})
	l.refused("hv1", redisFollower, "secret two")
	if again, err := c.ClientID(t.Context()).Result(); err != nil || again != id {
		t.Errorf("the client that was connected, %d, is %d now (%v)", id, again, err)
	}
	if _, err := l.order("hv2", cluster.CopyOrder{Op: cluster.CopyAdmit, Secret: "x"}); err == nil {
		t.Error("a replica lets followers in")
	}
}

// TestADemotedCopyServesNobodyAndLosesNothing: what was written to it reaches its
// replica, which is promoted then.
func TestADemotedCopyServesNobodyAndLosesNothing(t *testing.T) {
	t.Parallel()
	l := newRedisLab(t, nil)
	c := l.whole("secret one", 100)
	r := l.must("hv1", cluster.CopyOrder{Op: cluster.CopyDemote})
	if r.State != cluster.CopyPending || !r.HasOffset {
		t.Fatalf("demoted, it is %+v", r)
	}
	if err := c.Set(t.Context(), "late", "x", 0).Err(); err == nil {
		t.Error("a client goes on writing")
	}
	l.refused("hv1", "default", labPassword)
	l.until("hv2", cluster.CopyReplica, func(x cluster.CopyReport) bool { return x.History == r.History && x.Offset >= r.Offset })
	l.must("hv2", cluster.CopyOrder{Op: cluster.CopyPromote, Secret: "secret two"})
	l.must("hv1", cluster.CopyOrder{Op: cluster.CopyFollow, Secret: "secret two", Source: &cluster.CopySource{Node: "hv2"}})
	l.until("hv1", cluster.CopyReplica, nil)
	l.refused("hv1", redisFollower, "secret one")
	if a, b := l.keys("hv1"), l.keys("hv2"); a != 100 || b != 100 {
		t.Errorf("%d and %d keys", a, b)
	}
	if r := l.must("hv1", cluster.CopyOrder{Op: cluster.CopyStop}); r.State != cluster.CopyMissing {
		t.Errorf("stopped, it is %+v", r)
	}
	if _, err := os.Stat(filepath.Join(l.nodes["hv1"].dir, "cache")); !errors.Is(err, os.ErrNotExist) {
		t.Error("stopped with no data, its folder is still there:", err)
	}
	if r := l.must("hv1", cluster.CopyOrder{Op: cluster.CopyStart}); r.State != cluster.CopyMissing && r.State != cluster.CopyPending {
		t.Errorf("started again, it is %+v", r)
	}
	l.must("hv1", cluster.CopyOrder{Op: cluster.CopyDestroy})
	if _, err := os.Stat(filepath.Join(l.nodes["hv1"].dir, "cache")); !errors.Is(err, os.ErrNotExist) {
		t.Error("its folder is still there:", err)
	}
}

// TestClientsCannotOpenTheGate tries what a client with the password may not do.
func TestClientsCannotOpenTheGate(t *testing.T) {
	t.Parallel()
	l := newRedisLab(t, nil)
	l.must("hv1", cluster.CopyOrder{Op: cluster.CopyPromote, Secret: "secret one"})
	for _, command := range []string{"replicaof no one", "slaveof 127.0.0.3 1", "psync ? -1", "sync", "replconf listening-port 1", "acl list", "acl setuser x on nopass",
		"config get *", "config set masterauth x", "shutdown nosave", "debug sleep 0", "save", "bgsave", "bgrewriteaof", "module list", "failover", "monitor",
		"client kill type replica", "cluster info", "slowlog get"} {
		words := []any{}
		for _, w := range strings.Fields(command) {
			words = append(words, w)
		}
		if got, err := l.try("hv1", "default", labPassword, words...); err == nil || !strings.HasPrefix(err.Error(), "NOPERM") && !strings.HasPrefix(err.Error(), "ERR") {
			t.Errorf("a client's %s: %v, %v", command, got, err)
		}
	}
	for _, command := range []string{"set a 1", "get a", "info", "keys *", "wait 0 1", "flushall", "eval return{1} 0", "client setname x"} {
		words := []any{}
		for _, w := range strings.Fields(command) {
			words = append(words, w)
		}
		if _, err := l.try("hv1", "default", labPassword, words...); err != nil {
			t.Errorf("a client's %s: %v", command, err)
		}
	}
	for _, command := range [][]any{{"set", "a", "1"}, {"info"}, {"replicaof", "no", "one"}} {
		if got, err := l.try("hv1", redisFollower, "secret one", command...); err == nil {
			t.Errorf("a follower's %v: %v", command, got)
		}
	}
}

// TestOrdersThatNothingStandsBehindDoNothing: a dead token, another process than
// the leader saw, a copy that has nothing yet.
func TestOrdersThatNothingStandsBehindDoNothing(t *testing.T) {
	t.Parallel()
	l := newRedisLab(t, nil)
	dead := cluster.MintToken(cluster.TokenWire{Activity: "over"}, func() error { return errors.New("it is over") })
	n := l.nodes["hv1"]
	for _, op := range []cluster.CopyOp{cluster.CopyStart, cluster.CopyPromote, cluster.CopyStop, cluster.CopyDestroy} {
		if _, err := n.d.Order(t.Context(), dead, cluster.CopyOrder{Op: op, Workload: l.w, Secret: "s"}); !errors.Is(err, cluster.ErrNoToken) {
			t.Errorf("%s by a dead token: %v", op, err)
		}
	}
	if pid, _ := n.guard.process(ServiceName("cache")); pid != 0 {
		t.Error("it was started")
	}
	l.must("hv1", cluster.CopyOrder{Op: cluster.CopyStart})
	// Nobody answers at the source: a first resynchronisation that never ends.
	l.must("hv1", cluster.CopyOrder{Op: cluster.CopyFollow, Secret: "s", Source: &cluster.CopySource{Node: "hv2"}})
	if r := l.probe("hv1"); r.State != cluster.CopyMissing || r.Follows != "hv2" {
		t.Errorf("without a first resynchronisation it is %+v", r)
	}
	if _, err := l.order("hv1", cluster.CopyOrder{Op: cluster.CopyPromote, Secret: "s"}); err == nil || !strings.Contains(err.Error(), "not complete") {
		t.Errorf("a copy that has nothing yet is promoted: %v", err)
	}
	if _, err := l.order("hv1", cluster.CopyOrder{Op: cluster.CopyPromote, Secret: "s", Expect: &cluster.CopyExpect{State: cluster.CopyReplica}}); err == nil {
		t.Error("a copy that has nothing is promoted for a replica")
	}
	if _, err := l.order("hv1", cluster.CopyOrder{Op: cluster.CopyPromote, Secret: "s", Expect: &cluster.CopyExpect{State: cluster.CopyMissing, Start: "another"}}); err == nil {
		t.Error("another process than the one that was seen is promoted")
	}
	for _, op := range []cluster.CopyOp{cluster.CopyPromote, cluster.CopyFollow, cluster.CopyAdmit} {
		if _, err := n.d.Order(t.Context(), dead, cluster.CopyOrder{Op: op, Workload: l.w, Secret: "s", Source: &cluster.CopySource{Node: "hv2", Host: "127.0.0.3"}}); err == nil {
			t.Errorf("%s by a dead token", op)
		}
	}
	l.refused("hv1", "default", labPassword)
	if r := l.must("hv1", cluster.CopyOrder{Op: cluster.CopyPromote, Secret: "s", Expect: &cluster.CopyExpect{State: cluster.CopyMissing}}); r.State != cluster.CopyActive {
		t.Errorf("promoted knowing that it is empty, it is %+v", r)
	}
}

// TestASessionBelongsToOneProcess: what was found of one process is never ordered
// of the next.
func TestASessionBelongsToOneProcess(t *testing.T) {
	t.Parallel()
	l := newRedisLab(t, nil)
	folder := filepath.Join(l.nodes["hv1"].dir, "cache", redisData) // an ephemeral copy begins without what is in it
	if err := errors.Join(os.MkdirAll(folder, 0o700), os.WriteFile(filepath.Join(folder, "dump.rdb"), []byte("rubbish"), 0o600)); err != nil {
		t.Fatal(err)
	}
	l.must("hv1", cluster.CopyOrder{Op: cluster.CopyStart})
	s := l.admin("hv1")
	defer s.close()
	if _, err := s.look(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.killed("hv1")
	l.until("hv1", cluster.CopyMissing, func(r cluster.CopyReport) bool { return r.Start != "" })
	for range 3 {
		if _, err := s.together(t.Context(), marked(redisHolds)); err == nil {
			t.Fatal("the next process took it")
		}
	}
	if f, err := l.admin("hv1").look(t.Context()); err != nil || f.holds(true) {
		t.Errorf("%+v, %v", f, err)
	}
}

// TestAFailedResynchronisationLeavesWhatWasThere: the source dies in the middle of
// one, or hangs; neither empties the replica.
func TestAFailedResynchronisationLeavesWhatWasThere(t *testing.T) {
	t.Parallel()
	l := newRedisLab(t, nil)
	l.whole("secret one", 100)
	before := l.probe("hv2")
	cut := fakeSource(t, l.w.Params["port"])
	l.must("hv2", cluster.CopyOrder{Op: cluster.CopyFollow, Secret: "secret two", Source: &cluster.CopySource{Node: "hv9", Host: "127.0.0.9"}})
	for i := range 3 {
		select {
		case end := <-cut:
			if r := l.until("hv2", cluster.CopyPending, nil); r.History != before.History {
				t.Errorf("amid a resynchronisation it is %+v, before %+v", r, before)
			}
			if n := l.keys("hv2"); n != 100 {
				t.Errorf("%d keys are left", n)
			}
			if i < 2 { // the last one goes on
				end()
			}
		case <-time.After(patience):
			t.Fatal("it begins no resynchronisation")
		}
	}
	if r := l.must("hv2", cluster.CopyOrder{Op: cluster.CopyPromote, Secret: "secret three"}); r.State != cluster.CopyActive {
		t.Errorf("promoted, it is %+v", r)
	}
	if n := l.keys("hv2"); n != 100 {
		t.Errorf("promoted, it has %d keys", n)
	}
}

// fakeSource is a redis that begins full resynchronisations and never ends one: it
// offers, for each that has begun, what cuts the connection.
func fakeSource(t *testing.T, port string) <-chan func() {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.9:"+port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	cut := make(chan func(), 100)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { _ = conn.Close() })
			go func() {
				buffer := make([]byte, 4096)
				for {
					n, err := conn.Read(buffer)
					if err != nil {
						return
					}
					said := strings.ToLower(string(buffer[:n]))
					answers := max(1, strings.Count(said, "replconf"))
					switch {
					case strings.Contains(said, "psync"):
						// A header, a database and a key without its value.
						rdb := "REDIS0010\xfe\x00\x00\x01a"
						_, _ = conn.Write([]byte("+FULLRESYNC " + strings.Repeat("ab", 20) + " 100\r\n$1000\r\n" + rdb))
						cut <- func() { _ = conn.Close() }
					case strings.Contains(said, "ping"):
						_, _ = conn.Write([]byte("+PONG\r\n"))
					default:
						_, _ = conn.Write([]byte(strings.Repeat("+OK\r\n", answers)))
					}
				}
			}()
		}
	}()
	return cut
}

// TestARedisThatHangsOrTalksRubbishIsToldInTime bounds the driver's calls.
func TestARedisThatHangsOrTalksRubbishIsToldInTime(t *testing.T) {
	t.Parallel()
	l := newRedisLab(t, nil)
	l.whole("secret one", 1)
	pid, _ := l.nodes["hv1"].guard.process(ServiceName("cache"))
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if r, err := l.nodes["hv1"].d.Probe(ctx, l.w); err == nil || ctx.Err() != nil {
		t.Errorf("of one that hangs: %+v, %v", r, err)
	}
	if _, err := l.order("hv1", cluster.CopyOrder{Op: cluster.CopyDemote}); err == nil || ctx.Err() != nil {
		t.Errorf("demote one that hangs: %v", err)
	}
	_ = syscall.Kill(pid, syscall.SIGCONT)
	l.until("hv1", cluster.CopyActive, nil)

	for name, answer := range map[string]string{"rubbish": "hello\r\n\r\n\x00", "too long": "$999999999999\r\n", "an array of nothing": "*-7\r\n", "many": "*9999999999\r\n", "huge": "$88888888\r\nx",
		"nothing": "", "an error": "-NOAUTH no\r\n", "another kind": ":1\r\n+OK\r\n:3\r\n"} {
		folder := t.TempDir()
		if err := os.Mkdir(filepath.Join(folder, redisData), 0o700); err != nil {
			t.Fatal(err)
		}
		ln, err := net.Listen("unix", filepath.Join(folder, redisData, redisSocket))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = ln.Close() })
		go func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				_, _ = conn.Read(make([]byte, 100))
				_, _ = conn.Write([]byte(answer))
				if answer == "" {
					_ = conn.Close()
				}
				t.Cleanup(func() { _ = conn.Close() })
			}
		}()
		s, err := openRedis(ctx, folder, "x")
		if err == nil {
			_, err = s.look(ctx)
			s.close()
		}
		if err == nil || ctx.Err() != nil || answer[:min(1, len(answer))] == "$" && !strings.Contains(err.Error(), "10 MB") {
			t.Errorf("%s: %v", name, err)
		}
	}
	l.nodes["hv1"].guard.silent = true
	if r, err := l.nodes["hv1"].d.Probe(ctx, l.w); err == nil {
		t.Errorf("without a guard it is %+v", r)
	}
}

// TestACopyThatKeepsItsData comes back with it, detached.
func TestACopyThatKeepsItsData(t *testing.T) {
	t.Parallel()
	l := newRedisLab(t, func(w *cluster.Workload) {
		w.Ephemeral = false
		w.Params["appendonly"], w.Params["config_appendfsync"] = "yes", "always"
	})
	if r := l.probe("hv1"); r.State != cluster.CopyMissing {
		t.Errorf("before its first start it is %+v", r)
	}
	if r := l.must("hv1", cluster.CopyOrder{Op: cluster.CopyStart}); r.State != cluster.CopyMissing {
		t.Errorf("without data it is %+v", r)
	}
	l.whole("secret one", 50)
	l.killed("hv1")
	l.until("hv1", cluster.CopyPending, nil) // also while it is loading
	l.refused("hv1", "default", labPassword)
	l.refused("hv1", redisFollower, "secret one")
	if n := l.keys("hv1"); n != 50 {
		t.Errorf("%d keys came back", n)
	}
	l.must("hv1", cluster.CopyOrder{Op: cluster.CopyPromote, Secret: "secret two"})
	l.must("hv2", cluster.CopyOrder{Op: cluster.CopyFollow, Secret: "secret two", Source: &cluster.CopySource{Node: "hv1"}})
	l.until("hv2", cluster.CopyReplica, nil)
	if r := l.must("hv2", cluster.CopyOrder{Op: cluster.CopyStop}); r.State != cluster.CopyDead {
		t.Errorf("stopped, with data on disk, it is %+v", r)
	}
	if r := l.must("hv2", cluster.CopyOrder{Op: cluster.CopyStart}); r.State != cluster.CopyPending {
		t.Errorf("started again it is %+v", r)
	}
	if r := l.must("hv2", cluster.CopyOrder{Op: cluster.CopyDestroy}); r.State != cluster.CopyMissing {
		t.Errorf("destroyed, it is %+v", r)
	}
}

// TestAPortThatIsTakenIsTold: the process does not stay up.
func TestAPortThatIsTakenIsTold(t *testing.T) {
	t.Parallel()
	l := newRedisLab(t, nil)
	ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.2", l.w.Params["port"]))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	l.w.Params["restart"] = "never"
	if _, err := l.order("hv1", cluster.CopyOrder{Op: cluster.CopyStart}); err == nil || !strings.Contains(err.Error(), "port "+l.w.Params["port"]) {
		t.Errorf("%v", err)
	}
}

// TestACopyRunsAsAnotherUser: its data folder is that user's, the driver's password
// is not.
func TestACopyRunsAsAnotherUser(t *testing.T) {
	t.Parallel()
	if _, err := user.Lookup("redis"); err != nil || os.Getuid() != 0 {
		t.Skipf("only root can run it as the user redis, who must be there (%v)", err)
	}
	l := newRedisLab(t, func(w *cluster.Workload) { w.Ephemeral, w.Params["appendonly"] = false, "yes" })
	n := l.nodes["hv1"]
	if err := os.Chmod(filepath.Dir(n.dir), 0o711); err != nil {
		t.Fatal(err)
	}
	n.d = NewRedis(RedisConfig{Guard: n.guard, Dir: n.dir, Host: n.host, Node: "hv1", User: "redis"})
	l.must("hv1", cluster.CopyOrder{Op: cluster.CopyPromote, Secret: "secret one"})
	pid, _ := n.guard.process(ServiceName("cache"))
	var running, secret syscall.Stat_t
	if err := errors.Join(syscall.Stat("/proc/"+strconv.Itoa(pid), &running), syscall.Stat(filepath.Join(n.dir, "cache", redisSecret), &secret)); err != nil {
		t.Fatal(err)
	}
	if running.Uid == 0 || secret.Uid != 0 {
		t.Errorf("it runs as uid %d, and the driver's password is of uid %d", running.Uid, secret.Uid)
	}
	l.must("hv1", cluster.CopyOrder{Op: cluster.CopyStop})
	if r := l.must("hv1", cluster.CopyOrder{Op: cluster.CopyPromote, Secret: "secret two"}); r.State != cluster.CopyActive {
		t.Errorf("started again, it is %+v", r)
	}
	if r := l.must("hv1", cluster.CopyOrder{Op: cluster.CopyDestroy}); r.State != cluster.CopyMissing {
		t.Errorf("destroyed, it is %+v", r)
	}
}

// TestWhatIsLeftOfAnEarlierWorkloadDoesNotCount: it was removed, and made anew under
// the same name, while this node was away.
func TestWhatIsLeftOfAnEarlierWorkloadDoesNotCount(t *testing.T) {
	t.Parallel()
	l := newRedisLab(t, func(w *cluster.Workload) { w.Ephemeral, w.Params["appendonly"] = false, "yes" })
	l.whole("secret one", 10)
	l.must("hv2", cluster.CopyOrder{Op: cluster.CopyStop})
	l.w.ID = "second"
	for _, n := range []cluster.NodeID{"hv1", "hv2"} { // one runs, of one only the data is left
		if r := l.probe(n); r.State != cluster.CopyMissing || !strings.Contains(r.Error, "first") {
			t.Errorf("of an earlier workload it is %+v", r)
		}
		if r := l.must(n, cluster.CopyOrder{Op: cluster.CopyPromote, Secret: "secret two"}); r.State != cluster.CopyActive || l.keys(n) != 0 {
			t.Errorf("made anew it is %+v with %d keys", r, l.keys(n))
		}
	}
}
