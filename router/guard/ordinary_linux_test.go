package guard

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
	"pvc.internal/router"
)

// A guard may have the processor before others, memory that is never swapped, and as
// many files as it likes: what it runs has none of that, from its first instruction's
// children on.
func TestCopiesHaveTheLimitsOfAnyService(t *testing.T) {
	var files unix.Rlimit // which the guard is given; its runtime raises its own
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	had := files
	files.Cur = min(files.Cur, 1000)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	c, _ := newCopies(t, 10*patience)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &had); err != nil {
		t.Fatal(err)
	}
	guard := c.guard.Process.Pid
	for resource, to := range map[int]uint64{unix.RLIMIT_RTPRIO: 99, unix.RLIMIT_NICE: 40, unix.RLIMIT_MEMLOCK: unix.RLIM_INFINITY} {
		if err := unix.Prlimit(guard, resource, &unix.Rlimit{Cur: to, Max: to}, nil); err != nil {
			t.Logf("this root may not raise limit %d of the guard: %v", resource, err)
		}
	}
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", guard), []byte("-500"), 0); err != nil {
		t.Log("nor take a place before the OOM killer:", err)
	}

	hook := c.agent("copy-hook")
	hook.Kind, hook.Stop = cluster.ServiceHook, nil
	hook.Command = []string{"/bin/sh", "-c", `sleep 1000 & echo $! >$DIR/child; echo $$ >$DIR/hook; wait`}
	c.mustStart(hook)
	c.mustStart(c.agent("copy-web"))
	joins := router.CopyRunParams{Name: "copy-web", Run: cluster.RunRequest{Argv: []string{"/bin/sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo $! >" + c.file("joined")}, Timeout: patience}}
	if res, err := c.client.RunInCopy(c.ctx(), may(77), joins.Name, joins.Run); err != nil || res.ExitCode != 0 {
		t.Fatalf("%+v, %v", res, err)
	}
	for _, of := range []string{"hook", "child", "pid", "joined"} {
		c.eventually(patience, of+" runs", func() bool { return c.number(of) != 0 })
		c.ordinary(of, c.number(of), files)
	}
}

// ordinary expects a process to be as systemd starts one.
func (c *copies) ordinary(what string, pid int, files unix.Rlimit) {
	c.t.Helper()
	read := func(name string) string {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
		if err != nil {
			c.t.Fatal(err)
		}
		return string(raw)
	}
	limits := read("limits")
	for _, want := range []string{`Max realtime priority +0 +0`, `Max nice priority +0 +0`, `Max locked memory +8388608 +8388608`,
		fmt.Sprintf(`Max open files +%d +%d`, files.Cur, files.Max)} {
		if !regexp.MustCompile(want).MatchString(limits) {
			c.t.Errorf("%s: its limits are not %q:\n%s", what, want, limits)
		}
	}
	stat := read("stat")
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:]) // from the third on
	if nice, policy := fields[16], fields[38]; nice != "0" || policy != "0" {
		c.t.Errorf("%s: niceness %s, scheduling policy %s", what, nice, policy)
	}
	if score := read("oom_score_adj"); score != "0\n" {
		c.t.Errorf("%s: OOM score %s", what, score)
	}
	if status := read("status"); !strings.Contains(status, "CapAmb:\t0000000000000000") || !strings.Contains(status, "CapInh:\t0000000000000000") {
		c.t.Errorf("%s: it has capabilities to pass on:\n%s", what, status)
	}
}
