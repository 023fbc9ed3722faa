package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/google/uuid"

	"pvc.internal/agent/lease"
	"pvc.internal/cluster"
)

// StateFolder is a node's memory across starts: who it is and which cluster it
// belongs to. Its lock is held as long as the process lives, also by a stopped
// one, so that one host never runs two daemons of one name.
type StateFolder struct {
	dir    string
	lock   *os.File
	memory memory
}

type memory struct {
	Version int            `json:"v"`
	Node    cluster.NodeID `json:"node"`
	ID      string         `json:"id"`
	Cluster string         `json:"cluster,omitempty"`
	// LongestTTLMillis is the largest role_ttl ever in use here.
	LongestTTLMillis int64 `json:"longest_ttl_ms,omitempty"`
	// LongestLeaseMillis is the largest node_lease_period ever in use here.
	LongestLeaseMillis int64 `json:"longest_lease_ms,omitempty"`
}

// OpenStateFolder locks the folder (making it if need be) and reads what it
// remembers. It refuses a folder that another process holds, or that belongs
// to another node.
func OpenStateFolder(dir string, n cluster.NodeID) (*StateFolder, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, stateTrouble("make", dir, err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, stateTrouble("open", dir, err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("%w: state folder %s is in use by another pvcnoded on this host (a stopped process holds it, too); end that one first", cluster.ErrDuplicateNode, dir)
	}
	f := &StateFolder{dir: dir, lock: lock}
	if err := f.read(n); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (f *StateFolder) read(n cluster.NodeID) error {
	raw, err := os.ReadFile(filepath.Join(f.dir, "node.json"))
	if errors.Is(err, fs.ErrNotExist) {
		f.memory = memory{Version: 1, Node: n, ID: uuid.NewString()}
		return f.write()
	}
	if err != nil {
		return stateTrouble("read", f.dir, err)
	}
	if err := json.Unmarshal(raw, &f.memory); err != nil {
		return fmt.Errorf("read %s: %w; move the file away to make this node a new one", filepath.Join(f.dir, "node.json"), err)
	}
	if f.memory.Node != n {
		return fmt.Errorf("%w: %s remembers node %q, the configuration says %q; if this machine is to be node %q from now on, remove node %q from the cluster, stop pvcnoded and pvc-guard here, and move the folder away",
			cluster.ErrForeignTree, f.dir, f.memory.Node, n, n, f.memory.Node)
	}
	return nil
}

// ID is this node's random id, kept since the folder was made.
func (f *StateFolder) ID() string { return f.memory.ID }

// Remember notes which cluster this node belongs to, or refuses another one.
// An empty name says that the tree is empty: refused where a cluster is
// remembered, since starting a new one by mistake would split it.
func (f *StateFolder) Remember(clusterName string) error {
	switch {
	case f.memory.Cluster == clusterName:
		return nil
	case clusterName == "":
		return fmt.Errorf("%w: this node remembers cluster %q; restore the tree from a backup, or, if the cluster is to be made anew, remove %s",
			cluster.ErrEmptyTree, f.memory.Cluster, filepath.Join(f.dir, "node.json"))
	case f.memory.Cluster != "":
		return fmt.Errorf("%w: %s remembers cluster %q, the tree is of %q", cluster.ErrForeignTree, f.dir, f.memory.Cluster, clusterName)
	}
	f.memory.Cluster = clusterName
	return f.write()
}

// UseTTL notes that a daemon with this role_ttl is about to run here, and returns
// the largest one ever in use: an earlier start may have promised for as long
// that it will not take the role. It is on disk when UseTTL returns.
func (f *StateFolder) UseTTL(ttl time.Duration) (longest time.Duration, err error) {
	return f.longest(&f.memory.LongestTTLMillis, ttl)
}

// UseLeasePeriod notes that a daemon with this node_lease_period is about to run
// here, and returns the largest one ever in use: an earlier start may have served
// somebody for as long. It is on disk when UseLeasePeriod returns.
func (f *StateFolder) UseLeasePeriod(period time.Duration) (longest time.Duration, err error) {
	return f.longest(&f.memory.LongestLeaseMillis, period)
}

// longest raises what is remembered, and returns that.
func (f *StateFolder) longest(known *int64, d time.Duration) (time.Duration, error) {
	if ms := (d + time.Millisecond - 1).Milliseconds(); ms > *known {
		before := *known
		*known = ms
		if err := f.write(); err != nil {
			*known = before
			return 0, err
		}
	}
	return time.Duration(*known) * time.Millisecond, nil
}

// Leases is this node's lease file, for one start of the daemon.
func (f *StateFolder) Leases() LeaseFile { return lease.NewFile(f.dir, nil) }

// write persists by temporary file, fsync, rename and fsync of the folder.
func (f *StateFolder) write() error {
	raw, err := json.Marshal(f.memory)
	if err != nil {
		return fmt.Errorf("encode state: %w", err)
	}
	tmp, err := os.CreateTemp(f.dir, "node.json.*")
	if err != nil {
		return stateTrouble("write", f.dir, err)
	}
	defer func() { _ = os.Remove(tmp.Name()) }() // gone already after the rename
	if _, err = tmp.Write(append(raw, '\n')); err == nil {
		err = tmp.Sync()
	}
	if closeErr := tmp.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), filepath.Join(f.dir, "node.json"))
	}
	if err != nil {
		return stateTrouble("write", f.dir, err)
	}
	dir, err := os.Open(f.dir)
	if err != nil {
		return fmt.Errorf("sync state folder: %w", err)
	}
	defer func() { _ = dir.Close() }()
	return dir.Sync()
}

// Close gives the folder's lock back.
func (f *StateFolder) Close() { _ = f.lock.Close() }
