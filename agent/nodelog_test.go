package agent_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"pvc.internal/agent"
	"pvc.internal/cluster"
	"pvc.internal/zkhandler/zktest"
)

const messagesPath = "/logs/hv1/messages"

// loggingBubble is a cluster of one node whose log goes to the store, and that log.
func loggingBubble(t *testing.T, fn func(b *bubble, log *zap.Logger)) {
	t.Helper()
	var log *zap.Logger
	o := nodesCalled("hv1")
	o.tune = func(_ *agent.Config, d *agent.Deps) {
		d.NodeLog = agent.NewNodeLog()
		d.Texts = d.Store.(agent.Texts)
		core := d.NodeLog.Core(zapcore.InfoLevel)
		d.Log = d.Log.WithOptions(zap.WrapCore(func(c zapcore.Core) zapcore.Core { return zapcore.NewTee(c, core) }))
		log = zap.New(core)
	}
	inBubble(t, o, func(b *bubble) {
		b.settles(20 * time.Second)
		b.eventually(time.Minute, "the start is in the log", func() bool { return strings.Contains(b.read(messagesPath), "registered") })
		time.Sleep(time.Minute) // whatever the start has logged is there
		fn(b, log)
	})
}

// writes are the instants since from at which the path was written.
func (b *bubble) writes(path string, from time.Time) (at []time.Time) {
	for _, h := range b.store.History() {
		if h.Path == path && h.At.After(from) && h.Op == "set" {
			at = append(at, h.At)
		}
	}
	return at
}

// steady fails where two keepalives since then were further apart than may be.
func (b *bubble) steady(from time.Time, most time.Duration) {
	b.t.Helper()
	beats := b.writes("/nodes/hv1/keepalive", from)
	for i := 1; i < len(beats); i++ {
		if gap := beats[i].Sub(beats[i-1]); gap > most {
			b.t.Errorf("no keepalive for %v at %s", gap, beats[i].Format("04:05.000"))
		}
	}
	if len(beats) == 0 {
		b.t.Error("no keepalive at all")
	}
}

// numbered are the lines of the log in the store that say "line N", by N.
func (b *bubble) numbered() (all []int) {
	for line := range strings.Lines(b.read(messagesPath)) {
		if _, said, ok := strings.Cut(line, " line "); ok {
			var n int
			if _, err := fmt.Sscanf(said, "%d", &n); err == nil {
				all = append(all, n)
			}
		}
	}
	return all
}

func inOrder(all []int, from, to int) bool {
	if len(all) != to-from {
		return false
	}
	for i, n := range all {
		if n != from+i {
			return false
		}
	}
	return true
}

// Nothing is logged, nothing is written: the keepalive stays the only transaction.
func TestNodeLogCostsNothingWhileNothingIsLogged(t *testing.T) {
	t.Parallel()
	loggingBubble(t, func(b *bubble, log *zap.Logger) {
		from := time.Now()
		time.Sleep(5 * time.Minute)
		if n := len(b.writes(messagesPath, from)); n != 0 {
			b.t.Errorf("%d writes in five quiet minutes:\n%s", n, b.read(messagesPath))
		}
		log.Debug("line 7")
		time.Sleep(time.Minute)
		if n := len(b.writes(messagesPath, from)); n != 0 {
			b.t.Errorf("%d writes for a line below Info", n)
		}
		log.Warn("line 1", zap.String("with", "facts"))
		b.eventually(4*time.Second, "a line is there", func() bool { return inOrder(b.numbered(), 1, 2) })
		if text := b.read(messagesPath); !strings.Contains(text, `WARN line 1 {"with": "facts"}`) {
			b.t.Errorf("%q", text[max(0, len(text)-200):])
		}
	})
}

// A storm: the newest lines are there, in order, within the bound, the number of
// those that were left out with them; few writes, and no keepalive is late.
func TestNodeLogInAStorm(t *testing.T) {
	t.Parallel()
	loggingBubble(t, func(b *bubble, log *zap.Logger) {
		from, n := time.Now(), 0
		for time.Since(from) < time.Minute {
			for range 200 {
				log.Info(fmt.Sprintf("line %d of a storm that goes on and on", n))
				n++
			}
			time.Sleep(100 * time.Millisecond)
		}
		if at := b.writes(messagesPath, from); len(at) > 7 || len(at) < 3 {
			b.t.Errorf("%d writes in a minute's storm", len(at))
		} else {
			for i := 1; i < len(at); i++ {
				if gap := at[i].Sub(at[i-1]); gap < 2*time.Second {
					b.t.Errorf("two writes within %v", gap)
				}
			}
		}
		b.steady(from, 1100*time.Millisecond)
		b.eventually(20*time.Second, "the last line is there", func() bool {
			all := b.numbered()
			return len(all) > 0 && all[len(all)-1] == n-1
		})
		text, all := b.read(messagesPath), b.numbered()
		if len(text) > 64<<10 || len(text) < 60<<10 || !inOrder(all, n-len(all), n) {
			b.t.Errorf("%d bytes, %d lines", len(text), len(all))
		}
	})
}

// What was logged while the store was away is there afterwards, once and in
// order, and too much of it says how much is missing.
func TestNodeLogAfterAnOutage(t *testing.T) {
	t.Parallel()
	loggingBubble(t, func(b *bubble, log *zap.Logger) {
		for outage := range 3 {
			from := 10 * outage
			b.store.Outage()
			for i := range 10 {
				log.Info(fmt.Sprintf("line %d", from+i))
				time.Sleep(8 * time.Second)
			}
			b.store.Resume()
			b.eventually(20*time.Second, "the session is back", func() bool { s := b.nodes["hv1"].agent.Status().Snapshot; return s != nil && s.Live })
			b.eventually(11*time.Second, "all lines are there, once and in order", func() bool { return inOrder(b.numbered(), 0, from+10) })
			b.settles(20 * time.Second)
		}

		b.store.Outage()
		for i := range 5000 {
			log.Info(fmt.Sprintf("line %d", 30+i))
		}
		time.Sleep(20 * time.Second)
		b.store.Resume()
		b.eventually(30*time.Second, "the newest is there", func() bool {
			all := b.numbered()
			return len(all) > 0 && all[len(all)-1] == 5029
		})
		if text := b.read(messagesPath); len(text) > 64<<10 {
			b.t.Errorf("%d bytes", len(text))
		}
		b.settles(20 * time.Second)
	})
}

// A reply that is lost, a request that is lost, one that is carried out late: the
// lines stand there once, and the connection is left to the keepalive.
func TestNodeLogWithLostReplies(t *testing.T) {
	t.Parallel()
	log := zktest.Does("multi", messagesPath)
	for name, fault := range map[string]func(*zktest.Server){
		"reply":   func(s *zktest.Server) { s.DropReply("hv1", log).Times(1) },
		"request": func(s *zktest.Server) { s.DropRequest("hv1", log).Times(1) },
		"late":    func(s *zktest.Server) { s.LateCommit("hv1", log, 5*time.Second).Times(1) },
		"later":   func(s *zktest.Server) { s.LateCommit("hv1", log, 500*time.Millisecond).Times(1) },
		"thrice":  func(s *zktest.Server) { s.DropReply("hv1", log).Times(3) },
	} {
		t.Run(name, func(t *testing.T) {
			loggingBubble(t, func(b *bubble, log *zap.Logger) {
				fault(b.store)
				from := time.Now()
				for i := range 30 {
					log.Info(fmt.Sprintf("line %d", i))
					time.Sleep(time.Second)
				}
				b.eventually(40*time.Second, "all lines are there, once and in order", func() bool { return inOrder(b.numbered(), 0, 30) })
				time.Sleep(20 * time.Second)
				if !inOrder(b.numbered(), 0, 30) {
					b.t.Errorf("afterwards: %v", b.numbered())
				}
				if n := len(b.writes(messagesPath, from)); n > 12 {
					b.t.Errorf("%d writes", n)
				}
			})
		})
	}
}

// A server that hangs with the log's write on it is found by the keepalive as it
// would be without the log.
func TestNodeLogOnAServerThatHangs(t *testing.T) {
	t.Parallel()
	worst := func(lines bool) (gap time.Duration) {
		loggingBubble(t, func(b *bubble, log *zap.Logger) {
			from := time.Now()
			b.eventually(10*time.Second, "a keepalive", func() bool { return len(b.writes("/nodes/hv1/keepalive", from)) > 0 })
			if lines {
				for i := range 50 {
					log.Info(fmt.Sprintf("line %d", i))
				}
			}
			time.Sleep(400 * time.Millisecond) // at the same moment between two keepalives
			b.store.Stall()
			time.Sleep(3 * time.Second)
			b.store.Resume()
			time.Sleep(10 * time.Second)
			beats := b.writes("/nodes/hv1/keepalive", from)
			for i := 1; i < len(beats); i++ {
				gap = max(gap, beats[i].Sub(beats[i-1]))
			}
			if lines {
				b.eventually(30*time.Second, "the lines are there", func() bool { return inOrder(b.numbered(), 0, 50) })
			}
		})
		return gap
	}
	without, with := worst(false), worst(true)
	if with > without+100*time.Millisecond {
		t.Errorf("the keepalive was away for %v with a log, %v without", with, without)
	}
}

// Another daemon of the name writes there, too: neither's lines are lost.
func TestNodeLogBesideAnotherWriter(t *testing.T) {
	t.Parallel()
	loggingBubble(t, func(b *bubble, log *zap.Logger) {
		for i := range 5 {
			log.Info(fmt.Sprintf("line %d", 2*i))
			b.eventually(30*time.Second, "it is there", func() bool { all := b.numbered(); return len(all) == 2*i+1 })
			b.store.Set(messagesPath, []byte(b.read(messagesPath)+fmt.Sprintf("\nother's line %d", 2*i+1)))
		}
		if !inOrder(b.numbered(), 0, 10) {
			b.t.Errorf("%v", b.numbered())
		}
	})
}

// A record that is gone is that of a node that is being removed: it is not made
// anew. Once it is there again the log goes on.
func TestNodeLogIsNotMadeAnew(t *testing.T) {
	t.Parallel()
	loggingBubble(t, func(b *bubble, log *zap.Logger) {
		b.store.Delete(messagesPath)
		from := time.Now()
		log.Info("line 1")
		time.Sleep(time.Minute)
		if _, there := b.store.Get(messagesPath); there {
			b.t.Error("it was made anew")
		}
		b.steady(from, 1100*time.Millisecond)
		b.store.Set(messagesPath, nil)
		b.eventually(40*time.Second, "the line is there", func() bool { return inOrder(b.numbered(), 1, 2) })
	})
}

// The last lines of a daemon that ends are there, before its last word; those of
// the daemon before it are kept.
func TestNodeLogOverARestart(t *testing.T) {
	t.Parallel()
	loggingBubble(t, func(b *bubble, log *zap.Logger) {
		log.Info("line 1")
		log.Info("line 2")
		b.nodes["hv1"].stop()
		<-b.nodes["hv1"].done
		if text := b.read(messagesPath); !inOrder(b.numbered(), 1, 3) || !strings.Contains(text, "shutting down") {
			b.t.Errorf("%s", text)
		}
		var last string
		for _, h := range b.store.History() {
			if h.Client == "hv1" && h.Op == "set" {
				last = h.Path
			}
		}
		if last == messagesPath {
			b.t.Error("the log was written after the last keepalive")
		}
		b.start("hv1")
		b.eventually(time.Minute, "both starts are in the log", func() bool { return strings.Count(b.read(messagesPath), "registered") == 2 })
	})
}

// Whoever logs never waits, and what is kept is bounded.
func TestNodeLogIsBounded(t *testing.T) {
	l := agent.NewNodeLog()
	level := zap.NewAtomicLevelAt(zapcore.WarnLevel)
	log := zap.New(l.Core(level)).With(zap.String("k", "v"))
	log.Info("below the level in force")
	log.Warn("two\nlines \x1b[31m\xff", zap.Error(fmt.Errorf("a\nb")), zap.Stack("stack"))
	lines := l.Waiting()
	if len(lines) != 1 || strings.ContainsAny(lines[0], "\n\r\x1b") || !strings.Contains(lines[0], `two | lines [31m?`) || !strings.Contains(lines[0], `"k": "v"`) {
		t.Errorf("%q", lines)
	}
	level.SetLevel(zapcore.DebugLevel)
	log.Info(strings.Repeat("ä", 1<<20))
	for range 100_000 {
		log.Info("again")
	}
	total := 0
	for _, line := range l.Waiting() {
		total += len(line) + 1
	}
	if total > 66<<10 || !strings.Contains(l.Waiting()[0], "earlier lines are left out") {
		t.Errorf("%d bytes wait, the first %q", total, l.Waiting()[0])
	}
}

// While the role is on its way nobody's log is written: the servers' disks belong
// to the hand-over.
func TestNodeLogWaitsForAHandOver(t *testing.T) {
	logs := map[cluster.NodeID]*zap.Logger{}
	o := nodesCalled("hv1", "hv2", "hv3")
	o.services = []cluster.ServiceSpec{{Name: "dns", StartTimeout: 10 * time.Second, StopTimeout: 10 * time.Second}}
	o.tune = func(c *agent.Config, d *agent.Deps) {
		d.NodeLog = agent.NewNodeLog()
		d.Texts = d.Store.(agent.Texts)
		logs[c.Node] = zap.New(d.NodeLog.Core(zapcore.InfoLevel))
	}
	inBubble(t, o, func(b *bubble) {
		b.elect("hv1")
		b.guard("hv1").stopTime = 9 * time.Second
		stop := make(chan struct{})
		defer close(stop)
		go func() { // all have something to tell all the time
			for tick := time.NewTicker(100 * time.Millisecond); ; {
				select {
				case <-tick.C:
					for _, log := range logs {
						log.Info("a line")
					}
				case <-stop:
					tick.Stop()
					return
				}
			}
		}()
		running := func() bool { return strings.Contains(b.read(transitionPath), `"state":"running"`) }
		b.wish("hv2")
		b.eventually(10*time.Second, "the hand-over runs", running)
		began := time.Now().Add(100 * time.Millisecond) // they have all seen it
		b.eventually(30*time.Second, "the hand-over is over", func() bool { return !running() })
		steps := b.writes(transitionPath, began)
		over := steps[len(steps)-1]
		for _, n := range o.names {
			for _, at := range b.writes("/logs/"+string(n)+"/messages", began) {
				if at.Before(over) {
					b.t.Errorf("%s wrote its log in the middle of a hand-over", n)
				}
			}
		}
		b.eventually(time.Minute, "the logs are written after it", func() bool {
			return len(b.writes("/logs/hv1/messages", over)) > 0 && len(b.writes("/logs/hv2/messages", over)) > 0
		})
	})
}
