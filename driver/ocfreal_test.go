package driver

import (
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"testing"

	"pvc.internal/cluster"
)

// twoHosts makes two network namespaces that see each other, as 10.78.0.1 and .2
// on their device up0, and returns their names.
func twoHosts(t *testing.T) [2]string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
	n := bedCounter.Add(1)
	hosts := [2]string{fmt.Sprintf("pvcdrv%d-%da", os.Getpid(), n), fmt.Sprintf("pvcdrv%d-%db", os.Getpid(), n)}
	ip := func(args ...string) {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
	for _, h := range hosts {
		ip("netns", "add", h)
		t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", h).Run() })
	}
	ip("-n", hosts[0], "link", "add", "up0", "type", "veth", "peer", "name", "up0", "netns", hosts[1])
	for i, h := range hosts {
		ip("-n", h, "link", "set", "lo", "up")
		ip("-n", h, "link", "set", "up0", "up")
		ip("-n", h, "addr", "add", fmt.Sprintf("10.78.0.%d/24", i+1), "dev", "up0")
	}
	return hosts
}

// An address of IPaddr2 comes up, leaves with the copy, and with the node's own
// right.
func TestIPaddr2OfDebian(t *testing.T) {
	t.Parallel()
	hosts := twoHosts(t)
	b := newOCFBed(t, "", hosts[0])
	w := b.workload(cluster.WorkloadMovable, "heartbeat:IPaddr2", map[string]string{"ip": "10.78.0.10", "cidr_netmask": "24", "nic": "up0", "arp_count": "1"})
	has := func() bool {
		out, err := exec.Command("ip", "-n", hosts[0], "-o", "addr", "show", "dev", "up0").Output()
		return err == nil && strings.Contains(string(out), " 10.78.0.10/24")
	}
	if err := b.ocf.Check(deadlined(t), w); err != nil {
		t.Fatal(err)
	}
	b.is(w, cluster.CopyMissing)
	b.order(w, cluster.CopyStart)
	if !has() {
		t.Fatal("the address is not there")
	}
	b.restart()
	b.is(w, cluster.CopyActive)
	b.order(w, cluster.CopyStop)
	if has() {
		t.Fatal("the address stays after the stop")
	}
	b.order(w, cluster.CopyStart)
	b.expire()
	if has() {
		t.Fatal("the address outlives the node's own right")
	}
	b.entitle(bedPatience)
	w.Params["nic"] = "no0"
	if _, err := b.give(cluster.CopyOrder{Op: cluster.CopyStart, Workload: w}); err == nil || !strings.Contains(err.Error(), "configured wrongly") {
		t.Errorf("a device that is not there: %v", err)
	}
	b.holds(w, false)
}

// redisNode is one node's copy of a pair that the redis agent of Debian runs.
type redisNode struct {
	*ocfBed
	w    cluster.Workload
	conf string
}

func newRedisNode(t *testing.T, netns, host string, self cluster.NodeID) *redisNode {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		t.Skip("needs redis-server: make deps")
	}
	if _, err := user.Lookup("redis"); err != nil {
		t.Skip("needs the user redis of Debian's redis-server: make deps")
	}
	b := newOCFBed(t, "", netns)
	b.ocf.cfg.Node = self
	dir, err := os.MkdirTemp("", "pvcocfredis") // where the user redis may come
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	conf := filepath.Join(dir, "redis.conf")
	text := fmt.Sprintf("bind %s 127.0.0.1\nport 6399\nprotected-mode no\nsave \"\"\nappendonly no\ndir %s\nrepl-diskless-sync-delay 0\n", host, dir)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("chown", "-R", "redis", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	w := b.workload(cluster.WorkloadReplicated, "heartbeat:redis", map[string]string{
		"config": conf, "rundir": dir, "socket_name": "redis.sock", "pidfile_name": "redis.pid", "port": "6399", "user": "redis"})
	return &redisNode{ocfBed: b, w: w, conf: conf}
}

// redis sends one command to the node's copy.
func (n *redisNode) redis(args ...string) string {
	n.t.Helper()
	out, err := exec.Command("redis-cli", append([]string{"-s", filepath.Join(filepath.Dir(n.conf), "redis.sock")}, args...)...).CombinedOutput()
	if err != nil {
		n.t.Fatalf("redis-cli %v: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// A promotable agent that wants all of Pacemaker runs a pair: it starts, promotes,
// follows, and goes over.
func TestARedisPairOfDebiansAgent(t *testing.T) {
	t.Parallel()
	hosts := twoHosts(t)
	hv1, hv2 := newRedisNode(t, hosts[0], "10.78.0.1", "hv1"), newRedisNode(t, hosts[1], "10.78.0.2", "hv2")
	if err := hv1.ocf.Check(deadlined(t), hv1.w); err != nil {
		t.Fatal(err)
	}
	if r := hv1.order(hv1.w, cluster.CopyPromote); r.State != cluster.CopyActive {
		t.Fatalf("promoted: %+v", r)
	}
	hv1.redis("SET", "k", "v1")
	follow := func(n *redisNode, of cluster.NodeID, host string) {
		t.Helper()
		r, err := n.give(cluster.CopyOrder{Op: cluster.CopyFollow, Workload: n.w, Source: &cluster.CopySource{Node: of, Host: host}, Secret: string(of)})
		if err != nil || r.State != cluster.CopyReplica || r.Follows != of || !r.HasOffset {
			t.Fatalf("following %s: %+v, %v", of, r, err)
		}
	}
	follow(hv2, "hv1", "10.78.0.1")
	await(t, "the replica has the key", func() bool { return hv2.redis("GET", "k") == "v1" })
	if r := hv1.order(hv1.w, cluster.CopyDemote); r.State != cluster.CopyReplica {
		t.Fatalf("demoted: %+v", r)
	}
	if r := hv2.order(hv2.w, cluster.CopyPromote); r.State != cluster.CopyActive {
		t.Fatalf("promoted: %+v", r)
	}
	follow(hv1, "hv2", "10.78.0.2")
	hv2.redis("SET", "k", "v2")
	await(t, "the old head follows the new one", func() bool { return hv1.redis("GET", "k") == "v2" })
	hv2.expire()
	hv2.is(hv2.w, cluster.CopyMissing)
	hv1.order(hv1.w, cluster.CopyStop)
	hv1.is(hv1.w, cluster.CopyMissing)
}
