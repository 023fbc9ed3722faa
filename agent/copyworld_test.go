package agent_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"pvc.internal/agent"
	"pvc.internal/cluster"
)

// copyWorld is a driver's world: what each host has of each workload, with the
// hazard of a store in memory. Who follows an active copy takes over what that has,
// however little; so an empty copy that is promoted empties all. It keeps what must
// never happen.
type copyWorld struct {
	mu     sync.Mutex
	hosts  map[cluster.NodeID]*copyHost
	files  map[cluster.NodeID]*leaseFile
	acked  map[string]int // keys that were acknowledged, by workload
	slow   time.Duration  // each order takes so long before its effect
	deaf   map[cluster.NodeID]bool
	fail   map[string]error // by "OP NODE"
	hangs  string           // "OP NODE", or "OP NODE WORKLOAD", that does not end
	holds  string           // "OP NODE" that goes on only once goOn is closed
	goOn   chan struct{}
	late   time.Duration           // a copy whose migrate_to is ended goes over all the same, so long after
	going  chan struct{}           // closed when that has happened; a stop there waits for it, as a host's does
	mute   string                  // "NODE WORKLOAD" of which a probe does not end
	broken cluster.NodeID          // whose driver crashes in each order
	orders []string                // that had their effects
	notify int64                   // milliseconds that copies may take to be told of others; 0: they do not want to
	notes  []string                // that were told
	still  map[cluster.NodeID]bool // whose agent can neither give nor take what runs
	ending map[cluster.NodeID]bool // whose copies end as their node is stopped: nothing but a stop is done there, and what they are is not known
	begun  int                     // orders that have begun
	probes int
	wrong  []string
}

// copyHost is one host's copies and the hints of its daemon.
type copyHost struct {
	all     *copyWorld
	node    cluster.NodeID
	copies  map[string]*worldCopy
	changed chan cluster.CopyChange
}

// worldCopy is one copy's process and what is in it.
type worldCopy struct {
	state   cluster.CopyState
	keys    int
	start   int
	follows cluster.NodeID
	secret  string // who may follow
	given   bool   // it has been given away: what is left of it serves nobody, whatever it says
}

func newCopyWorld() *copyWorld {
	return &copyWorld{hosts: map[cluster.NodeID]*copyHost{}, files: map[cluster.NodeID]*leaseFile{}, acked: map[string]int{},
		deaf: map[cluster.NodeID]bool{}, still: map[cluster.NodeID]bool{}, ending: map[cluster.NodeID]bool{}, fail: map[string]error{}}
}

// tune gives a start that is about to begin the copies of its host.
func (w *copyWorld) tune(c *agent.Config, d *agent.Deps) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f := w.files[c.Node]
	if f == nil {
		f = &leaseFile{}
		w.files[c.Node] = f
	}
	f.mu.Lock()
	f.owner++
	c.NodeLeases, d.LeaseFile = true, leaseFileOf{f, f.owner}
	f.mu.Unlock()
	h := w.host(c.Node)
	h.changed = make(chan cluster.CopyChange, 16)
	d.Copies = hostCopies{h, h.changed}
}

func (w *copyWorld) host(n cluster.NodeID) *copyHost {
	if w.hosts[n] == nil {
		w.hosts[n] = &copyHost{all: w, node: n, copies: map[string]*worldCopy{}}
	}
	return w.hosts[n]
}

// hostCopies is the daemon's side (agent.Copies).
type hostCopies struct {
	*copyHost
	hints chan cluster.CopyChange
}

func (h hostCopies) Changed() <-chan cluster.CopyChange           { return h.hints }
func (h *copyHost) Check(context.Context, cluster.Workload) error { return nil }
func (h *copyHost) Held(context.Context) ([]string, error) {
	h.all.mu.Lock()
	defer h.all.mu.Unlock()
	return slices.Sorted(maps.Keys(h.copies)), nil
}

func (h *copyHost) Probe(ctx context.Context, wl cluster.Workload) cluster.CopyReport {
	h.all.mu.Lock()
	h.all.probes++
	deaf := h.all.deaf[h.node] || h.all.mute == string(h.node)+" "+wl.Name
	h.all.mu.Unlock()
	if deaf {
		<-ctx.Done()
		return cluster.CopyReport{Unknown: true, Error: "deaf"}
	}
	h.all.mu.Lock()
	defer h.all.mu.Unlock()
	if h.all.ending[h.node] {
		return cluster.CopyReport{Unknown: true, Error: "this node is being stopped with all its copies"}
	}
	r := h.report(wl.Name)
	r.Live = wl.Live && !h.all.still[h.node]
	return r
}

// report is what a copy is. mu is held.
func (h *copyHost) report(name string) cluster.CopyReport {
	c := h.copies[name]
	if c == nil {
		return cluster.CopyReport{State: cluster.CopyMissing}
	}
	r := cluster.CopyReport{State: c.state, Offset: int64(c.keys), HasOffset: true, History: "h", Follows: c.follows, Start: fmt.Sprint(c.start)}
	if c.state != cluster.CopyMissing {
		r.NotifyMS = h.all.notify
	}
	return r
}

func (h *copyHost) Order(ctx context.Context, t cluster.Token, o cluster.CopyOrder) (cluster.CopyReport, error) {
	h.all.mu.Lock()
	h.all.begun++
	slow, broken, copies := h.all.slow, h.all.broken == h.node, fmt.Sprintf("%p", h.copies)
	if what := string(o.Op) + " " + string(h.node); h.all.hangs == what || h.all.hangs == what+" "+o.Workload.Name {
		slow = time.Hour
	}
	var goOn chan struct{}
	if h.all.holds == string(o.Op)+" "+string(h.node) {
		goOn = h.all.goOn
	}
	var going chan struct{}
	if o.Op == cluster.CopyStop && o.Workload.Head() == h.node {
		going = h.all.going
	}
	h.all.mu.Unlock()
	if going != nil {
		<-going
	}
	if goOn != nil {
		select {
		case <-goOn:
		case <-ctx.Done():
			h.goesLate(o)
			return cluster.CopyReport{Unknown: true}, context.Cause(ctx)
		}
	}
	if broken {
		panic("crashed in an order")
	}
	select {
	case <-time.After(slow):
	case <-ctx.Done():
		return cluster.CopyReport{Unknown: true}, context.Cause(ctx)
	}
	h.all.mu.Lock()
	defer h.all.mu.Unlock()
	if copies != fmt.Sprintf("%p", h.copies) { // the host has died meanwhile, and with it what was under way
		return cluster.CopyReport{Unknown: true}, context.Canceled
	}
	if err := t.Check(); err != nil {
		return h.report(o.Workload.Name), err
	}
	if h.all.ending[h.node] && o.Op != cluster.CopyStop && o.Op != cluster.CopyDestroy {
		return cluster.CopyReport{Unknown: true}, fmt.Errorf("this node is being stopped with all its copies: nothing was done: %w", cluster.ErrRefused)
	}
	if err := h.all.fail[string(o.Op)+" "+string(h.node)]; err != nil {
		return h.report(o.Workload.Name), err
	}
	if o.Expect != nil {
		if why := o.Expect.Against(h.report(o.Workload.Name)); why != "" {
			return h.report(o.Workload.Name), fmt.Errorf("%s: %w", why, cluster.ErrRefused)
		}
	}
	err := h.effect(o)
	if err == nil {
		h.all.orders = append(h.all.orders, fmt.Sprintf("%s %s on %s", o.Op, o.Workload.Name, h.node))
	}
	return h.report(o.Workload.Name), err
}

// effect carries the order out. mu is held.
func (h *copyHost) effect(o cluster.CopyOrder) error {
	name := o.Workload.Name
	c := h.copies[name]
	if o.Op == cluster.CopyMigrateTo || o.Op == cluster.CopyMigrateFrom {
		return h.goOver(o)
	}
	if o.Op == cluster.CopyNotify {
		h.all.notes = append(h.all.notes, fmt.Sprintf("%s to %s", o.Note, h.node))
		return nil
	}
	if c == nil && o.Op != cluster.CopyStop && o.Op != cluster.CopyDemote {
		c = &worldCopy{start: 1}
		h.copies[name] = c
	}
	switch o.Op {
	case cluster.CopyPromote:
		c.state, c.follows, c.secret = cluster.CopyActive, "", o.Secret
		h.all.judge(h, name, o.Op)
	case cluster.CopyStart:
		c.state = cluster.CopyPending
		if o.Workload.Kind == cluster.WorkloadMovable {
			c.state = cluster.CopyActive
			h.all.judge(h, name, o.Op)
		}
	case cluster.CopyAdmit:
		c.secret = o.Secret
	case cluster.CopyFollow:
		source := h.all.host(o.Source.Node).copies[name]
		if source == nil || source.state != cluster.CopyActive || source.secret != o.Secret {
			return fmt.Errorf("%s does not let %s follow", o.Source.Node, h.node)
		}
		c.state, c.follows, c.keys = cluster.CopyReplica, o.Source.Node, source.keys
	case cluster.CopyDemote:
		if c != nil {
			c.state, c.secret = cluster.CopyPending, ""
		}
	case cluster.CopyStop, cluster.CopyDestroy:
		delete(h.copies, name)
	}
	return nil
}

// goOver gives a copy away, or takes it. What was given away may be left, and say that
// it runs; the other one comes into being by a record that says so, and by nothing else.
// mu is held.
func (h *copyHost) goOver(o cluster.CopyOrder) error {
	name, next, from, to := o.Workload.Name, o.Workload.Next, h.node, o.Source.Node
	if o.Op == cluster.CopyMigrateFrom {
		from, to = to, from
	}
	if next == nil || next.Live != cluster.LiveMigrating || next.Chain[0] != to || o.Workload.Head() != from {
		h.all.wrong = append(h.all.wrong, fmt.Sprintf("%s of %s on %s by the record %+v", o.Op, name, h.node, o.Workload))
	}
	c := h.all.host(from).copies[name]
	if c == nil || c.state != cluster.CopyActive || c.given != (o.Op == cluster.CopyMigrateFrom) {
		return fmt.Errorf("there is nothing to %s on %s", o.Op, from)
	}
	if c.given = true; o.Op == cluster.CopyMigrateFrom {
		h.copies[name] = &worldCopy{state: cluster.CopyActive, start: 1, keys: c.keys}
		h.all.judge(h, name, o.Op)
	}
	return nil
}

// goesLate has the copy whose migrate_to was ended on the other node a moment later: the
// program is gone, what it had asked for is not.
func (h *copyHost) goesLate(o cluster.CopyOrder) {
	h.all.mu.Lock()
	if h.all.late == 0 || o.Op != cluster.CopyMigrateTo {
		h.all.mu.Unlock()
		return
	}
	going := make(chan struct{})
	defer close(going)
	h.all.going = going
	h.all.mu.Unlock()
	time.Sleep(h.all.late)
	h.all.mu.Lock()
	defer h.all.mu.Unlock()
	name, to := o.Workload.Name, h.all.host(o.Source.Node)
	if c := h.copies[name]; c != nil && to.copies != nil {
		c.given = true
		to.copies[name] = &worldCopy{state: cluster.CopyActive, start: 1, keys: c.keys}
	}
}

// judge notes when a copy serves that lacks what was acknowledged, or beside another.
func (w *copyWorld) judge(h *copyHost, name string, op cluster.CopyOp) {
	if c := h.copies[name]; c.keys < w.acked[name] {
		w.wrong = append(w.wrong, fmt.Sprintf("%s serves %s with %d of %d keys", h.node, name, c.keys, w.acked[name]))
	}
	for n, other := range w.hosts {
		if c := other.copies[name]; n != h.node && c != nil && c.state == cluster.CopyActive && (!c.given || op != cluster.CopyMigrateFrom) {
			w.wrong = append(w.wrong, fmt.Sprintf("%s serves %s while %s does", h.node, name, n))
		}
	}
}

// write puts keys into the active copy, which its replicas acknowledge.
func (w *copyWorld) write(name string, keys int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, h := range w.hosts {
		if c := h.copies[name]; c != nil && (c.state == cluster.CopyActive || c.state == cluster.CopyReplica) {
			c.keys += keys
		}
	}
	w.acked[name] += keys
}

// restartEmpty is a process that ended and was started again with nothing in it.
func (w *copyWorld) restartEmpty(n cluster.NodeID, name string) {
	w.mu.Lock()
	h := w.host(n)
	old := h.copies[name]
	start := 1
	if old != nil {
		start = old.start + 1
	}
	h.copies[name] = &worldCopy{state: cluster.CopyMissing, start: start}
	hints := h.changed
	w.mu.Unlock()
	select {
	case hints <- cluster.CopyChange{Workload: name, Text: "restarted"}:
	default:
	}
}

// vanish is the loss of all that a host had in memory.
func (w *copyWorld) vanish(n cluster.NodeID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.host(n).copies = map[string]*worldCopy{}
}

// state is what a host's copy is.
func (w *copyWorld) state(n cluster.NodeID, name string) cluster.CopyState {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.host(n).report(name).State
}

func (w *copyWorld) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

func (w *copyWorld) said() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.orders, ", ")
}

func (w *copyWorld) count(what *int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return *what
}

// faults is what must never happen and has.
func (w *copyWorld) faults() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.wrong)
}

// ---- the records, as operators write and read them

const reprovisionPath = "/agent/reprovision"

func workloadPath(name string) string { return "/agent/workloads/" + name }

// addWorkload writes a record as the API does.
func (b *bubble) addWorkload(w cluster.Workload) {
	b.t.Helper()
	w.Version = 1
	if w.ID == "" {
		w.ID = "id-" + w.Name
	}
	if w.Kind == "" {
		w.Kind = cluster.WorkloadReplicated
	}
	w.Driver, w.Wanted, w.State = cluster.DriverRedis, true, cluster.WorkloadNew
	if w.Live {
		w.Driver, w.Agent = cluster.DriverOCF, "heartbeat:Dummy"
	}
	if err := w.Validate(); err != nil {
		b.t.Fatal(err)
	}
	raw, err := json.Marshal(w)
	if err != nil {
		b.t.Fatal(err)
	}
	b.store.Set(workloadPath(w.Name), raw)
}

// workload is the record.
func (b *bubble) workload(name string) cluster.Workload {
	var w cluster.Workload
	_ = json.Unmarshal([]byte(b.read(workloadPath(name))), &w)
	return w
}

// editWorkload changes the record as the API does.
func (b *bubble) editWorkload(name string, change func(*cluster.Workload)) {
	w := b.workload(name)
	change(&w)
	raw, err := json.Marshal(w)
	if err != nil {
		b.t.Fatal(err)
	}
	b.store.Set(workloadPath(name), raw)
}

func (b *bubble) reprovision() cluster.ReprovisionSettings {
	s := cluster.DefaultReprovisionSettings()
	_ = json.Unmarshal([]byte(b.read(reprovisionPath)), &s)
	return s
}

func (b *bubble) setReprovision(s cluster.ReprovisionSettings) {
	raw, err := json.Marshal(s)
	if err != nil {
		b.t.Fatal(err)
	}
	b.store.Set(reprovisionPath, raw)
}

// told are the history's entries of a kind, oldest first.
func (b *bubble) told(kind string) []cluster.Event {
	var list []cluster.Event
	for _, h := range b.store.History() {
		var e cluster.Event
		if h.Op == "create" && strings.HasPrefix(h.Path, "/agent/history/") && json.Unmarshal(h.Data, &e) == nil && e.Kind == kind {
			list = append(list, e)
		}
	}
	return list
}
