package proc

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ordinaryLimit is one, in the resource's own unit.
type ordinaryLimit struct {
	resource int
	most     uint64
}

// ordinaryLimits are the most that a child is left with, soft and hard: what systemd
// gives a service whose unit names none. The open files are not among them: a program
// goes by how many it finds as soon as it runs. The Go runtime gives each child the
// soft limit that this process was started with, whatever it has taken itself.
var ordinaryLimits = []ordinaryLimit{
	{unix.RLIMIT_RTPRIO, 0},
	{unix.RLIMIT_NICE, 0},
	{unix.RLIMIT_MEMLOCK, 8 << 20},
}

// ordinaryLooks is how often a child's own children are looked for at most.
const ordinaryLooks = 5

// makeOrdinary takes from a child that outlives this process what this process may
// have taken for itself alone: a higher priority, a better place before the kernel
// when memory runs out, the limits that let it have them. The child has only just
// begun; what it has passed on already is taken from its own children, too, where a
// control group tells which they are. The first look at that comes after the child
// itself is ordinary, so that each further one finds fewer.
func makeOrdinary(p *Process) {
	// The system call returns 20 minus the niceness.
	if own, err := unix.Getpriority(unix.PRIO_PROCESS, 0); err == nil && own > 20 {
		_ = unix.Setpriority(unix.PRIO_PGRP, p.pid, 0)
	}
	raw, err := os.ReadFile("/proc/self/oom_score_adj")
	adj, parseErr := strconv.Atoi(strings.TrimSpace(string(raw)))
	favoured := err == nil && parseErr == nil && adj < 0
	limit := func(pid int) (raised bool) {
		if favoured {
			_ = os.WriteFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", []byte("0"), 0)
		}
		return lowerLimits(pid)
	}
	raised := limit(p.pid) || favoured
	if !raised || p.group == nil {
		return
	}
	done := map[int]bool{p.pid: true}
	for range ordinaryLooks {
		before := len(done)
		for _, pid := range p.group.pids() {
			if !done[pid] {
				limit(pid)
				done[pid] = true
			}
		}
		if len(done) == before {
			return
		}
	}
}

// lowerLimits takes from a process what exceeds the ordinary limits, and reports
// whether anything did.
func lowerLimits(pid int) (raised bool) {
	for _, l := range ordinaryLimits {
		var has unix.Rlimit
		if unix.Prlimit(pid, l.resource, nil, &has) != nil || has.Max <= l.most {
			continue
		}
		raised = true
		_ = unix.Prlimit(pid, l.resource, &unix.Rlimit{Cur: min(has.Cur, l.most), Max: l.most}, nil)
	}
	return raised
}
