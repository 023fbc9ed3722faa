package proc

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
)

// stat is what the kernel tells of a process in /proc/<pid>/stat.
type stat struct {
	pid, ppid, pgid, sid int
	state                byte   // R, S, D, Z, …
	start                uint64 // clock ticks after boot; with the pid it names a process for ever
	comm                 string
}

// readStat reads /proc/<pid>/stat; the error is os.ErrNotExist when there is no such process.
func readStat(pid int) (stat, error) {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return stat{}, os.ErrNotExist
	}
	return parseStat(raw)
}

// parseStat reads the fields after the command name, which may itself contain
// blanks and parentheses.
func parseStat(raw []byte) (stat, error) {
	open, end := bytes.IndexByte(raw, '('), bytes.LastIndexByte(raw, ')')
	if open < 2 || end < open {
		return stat{}, errors.New("no command name in stat")
	}
	fields := bytes.Fields(raw[end+1:])
	if len(fields) < 20 || len(fields[0]) != 1 {
		return stat{}, errors.New("too few fields in stat")
	}
	s := stat{comm: string(raw[open+1 : end]), state: fields[0][0]}
	for _, f := range []struct {
		to   *int
		from []byte
	}{{&s.pid, bytes.TrimSpace(raw[:open])}, {&s.ppid, fields[1]}, {&s.pgid, fields[2]}, {&s.sid, fields[3]}} {
		n, err := strconv.Atoi(string(f.from))
		if err != nil {
			return stat{}, fmt.Errorf("parse stat: %w", err)
		}
		*f.to = n
	}
	start, err := strconv.ParseUint(string(fields[19]), 10, 64)
	if err != nil {
		return stat{}, fmt.Errorf("parse stat's start time: %w", err)
	}
	s.start = start
	return s, nil
}

// ended reports whether the process runs nothing any more.
func (s stat) ended() bool { return s.state == 'Z' || s.state == 'X' || s.state == 'x' }

// StartTime returns when the process was started, in clock ticks after boot.
// Pid and start time together name a process for as long as the host is up.
// The error is os.ErrNotExist when there is no such process.
func StartTime(pid int) (uint64, error) {
	s, err := readStat(pid)
	return s.start, err
}

// allStats lists every process of this host (of this pid namespace).
func allStats() []stat {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	all := make([]stat, 0, len(entries))
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if s, err := readStat(pid); err == nil {
			all = append(all, s)
		}
	}
	return all
}

// statsOf reads those of the processes that exist.
func statsOf(pids []int) []stat {
	var list []stat
	for _, pid := range pids {
		if s, err := readStat(pid); err == nil {
			list = append(list, s)
		}
	}
	return list
}
