package driver

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
	"pvc.internal/proc"
)

// oddBed is a bed with the agents of testdata, whose copies do as they are told.
type oddBed struct {
	*ocfBed
	state string // file
}

func newOddBed(t *testing.T) *oddBed {
	t.Helper()
	root := t.TempDir() // a copy: the tree's files may have any mode
	if err := os.CopyFS(root, os.DirFS("testdata/ocf")); err != nil {
		t.Fatal(err)
	}
	agents, err := filepath.Glob(root + "/resource.d/test/*")
	if err != nil || len(agents) == 0 {
		t.Fatal("no agents", err)
	}
	for _, a := range agents {
		if filepath.Base(a) != "NoProgram" {
			if err := os.Chmod(a, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	b := newOCFBed(t, root, "")
	return &oddBed{ocfBed: b, state: filepath.Join(b.dir, "state")}
}

// odd is a workload of the agent that does as it is told, with short time.
func (b *oddBed) odd(kind cluster.WorkloadKind, do map[string]string) cluster.Workload {
	params := map[string]string{"state": b.state, "log": b.state + ".log"}
	for action, how := range do {
		params["do_"+action] = how
		if how == "hang" {
			params[timeoutParam+strings.ReplaceAll(action, "_all", "-all")] = "1"
		}
	}
	return b.workload(kind, "test:Odd", params)
}

// told is what the agent was called with so far.
func (b *oddBed) told() string {
	raw, _ := os.ReadFile(b.state + ".log")
	return string(raw)
}

// left is the process that an action has left, as it says; 0: none.
func (b *oddBed) left(action string) int {
	raw, _ := os.ReadFile(b.state + "." + action)
	pid, _ := strconv.Atoi(strings.TrimSpace(string(raw)))
	return pid
}

func alive(pid int) bool {
	if pid == 0 || unix.Kill(pid, 0) != nil {
		return false
	}
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(raw), ") ")
	return !strings.HasPrefix(rest, "Z")
}

// nothingLeft expects the control groups to be empty.
func (b *oddBed) nothingLeft(what string) {
	b.t.Helper()
	for _, group := range proc.Services(b.cfg.SlicePath) {
		if p, err := proc.AdoptGroup(group); err == nil {
			b.t.Errorf("%s: something is left in %s", what, p.Group())
		}
	}
}

// An agent misbehaves in an action: the error says what happened, the copy is
// reported as it is, and nothing half-done is left.
func TestOCFAgentsThatMisbehave(t *testing.T) {
	t.Parallel()
	const broken = `and it says: "it is broken"`
	for _, c := range []struct {
		before []cluster.CopyOp // as it should
		do     string
		how    string
		op     cluster.CopyOp
		want   string
		state  cluster.CopyState
		held   bool
	}{
		{nil, "start", "hang", cluster.CopyStart, "deadline", cluster.CopyMissing, false},
		{nil, "start", "lie", cluster.CopyStart, "said that start was done, but its monitor says: exit status 7", cluster.CopyMissing, false},
		{nil, "start", "fail", cluster.CopyStart, broken, cluster.CopyMissing, false},
		{nil, "start", "rc5", cluster.CopyStart, "not installed on this node", cluster.CopyMissing, false},
		{nil, "start", "rc6", cluster.CopyStart, "configured wrongly", cluster.CopyMissing, false},
		{nil, "start", "signal", cluster.CopyStart, "killed by SIGKILL", cluster.CopyMissing, false},
		{nil, "start", "rubbish", cluster.CopyStart, "exit status 77, which OCF does not know", cluster.CopyMissing, false},
		{[]cluster.CopyOp{cluster.CopyStart}, "stop", "hang", cluster.CopyStop, "stop", cluster.CopyReplica, true},
		{[]cluster.CopyOp{cluster.CopyStart}, "stop", "lie", cluster.CopyStop, "said that stop was done, but its monitor says: exit status 0", cluster.CopyReplica, false},
		{[]cluster.CopyOp{cluster.CopyStart}, "stop", "fail", cluster.CopyStop, broken, cluster.CopyReplica, true},
		{nil, "promote", "hang", cluster.CopyPromote, "deadline", cluster.CopyReplica, true},
		{nil, "promote", "lie", cluster.CopyPromote, "said that promote was done, but its monitor says: exit status 0", cluster.CopyReplica, true},
		{nil, "promote", "rc9", cluster.CopyPromote, "failed while promoted", cluster.CopyReplica, true},
		{nil, "promote", "signal", cluster.CopyPromote, "killed by SIGKILL", cluster.CopyReplica, true},
		{nil, "promote", "rubbish", cluster.CopyPromote, "which OCF does not know", cluster.CopyReplica, true},
		{[]cluster.CopyOp{cluster.CopyStart}, "notify", "hang", cluster.CopyNotify, "notify: ", cluster.CopyReplica, true},
		{[]cluster.CopyOp{cluster.CopyStart}, "stop", "rubbish", cluster.CopyStop, "which OCF does not know", cluster.CopyReplica, true},
		{[]cluster.CopyOp{cluster.CopyPromote}, "demote", "rubbish", cluster.CopyDemote, "which OCF does not know", cluster.CopyActive, true},
		{nil, "monitor", "hang", cluster.CopyStart, "what its copy is now is not known", "", false},
		{nil, "monitor", "rubbish", cluster.CopyPromote, "what its copy is now is not known", "", false},
		{[]cluster.CopyOp{cluster.CopyPromote}, "demote", "hang", cluster.CopyDemote, "deadline", cluster.CopyActive, true},
		{[]cluster.CopyOp{cluster.CopyPromote}, "demote", "lie", cluster.CopyDemote, "said that demote was done, but its monitor says: exit status 8", cluster.CopyActive, true},
		{[]cluster.CopyOp{cluster.CopyPromote}, "demote", "fail", cluster.CopyDemote, broken, cluster.CopyActive, true},
	} {
		t.Run(c.do+" "+c.how, func(t *testing.T) {
			t.Parallel()
			b := newOddBed(t)
			for _, op := range c.before {
				b.order(b.odd(cluster.WorkloadReplicated, nil), op)
			}
			if c.held && c.op == cluster.CopyStop { // what the guard stops is what it was given: the copy is brought up by an agent as told
				b.order(b.odd(cluster.WorkloadReplicated, nil), cluster.CopyStop)
				b.order(b.odd(cluster.WorkloadReplicated, map[string]string{c.do: c.how}), cluster.CopyStart)
			}
			w := b.odd(cluster.WorkloadReplicated, map[string]string{c.do: c.how})
			if c.do == "stop" && c.how == "lie" { // what the guard does not hold
				b.order(b.odd(cluster.WorkloadReplicated, nil), cluster.CopyStop)
				if err := os.WriteFile(b.state, []byte("slave"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			order := cluster.CopyOrder{Op: c.op, Workload: w}
			if c.op == cluster.CopyNotify {
				order.Note = "post-promote hv2"
			}
			r, err := b.give(order)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("%v, want %q", err, c.want)
			}
			if text := err.Error(); len(text) > 2000 || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' && r != '\n' }) {
				t.Errorf("the error is unfit for a person: %d bytes, %q", len(text), text)
			}
			if r.State != c.state {
				t.Errorf("reported %s, want %s (%v)", r.State, c.state, err)
			}
			b.holds(w, c.held)
			if c.how == "hang" { // the caller may have given up a moment before the guard did
				await(t, "what the action has started ends", func() bool { return !alive(b.left(c.do)) })
			}
			b.nothingLeft(c.do + " " + c.how)
		})
	}
}

// A migration that fails leaves the copy where it is, or where it is not: told, and
// never half of it.
func TestOCFMigrationsThatMisbehave(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		do, how string
		op      cluster.CopyOp
		want    string
		state   cluster.CopyState
	}{
		{"migrate_to", "hang", cluster.CopyMigrateTo, "deadline", cluster.CopyActive},
		{"migrate_to", "fail", cluster.CopyMigrateTo, "it is broken", cluster.CopyActive},
		{"migrate_to", "rubbish", cluster.CopyMigrateTo, "which OCF does not know", cluster.CopyActive},
		{"migrate_from", "hang", cluster.CopyMigrateFrom, "deadline", cluster.CopyMissing},
		{"migrate_from", "fail", cluster.CopyMigrateFrom, "it is broken", cluster.CopyMissing},
		{"migrate_from", "lie", cluster.CopyMigrateFrom, "said that migrate_from was done", cluster.CopyMissing},
	} {
		t.Run(c.do+" "+c.how, func(t *testing.T) {
			t.Parallel()
			b := newOddBed(t)
			w := b.odd(cluster.WorkloadMovable, map[string]string{c.do: c.how})
			if c.op == cluster.CopyMigrateTo {
				b.order(w, cluster.CopyStart)
			}
			going := goingLive(w, "hv1", "hv2")
			if c.op == cluster.CopyMigrateFrom {
				going = goingLive(w, "hv2", "hv1")
			}
			r, err := b.give(cluster.CopyOrder{Op: c.op, Workload: going, Source: &cluster.CopySource{Node: "hv2"}})
			if err == nil || !strings.Contains(err.Error(), c.want) || r.State != c.state {
				t.Errorf("%+v, %v, want %s and %q", r, err, c.state, c.want)
			}
			b.holds(w, c.state == cluster.CopyActive)
			if c.how == "hang" {
				await(t, "what the action has started ends", func() bool { return !alive(b.left(c.do)) })
			}
		})
	}
}

// An agent that hangs, fails or talks rubbish when it is asked whether its parameters
// are right has the workload refused, and nothing of it is run.
func TestOCFValidationsThatMisbehave(t *testing.T) {
	t.Parallel()
	b := newOddBed(t)
	for how, want := range map[string]string{"hang": "deadline", "signal": "killed by SIGKILL", "rubbish": "which OCF does not know", "fail": "it is broken", "rc2": "not what it takes", "rc6": "configured wrongly"} {
		w := b.odd(cluster.WorkloadMovable, map[string]string{"validate_all": how})
		err := b.ocf.Check(deadlined(t), w)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "web") || len(err.Error()) > 2000 {
			t.Errorf("%s: %v, want %q", how, err, want)
		}
		if how == "hang" {
			await(t, "what it has started ends", func() bool { return !alive(b.left("validate-all")) })
		}
		b.holds(w, false)
	}
	if err := b.ocf.Check(deadlined(t), b.odd(cluster.WorkloadMovable, map[string]string{"validate_all": "rc3"})); err != nil {
		t.Errorf("one that announces it and does not know it: %v", err)
	}
}

// What cannot be told is unknown, and never a state.
func TestOCFMonitorsThatMisbehave(t *testing.T) {
	t.Parallel()
	b := newOddBed(t)
	b.order(b.odd(cluster.WorkloadReplicated, nil), cluster.CopyStart)
	for how, want := range map[string]struct {
		text  string
		state cluster.CopyState
	}{
		"hang": {"deadline", ""}, "signal": {"killed by SIGKILL", ""}, "rubbish": {"which OCF does not know", ""}, "rc2": {"not what it takes", ""},
		"rc3": {"does not know this action", ""}, "rc4": {"lacks the rights", ""}, "rc6": {"configured wrongly", ""},
		"fail": {"it is broken", cluster.CopyDead}, "rc9": {"failed while promoted", cluster.CopyDead}, "rc5": {"not installed", cluster.CopyMissing},
		"rc190": {"not as well as it should", cluster.CopyReplica}, "rc191": {"not as well as it should", cluster.CopyActive}, "rc8": {"", cluster.CopyActive},
	} {
		r, err := b.ocf.Probe(deadlined(t), b.odd(cluster.WorkloadReplicated, map[string]string{"monitor": how}))
		if (err != nil) != (want.state == "") || r.State != want.state {
			t.Errorf("%s: %s, %v", how, r.State, err)
		}
		if err != nil && (!strings.Contains(err.Error(), want.text) || !strings.Contains(err.Error(), "is not known")) || err == nil && !strings.Contains(r.Error, want.text) {
			t.Errorf("%s: %v %q, want %q", how, err, r.Error, want.text)
		}
	}
}

// What an agent's actions leave running is of the copy: it ends with it, and at
// the node's own deadline.
func TestWhatOCFAgentsForkEndsWithTheCopy(t *testing.T) {
	t.Parallel()
	b := newOddBed(t)
	w := b.odd(cluster.WorkloadReplicated, map[string]string{"start": "daemon", "promote": "daemon"})
	b.order(w, cluster.CopyPromote)
	of := []int{b.left("start"), b.left("promote")}
	if !alive(of[0]) || !alive(of[1]) {
		t.Fatalf("the daemons %v do not run", of)
	}
	b.restart()
	if !alive(of[0]) || !alive(of[1]) {
		t.Fatal("they have ended with a guard that was killed")
	}
	b.order(w, cluster.CopyStop)
	if alive(of[0]) || alive(of[1]) {
		t.Errorf("running after the stop: %v %v", alive(of[0]), alive(of[1]))
	}
	for _, action := range []string{"start", "promote"} {
		_ = os.Remove(b.state + "." + action)
	}
	only := b.odd(cluster.WorkloadReplicated, map[string]string{"promote": "daemon"}) // nothing runs of it before
	b.order(only, cluster.CopyPromote)
	pid := b.left("promote")
	b.expire()
	if alive(pid) {
		t.Error("what promote has left outlives the node's own right")
	}
	b.nothingLeft("after the deadline")
}

// A copy that may come back empty is not started by the order that finds it failed.
func TestAFailedEphemeralOCFCopyIsNotPromoted(t *testing.T) {
	t.Parallel()
	b := newOddBed(t)
	w := b.odd(cluster.WorkloadReplicated, nil)
	w.Ephemeral = true
	b.order(w, cluster.CopyPromote)
	if err := os.WriteFile(b.state, []byte("failed"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := b.is(w, cluster.CopyDead); !strings.Contains(r.Error, "it has failed") {
		t.Errorf("%+v", r)
	}
	r, err := b.give(cluster.CopyOrder{Op: cluster.CopyPromote, Workload: w})
	if !errors.Is(err, cluster.ErrRefused) || r.State != cluster.CopyMissing {
		t.Fatalf("%+v, %v", r, err)
	}
	b.holds(w, false)
	w.Ephemeral = false
	b.order(w, cluster.CopyPromote)
	if err := os.WriteFile(b.state, []byte("failed"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := b.order(w, cluster.CopyPromote); r.State != cluster.CopyActive {
		t.Errorf("a copy that keeps its data: %+v", r)
	}
}

// Agents that want to be told are told, as Pacemaker does.
func TestOCFNotifications(t *testing.T) {
	t.Parallel()
	b := newOddBed(t)
	w := b.odd(cluster.WorkloadReplicated, nil)
	b.order(w, cluster.CopyPromote)
	if log := b.told(); !strings.Contains(log, "notify pre-promote promote=hv1 master=  slave=hv1 hv2") || !strings.Contains(log, "notify post-promote promote=hv1 master=hv1 slave=hv2 timeout=5000 name=notify") {
		t.Errorf("promoted: %s", log)
	}
	if log := b.told(); strings.Count(log, "notify post-start") != 1 || strings.Contains(log, "notify pre-start") {
		t.Errorf("a copy is told of its own start once it runs: %s", log)
	}
	follow := cluster.CopyOrder{Op: cluster.CopyFollow, Workload: w, Source: &cluster.CopySource{Node: "hv2", Host: "192.0.2.2"}, Secret: "first"}
	told := func() int { return strings.Count(b.told(), "notify post-promote promote=hv2 master=hv2 slave=hv1") }
	for _, c := range []struct {
		secret string
		want   int
	}{{"first", 1}, {"first", 1}, {"second", 2}} {
		follow.Secret = c.secret
		if r, err := b.give(follow); err != nil || r.Follows != "hv2" || told() != c.want {
			t.Errorf("follow in activation %q: %+v, %v, told %d times, want %d", c.secret, r, err, told(), c.want)
		}
	}
	if raw, _ := os.ReadFile(b.ocf.store.file(w.Name)); strings.Contains(string(raw), "second") {
		t.Error("the secret is kept")
	}
	if _, err := b.give(cluster.CopyOrder{Op: cluster.CopyNotify, Workload: w, Note: "post-promote hv3"}); err != nil {
		t.Error(err)
	}
	if r := b.is(w, cluster.CopyReplica); r.Follows != "hv3" {
		t.Errorf("after a notification it follows %q", r.Follows)
	}
	for _, note := range []string{"", "promote hv2", "post-explode hv2", "post-promote", "post-promote -rf", "post-promote hv1 hv2", "pre-start hv2 /etc"} {
		if _, err := b.give(cluster.CopyOrder{Op: cluster.CopyNotify, Workload: w, Note: note}); !errors.Is(err, cluster.ErrRefused) {
			t.Errorf("note %q: %v", note, err)
		}
	}
	b.order(w, cluster.CopyStop)
	if log := b.told(); strings.Count(log, "notify pre-stop") != 1 || strings.Contains(log, "notify post-stop") || strings.LastIndex(log, "notify pre-stop") > strings.LastIndex(log, "\nstop ") {
		t.Errorf("a copy is told of its own end before it: %s", log)
	}
}

// An agent that hangs in its notify, or fails, holds up what it is told of for no
// longer than its own bound, and fails nothing but that (and what is told by it alone:
// whom to follow). The report says so.
func TestANotificationFailsNothing(t *testing.T) {
	t.Parallel()
	for how, want := range map[string]string{"hang": "deadline", "fail": "it is broken", "rubbish": "exit status 77"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			b := newOddBed(t)
			w := b.odd(cluster.WorkloadReplicated, map[string]string{"notify": how})
			for _, c := range []struct {
				op    cluster.CopyOp
				state cluster.CopyState
			}{{cluster.CopyStart, cluster.CopyReplica}, {cluster.CopyPromote, cluster.CopyActive}, {cluster.CopyDemote, cluster.CopyReplica}, {cluster.CopyStop, cluster.CopyMissing}} {
				r, err := b.give(cluster.CopyOrder{Op: c.op, Workload: w})
				if err != nil || r.State != c.state || !strings.Contains(r.Error, want) {
					t.Fatalf("%s: %+v, %v", c.op, r, err)
				}
				if how == "hang" && c.op == cluster.CopyStart { // the rest need not be waited for as well
					w.Params["do_notify"] = "fail"
					want = "it is broken"
				}
			}
			b.order(b.odd(cluster.WorkloadReplicated, nil), cluster.CopyStart)
			if r, err := b.give(cluster.CopyOrder{Op: cluster.CopyFollow, Workload: w, Source: &cluster.CopySource{Node: "hv2", Host: "192.0.2.2"}, Secret: "s"}); err == nil {
				t.Errorf("it follows without having been told whom: %+v", r)
			}
		})
	}
}

// What another copy's agent is told: who starts is not there yet, several are told of
// at once, and how long it may take is a second unless the workload says so.
func TestWhatIsToldOfOtherCopies(t *testing.T) {
	t.Parallel()
	b := newOddBed(t)
	w := b.odd(cluster.WorkloadReplicated, nil)
	if r := b.is(w, cluster.CopyMissing); r.NotifyMS != 0 {
		t.Errorf("who does not run wants to be told: %+v", r)
	}
	b.order(w, cluster.CopyPromote)
	if r := b.is(w, cluster.CopyActive); r.NotifyMS != 1000 {
		t.Errorf("reported %+v", r)
	}
	w.Params[timeoutParam+"notify"] = "60"
	if r := b.is(w, cluster.CopyActive); r.NotifyMS != 10000 {
		t.Errorf("with a limit of its own: %+v", r)
	}
	w.Chain = []cluster.NodeID{"hv1", "hv2", "hv3"}
	for note, want := range map[string]string{
		"pre-start hv2 hv3":  "notify pre-start promote=  master=hv1 slave=  timeout=10000",
		"post-start hv2 hv3": "notify post-start promote=  master=hv1 slave=hv2 hv3 timeout=10000",
		"pre-stop hv2":       "notify pre-stop promote=  master=hv1 slave=hv2 hv3 timeout=10000",
		"post-demote hv1":    "notify post-demote promote=  master=  slave=hv1 hv2 hv3 timeout=10000",
	} {
		if _, err := b.give(cluster.CopyOrder{Op: cluster.CopyNotify, Workload: w, Note: note}); err != nil {
			t.Error(err)
		}
		if log := b.told(); !strings.Contains(log, want) {
			t.Errorf("told of %s: %s", note, log)
		}
	}
	w.Kind = cluster.WorkloadMovable
	if r := b.is(w, cluster.CopyActive); r.NotifyMS != 0 {
		t.Errorf("the only copy wants to be told of others: %+v", r)
	}
}

// A copy is told of others by what is known of it: neither before nor after is its monitor
// asked, which may be slow. What is not held here is told nothing.
func TestAMonitorDelaysNoNotification(t *testing.T) {
	t.Parallel()
	b := newOddBed(t)
	w := b.odd(cluster.WorkloadReplicated, nil)
	note := cluster.CopyOrder{Op: cluster.CopyNotify, Note: "pre-stop hv2"}
	tell := func() (report cluster.CopyReport, monitors, notes int) {
		before := b.told()
		note.Workload = w
		report, err := b.give(note)
		if err != nil {
			t.Fatal(err)
		}
		said := strings.TrimPrefix(b.told(), before)
		return report, strings.Count(said, "name=monitor"), strings.Count(said, "notify pre-stop")
	}
	if _, monitors, notes := tell(); monitors+notes != 0 {
		t.Errorf("what is not here is asked %d times, told %d times", monitors, notes)
	}
	b.order(w, cluster.CopyStart)
	if report, monitors, notes := tell(); !report.Unknown || monitors != 0 || notes != 1 {
		t.Errorf("asked %d times, told %d times: %+v", monitors, notes, report)
	}
	w.Params["do_monitor"] = "rubbish"
	if _, _, notes := tell(); notes != 1 {
		t.Errorf("told %d times", notes)
	}
}

// goingLive is a workload in the middle of a live move.
func goingLive(w cluster.Workload, from, to cluster.NodeID) cluster.Workload {
	w.Live, w.Chain = true, []cluster.NodeID{from}
	w.Next = &cluster.ChainMove{ID: "m", Chain: []cluster.NodeID{to}, From: w.Chain, Cause: "move", Live: cluster.LiveMigrating}
	return w
}

// A copy goes over by a record that says just that, and by no other.
func TestAnOCFCopyMigrates(t *testing.T) {
	t.Parallel()
	b := newOddBed(t)
	w := b.odd(cluster.WorkloadMovable, nil)
	b.order(w, cluster.CopyStart)
	other := &cluster.CopySource{Node: "hv2"}
	over, stopping := goingLive(w, "hv1", "hv2"), goingLive(w, "hv1", "hv2")
	stopping.Next.Live = cluster.LiveRecovering
	plain := over.Clone()
	plain.Next.Live = ""
	for what, of := range map[string]cluster.Workload{"no move": w, "a plain move": plain, "one that is over": stopping, "another way": goingLive(w, "hv2", "hv1"), "another node": goingLive(w, "hv1", "hv3")} {
		if r, err := b.give(cluster.CopyOrder{Op: cluster.CopyMigrateTo, Workload: of, Source: other}); !errors.Is(err, cluster.ErrRefused) || r.State != cluster.CopyActive {
			t.Errorf("given away by a record of %s: %+v, %v", what, r, err)
		}
	}
	if r := b.is(over, cluster.CopyActive); !r.Live {
		t.Errorf("it cannot go over: %+v", r)
	}
	w = over
	if r, err := b.give(cluster.CopyOrder{Op: cluster.CopyMigrateTo, Workload: w, Source: other}); err != nil || r.State != cluster.CopyMissing {
		t.Fatalf("%+v, %v", r, err)
	}
	b.order(w, cluster.CopyStop)
	b.holds(w, false)
	if r, err := b.give(cluster.CopyOrder{Op: cluster.CopyMigrateFrom, Workload: w, Source: other}); !errors.Is(err, cluster.ErrRefused) || r.State != cluster.CopyMissing {
		t.Errorf("taken by a record of another way: %+v, %v", r, err)
	}
	b.holds(w, false)
	w = goingLive(w, "hv2", "hv1")
	if r, err := b.give(cluster.CopyOrder{Op: cluster.CopyMigrateFrom, Workload: w, Source: other}); err != nil || r.State != cluster.CopyActive {
		t.Fatalf("%+v, %v", r, err)
	}
	b.holds(w, true)
	if log := b.told(); !strings.Contains(log, "name=migrate_to hv1 hv2") || !strings.Contains(log, "name=migrate_from hv2 hv1") {
		t.Errorf("the agent was told %s", log)
	}
	again := w
	again.ID += "-again"
	if r, err := b.give(cluster.CopyOrder{Op: cluster.CopyMigrateFrom, Workload: again, Source: other}); !errors.Is(err, cluster.ErrRefused) {
		t.Errorf("taken beside the copy of an earlier workload of its name: %+v, %v", r, err)
	}
	b.expire()
	b.is(w, cluster.CopyMissing)
}

func TestMetadataThatIsOfNoUse(t *testing.T) {
	t.Parallel()
	b := newOddBed(t)
	for agent, want := range map[string]string{
		"MetaHang": "deadline", "MetaRubbish": "of no use", "MetaHuge": "bytes", "MetaFail": "no python here", "MetaNoStop": "start, stop and monitor",
		"MetaEntity": "of no use", "NoProgram": "is no program",
	} {
		t.Run(agent, func(t *testing.T) {
			w := b.workload(cluster.WorkloadMovable, "test:"+agent, nil)
			ctx, cancel := context.WithTimeout(deadlined(t), time.Second)
			defer cancel()
			if agent != "MetaHang" {
				ctx = deadlined(t)
			}
			err := b.ocf.Check(ctx, w)
			if err == nil || !strings.Contains(err.Error(), want) || len(err.Error()) > 1000 {
				t.Errorf("%v, want %q", err, want)
			}
			if _, err := b.ocf.Probe(ctx, w); err == nil {
				t.Error("its copy's state is known")
			}
		})
	}
	path := filepath.Join(b.ocf.agents.root, "resource.d/test/Odd")
	w := b.odd(cluster.WorkloadMovable, nil)
	if err := b.ocf.Check(deadlined(t), w); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("#!/bin/sh\nexit 5\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := b.ocf.Check(deadlined(t), w); err == nil || !strings.Contains(err.Error(), "for its metadata") {
		t.Error("an agent that was replaced is taken for the one before")
	}
	if err := os.Chmod(path, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := b.ocf.Check(deadlined(t), w); err == nil || !strings.Contains(err.Error(), "anybody may write") {
		t.Errorf("an agent that anybody may write: %v", err)
	}
}

// Who has removed the agent's package has not left its copies running unseen.
func TestAnOCFAgentThatIsRemoved(t *testing.T) {
	t.Parallel()
	b := newOddBed(t)
	w := b.odd(cluster.WorkloadMovable, map[string]string{"start": "daemon"})
	b.order(w, cluster.CopyStart)
	path := filepath.Join(b.ocf.agents.root, "resource.d/test/Odd")
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	if r, err := b.ocf.Probe(deadlined(t), w); err == nil {
		t.Errorf("what the guard holds of it is reported as %+v", r)
	}
	if _, err := b.give(cluster.CopyOrder{Op: cluster.CopyStop, Workload: w}); err == nil || !strings.Contains(err.Error(), "not installed there any more") {
		t.Errorf("stopped without its agent: %v", err)
	}
	if err := os.Rename(path+".away", path); err != nil {
		t.Fatal(err)
	}
	b.order(w, cluster.CopyStop)
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	if r, err := b.ocf.Probe(deadlined(t), w); err != nil || r.State != cluster.CopyMissing || r.Error == "" {
		t.Errorf("of what is not installed: %+v, %v", r, err)
	}
	b.order(w, cluster.CopyStop)
}
