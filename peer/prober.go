package peer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
)

// ProberConfig paces the probes.
type ProberConfig struct {
	Self     cluster.NodeID // never probed
	Interval time.Duration  // between two probes of a node: K
	Timeout  time.Duration  // of each; zero: 0.3 × Interval
	// OwnSide says what is wrong with this host's own way to an address, so
	// that its fault is not held against the node; nil looks at the host's
	// routes and interfaces.
	OwnSide func(addr string) error
}

// Target is a node to probe.
type Target struct {
	Node cluster.NodeID
	Addr string // host:port, as the node publishes it
}

// Result is what the latest probe of a node said.
type Result struct {
	Answer cluster.ProbeAnswer
	Sent   cluster.Instant // before the question went out
	Took   time.Duration
	Status Status // where it answered with one
	Err    error  // why it did not answer, or why nothing is known
}

// Prober probes the other coordinators, each once an interval, at instants
// spread over it. Each node has a goroutine of its own, so that there is never
// more than one probe of a node and none waits for another.
type Prober struct {
	config ProberConfig
	client *Client
	clock  cluster.Clock
	log    *zap.Logger

	changed chan struct{}

	mu      sync.Mutex
	targets map[cluster.NodeID]string
	results map[cluster.NodeID]Result
}

// NewProber makes a prober that probes nobody until Run and SetTargets.
func NewProber(c ProberConfig, client *Client, clock cluster.Clock, log *zap.Logger) *Prober {
	if c.Timeout == 0 {
		c.Timeout = c.Interval * 3 / 10
	}
	if c.OwnSide == nil {
		c.OwnSide = ownSide
	}
	return &Prober{config: c, client: client, clock: clock, log: log, changed: make(chan struct{}, 1),
		targets: map[cluster.NodeID]string{}, results: map[cluster.NodeID]Result{}}
}

// SetTargets says whom to probe from now on. It does not block. What is known
// of a node is forgotten when it goes or moves to another address.
func (p *Prober) SetTargets(list []Target) {
	p.mu.Lock()
	defer p.mu.Unlock()
	targets := map[cluster.NodeID]string{}
	for _, t := range list {
		if t.Node != p.config.Self && t.Addr != "" {
			targets[t.Node] = t.Addr
		}
	}
	if maps.Equal(targets, p.targets) {
		return
	}
	for n, addr := range p.targets {
		if targets[n] != addr {
			delete(p.results, n)
		}
	}
	p.targets = targets
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// Answers returns what is known of each target now. An answer to a probe that
// was sent more than two intervals ago is unknown. It does not block.
func (p *Prober) Answers() map[cluster.NodeID]cluster.ProbeAnswer {
	answers := map[cluster.NodeID]cluster.ProbeAnswer{}
	for n, r := range p.Results() {
		answers[n] = r.Answer
	}
	return answers
}

// Results is Answers with all that was learnt.
func (p *Prober) Results() map[cluster.NodeID]Result {
	now := p.clock.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	results := make(map[cluster.NodeID]Result, len(p.targets))
	for n := range p.targets {
		r, asked := p.results[n]
		if age := now.Sub(r.Sent); asked && age > 2*p.config.Interval {
			r = Result{Sent: r.Sent, Err: fmt.Errorf("the latest probe was sent %v ago", age.Round(time.Millisecond))}
		}
		results[n] = r
	}
	return results
}

// Combine returns what several coordinators' answers of one node say together:
// one that reaches it is enough, silence takes all of them (protocol §5).
func Combine(answers ...cluster.ProbeAnswer) cluster.ProbeAnswer {
	switch {
	case slices.Contains(answers, cluster.ProbeAnswered):
		return cluster.ProbeAnswered
	case len(answers) == 0 || slices.Contains(answers, cluster.ProbeUnknown):
		return cluster.ProbeUnknown
	}
	return cluster.ProbeSilent
}

// probing is one node's goroutine.
type probing struct {
	addr string
	end  context.CancelFunc
	done chan struct{}
}

// Run probes until ctx ends and returns when its last goroutine has ended, at
// most one timeout later.
func (p *Prober) Run(ctx context.Context) {
	running := map[cluster.NodeID]probing{}
	for {
		p.adjust(ctx, running)
		select {
		case <-ctx.Done():
			for _, r := range running {
				r.end()
				<-r.done
			}
			return
		case <-p.changed:
		}
	}
}

// adjust ends the goroutines of targets that have gone and starts new ones.
func (p *Prober) adjust(ctx context.Context, running map[cluster.NodeID]probing) {
	p.mu.Lock()
	targets := maps.Clone(p.targets)
	p.mu.Unlock()
	for n, r := range running {
		if targets[n] == r.addr {
			continue
		}
		r.end()
		<-r.done
		delete(running, n)
		p.client.Forget(n)
	}
	names := slices.Sorted(maps.Keys(targets))
	for i, n := range names {
		if _, ok := running[n]; ok {
			continue
		}
		own, end := context.WithCancel(ctx)
		r := probing{addr: targets[n], end: end, done: make(chan struct{})}
		running[n] = r
		offset := p.config.Interval * time.Duration(i) / time.Duration(len(names))
		go func() {
			defer close(r.done)
			p.probe(own, Target{n, r.addr}, offset)
		}()
	}
}

// probe asks one node once an interval.
func (p *Prober) probe(ctx context.Context, t Target, offset time.Duration) {
	if !pause(ctx, offset) {
		return
	}
	tick := time.NewTicker(p.config.Interval)
	defer tick.Stop()
	for {
		if r := p.once(ctx, t); ctx.Err() == nil {
			p.note(t, r)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// once sends one probe and judges what comes of it.
func (p *Prober) once(ctx context.Context, t Target) Result {
	bounded, cancel := context.WithTimeout(ctx, p.config.Timeout)
	defer cancel()
	r := Result{Sent: p.clock.Now()}
	raw, err := p.client.Ask(bounded, t.Node, t.Addr, KindProbe, []byte("{}"))
	r.Took = p.clock.Now().Sub(r.Sent)
	if err == nil {
		r.Status, err = DecodeStatus(raw)
		if err == nil && r.Status.Node != t.Node {
			err = fmt.Errorf("%s says that it is %q: its node.name and its certificate differ", t.Node, r.Status.Node)
		}
		r.Answer, r.Err = cluster.ProbeAnswered, err // the certificate has proven who it is
		return r
	}
	r.Answer, r.Err = p.judge(t, r.Took, err)
	return r
}

// judge says what an unanswered probe is worth. Only the network's word counts
// as silence, never a fault of this host's own (I6).
func (p *Prober) judge(t Target, took time.Duration, err error) (cluster.ProbeAnswer, error) {
	var e *Error
	switch {
	case !errors.As(err, &e):
		return cluster.ProbeUnknown, err
	case errors.Is(e.Class, cluster.ErrRefused):
		return cluster.ProbeAnswered, err // whoever says no is there
	case !e.Silence():
		return cluster.ProbeUnknown, err
	case took > p.config.Timeout*3/2+50*time.Millisecond:
		// This process was stopped or starved: the answer may lie unread.
		return cluster.ProbeUnknown, fmt.Errorf("this node was late itself, %v instead of %v: %w", took.Round(time.Millisecond), p.config.Timeout, err)
	}
	if own := p.config.OwnSide(t.Addr); own != nil {
		return cluster.ProbeUnknown, fmt.Errorf("%w: %w", own, err)
	}
	return cluster.ProbeSilent, err
}

// note keeps the result and logs a change of the answer once.
func (p *Prober) note(t Target, r Result) {
	p.mu.Lock()
	before, known := p.results[t.Node]
	wanted := p.targets[t.Node] == t.Addr
	if wanted {
		p.results[t.Node] = r
	}
	p.mu.Unlock()
	if wanted && (!known || before.Answer != r.Answer) {
		p.log.Info("A peer's answer to probes has changed", zap.String("node", string(t.Node)), zap.String("addr", t.Addr),
			zap.String("answer", answerNames[r.Answer]), zap.Error(r.Err))
	}
}

var answerNames = [...]string{"unknown", "answered", "silent"}
