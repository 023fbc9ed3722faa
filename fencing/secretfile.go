package fencing

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
)

// secretWait bounds the reading of one file with a secret. A file that takes
// longer lies where nothing answers.
const secretWait = 5 * time.Second

// smallFile is what was read of a file.
type smallFile struct {
	data []byte
	mode fs.FileMode
}

// smallFiles reads files that may lie on a file system that does not answer. A
// read(2) there ends when the kernel likes, and nothing calls it off, so that it
// has a goroutine that its callers leave behind at their deadline: neither a
// fence nor the end of this process waits for it (I10). What is left behind is
// bounded: one read of each path is under way at a time, and whoever asks
// meanwhile waits for that one, as long as he likes.
type smallFiles struct {
	fetch func(path string, most int64) (smallFile, error)

	mu      sync.Mutex
	pending map[string]*pendingFile
}

// pendingFile is a read under way; its result is there once done is closed.
type pendingFile struct {
	since time.Time
	done  chan struct{}
	file  smallFile
	err   error
}

// secretFiles are the files with secrets, of all devices.
var secretFiles = smallFiles{fetch: fetchFile}

// read returns the first most bytes of a regular file, by ctx's end and within
// secretWait; the error wraps cluster.ErrDeadline where it did not answer by then.
func (f *smallFiles) read(ctx context.Context, path string, most int64) (smallFile, error) {
	ctx, cancel := context.WithTimeout(ctx, secretWait)
	defer cancel()
	if err := ctx.Err(); err != nil {
		return smallFile{}, fmt.Errorf("open %s: %w", path, err)
	}
	p := f.begin(path, most)
	select {
	case <-p.done:
		return p.file, p.err
	case <-ctx.Done():
	}
	return smallFile{}, fmt.Errorf("open %s: its file system has not answered for %s; keep the file on a local one: %w",
		path, time.Since(p.since).Round(time.Millisecond), errors.Join(cluster.ErrDeadline, ctx.Err()))
}

// begin joins the read of the path that is under way, or starts one.
func (f *smallFiles) begin(path string, most int64) *pendingFile {
	f.mu.Lock()
	defer f.mu.Unlock()
	if p := f.pending[path]; p != nil {
		return p
	}
	p := &pendingFile{since: time.Now(), done: make(chan struct{})}
	if f.pending == nil {
		f.pending = map[string]*pendingFile{}
	}
	f.pending[path] = p
	go func() {
		p.file, p.err = f.fetch(path, most)
		f.mu.Lock()
		delete(f.pending, path)
		f.mu.Unlock()
		close(p.done)
	}()
	return p
}

// fetchFile reads a file itself. What is no regular file is refused: a pipe
// would hang, a device never end.
func fetchFile(path string, most int64) (smallFile, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return smallFile{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return smallFile{}, err
	}
	file := smallFile{mode: info.Mode()}
	if !info.Mode().IsRegular() {
		return file, fmt.Errorf("%s is no regular file", path)
	}
	file.data, err = io.ReadAll(io.LimitReader(f, most))
	return file, err
}
