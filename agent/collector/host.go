// Package collector gathers the figures of a node that its keepalive carries:
// the host's own, and those of any monitoring-plugins executable. Its types
// satisfy agent.Collector.
package collector

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/shirou/gopsutil/v4/cpu"
	"github.com/shirou/gopsutil/v4/load"
	"github.com/shirou/gopsutil/v4/mem"
	"golang.org/x/sys/unix"
)

// Host collects memory, load and what the machine is.
type Host struct {
	mu     sync.Mutex
	static string // does not change while the kernel runs
}

// NewHost makes the host's collector.
func NewHost() *Host { return &Host{} }

// Name implements agent.Collector.
func (h *Host) Name() string { return "host" }

// Interval is how often the host is looked at: people read these figures, and
// each look costs the agent some of the little processor time it may use.
func (h *Host) Interval() time.Duration { return 5 * time.Second }

// Collect returns staticdata ("<cpus> <kernel release> <os> <machine>"),
// memtotal, memused, memfree (MiB) and cpuload (of the last minute, two
// decimals). What could not be read is absent and named by the error.
func (h *Host) Collect(ctx context.Context) (map[string]string, error) {
	values := map[string]string{}
	var failed []error
	if m, err := mem.VirtualMemoryWithContext(ctx); err != nil {
		failed = append(failed, fmt.Errorf("read memory: %w", err))
	} else {
		// Free is what a workload could get: caches that the kernel would give
		// up count as free, or a full page cache keeps work from coming here.
		mib := func(bytes uint64) string { return strconv.FormatUint(bytes>>20, 10) }
		values["memtotal"], values["memfree"] = mib(m.Total), mib(m.Available)
		values["memused"] = mib(m.Total - min(m.Available, m.Total))
	}
	if l, err := load.AvgWithContext(ctx); err != nil {
		failed = append(failed, fmt.Errorf("read load: %w", err))
	} else {
		values["cpuload"] = strconv.FormatFloat(l.Load1, 'f', 2, 64)
	}
	if s, err := h.staticData(ctx); err != nil {
		failed = append(failed, err)
	} else {
		values["staticdata"] = s
	}
	return values, errors.Join(failed...)
}

func (h *Host) staticData(ctx context.Context) (string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.static != "" {
		return h.static, nil
	}
	cpus, err := cpu.CountsWithContext(ctx, true)
	if err != nil {
		return "", fmt.Errorf("count processors: %w", err)
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", fmt.Errorf("read kernel release: %w", err)
	}
	// The fields are separated by blanks; readers expect uname's own words.
	h.static = fmt.Sprintf("%d %s GNU/%s %s", cpus, unix.ByteSliceToString(u.Release[:]),
		unix.ByteSliceToString(u.Sysname[:]), unix.ByteSliceToString(u.Machine[:]))
	return h.static, nil
}
