package zkhandler

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/go-zookeeper/zk"

	"pvc.internal/cluster"
)

// watchKind is what a watch looks at.
type watchKind uint8

const (
	watchData     watchKind = iota // the znode's data and its existence
	watchChildren                  // the names of its children
	watchNothing                   // read once; such records never change
)

type watchKey struct {
	path string
	kind watchKind
}

// watches knows which watches the present session has armed, so that there is
// never more than one a path: the library keeps a channel for each, until it
// fires, and offers no way to remove one. Across reconnects the library
// re-arms what it knows; a new session begins with none.
type watches struct {
	mu      sync.Mutex
	session *session
	armed   map[watchKey]bool
	fires   map[watchKey]bool // fired and not yet taken by the mirror
	signal  chan struct{}     // fires is not empty
	waiting map[string][]chan struct{}
}

func newWatches() *watches {
	return &watches{
		armed:   map[watchKey]bool{},
		fires:   map[watchKey]bool{},
		waiting: map[string][]chan struct{}{},
		signal:  make(chan struct{}, 1),
	}
}

// reset begins a new session's registry and wakes everybody who waits.
func (w *watches) reset(s *session) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.session = s
	clear(w.armed)
	clear(w.fires)
	w.wakeAll()
}

// releaseAll wakes everybody who waits: a new connection is a reason to look
// again.
func (w *watches) releaseAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wakeAll()
}

func (w *watches) wakeAll() {
	for path := range w.waiting {
		w.release(path)
	}
}

// fired is called for each event by the library's reading goroutine.
func (w *watches) fired(s *session, path string, e zk.EventType) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.session != s {
		return
	}
	data, children := watchKey{path, watchData}, watchKey{path, watchChildren}
	switch e {
	case zk.EventNodeDataChanged:
		w.fire(data)
	case zk.EventNodeChildrenChanged:
		w.fire(children)
	case zk.EventNodeCreated, zk.EventNodeDeleted:
		w.fire(data)
		w.fire(children)
	}
	w.release(path)
	s.h.metrics.event()
}

func (w *watches) fire(k watchKey) {
	delete(w.armed, k)
	w.fires[k] = true
	notify(w.signal)
}

// release wakes the waiters of a path; w.mu is held.
func (w *watches) release(path string) {
	for _, ch := range w.waiting[path] {
		close(ch)
	}
	delete(w.waiting, path)
}

// take returns what has fired since the last call.
func (w *watches) take() []watchKey {
	w.mu.Lock()
	defer w.mu.Unlock()
	keys := make([]watchKey, 0, len(w.fires))
	for k := range w.fires {
		keys = append(keys, k)
	}
	clear(w.fires)
	return keys
}

// wait returns a channel that is closed at the next event of path, and a
// function that gives up waiting.
func (w *watches) wait(path string) (<-chan struct{}, func()) {
	ch := make(chan struct{})
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiting[path] = append(w.waiting[path], ch)
	return ch, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		rest := slices.DeleteFunc(w.waiting[path], func(c chan struct{}) bool { return c == ch })
		if len(rest) == 0 {
			delete(w.waiting, path)
			return
		}
		w.waiting[path] = rest
	}
}

// arm claims the watch: true means that the caller's read is to set it. The
// claim comes before the read, so that an event which overtakes the caller
// finds something to disarm.
func (w *watches) arm(k watchKey) bool {
	if k.kind == watchNothing {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.armed[k] {
		return false
	}
	w.armed[k] = true
	return true
}

// disarm takes a claim back, after a read that has set no watch or when the
// watch turns out to be lost.
func (w *watches) disarm(k watchKey) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.armed, k)
}

// reading is what a read of one watched path found.
type reading struct {
	datum
	names   []string // children, for watchChildren
	present bool
	armed   bool            // this very read has set the watch
	at      cluster.Instant // after the reply
	err     error           // permanent: the record cannot be read
	lost    error           // the link failed: read again
}

// read reads the path and sees to it that its watch is armed.
func (h *Handler) read(ctx context.Context, k watchKey) reading {
	r, err := h.readOnce(ctx, k)
	for tries := 0; errors.Is(err, errAppeared) && tries < 3; tries++ {
		r, err = h.readOnce(ctx, k)
	}
	r.at = h.clock.Now()
	switch fateOf(err) {
	case fateDone:
	case fateRefused:
		r.present, r.err = true, err
	default:
		r.lost = err
	}
	return r
}

// errAppeared says that a record came into being between two looks.
var errAppeared = errors.New("appeared meanwhile")

func (h *Handler) readOnce(ctx context.Context, k watchKey) (reading, error) {
	arming := h.watches.arm(k)
	r, _, err := request(ctx, h, func(c *zk.Conn) (reading, error) { return fetch(c, k, arming) })
	if err == nil {
		r.present, r.armed = true, arming
		return r, nil
	}
	if arming {
		h.watches.disarm(k)
	}
	if !errors.Is(err, cluster.ErrNotFound) {
		return reading{}, wrapPath(err, "read", k.path)
	}
	return h.readAbsent(ctx, k)
}

// readAbsent arms the watch for a record's creation.
func (h *Handler) readAbsent(ctx context.Context, k watchKey) (reading, error) {
	data := watchKey{k.path, watchData}
	if k.kind == watchNothing || !h.watches.arm(data) {
		return reading{}, nil
	}
	exists, _, err := request(ctx, h, func(c *zk.Conn) (bool, error) {
		exists, _, _, err := c.ExistsW(k.path)
		return exists, err
	})
	switch {
	case err != nil:
		h.watches.disarm(data)
		return reading{}, wrapPath(err, "watch for", k.path)
	case exists:
		return reading{}, errAppeared
	}
	return reading{armed: true}, nil
}

func fetch(c *zk.Conn, k watchKey, arming bool) (r reading, err error) {
	var stat *zk.Stat
	switch {
	case k.kind == watchChildren && arming:
		r.names, stat, _, err = c.ChildrenW(k.path)
	case k.kind == watchChildren:
		r.names, stat, err = c.Children(k.path)
	case arming:
		r.data, stat, _, err = c.GetW(k.path)
	default:
		r.data, stat, err = c.Get(k.path)
	}
	if err == nil {
		r.stat = *stat
	}
	return r, err
}
