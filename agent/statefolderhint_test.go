package agent

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A state folder that cannot be used is told with what to do about it.
func TestStateFolderTrouble(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		file: "is a file and no folder", filepath.Join(file, "below"): "is a file and no folder", "/proc/none": "/proc/none",
	} {
		if _, err := OpenStateFolder(path, "hv1"); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
	for errno, want := range map[syscall.Errno]string{
		syscall.ENOSPC: "the disk is full", syscall.EROFS: "read-only", syscall.EACCES: "runs as user", syscall.EPERM: "runs as user", syscall.EIO: "the disk fails", syscall.EBUSY: "busy",
	} {
		err := stateTrouble("write", "/var/lib/pvc", &os.PathError{Op: "write", Path: "x", Err: errno})
		if !errors.Is(err, errno) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v", errno, err)
		}
	}
	f, err := OpenStateFolder(filepath.Join(dir, "good"), "hv1")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.RemoveAll(filepath.Join(dir, "good")); err != nil {
		t.Fatal(err)
	}
	if err := f.Remember("demo"); err == nil || !strings.Contains(err.Error(), "the folder has gone") {
		t.Errorf("a folder that is gone: %v", err)
	}
}
