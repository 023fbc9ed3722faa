package lease

import (
	"fmt"

	"pvc.internal/cluster"
)

// record is what the file ought to say.
func (g Granter) record() Record {
	r := Record{Epoch: g.epoch, EpochOf: g.epochOf}
	if g.state == StateActive || g.state == StateExpiring {
		r.Held, r.Holder, r.Period = true, g.holder, g.period
	}
	return r
}

// saved reports whether the file says what it ought to.
func (g Granter) saved() bool { return g.disk.known && !g.disk.flying && g.disk.record == g.record() }

// save writes the file unless it, or the write under way, says the same.
func (s *stepping) save() {
	d, want := s.g.disk, s.g.record()
	if s.g.saved() || (d.flying && d.next == want) {
		return
	}
	s.write(want)
}

func (s *stepping) write(r Record) {
	d := &s.g.disk
	d.seq++
	d.flying, d.next, d.retry = true, r, cluster.Never
	s.g.counters.Persists++
	s.do(Effect{Kind: EffectPersist, Seq: d.seq, Record: r})
}

func (s *stepping) remove() {
	d := &s.g.disk
	d.seq++
	d.flying, d.next, d.known, d.retry = true, Record{}, false, cluster.Never
	s.do(Effect{Kind: EffectRemove, Seq: d.seq})
}

// persisted takes the disk's answer. Only the newest write's counts: before it
// nothing that waits can be true.
func (s *stepping) persisted(in Input) {
	g := &s.g
	switch {
	case in.Seq == 0 || in.Seq > g.disk.seq:
		s.illegal(fmt.Sprintf("a write that was never asked for (%d, not %d) was answered", in.Seq, g.disk.seq))
		return
	case in.Seq != g.disk.seq || !g.disk.flying:
		return
	}
	g.disk.flying = false
	if in.Failed != "" {
		s.notPersisted(in.Failed)
		return
	}
	g.disk.record, g.disk.known = g.disk.next, g.state != StateLeft
	if g.pending.count == 0 || !g.saved() {
		return
	}
	p := g.pending
	g.pending = pendingGrant{}
	if p.first {
		g.counters.Granted++
	} else {
		g.counters.Extended++
	}
	for _, w := range p.asked[:p.count] {
		s.yes(w.ticket, w.n)
	}
}

// notPersisted takes back what could not be written down: a promise that a
// crash forgets is none. What the file says now is not known.
func (s *stepping) notPersisted(why string) {
	g := &s.g
	g.counters.Failed++
	g.disk.known = false
	g.disk.retry = s.now.Add(again)
	if g.state == StateStopped {
		g.disk.retry = cluster.Never // the whole period counts at the next start
		return
	}
	p := g.pending
	s.drop(cluster.RefuseLeaseNotKept, fmt.Sprintf("node %s could not write its lease down (%s): free its disk or mend it", g.c.Node, why))
	switch {
	case p.count > 0 && p.first && g.state == StateActive:
		s.expire("it could not be written down")
		return
	case p.count > 0 && g.state == StateActive:
		g.deadline = p.before // not extended
		s.overdue()
	}
	s.arm()
}
