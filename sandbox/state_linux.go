package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// stateFile lets a later run find what a killed one left.
const stateFile = "sandbox.json"

// savedState is what sandbox.json holds. A process is named by its pid and
// start time, so that a later process of the same number is never hit.
type savedState struct {
	Supervisor processID   `json:"supervisor"`
	Inits      []processID `json:"inits"`
	Cgroup     string      `json:"cgroup"`
}

type processID struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // field 22 of /proc/<pid>/stat
}

// identify returns the process's identity; the zero value if there is none.
func identify(pid int) processID {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return processID{}
	}
	// The second field, the name in parentheses, may contain anything.
	after := string(raw[strings.LastIndexByte(string(raw), ')')+1:])
	fields := strings.Fields(after)
	if len(fields) < 20 || fields[0] == "Z" {
		return processID{}
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return processID{}
	}
	return processID{PID: pid, Start: start}
}

func (p processID) alive() bool { return p.PID > 0 && identify(p.PID) == p }

// saveState rewrites the state file; it is best effort, since every process
// also dies with its supervisor.
func (s *Sandbox) saveState() {
	st := savedState{Supervisor: identify(os.Getpid()), Cgroup: s.cgroup}
	for _, n := range s.nodes {
		if r := n.lastRunning.Load(); r != nil {
			st.Inits = append(st.Inits, identify(r.pid))
		}
	}
	raw, err := json.Marshal(st)
	if err != nil {
		return
	}
	path := filepath.Join(s.options.Dir, stateFile)
	if os.WriteFile(path+".new", raw, 0o600) == nil {
		_ = os.Rename(path+".new", path)
	}
}

func loadState(dir string) (savedState, error) {
	var st savedState
	raw, err := os.ReadFile(filepath.Join(dir, stateFile))
	if err != nil {
		return st, err
	}
	if err := json.Unmarshal(raw, &st); err != nil {
		return st, fmt.Errorf("read %s: %w", filepath.Join(dir, stateFile), err)
	}
	return st, nil
}

// ErrRunning says that the sandbox of this name is up under another process.
var ErrRunning = errors.New("the sandbox is up already")

// Sweep removes what a killed supervisor of this sandbox left: processes that
// have not died with it, control groups, and its folder. It refuses with
// ErrRunning while that supervisor lives. Nothing left is no error.
func Sweep(dir string) error {
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	st, err := loadState(dir)
	if errors.Is(err, os.ErrNotExist) {
		entries, readErr := os.ReadDir(dir)
		if readErr == nil && len(entries) > 0 {
			return fmt.Errorf("folder %s is in use and has no %s: not a sandbox's, choose another", dir, stateFile)
		}
		return nil
	}
	if err != nil {
		return err
	}
	if st.Supervisor.alive() && st.Supervisor.PID != os.Getpid() {
		return fmt.Errorf("%w: process %d holds %s; end it with `pvc sandbox down`", ErrRunning, st.Supervisor.PID, dir)
	}
	for _, p := range st.Inits {
		if p.alive() {
			_ = unix.Kill(p.PID, unix.SIGKILL)
		}
	}
	deadline := time.Now().Add(5 * time.Second)
	for _, p := range st.Inits {
		for p.alive() && time.Now().Before(deadline) {
			time.Sleep(5 * time.Millisecond)
		}
	}
	removeCgroup(st.Cgroup)
	if err := errors.Join(removeRunFolders(dir), os.RemoveAll(dir)); err != nil {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	return nil
}
