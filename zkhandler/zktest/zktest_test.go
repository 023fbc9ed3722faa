package zktest

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const tick = 500 * time.Millisecond

// bubble runs the test on virtual time with an ensemble that must end cleanly.
func bubble(t *testing.T, run func(t *testing.T, s *Server)) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Options{TickTime: tick})
		t.Cleanup(s.Close)
		run(t, s)
	})
}

// wire is a client that does one thing at a time.
type wire struct {
	t *testing.T
	Raw
	Handshake
	xid int32
}

func (s *Server) wire(t *testing.T, client, addr string, h Handshake) *wire {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	c, err := s.Dialer(client)(ctx, "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	w := &wire{t: t, Raw: Raw{c}}
	w.patience(time.Minute)
	if w.Handshake, err = w.Connect(h, 0); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *wire) patience(d time.Duration) { w.Conn.SetDeadline(time.Now().Add(d)) }

func (w *wire) send(code int32, body func(e *encoder)) {
	w.t.Helper()
	w.xid++
	e := &encoder{}
	e.int32(w.xid)
	e.int32(code)
	body(e)
	if _, err := w.Conn.Write(e.frame()); err != nil {
		w.t.Fatal(err)
	}
}

func (w *wire) create(path string, flags int32) {
	w.send(codeCreate, func(e *encoder) {
		e.string(path)
		e.bytes(nil)
		e.acl(OpenACL())
		e.int32(flags)
	})
}

func (w *wire) set(path, data string) {
	w.send(codeSetData, func(e *encoder) {
		e.string(path)
		e.bytes([]byte(data))
		e.int32(-1)
	})
}

func (w *wire) get(path string, watch bool) {
	w.send(codeGetData, func(e *encoder) {
		e.string(path)
		e.bool(watch)
	})
}

// ok reads one reply, which must be without an error.
func (w *wire) ok() Reply {
	w.t.Helper()
	r, err := w.Next()
	if err != nil || r.Code != 0 {
		w.t.Fatalf("reply %+v, %v", r, err)
	}
	return r
}

// silent asserts that nothing arrives for so long.
func (w *wire) silent(d time.Duration) {
	w.t.Helper()
	w.patience(d)
	if r, err := w.Next(); !errors.Is(err, os.ErrDeadlineExceeded) {
		w.t.Fatalf("reply %+v, %v; want silence for %s", r, err, d)
	}
	w.patience(time.Minute)
}

// ended asserts that the servers have closed the connection.
func (w *wire) ended() {
	w.t.Helper()
	if r, err := w.Next(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		w.t.Fatalf("reply %+v, %v; want the connection closed", r, err)
	}
}

func TestPartitionHoldsBothWaysUntilHealed(t *testing.T) {
	bubble(t, func(t *testing.T, s *Server) {
		s.Set("/x", []byte("0"))
		a := s.wire(t, "a", s.Servers()[0], Handshake{Timeout: 10 * time.Second})
		s.Partition("a")
		a.set("/x", "1")
		a.silent(2 * time.Second)
		if data, _ := s.Get("/x"); string(data) != "0" {
			t.Fatalf("a write crossed the partition: %q", data)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := s.Dialer("a")(ctx, "tcp", s.Servers()[1]); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("dial in the partition: %v", err)
		}
		s.Heal("a")
		a.ok()
		if data, _ := s.Get("/x"); string(data) != "1" {
			t.Fatalf("what was sent did not arrive after the heal: %q", data)
		}
	})
}

func TestOneWayLosesOnlyReplies(t *testing.T) {
	bubble(t, func(t *testing.T, s *Server) {
		s.Set("/x", []byte("0"))
		a := s.wire(t, "a", s.Servers()[0], Handshake{Timeout: 10 * time.Second})
		s.OneWay("a", ToClient)
		a.set("/x", "1")
		a.silent(time.Second)
		if data, _ := s.Get("/x"); string(data) != "1" {
			t.Fatalf("the request did not arrive: %q", data)
		}
		s.Heal("a")
		a.ok()
		s.OneWay("a", ToServer)
		s.Set("/x", []byte("2"))
		a.set("/x", "3")
		a.silent(time.Second)
		if data, _ := s.Get("/x"); string(data) != "2" {
			t.Fatalf("the request arrived: %q", data)
		}
	})
}

func TestDelayIsPaidEachWay(t *testing.T) {
	bubble(t, func(t *testing.T, s *Server) {
		s.Set("/x", nil)
		a := s.wire(t, "a", s.Servers()[0], Handshake{Timeout: 10 * time.Second})
		s.Delay("a", 100*time.Millisecond)
		from := time.Now()
		a.get("/x", false)
		a.ok()
		if took := time.Since(from); took != 200*time.Millisecond {
			t.Fatalf("a round trip took %s, want 200ms", took)
		}
	})
}

func TestSessionOfAPartitionedClientExpiresOnATick(t *testing.T) {
	bubble(t, func(t *testing.T, s *Server) {
		time.Sleep(200 * time.Millisecond)
		a := s.wire(t, "a", s.Servers()[0], Handshake{Timeout: 3 * time.Second})
		a.create("/e", 1)
		a.ok()
		s.Partition("a")
		time.Sleep(3 * time.Second)
		if _, ok := s.Get("/e"); !ok {
			t.Fatal("expired before its timeout")
		}
		time.Sleep(tick)
		if _, ok := s.Get("/e"); ok {
			t.Fatal("not expired a tick after its timeout")
		}
		s.Heal("a")
		b := s.wire(t, "a", s.Servers()[0], a.Handshake)
		if b.Session != 0 {
			t.Fatalf("re-attached to the dead session as %x", b.Session)
		}
	})
}

func TestDropKeepsTheSession(t *testing.T) {
	bubble(t, func(t *testing.T, s *Server) {
		a := s.wire(t, "a", s.Servers()[0], Handshake{Timeout: 3 * time.Second})
		a.create("/e", 1)
		a.ok()
		s.Drop("a")
		a.ended()
		b := s.wire(t, "a", s.Servers()[1], a.Handshake)
		if b.Session != a.Session {
			t.Fatalf("session %x, want %x", b.Session, a.Session)
		}
		if _, ok := s.Get("/e"); !ok {
			t.Fatal("the ephemeral is gone")
		}
		s.Expire("a")
		b.ended()
		if _, ok := s.Get("/e"); ok {
			t.Fatal("the ephemeral survived its session")
		}
	})
}

func TestLostRequestLostReplyAndLateCommit(t *testing.T) {
	bubble(t, func(t *testing.T, s *Server) {
		s.Set("/x", []byte("0"))
		value := func() string { data, _ := s.Get("/x"); return string(data) }
		h := Handshake{Timeout: 10 * time.Second}

		rule := s.DropRequest("a", Does("set", "/x"))
		a := s.wire(t, "a", s.Servers()[0], h)
		a.set("/x", "1")
		a.ended()
		if value() != "0" || rule.Hits() != 1 {
			t.Fatalf("dropped request: value %s, hits %d", value(), rule.Hits())
		}

		s.DropReply("a", Does("set", "/x"))
		a = s.wire(t, "a", s.Servers()[0], h)
		a.set("/x", "2")
		a.ended()
		if value() != "2" {
			t.Fatalf("dropped reply: value %s", value())
		}

		s.LateCommit("a", Does("set", "/x"), time.Second)
		a = s.wire(t, "a", s.Servers()[0], h)
		a.set("/x", "3")
		a.ended()
		if value() != "2" {
			t.Fatalf("late commit came early: %s", value())
		}
		time.Sleep(time.Second + time.Millisecond)
		if value() != "3" {
			t.Fatalf("late commit never came: %s", value())
		}

		s.LateCommit("a", Does("set", "/x"), time.Second)
		a = s.wire(t, "a", s.Servers()[0], h)
		a.set("/x", "4")
		a.ended()
		s.wire(t, "a", s.Servers()[1], a.Handshake)
		time.Sleep(2 * time.Second)
		if value() != "3" {
			t.Fatalf("a request left at one server was carried out after the session moved to another: %s", value())
		}
	})
}

func TestStallHoldsWritesAndWhatIsBehindThem(t *testing.T) {
	bubble(t, func(t *testing.T, s *Server) {
		s.Set("/x", []byte("0"))
		a := s.wire(t, "a", s.Servers()[0], Handshake{Timeout: 3 * time.Second})
		b := s.wire(t, "b", s.Servers()[0], Handshake{Timeout: 3 * time.Second})
		s.Stall()
		b.get("/x", false)
		b.ok()
		a.set("/x", "1")
		a.get("/x", false)
		a.silent(20 * time.Second)
		b.get("/x", false)
		if r := b.ok(); !strings.Contains(string(r.Body), "0") {
			t.Fatalf("read %q in a stall", r.Body)
		}
		s.Resume()
		a.ok()
		if r := a.ok(); !strings.Contains(string(r.Body), "1") {
			t.Fatalf("read %q after the stall", r.Body)
		}
		if ids := s.Sessions("a"); len(ids) != 1 {
			t.Fatalf("sessions %x: one expired in a stall", ids)
		}
	})
}

func TestWriteOfAGoneConnectionIsCarriedOutAfterAStall(t *testing.T) {
	bubble(t, func(t *testing.T, s *Server) {
		s.Set("/x", []byte("0"))
		a := s.wire(t, "a", s.Servers()[0], Handshake{Timeout: 3 * time.Second})
		s.Stall()
		a.set("/x", "1")
		synctest.Wait()
		a.Conn.Close()
		time.Sleep(time.Second)
		s.Resume()
		if data, _ := s.Get("/x"); string(data) != "1" {
			t.Fatalf("value %q: what a server has taken may happen long after its client gave up", data)
		}
	})
}

func TestOutageRefusesAndKeepsSessions(t *testing.T) {
	bubble(t, func(t *testing.T, s *Server) {
		a := s.wire(t, "a", s.Servers()[0], Handshake{Timeout: 3 * time.Second})
		s.Outage()
		a.ended()
		if _, err := s.Dialer("a")(t.Context(), "tcp", s.Servers()[0]); err == nil {
			t.Fatal("dialled into an outage")
		}
		time.Sleep(time.Minute)
		s.Resume()
		if b := s.wire(t, "a", s.Servers()[2], a.Handshake); b.Session != a.Session {
			t.Fatalf("session %x, want %x kept over the outage", b.Session, a.Session)
		}
	})
}

func TestCutFollowerServesTheDead(t *testing.T) {
	bubble(t, func(t *testing.T, s *Server) {
		follower := s.Servers()[2]
		a := s.wire(t, "a", follower, Handshake{Timeout: time.Second})
		a.create("/e", 1)
		a.ok()
		s.CutFollower(follower)
		time.Sleep(1600 * time.Millisecond)
		if _, ok := s.Get("/e"); ok {
			t.Fatal("the leader still has the session")
		}
		a.get("/e", false)
		a.ok()
		a.send(codePing, func(*encoder) {})
		a.ok()
		a.set("/e", "1")
		a.silent(300 * time.Millisecond)
		a.ended() // after SyncLimit ticks
		if _, err := s.Dialer("a")(t.Context(), "tcp", follower); err == nil {
			t.Fatal("the cut follower takes connections")
		}
		s.ServerUp(follower)
		s.wire(t, "a", follower, Handshake{Timeout: time.Second})
	})
}

func TestLaggingFollowerServesThePastUntilASync(t *testing.T) {
	bubble(t, func(t *testing.T, s *Server) {
		s.Set("/x", []byte("0"))
		follower := s.Servers()[1]
		a := s.wire(t, "a", follower, Handshake{Timeout: 10 * time.Second})
		a.get("/x", true)
		a.ok()
		s.LagFollower(follower)
		s.Set("/x", []byte("1"))
		a.get("/x", false)
		if r := a.ok(); !strings.Contains(string(r.Body), "0") {
			t.Fatalf("read %q, want what the follower knows", r.Body)
		}
		a.send(codeSync, func(e *encoder) { e.string("/x") })
		if r := a.ok(); r.Xid != -1 {
			t.Fatalf("reply %+v, want the watch's event before the sync's reply", r)
		}
		a.ok()
		a.get("/x", false)
		if r := a.ok(); !strings.Contains(string(r.Body), "1") {
			t.Fatalf("read %q after a sync", r.Body)
		}
		s.Set("/x", []byte("2"))
		a.get("/x", false)
		if r := a.ok(); !strings.Contains(string(r.Body), "1") {
			t.Fatalf("read %q, want the follower behind again", r.Body)
		}
		b := s.wire(t, "b", s.Servers()[0], Handshake{Timeout: 10 * time.Second})
		b.get("/x", false)
		if r := b.ok(); !strings.Contains(string(r.Body), "2") {
			t.Fatalf("read %q at another server", r.Body)
		}
	})
}

func TestDownAndHungServers(t *testing.T) {
	bubble(t, func(t *testing.T, s *Server) {
		one, two := s.Servers()[0], s.Servers()[1]
		a := s.wire(t, "a", one, Handshake{Timeout: 3 * time.Second})
		s.ServerDown(one)
		a.ended()
		if _, err := s.Dialer("a")(t.Context(), "tcp", one); err == nil {
			t.Fatal("dialled a server that is down")
		}
		s.ServerHang(two)
		c, err := s.Dialer("a")(t.Context(), "tcp", two)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		w := &wire{t: t, Raw: Raw{c}}
		w.patience(5 * time.Second)
		if _, err := w.Connect(Handshake{Timeout: time.Second}, 0); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("a hung server answered: %v", err)
		}
		s.ServerUp(one)
		s.wire(t, "a", one, a.Handshake)
	})
}

func TestHistoryTellsWhoCommittedWhat(t *testing.T) {
	bubble(t, func(t *testing.T, s *Server) {
		a := s.wire(t, "a", s.Servers()[0], Handshake{Timeout: 3 * time.Second})
		a.create("/x", 0)
		a.ok()
		a.set("/x", "1")
		a.ok()
		a.create("/x", 0)
		if r, err := a.Next(); err != nil || r.Code != errNodeExists {
			t.Fatalf("%+v %v", r, err)
		}
		a.send(codeClose, func(*encoder) {})
		a.ok()
		a.ended()
		var got []string
		last := int64(0)
		for _, h := range s.History() {
			if h.Zxid <= last || h.Client != "a" || h.Session != a.Session {
				t.Errorf("entry %s after zxid %x", h, last)
			}
			last = h.Zxid
			got = append(got, h.Op+h.Path)
		}
		if want := "createSession create/x set/x closeSession"; strings.Join(got, " ") != want {
			t.Errorf("history %q, want %q", got, want)
		}
		if dump := s.Dump(); dump != "/x v1 \"1\"\n" {
			t.Errorf("dump %q", dump)
		}
	})
}

func TestFourLetterWords(t *testing.T) {
	bubble(t, func(t *testing.T, s *Server) {
		c, err := s.Dialer("a")(t.Context(), "tcp", s.Servers()[0])
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if text, err := (Raw{c}).Word("conf"); err != nil || !strings.Contains(text, "syncLimit=4\n") {
			t.Errorf("conf: %q %v", text, err)
		}
	})
}

// TestCloseEndsEverything would panic with leaked goroutines otherwise.
func TestCloseEndsEverything(t *testing.T) {
	bubble(t, func(t *testing.T, s *Server) {
		for _, name := range []string{"a", "b"} {
			s.wire(t, name, s.Servers()[0], Handshake{Timeout: 3 * time.Second}).create("/e"+name, 1)
		}
		s.Partition("a")
		s.LateCommit("b", func(OpInfo) bool { return true }, time.Hour)
		dialled := make(chan error)
		go func() {
			c, err := s.Dialer("a")(context.Background(), "tcp", s.Servers()[0])
			if err == nil {
				c.Close()
			}
			dialled <- err
		}()
		synctest.Wait()
		s.Close()
		var op *net.OpError
		if err := <-dialled; !errors.As(err, &op) {
			t.Errorf("dial into a closed ensemble: %v", err)
		}
	})
}
