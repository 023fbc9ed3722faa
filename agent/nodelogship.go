package agent

import (
	"context"
	"hash/fnv"
	"strings"
	"time"

	"pvc.internal/cluster"
)

const (
	// nodeLogGather is how long the first line waits for those that come with it, and
	// up to nodeLogSpread/4 longer, by the node's name: what all nodes log at once, as
	// a move of the role, is not written by all at once.
	nodeLogGather = 500 * time.Millisecond
	// nodeLogPause is the least time between two writes, nodeLogLongest the longest
	// that a storm of lines stretches it to: each write carries the whole log.
	nodeLogPause   = 2 * time.Second
	nodeLogLongest = 16 * time.Second
	// nodeLogSpread is over which time the nodes' logs come back after an outage,
	// when the servers belong to the keepalives.
	nodeLogSpread = 8 * time.Second
)

// Texts reads records that no snapshot holds.
type Texts interface {
	// ReadText returns a record's raw text; an absent one is not present and no
	// error.
	ReadText(ctx context.Context, k cluster.Key) (cluster.Versioned[string], error)
}

// logShipper brings a NodeLog's lines to the store. Nothing waits for it, it
// costs nothing while nothing is logged, and it never stands in the keepalive's
// way (I10): it writes only in a live session, seldom, and gives a request up by
// cancelling it, which leaves the connection to the others.
//
//	quiet ──line──► gather ──► ship ──► pause ──nothing came──► quiet
//	                             ▲        │ lines wait (the pause grows), or the store is away
//	                             └────────┘   or the role is on its way
//
// The record is this node's alone, and still every write names the version it is
// made on: a late write of an earlier daemon, or of a second one of the same name,
// is then seen, and its lines are kept before ours. A write whose reply was lost
// is settled by reading before the next.
type logShipper struct {
	log    *NodeLog
	store  Store
	texts  Texts
	key    cluster.Key
	within time.Duration // one request
	spread time.Duration
	live   func() bool
	calm   func() bool

	flushes chan chan struct{}

	// Only run's goroutine touches what follows.
	known  bool // text and version are the record's
	text   string
	ver    int32
	unsure parcel // written, and not known whether it is there
}

// newLogShipper returns nil where no log is to be brought anywhere. It writes while
// the session is live, and nobody's role is on its way: a log is large, and the
// servers' disks belong to the hand-over then.
func newLogShipper(c Config, d Deps, live, calm func() bool) *logShipper {
	if d.NodeLog == nil || d.Texts == nil {
		return nil
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(c.Node))
	return &logShipper{
		log: d.NodeLog, store: d.Store, texts: d.Texts, key: cluster.Key{Kind: cluster.KeyLog, Node: c.Node},
		within: c.Timing.KeepaliveInterval * 7 / 10, // before the store's own limit, which ends the connection
		spread: time.Duration(h.Sum32()%1000) * nodeLogSpread / 1000,
		live:   live, calm: calm, flushes: make(chan chan struct{}),
	}
}

// run ships what is logged until ctx ends.
func (s *logShipper) run(ctx context.Context) {
	pause := nodeLogPause
	for {
		if !s.log.some() {
			pause = nodeLogPause
			if !s.wait(ctx, s.log.more, 0) || !s.wait(ctx, nil, nodeLogGather+s.spread/4) {
				return
			}
		}
		next := pause
		switch {
		case !s.live():
			next, pause = nodeLogPause+s.spread, nodeLogPause
		case !s.calm():
			next = nodeLogPause
		default:
			s.ship(ctx)
			pause = min(2*pause, nodeLogLongest)
		}
		if !s.wait(ctx, nil, next) {
			return
		}
	}
}

// wait returns when there is more, or after a time, or once somebody wants all
// that waits shipped; false: ctx has ended.
func (s *logShipper) wait(ctx context.Context, more <-chan struct{}, d time.Duration) bool {
	var after <-chan time.Time
	if d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		after = timer.C
	}
	for {
		select {
		case <-ctx.Done():
			return false
		case <-more:
			return true
		case <-after:
			return true
		case done := <-s.flushes:
			if s.live() {
				s.ship(ctx)
			}
			close(done)
		}
	}
}

// flush ships what waits, once, or returns when ctx ends.
func (s *logShipper) flush(ctx context.Context) {
	if s == nil {
		return
	}
	done := make(chan struct{})
	select {
	case s.flushes <- done:
		select {
		case <-done:
		case <-ctx.Done():
		}
	case <-ctx.Done():
	}
}

// ship writes what waits. A conflict is tried once more, on what stands there;
// anything else waits for the next turn.
func (s *logShipper) ship(ctx context.Context) {
	for range 2 {
		if !s.known && !s.read(ctx) {
			return
		}
		p := s.log.parcel()
		if len(p.lines) == 0 {
			return
		}
		text := newest(s.text, p.lines)
		switch r := s.write(ctx, text); r.Outcome {
		case cluster.OutcomeOK:
			s.text, s.unsure = text, parcel{}
			s.ver++
			if len(r.Versions) == 1 {
				s.ver = r.Versions[0]
			}
			s.log.shipped(p)
			return
		case cluster.OutcomeConflict:
			s.known = false
		case cluster.OutcomeUnknown:
			s.known, s.unsure = false, p
			return
		default:
			return
		}
	}
}

// read learns what stands in the store, and settles a write whose reply was lost.
// False: it could not be read, or there is no record: this node is being removed,
// and a record is not made anew by the way.
func (s *logShipper) read(ctx context.Context) bool {
	ctx, end := s.bounded(ctx)
	defer end()
	v, err := s.texts.ReadText(ctx, s.key)
	if err != nil || !v.Present {
		return false
	}
	s.known, s.text, s.ver = true, strings.TrimRight(v.Value, "\n"), v.Version
	if n := len(s.unsure.lines); n > 0 && strings.Contains("\n"+s.text+"\n", "\n"+s.unsure.lines[n-1]+"\n") {
		s.log.shipped(s.unsure)
	}
	s.unsure = parcel{}
	return true
}

func (s *logShipper) write(ctx context.Context, text string) cluster.TxnResult {
	ctx, end := s.bounded(ctx)
	defer end()
	return s.store.Commit(ctx, cluster.Txn{Purpose: "log", Ops: []cluster.Op{cluster.Set(s.key, s.ver, text)}})
}

// bounded limits one request. It is cancelled, not overdue: a request that is
// overdue closes the connection, on which the keepalive and the role's renewals
// travel, too.
func (s *logShipper) bounded(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	timer := time.AfterFunc(s.within, cancel)
	return ctx, func() { timer.Stop(); cancel() }
}

// newest appends lines to a log, the oldest dropped beyond the bound.
func newest(text string, lines []string) string {
	added := strings.Join(lines, "\n")
	if text != "" {
		added = text + "\n" + added
	}
	if len(added) <= nodeLogBytes {
		return added
	}
	added = added[len(added)-nodeLogBytes:]
	if _, whole, cut := strings.Cut(added, "\n"); cut {
		return whole
	}
	return strings.ToValidUTF8(added, "")
}
