package agent

import (
	"context"
	"slices"
	"strings"

	"go.uber.org/zap"

	"pvc.internal/cluster"
)

// domainState answers an operator's wish that this node take no workloads, or
// take them again. The wish is the record itself, written by compare-and-set;
// so is the answer, on the version of the wish that it answers, so that a wish
// that comes between is answered next and none is answered by a late write.
//
//	ready ───flush, an operator───► flush ────this node────► flushed
//	  ▲                                                         │
//	  └───this node──── unflush ◄────────ready, an operator─────┘
//
// A node that reads "flushed" is switched off in that belief: it never says so
// while it publishes workloads that run here, whoever started them, nor while its
// guard holds anything of the cluster's workloads, or does not say. The primary
// moves those away meanwhile. It is looked at with each acknowledged keepalive,
// which costs an idle daemon no wake-up.
type domainState struct {
	node   cluster.NodeID
	d      Deps
	wallMS func() int64
	limit  func(context.Context) (context.Context, context.CancelFunc) // of one write
	latest func() *cluster.Snapshot
	values func() map[string]string // what this node publishes

	asked chan struct{} // holds one token while there is something to look at
	told  string        // the workloads that a flush was last said to wait for; run's own
}

func newDomainState(c Config, d Deps, latest func() *cluster.Snapshot, values func() map[string]string) *domainState {
	return &domainState{node: c.Node, d: d, wallMS: c.WallMS, latest: latest, values: values, asked: make(chan struct{}, 1),
		limit: func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, c.Timing.RequestTimeout())
		}}
}

// domainAnswers is what a node makes of each wish.
var domainAnswers = map[cluster.DomainState]cluster.DomainState{
	cluster.DomainFlush:   cluster.DomainFlushed,
	cluster.DomainUnflush: cluster.DomainReady,
}

// wish is the record of a wish that is not answered yet.
func (s *domainState) wish() (cluster.Versioned[cluster.DomainState], bool) {
	snap := s.latest()
	if snap == nil || !snap.Live {
		return cluster.Versioned[cluster.DomainState]{}, false
	}
	record := snap.Nodes[s.node].Domain
	return record, record.Present && record.Err == nil && domainAnswers[record.Value] != ""
}

// look has a wish answered, if there is one. It does not block.
func (s *domainState) look() {
	if _, is := s.wish(); !is {
		return
	}
	select {
	case s.asked <- struct{}{}:
	default: // it is being looked at
	}
}

// run answers wishes until ctx ends.
func (s *domainState) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.asked:
			s.answer(ctx)
		}
	}
}

// answer writes what is true. What the store does not take is looked at again
// with the next keepalive.
func (s *domainState) answer(ctx context.Context) {
	record, is := s.wish()
	if !is {
		return
	}
	ctx, cancel := s.limit(ctx)
	defer cancel()
	if record.Value == cluster.DomainFlush && !s.empty(ctx) {
		return
	}
	s.told = ""
	to := domainAnswers[record.Value]
	r := s.d.Store.Commit(ctx, cluster.Txn{Purpose: "domain state", Ops: []cluster.Op{
		cluster.Set(cluster.Key{Kind: cluster.KeyDomainState, Node: s.node}, record.Version, to),
		{Kind: cluster.OpCreateSequential, Key: cluster.Key{Kind: cluster.KeyHistory}, Value: cluster.Event{
			Version: 1, UnixMS: s.wallMS(), Node: s.node, Kind: "domain_state", Text: "node " + string(s.node) + " is " + string(to),
			Fields: map[string]string{"node": string(s.node), "to": string(to)}}},
	}})
	if r.Outcome == cluster.OutcomeOK {
		s.d.Log.Info("domain state", zap.String("from", string(record.Value)), zap.String("to", string(to)))
	}
}

// empty reports whether nothing runs here, and says what does where that changes.
func (s *domainState) empty(ctx context.Context) bool {
	foreign := strings.Fields(s.values()["runningdomains"])
	var held []string
	if s.d.Copies != nil {
		var err error
		if held, err = s.d.Copies.Held(ctx); err != nil {
			held = []string{"what the guard does not tell"}
			s.d.Log.Debug("whether this node is flushed is not known", zap.Error(err))
		}
		foreign = slices.DeleteFunc(foreign, func(name string) bool { return slices.Contains(held, name) })
	}
	slices.Sort(foreign)
	running := strings.Join(append(held, foreign...), ", ")
	if running != "" && s.told != running {
		if s.told = running; len(foreign) > 0 {
			s.d.Log.Warn("this node is to be flushed and is not yet: workloads run here that are not managed; move them by the means that started them", zap.Strings("running", foreign), zap.Strings("managed", held))
		} else {
			s.d.Log.Info("this node is to be flushed and is not yet: the primary moves its workloads away", zap.Strings("managed", held))
		}
	}
	return running == ""
}
