package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"pvc.internal/cluster"
	"pvc.internal/cmd/settings"
	"pvc.internal/doctor"
	"pvc.internal/router/guard"
)

// leftHere is what of the role is on this host, whoever holds it.
type leftHere struct {
	running []doctor.Running
	gate    doctor.Gate // without a table where it could not be looked at
}

// lookForLeft looks at services and the packet gate; units are as systemd has
// told, none where it was not asked.
func lookForLeft(s settings.Node, units []doctor.Unit) (leftHere, error) {
	var left leftHere
	for _, service := range s.Services {
		if service.Kind == cluster.ServiceUnit {
			if slices.ContainsFunc(units, func(u doctor.Unit) bool { return u.Name == service.Unit && u.Active == "active" }) {
				left.running = append(left.running, doctor.Running{Service: service.Name, Unit: service.Unit})
			}
			continue
		}
		for _, pid := range processesOf(service.Command) {
			left.running = append(left.running, doctor.Running{Service: service.Name, PID: pid, Program: service.Command[0]})
		}
	}
	table, there, err := guard.GateLeft()
	if errors.Is(err, os.ErrPermission) {
		return left, nil // said of the addresses, which need the same right
	}
	if err != nil {
		return left, err
	}
	_, err = os.Stat(filepath.Join(s.RunDir, "guard.sock"))
	left.gate = doctor.Gate{Set: s.Role.Gate, Table: table, There: there, Guarded: err == nil || slices.ContainsFunc(units, func(u doctor.Unit) bool {
		return u.Name == "pvc-guard.service" && u.Active == "active"
	})}
	return left, nil
}

// processesOf are the processes of this host with exactly these words.
func processesOf(argv []string) []int {
	if len(argv) == 0 {
		return nil
	}
	wanted := strings.Join(argv, "\x00") + "\x00"
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil
	}
	var pids []int
	for _, line := range lines {
		raw, err := os.ReadFile(line)
		if err != nil || string(raw) != wanted && !strings.HasSuffix(string(raw), "\x00"+wanted) { // the latter behind an interpreter
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(line))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// remembered is the cluster that this node's state folder names; the daemon
// holds the folder's lock, which reading needs not.
func remembered(s settings.Node) string {
	raw, err := os.ReadFile(filepath.Join(s.StateDir, "node.json"))
	if err != nil {
		return ""
	}
	var memory struct {
		Cluster string `json:"cluster"`
	}
	if err := json.Unmarshal(raw, &memory); err != nil {
		return fmt.Sprintf("? (%s cannot be read)", filepath.Join(s.StateDir, "node.json"))
	}
	return memory.Cluster
}
