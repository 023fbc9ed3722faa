package proc

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestStopEndsWhateverTheProgramDoes runs programs that resist.
func TestStopEndsWhateverTheProgramDoes(t *testing.T) {
	for name, script := range map[string]string{
		"ignores SIGTERM":     "trap '' TERM; echo ready >$F; while :; do sleep 1; done",
		"setsid grandchild":   "trap '' TERM; setsid sh -c 'trap \"\" TERM; echo $$ >$P; echo ready >$F; while :; do sleep 1; done' & wait",
		"double fork":         "(setsid sh -c 'echo $$ >$P; echo ready >$F; exec sleep 1000' &) ; exec sleep 1000",
		"closes descriptors":  "exec 0<&- 1>&- 2>&-; echo ready >$F; exec sleep 1000",
		"main ends, rest not": "setsid sh -c 'echo $$ >$P; echo ready >$F; exec sleep 1000' & exit 0",
		"fills its output":    "echo ready >$F; while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done",
		"stops itself":        "echo ready >$F; kill -STOP $$; sleep 1000",
		"makes a group below": "g=$(sed -n 's/^0:://p' /proc/self/cgroup); d=/sys/fs/cgroup/unified$g; [ -d $d ] || d=/sys/fs/cgroup$g; mkdir $d/x 2>/dev/null && echo $$ >$d/x/cgroup.procs; echo ready >$F; exec sleep 1000",
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			ready, pidFile := filepath.Join(dir, "ready"), filepath.Join(dir, "pid")
			null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer null.Close()
			p, err := Start(Command{Argv: []string{"/bin/sh", "-c", script}, Env: map[string]string{"F": ready, "P": pidFile}, Output: null})
			if err != nil {
				t.Fatal(err)
			}
			for end := time.Now().Add(20 * time.Second); ; <-time.After(2 * time.Millisecond) {
				if _, err := os.Stat(ready); err == nil {
					break
				}
				if time.Now().After(end) {
					t.Fatal("the program is not ready")
				}
			}
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			if err := p.Stop(ctx, 50*time.Millisecond); err != nil || !p.Gone() {
				t.Errorf("Stop: %v, gone %v", err, p.Gone())
			}
			raw, _ := os.ReadFile(pidFile)
			if pid, err := strconv.Atoi(strings.TrimSpace(string(raw))); err == nil {
				if s, err := readStat(pid); err == nil && !s.ended() {
					t.Errorf("grandchild %d lives (%s)", pid, s.comm)
				}
			}
			if path := p.Group(); path != "" {
				if _, err := os.Stat(path); err == nil {
					t.Errorf("the control group %s stays", path)
				}
			}
		})
	}
}

// TestARunThatFloodsAndIgnoresEverythingEndsInTime bounds a check program that
// never ends, prints without end and leaves children behind.
func TestARunThatFloodsAndIgnoresEverythingEndsInTime(t *testing.T) {
	began := time.Now()
	r, err := Run(t.Context(), Command{Argv: []string{"/bin/sh", "-c", "trap '' TERM INT HUP; setsid yes & yes 1>&2 & while :; do echo y; done"}, Timeout: 300 * time.Millisecond})
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("took %v", took)
	}
	if !r.Killed || !r.Truncated || err == nil {
		t.Errorf("killed %v, truncated %v, %v", r.Killed, r.Truncated, err)
	}
	if len(r.Stdout) > DefaultOutputLimit || len(r.Stderr) > DefaultOutputLimit {
		t.Errorf("kept %d and %d bytes", len(r.Stdout), len(r.Stderr))
	}
}
