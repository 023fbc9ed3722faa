package acceptance

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
	"pvc.internal/sandbox"
)

// TestWhatCannotBeEndedEndsTheDaemon is the last rung on the shipped programs: a
// daemon that is stopped as well, so that only the guard can end it, and with
// PVC_SOAK=1 one that can end itself. All
// that an activity of theirs asks of others ends with its context, files it reads
// in goroutines that nobody waits for, and whatever else may block runs in child
// processes; but its lines go to standard error, as all of the daemon's, and there
// write(2) waits for as long as the journal does not read. So the journal is what
// hangs here, in the middle of a fence; somebody replaces the quorum set on which
// that fence rests; and the fence cannot be ended.
func TestWhatCannotBeEndedEndsTheDaemon(t *testing.T) {
	t.Parallel()
	c := newUnwatchedCluster(t, 3, 1)
	defer c.tellOnFailure(t)()
	c.givesUp(t, true)
	if os.Getenv("PVC_SOAK") != "" {
		c.rests(t)
		c.givesUp(t, false)
		c.rests(t)
	}
	c.keepsInvariants(t)
}

// givesUp brings a primary to its last rung; stopped, not even its own timer can
// end it.
func (c *testCluster) givesUp(t *testing.T, stopped bool) {
	primary, victim := c.Node(cluster.NodeID(c.primary(t))), c.victim()
	name := string(primary.Plan.Name)
	j := c.journalOf(t, primary)
	c.becomesPrimary(t, name, 30*time.Second) // a restart moves nothing (I9)
	guardLog := filepath.Join(primary.Dir, "log", "guard.log")
	from := sizeOf(t, guardLog)
	j.hangAt("fence stage")
	if _, errs, code := c.cli(t, "fence", "now", string(victim.Plan.Name), "--reason", "test", "-y"); code != 0 {
		t.Fatalf("pvc fence now: %s", errs)
	}
	select {
	case <-j.hung:
	case <-time.After(30 * time.Second):
		t.Fatalf("no fence began; the daemon said:\n%s", j.said())
	}
	eventually(t, 30*time.Second, "the fence is blocked in its next line", func() error { return c.blockedInItsLine(t, j, victim) })
	c.replacesQuorumSet(t, name)
	eventually(t, 30*time.Second, "the role has ended, and the guard is asked to kill the daemon", func() error {
		return errors.Join(lineSince(guardLog, from, `"msg":"role ended"`), lineSince(guardLog, from, "the agent gives itself up"))
	})
	asked := time.Now()
	if stopped {
		_ = primary.Signal(t.Context(), "pvcnoded", unix.SIGSTOP) // it may have ended already
	}
	if held := c.holdsAddress(t, primary); held != "" {
		t.Errorf("the address %s is there although the role has ended", held)
	}
	end := c.awaitEnd(t, primary)
	took := time.Since(asked)
	t.Logf("%s %v after the guard was asked", end, took.Round(time.Millisecond))
	if end != "exit status 75" { // which it is where the signal came too late, too
		if err := lineSince(guardLog, from, "the agent that gave itself up was killed"); err != nil || end != "killed by SIGKILL" {
			t.Errorf("the daemon ended with %s, and not by its guard: %v", end, err)
		}
	}
	if err := primary.Start(t.Context(), "pvcnoded"); err != nil { // as systemd does after any status but 78
		t.Fatal(err)
	}
	c.primary(t)
	c.returns(t, string(victim.Plan.Name)) // whoever is primary carries the fence on
	c.returns(t, name)
}

// holdsAddress names a floating address that the node has; empty: none.
func (c *testCluster) holdsAddress(t *testing.T, n *sandbox.Node) string {
	t.Helper()
	out, err := c.inside(t, string(n.Plan.Name), "ip", "-o", "addr").CombinedOutput()
	if err != nil {
		t.Fatalf("ip addr: %v: %s", err, out)
	}
	for _, a := range sandbox.FloatingAddresses() {
		if strings.Contains(string(out), " "+a.Prefix.Addr().String()+"/") {
			return a.Name
		}
	}
	return ""
}

// replacesQuorumSet has a foreign client write the quorum set anew.
func (c *testCluster) replacesQuorumSet(t *testing.T, primary string) {
	t.Helper()
	other := c.Node(cluster.NodeID(c.other(primary)))
	script := `import sys
from kazoo.client import KazooClient
c = KazooClient(hosts=sys.argv[1])
c.start(timeout=20)
c.set("/agent/quorum", c.get("/agent/quorum")[0])
c.stop()`
	out, err := c.inside(t, string(other.Plan.Name), python, "-c", script, netip.AddrPortFrom(other.Plan.Cluster.Addr(), 2181).String()).CombinedOutput()
	if err != nil {
		t.Fatalf("write the quorum set: %v\n%s", err, out)
	}
}

// awaitEnd waits until the node's daemon has ended, and returns how.
func (c *testCluster) awaitEnd(t *testing.T, n *sandbox.Node) (exit string) {
	t.Helper()
	eventually(t, 30*time.Second, "the daemon has ended", func() error {
		programs, err := n.Programs(t.Context())
		if err != nil {
			return err
		}
		if p := programs["pvcnoded"]; p.Running {
			return errors.New("it runs")
		}
		exit = programs["pvcnoded"].Exit
		return nil
	})
	return exit
}

// blockedInItsLine reports whether the fence of the node has entered a stage and
// not come past the line that tells of it, which it writes at once.
func (c *testCluster) blockedInItsLine(t *testing.T, j *journal, victim *sandbox.Node) error {
	t.Helper()
	for _, f := range c.fences(t).Fences {
		switch {
		case f.Node != victim.Plan.Name:
		case f.Ended():
			t.Fatalf("the fence has come to its end (%s) before the journal hung; it said:\n%s", f.Stage, j.said())
		case !strings.Contains(j.said(), `"stage":"`+string(f.Stage)+`"`):
			return nil
		default:
			return fmt.Errorf("it has told of %s", f.Stage)
		}
	}
	return errors.New("there is none")
}

func sizeOf(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// lineSince returns nil if what was added to the file since then holds the text.
func lineSince(path string, from int64, text string) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if said := raw[min(from, int64(len(raw))):]; !bytes.Contains(said, []byte(text)) {
		return fmt.Errorf("not said: %s", said)
	}
	return nil
}

// journal reads what a daemon writes to its standard error, a pipe as systemd's
// journal gives it, until it hangs.
type journal struct {
	pipe *os.File
	hung chan struct{} // closed once it reads no more, and the pipe is full

	mu    sync.Mutex
	lines bytes.Buffer
	at    string // reads no more after this; empty: reads on
}

// journalOf restarts the node's daemon with a journal. The log's ordinary file is
// back in its place when it returns, for the daemon's next start.
func (c *testCluster) journalOf(t *testing.T, n *sandbox.Node) *journal {
	t.Helper()
	path := filepath.Join(n.Dir, "log", "pvcnoded.log")
	if err := n.Signal(t.Context(), "pvcnoded", unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c.awaitEnd(t, n)
	if err := os.Rename(path, path+".file"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := os.Rename(path+".file", path); err != nil {
			t.Error(err)
		}
	}()
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	pipe, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pipe.Close() })
	j := &journal{pipe: pipe, hung: make(chan struct{})}
	if _, err := unix.FcntlInt(pipe.Fd(), unix.F_SETPIPE_SZ, 4096); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(int(pipe.Fd()), true); err != nil { // Fd has made it blocking
		t.Fatal(err)
	}
	go j.read() // ends with the pipe
	if err := n.Start(t.Context(), "pvcnoded"); err != nil {
		t.Fatal(err)
	}
	return j
}

// hangAt has the journal read no more once it has read this.
func (j *journal) hangAt(text string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.at = text
	j.lines.Reset()
}

func (j *journal) said() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.lines.String()
}

func (j *journal) read() {
	buf := make([]byte, 4096)
	for {
		n, err := j.pipe.Read(buf)
		if err != nil {
			return
		}
		j.mu.Lock()
		j.lines.Write(buf[:n])
		hangs := j.at != "" && bytes.Contains(j.lines.Bytes(), []byte(j.at))
		j.mu.Unlock()
		if hangs {
			break
		}
	}
	_ = j.pipe.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	_, _ = j.pipe.Write(bytes.Repeat([]byte("\n"), 64<<10)) // fills it to the last byte
	close(j.hung)
}
