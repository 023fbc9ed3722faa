//go:build linux

package agent

import (
	"os"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMain lends the processors to the packages that are tested beside this one:
// theirs measure real time and drive real ensembles, here time is virtual, so
// who is slow is only slow.
func TestMain(m *testing.M) {
	threads, _ := os.ReadDir("/proc/self/task")
	for _, thread := range threads { // those to come inherit it
		if id, err := strconv.Atoi(thread.Name()); err == nil {
			_ = unix.Setpriority(unix.PRIO_PROCESS, id, 10)
		}
	}
	os.Exit(m.Run())
}
