package doctor

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// said is a finding as the tables below write it: "verdict subject: words".
func said(findings []Finding) string {
	var lines []string
	for _, f := range findings {
		lines = append(lines, fmt.Sprintf("%s %s %s: %s → %s", f.Verdict, f.Check, f.Subject, f.Text, f.Cure))
	}
	return strings.Join(lines, "\n")
}

// expect fails unless a finding has the verdict, the check, the subject and
// every word; the words may stand in its text or its cure.
func expect(t *testing.T, findings []Finding, v Verdict, check, subject string, words ...string) {
	t.Helper()
next:
	for _, f := range findings {
		if f.Verdict != v || f.Check != check || f.Subject != subject {
			continue
		}
		for _, w := range words {
			if !strings.Contains(f.Text+" "+f.Cure, w) {
				continue next
			}
		}
		return
	}
	t.Errorf("no %s of %s about %q with %q in\n%s", v, check, subject, words, said(findings))
}

// nothingBut fails where any finding is worse than the verdicts that are allowed.
func nothingBut(t *testing.T, findings []Finding, allowed ...Verdict) {
	t.Helper()
	for _, f := range findings {
		fine := false
		for _, v := range allowed {
			fine = fine || f.Verdict == v
		}
		if !fine {
			t.Errorf("%s", said([]Finding{f}))
		}
	}
}

func sound(address, mode string) Server {
	return Server{Address: address, Version: "3.8.0", Mode: mode, Tick: 200 * time.Millisecond, Sync: 4, Clients: 60, Members: 3,
		Fsync: true, FsyncAvg: 3 * time.Millisecond, FsyncMax: 80 * time.Millisecond}
}

func ensemble() []Server {
	return []Server{sound("a:2181", "follower"), sound("b:2181", "leader"), sound("c:2181", "follower")}
}

func TestStore(t *testing.T) {
	for name, c := range map[string]struct {
		change  func(s []Server) []Server
		verdict Verdict
		subject string
		words   []string
	}{
		"sound": {nil, OK, "quorum", []string{"3 of 3", "b:2181 leads"}},
		"sound server": {nil, OK, "a:2181",
			[]string{"follower", "3.8.0", "fsync 3ms on average, 80ms"}},
		"one away": {func(s []Server) []Server {
			s[2] = Server{Address: "c:2181", Trouble: "connection refused"}
			return s
		}, Problem, "c:2181", []string{"connection refused", "systemctl status zookeeper"}},
		"one more is too many": {func(s []Server) []Server {
			s[2] = Server{Address: "c:2181", Trouble: "connection refused"}
			return s
		}, Warning, "quorum", []string{"2 of 3", "one more"}},
		"no majority": {func(s []Server) []Server {
			s[0].Trouble, s[2].Trouble = "away", "away"
			return s
		}, Problem, "quorum", []string{"1 of 3", "majority is 2"}},
		"no leader": {func(s []Server) []Server {
			s[1].Mode = "follower"
			return s
		}, Problem, "quorum", []string{"none of them leads"}},
		"two leaders": {func(s []Server) []Server {
			s[0].Mode = "leader"
			return s
		}, Problem, "quorum", []string{"a:2181 and b:2181 both lead"}},
		"each alone": {func(s []Server) []Server {
			s[0].Mode, s[1].Mode = "standalone", "standalone"
			return s
		}, Problem, "quorum", []string{"a:2181, b:2181 stand alone", "server.N"}},
		"idle": {func(s []Server) []Server {
			s[0] = Server{Address: "a:2181", Idle: true, Clients: -1}
			return s
		}, Problem, "a:2181", []string{"no majority"}},
		"a single one": {func([]Server) []Server { return []Server{{Address: "a:2181", Mode: "standalone", Clients: -1}} }, OK, "quorum", []string{"1 of 1"}},
		"words refused": {func(s []Server) []Server {
			s[0] = Server{Address: "a:2181", Mode: "follower", Refused: []string{"conf", "mntr"}, Clients: -1}
			return s
		}, Unchecked, "a:2181", []string{"conf, mntr", "syncLimit", "fsync times", "4lw.commands.whitelist=srvr,mntr,conf,ruok"}},
		"all words refused": {func([]Server) []Server {
			return []Server{{Address: "a:2181", Refused: []string{"srvr", "conf", "mntr"}, Clients: -1}}
		}, Unchecked, "quorum", []string{"which of them leads is not told"}},
		"slow disk": {func(s []Server) []Server {
			s[0].FsyncAvg = 40 * time.Millisecond
			return s
		}, Warning, "a:2181", []string{"40ms", "dataLogDir"}},
		"a disk that hung": {func(s []Server) []Server {
			s[0].FsyncMax = 4 * time.Second
			return s
		}, Warning, "a:2181", []string{"4s", "dataLogDir"}},
		"few connections": {func(s []Server) []Server {
			s[0].Clients = 3
			return s
		}, Warning, "a:2181", []string{"takes 3 connections", "maxClientCnxns"}},
		"servers not listed": {func(s []Server) []Server {
			s[0].Members = 5
			return s
		}, Warning, "a:2181", []string{"5 voting servers", "lists 3"}},
		"stock ticks": {func(s []Server) []Server {
			s[0].Tick, s[0].Sync = 2*time.Second, 5
			return s
		}, Warning, "a:2181", []string{"10s", "4s", "syncLimit × tickTime"}},
		"half upgraded": {func(s []Server) []Server {
			s[2].Version = "3.9.3"
			return s
		}, Warning, "versions", []string{"a:2181 3.8.0", "c:2181 3.9.3", "the leader last"}},
		"longer gaps than the settings know": {func(s []Server) []Server {
			s[0].Tick = 500 * time.Millisecond
			return s
		}, Warning, "a:2181", []string{"= 3s", "write_gap is 1.8s", "timing.write_gap to 3s"}},
		"ticks longer than the session": {func(s []Server) []Server {
			s[0].Tick = 4 * time.Second
			return s
		}, Problem, "a:2181", []string{"session_timeout 6s", "8s"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := ensemble()
			if c.change != nil {
				s = c.change(s)
			}
			expect(t, Store(s, 6*time.Second, cluster.ProfileLAN(), cluster.TimingOptions{Gate: true}), c.verdict, CheckStore, c.subject, c.words...)
		})
	}
	nothingBut(t, Store(ensemble(), 6*time.Second, cluster.ProfileLAN(), cluster.TimingOptions{Gate: true}), OK)
}

// What the settings break by themselves is told by the settings, once.
func TestStoreTellsOnlyWhatTheServersBreak(t *testing.T) {
	timing := cluster.ProfileLAN()
	timing.WriteGap = 4 * time.Second
	nothingBut(t, Store(ensemble(), 6*time.Second, timing, cluster.TimingOptions{Gate: true}), OK)
}

func TestAccess(t *testing.T) {
	for name, c := range map[string]struct {
		facts   Access
		verdict Verdict
		words   string
	}{
		"open":       {Access{}, Warning, "zookeeper.auth"},
		"own":        {Access{Identity: "password of user pvc"}, OK, "password of user pvc"},
		"not read":   {Access{Identity: "password", Tree: "no session"}, Unchecked, "no session"},
		"open still": {Access{Identity: "password", Open: true}, Problem, "setAcl"},
	} {
		t.Run(name, func(t *testing.T) {
			expect(t, Accesses(c.facts), c.verdict, CheckAccess, "tree", c.words)
		})
	}
}

func node(n cluster.NodeID) cluster.NodeView {
	at := int64(1_000_000_000)
	return cluster.NodeView{Name: n,
		Mode:      cluster.Versioned[cluster.Mode]{Value: cluster.Coordinator, Present: true},
		Daemon:    cluster.Versioned[cluster.DaemonState]{Value: cluster.DaemonRun, Present: true},
		Router:    cluster.Versioned[cluster.RouterState]{Value: cluster.RouterSecondary, Present: true},
		Keepalive: cluster.Versioned[int64]{Value: at, Present: true, WrittenMS: at*1000 + 400},
		Alive:     cluster.Versioned[cluster.Alive]{Value: cluster.Alive{Incarnation: "boot.1"}, Present: true},
	}
}

// records are of three nodes that live, with hv1 as primary.
func records(change ...func(*Records)) Records {
	nodes := map[cluster.NodeID]cluster.NodeView{}
	for _, n := range []cluster.NodeID{"hv1", "hv2", "hv3"} {
		nodes[n] = node(n)
	}
	r := Records{Snapshot: &cluster.Snapshot{Nodes: nodes,
		ClusterName: cluster.Versioned[string]{Value: "demo", Present: true},
		Lease:       cluster.Versioned[cluster.Lease]{Value: cluster.Lease{Holder: "hv1"}, Present: true}},
		Views: map[cluster.NodeID]cluster.View{}, Tests: map[cluster.NodeID]cluster.FenceTests{}}
	for _, c := range change {
		c(&r)
	}
	return r
}

// with changes one node of the records.
func with(n cluster.NodeID, change func(*cluster.NodeView)) func(*Records) {
	return func(r *Records) {
		v := r.Snapshot.Nodes[n]
		change(&v)
		r.Snapshot.Nodes[n] = v
	}
}

func TestCluster(t *testing.T) {
	fence := func(stage cluster.FenceStage) func(*Records) {
		return with("hv2", func(v *cluster.NodeView) {
			v.Fence = cluster.Versioned[cluster.FenceRecord]{Present: true, Value: cluster.FenceRecord{ID: "f", Stage: stage, Tries: 3}}
		})
	}
	view := func(v cluster.View) func(*Records) { return func(r *Records) { r.Views["hv2"] = v } }
	for name, c := range map[string]struct {
		change  func(*Records)
		verdict Verdict
		subject string
		words   []string
	}{
		"not initialised": {func(r *Records) { r.Snapshot.ClusterName.Present = false }, Problem, "tree", []string{"pvc cluster init"}},
		"no primary":      {func(r *Records) { r.Snapshot.Lease.Value.Holder = "" }, Problem, "primary", []string{"pvc explain primary"}},
		"primary is gone": {with("hv1", func(v *cluster.NodeView) { v.Alive.Present = false }), Problem, "primary", []string{"hv1", "does not live"}},
		"no session":      {with("hv2", func(v *cluster.NodeView) { v.Alive.Present = false }), Problem, "hv2", []string{"no live session", "pvc explain hv2"}},
		"dead":            {with("hv2", func(v *cluster.NodeView) { v.Daemon.Value = cluster.DaemonDead }), Problem, "hv2", []string{"is dead"}},
		"stopped":         {with("hv2", func(v *cluster.NodeView) { v.Daemon.Value = cluster.DaemonStop }), Warning, "hv2", []string{`"stop"`}},
		"fence failed":    {fence(cluster.FenceFailed), Problem, "hv2", []string{"failed 3 times", "pvc explain hv2"}},
		"fence manual":    {fence(cluster.FenceManual), Problem, "hv2", []string{"waits for an operator"}},
		"fence under way": {fence(cluster.FenceVerify), Warning, "hv2", []string{"stage verify"}},
		"fence over":      {fence(cluster.FenceDone), OK, "hv2", []string{"runs"}},
		"maintenance": {func(r *Records) {
			r.Snapshot.Maintenance.Value = true
			r.Snapshot.MaintenanceRecord.Value = cluster.MaintenanceRecord{Owner: "ada", Reason: "a switch"}
		}, Warning, "maintenance", []string{"by ada, for a switch", "maintenance off"}},
		"failover off": {func(r *Records) {
			r.Snapshot.Failover = cluster.Versioned[cluster.FailoverSettings]{Present: true, Value: cluster.FailoverSettings{MaxCount: 1}}
		}, Warning, "autofailover", []string{"turned off"}},
		"budget spent": {func(r *Records) {
			r.Snapshot.Failover = cluster.Versioned[cluster.FailoverSettings]{Present: true, Value: cluster.FailoverSettings{Enabled: true, MaxCount: 2, Count: 2}}
		}, Problem, "autofailover", []string{"2 of 2", "autofailover reset"}},
		"service":   {view(cluster.View{ServiceFault: "dns ended"}), Problem, "hv2", []string{"dns ended", "journalctl"}},
		"guard":     {view(cluster.View{GuardFaults: []string{"no room"}}), Problem, "hv2", []string{"no room"}},
		"preflight": {view(cluster.View{Problems: []string{"no eth9"}}), Problem, "hv2", []string{"no eth9"}},
		"fault":     {view(cluster.View{Faults: []string{"certificate runs out"}}), Warning, "hv2", []string{"certificate runs out"}},
		"unreadable": {func(r *Records) {
			r.Snapshot.Failover = cluster.Versioned[cluster.FailoverSettings]{Present: true, Err: errors.New("rubbish")}
		}, Problem, "records", []string{"failover settings", "rubbish", "pvc cluster status"}},
		"unreadable node": {with("hv2", func(v *cluster.NodeView) { v.Record.Err = errors.New("rubbish") }), Problem, "hv2", []string{"registration", "rubbish"}},
		"doubt":           {func(r *Records) { r.Doubts = []string{"view of hv2 cannot be read"} }, Unchecked, "", []string{"view of hv2"}},
	} {
		t.Run(name, func(t *testing.T) {
			expect(t, Cluster(records(c.change)), c.verdict, CheckCluster, c.subject, c.words...)
		})
	}
	nothingBut(t, Cluster(records()), OK)
	silent := with("hv2", func(v *cluster.NodeView) { v.Alive.Present = false })
	for _, f := range Cluster(records(silent, view(cluster.View{ServiceFault: "old news"}))) {
		if strings.Contains(f.Text, "old news") {
			t.Errorf("the word of a node that is gone was taken: %s", f.Text)
		}
	}
}

// A device's fault that the primary publishes as its own, too, is told once, by
// the test.
func TestDeviceFaultIsToldOnce(t *testing.T) {
	r := records(func(r *Records) {
		r.Views["hv1"] = cluster.View{Faults: []string{"fence device: bmc of hv2 is deaf"}}
		r.Tests["hv2"] = cluster.FenceTests{By: "hv1", Devices: []cluster.DeviceReport{{Device: "bmc", Fault: "unreachable", Detail: "bmc of hv2 is deaf"}}}
	})
	nothingBut(t, Cluster(r), OK)
	expect(t, Tests(r, 0), Problem, CheckFencing, "hv2/bmc", "deaf")
}

func TestClocks(t *testing.T) {
	by := func(d time.Duration) func(*cluster.NodeView) {
		return func(v *cluster.NodeView) { v.Keepalive.Value += int64(d / time.Second) }
	}
	nothingBut(t, Clocks(records()), OK)
	nothingBut(t, Clocks(records(with("hv3", by(time.Second)))), OK)
	expect(t, Clocks(records(with("hv3", by(5*time.Second)))), Warning, CheckClocks, "hv3", "5s ahead", "chronyc")
	expect(t, Clocks(records(with("hv2", by(-time.Hour)))), Problem, CheckClocks, "hv2", "1h0m0s behind", "timedatectl")
	for _, f := range Clocks(records(with("hv2", by(-time.Hour)))) {
		if f.Subject != "hv2" {
			t.Errorf("the clock of %s is right", f.Subject)
		}
	}
	gone := func(v *cluster.NodeView) { v.Alive.Present = false; v.Keepalive.Value -= 3600 }
	nothingBut(t, Clocks(records(with("hv3", gone))), OK) // its last keepalive is no clock
	expect(t, Clocks(records(with("hv3", gone), with("hv2", gone))), Unchecked, CheckClocks, "", "nothing to compare")
}

func TestFencing(t *testing.T) {
	device := func(n cluster.NodeID) Device { return Device{Node: n, Name: "bmc", Type: "ipmi"} }
	all := []Device{device("hv1"), device("hv2"), device("hv3")}
	tested := func(r *Records) {
		for n := range r.Snapshot.Nodes {
			r.Tests[n] = cluster.FenceTests{By: "hv1", Devices: []cluster.DeviceReport{{Node: n, Device: "bmc", Power: "on", UnixMS: 1000}}}
		}
	}
	hour := int64(time.Hour / time.Millisecond)
	for name, c := range map[string]struct {
		fences  Fences
		records func(*Records)
		verdict Verdict
		subject string
		words   []string
	}{
		"sound":            {Fences{Devices: all, NowMS: 61_000}, tested, OK, "hv2/bmc", []string{"ready", "power on", "hv1 1m0s ago"}},
		"never tested":     {Fences{Devices: all}, nil, Unchecked, "hv2/bmc", []string{"pvc fence test hv2 --wait"}},
		"old test":         {Fences{Devices: all, NowMS: 5 * hour, TestEvery: time.Hour}, tested, Warning, "hv2/bmc", []string{"4h59m59s old", "test_schedule"}},
		"age not judged":   {Fences{Devices: all, NowMS: 5 * hour}, tested, OK, "hv2/bmc", []string{"4h59m59s ago"}},
		"no device":        {Fences{Devices: all[:2]}, tested, Problem, "hv3", []string{"nothing can prove hv3 dead", "fencing.nodes"}},
		"none at all":      {Fences{}, nil, Warning, "", []string{"no fence device"}},
		"none, and owed":   {Fences{DeadProof: true}, nil, Problem, "", []string{"require_dead_proof", "pvc fence confirm"}},
		"unknown node":     {Fences{Devices: append([]Device{device("hv9")}, all...)}, tested, Warning, "hv9", []string{"no node of this name"}},
		"another case":     {Fences{Devices: []Device{device("HV1"), all[1], all[2]}}, tested, OK, "HV1/bmc", nil},
		"leaking ipmi":     {Fences{Devices: []Device{{Node: "hv1", Name: "bmc", Agent: "fence_ipmilan", Leak: "gives it to ipmitool; type ipmi does not"}}}, nil, Problem, "hv1/bmc", []string{"fence_ipmilan", "`type: ipmi`"}},
		"leaking other":    {Fences{Devices: []Device{{Node: "hv1", Name: "vm", Agent: "fence_vmware", Leak: "gives it to its helper"}}}, nil, Problem, "hv1/vm", []string{"fence_vmware"}},
		"no password":      {Fences{Devices: []Device{{Node: "hv1", Name: "bmc", Trouble: "no such file"}}}, nil, Problem, "hv1/bmc", []string{"no such file"}},
		"not root":         {Fences{Devices: []Device{{Node: "hv1", Name: "bmc", Hidden: "permission denied"}}}, nil, Unchecked, "hv1/bmc", []string{"as root"}},
		"exposed":          {Fences{Devices: []Device{{Node: "hv1", Name: "bmc", Exposed: []string{"bmc.pass has mode 0644"}}}}, nil, Problem, "hv1/bmc", []string{"0644"}},
		"device is deaf":   {Fences{Devices: all}, func(r *Records) { tested(r); r.Tests["hv2"].Devices[0].Fault = "unreachable" }, Problem, "hv2/bmc", []string{"unreachable", "pvc fence test hv2"}},
		"a note":           {Fences{Devices: all}, func(r *Records) { tested(r); r.Tests["hv2"].Devices[0].Notes = []string{"odd"} }, Warning, "hv2/bmc", []string{"odd"}},
		"a cluster of one": {Fences{}, func(r *Records) { delete(r.Snapshot.Nodes, "hv2"); delete(r.Snapshot.Nodes, "hv3") }, OK, "", []string{"one node"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := records()
			if c.records != nil {
				c.records(&r)
			}
			expect(t, Fencing(c.fences, &r), c.verdict, CheckFencing, c.subject, c.words...)
		})
	}
	expect(t, Fencing(Fences{Devices: all}, nil), Unchecked, CheckFencing, "", "records could not be read")
}

func TestSecrets(t *testing.T) {
	for name, c := range map[string]struct {
		key     Key
		verdict Verdict
		words   string
	}{
		"none":        {Key{}, OK, "no password is sealed"},
		"sound":       {Key{File: "/k", Needed: true}, OK, "only its owner"},
		"unused, bad": {Key{File: "/k", Trouble: "it has mode 0644"}, Problem, "0644"},
		"missing":     {Key{File: "/k", Needed: true, Trouble: "it is missing"}, Problem, "from another coordinator"},
		"not root":    {Key{File: "/k", Hidden: "permission denied"}, Unchecked, "as root"},
	} {
		t.Run(name, func(t *testing.T) { expect(t, Secrets(c.key), c.verdict, CheckSecrets, c.key.File, c.words) })
	}
}

func TestCertificates(t *testing.T) {
	good := Certificate{Set: true, File: "/n.pem", KeyFile: "/n.key", KeyMode: 0o600, Name: "spiffe://demo/node/hv1", Left: 300 * 24 * time.Hour}
	for name, c := range map[string]struct {
		change  func(*Certificate)
		verdict Verdict
		subject string
		words   []string
	}{
		"sound":      {func(*Certificate) {}, OK, "/n.pem", []string{"node/hv1", "300 days"}},
		"not set":    {func(c *Certificate) { *c = Certificate{} }, Warning, "", []string{"pvc pki init"}},
		"wrong name": {func(c *Certificate) { c.Trouble = "it is of hv2" }, Problem, "/n.pem", []string{"it is of hv2"}},
		"not root":   {func(c *Certificate) { c.Hidden = "permission denied" }, Unchecked, "/n.pem", []string{"as root"}},
		"soon":       {func(c *Certificate) { c.Expiry, c.Left = "expires in 5 days", 5*24*time.Hour }, Warning, "/n.pem", []string{"5 days"}},
		"expired":    {func(c *Certificate) { c.Expiry, c.Left = "expired on", -time.Hour }, Problem, "/n.pem", []string{"expired"}},
		"key open":   {func(c *Certificate) { c.KeyMode = 0o640 }, Problem, "/n.key", []string{"0640", "chmod 600"}},
	} {
		t.Run(name, func(t *testing.T) {
			facts := good
			c.change(&facts)
			expect(t, Certificates(facts), c.verdict, CheckCerts, c.subject, c.words...)
		})
	}
}

func TestWatchdogs(t *testing.T) {
	armed := func(hardware bool) func(*cluster.NodeView) {
		return func(v *cluster.NodeView) {
			v.Record.Value.Watchdog = &cluster.WatchdogWord{Armed: true, Hardware: hardware, TimeoutMS: 5000}
		}
	}
	all := func(hardware bool) func(*Records) {
		return func(r *Records) {
			for n := range r.Snapshot.Nodes {
				with(n, armed(hardware))(r)
			}
		}
	}
	hard := cluster.WatchdogInfo{Identity: "i6300ESB", Hardware: true}
	soft := cluster.WatchdogInfo{Identity: "Software Watchdog"}
	for name, c := range map[string]struct {
		facts   Watchdog
		records func(*Records)
		verdict Verdict
		subject string
		words   []string
	}{
		"none":              {Watchdog{}, nil, OK, "", []string{"nothing rests on one"}},
		"none, and wanted":  {Watchdog{SelfFence: true}, nil, Problem, "", []string{"watchdog.device", "self_fence"}},
		"not there":         {Watchdog{Path: "/dev/watchdog", Trouble: "no such device", FailedFence: true}, nil, Problem, "/dev/watchdog", []string{"no such device", "failed_fence"}},
		"sound":             {Watchdog{Path: "/dev/watchdog", Info: hard, FailedFence: true}, all(true), OK, "hv2", []string{"armed", "5s"}},
		"one has not armed": {Watchdog{Path: "/dev/watchdog", Info: hard, FailedFence: true}, with("hv1", armed(true)), Problem, "hv3", []string{"no armed watchdog"}},
		"softdog":           {Watchdog{Path: "/dev/watchdog", Info: soft, FailedFence: true}, all(true), Problem, "/dev/watchdog", []string{"softdog"}},
		"softdog elsewhere": {Watchdog{Path: "/dev/watchdog", Info: hard, FailedFence: true}, all(false), Problem, "hv2", []string{"proves nothing"}},
		"softdog, trusted":  {Watchdog{Path: "/dev/watchdog", Info: soft, FailedFence: true, TrustSoft: true}, all(false), OK, "hv2", []string{"armed"}},
		"own, not armed":    {Watchdog{Path: "/dev/watchdog", Info: hard, SelfFence: true, Self: "hv1"}, nil, Problem, "hv1", []string{"journalctl -u pvc-guard"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := records()
			if c.records != nil {
				c.records(&r)
			}
			expect(t, Watchdogs(c.facts, &r), c.verdict, CheckWatchdog, c.subject, c.words...)
		})
	}
	expect(t, Watchdogs(Watchdog{Path: "/dev/watchdog", Info: hard}, nil), Unchecked, CheckWatchdog, "", "records could not be read")
}

func TestUnits(t *testing.T) {
	for name, c := range map[string]struct {
		unit    Unit
		verdict Verdict
		words   string
	}{
		"sound":         {Unit{Ours: true, Load: "loaded", Active: "active", File: "enabled"}, OK, "active and enabled"},
		"stopped":       {Unit{Ours: true, Load: "loaded", Active: "failed", File: "enabled"}, Problem, "is failed"},
		"not enabled":   {Unit{Ours: true, Load: "loaded", Active: "active", File: "disabled"}, Problem, "systemctl enable u"},
		"barred":        {Unit{Ours: true, Load: "loaded", Active: "active", File: "enabled", Barred: "user u cannot read f: `chgrp u f`"}, Problem, "cannot read f"},
		"not installed": {Unit{Ours: true, Load: "not-found"}, Unchecked, "make install"},
		"role's":        {Unit{Load: "loaded", Active: "inactive", File: "disabled"}, OK, "inactive now"},
		"role's, at boot": {Unit{Load: "loaded", Active: "active", File: "enabled"}, Problem,
			"systemctl disable u"},
		"role's, masked": {Unit{Load: "masked"}, Problem, "unmask"},
	} {
		t.Run(name, func(t *testing.T) {
			c.unit.Name = "u"
			expect(t, Units([]Unit{c.unit}), c.verdict, CheckUnits, "u", c.words)
		})
	}
}

func TestLeftovers(t *testing.T) {
	ours := Address{CIDR: "10.0.0.10/24", Interface: "eth0", Ours: true, Floating: true}
	foreign := Address{CIDR: "10.0.0.10/24", Interface: "eth0", Floating: true}
	r := records()
	nothingBut(t, Addresses("hv1", []Address{ours}, &r), OK)
	nothingBut(t, Addresses("hv2", nil, &r), OK)
	expect(t, Addresses("hv2", []Address{ours}, &r), Problem, CheckLeftovers, "10.0.0.10/24 on eth0", "left over", "hv1")
	expect(t, Addresses("hv1", []Address{foreign}, &r), Problem, CheckLeftovers, "10.0.0.10/24 on eth0", "network settings")
	expect(t, Addresses("hv1", []Address{ours}, nil), Unchecked, CheckLeftovers, "addresses", "records could not be read")
	moving := records(func(r *Records) {
		r.Snapshot.Transition = cluster.Versioned[cluster.Transition]{Present: true, Value: cluster.Transition{ID: "t", State: cluster.TransitionRunning}}
	})
	expect(t, Addresses("hv2", []Address{ours}, &moving), Unchecked, CheckLeftovers, "addresses", "just moving")

	child := func(c cluster.LockChild) Records {
		return records(func(r *Records) { r.Snapshot.RoleLock = []cluster.LockChild{c} })
	}
	nothingBut(t, Locks(records()), OK)
	nothingBut(t, Locks(child(cluster.LockChild{Owner: cluster.LockOwner{Node: "hv2", Incarnation: "boot.1"}})), OK)
	expect(t, Locks(child(cluster.LockChild{Owner: cluster.LockOwner{Node: "hv2", Incarnation: "boot.0"}})), Warning, CheckLeftovers, "role lock", "earlier start of node hv2")
	expect(t, Locks(child(cluster.LockChild{Foreign: true, Name: "x__lock__1"})), Warning, CheckLeftovers, "role lock", "x__lock__1")
}

func TestFile(t *testing.T) {
	expect(t, File(Settings{File: "/f", Words: "node hv1"}), OK, CheckSettings, "/f", "node hv1")
	expect(t, File(Settings{File: "/f", Refusals: []string{"/f: node.name: is missing"}}), Problem, CheckSettings, "/f", "node.name: is missing", "config check")
	expect(t, File(Settings{File: "/f", Timing: []string{"2s exceeds 1s: lengthen it"}}), Warning, CheckTiming, "", "2s", "1s")
	expect(t, Differ("/a", []string{"cluster.name is a, and b in /f"}), Warning, CheckSettings, "/a", "a, and b")
	expect(t, OtherNodes("hv1", records()), Unchecked, CheckSettings, "hv2, hv3", "pvc doctor")
	expect(t, OtherNodes("hv9", records()), Problem, CheckSettings, "hv9", "registered")
}

// The worst stand last, and each is counted.
func TestReport(t *testing.T) {
	r := NewReport("hv1", "demo", []Finding{{Verdict: Problem}, {Verdict: OK}, NotMade(CheckUnits, "", "why"), {Verdict: Warning}, {Verdict: Problem, Text: "b"}})
	var order []string
	for _, f := range r.Findings {
		order = append(order, string(f.Verdict)+f.Text)
	}
	if got := strings.Join(order, " "); got != "ok uncheckedwhy warning problem problemb" {
		t.Error(got)
	}
	if got := r.Summary(); got != "2 problems, 1 warning, 1 not checked, 1 passed" {
		t.Error(got)
	}
}
