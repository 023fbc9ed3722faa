package lease

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
)

// fileName is the lease file in a node's state folder.
const fileName = "lease.json"

// FaultPersist names the fault point before each change of the file.
const FaultPersist = "lease.persist"

// File is a node's lease file. Writes and removals belong to one goroutine; the
// counters may be read by any.
type File struct {
	dir string
	// fault is asked before each change, with FaultPersist; an error it returns is
	// the change's.
	fault  func(point string) error
	writes atomic.Uint64
	syncs  atomic.Uint64
	failed atomic.Uint64
}

// NewFile returns the lease file of a state folder, which must exist. fault may
// be nil.
func NewFile(dir string, fault func(point string) error) *File { return &File{dir: dir, fault: fault} }

// FileCounters count since the start of the daemon.
type FileCounters struct {
	Writes uint64 // that were asked for, removals too
	Syncs  uint64 // calls of fsync
	Failed uint64
}

// Counters may be called at any time.
func (f *File) Counters() FileCounters {
	return FileCounters{Writes: f.writes.Load(), Syncs: f.syncs.Load(), Failed: f.failed.Load()}
}

// Path is where the file lies.
func (f *File) Path() string { return filepath.Join(f.dir, fileName) }

// Read returns what the file says, for InputStart. It has no error: whatever
// keeps the file from being read counts as a promise to somebody unknown. What a
// crash left of an unfinished write is swept away; the file itself stays as it
// is until another replaces it (L3).
func (f *File) Read() Found {
	f.sweep()
	raw, err := readAtMost(f.Path(), maxRecord+1)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(f.dir); err != nil {
			return Found{Kind: FoundUnreadable, Detail: fmt.Sprintf("look at the state folder: %v", err)}
		}
		return Found{Kind: FoundNothing}
	}
	if err != nil {
		return Found{Kind: FoundUnreadable, Detail: fmt.Sprintf("read the lease file: %v", err)}
	}
	record, err := DecodeRecord(raw)
	if err != nil {
		return Found{Kind: FoundUnreadable, Detail: fmt.Sprintf("%s: %v", f.Path(), err)}
	}
	return Found{Kind: FoundRecord, Record: record}
}

func readAtMost(path string, most int64) ([]byte, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() { // to open a pipe would wait for ever
		return nil, fmt.Errorf("%s is no regular file", path)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }() // nothing was written
	return io.ReadAll(io.LimitReader(file, most))
}

// sweep removes temporary files of earlier starts; what cannot be removed does
// no harm.
func (f *File) sweep() {
	left, _ := filepath.Glob(filepath.Join(f.dir, fileName+".*.tmp")) // the pattern is well-formed
	for _, path := range left {
		_ = os.Remove(path)
	}
}

// Write replaces the file: a temporary file, fsync, rename, fsync of the folder.
// After an error the old record or the new one is there, whole.
func (f *File) Write(r Record) error {
	return f.change(func() error {
		raw, err := EncodeRecord(r)
		if err != nil {
			return err
		}
		return f.replace(raw)
	})
}

// Remove deletes the file; that there is none is no error.
func (f *File) Remove() error {
	return f.change(func() error {
		if err := os.Remove(f.Path()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the lease file: %w", err)
		}
		return f.syncFolder()
	})
}

func (f *File) change(do func() error) error {
	f.writes.Add(1)
	var err error
	if f.fault != nil {
		err = f.fault(FaultPersist)
	}
	if err == nil {
		err = do()
	}
	if err != nil {
		f.failed.Add(1)
	}
	return err
}

func (f *File) replace(raw []byte) error {
	tmp, err := os.CreateTemp(f.dir, fileName+".*.tmp") // mode 0600
	if err != nil {
		return fmt.Errorf("write the lease file: %w", err)
	}
	defer func() { _ = os.Remove(tmp.Name()) }() // gone already after the rename
	if _, err = tmp.Write(raw); err == nil {
		f.syncs.Add(1)
		err = tmp.Sync()
	}
	if closeErr := tmp.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), f.Path())
	}
	if err != nil {
		return fmt.Errorf("write the lease file: %w", err)
	}
	return f.syncFolder()
}

func (f *File) syncFolder() error {
	dir, err := os.Open(f.dir)
	if err != nil {
		return fmt.Errorf("sync the state folder: %w", err)
	}
	defer func() { _ = dir.Close() }() // opened for its fsync only
	f.syncs.Add(1)
	if err := dir.Sync(); err != nil {
		return fmt.Errorf("sync the state folder: %w", err)
	}
	return nil
}
