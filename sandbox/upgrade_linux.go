package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
)

// binFolder, in the node's folder, leads to the programs that the node runs.
const binFolder = "bin"

// UseBinaries has the node run the project's programs of this folder from their
// next start on, as an installed package would; those that run go on as they are.
// An empty folder is Options.BinDir.
func (n *Node) UseBinaries(dir string) error {
	if dir == "" {
		dir = n.sandbox.options.BinDir
	}
	path, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	link := filepath.Join(n.Dir, binFolder)
	next := link + ".next"
	if err := os.Remove(next); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("have %s run the programs of %s: %w", n.Plan.Name, dir, err)
	}
	if err := errors.Join(os.Symlink(path, next), os.Rename(next, link)); err != nil {
		return fmt.Errorf("have %s run the programs of %s: %w", n.Plan.Name, dir, err)
	}
	return nil
}

// Upgrade has the node run the programs of the folder: its agent ends in order
// (in maintenance a primary's keeps the role), the guard is killed and its
// successor goes on with what it held, the agent starts, and last the API's
// server. It returns when the agent has been started.
func (n *Node) Upgrade(ctx context.Context, dir string) error {
	if err := n.UseBinaries(dir); err != nil {
		return err
	}
	if err := n.replace(ctx, progAgent, unix.SIGTERM, func(p procStatus) bool { return !p.Running }); err != nil {
		return err
	}
	guard, err := n.Programs(ctx)
	if err != nil {
		return err
	}
	// Who resumes a role and finds no guard gives the role up.
	if err := n.replace(ctx, progGuard, unix.SIGKILL, func(p procStatus) bool {
		return p.Running && p.PID != guard[progGuard].PID && n.guardServes(ctx)
	}); err != nil {
		return err
	}
	if err := n.Start(ctx, progAgent); err != nil {
		return err
	}
	if n.Plan.Mode != cluster.Coordinator {
		return nil
	}
	return n.Signal(ctx, progAPI, unix.SIGTERM) // its supervisor starts it again
}

// guardServes reports whether the guard takes connections.
func (n *Node) guardServes(ctx context.Context) bool {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", filepath.Join(n.Dir, "run", "guard.sock"))
	if err != nil {
		return false
	}
	return conn.Close() == nil
}

// replace signals the program and waits until it has come to where it should.
func (n *Node) replace(ctx context.Context, program string, sig unix.Signal, done func(procStatus) bool) error {
	ctx, cancel := context.WithTimeout(ctx, clusterTimeout)
	defer cancel()
	if err := n.Signal(ctx, program, sig); err != nil {
		return err
	}
	for {
		have, err := n.Programs(ctx)
		if err == nil && done(have[program]) {
			return nil
		}
		if err := pause(ctx, 5*time.Millisecond); err != nil {
			return fmt.Errorf("%s of %s did not follow %s: %w", program, n.Plan.Name, unix.SignalName(sig), err)
		}
	}
}

// Silence runs the body and returns for how long at most a floating address was
// not answered for meanwhile, for certain: a time in which nobody asked is none.
// What is not above the noise (Noise) is none either.
func (s *Sandbox) Silence(ctx context.Context, body func() error) (time.Duration, error) {
	began := now()
	if err := body(); err != nil {
		return 0, err
	}
	ended := now()
	if err := s.prober.settled(ctx, ended); err != nil {
		return 0, err
	}
	return s.noise(began, ended), nil
}

// Maintain switches the maintenance of the cluster, as the API would.
func (s *Sandbox) Maintain(ctx context.Context, on bool) error { return s.setMaintenance(ctx, on) }

// Lease is the primary's lease as it was seen last.
func (s *Sandbox) Lease() cluster.Lease {
	if snap := s.store.latest(); snap != nil {
		return snap.Lease.Value
	}
	return cluster.Lease{}
}

// Text is a record's raw text; an absent one is not present and no error.
func (s *Sandbox) Text(ctx context.Context, k cluster.Key) (cluster.Versioned[string], error) {
	ctx, cancel := context.WithTimeout(ctx, storePatience)
	defer cancel()
	return s.store.ReadText(ctx, k)
}

// plantedAtOnce bounds one of Plant's transactions: a server that writes to a busy
// disk has to answer it within a fraction of the session's time.
const plantedAtOnce = 60

// Plant makes these records, for instance of nodes that are not there. Each is made
// by a creation, so that what got no answer can be tried again.
func (s *Sandbox) Plant(ctx context.Context, creations []cluster.Op) error {
	for ops := range slices.Chunk(creations, plantedAtOnce) {
		if err := s.plantThese(ctx, ops); err != nil {
			return err
		}
	}
	return nil
}

func (s *Sandbox) plantThese(ctx context.Context, ops []cluster.Op) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for lost := false; ; {
		r := s.store.commit(ctx, cluster.Txn{Purpose: "sandbox.plant", Ops: ops})
		switch {
		case r.Outcome == cluster.OutcomeOK, r.Outcome == cluster.OutcomeConflict && lost: // it was carried out
			return nil
		case r.Outcome == cluster.OutcomeConflict, ctx.Err() != nil:
			return fmt.Errorf("plant %d records: %s: %w", len(ops), r.Outcome, r.Err)
		}
		lost = lost || r.Outcome == cluster.OutcomeUnknown
		_ = pause(ctx, 100*time.Millisecond)
	}
}
