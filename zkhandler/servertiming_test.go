package zkhandler

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"pvc.internal/zkhandler/zkreal"
)

func TestTheServersIntervalsAgainstTheSession(t *testing.T) {
	for _, c := range []struct {
		tick    time.Duration
		limit   int
		session time.Duration
		slow    bool
		cure    string
	}{
		{500 * time.Millisecond, 4, 6 * time.Second, false, ""},
		{200 * time.Millisecond, 4, 6 * time.Second, false, ""},
		{2 * time.Second, 5, 6 * time.Second, true, "raise session_timeout in this daemon's settings above 15s"},
		{time.Second, 5, 6 * time.Second, true, "syncLimit to at most 3,"},
		{time.Second, 4, 6 * time.Second, true, "syncLimit to at most 3,"}, // exactly two thirds
		{999 * time.Millisecond, 4, 6 * time.Second, false, ""},
		{2 * time.Second, 2, 6 * time.Second, true, "shorter tickTime"},
		{time.Second, 0, 6 * time.Second, false, ""}, // a server that stands alone
		{maxTickTime, maxSyncLimit, time.Minute, true, "shorter tickTime"},
	} {
		s := serverTiming{tick: c.tick, limit: c.limit}
		if got := s.tooSlow(c.session); got != c.slow {
			t.Errorf("tick %s, limit %d, session %s: too slow %v", c.tick, c.limit, c.session, got)
		} else if got && !strings.Contains(s.cure(c.session), c.cure) {
			t.Errorf("cure of %+v at %s: %s", s, c.session, s.cure(c.session))
		}
	}
}

func TestWhatConfAnswers(t *testing.T) {
	for answer, want := range map[string]serverTiming{
		"clientPort=2181\ntickTime=500\ninitLimit=10\nsyncLimit=4\nmembership: \nserver.1=a:2888:3888:participant\n": {500 * time.Millisecond, 4},
		"tickTime=2000\r\nsyncLimit=5\r\n": {2 * time.Second, 5},
		"tickTime=2000\n":                  {2 * time.Second, 0},
		"tickTime=500\nsyncLimit=4":        {500 * time.Millisecond, 0}, // cut: perhaps 40
	} {
		if got, err := parseTiming(answer); err != nil || got != want {
			t.Errorf("%q: %+v, %v", answer, got, err)
		}
	}
	if _, err := parseTiming("conf is not executed because it is not in the whitelist.\n"); !errors.Is(err, errConfRefused) {
		t.Errorf("not in the whitelist: %v", err)
	}
	for _, answer := range []string{"", "This ZooKeeper instance is not currently serving requests\n", "SSH-2.0-x\r\n",
		"tickTime=0\n", "tickTime=-5\n", "tickTime=9223372036854775807\n", "tickTime=500\nsyncLimit=x\n", "tickTime=500\nsyncLimit=99999999\n",
		strings.Repeat("tickTime", 4096)} {
		if got, err := parseTiming(answer); err == nil || len(err.Error()) > 200 {
			t.Errorf("%.40q: %+v, %v", answer, got, err)
		}
	}
}

// observed is a handler that checks its servers, and what it says above debug.
func observed(t *testing.T, c Config) (*Handler, *observer.ObservedLogs, func()) {
	t.Helper()
	core, logs := observer.New(zapcore.InfoLevel)
	c.CheckServers = true
	h, err := New(c, bootClock{}, zap.New(core), nil)
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		must(t, <-done)
	})
	t.Cleanup(stop)
	return h, logs, stop
}

// said counts the lines that speak of the servers' intervals.
func said(logs *observer.ObservedLogs) (warnings, infos []observer.LoggedEntry) {
	for _, e := range logs.All() {
		switch {
		case !strings.Contains(e.Message, "syncLimit"):
		case e.Level == zapcore.WarnLevel:
			warnings = append(warnings, e)
		default:
			infos = append(infos, e)
		}
	}
	return warnings, infos
}

// countingDial counts the exchanges begun on its connections.
type countingDial struct{ confs atomic.Int32 }

func (d *countingDial) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, addr)
	return &countingConn{Conn: conn, to: d}, err
}

type countingConn struct {
	net.Conn
	to *countingDial
}

// Write counts the commands; a session never writes one.
func (c *countingConn) Write(p []byte) (int, error) {
	if string(p) == "conf" {
		c.to.confs.Add(1)
	}
	return c.Conn.Write(p)
}

func TestServersThatAreTooSlowForTheSessionAreToldOnce(t *testing.T) {
	e := zkreal.StartWith(t, 3, zkreal.Options{SyncLimit: 15})
	c := fresh(t, e, 4*time.Second) // 15 × 200 ms = 3 s, two thirds of the session are 2.67 s
	counted := &countingDial{}
	c.Dial = counted.dial
	h, logs, stop := observed(t, c)
	first := awaitPhase(t, h, Live).Server
	eventually(t, "a warning", func() bool { w, _ := said(logs); return len(w) == 1 })
	warnings, _ := said(logs)
	fields := warnings[0].ContextMap()
	if fields["sync_limit_x_tick_time"] != 3*time.Second || fields["session_timeout"] != 4*time.Second || fields["server"] != first ||
		!strings.Contains(fields["cure"].(string), "syncLimit to at most 13,") || !strings.Contains(fields["cure"].(string), "above 4.5s") {
		t.Errorf("the warning says %v", fields)
	}
	for i, s := range e.Servers() {
		if s == first {
			e.Kill(i)
		}
	}
	eventually(t, "another server is asked", func() bool {
		s := h.State()
		return s.Phase == Live && s.Server != first && counted.confs.Load() >= 2
	})
	stop() // waits for the exchange under way
	if w, i := said(logs); len(w) != 1 || len(i) != 0 {
		t.Errorf("warned %d times, %d other lines: the same numbers are told once", len(w), len(i))
	}
}

func TestEachOfTheServersMistakesIsToldOnce(t *testing.T) {
	core, logs := observer.New(zapcore.InfoLevel)
	i := newInspector(&Handler{log: zap.New(core)})
	slow := serverTiming{tick: 2 * time.Second, limit: 5}
	for range 3 {
		for _, server := range []string{"a:2181", "b:2181"} {
			state := SessionState{Server: server, Granted: 6 * time.Second}
			i.judge(state, slow, nil)
			i.judge(state, serverTiming{}, errConfRefused)
			i.judge(state, serverTiming{}, io.ErrUnexpectedEOF)
			i.judge(state, serverTiming{tick: 500 * time.Millisecond, limit: 4}, nil)
		}
	}
	if warnings, infos := said(logs); len(warnings) != 1 || len(infos) != 2 {
		t.Errorf("%d warnings, %d infos", len(warnings), len(infos))
	}
	i.judge(SessionState{Server: "a:2181", Granted: 10 * time.Second}, slow, nil)
	if warnings, _ := said(logs); len(warnings) != 2 {
		t.Error("another pair of numbers was not told")
	}
}

func TestServersThatFitAreNotSpokenOf(t *testing.T) {
	e := zkreal.StartWith(t, 3, zkreal.Options{SyncLimit: 13}) // 2.6 s
	timing, err := fresh(t, e, 4*time.Second).readTiming(bound(t), e.Servers()[0])
	if err != nil || timing != (serverTiming{200 * time.Millisecond, 13}) {
		t.Fatalf("read %+v, %v", timing, err)
	}
	if timing.tooSlow(4 * time.Second) {
		t.Fatal("2.6 s against 4 s")
	}
}

func TestAServerThatDoesNotTellIsMentionedOnce(t *testing.T) {
	e := zkreal.StartWith(t, 1, zkreal.Options{Extra: []string{"4lw.commands.whitelist=srvr"}})
	c := fresh(t, e, 4*time.Second)
	counted := &countingDial{}
	c.Dial = counted.dial
	h, logs, stop := observed(t, c)
	awaitPhase(t, h, Live)
	eventually(t, "the info", func() bool { _, i := said(logs); return len(i) == 1 })
	e.Kill(0)
	awaitPhase(t, h, Suspended)
	e.Start(0)
	eventually(t, "asked again", func() bool { return counted.confs.Load() >= 2 })
	stop()
	w, i := said(logs)
	if len(w) != 0 || len(i) != 1 || !strings.Contains(i[0].Message, "4lw.commands.whitelist") {
		t.Errorf("warnings %v, infos %v", w, i)
	}
}

func TestServerIntervalsOverTLS(t *testing.T) {
	a := newAuthority(t)
	a.issue("server", "127.0.0.1")
	a.issue("client")
	e := zkreal.StartWith(t, 1, zkreal.Options{TLS: a.stores("server"), JVM: []string{"-Dzookeeper.ssl.hostnameVerification=false"}})
	c := Config{SessionTimeout: 6 * time.Second, TLS: &TLSFiles{CA: a.file("ca.pem"), Cert: a.file("client.pem"), Key: a.file("client.key")}}
	// Its first handshakes may take longer than the exchange has.
	eventually(t, "the intervals over TLS", func() bool {
		timing, err := c.readTiming(bound(t), e.SecureServers()[0])
		return err == nil && timing.tick == 200*time.Millisecond
	})
}

// spoilt passes sessions on to a real server and answers conf as it likes.
func spoilt(t *testing.T, server string, answer func(conn net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	var served sync.WaitGroup
	t.Cleanup(func() { l.Close(); served.Wait() })
	served.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			served.Go(func() {
				defer conn.Close()
				head := make([]byte, 4)
				if _, err := io.ReadFull(conn, head); err != nil {
					return
				}
				if string(head) == "conf" {
					answer(conn)
					return
				}
				up, err := net.Dial("tcp", server)
				if err != nil {
					return
				}
				defer up.Close()
				served.Go(func() { io.Copy(conn, up); conn.Close() })
				io.Copy(up, io.MultiReader(bytes.NewReader(head), conn))
			})
		}
	})
	return l.Addr().String()
}

// A server that hangs, drips, floods or lies in its answer costs one exchange
// of its own: requests go on meanwhile, and Run ends at once.
func TestASpoiltAnswerHarmsNothing(t *testing.T) {
	e := zkreal.Start(t, 1)
	hang := func(conn net.Conn) { io.Copy(io.Discard, conn) }
	for name, c := range map[string]struct {
		answer func(net.Conn)
		says   string
	}{
		"hangs": {hang, "no whole answer"},
		"drips": {func(conn net.Conn) {
			for ticker := time.NewTicker(20 * time.Millisecond); ; <-ticker.C {
				if _, err := conn.Write([]byte("tickTime=9\n")); err != nil {
					return
				}
			}
		}, "no whole answer"},
		"rubbish":    {func(conn net.Conn) { conn.Write([]byte("\x00\xff\n==\nHTTP/1.1 400\r\n\r\n")) }, "no tickTime"},
		"a megabyte": {func(conn net.Conn) { conn.Write(bytes.Repeat([]byte("tickTime=2000\nsyncLimit=500\n"), 1<<20/28)) }, "longer than"},
		"closes":     {func(net.Conn) {}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			config := Config{Servers: []string{spoilt(t, e.Servers()[0], c.answer)}, SessionTimeout: 4 * time.Second}
			began := time.Now()
			if timing, err := config.readTiming(bound(t), config.Servers[0]); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("read %+v, %v", timing, err)
			}
			if took := time.Since(began); took > confTimeout+time.Second { // a busy machine's second
				t.Errorf("took %s", took)
			}
			h, logs, stop := observed(t, config)
			session := awaitPhase(t, h, Live).Session
			_, _, err := h.CheckTree(bound(t))
			must(t, err)
			eventually(t, "it is said", func() bool { _, i := said(logs); return len(i) == 1 })
			if s := h.State(); s.Phase != Live || s.Session != session {
				t.Errorf("the session suffered: %+v", s)
			}
			if w, _ := said(logs); len(w) != 0 {
				t.Errorf("warned of numbers that nobody vouches for: %v", w)
			}
			stop()
		})
	}
	t.Run("ends while it hangs", func(t *testing.T) {
		asked := make(chan struct{}, 1)
		config := Config{Servers: []string{spoilt(t, e.Servers()[0], func(conn net.Conn) { notify(asked); hang(conn) })}, SessionTimeout: 4 * time.Second}
		_, logs, stop := observed(t, config)
		<-asked
		stop()
		if _, i := said(logs); len(i) != 0 {
			t.Errorf("said at the end: %v", i)
		}
	})
}
