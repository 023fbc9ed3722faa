package agent

import (
	"context"
	"maps"
	"strconv"
	"sync"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
)

// factsLeaf stands for the record of facts among the leaves, so that what holds of
// a leaf's write holds of it: written where it has changed, again after a lost
// reply, anew each Refresh. No collector's leaf begins so.
const factsLeaf = "/facts"

// maxFacts bounds the record of facts: it goes with every keepalive that changes
// a figure, and must leave the figures themselves room in maxValueBytes. A node
// with more to say has none.
const maxFacts = 64 << 10

// factsRecord is the text of the record and what it was made of: it is encoded
// where something in it has changed only.
type factsRecord struct {
	mu   sync.Mutex
	of   map[string]string
	text string
}

// withSchema adds what this node tells of schemas, and its record of facts where
// the tree keeps one.
func (k *Keepalive) withSchema(values map[string]string) map[string]string {
	if k.cfg.Schema == nil {
		return values
	}
	if values == nil {
		values = map[string]string{}
	}
	newest, now := k.cfg.Schema()
	values["latestschema"], values["activeschema"] = strconv.Itoa(newest), strconv.Itoa(now)
	if now < cluster.FactsSchema {
		return values
	}
	if text, ok := k.encodeFacts(values); ok {
		values[factsLeaf] = text
	}
	return values
}

// encodeFacts is the record of facts with these values; false while it is not
// known yet what others have written of this node.
func (k *Keepalive) encodeFacts(values map[string]string) (string, bool) {
	all := map[string]string{}
	if k.cfg.Others != nil {
		if all = k.cfg.Others.Values(); len(all) == 0 {
			return "", false
		}
		maps.DeleteFunc(all, func(leaf, _ string) bool { return !collectable(leaf) })
	}
	maps.Copy(all, values)
	f := &k.facts
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.of != nil && maps.Equal(f.of, all) {
		return f.text, true
	}
	text, err := cluster.Facts{Incarnation: k.cfg.Incarnation, Leaves: all}.Encode()
	if err != nil || len(text) > maxFacts {
		text = "" // the leaves are read then
	}
	f.of, f.text = all, text
	return text, true
}

// tickOthers has the leaves read that others write, where there is a record for
// them.
func (k *Keepalive) tickOthers(ctx context.Context) {
	if k.cfg.Others == nil || k.cfg.Schema == nil {
		return
	}
	if _, now := k.cfg.Schema(); now >= cluster.FactsSchema {
		k.cfg.Others.Tick(ctx)
	}
}

// otherLeaves collects what stands in this node's leaves: a value that somebody
// else writes there is in the record of facts after valueRefresh at most. It is
// never written back.
type otherLeaves struct {
	read func(ctx context.Context) (map[string]string, error)
}

// Name implements Collector.
func (o otherLeaves) Name() string { return "leaves" }

// Interval is how often the leaves are read.
func (o otherLeaves) Interval() time.Duration { return valueRefresh }

// Collect implements Collector.
func (o otherLeaves) Collect(ctx context.Context) (map[string]string, error) { return o.read(ctx) }

// ownSchema is what the keepalive needs to tell of schemas; nil without Deps.Schemas.
func (a *Agent) ownSchema() (func() (newest, now int), *Collection, error) {
	s := a.d.Schemas
	if s == nil {
		return nil, nil, nil
	}
	others, err := NewCollection(a.d.Clock, a.d.Log.Named("leaves"), a.c.Timing.KeepaliveInterval, otherLeaves{
		read: func(ctx context.Context) (map[string]string, error) { return s.ReadLeaves(ctx, a.c.Node) },
	})
	if err != nil {
		return nil, nil, err
	}
	newest := s.NewestSchema()
	return func() (int, int) {
		// One that cannot be read counts as the first: what its form has, every
		// reader finds.
		return newest, min(newest, max(a.dec.status().Snapshot.Schema.Value, cluster.FirstSchema))
	}, others, nil
}

// closeOthers waits until nothing is read any more, at most until ctx ends.
func (k *Keepalive) closeOthers(ctx context.Context) {
	if k.cfg.Others == nil {
		return
	}
	if err := k.cfg.Others.Close(ctx); err != nil {
		k.cfg.Log.Warn("reading this node's leaves has not ended", zap.Error(err))
	}
}

// newestSchema is what the node tells of its program; 0 where it cannot.
func newestSchema(s Schemas) int {
	if s == nil {
		return 0
	}
	return s.NewestSchema()
}
