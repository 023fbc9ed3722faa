package guard

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// groups tells when the control groups of services become empty, by the kernel's
// word: nothing is polled, however many there are.
type groups struct {
	mu      sync.Mutex
	fd      int      // of inotify; −1: nobody is told
	file    *os.File // the same; its reads wait in the runtime's poller
	watches map[int32]func()
}

// openGroups makes it. Where the kernel refuses, services of actions whose
// processes end by themselves are found by whoever looks.
func openGroups(log *zap.Logger) *groups {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		log.Warn("the guard is not told when a service's processes end", zap.Error(err))
		fd = -1
	}
	g := &groups{fd: fd, watches: map[int32]func(){}}
	if fd >= 0 {
		g.file = os.NewFile(uintptr(fd), "inotify")
	}
	return g
}

// close ends run.
func (g *groups) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.fd = -1; g.file != nil {
		_ = g.file.Close()
	}
}

// watch has f called each time the group's population may have changed; the kernel
// forgets it with the group. f must not block.
func (g *groups) watch(group string, f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.fd < 0 {
		return
	}
	if wd, err := unix.InotifyAddWatch(g.fd, filepath.Join(group, "cgroup.events"), unix.IN_MODIFY); err == nil {
		g.watches[int32(wd)] = f
	}
}

// run delivers until close.
func (g *groups) run() {
	if g.file == nil {
		return
	}
	buf := make([]byte, 16<<10)
	for {
		n, err := g.file.Read(buf)
		if err != nil {
			return
		}
		for _, f := range g.changed(buf[:n]) {
			f()
		}
	}
}

// changed reads the events, and forgets what the kernel has forgotten.
func (g *groups) changed(buf []byte) (list []func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for len(buf) >= unix.SizeofInotifyEvent {
		wd, mask := int32(binary.NativeEndian.Uint32(buf)), binary.NativeEndian.Uint32(buf[4:])
		size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(buf[12:]))
		if size > len(buf) {
			panic(fmt.Sprintf("an inotify event of %d bytes in %d", size, len(buf)))
		}
		if f := g.watches[wd]; f != nil {
			list = append(list, f)
		}
		if mask&unix.IN_IGNORED != 0 {
			delete(g.watches, wd)
		}
		buf = buf[size:]
	}
	return list
}
