package guard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
)

// patience is for what involves real processes on a machine that others load.
const patience = 60 * time.Second

// copies is a bed with the node's own right begun, and files by which programs tell.
type copies struct {
	*bed
	dir string
}

func newCopies(t *testing.T, lasts time.Duration) (*copies, cluster.Instant) {
	c := &copies{newBed(t, false), t.TempDir()}
	return c, c.right(lasts)
}

// right begins the node's own right, or goes on with it.
func (c *copies) right(lasts time.Duration) cluster.Instant {
	c.t.Helper()
	d := cluster.RoleDeadline{Owner: cluster.OwnerNode, Epoch: cluster.NodeEpoch, Deadline: clock.Now().Add(lasts)}
	if err := c.client.Begin(c.ctx(), d); err != nil {
		c.t.Fatal(err)
	}
	return d.Deadline
}

func (c *copies) file(name string) string { return filepath.Join(c.dir, name) }

func (c *copies) there(name string) bool { _, err := os.Stat(c.file(name)); return err == nil }

func (c *copies) touch(name string) {
	if err := os.WriteFile(c.file(name), nil, 0o600); err != nil {
		c.t.Fatal(err)
	}
}

func (c *copies) remove(name string) {
	if err := os.Remove(c.file(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		c.t.Fatal(err)
	}
}

// number reads a pid that a program has written, 0 before that.
func (c *copies) number(name string) int {
	raw, _ := os.ReadFile(c.file(name))
	n, _ := strconv.Atoi(strings.TrimSpace(string(raw)))
	return n
}

// agent is a service of actions in the manner of an OCF agent: its start leaves a
// daemon behind and writes "up", its stop notes whether the daemon lived and removes
// "up". It fails while "stuck" is there.
func (c *copies) agent(name string) cluster.ServiceSpec {
	sh := func(script string) []string { return []string{"/bin/sh", "-c", script} }
	return cluster.ServiceSpec{Name: name, Kind: cluster.ServiceActions, Note: "note of " + name,
		Command: sh(`cd $DIR; setsid sleep 1000 >/dev/null 2>&1 & echo $! >$DIR/pid; echo >$DIR/up`),
		Stop:    sh(`cd $DIR; [ -e stuck ] && { echo "no way" >&2; exit 1; }; [ "$(tr -d '\0' 2>/dev/null </proc/$(cat pid)/cmdline)" ] && echo >gently; rm -f up; echo x >>stops`),
		Env:     []string{"DIR=" + c.dir}, StopTimeout: 20 * time.Second, StartTimeout: 30 * time.Second}
}

// address is one that leaves no process.
func (c *copies) address(name string) cluster.ServiceSpec {
	s := c.agent(name)
	s.Command, s.Stop = []string{"/bin/sh", "-c", "echo >$DIR/up"}, []string{"/bin/sh", "-c", "[ ! -e $DIR/stuck ] && rm -f $DIR/up"}
	return s
}

func (c *copies) startCopy(s cluster.ServiceSpec) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return c.client.StartCopy(ctx, may(77), s) // of whatever epoch a leader has
}

func (c *copies) stopCopy(name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return c.client.StopCopy(ctx, may(77), name)
}

func (c *copies) mustStart(s cluster.ServiceSpec) {
	c.t.Helper()
	if err := c.startCopy(s); err != nil {
		c.t.Fatal(err)
	}
}

// held is the state of one service; none: it is not held.
func (c *copies) held(name string) (cluster.ServiceState, bool) {
	c.t.Helper()
	for _, s := range c.state().Services {
		if s.Name == name {
			return s, true
		}
	}
	return cluster.ServiceState{}, false
}

// An actions service is what its start leaves; its own stop comes before any kill.
func TestACopyOfActionsIsStoppedByItsOwnStop(t *testing.T) {
	c, _ := newCopies(t, time.Minute)
	c.mustStart(c.agent("copy-web"))
	pid := c.number("pid")
	s, held := c.held("copy-web")
	if !held || !s.Running || s.Owner != cluster.OwnerNode || s.Kind != cluster.ServiceActions || s.Note != "note of copy-web" || !alive(pid) || !c.there("up") {
		t.Fatalf("after its start: %+v, daemon alive: %v", s, alive(pid))
	}
	c.mustStart(c.agent("copy-web")) // once more: it is so already
	if c.number("pid") != pid {
		t.Error("a second start of the same has started it again")
	}
	if err := c.stopCopy("copy-web"); err != nil {
		t.Fatal(err)
	}
	if _, held := c.held("copy-web"); held || alive(pid) || c.there("up") || !c.there("gently") {
		t.Errorf("after its stop: held %v, alive %v, up %v; its daemon lived when it was stopped: %v", held, alive(pid), c.there("up"), c.there("gently"))
	}
	if err := c.stopCopy("copy-web"); err != nil {
		t.Errorf("stopping what is not there: %v", err)
	}
}

// A start that fails says what it has printed, and its stop is run.
func TestAStartThatFailsIsTakenDown(t *testing.T) {
	c, _ := newCopies(t, time.Minute)
	s := c.agent("copy-bad")
	s.Command = []string{"/bin/sh", "-c", `sleep 1000 & echo $! >$DIR/pid; echo >$DIR/up; echo "the moon is wrong" >&2; exit 6`}
	err := c.startCopy(s)
	if err == nil || !strings.Contains(err.Error(), "the moon is wrong") || !strings.Contains(err.Error(), "exit status 6") {
		t.Errorf("the error of a start that failed: %v", err)
	}
	if _, held := c.held("copy-bad"); held || c.there("up") || alive(c.number("pid")) {
		t.Errorf("it is held %v, up %v, alive %v", held, c.there("up"), alive(c.number("pid")))
	}
}

// Without the node's own right nothing is started, and at its end everything dies at
// once and is taken down (I3, I4).
func TestCopiesEndWithTheNodesRight(t *testing.T) {
	c, _ := newCopies(t, time.Minute)
	c.mustStart(c.agent("copy-web"))
	hook := cluster.ServiceSpec{Name: "copy-own", Kind: cluster.ServiceHook, Command: []string{"sleep", "1000"}, Restart: 100 * time.Millisecond}
	c.mustStart(hook)
	own, _ := c.held("copy-own")
	pid := c.number("pid")
	deadline := clock.Now().Add(700 * time.Millisecond)
	if err := c.client.Extend(c.ctx(), cluster.RoleDeadline{Owner: cluster.OwnerNode, Epoch: cluster.NodeEpoch, Deadline: deadline}); err != nil {
		t.Fatal(err)
	}
	c.goneAt(deadline, pid, own.PID)
	c.eventually(patience, "it is taken down", func() bool { return !c.there("up") && len(c.state().Services) == 0 })
	if c.there("gently") {
		t.Error("its stop was run before it was killed")
	}
	if err := c.startCopy(c.agent("copy-web")); !errors.Is(err, cluster.ErrDeadline) {
		t.Errorf("a start without the right: %v, want ErrDeadline", err)
	}
	pause(300 * time.Millisecond) // longer than the hook's Restart
	if s := c.state(); len(s.Services) != 0 || len(s.Faults) != 0 {
		t.Errorf("afterwards: %+v", s)
	}
}

// A copy whose stop fails stays held, with its reason, and is tried again; at the
// node's end that is a fault until it is over, and the machine is not fed (I3).
func TestACopyThatCannotBeTakenDownStaysHeld(t *testing.T) {
	c, _ := newCopies(t, time.Minute)
	for _, spec := range []cluster.ServiceSpec{c.agent("copy-web"), c.address("copy-ip")} {
		c.mustStart(spec)
		c.touch("stuck")
		err := c.stopCopy(spec.Name)
		s, held := c.held(spec.Name)
		if err == nil || !strings.Contains(err.Error(), "not verified gone") || !held || s.Running || !s.Left || s.Error == "" {
			t.Errorf("%s: a stop that fails: %v, %+v", spec.Name, err, s)
		}
		_ = os.Remove(c.file("stuck"))
		if err := c.stopCopy(spec.Name); err != nil {
			t.Errorf("%s: once it can be stopped: %v", spec.Name, err)
		}
	}
	c.mustStart(c.address("copy-ip"))
	if s, _ := c.held("copy-ip"); !s.Running {
		t.Errorf("an address without a process: %+v", s)
	}
	c.touch("stuck")
	ending, cancel := context.WithTimeout(context.Background(), 2*grace)
	defer cancel()
	if err := c.client.End(ending, cluster.OwnerNode, cluster.NodeEpoch); err == nil {
		t.Error("the node's right is said to have ended while a copy's stop fails")
	}
	c.eventually(patience, "a fault tells it", func() bool {
		s, held := c.held("copy-ip")
		return held && s.Left && strings.Contains(strings.Join(c.state().Faults, " "), "copy-ip")
	})
	_ = os.Remove(c.file("stuck"))
	c.eventually(patience, "it ends by itself once it can", func() bool { return len(c.state().Services) == 0 && len(c.state().Faults) == 0 && !c.there("up") })
}

// The machine is not fed past the node's right while a copy is not taken down.
func TestTheMachineIsNotFedWhileACopyIsNotTakenDown(t *testing.T) {
	inProcess(t, clock, func(g *Guard, b *bed) {
		c := &copies{b, t.TempDir()}
		ctx := context.Background()
		if err := g.begin(ctx, cluster.RoleDeadline{Owner: cluster.OwnerNode, Epoch: cluster.NodeEpoch, Deadline: clock.Now().Add(time.Minute)}); err != nil {
			t.Error(err)
			return
		}
		if err := g.startService(ctx, cluster.OwnerNode, cluster.NodeEpoch, c.address("copy-ip")); err != nil {
			t.Error(err)
			return
		}
		g.looked.Store(true)
		if in := g.feedInput(); !in.ProtectedWork || in.PromisesUntil <= clock.Now() {
			t.Errorf("while it is held: %+v", in)
		}
		c.touch("stuck")
		late, cancel := context.WithTimeout(ctx, grace)
		defer cancel()
		_ = g.end(late, cluster.OwnerNode, cluster.NodeEpoch)
		for range 2 { // the first tells what was missed
			if in := g.feedInput(); !in.ProtectedWork || in.EffectsVerifiedGone || g.feedUntil() > clock.Now() {
				t.Errorf("while its stop fails: %+v, fed until %v", in, g.feedUntil())
			}
		}
		_ = os.Remove(c.file("stuck"))
		g.work.Wait()
		if in := g.feedInput(); in.ProtectedWork || !in.EffectsVerifiedGone {
			t.Errorf("once it is taken down: %+v", in)
		}
	})
}

// A guard that is killed leaves copies to the next one, which goes on with them, or
// takes down what is past its deadline.
func TestASuccessorGoesOnWithCopiesOrTakesThemDown(t *testing.T) {
	c, _ := newCopies(t, time.Minute)
	hook := cluster.ServiceSpec{Name: "copy-own", Kind: cluster.ServiceHook, Command: []string{"sleep", "1000"}, Restart: 100 * time.Millisecond}
	c.mustStart(c.agent("copy-web"))
	c.mustStart(hook)
	web, before := c.number("pid"), c.hook("copy-own")
	c.kill()
	_ = unix.Kill(before.PID, unix.SIGKILL) // while nobody watches
	c.start()
	if s, _ := c.held("copy-web"); !s.Running || !alive(web) || s.Note == "" {
		t.Errorf("the successor's copy: %+v, alive %v", s, alive(web))
	}
	c.eventually(patience, "the hook that ended meanwhile is started again", func() bool {
		s := c.hook("copy-own")
		return s.Running && s.PID != before.PID && s.Starts == 2
	})
	again := c.hook("copy-own").PID
	c.right(700 * time.Millisecond)
	c.kill()
	pause(time.Second) // past the deadline, with nobody there
	if !alive(web) || !alive(again) || !c.there("up") {
		t.Fatal("the copies did not survive their guard")
	}
	c.start()
	c.eventually(patience, "what is past its deadline is taken down", func() bool { return !alive(web) && !alive(again) && !c.there("up") })
	c.eventually(patience, "and nothing is held", func() bool { s := c.state(); return len(s.Services) == 0 && len(s.Faults) == 0 })
}

func (c *copies) hook(name string) cluster.ServiceState { s, _ := c.held(name); return s }

// A guard that was stopped for a minute ends what is past its deadline as soon as it
// goes on, and a sweep does so in its place.
func TestAStoppedGuardOrASweepTakesCopiesDown(t *testing.T) {
	c, _ := newCopies(t, time.Minute)
	c.mustStart(c.agent("copy-web"))
	pid := c.number("pid")
	deadline := c.right(500 * time.Millisecond)
	c.signal(unix.SIGSTOP)
	c.eventually(patience, "the deadline passes", func() bool { return clock.Now() > deadline.Add(grace) })
	c.signal(unix.SIGCONT)
	c.eventually(patience, "it is taken down", func() bool { return !alive(pid) && !c.there("up") && len(c.state().Services) == 0 })

	c.right(time.Minute)
	c.mustStart(c.agent("copy-web"))
	pid = c.number("pid")
	var err error
	inNamespace(t, c.host, func() { err = Sweep(c.cfg) })
	if err != nil || alive(pid) || c.there("up") {
		t.Errorf("after the sweep: %v, alive %v, up %v", err, alive(pid), c.there("up"))
	}
	_ = c.guard.Wait()
}

// A start that a guard's death has cut off is found, and taken down when it is told to.
func TestAStartThatWasCutOffIsTakenDown(t *testing.T) {
	c, _ := newCopies(t, time.Minute)
	s := c.address("copy-slow")
	s.Command = []string{"/bin/sh", "-c", "echo >$DIR/up; exec sleep 1000"}
	cut, cancel := context.WithCancel(context.Background())
	defer cancel()
	started := make(chan error, 1)
	go func() { started <- c.client.StartCopy(cut, may(1), s) }()
	c.eventually(patience, "it is being started", func() bool { return c.there("up") })
	if s, _ := c.held("copy-slow"); s.Running || !s.Left {
		t.Errorf("while it is being started: %+v", s)
	}
	c.kill()
	c.start()
	<-started
	if s, held := c.held("copy-slow"); !held || s.Running || !s.Left {
		t.Errorf("the successor's: %+v", s)
	}
	if err := c.stopCopy("copy-slow"); err != nil || c.there("up") {
		t.Errorf("stopped: %v, up %v", err, c.there("up"))
	}
}

// The guard tells what ends by itself, and starts a hook again when its time has
// come, with nothing left of what was before.
func TestWhatEndsByItselfIsToldAndStartedAgain(t *testing.T) {
	c, _ := newCopies(t, time.Minute)
	c.mustStart(c.agent("copy-web"))
	hook := cluster.ServiceSpec{Name: "copy-own", Kind: cluster.ServiceHook, Restart: 200 * time.Millisecond, User: "nobody",
		Command: []string{"/bin/sh", "-c", "sleep 1000 & exec sleep 1001"}, Env: []string{"WORD=hello world"}}
	c.mustStart(hook)
	before := c.hook("copy-own")
	environ, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", before.PID))
	info, err := os.Stat(fmt.Sprintf("/proc/%d", before.PID))
	if err != nil || info.Sys() == nil || !strings.Contains(string(environ), "WORD=hello world\x00") || !strings.Contains(string(environ), "USER=nobody\x00") {
		t.Errorf("its environment is %q, %v", environ, err)
	}
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", before.PID, before.PID))
	child, _ := strconv.Atoi(strings.TrimSpace(string(children)))
	_ = unix.Kill(before.PID, unix.SIGKILL)
	if e := c.event("service_exited"); e.Name != "copy-own" || e.Owner != cluster.OwnerNode {
		t.Errorf("told: %+v", e)
	}
	if e := c.event("service_restarted"); e.Name != "copy-own" {
		t.Errorf("told: %+v", e)
	}
	if s := c.hook("copy-own"); !s.Running || s.Starts != 2 || s.PID == before.PID || child != 0 && alive(child) {
		t.Errorf("started again: %+v; what was left lives: %v", s, alive(child))
	}
	if err := c.stopCopy("copy-own"); err != nil {
		t.Error(err)
	}
	_ = unix.Kill(c.number("pid"), unix.SIGKILL)
	if e := c.event("service_exited"); e.Name != "copy-web" {
		t.Errorf("told: %+v", e)
	}
	if s := c.hook("copy-web"); s.Running || !s.Left || !c.there("up") {
		t.Errorf("an actions service whose processes have ended: %+v", s)
	}
	c.mustStart(c.agent("copy-web"))
	if s := c.hook("copy-web"); !s.Running || len(strings.Fields(c.text("stops"))) != 1 {
		t.Errorf("started once more: %+v, stops %q", s, c.text("stops"))
	}
}

func (c *copies) text(name string) string { raw, _ := os.ReadFile(c.file(name)); return string(raw) }

// A guard that ends in order stops its copies by their own rules.
func TestAGuardThatEndsStopsItsCopiesInOrder(t *testing.T) {
	c, _ := newCopies(t, time.Minute)
	c.mustStart(c.agent("copy-web"))
	c.signal(unix.SIGTERM)
	_ = c.guard.Wait()
	if c.there("up") || !c.there("gently") || alive(c.number("pid")) {
		t.Errorf("up %v, stopped while it lived %v, alive %v", c.there("up"), c.there("gently"), alive(c.number("pid")))
	}
}

// What does not fit the ledger is not started: no successor would find it.
func TestWhatNoSuccessorWouldFindIsNotStarted(t *testing.T) {
	c, _ := newCopies(t, time.Minute)
	s := c.address("copy-large")
	for i := range 60 {
		s.Env = append(s.Env, fmt.Sprintf("V%d=%s", i, strings.Repeat("x", 10<<10)))
	}
	if err := c.startCopy(s); !errors.Is(err, cluster.ErrRefused) || c.there("up") {
		t.Errorf("%v, up %v", err, c.there("up"))
	}
	if s := c.state(); len(s.Services) != 0 {
		t.Errorf("held: %+v", s.Services)
	}
	c.mustStart(c.agent("copy-web"))
}

// Services are refused that could not be run, or never taken down.
func TestServicesThatCannotBeRunAreRefused(t *testing.T) {
	c, _ := newCopies(t, time.Minute)
	for name, s := range map[string]cluster.ServiceSpec{
		"actions without a stop":  {Name: "copy-a", Kind: cluster.ServiceActions, Command: []string{"true"}},
		"a restart of actions":    {Name: "copy-a", Kind: cluster.ServiceActions, Command: []string{"true"}, Stop: []string{"true"}, Restart: time.Second},
		"a restart at once":       {Name: "copy-a", Kind: cluster.ServiceHook, Command: []string{"true"}, Restart: time.Millisecond},
		"a variable without name": {Name: "copy-a", Kind: cluster.ServiceHook, Command: []string{"true"}, Env: []string{"=x"}},
	} {
		if err := c.startCopy(s); !errors.Is(err, cluster.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := c.startCopy(cluster.ServiceSpec{Name: "copy-a", Kind: cluster.ServiceHook, Command: []string{"true"}, User: "no-such-user"}); err == nil || !strings.Contains(err.Error(), "no-such-user") {
		t.Errorf("an unknown user: %v", err)
	}
}

// The ledger of an earlier program, whose slots were smaller, is read by the first
// guard of this one: its newest slot may be either.
func TestTheLedgerOfAnEarlierProgramIsRead(t *testing.T) {
	boot, err := bootID()
	if err != nil {
		t.Fatal(err)
	}
	for newest := range 2 {
		path := filepath.Join(t.TempDir(), "held")
		file := make([]byte, 2*formerSlot)
		for slot := range 2 {
			seq := uint64(7 + slot)
			if slot == newest {
				seq = 9
			}
			body, _ := json.Marshal(ledgerState{BootID: boot, NodeUntil: cluster.Instant(seq)})
			native := file[slot*formerSlot:]
			for i := range 8 {
				native[i] = byte(seq >> (8 * i))
			}
			length, sum := uint32(len(body)), crc32.ChecksumIEEE(body)
			for i := range 4 {
				native[8+i], native[12+i] = byte(length>>(8*i)), byte(sum>>(8*i))
			}
			copy(native[16:], body)
		}
		if err := os.WriteFile(path, file, 0o600); err != nil {
			t.Fatal(err)
		}
		for range 2 { // by its successor, too
			l, held, err := openLedger(path)
			if err != nil || held.NodeUntil != 9 {
				t.Errorf("newest slot %d: %+v, %v", newest, held, err)
			}
			l.close()
		}
	}
}
