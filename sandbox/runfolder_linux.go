package sandbox

import (
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// sharedMemory is the tmpfs that every Linux machine has.
const sharedMemory = "/dev/shm"

// makeRunFolder makes the node's run folder, in memory as a machine's /run is: what
// the guard writes there at each deadline must not wait for a disk that others keep
// busy (a page of a mapped file waits while it is written back). Where the machine
// has no tmpfs to share it is on disk like the rest.
func (n *Node) makeRunFolder() error {
	if target := n.memoryFolder(); target != "" {
		if err := os.RemoveAll(target); err != nil {
			return fmt.Errorf("empty the run folder of %s: %w", n.Plan.Name, err)
		}
		if err := os.Mkdir(target, 0o750); err == nil {
			return os.Symlink(target, n.runFolder())
		}
	}
	return os.MkdirAll(n.runFolder(), 0o750)
}

func (n *Node) runFolder() string { return filepath.Join(n.Dir, "run") }

// memoryFolder is where the node's run folder is in memory, empty if nowhere.
func (n *Node) memoryFolder() string {
	var fs unix.Statfs_t
	if unix.Statfs(sharedMemory, &fs) != nil || fs.Type != unix.TMPFS_MAGIC {
		return ""
	}
	sandbox := crc32.ChecksumIEEE([]byte(n.sandbox.options.Dir)) // of those with one name, too, each has its own
	return filepath.Join(sharedMemory, fmt.Sprintf("pvc-%s-%08x-%s", n.sandbox.options.Name, sandbox, n.Plan.Name))
}

// removeRunFolders removes what the nodes of a sandbox's folder have in memory.
func removeRunFolders(dir string) error {
	links, _ := filepath.Glob(filepath.Join(dir, "*", "run"))
	var errs []error
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil && filepath.Dir(target) == sharedMemory {
			errs = append(errs, os.RemoveAll(target))
		}
	}
	return errors.Join(errs...)
}
