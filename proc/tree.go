package proc

import (
	"bytes"
	"crypto/rand"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// markName is the environment variable that names the run a process belongs to
// where there is no control group to tell.
const markName = "PVC_CHILD"

// markWithin stands between the mark of a Process and that of what was started
// within it.
const markWithin = "."

// newMark makes this process the reaper of its orphaned descendants, so that
// the walk can find them, and returns a fresh mark.
func newMark() string {
	becomeReaper()
	return rand.Text()
}

var becomeReaper = sync.OnceFunc(func() {
	// Without it orphans go to init; the mark still finds those that keep it.
	_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	reaper.Store(true)
})

// reaper is true once orphans fall to this process, with groups or without.
var reaper atomic.Bool

// direct holds the children this package has started and not yet waited for,
// so that an orphan that fell to us is told from a child of ours.
var direct = struct {
	sync.Mutex
	byPID    map[int]*Process
	starting atomic.Int32 // children being started, whose pids are not known yet
}{byPID: map[int]*Process{}}

// treeOf lists the living members of a child's tree, in a process without
// control groups: the child, its descendants, its session, whatever carries its
// mark, and orphans that can be nobody else's. Environments, which cost the most,
// are read only of those that can stem from it.
func treeOf(p *Process) []stat {
	self := os.Getpid()
	own, ownErr := readStat(self)
	all := slices.DeleteFunc(allStats(), func(s stat) bool { return s.pid == self })
	member := map[int]bool{}
	// Once the main process is gone its number may come back as a stranger's,
	// but only after its session and group have died out, too.
	reused := slices.ContainsFunc(all, func(s stat) bool { return s.pid == p.pid && s.start != p.start })
	for _, s := range all {
		main := s.pid == p.pid && s.start == p.start
		ofSession := !reused && (s.sid == p.pid || s.pgid == p.pid)
		if main || ofSession {
			member[s.pid] = true
			continue
		}
		if s.start < p.start && s.ppid != self {
			continue // older, and nobody's orphan
		}
		mark := markOf(s.pid)
		// A process that shares our session is a child that some other part of
		// this process runs.
		orphan := mark == noMark && s.ppid == self && ownErr == nil && s.sid != own.sid
		if mark == p.mark || strings.HasPrefix(mark, p.mark+markWithin) || orphan && isOrphanOf(s, p) {
			member[s.pid] = true
		}
	}
	for grown := true; grown; {
		grown = false
		for _, s := range all {
			if !member[s.pid] && member[s.ppid] {
				member[s.pid], grown = true, true
			}
		}
	}
	return slices.DeleteFunc(all, func(s stat) bool { return !member[s.pid] || s.ended() })
}

// noMark stands for the mark of a process that has none or whose mark may not
// be read; no environment can hold it.
const noMark = "\x00"

// markOf reads a process's mark; noMark when it has none or may not be read.
func markOf(pid int) string {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
	if err != nil {
		return noMark
	}
	for entry := range bytes.SplitSeq(raw, []byte{0}) {
		if mark, ok := strings.CutPrefix(string(entry), markName+"="); ok {
			return mark
		}
	}
	return noMark
}

// isOrphanOf reports whether s, an unmarked process that fell to us, may be ended
// by p: no other child of ours that lives without a group is older than it, so
// it stems from p or from one that is over.
func isOrphanOf(s stat, p *Process) bool {
	direct.Lock()
	defer direct.Unlock()
	if direct.byPID[s.pid] != nil || direct.starting.Load() > 0 {
		return false
	}
	for _, other := range direct.byPID {
		if other != p && other.group == nil && other.start <= s.start {
			return false
		}
	}
	return true
}

// reapOrphans waits for dead descendants that fell to this process. Children of
// this package, and children that share our session (somebody else's), are
// left to those who wait for them.
func reapOrphans() {
	if !reaper.Load() && os.Getpid() != 1 {
		return
	}
	self := os.Getpid()
	own, err := readStat(self)
	if err != nil {
		return
	}
	for _, s := range allStats() {
		if s.ppid != self || s.state != 'Z' || s.sid == own.sid {
			continue
		}
		direct.Lock()
		// Asked after the listing: a child started before it is known by now, or still starting.
		if direct.byPID[s.pid] == nil && direct.starting.Load() == 0 {
			var ws unix.WaitStatus
			_, _ = unix.Wait4(s.pid, &ws, unix.WNOHANG, nil)
		}
		direct.Unlock()
	}
}
