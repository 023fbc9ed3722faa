package sandbox

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
)

// bareSandbox is a sandbox with its ensemble and responders, without daemons.
func bareSandbox(t *testing.T, coordinators int) *Sandbox {
	t.Helper()
	rootOnly(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "pvcsb")
	if err != nil {
		t.Fatal(err)
	}
	_ = os.Remove(dir)
	s, err := Up(t.Context(), Options{
		Name: fmt.Sprintf("t%d", os.Getpid()), Coordinators: coordinators, Dir: dir,
		Helper: []string{exe}, NoDaemons: true, APIListen: "none", Log: zap.NewNop(), KeepFiles: os.Getenv("PVC_SANDBOX_KEEP") != "",
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Down)
	return s
}

// give puts a floating address on a node, or takes it away, as its guard would.
func give(t *testing.T, n *Node, a cluster.FloatingAddress, on bool) {
	t.Helper()
	ns, err := n.namespace()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.close()
	h, err := netlink.NewHandleAt(netns.NsHandle(ns.fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	link, err := h.LinkByName(a.Interface)
	if err != nil {
		t.Fatal(err)
	}
	if on {
		err = addAddress(h, link, a.Prefix)
	} else {
		addr, _ := netlink.ParseAddr(a.Prefix.String())
		err = h.AddrDel(link, addr)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// until waits at most five seconds for a condition.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("never came about: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func answering(s *Sandbox, addr int, n *Node) func() bool {
	return func() bool {
		return s.prober.log.answersNow(addr, n.Plan.Index)
	}
}

func TestEnsembleLosesANodeAndGetsItBack(t *testing.T) {
	s := bareSandbox(t, 3)
	ctx := t.Context()
	leader, err := s.ZooKeeperLeader(ctx)
	if err != nil {
		t.Fatal(err)
	}
	pid := leader.running.pid
	if err := leader.Off(); err != nil {
		t.Fatal(err)
	}
	if identify(pid).PID != 0 {
		t.Errorf("PID 1 of %s, process %d, outlived its power cut", leader.Plan.Name, pid)
	}
	if on, _ := leader.Status(); on {
		t.Error("a node without power reads on")
	}
	until(t, "another ZooKeeper leader", func() bool {
		l, err := s.ZooKeeperLeader(ctx)
		return err == nil && l != leader
	})
	if err := leader.On(); err != nil {
		t.Fatal(err)
	}
	if err := s.waitEnsemble(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestProberSeesWhoAnswersAndForHowLongNobodyDid(t *testing.T) {
	s := bareSandbox(t, 1)
	n := s.nodes[0]
	for i, a := range FloatingAddresses() {
		give(t, n, a, true)
		until(t, "an answer for "+a.Name, answering(s, i, n))
		from := now()
		give(t, n, a, false)
		time.Sleep(100 * time.Millisecond)
		give(t, n, a, true)
		until(t, "an answer again", answering(s, i, n))
		to := now()
		s.prober.settle(t.Context())
		rep := s.prober.log.window(i, from.Add(-50*time.Millisecond), to)
		if got := rep.Silence.Length(); got < 90*time.Millisecond || rep.Open {
			t.Errorf("%s: silence %v (open %v), want about 100 ms", a.Name, got, rep.Open)
		}
		if rep.Rounds != 0 {
			t.Errorf("%s: %d rounds answered twice by a single node", a.Name, rep.Rounds)
		}
	}
}

func TestOverlapIsSeenThoughTheNeighbourCacheHidesIt(t *testing.T) {
	s := bareSandbox(t, 2)
	a, b := s.nodes[0], s.nodes[1]
	for i, addr := range FloatingAddresses() {
		give(t, a, addr, true)
		until(t, "an answer", answering(s, i, a))
		from := now()
		give(t, b, addr, true) // unannounced: the client goes on asking the first
		until(t, "both answer for 30 ms", func() bool {
			return s.prober.log.window(i, from, now()).Twice.Length() >= 30*time.Millisecond
		})
		to := now()
		give(t, b, addr, false)
		until(t, "both have held it as long as both have answered", func() bool {
			return heldTwice(s.history.Entries(), addr.Name, from, now()).Length() >= 30*time.Millisecond
		})
		s.prober.settle(t.Context())
		rep := s.prober.log.window(i, from, to)
		if got := rep.Twice.Length(); got < 30*time.Millisecond || got > to.Sub(from) {
			t.Errorf("%s: answered twice for %v of %v", addr.Name, got, to.Sub(from))
		}
	}
}

func TestNothingIsLeftBehind(t *testing.T) {
	s := bareSandbox(t, 1)
	dir, cgroup, pid := s.Dir(), s.cgroup, s.nodes[0].running.pid
	s.Down()
	for _, path := range []string{dir, cgroup} {
		if _, err := os.Stat(path); path != "" && err == nil {
			t.Errorf("%s is left behind", path)
		}
	}
	if identify(pid).PID != 0 {
		t.Errorf("process %d is left behind", pid)
	}
}

func TestBMCSwitchesTheNode(t *testing.T) {
	s := bareSandbox(t, 1)
	n := s.nodes[0]
	p := bmcPower{n}
	if err := p.Off(); err != nil {
		t.Fatal(err)
	}
	if on, _ := p.Status(); on {
		t.Error("on after off")
	}
	if err := p.On(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), ensembleTimeout)
	defer cancel()
	if err := s.waitEnsemble(ctx); err != nil {
		t.Fatal(err)
	}
}

// TestADeafServerIsStartedAgain: here one that is stopped and whose log says
// that it is deaf; one that is only stopped is left to whoever has stopped it.
func TestADeafServerIsStartedAgain(t *testing.T) {
	s := bareSandbox(t, 1)
	n := s.nodes[0]
	ctx, cancel := context.WithTimeout(t.Context(), ensembleTimeout)
	defer cancel()
	pid := func() int {
		have, err := n.Programs(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return have[progZooKeeper].PID
	}
	was := pid()
	if err := n.Signal(ctx, progZooKeeper, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for s.zkMode(ctx, n) != "" && ctx.Err() == nil { // its threads stop one by one
	}
	var care nurse
	if care.look(ctx, []*Node{n}); pid() != was {
		t.Error("a server that was stopped has been started again")
	}
	f, err := os.OpenFile(filepath.Join(n.Dir, "log", progZooKeeper+".log"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteString("1 [WorkerReceiver[myid=1]] ERROR x - Thread Thread[WorkerReceiver[myid=1],5,main] died\n")
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.waitEnsemble(ctx); err != nil {
		t.Error(err)
	}
	if pid() == was {
		t.Errorf("a deaf server serves without having been started again: pid %d, then %d", was, pid())
	}
}

// A cut keeps the node from the store and from nothing else, and a power cut of
// the node does not end it.
func TestACutIsOfTheStoreAloneAndOutlivesPower(t *testing.T) {
	s := bareSandbox(t, 3)
	ctx := t.Context()
	leader, err := s.ZooKeeperLeader(ctx)
	if err != nil {
		t.Fatal(err)
	}
	n := s.others(leader)[0]
	if err := n.setCut("store", &cut{in: true, out: true, ports: storePorts}); err != nil {
		t.Fatal(err)
	}
	until(t, "a server that nobody reaches", func() bool { return s.zkMode(ctx, n) == "" })
	if err := in(leader, "ping", "-c", "1", "-W", "1", n.Plan.Cluster.Addr().String()); err != nil {
		t.Errorf("cut off from more than the store: %v", err)
	}
	if _, err := s.ZooKeeperLeader(ctx); err != nil {
		t.Errorf("the others lost their leader: %v", err)
	}
	if err := n.Off(); err != nil {
		t.Fatal(err)
	}
	if err := n.On(); err != nil {
		t.Fatal(err)
	}
	if err := in(n, "nft", "list", "table", "inet", cutTable); err != nil {
		t.Errorf("the power cut ended the cut: %v", err)
	}
	if err := n.mendCuts(); err != nil {
		t.Fatal(err)
	}
	if err := s.waitEnsemble(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestACutOneWayStopsOneWay(t *testing.T) {
	s := bareSandbox(t, 2)
	a, b := s.nodes[0], s.nodes[1]
	if err := a.setCut("to b", &cut{out: true, peer: b.Plan.Cluster.Addr()}); err != nil {
		t.Fatal(err)
	}
	heard := func() bool { return in(a, "ping", "-c", "1", "-W", "1", b.Plan.Cluster.Addr().String()) == nil }
	if heard() {
		t.Error("what is cut goes through")
	}
	if err := in(a, "ping", "-c", "1", "-W", "1", hostIn(clusterNet4, clientHost).Addr().String()); err != nil {
		t.Errorf("cut off from everybody: %v", err)
	}
	if err := a.setCut("to b", nil); err != nil {
		t.Fatal(err)
	}
	if !heard() {
		t.Error("a cut that was ended goes on")
	}
}
