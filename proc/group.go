package proc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Prefixes of the control groups' names. A run's group must not outlive its
// caller, a service's must.
const (
	runPrefix     = "pvc-run."
	servicePrefix = "pvc-svc."
)

// group is a control group that holds one child and everything it starts.
type group struct {
	path string

	mu   sync.Mutex
	dir  *os.File // for starting into the group; nil once started or adopted
	kill *os.File // cgroup.kill, opened beforehand so that ending needs no allocation
}

var groupCounter atomic.Uint64

// mountPoint is where the cgroup v2 hierarchy is mounted, "" without one.
var mountPoint = sync.OnceValue(func() string {
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var s unix.Statfs_t
		if unix.Statfs(dir, &s) == nil && s.Type == unix.CGROUP2_SUPER_MAGIC {
			return dir
		}
	}
	return ""
})

// groupOf returns the directory of the process's control group, "" if unknown.
func groupOf(pid int) string {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil || mountPoint() == "" {
		return ""
	}
	for line := range strings.Lines(string(raw)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return filepath.Join(mountPoint(), path)
		}
	}
	return ""
}

var errNoGroups = errors.New("no writable cgroup v2 hierarchy")

// newGroup makes an empty control group below the slice (a path from the
// hierarchy's root), or below the caller's own group when slice is empty.
func newGroup(slice, prefix, label string) (*group, error) {
	parent := groupOf(os.Getpid())
	if slice != "" {
		parent = filepath.Join(mountPoint(), filepath.Clean("/"+slice))
	}
	if mountPoint() == "" || parent == "" {
		return nil, errNoGroups
	}
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return nil, fmt.Errorf("make control group's parent: %w", err)
	}
	if _, done := swept.LoadOrStore(parent, true); !done {
		sweepRuns(parent)
	}
	return makeGroup(parent, prefix, label)
}

// makeGroup makes an empty control group in this directory.
func makeGroup(parent, prefix, label string) (*group, error) {
	path := filepath.Join(parent, fmt.Sprintf("%s%s.%d.%s", prefix, ownerTag(), groupCounter.Add(1), label))
	if err := os.Mkdir(path, 0o755); err != nil {
		return nil, fmt.Errorf("make control group: %w", err)
	}
	g := openGroup(path)
	dir, err := os.Open(path)
	if err != nil {
		g.remove()
		return nil, fmt.Errorf("open control group: %w", err)
	}
	g.dir = dir
	return g, nil
}

// openGroup wraps an existing control group.
func openGroup(path string) *group {
	g := &group{path: path}
	// Absent before Linux 5.14: killAll then signals the members one by one.
	g.kill, _ = os.OpenFile(filepath.Join(path, "cgroup.kill"), os.O_WRONLY, 0)
	return g
}

// started lets go of the descriptor that was needed to start the child.
func (g *group) started() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.dir != nil {
		g.dir.Close()
		g.dir = nil
	}
}

var one = []byte("1")

// killAll sends SIGKILL to everything in the group and below it.
func (g *group) killAll() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.kill != nil {
		if _, err := g.kill.Write(one); err == nil {
			return
		}
	}
	for _, pid := range g.pids() {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}

// populated reports whether a process, other than a zombie, lives in the group
// or below it. A group that is gone is not populated.
func (g *group) populated() bool {
	raw, err := os.ReadFile(filepath.Join(g.path, "cgroup.events"))
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV)
	}
	return !strings.Contains(string(raw), "populated 0")
}

// pids lists the members of the group and of the groups below it.
func (g *group) pids() []int {
	var pids []int
	_ = filepath.WalkDir(g.path, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "cgroup.procs" {
			return nil //nolint:nilerr // a group that is gone meanwhile has no members
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			return nil //nolint:nilerr // the same
		}
		for line := range strings.Lines(string(raw)) {
			if pid, err := strconv.Atoi(strings.TrimSpace(line)); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids
}

// remove deletes the empty group and closes what was held of it.
func (g *group) remove() {
	g.started()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.kill != nil {
		g.kill.Close()
		g.kill = nil
	}
	var dirs []string
	_ = filepath.WalkDir(g.path, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	for i := len(dirs) - 1; i >= 0; i-- { // children before parents
		_ = os.Remove(dirs[i])
	}
}

// ownerTag names this process for ever: pid namespace, pid, start time.
var ownerTag = sync.OnceValue(func() string {
	start, _ := StartTime(os.Getpid())
	return fmt.Sprintf("%s.%d.%d", pidNamespace(), os.Getpid(), start)
})

func pidNamespace() string {
	link, _ := os.Readlink("/proc/self/ns/pid")
	return strings.Trim(strings.TrimPrefix(link, "pid:"), "[]")
}

// swept holds the parents below which dead callers' runs were ended, once each.
var swept sync.Map

// SweepRuns ends what the runs of callers that no longer live have left below
// the slice (empty: this process's own group), without waiting: SIGKILL is on its
// way to all of it when this returns. A daemon calls it before it does anything;
// the first Run or Start below a slice does it, too.
func SweepRuns(slice string) {
	switch {
	case mountPoint() == "":
	case slice != "":
		sweepRuns(filepath.Join(mountPoint(), filepath.Clean("/"+slice)))
	default:
		if own := groupOf(os.Getpid()); own != "" {
			sweepRuns(own)
		}
	}
}

// sweepRuns ends the runs that a caller which no longer lives has left below
// parent. Services are not touched: they are their adopter's.
func sweepRuns(parent string) {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return
	}
	for _, e := range entries {
		if rest, ok := strings.CutPrefix(e.Name(), runPrefix); ok && ownerIsGone(rest) {
			g := openGroup(filepath.Join(parent, e.Name()))
			g.killAll()
			g.remove() // a member that dies slowly keeps the directory; the next start's sweep takes it
		}
	}
}

// ownerIsGone reads the owner's tag off a group's name. Another pid namespace's
// owner cannot be judged from here and counts as alive.
func ownerIsGone(tag string) bool {
	parts := strings.SplitN(tag, ".", 4)
	if len(parts) < 4 || parts[0] != pidNamespace() {
		return false
	}
	pid, err1 := strconv.Atoi(parts[1])
	start, err2 := strconv.ParseUint(parts[2], 10, 64)
	if err1 != nil || err2 != nil {
		return false
	}
	now, err := StartTime(pid)
	return err != nil || now != start
}
