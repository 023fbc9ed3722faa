package zkhandler

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
)

const (
	maxReads   = 10 // of maxInFlight, so that a re-read of everything leaves room for writes
	retryReads = 100 * time.Millisecond

	// maxResync is how many records of nodes and workloads the periodic re-read asks for at a
	// time: all of them in a small cluster. With a thousand nodes, all at once
	// would be as many reads as all their keepalives make.
	maxResync = 400

	// A snapshot costs as much as there are nodes, and their keepalives change as
	// often as there are nodes: each change told at once would cost the square. So
	// where there are many, what only tells of nodes waits a little for more of its
	// kind: 50 ms with a thousand nodes, nothing below shortPace.
	pacePerNode = 50 * time.Microsecond
	shortPace   = 5 * time.Millisecond
)

// slot is one watched path and what its reading means for the view.
type slot struct {
	first bool // read before all others
	key   watchKey
	role  bool // read by Refresh, and before others
	store func(reading) (changed bool)

	busy   bool   // a read is under way
	again  bool   // and another is wanted
	many   bool   // one of a node's own records, or a workload's: there may be a thousand
	queued bool   // waiting for a place
	gone   bool   // no longer watched
	resync bool   // wanted by the periodic re-read
	link   uint64 // the connection for which it was last read
	seq    uint64 // when its last finished read began, in mirror.seq's count
}

// mirror keeps the view of the coordination records. One goroutine, run, owns
// all but the channels; what a read finds reaches it as a finding.
type mirror struct {
	h           *Handler
	linkChanged chan struct{} // the session's phase has changed
	relinked    chan struct{} // it has become live
	findings    chan finding
	refreshes   chan *refresh
	reads       sync.WaitGroup

	slots   map[watchKey]*slot
	urgent  []*slot // waiting for a place: role's first
	queue   []*slot
	running int
	unread  int // slots not read on the present connection
	link    uint64
	seq     uint64
	retry   *time.Timer
	pace    *time.Timer
	made    time.Time // when the last snapshot was

	session  int64
	live     bool // the link is
	since    cluster.Instant
	caughtUp bool // everything has been read on this connection
	complete bool // everything has been read in this session

	view      cluster.Snapshot // Nodes and RoleLock aside
	nodes     map[cluster.NodeID]*nodeSlots
	nodeNames []string // children of /nodes
	alive     []string // children of /agent/alive
	dirty     map[cluster.NodeID]bool
	workloads map[string]*workloadSlot
	soiled    map[string]bool                                // workloads that differ from what was handed out
	shared    map[string]cluster.Versioned[cluster.Workload] // never edited once handed out
	published map[cluster.NodeID]cluster.NodeView            // never edited once handed out
	lock      map[string]*lockSlot
	lockDirty bool
	changed   bool
	pressing  bool // and more than what a node tells of itself: not to be held back
	waiting   []*refresh
}

type finding struct {
	slot *slot
	reading
	link   uint64
	seq    uint64
	resync bool
}

type nodeSlots struct {
	view  cluster.NodeView
	slots []*slot
}

type lockSlot struct {
	slot  *slot
	child cluster.LockChild
	read  bool
}

// refresh is a wish for fresh reads of the role's records.
type refresh struct {
	after uint64 // reads that began later count
	done  chan *cluster.Snapshot
	fail  chan error
}

func newMirror(h *Handler) *mirror {
	return &mirror{
		h:           h,
		linkChanged: make(chan struct{}, 1),
		relinked:    make(chan struct{}, 1),
		findings:    make(chan finding, maxReads),
		refreshes:   make(chan *refresh),
		slots:       map[watchKey]*slot{},
		nodes:       map[cluster.NodeID]*nodeSlots{},
		dirty:       map[cluster.NodeID]bool{},
		workloads:   map[string]*workloadSlot{},
		soiled:      map[string]bool{},
		shared:      map[string]cluster.Versioned[cluster.Workload]{},
		published:   map[cluster.NodeID]cluster.NodeView{},
		lock:        map[string]*lockSlot{},
	}
}

// run keeps the view until ctx ends, and then waits for its reads.
func (m *mirror) run(ctx context.Context) {
	defer m.reads.Wait()
	m.retry = time.NewTimer(time.Hour)
	defer m.retry.Stop()
	m.pace = time.NewTimer(time.Hour)
	defer m.pace.Stop()
	calm, calming := time.NewTimer(time.Hour), false
	defer calm.Stop()
	resync := time.NewTicker(m.h.config.Resync)
	defer resync.Stop()
	m.watchCluster()
	for {
		select {
		case <-ctx.Done():
			m.failWaiting(ctx.Err())
			return
		case <-m.relinked:
			m.relink()
		case <-m.linkChanged:
			m.followLink()
		case <-m.h.watches.signal:
			switch {
			case m.h.config.Calm <= 0:
				m.takeFires()
			case !calming:
				calming = true
				calm.Reset(m.h.config.Calm) // what fires meanwhile is read with it
			}
		case <-calm.C:
			calming = false
			m.takeFires()
		case f := <-m.findings:
			m.accept(f)
		case r := <-m.refreshes:
			m.startRefresh(r)
		case <-m.retry.C:
			m.queueUnread()
		case <-m.pace.C:
		case <-resync.C:
			m.resync()
		}
		m.drain()
		m.startReads(ctx)
		m.publish()
	}
}

// drain takes what else has arrived, so that one publication covers it.
func (m *mirror) drain() {
	for {
		select {
		case f := <-m.findings:
			m.accept(f)
		default:
			return
		}
	}
}

// relink begins anew on a fresh connection: every path is read again, since a
// watch may have been lost with the old one.
func (m *mirror) relink() {
	m.link++
	m.caughtUp = false
	m.unread = len(m.slots)
	m.followLink()
	m.queueAll()
}

// followLink takes over the session's state.
func (m *mirror) followLink() {
	state := m.h.State()
	live := state.Phase == Live
	if state.Session != m.session {
		m.session, m.complete = state.Session, false
		m.press()
	}
	if live != m.live {
		m.live = live
		m.press()
		if live {
			m.since, m.caughtUp = state.Since, false
		}
	}
	if !live {
		m.caughtUp = false
		m.failWaiting(cluster.ErrNotLive)
	} else if m.since != state.Since { // lost and regained between two looks
		m.since, m.caughtUp = state.Since, false
		m.press()
	}
}

func (m *mirror) takeFires() {
	for _, k := range m.h.watches.take() {
		if s := m.slots[k]; s != nil {
			m.want(s)
		}
	}
}

func (m *mirror) queueAll() {
	for _, s := range m.slots {
		m.want(s)
	}
}

func (m *mirror) queueUnread() {
	for _, s := range m.slots {
		if s.link != m.link {
			m.want(s)
		}
	}
}

// resync asks for the records again although no watch has fired: all that there
// is one of, and at most maxResync of the nodes', those first that were read
// longest ago.
func (m *mirror) resync() {
	var nodes []*slot
	for _, s := range m.slots {
		if s.many {
			nodes = append(nodes, s)
			continue
		}
		s.resync = true
		m.want(s)
	}
	if len(nodes) > maxResync {
		slices.SortFunc(nodes, func(a, b *slot) int { return cmp.Compare(a.seq, b.seq) })
		nodes = nodes[:maxResync]
	}
	for _, s := range nodes {
		s.resync = true
		m.want(s)
	}
}

// want asks for a read that begins from now on.
func (m *mirror) want(s *slot) {
	switch {
	case s.gone || s.queued:
	case s.busy:
		s.again = true
	default:
		s.queued = true
		switch {
		case s.first: // who holds the role is what everybody waits for
			m.urgent = append([]*slot{s}, m.urgent...)
		case s.role:
			m.urgent = append(m.urgent, s)
		default:
			m.queue = append(m.queue, s)
		}
	}
}

func (m *mirror) startReads(ctx context.Context) {
	for m.live && m.running < maxReads {
		var s *slot
		switch {
		case len(m.urgent) > 0:
			s, m.urgent = m.urgent[0], m.urgent[1:]
		case len(m.queue) > 0:
			s, m.queue = m.queue[0], m.queue[1:]
		default:
			return
		}
		s.queued = false
		if s.gone {
			continue
		}
		s.busy = true
		m.running++
		m.seq++
		f := finding{slot: s, link: m.link, seq: m.seq, resync: s.resync}
		s.resync = false
		m.reads.Go(func() {
			f.reading = m.h.read(ctx, f.slot.key)
			select {
			case m.findings <- f:
			case <-ctx.Done():
			}
		})
	}
}

// accept puts a finding into the view.
func (m *mirror) accept(f finding) {
	s := f.slot
	m.running--
	s.busy = false
	if s.gone {
		return
	}
	if f.lost != nil {
		m.postpone(s)
		return
	}
	if s.store(f.reading) {
		m.changed = true
		m.pressing = m.pressing || s.role || !s.many
		m.suspectWatch(f)
	}
	m.view.Zxid = max(m.view.Zxid, f.stat.Mzxid)
	if s.link != f.link && f.link == m.link {
		s.link = f.link
		m.unread--
	}
	s.seq = f.seq
	if s.again {
		s.again = false
		m.want(s)
	}
	if m.unread == 0 && m.live && !m.caughtUp {
		m.caughtUp, m.complete = true, true
		m.press()
	}
	m.settleRefreshes()
}

// suspectWatch sets a watch anew when the periodic re-read finds a change that
// its watch has not told of.
func (m *mirror) suspectWatch(f finding) {
	if f.resync && !f.armed && !f.slot.again && f.slot.key.kind != watchNothing {
		m.h.watches.disarm(f.slot.key)
		m.h.metrics.watchLost()
		f.slot.again = true
	}
}

// postpone leaves a slot whose read was lost with the link to the next
// connection, or to the retry timer should the link prove good.
func (m *mirror) postpone(s *slot) {
	s.again = false
	if s.link == m.link {
		s.link--
		m.unread++
	}
	m.retry.Reset(retryReads)
}

// startRefresh asks for reads of the role's records that begin from now on.
func (m *mirror) startRefresh(r *refresh) {
	if !m.live {
		r.fail <- cluster.ErrNotLive
		return
	}
	r.after = m.seq
	m.waiting = append(m.waiting, r)
	for _, s := range m.slots {
		if s.role {
			m.want(s)
		}
	}
}

// settleRefreshes answers those whose reads are all done.
func (m *mirror) settleRefreshes() {
	if len(m.waiting) == 0 {
		return
	}
	oldest := m.seq
	for _, s := range m.slots {
		if s.role {
			oldest = min(oldest, s.seq)
		}
	}
	var settled []*refresh
	m.waiting = slices.DeleteFunc(m.waiting, func(r *refresh) bool {
		if oldest > r.after {
			settled = append(settled, r)
			return true
		}
		return false
	})
	if len(settled) > 0 {
		snapshot := m.make()
		m.h.hand(snapshot)
		for _, r := range settled {
			r.done <- snapshot
		}
	}
}

func (m *mirror) failWaiting(err error) {
	for _, r := range m.waiting {
		r.fail <- err
	}
	m.waiting = nil
}

// publish hands out a snapshot if something has changed. While a new
// connection's first reads are under way nothing but the link's own change is
// told: half-old views help nobody.
func (m *mirror) publish() {
	if !m.changed || (m.live && !m.caughtUp) {
		return
	}
	if wait := m.heldBack(); wait > 0 {
		m.pace.Reset(wait)
		return
	}
	m.h.hand(m.make())
}

// press notes a change that is told at once.
func (m *mirror) press() { m.changed, m.pressing = true, true }

// heldBack is how long a snapshot that only tells of nodes or workloads is to
// wait yet. Many workloads do not hold back what is told of few nodes.
func (m *mirror) heldBack() time.Duration {
	many := len(m.nodes)
	if len(m.dirty) == 0 {
		many = max(many, len(m.workloads))
	}
	pace := time.Duration(many) * pacePerNode
	if m.pressing || pace < shortPace {
		return 0
	}
	return pace - time.Since(m.made)
}

// make builds a snapshot. What has not changed is shared with the earlier ones.
func (m *mirror) make() *cluster.Snapshot {
	if len(m.dirty) > 0 {
		nodes := maps.Clone(m.published)
		for n := range m.dirty {
			if known := m.nodes[n]; known != nil {
				nodes[n] = known.view
			} else {
				delete(nodes, n)
			}
		}
		m.published = nodes
		clear(m.dirty)
	}
	m.shareWorkloads()
	if m.lockDirty {
		m.view.RoleLock = m.lockQueue()
		m.lockDirty = false
	}
	m.changed, m.pressing, m.made = false, false, time.Now()
	snapshot := m.view
	snapshot.Nodes, snapshot.Workloads = m.published, m.shared
	snapshot.Live = m.live && m.caughtUp
	snapshot.Complete = m.complete
	snapshot.Session = m.session
	snapshot.Since = m.since
	snapshot.ObservedAt = m.h.clock.Now()
	return &snapshot
}

// watch adds a slot; it counts as unread until its first read.
func (m *mirror) watch(k watchKey, role bool, store func(reading) bool) *slot {
	s := &slot{key: k, role: role, store: store, link: m.link - 1}
	m.slots[k] = s
	m.unread++
	m.want(s)
	return s
}

func (m *mirror) unwatch(s *slot) {
	if s.gone {
		return
	}
	s.gone = true
	delete(m.slots, s.key)
	if s.link != m.link {
		m.unread--
	}
}

// watchKeyed watches the data of a key's record.
func watchKeyed[T any](m *mirror, k cluster.Key, role bool, into *cluster.Versioned[T], decode func([]byte) (T, error)) *slot {
	return keepKeyed(m, k, watchData, role, into, decode)
}

// keepKeyed keeps a key's record in the view; with watchNothing it is as old as the
// last Refresh, if role is set, or the last periodic re-read.
func keepKeyed[T any](m *mirror, k cluster.Key, kind watchKind, role bool, into *cluster.Versioned[T], decode func([]byte) (T, error)) *slot {
	path, err := m.h.schema.path(k)
	if err != nil { // only for names that schema refuses, which addNode has checked
		m.h.log.Error("cannot watch a record", zap.Stringer("key", k), zap.Error(err))
		return nil
	}
	return m.watch(watchKey{path, kind}, role, func(r reading) bool {
		return observe(into, r, path, decode)
	})
}

// observe updates a record and reports whether it changed. What has the same
// Mzxid is the same write: it keeps the instant of its first observation, over
// reconnects and sessions too, and is not decoded again.
func observe[T any](into *cluster.Versioned[T], r reading, path string, decode func([]byte) (T, error)) bool {
	switch {
	case r.err != nil:
		if into.Present && into.Err != nil && into.Mzxid == 0 && into.Err.Error() == r.err.Error() {
			return false
		}
		*into = cluster.Versioned[T]{Present: true, SeenAt: r.at, Err: r.err}
		return true
	case !r.present:
		if !into.Present && !into.SeenAt.IsZero() {
			return false
		}
		*into = cluster.Versioned[T]{SeenAt: r.at}
		return true
	case into.Present && into.Mzxid == r.stat.Mzxid && into.Version == r.stat.Version:
		return false
	}
	value, err := decode(r.data)
	if err != nil {
		var zero T
		value, err = zero, wrapPath(err, "decode", path)
	}
	*into = cluster.Versioned[T]{
		Value: value, Version: r.stat.Version, Present: true,
		SeenAt: r.at, Mzxid: r.stat.Mzxid, WrittenMS: r.stat.Mtime, Err: err,
	}
	return true
}

// watchCluster watches the records there is one of.
func (m *mirror) watchCluster() {
	v := &m.view
	watchKeyed(m, cluster.Key{Kind: cluster.KeyLease}, true, &v.Lease, decodeLease).first = true
	watchKeyed(m, cluster.Key{Kind: cluster.KeyTransition}, true, &v.Transition, decodeTransition)
	watchKeyed(m, cluster.Key{Kind: cluster.KeyPrimaryNode}, true, &v.PrimaryNode, decodePrimary)
	watchKeyed(m, cluster.Key{Kind: cluster.KeyMaintenance}, true, &v.Maintenance, decodeBool)
	watchKeyed(m, cluster.Key{Kind: cluster.KeyMaintenanceRecord}, true, &v.MaintenanceRecord, decodeRecord[cluster.MaintenanceRecord])
	watchKeyed(m, cluster.Key{Kind: cluster.KeyFailover}, true, &v.Failover, decodeRecord[cluster.FailoverSettings])
	watchEmptied(m, cluster.Key{Kind: cluster.KeyMembers}, true, &v.Members, decodeMembers) // who registers rests on it
	watchKeyed(m, cluster.Key{Kind: cluster.KeyQuorumSet}, false, &v.Quorum, decodeQuorumSet)
	watchEmptied(m, cluster.Key{Kind: cluster.KeyMemberOrder}, false, &v.MemberOrder, decodeMemberOrder)
	watchKeyed(m, cluster.Key{Kind: cluster.KeyClusterName}, true, &v.ClusterName, decodeText)
	watchKeyed(m, cluster.Key{Kind: cluster.KeySchema}, true, &v.Schema, decodeSchema) // who registers rests on it
	lockDir, _ := m.h.schema.lockDir(cluster.KeyRoleLockChild)
	m.watch(watchKey{lockDir, watchChildren}, true, func(r reading) bool { return m.observeLock(lockDir, r.names) })
	if n := m.h.config.WatchNode; n != "" {
		m.addNode(n)
	}
	if !m.h.config.WatchNodes {
		return
	}
	watchKeyed(m, cluster.Key{Kind: cluster.KeyReprovision}, false, &v.Reprovision, decodeReprovision)
	watchKeyed(m, cluster.Key{Kind: cluster.KeyRebalance}, false, &v.Rebalance, decodeRebalance)
	m.watch(watchKey{m.h.schema.workloadsDir(), watchChildren}, false, func(r reading) bool { return m.observeWorkloads(r) })
	m.watch(watchKey{m.h.schema.nodesDir(), watchChildren}, true, func(r reading) bool {
		m.nodeNames = r.names
		return m.observeNodes()
	})
	m.watch(watchKey{m.h.schema.aliveDir(), watchChildren}, true, func(r reading) bool {
		m.alive = r.names
		return m.observeNodes()
	})
}

// observeNodes makes the watched nodes those that have a record or are alive.
func (m *mirror) observeNodes() (changed bool) {
	present := map[cluster.NodeID]bool{}
	for _, name := range slices.Concat(m.nodeNames, m.alive) {
		if n := cluster.NodeID(name); n.Validate() == nil {
			present[n] = true
		}
	}
	for n := range present {
		if m.nodes[n] == nil {
			m.addNode(n)
			changed = true
		}
	}
	for n, known := range m.nodes {
		if !present[n] {
			for _, s := range known.slots {
				m.unwatch(s)
			}
			delete(m.nodes, n)
			m.dirty[n] = true
			changed = true
		}
	}
	return changed
}

func (m *mirror) addNode(n cluster.NodeID) {
	node := &nodeSlots{view: cluster.NodeView{Name: n}}
	m.nodes[n] = node
	m.dirty[n] = true
	add := func(s *slot) {
		if s == nil {
			return
		}
		s.many = true
		store := s.store
		s.store = func(r reading) bool {
			if !store(r) {
				return false
			}
			m.dirty[n] = true
			return true
		}
		node.slots = append(node.slots, s)
	}
	key := func(kind cluster.KeyKind) cluster.Key { return cluster.Key{Kind: kind, Node: n} }
	v := &node.view
	add(watchKeyed(m, key(cluster.KeyAlive), true, &v.Alive, decodeRecord[cluster.Alive]))
	if n == m.h.config.WatchNode { // nobody here waits for it to change: who registers asks anew
		add(keepKeyed(m, key(cluster.KeyKeepalive), watchNothing, true, &v.Keepalive, decodeSeconds))
	} else {
		add(watchKeyed(m, key(cluster.KeyKeepalive), false, &v.Keepalive, decodeSeconds))
	}
	add(watchKeyed(m, key(cluster.KeyDaemonState), false, &v.Daemon, decodeDaemonState))
	add(watchKeyed(m, key(cluster.KeyRouterState), false, &v.Router, decodeRouterState))
	add(watchKeyed(m, key(cluster.KeyDomainState), false, &v.Domain, decodeDomainState))
	add(watchKeyed(m, key(cluster.KeyNodeMode), false, &v.Mode, decodeMode))
	add(watchKeyed(m, key(cluster.KeyNodeRecord), false, &v.Record, decodeRecord[cluster.NodeRecord]))
	add(watchKeyed(m, key(cluster.KeyFence), false, &v.Fence, decodeFence))
	add(watchEmptied(m, key(cluster.KeyFenceOrder), false, &v.Order, decodeFenceOrder))
}

// watchEmptied watches a record that may stand emptied, such as an order. One
// that does is none; its version stays known, since the next is written on it.
func watchEmptied[T any](m *mirror, k cluster.Key, role bool, into *cluster.Versioned[T], decode func([]byte) (T, error)) *slot {
	s := watchKeyed(m, k, role, into, decode)
	if s == nil {
		return nil
	}
	standing := s.store
	s.store = func(r reading) bool {
		was := *into
		switch {
		case r.err != nil || r.present && !emptied(r.data):
			return standing(r)
		case !r.present: // also where it stood emptied
			*into = cluster.Versioned[T]{SeenAt: r.at}
			return was.Present || was.Mzxid != 0 || was.SeenAt.IsZero()
		case !was.Present && was.Mzxid == r.stat.Mzxid && was.Version == r.stat.Version:
			return false
		}
		*into = cluster.Versioned[T]{Version: r.stat.Version, SeenAt: r.at, Mzxid: r.stat.Mzxid, WrittenMS: r.stat.Mtime}
		return true
	}
	return s
}

// observeLock follows the role lock's queue. A child's data never changes, so
// it is read once.
func (m *mirror) observeLock(dir string, names []string) (changed bool) {
	present := map[string]bool{}
	for _, name := range names {
		if _, ok := lockSequence(name); ok {
			present[name] = true
			if m.lock[name] == nil {
				m.addLockChild(dir, name)
			}
		}
	}
	for name, l := range m.lock {
		if !present[name] {
			m.unwatch(l.slot)
			delete(m.lock, name)
			m.lockDirty = m.lockDirty || l.read
			changed = changed || l.read
		}
	}
	return changed
}

func (m *mirror) addLockChild(dir, name string) {
	l := &lockSlot{}
	m.lock[name] = l
	l.slot = m.watch(watchKey{dir + "/" + name, watchNothing}, true, func(r reading) bool {
		if l.read || !r.present || r.err != nil {
			return false
		}
		l.read, l.child = true, lockChild(name, r.datum)
		l.child.SeenAt = r.at
		m.lockDirty = true
		return true
	})
}

func (m *mirror) lockQueue() []cluster.LockChild {
	queue := make([]cluster.LockChild, 0, len(m.lock))
	for _, l := range m.lock {
		if l.read {
			queue = append(queue, l.child)
		}
	}
	slices.SortFunc(queue, compareLockChildren)
	return queue
}
