package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// stateTrouble says what to do about a state folder that cannot be used. A daemon
// does not start without it: what earlier starts have promised stands there.
func stateTrouble(verb, dir string, err error) error {
	cure := ""
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		cure = "the disk is full: make room there (`df -h " + dir + "`, `df -i " + dir + "`); what the folder held is unchanged"
	case errors.Is(err, syscall.EROFS):
		cure = "it lies on a file system that is read-only: mount it writable, or set state_dir to a folder on one that is"
	case errors.Is(err, fs.ErrPermission):
		cure = fmt.Sprintf("this process runs as user %d, who may not: start it by `systemctl start pvcnoded`, which runs it as root, or give the folder that owner", os.Geteuid())
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, fs.ErrExist):
		cure = "something on that path is a file and no folder: move it away, or set state_dir to another"
	case errors.Is(err, fs.ErrNotExist):
		cure = "the folder has gone: was its disk unmounted?"
	case errors.Is(err, syscall.EIO):
		cure = "the disk fails: see `dmesg`"
	}
	if cure != "" {
		cure = ": " + cure
	}
	return fmt.Errorf("%s state folder %s: %w%s", verb, dir, err, cure)
}
