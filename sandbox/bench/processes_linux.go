package bench

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
)

// process is one of a node's programs as this machine sees it.
type process struct {
	pid  int
	argv []string
}

// initPID is the node's PID 1 as this machine numbers it.
func (l *lab) initPID(ctx context.Context, node cluster.NodeID) (int, error) {
	for _, n := range l.Status(ctx).Nodes {
		if n.Name == node && n.PID > 0 {
			return n.PID, nil
		}
	}
	return 0, fmt.Errorf("node %s is powered off", node)
}

// processes lists those of the node whose program has the name.
func (l *lab) processes(ctx context.Context, node cluster.NodeID, program string) ([]process, error) {
	return l.processesLike(ctx, node, func(title string) bool { return filepath.Base(title) == program })
}

// processesLike lists the node's processes by the first word of their command line.
func (l *lab) processesLike(ctx context.Context, node cluster.NodeID, like func(title string) bool) ([]process, error) {
	first, err := l.initPID(ctx, node)
	if err != nil {
		return nil, err
	}
	home, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", first))
	if err != nil {
		return nil, fmt.Errorf("read the namespace of %s: %w", node, err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var out []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid)); err != nil || ns != home {
			continue
		}
		raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		argv := strings.Split(string(bytes.TrimRight(raw, "\x00")), "\x00")
		if like(argv[0]) {
			out = append(out, process{pid, argv})
		}
	}
	return out, nil
}

// daemon returns the node's agent or, by the word "guard", its guard.
func (l *lab) daemon(ctx context.Context, node cluster.NodeID, word string) (process, error) {
	all, err := l.processes(ctx, node, "pvcnoded")
	if err != nil {
		return process{}, err
	}
	for _, p := range all {
		if slices.Contains(p.argv, "guard") == (word == "guard") {
			return p, nil
		}
	}
	return process{}, fmt.Errorf("no %s runs on %s", word, node)
}

func signalAll(all []process, sig unix.Signal) {
	for _, p := range all {
		_ = unix.Kill(p.pid, sig)
	}
}

// usage is what a process costs.
type usage struct {
	cpu      time.Duration // user and system
	resident float64       // MiB
	threads  int
	children int // all descendants
}

// clockTick is the unit of /proc's times, the same on every Linux that Go runs on.
const clockTick = 10 * time.Millisecond

// usage reads what the process costs so far.
func (p process) usage() (usage, error) {
	var u usage
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	if err != nil {
		return u, fmt.Errorf("read what process %d costs: %w", p.pid, err)
	}
	fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	if len(fields) < 22 {
		return u, fmt.Errorf("process %d: too few fields in its stat", p.pid)
	}
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	pages, _ := strconv.Atoi(fields[21])
	u.threads, _ = strconv.Atoi(fields[17])
	u.cpu = time.Duration(user+system) * clockTick
	u.resident = float64(pages*os.Getpagesize()) / (1 << 20)
	u.children = descendants(p.pid)
	return u, nil
}

// descendants counts the process's children, theirs, and so on.
func descendants(pid int) int {
	n := 0
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, file := range tasks {
		raw, _ := os.ReadFile(file)
		for _, word := range strings.Fields(string(raw)) {
			if child, err := strconv.Atoi(word); err == nil {
				n += 1 + descendants(child)
			}
		}
	}
	return n
}

func selfPID() int { return os.Getpid() }
