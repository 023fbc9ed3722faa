package driver

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
)

// live is a token of something that runs.
func live() cluster.Token {
	return cluster.MintToken(cluster.NewTokenWire(cluster.NodeLeaseID{Holder: "hv1", Start: "s", Epoch: 9}, "a", "a", false), func() error { return nil })
}

func over() cluster.Token {
	return cluster.MintToken(cluster.NewTokenWire(cluster.NodeLeaseID{Holder: "hv1", Start: "s", Epoch: 9}, "a", "a", false), func() error { return errors.New("it is over") })
}

// shelf is a guard in memory.
type shelf struct {
	mu       sync.Mutex
	services []cluster.ServiceState
	specs    map[string]cluster.ServiceSpec
	fail     error
	look     cluster.RunResult
	looked   []cluster.RunRequest
	events   chan cluster.GuardEvent
}

func newShelf() *shelf {
	return &shelf{specs: map[string]cluster.ServiceSpec{}, events: make(chan cluster.GuardEvent)}
}

func (g *shelf) Subscribe() (<-chan cluster.GuardEvent, func()) { return g.events, func() {} }

func (g *shelf) State(context.Context) (cluster.GuardState, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return cluster.GuardState{Services: append([]cluster.ServiceState(nil), g.services...)}, g.fail
}

func (g *shelf) StartCopy(_ context.Context, t cluster.Token, s cluster.ServiceSpec) error {
	if err := t.Check(); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.specs[s.Name] = s
	g.remove(s.Name)
	g.services = append(g.services, cluster.ServiceState{Name: s.Name, Owner: cluster.OwnerNode, Kind: s.Kind, Note: s.Note, Running: true, PID: 7, Starts: 1})
	return nil
}

func (g *shelf) StopCopy(_ context.Context, t cluster.Token, name string) error {
	if err := t.Check(); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.remove(name)
	return nil
}

func (g *shelf) remove(name string) {
	for i, s := range g.services {
		if s.Name == name {
			g.services = append(g.services[:i], g.services[i+1:]...)
			return
		}
	}
}

func (g *shelf) Look(_ context.Context, r cluster.RunRequest) (cluster.RunResult, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.looked = append(g.looked, r)
	return g.look, nil
}

func (g *shelf) set(change func(s *cluster.ServiceState)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	change(&g.services[0])
}

// slowDriver takes its time for each call, unless it is called off, and notes what it
// has done.
type slowDriver struct {
	mu    sync.Mutex
	takes time.Duration
	deaf  bool // it does not heed its context
	found cluster.CopyReport
	did   []string
	at    int // calls that run now
	most  int
	looks int
}

func (d *slowDriver) Check(context.Context, cluster.Workload) error { return nil }

func (d *slowDriver) work(ctx context.Context) error {
	d.mu.Lock()
	d.at++
	d.most = max(d.most, d.at)
	takes, deaf := d.takes, d.deaf
	d.mu.Unlock()
	defer func() { d.mu.Lock(); d.at--; d.mu.Unlock() }()
	if deaf {
		time.Sleep(takes)
		return nil
	}
	select {
	case <-time.After(takes):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (d *slowDriver) Probe(ctx context.Context, _ cluster.Workload) (cluster.CopyReport, error) {
	d.mu.Lock()
	d.looks++
	d.mu.Unlock()
	err := d.work(ctx)
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.found, err
}

func (d *slowDriver) Order(ctx context.Context, _ cluster.Token, o cluster.CopyOrder) (cluster.CopyReport, error) {
	if o.Note == "panic" {
		panic("no")
	}
	if err := d.work(ctx); err != nil {
		return cluster.CopyReport{Unknown: true}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.did = append(d.did, string(o.Op))
	return cluster.CopyReport{State: cluster.CopyActive}, nil
}

func (d *slowDriver) done() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return strings.Join(d.did, " ")
}

func inHost(t *testing.T, fn func(t *testing.T, h *Host, d *slowDriver, g *shelf)) {
	synctest.Test(t, func(t *testing.T) {
		d, g := &slowDriver{}, newShelf()
		h := NewHost("hv1", g, g, map[cluster.DriverName]Driver{cluster.DriverRedis: d}, zap.NewNop())
		defer h.Close()
		fn(t, h, d, g)
	})
}

var cache = cluster.Workload{Name: "cache", ID: "id-cache", Kind: cluster.WorkloadReplicated, Driver: cluster.DriverRedis}

func order(op cluster.CopyOp) cluster.CopyOrder { return cluster.CopyOrder{Op: op, Workload: cache} }

// One thing at a time is done to a workload: an order waits for another, and is
// refused where its time is over by then, having done nothing.
func TestOneOrderOfAWorkloadRunsAtATime(t *testing.T) {
	inHost(t, func(t *testing.T, h *Host, d *slowDriver, _ *shelf) {
		d.takes = 4 * time.Second
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if r, err := h.Order(t.Context(), live(), order(cluster.CopyPromote)); err != nil || r.State != cluster.CopyActive || r.Node != "hv1" || r.ID != cache.ID {
					t.Errorf("%+v, %v", r, err)
				}
			})
		}
		synctest.Wait()
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if r, err := h.Order(short, live(), order(cluster.CopyDemote)); !errors.Is(err, cluster.ErrRefused) || !r.Unknown {
			t.Errorf("one whose time is over: %+v, %v", r, err)
		}
		if r := h.Probe(t.Context(), cache); !r.Unknown || !strings.Contains(r.Error, "promote") {
			t.Errorf("a look beside an order: %+v", r)
		}
		other := cache
		other.Name = "other"
		if r := h.Probe(t.Context(), other); r.Unknown {
			t.Errorf("a look at another workload: %+v", r)
		}
		wg.Wait()
		if d.done() != "promote promote promote" || d.most > 2 {
			t.Errorf("done: %s; %d at once", d.done(), d.most)
		}
	})
}

// A stop ends what runs, and comes next; a driver that does not heed is not run twice.
func TestAStopOvertakes(t *testing.T) {
	inHost(t, func(t *testing.T, h *Host, d *slowDriver, _ *shelf) {
		d.takes = time.Minute
		ended := make(chan error, 2)
		go func() { _, err := h.Order(t.Context(), live(), order(cluster.CopyPromote)); ended <- err }()
		synctest.Wait()
		began := time.Now()
		d.mu.Lock()
		d.takes = time.Second
		d.mu.Unlock()
		if _, err := h.Order(t.Context(), live(), order(cluster.CopyStop)); err != nil || time.Since(began) > 2*time.Second {
			t.Errorf("the stop: %v after %v", err, time.Since(began))
		}
		if err := <-ended; !errors.Is(err, errOvertaken) {
			t.Errorf("what it has overtaken: %v", err)
		}
		d.mu.Lock()
		d.takes, d.deaf = time.Minute, true
		d.mu.Unlock()
		if h.Busy() {
			t.Error("busy with nothing")
		}
		go func() { _, err := h.Order(t.Context(), live(), order(cluster.CopyPromote)); ended <- err }()
		synctest.Wait()
		if !h.Busy() {
			t.Error("not busy with an order that runs")
		}
		short, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if _, err := h.Order(short, live(), order(cluster.CopyStop)); !errors.Is(err, cluster.ErrRefused) || !strings.Contains(err.Error(), "promote") {
			t.Errorf("a stop beside a driver that does not heed: %v", err)
		}
		<-ended
		if !h.Busy() {
			t.Error("not busy with a driver that has not returned")
		}
		time.Sleep(2 * time.Minute)
		if d.done() != "stop promote" || d.most != 1 {
			t.Errorf("done: %s; %d at once", d.done(), d.most)
		}
		if _, err := h.Order(t.Context(), live(), order(cluster.CopyStop)); err != nil {
			t.Errorf("afterwards: %v", err)
		}
		if len(h.turns) != 0 {
			t.Errorf("%d turns are kept", len(h.turns))
		}
	})
}

// Whatever a driver does the caller has an answer in time, and those who ask at once
// have the same.
func TestALookIsBoundedAndShared(t *testing.T) {
	inHost(t, func(t *testing.T, h *Host, d *slowDriver, _ *shelf) {
		d.takes, d.deaf = time.Hour, true
		began := time.Now()
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				if r := h.Probe(t.Context(), cache); !r.Unknown || r.Error == "" || r.Workload != "cache" {
					t.Errorf("%+v", r)
				}
			})
		}
		wg.Wait()
		if took := time.Since(began); took > probeLimit+overtime || d.looks != 1 {
			t.Errorf("%d looks, after %v", d.looks, took)
		}
		if r := h.Probe(t.Context(), cache); !r.Unknown || d.looks != 1 {
			t.Errorf("while the driver still hangs: %+v, %d looks", r, d.looks)
		}
		time.Sleep(2 * time.Hour)
	})
}

// An order has no effect by a token that is over, nor on another copy than the one
// that was decided on; a driver that crashes is an error.
func TestAnOrderThatMustNotBeCarriedOut(t *testing.T) {
	inHost(t, func(t *testing.T, h *Host, d *slowDriver, _ *shelf) {
		d.found = cluster.CopyReport{State: cluster.CopyMissing, Start: "2"}
		expects := func(state cluster.CopyState, start string) cluster.CopyOrder {
			o := order(cluster.CopyPromote)
			o.Expect = &cluster.CopyExpect{State: state, Start: start}
			return o
		}
		late := order(cluster.CopyStart)
		late.Still = func() error { return errors.New("a later one was taken") }
		unknown := order(cluster.CopyPromote)
		unknown.Workload.Driver = "kvm"
		for name, c := range map[string]struct {
			token cluster.Token
			order cluster.CopyOrder
		}{
			"a token that is over":    {over(), order(cluster.CopyPromote)},
			"a copy that is gone":     {live(), expects(cluster.CopyReplica, "")},
			"one that was restarted":  {live(), expects(cluster.CopyMissing, "1")},
			"one that was overtaken":  {live(), late},
			"a driver nobody has":     {live(), unknown},
			"a workload without name": {live(), cluster.CopyOrder{Op: cluster.CopyPromote}},
		} {
			if _, err := h.Order(t.Context(), c.token, c.order); !errors.Is(err, cluster.ErrRefused) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if d.done() != "" {
			t.Errorf("done: %s", d.done())
		}
		if _, err := h.Order(t.Context(), live(), expects(cluster.CopyMissing, "2")); err != nil {
			t.Errorf("as expected: %v", err)
		}
		crash := order(cluster.CopyPromote)
		crash.Note = "panic"
		if _, err := h.Order(t.Context(), live(), crash); err == nil || !strings.Contains(err.Error(), "host_test.go") {
			t.Errorf("a driver that crashes: %v", err)
		}
	})
}

// What is held is what the guard says, and its events are hints.
func TestWhatIsHeldIsWhatTheGuardSays(t *testing.T) {
	inHost(t, func(t *testing.T, h *Host, _ *slowDriver, g *shelf) {
		service := func(name string, owner cluster.DeadlineOwner, running, left bool) {
			g.services = append(g.services, cluster.ServiceState{Name: name, Owner: owner, Running: running, Left: left})
		}
		service("copy-web", cluster.OwnerNode, true, false)
		service("copy-gone", cluster.OwnerNode, false, false)
		service("copy-ip", cluster.OwnerNode, false, true)
		service("copy-ip.aux", cluster.OwnerNode, true, false)
		service("copy-dns", cluster.OwnerPrimary, true, false)
		service("dns", cluster.OwnerNode, true, false)
		if held, err := h.Held(t.Context()); err != nil || fmt.Sprint(held) != "[ip web]" {
			t.Errorf("held: %v, %v", held, err)
		}
		g.fail = errors.New("no guard")
		if _, err := h.Held(t.Context()); err == nil {
			t.Error("it is said what is held although the guard does not answer")
		}
		for _, e := range []cluster.GuardEvent{{Kind: "service_exited", Owner: cluster.OwnerPrimary, Name: "copy-a"}, {Kind: "fault", Owner: cluster.OwnerNode},
			{Kind: "service_exited", Owner: cluster.OwnerNode, Name: "copy-web", Text: "ended"}, {Kind: "ended", Owner: cluster.OwnerNode}} {
			g.events <- e
		}
		if c := <-h.Changed(); c != (cluster.CopyChange{Node: "hv1", Workload: "web", Text: "ended"}) {
			t.Errorf("told: %+v", c)
		}
		if c := <-h.Changed(); c.Workload != "" || c.Node != "hv1" {
			t.Errorf("told: %+v", c)
		}
		for i := range 3 * changesKept {
			g.events <- cluster.GuardEvent{Kind: "service_exited", Owner: cluster.OwnerNode, Name: fmt.Sprintf("copy-w%d", i)}
		}
		synctest.Wait()
		all := false
		for range changesKept {
			all = all || (<-h.Changed()).Workload == ""
		}
		if !all {
			t.Error("hints were lost, and none stands for them")
		}
	})
}
