package role

import (
	"fmt"

	"pvc.internal/cluster"
)

// A node that has seen a larger epoch than the holder's takes no order of it: the
// records were put back from an older backup, say, while the nodes kept what they
// had seen. What a node says it has seen binds every later take of the coordinator
// that hears it; a holder goes on under a larger epoch at once:
//
//	Primary ── a larger epoch was seen ──► the lease is written at the next one
//	   ▲                                        │ acknowledged, or read back
//	   └────────── Taking (the guard adopts) ◄──┘
//
// The write is a renewal like any other, on the version of the last: if somebody
// has taken the role meanwhile, which is what a larger epoch mostly means, it
// fails and the role is dropped (I1, I2).

// learnable bounds what is believed of other nodes: one that has rubbish for an
// epoch must not use them all up.
const learnable = cluster.MaxEpoch / 2

// onEpochSeen takes in what a node has seen.
func (m *machine) onEpochSeen(e cluster.Epoch) {
	if e > learnable {
		return
	}
	m.s.epochSeen = max(m.s.epochSeen, e)
	m.s.outgrown = max(m.s.outgrown, e)
}

// outgrown has a holder whose epoch is too small write a larger one; true: it is
// at it. It waits for whatever else goes on.
func (m *machine) outgrown() bool {
	h := &m.s.hold
	if m.s.outgrown <= h.epoch || m.s.stage != stageNone || m.s.step != 0 || !m.in.Snapshot.Live || m.renewalFirst() {
		return false
	}
	h.rising = max(h.epoch, m.s.epochSeen) + 1
	l := m.mine()
	l.Epoch = h.rising
	m.writeLease(forEpoch, l)
	return true
}

// rose reports whether a lease that is seen is this holder's own under the epoch
// that a write of its own may have given it.
func (m *machine) rose(l cluster.Lease) bool {
	return m.s.hold.rising != 0 && l.Epoch == m.s.hold.rising && l.HeldBy(m.c.Node, m.c.Incarnation)
}

// risen goes on under the larger epoch, as a restarted daemon does: the guard
// adopts addresses and services as they are. deadline is what the role may last
// to by what was acknowledged.
func (m *machine) risen(version int32, n uint64, sent, deadline cluster.Instant, named Roll) {
	before := m.s.hold.epoch
	m.adopt(m.s.hold.rising, version, n, sent, named)
	m.s.hold.deadline, m.s.hold.resumed = deadline, true
	m.s.transition = cluster.Transition{}
	m.note(true, "epoch_raised", fmt.Sprintf("nodes have seen epoch %d and took no order of %s, which was primary at epoch %d: it goes on at epoch %d",
		m.s.outgrown, m.c.Node, before, m.s.hold.epoch), map[string]string{"epoch": fmt.Sprint(m.s.hold.epoch), "seen": fmt.Sprint(m.s.outgrown)})
	m.enter(Taking, stageRaise)
	m.begin()
}
