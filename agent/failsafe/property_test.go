package failsafe

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// host is a clock that drifts by up to 0.5 % and one giver on it.
type host struct {
	rate   float64
	offset int64
	config GiverConfig
	state  GiverState
}

func (h *host) clock(real time.Duration) cluster.Instant {
	return cluster.Instant(h.offset + int64(float64(real)*h.rate))
}

// real converts one of the host's instants back.
func (h *host) real(i cluster.Instant) time.Duration {
	return time.Duration(float64(int64(i)-h.offset) / h.rate)
}

type letter struct {
	at       time.Duration
	to       int // 0: the asker
	question *Question
	answer   *Answer
}

// Whatever is lost, late or restarted: while a node goes on with its work by
// promises, no coordinator is free to claim a fence of it, nor to count its
// watchdog, before its right has ended and G has passed.
func TestWorkGoesOnOnlyWhileEverybodyIsBound(t *testing.T) {
	extended, ended := 0, 0
	for seed := range uint64(400) {
		rng := rand.New(rand.NewPCG(seed, 11))
		l := newLife(rng)
		for real := time.Duration(0); real < 30*time.Second; real += 20 * time.Millisecond {
			if text := l.step(rng, real); text != "" {
				t.Fatalf("seed %d at %s: %s", seed, real, text)
			}
		}
		extended += l.state.Granted
		if l.ended {
			ended++
		}
	}
	if extended < 400 || ended < 20 {
		t.Errorf("extended %d times, ended in %d lives: the property tests nothing", extended, ended)
	}
}

type life struct {
	asker AskerConfig
	state AskerState
	on    host
	sent  cluster.Instant
	hosts []host // the givers
	post  []letter
	set   Members
	ended bool
}

func newLife(rng *rand.Rand) *life {
	l := &life{asker: AskerConfig{Node: "a", Incarnation: "a.1", Right: RightWork, Timing: cluster.ProfileLAN()}, set: Members{Nodes: []cluster.NodeID{"a"}}}
	make1 := func() host {
		return host{rate: 0.995 + 0.01*rng.Float64(), offset: int64(time.Hour) + rng.Int64N(int64(time.Hour))}
	}
	l.on = make1()
	l.sent = l.on.clock(0)
	for i := range 2 + rng.IntN(3) {
		h := make1()
		h.config = GiverConfig{Node: cluster.NodeID(rune('b' + i)), Timing: l.asker.Timing, Started: h.clock(-time.Minute)}
		l.hosts = append(l.hosts, h)
		l.set.Nodes = append(l.set.Nodes, h.config.Node)
	}
	return l
}

// step lets 20 ms pass and says what is broken.
func (l *life) step(rng *rand.Rand, real time.Duration) string {
	arrived := l.post
	l.post = nil
	for _, m := range arrived {
		switch {
		case m.at > real:
			l.post = append(l.post, m)
		case m.to == 0:
			l.ask(rng, real, m.answer)
		default:
			h := &l.hosts[m.to-1]
			next, out := StepGiver(h.config, h.state, GiverInput{Now: h.clock(real), Members: l.set, Question: m.question})
			h.state = next
			l.send(rng, real, letter{to: 0, answer: out.Answer})
		}
	}
	l.ask(rng, real, nil)
	if rng.IntN(500) == 0 { // a giver's daemon is restarted: it forgets
		h := &l.hosts[rng.IntN(len(l.hosts))]
		h.state, h.config.Started = GiverState{}, h.clock(real)
	}
	if l.state.Over || l.state.granted.IsZero() || l.state.Until != l.state.granted {
		return ""
	}
	end := l.on.real(l.state.Until) + l.asker.Timing.Grace
	for i := range l.hosts {
		h := &l.hosts[i]
		if free := h.real(Promised(h.config, h.state, "a")); free < end {
			return fmt.Sprintf("work may last until %s, and %s is bound until %s only", end, h.config.Node, free)
		}
	}
	return ""
}

func (l *life) send(rng *rand.Rand, real time.Duration, m letter) {
	if rng.IntN(25) == 0 {
		return
	}
	m.at = real + time.Duration(rng.Int64N(int64(80*time.Millisecond)))
	if rng.IntN(10) == 0 {
		m.at = real + time.Duration(rng.Int64N(int64(3*time.Second)))
	}
	l.post = append(l.post, m)
}

func (l *life) ask(rng *rand.Rand, real time.Duration, a *Answer) {
	next, out := StepAsker(l.asker, l.state, AskerInput{Now: l.on.clock(real), InUse: true, Sent: l.sent, Members: l.set, Answer: a})
	l.state = next
	l.ended = l.ended || out.End != ""
	for _, to := range out.To {
		l.send(rng, real, letter{to: slices.Index(l.set.Nodes, to), question: out.Ask})
	}
}
