package detector

import (
	"time"

	"pvc.internal/cluster"
)

// looker is a coordinator whose word counts: what it says, and whether its
// silence on a node keeps that from being dead.
type looker struct {
	name  cluster.NodeID
	reach map[cluster.NodeID]cluster.Reach
	age   time.Duration // since the report came
	looks bool          // as far as this observer knows it is at work
}

// look takes in whether the node is a coordinator whose word counts. One that is
// itself silent or has stopped is not waited for; what it still reports of a node
// in its favour counts. Nobody is where nobody probes.
func (p *pass) look(name cluster.NodeID, view *cluster.NodeView, held NodeState, known bool) {
	if !p.report || view.Mode.Value != cluster.Coordinator {
		return
	}
	report, said := p.o.Reports[name]
	l := looker{name: name, reach: report.Reach, age: p.o.Now.Sub(report.SeenAt), looks: name == p.o.Self}
	if name != p.o.Self {
		stopped := view.Daemon.Value == cluster.DaemonStop
		l.looks = !stopped && (!known || held.Liveness <= cluster.LiveLate)
	}
	if said || l.looks {
		p.lookers = append(p.lookers, l)
	}
}

// picture collects what they say of one node. An answer older than fresh is
// unknown, and unknown never counts as silent.
func picture(node cluster.NodeID, lookers []looker, fresh time.Duration) *Picture {
	p := &Picture{}
	for _, l := range lookers {
		if l.name == node {
			continue
		}
		r, said := l.reach[node]
		said = said && r.AgeMillis >= 0 && r.AgeMillis <= fresh.Milliseconds() &&
			l.age >= 0 && l.age+time.Duration(r.AgeMillis)*time.Millisecond <= fresh
		if said && r.Heard {
			p.Heard = append(p.Heard, l.name)
		}
		switch {
		case said && r.Answer == cluster.ProbeAnswered:
			p.Reached = append(p.Reached, l.name)
		case !l.looks, said && r.Heard:
		case said && r.Answer == cluster.ProbeSilent:
			p.Silent = append(p.Silent, l.name)
		default:
			p.Unknown = append(p.Unknown, l.name)
		}
	}
	return p
}

// unreached reports whether every coordinator that looks says silent, and one does.
func (p *Picture) unreached() bool {
	return len(p.Silent) > 0 && len(p.Reached) == 0 && len(p.Unknown) == 0 && len(p.Heard) == 0
}

func compare(a, b cluster.NodeID) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}
