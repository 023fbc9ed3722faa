package driver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"pvc.internal/cluster"
)

// Checker tells what is wrong with a workload before any node has to do with it:
// from its driver's parameters, its agent's metadata and, where this node may run it,
// the names of its programs alone. It runs nothing of the workload and needs neither a
// guard nor rights, so that it leaves out what a node's own Check finds beside: users,
// passwords, an agent's validate-all, and programs that it cannot see.
type Checker struct {
	node    cluster.NodeID
	agents  *ocfAgents
	exec    *Exec
	systemd *Systemd
}

// NewChecker makes it for the programs that are installed on this host; ocfRoot is
// as OCFConfig.Root.
func NewChecker(node cluster.NodeID, ocfRoot string) *Checker {
	return &Checker{node: node, agents: newOCFAgents(cmp.Or(ocfRoot, "/usr/lib/ocf")), exec: NewExec(node, nil), systemd: NewSystemd(node, nil)}
}

// Check reports what is wrong with the workload; an agent that is not installed
// here is cluster.ErrNotFound. An OCF agent is asked for its metadata, within ctx.
func (c *Checker) Check(ctx context.Context, w cluster.Workload) error {
	switch w.Driver {
	case cluster.DriverExec:
		s, err := c.exec.service(w)
		if err != nil || !c.mayRunHere(w) {
			return err
		}
		return c.exec.programs(s, w.Name, certainlyMissing)
	case cluster.DriverRedis:
		_, err := parseRedis(w)
		return err
	case cluster.DriverSystemd:
		return c.systemd.Check(ctx, w)
	case cluster.DriverOCF:
		a, err := c.agents.find(ctx, w.Agent)
		if err != nil {
			return err
		}
		if err := a.able(w); err != nil {
			return err
		}
		return a.checkParams(w)
	}
	return fmt.Errorf("there is no driver %q: %w", w.Driver, cluster.ErrRefused)
}

// mayRunHere reports whether this node is one that the workload may be given to, as
// far as its record says.
func (c *Checker) mayRunHere(w cluster.Workload) bool {
	named := append(w.Members(), w.Nodes...)
	return len(named) == 0 || slices.Contains(named, c.node)
}

// hidden is what pvcapid's unit keeps from it (ProtectHome=, PrivateTmp=,
// PrivateDevices=), and with it from a Checker.
var hidden = []string{"/home/", "/root/", "/run/user/", "/tmp/", "/var/tmp/", "/dev/"}

// certainlyMissing is exec.LookPath for who may see less than what will run the
// program: an error only where the guard could not run it either. It goes by the
// modes, not by what this process itself may run.
func certainlyMissing(program string) error {
	candidates := []string{program}
	if !strings.Contains(program, "/") {
		candidates = nil
		for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
			candidates = append(candidates, filepath.Join(dir, program))
		}
	}
	err := fmt.Errorf("%q is in no folder of PATH", program)
	for _, path := range candidates {
		if !filepath.IsAbs(path) || slices.ContainsFunc(hidden, func(h string) bool { return strings.HasPrefix(filepath.Clean(path), h) }) {
			return nil
		}
		info, statErr := os.Stat(path)
		switch {
		case statErr == nil && !info.IsDir() && info.Mode()&0o111 != 0:
			return nil
		case statErr == nil && info.IsDir():
			err = fmt.Errorf("%s is a folder", path)
		case statErr == nil:
			err = fmt.Errorf("%s may be executed by nobody: chmod +x it", path)
		case !errors.Is(statErr, fs.ErrNotExist) && !errors.Is(statErr, syscall.ENOTDIR):
			return nil // it may be there
		case len(candidates) == 1:
			err = fmt.Errorf("there is no %s", path)
		}
	}
	return err
}
