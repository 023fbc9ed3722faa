package zkhandler_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"

	"pvc.internal/cluster"
	"pvc.internal/zkhandler"
	"pvc.internal/zkhandler/zktest"
)

// brief are options with the patience that tests on virtual time can afford.
var brief = zkhandler.RestoreOptions{Watch: 3 * time.Second, By: "hv1"}

// aLife fills a tree with what a cluster that lives has, the worst of it
// included: a held lease, a hand-over and fences under way, orders, locks.
func aLife(t *testing.T, e *env, h *zkhandler.Handler) *zk.Conn {
	t.Helper()
	c := e.bare(t)
	must(t, h.EnsureNode(soon(t), "hv1", cluster.Coordinator))
	must(t, h.EnsureNode(soon(t), "hv2", cluster.Coordinator))
	must(t, h.EnsureNode(soon(t), "hv3", cluster.Hypervisor))
	fence := func(n cluster.NodeID, stage cluster.FenceStage, proof string) cluster.Op {
		return cluster.Create(cluster.Key{Kind: cluster.KeyFence, Node: n}, cluster.FenceRecord{ID: "f", Node: n, Incarnation: "old", Epoch: 41, Stage: stage, Proof: proof})
	}
	wantOutcome(t, h.Commit(soon(t), cluster.Txn{Purpose: "life", Ops: []cluster.Op{
		cluster.Set(cluster.Key{Kind: cluster.KeyLease}, cluster.AnyVersion, cluster.Lease{Holder: "hv1", Incarnation: "i1", Epoch: 41, TTLMillis: 4000,
			Unproven: []cluster.Unproven{{Node: "hv2", Incarnation: "lost"}}, Coordinators: []cluster.NodeID{"hv1", "hv2"}}),
		cluster.Create(cluster.Key{Kind: cluster.KeyTransition}, cluster.Transition{ID: "t", Epoch: 41, NextEpoch: 77, From: "hv1", To: "hv2", State: cluster.TransitionRunning, Phase: "B"}),
		cluster.Set(cluster.Key{Kind: cluster.KeyPrimaryNode}, cluster.AnyVersion, "hv1"),
		cluster.Set(cluster.Key{Kind: cluster.KeyMaintenance}, cluster.AnyVersion, true),
		cluster.Create(cluster.Key{Kind: cluster.KeyMaintenanceRecord}, cluster.MaintenanceRecord{Owner: "ada"}),
		cluster.Set(cluster.Key{Kind: cluster.KeyDaemonState, Node: "hv1"}, cluster.AnyVersion, cluster.DaemonRun),
		cluster.Set(cluster.Key{Kind: cluster.KeyRouterState, Node: "hv1"}, cluster.AnyVersion, cluster.RouterPrimary),
		cluster.Set(cluster.Key{Kind: cluster.KeyDomainState, Node: "hv3"}, cluster.AnyVersion, cluster.DomainReady),
		fence("hv1", cluster.FencePowerOff, ""), fence("hv2", cluster.FenceRecover, "verified_off"), fence("hv3", cluster.FenceDone, "confirmed"),
		cluster.Create(cluster.Key{Kind: cluster.KeyQuorumSet}, cluster.QuorumSet{Nodes: []cluster.NodeID{"hv1", "hv2"}, Epoch: 40}),
		cluster.Create(cluster.Key{Kind: cluster.KeyFenceOrder, Node: "hv2"}, cluster.FenceOrder{ID: "o", Node: "hv2", Action: "fence"}),
		cluster.Create(cluster.Key{Kind: cluster.KeyMemberOrder}, cluster.MemberOrder{ID: "o", Node: "hv3", Action: "remove"}),
		cluster.Create(cluster.Key{Kind: cluster.KeySecret, Name: "bmc"}, cluster.SealedSecret{Sealed: "age-encrypted"}),
		cluster.Create(cluster.Key{Kind: cluster.KeyActivity, Name: "drain-x"}, cluster.ActivityRecord{Activity: cluster.Activity{ID: "drain-x", Node: "hv1"}, Incarnation: "i1", Epoch: 41}),
		cluster.Create(cluster.Key{Kind: cluster.KeyWorkload, Name: "cache"}, cluster.Workload{Name: "cache", ID: "w1", Kind: cluster.WorkloadReplicated, Driver: cluster.DriverRedis,
			Wanted: true, Chain: []cluster.NodeID{"hv1", "hv2"}, State: cluster.WorkloadMoving, Attempts: 2, Next: &cluster.ChainMove{ID: "m", Chain: []cluster.NodeID{"hv2", "hv1"}, Epoch: 41},
			Request: &cluster.WorkloadRequest{ID: "r", Op: cluster.WorkloadPromote, Node: "hv2"}}),
		cluster.Create(cluster.Key{Kind: cluster.KeyWorkload, Name: "job"}, cluster.Workload{Name: "job", ID: "w2", Kind: cluster.WorkloadMovable, Driver: cluster.DriverExec,
			Chain: []cluster.NodeID{"hv3"}, State: cluster.WorkloadFailed, Reason: "it fell over"}),
		cluster.Create(cluster.Key{Kind: cluster.KeyReprovision}, cluster.ReprovisionSettings{Enabled: true, MaxNodes: 2, Count: 1, Reset: "asked"}),
		cluster.Create(cluster.Key{Kind: cluster.KeyRebalance}, cluster.Rebalance{ID: "b", State: cluster.RebalanceRunning, Total: 4}),
		{Kind: cluster.OpCreateEphemeral, Key: cluster.Key{Kind: cluster.KeyRoleLockChild, Name: strings.Repeat("a", 32) + "__lock__0000000003"}},
	}}), cluster.OutcomeOK)
	for _, l := range [][2]string{
		{"/agent/alive/hv1", "eph"}, {"/agent/views/hv1", "{}"}, {"/agent/leases", `{"v":1,"epoch":41}`}, {"/config/fence_lock/foreign", "x"}, {"/nodes/hv1/ipmihostname", "bmc\xff1"},
		{"/faults/disk", ""}, {"/faults/disk/message", "full"},
	} {
		p, data := l[0], l[1]
		flags := int32(0)
		if data == "eph" {
			flags = zk.FlagEphemeral
		}
		_, err := c.Create(e.root+p, []byte(data), flags, openACL)
		must(t, err)
	}
	_, err := c.Set(e.root+"/logs/hv1/messages", []byte("a line"), -1)
	must(t, err)
	for i := range 4 { // the second is trimmed: ZooKeeper counts on
		made, err := c.Create(e.root+"/agent/history/", fmt.Appendf(nil, `{"v":1,"kind":"fence","text":"event %d"}`, i), zk.FlagSequence, openACL)
		must(t, err)
		if i == 1 {
			must(t, c.Delete(made, -1))
		}
	}
	return c
}

// whole is every record of the tree, by path.
func whole(t *testing.T, e *env, c *zk.Conn, at string) map[string]string {
	t.Helper()
	all := map[string]string{}
	var walk func(string)
	walk = func(p string) {
		data, _, err := c.Get(e.root + p)
		must(t, err)
		all[p] = string(data)
		names, _, err := c.Children(e.root + p)
		must(t, err)
		for _, n := range names {
			walk(p + "/" + n)
		}
	}
	names, _, err := c.Children(e.root + at)
	must(t, err)
	for _, n := range names {
		walk(at + "/" + n)
	}
	return all
}

// dead ends what lives on a tree, and wipes it where asked.
func dead(t *testing.T, e *env, c *zk.Conn, wipe bool) {
	t.Helper()
	must(t, c.Delete(e.root+"/agent/alive/hv1", -1))
	if !wipe {
		return
	}
	paths := []string{}
	for p := range whole(t, e, c, "") {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	for _, p := range slices.Backward(paths) {
		must(t, c.Delete(e.root+p, -1))
	}
}

func encoded(t *testing.T, b zkhandler.Backup) zkhandler.Backup {
	t.Helper()
	raw, err := b.Encode()
	must(t, err)
	again, err := zkhandler.DecodeBackup(raw)
	must(t, err)
	return again
}

// What is restored is what was backed up, but for what would have somebody
// fenced, go on with something, or count twice.
func TestRestoredTree(t *testing.T) {
	inFake(t, zktest.Options{}, func(t *testing.T, e *env) {
		h := e.live(t, "a", nil)
		c := aLife(t, e, h)
		b, err := h.Backup(soon(t))
		must(t, err)
		b = encoded(t, b)
		if b.Cluster != "test" || b.Epoch != 77 || b.ZxidFirst == "" || b.ZxidLast < b.ZxidFirst {
			t.Errorf("cluster %q, epoch %d, zxid %s to %s", b.Cluster, b.Epoch, b.ZxidFirst, b.ZxidLast)
		}
		kept := map[string]bool{}
		for _, r := range b.Records {
			kept[r.Path] = true
		}
		for _, p := range []string{"/agent/alive/hv1", "/agent/views/hv1", "/agent/leases", "/agent/activities/drain-x", "/agent/member-order", "/config/fence_lock/foreign"} {
			if kept[p] {
				t.Errorf("%s is in the backup", p)
			}
		}
		if strings.Contains(fmt.Sprint(b.Records), "a line") || !kept["/agent/secrets/bmc"] {
			t.Error("a log's text is in the backup, or no secret")
		}
		dead(t, e, c, true)
		done, err := h.Restore(soon(t), b, brief)
		must(t, err)
		if want := 77 + zkhandler.EpochGap; done.Epoch != want || !done.Maintenance || done.Overwrote || len(done.Nodes) != 3 {
			t.Errorf("%+v, want epoch %d", done, want)
		}
		if name, initialised, err := h.CheckTree(soon(t)); name != "test" || !initialised || err != nil {
			t.Errorf("%q %v %v", name, initialised, err)
		}
		got := whole(t, e, c, "")
		for p, want := range map[string]string{
			"/config/primary_node": "none", "/config/maintenance": "false", "/agent/secrets/bmc": `{"v":1,"sealed":"age-encrypted"`, "/nodes/hv1/ipmihostname": "bmc\xff1",
			"/nodes/hv1/daemonstate": "stop", "/nodes/hv2/daemonstate": "stop", "/nodes/hv3/daemonstate": "stop",
			"/nodes/hv1/routerstate": "secondary", "/nodes/hv3/routerstate": "client", "/nodes/hv3/domainstate": "ready", "/nodes/hv3": "hypervisor",
			"/agent/fence-orders/hv2": "", "/faults/disk/message": "full", "/logs/hv1/messages": "",
		} {
			if have, there := got[p]; !there || !strings.HasPrefix(have, want) || want == "" && have != "" {
				t.Errorf("%s is %q, want %q", p, have, want)
			}
		}
		for _, p := range []string{"/agent/restore", "/agent/maintenance", "/agent/leases", "/agent/alive/hv1", "/agent/views/hv1", "/agent/activities/drain-x"} {
			if have, there := got[p]; there {
				t.Errorf("%s is back: %q", p, have)
			}
		}
		restoredRecords(t, got)
		s, err := h.Refresh(soon(t))
		must(t, err)
		if l := s.Lease; !l.Present || l.Err != nil || !l.Value.Released() || l.Value.Epoch != done.Epoch || len(l.Value.Coordinators) != 0 || len(l.Value.Unproven) != 1 {
			t.Errorf("the lease is %+v", l)
		}
		events, err := h.ReadHistory(soon(t), 10)
		must(t, err)
		if len(events) != 4 || events[0].Text != "event 0" || events[2].Text != "event 3" || events[3].Kind != "restored" {
			t.Errorf("the history is %+v", events)
		}
		made, err := c.Create(e.root+"/agent/history/", nil, zk.FlagSequence, openACL)
		must(t, err)
		if !strings.HasSuffix(made, "/0000000004") {
			t.Errorf("the next entry is %s", made)
		}
	})
}

// restoredRecords: whatever was under way has ended.
func restoredRecords(t *testing.T, got map[string]string) {
	t.Helper()
	for n, want := range map[string]cluster.FenceStage{"hv1": cluster.FenceCanceled, "hv2": cluster.FenceDone, "hv3": cluster.FenceDone} {
		var f cluster.FenceRecord
		if err := json.Unmarshal([]byte(got["/agent/fences/"+n]), &f); err != nil || f.Stage != want {
			t.Errorf("the fence of %s is %+v, %v; want %s", n, f, err, want)
		}
	}
	var cache, job cluster.Workload
	var rebalance cluster.Rebalance
	var reprovision cluster.ReprovisionSettings
	for name, into := range map[string]any{"workloads/cache": &cache, "workloads/job": &job, "rebalance": &rebalance, "reprovision": &reprovision} {
		must(t, json.Unmarshal([]byte(got["/agent/"+name]), into))
	}
	if cache.Request != nil || cache.Next != nil || cache.Attempts != 0 || !cache.Wanted || cache.State != cluster.WorkloadStarting || !slices.Equal(cache.Chain, []cluster.NodeID{"hv1", "hv2"}) {
		t.Errorf("the workload that was moved is %+v", cache)
	}
	if a := cache.Answer; a == nil || a.ID != "r" || a.Done || !strings.Contains(a.Text, "order it again") {
		t.Errorf("whoever waits for its order is told %+v", a)
	}
	if job.State != cluster.WorkloadFailed || job.Reason != "it fell over" {
		t.Errorf("the workload that has failed is %+v", job)
	}
	if rebalance.State != cluster.RebalanceStopped || rebalance.Text == "" || reprovision.Reset != "" || reprovision.Count != 1 {
		t.Errorf("%+v, %+v", rebalance, reprovision)
	}
	var tr cluster.Transition
	if err := json.Unmarshal([]byte(got["/agent/transition"]), &tr); err != nil || tr.State != cluster.TransitionAborted || tr.Error == "" {
		t.Errorf("the hand-over is %+v, %v", tr, err)
	}
}

// A restore refuses whatever it could do harm to, and changes nothing of it.
func TestRestoreRefuses(t *testing.T) {
	inFake(t, zktest.Options{}, func(t *testing.T, e *env) {
		h := e.live(t, "a", nil)
		c := aLife(t, e, h)
		b, err := h.Backup(soon(t))
		must(t, err)
		over := brief
		over.Overwrite = true
		refused := func(what, word string, b zkhandler.Backup, o zkhandler.RestoreOptions) {
			t.Helper()
			before := whole(t, e, c, "")
			_, err := h.Restore(soon(t), b, o)
			if !errors.Is(err, cluster.ErrRefused) || !strings.Contains(err.Error(), word) {
				t.Errorf("%s: %v, want a refusal that says %q", what, err, word)
			}
			for p, was := range before {
				if now := whole(t, e, c, "")[p]; now != was && !strings.HasSuffix(p, "/keepalive") {
					t.Errorf("%s changed %s", what, p)
				}
			}
		}
		refused("a tree that stands", "--overwrite", b, brief)
		refused("a daemon that is alive", "daemons of hv1 are alive", b, over)
		dead(t, e, c, false)
		foreign := over
		foreign.Cluster = "other"
		refused("settings of another cluster", `settings here say "other"`, b, foreign)
		stranger := b
		stranger.Records = slices.Clone(b.Records)
		stranger.Cluster, stranger.Records[slices.IndexFunc(b.Records, func(r zkhandler.BackupRecord) bool { return r.Path == "/config" })].Text = "other", "other"
		refused("another cluster's backup", `of cluster "test", the backup of "other"`, stranger, over)

		stop := make(chan struct{})
		beating := make(chan struct{})
		go func() { // alive, but for its session: it may come back any moment
			defer close(beating)
			for {
				select {
				case <-stop:
					return
				case <-time.After(time.Second):
					_, _ = c.Set(e.root+"/nodes/hv2/keepalive", []byte("7"), -1)
				}
			}
		}()
		refused("a keepalive that moves", "/nodes/hv2/keepalive was written", b, over)
		close(stop)
		<-beating

		began := time.Now()
		long, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		done, err := h.Restore(long, b, over)
		must(t, err)
		if waited := time.Since(began); waited < 4*time.Second || !done.Overwrote {
			t.Errorf("the lease's last 4 s were not waited for: %v, %+v", waited, done)
		}
		if s, err := h.Refresh(soon(t)); err != nil || s.Lease.Value.Epoch != 77+zkhandler.EpochGap {
			t.Errorf("%+v, %v", s.Lease, err)
		}
	})
}

// A restore that is killed after any of its writes leaves what everybody takes
// for a half tree, and is run again; so is one whose reply was lost.
func TestRestoreIsKilledHalfway(t *testing.T) {
	inFake(t, zktest.Options{}, func(t *testing.T, e *env) {
		h := e.live(t, "a", nil)
		c := aLife(t, e, h)
		big := strings.Repeat("x", 200_000)
		for i := range 6 { // three Multis at the least
			_, err := c.Create(e.root+fmt.Sprintf("/agent/workloads/w%d", i), []byte(big), 0, openACL)
			must(t, err)
		}
		b, err := h.Backup(soon(t))
		must(t, err)
		dead(t, e, c, true)
		isWrite := func(op zktest.OpInfo) bool { return op.TouchesBelow("/case/") && op.Op == "multi" }
		halves := 0
		for kill := 1; ; kill++ {
			if kill > 20 {
				t.Fatal("it never comes to its end")
			}
			killed, stop := e.start(t, "killed", nil)
			e.untilLive(t, killed)
			writes := 0
			var running atomic.Bool
			running.Store(true)
			e.fake.DropRequest("killed", func(op zktest.OpInfo) bool {
				if isWrite(op) {
					writes++
				}
				return isWrite(op) && writes > kill && running.Load()
			}).Times(1 << 20)
			short, cancel := context.WithTimeout(t.Context(), 8*time.Second)
			done, err := killed.Restore(short, b, brief)
			cancel()
			stop()
			running.Store(false) // the rule stays
			if err == nil {
				if !done.Carried || halves < 3 {
					t.Errorf("%+v after %d halves", done, halves)
				}
				break
			}
			halves++
			_, initialised, err := h.CheckTree(soon(t))
			if !errors.Is(err, cluster.ErrHalfRestored) || initialised || !strings.Contains(err.Error(), "pvc cluster restore") {
				t.Fatalf("killed after %d writes: %v %v", kill, initialised, err)
			}
			if _, err := h.Backup(soon(t)); !errors.Is(err, cluster.ErrHalfRestored) {
				t.Errorf("a half tree is backed up: %v", err)
			}
			wantErr(t, h.Initialize(soon(t), "test", false), cluster.ErrConflict)
		}
		if s, err := h.Refresh(soon(t)); err != nil || s.Lease.Value.Epoch != 77+zkhandler.EpochGap {
			t.Errorf("%+v, %v", s.Lease, err)
		}
		if got := whole(t, e, c, "/agent/workloads"); len(got) != 8 || got["/agent/workloads/w5"] != big {
			t.Errorf("%d workloads", len(got))
		}
	})
}

// The second of two restores at once wins or is refused, and so does the first;
// neither writes into the other's tree, and where one comes to its mark only after
// the other's end, both win. Of a lost reply nothing is made twice.
func TestRestoresAtOnceAndLostReplies(t *testing.T) {
	inFake(t, zktest.Options{}, func(t *testing.T, e *env) {
		h := e.live(t, "a", nil)
		c := aLife(t, e, h)
		b, err := h.Backup(soon(t))
		must(t, err)
		dead(t, e, c, true)
		lossy, _ := e.start(t, "lossy", nil)
		e.untilLive(t, lossy)
		n := 0
		e.fake.DropReply("lossy", func(op zktest.OpInfo) bool {
			if op.Op == "multi" {
				n++
			}
			return op.Op == "multi" && n%2 == 1 // each first try
		}).Times(3)
		long, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := lossy.Restore(long, b, brief); err != nil {
			t.Fatal(err)
		}
		must(t, ignoring(c.Delete(e.root+"/agent/alive/hv1", -1), zk.ErrNoNode))
		over := brief
		over.Overwrite = true
		other, _ := e.start(t, "b", nil)
		e.untilLive(t, other)
		results := make(chan error, 2)
		for _, by := range []*zkhandler.Handler{h, other} {
			go func() {
				_, err := by.Restore(long, b, over)
				results <- err
			}()
		}
		first, second := <-results, <-results
		won := 0
		for _, err := range []error{first, second} {
			switch {
			case err == nil:
				won++
			case !errors.Is(err, cluster.ErrRefused) && !errors.Is(err, cluster.ErrConflict):
				t.Errorf("the loser's word is %v", err)
			}
		}
		if _, initialised, err := h.CheckTree(soon(t)); won == 0 || !initialised || err != nil {
			t.Errorf("%d won (%v, %v); the tree: %v %v", won, first, second, initialised, err)
		}
	})
}

func ignoring(err, known error) error {
	if errors.Is(err, known) {
		return nil
	}
	return err
}

// While records change, a backup is of one instant: two records that are always
// written together are never of two ages.
func TestBackupIsOneView(t *testing.T) {
	inFake(t, zktest.Options{}, func(t *testing.T, e *env) {
		h := e.live(t, "a", nil)
		c := aLife(t, e, h)
		writer := e.live(t, "w", nil)
		stop, ended := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(ended)
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				case <-time.After(time.Duration(20+i%7*31) * time.Millisecond):
				}
				value := fmt.Sprint(i)
				writer.Commit(context.Background(), cluster.Txn{Purpose: "pair", Ops: []cluster.Op{
					cluster.Set(cluster.Key{Kind: cluster.KeySelector}, cluster.AnyVersion, value),
					cluster.Set(cluster.Key{Kind: cluster.KeyNodeField, Node: "hv3", Name: "ipmi"}, cluster.AnyVersion, value),
				}})
			}
		}()
		_, err := c.Create(e.root+"/nodes/hv3/ipmi", nil, 0, openACL)
		must(t, err)
		e.fake.Delay("a", 5*time.Millisecond) // a reading takes longer than two writes are apart
		for range 5 {
			b, err := h.Backup(soon(t))
			if err != nil {
				if !errors.Is(err, cluster.ErrDeadline) {
					t.Fatal(err)
				}
				continue // it says so, and makes none
			}
			one := valueOf(b, "/config/migration_target_selector")
			if other := valueOf(b, "/nodes/hv3/ipmi"); one != other {
				t.Errorf("the two are %q and %q", one, other)
			}
		}
		close(stop)
		<-ended
		b, err := h.Backup(soon(t))
		must(t, err)
		if one := valueOf(b, "/config/migration_target_selector"); one == "" || one != valueOf(b, "/nodes/hv3/ipmi") {
			t.Errorf("at rest: %q", one)
		}
	})
}

func valueOf(b zkhandler.Backup, path string) string {
	for _, r := range b.Records {
		if r.Path == path {
			return r.Text
		}
	}
	return ""
}

// Nothing is made of a file that is not wholly a backup.
func TestDamagedBackups(t *testing.T) {
	inFake(t, zktest.Options{}, func(t *testing.T, e *env) {
		h := e.live(t, "a", nil)
		aLife(t, e, h)
		b, err := h.Backup(soon(t))
		must(t, err)
		raw, err := b.Encode()
		must(t, err)
		for word, bad := range map[string]string{
			"cut short":     string(raw[:len(raw)/2]),
			"checksum":      strings.Replace(string(raw), `"hypervisor"`, `"coordinator"`, 1),
			"version 2":     strings.Replace(string(raw), `"v": 1`, `"v": 2`, 1),
			"no backup":     `{"v": 1}`,
			"damaged":       strings.Replace(string(raw), `"cluster":`, `"Kluster":`, 1),
			"is no backup,": "",
		} {
			if _, err := zkhandler.DecodeBackup([]byte(bad)); err == nil || !strings.Contains(err.Error(), word) {
				t.Errorf("%s: %v", word, err)
			}
		}
		for word, change := range map[string]func(*zkhandler.Backup){
			"in no tree": func(b *zkhandler.Backup) {
				b.Records = append(b.Records, zkhandler.BackupRecord{Path: "/zookeeper/quota"})
			},
			"..":        func(b *zkhandler.Backup) { b.Records = append(b.Records, zkhandler.BackupRecord{Path: "/config/../x"}) },
			"twice":     func(b *zkhandler.Backup) { b.Records = append(b.Records, b.Records[0]) },
			"more than": func(b *zkhandler.Backup) { b.Records[0].Text = strings.Repeat("x", 1<<20) },
			"cluster":   func(b *zkhandler.Backup) { b.Cluster = "other" },
			"no epoch":  func(b *zkhandler.Backup) { b.Epoch = cluster.MaxEpoch + 1 },
			"/agent/schema": func(b *zkhandler.Backup) {
				b.Records = slices.DeleteFunc(b.Records, func(r zkhandler.BackupRecord) bool { return r.Path == "/agent/schema" })
			},
		} {
			bad := b
			bad.Records = slices.Clone(b.Records)
			change(&bad)
			raw, err := bad.Encode()
			must(t, err)
			if _, err := zkhandler.DecodeBackup(raw); err == nil || !strings.Contains(err.Error(), word) {
				t.Errorf("%s: %v", word, err)
			}
		}
		newer := b
		newer.Schema, newer.Records = 99, slices.Clone(b.Records)
		newer.Records[slices.IndexFunc(b.Records, func(r zkhandler.BackupRecord) bool { return r.Path == "/agent/schema" })].Text = "99"
		if _, err := h.Restore(soon(t), newer, brief); !errors.Is(err, cluster.ErrSchemaNewer) {
			t.Errorf("a newer schema: %v", err)
		}
	})
}

// Of an empty tree there is nothing to back up, and init --overwrite cleans what
// a killed restore has left, with the epochs above its.
func TestBackupOfNothingAndInitOverHalf(t *testing.T) {
	inFake(t, zktest.Options{}, func(t *testing.T, e *env) {
		h := e.joined(t, "a", nil)
		if _, err := h.Backup(soon(t)); !errors.Is(err, cluster.ErrNotFound) {
			t.Errorf("%v", err)
		}
		c := e.bare(t)
		for _, l := range [][2]string{{"/agent", ""}, {"/agent/restore", `{"v":1,"id":"x","cluster":"test","epoch":500}`}, {"/nodes", ""}} {
			_, err := c.Create(e.root+l[0], []byte(l[1]), 0, openACL)
			must(t, err)
		}
		must(t, h.Initialize(soon(t), "anew", true))
		if s, err := h.Refresh(soon(t)); err != nil || s.Lease.Value.Epoch <= 500 {
			t.Errorf("%+v, %v", s.Lease, err)
		}
	})
}

// A restore that was stopped for a while, and goes on when another has begun anew,
// writes nothing more.
func TestStoppedRestoreGoesOn(t *testing.T) {
	inFake(t, zktest.Options{}, func(t *testing.T, e *env) {
		h := e.live(t, "a", nil)
		c := aLife(t, e, h)
		b, err := h.Backup(soon(t))
		must(t, err)
		dead(t, e, c, true)
		slow, _ := e.start(t, "slow", nil)
		e.untilLive(t, slow)
		newer := b
		newer.Records = slices.Clone(b.Records)
		at := slices.IndexFunc(b.Records, func(r zkhandler.BackupRecord) bool { return r.Path == "/nodes/hv1/ipmihostname" })
		newer.Records[at] = zkhandler.BackupRecord{Path: b.Records[at].Path, Text: "newer"}
		// The first one's writes are lost until the second has put its mark up; those
		// of the second are until the first has ended.
		var marked, ended atomic.Bool
		nodes := func(op zktest.OpInfo) bool { return op.Op == "multi" && op.Touches("/case/nodes/hv1") }
		held := e.fake.DropRequest("slow", func(op zktest.OpInfo) bool { return nodes(op) && !marked.Load() }).Times(1 << 20)
		e.fake.DropRequest("a", func(op zktest.OpInfo) bool {
			if nodes(op) {
				marked.Store(true)
			}
			return nodes(op) && !ended.Load()
		}).Times(1 << 20)
		long, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		first := make(chan error, 1)
		go func() {
			_, err := slow.Restore(long, b, brief)
			ended.Store(true)
			first <- err
		}()
		eventually(t, 20*time.Second, "its write is held", func() bool { return held.Hits() > 0 })
		if _, err := h.Restore(long, newer, brief); err != nil {
			t.Errorf("the second: %v", err)
		}
		if err := <-first; err == nil {
			t.Error("the first has come to its end, too")
		}
		if _, initialised, err := h.CheckTree(soon(t)); !initialised || err != nil {
			t.Errorf("%v %v", initialised, err)
		}
		time.Sleep(2 * time.Minute) // whatever was late has come, on virtual time
		if got := whole(t, e, c, ""); got["/agent/restore"] != "" || len(got) < 100 || got["/nodes/hv1/ipmihostname"] != "newer" {
			t.Errorf("%d records, one of which is %q", len(got), got["/nodes/hv1/ipmihostname"])
		}
	})
}
