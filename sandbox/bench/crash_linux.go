package bench

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// What a bench that is killed leaves behind: nothing that runs, and folders that the
// next one removes. Nodes end with the process by themselves, and what runs on them
// with them.

// withUs has the kernel kill a program once this process is gone, however it ended.
func withUs() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL} }

// folderPrefix begins the names of a bench's own folders; the kind, the process and
// a random word follow.
const folderPrefix = "pvc-bench-"

// newFolder makes a folder that a later bench may remove once this process is gone.
// parent is one of folderParents.
func newFolder(parent, kind string) (string, error) {
	return os.MkdirTemp(parent, fmt.Sprintf("%s%s-%d-", folderPrefix, kind, os.Getpid()))
}

func folderParents() []string { return []string{os.TempDir(), memoryFolder()} }

// sweepKilled removes the folders of benches whose process is gone.
func sweepKilled() {
	for _, parent := range folderParents() {
		if parent == "" {
			continue
		}
		folders, _ := filepath.Glob(filepath.Join(parent, folderPrefix+"*"))
		for _, folder := range folders {
			if pid, ok := folderOwner(filepath.Base(folder)); ok && errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
				_ = os.RemoveAll(folder)
			}
		}
	}
}

// folderOwner is the process that has made a folder of that name.
func folderOwner(name string) (pid int, ok bool) {
	words := strings.Split(name, "-")
	if len(words) < 4 || !strings.HasPrefix(name, folderPrefix) {
		return 0, false
	}
	pid, err := strconv.Atoi(words[len(words)-2])
	return pid, err == nil && pid > 1
}
