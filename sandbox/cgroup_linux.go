package sandbox

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// cgroupRoot returns where control groups v2 are mounted and writable; empty
// where they are not, and the nodes then share the machine's.
func cgroupRoot() string {
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(filepath.Join(dir, "cgroup.controllers")); err != nil {
			continue
		}
		if unix.Access(dir, unix.W_OK) == nil {
			return dir
		}
	}
	return ""
}

// removeCgroup ends every process below the folder and removes it, deepest
// first. What the kernel still holds busy is tried again for half a second.
func removeCgroup(dir string) {
	if dir == "" {
		return
	}
	if _, err := os.Stat(dir); err != nil {
		return
	}
	_ = os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0)
	for range 50 {
		var dirs []string
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		slices.Reverse(dirs)
		for _, d := range dirs {
			_ = unix.Rmdir(d)
		}
		if _, err := os.Stat(dir); err != nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// noCgroup stands for "no control groups here" on sandbox-init's command line.
const noCgroup = "none"
