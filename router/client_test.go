package router

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
)

func TestErrorsKeepTheirSentinelOverTheSocket(t *testing.T) {
	for _, s := range []error{cluster.ErrDeadline, cluster.ErrStaleEpoch, cluster.ErrRefused, cluster.ErrConflict, cluster.ErrNotFound} {
		err := FromWire(ToWire(fmt.Errorf("present: %w", s)))
		if !errors.Is(err, s) || !strings.HasPrefix(err.Error(), "present: ") {
			t.Errorf("%v arrived as %v", s, err)
		}
	}
	if err := FromWire(ToWire(errors.New("odd"))); err == nil || err.Error() != "odd" {
		t.Errorf("an error without a sentinel arrived as %v", err)
	}
	if FromWire(nil) != nil || ToWire(nil) != nil {
		t.Error("no error became one")
	}
}

func TestMessagesSurviveTheSocketAndLongLinesAreRefused(t *testing.T) {
	var buf bytes.Buffer
	for _, size := range []int{1, 70 << 10, 1 << 20} {
		raw, err := EncodeMessage(Message{ID: 7, Result: []byte(`"` + strings.Repeat("x", size) + `"`)})
		if err != nil {
			t.Fatal(err)
		}
		buf.Write(raw)
	}
	r := NewReader(&buf)
	for _, size := range []int{1, 70 << 10, 1 << 20} {
		if m, err := ReadMessage(r); err != nil || len(m.Result) != size+2 || m.ID != 7 {
			t.Errorf("size %d: %d bytes, %v", size, len(m.Result), err)
		}
	}
	_, err := ReadMessage(NewReader(strings.NewReader(strings.Repeat("x", MaxLine+1) + "\n")))
	if !errors.Is(err, cluster.ErrTooLarge) {
		t.Errorf("a line without end: %v", err)
	}
}

// fakeGuard accepts one connection after the other and serves each by serve.
func fakeGuard(t *testing.T, path string, serve func(conn net.Conn, r *bufio.Reader)) (stop func()) {
	t.Helper()
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { defer conn.Close(); serve(conn, NewReader(conn)) }()
		}
	}()
	return func() { ln.Close() }
}

func say(conn net.Conn, m Message) {
	raw, _ := EncodeMessage(m)
	_, _ = conn.Write(raw)
}

func newTestClient(t *testing.T) (*Client, string) {
	path := filepath.Join(t.TempDir(), "g.sock")
	c := NewClient(path, zap.NewNop())
	t.Cleanup(c.Close)
	return c, path
}

// soon is patience, and no claim: a loaded machine takes its time.
func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestWithoutAGuardACallFailsAtOnceAndSaysWhatToDo(t *testing.T) {
	c, _ := newTestClient(t)
	began := time.Now()
	err := c.Withdraw(context.Background(), 1)
	if err == nil || !strings.Contains(err.Error(), "pvc-guard") || time.Since(began) > 5*time.Second {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
}

func TestAStoppedGuardIsBoundedByTheContext(t *testing.T) {
	c, path := newTestClient(t)
	defer fakeGuard(t, path, func(conn net.Conn, r *bufio.Reader) { _, _ = r.ReadByte(); select {} })()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	began := time.Now()
	_, err := c.State(ctx)
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 10*time.Second {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
}

func TestAnswersOutOfOrderEventsAndReconnection(t *testing.T) {
	c, path := newTestClient(t)
	serve := func(conn net.Conn, r *bufio.Reader) {
		say(conn, Message{Hello: &Hello{Version: ProtocolVersion}})
		var slow Message
		for {
			m, err := ReadMessage(r)
			if err != nil {
				return
			}
			switch m.Method {
			case MethodStopService:
				slow = m
			case MethodExtend:
				say(conn, Message{Event: &cluster.GuardEvent{Kind: "fault", Text: "x"}})
				say(conn, Message{ID: m.ID, Error: ToWire(cluster.ErrDeadline)})
				say(conn, Message{ID: slow.ID})
			case MethodWithdraw:
				return // the connection ends without an answer
			}
		}
	}
	stop := fakeGuard(t, path, serve)
	stopped := make(chan error, 1)
	ctx := soon(t)
	if err := c.connectForTest(ctx); err != nil {
		t.Fatal(err)
	}
	go func() { stopped <- c.StopService(ctx, may(1), cluster.OwnerPrimary, 1, "x") }()
	for len(c.current().pending()) == 0 {
		<-time.After(time.Millisecond)
	}
	if err := c.Extend(ctx, may(0), cluster.RoleDeadline{}); !errors.Is(err, cluster.ErrDeadline) {
		t.Errorf("Extend behind a slow StopService: %v", err)
	}
	if err := <-stopped; err != nil {
		t.Errorf("StopService: %v", err)
	}
	if e := <-c.Events(); e.Kind != "fault" {
		t.Errorf("event %+v", e)
	}
	if err := c.Withdraw(soon(t), 1); err == nil || !strings.Contains(err.Error(), "may or may not") {
		t.Errorf("a lost answer: %v", err)
	}
	stop()
	if err := c.Withdraw(soon(t), 1); err == nil {
		t.Error("no error without a guard")
	}
	defer fakeGuard(t, path, serve)()
	if err := c.Extend(soon(t), may(0), cluster.RoleDeadline{}); !errors.Is(err, cluster.ErrDeadline) {
		t.Errorf("after the guard's restart: %v", err)
	}
}

func TestAnotherProtocolVersionIsRefused(t *testing.T) {
	c, path := newTestClient(t)
	defer fakeGuard(t, path, func(conn net.Conn, r *bufio.Reader) {
		say(conn, Message{Hello: &Hello{Version: ProtocolVersion + 1}})
		_, _ = ReadMessage(r)
	})()
	if err := c.Withdraw(soon(t), 1); !errors.Is(err, cluster.ErrRefused) || !strings.Contains(err.Error(), "restart pvc-guard") {
		t.Errorf("%v", err)
	}
}

// What is too large to be sent was begun by nobody, and is so each time: the
// caller must not go on as if the guard had been lost in it (I7).
func TestARequestTooLargeToSendIsRefused(t *testing.T) {
	c, path := newTestClient(t)
	defer fakeGuard(t, path, func(conn net.Conn, r *bufio.Reader) {
		say(conn, Message{Hello: &Hello{Version: ProtocolVersion}})
		_, _ = ReadMessage(r)
	})()
	_, err := c.Run(soon(t), may(0), cluster.RunRequest{Stdin: make([]byte, MaxLine)})
	if !errors.Is(err, cluster.ErrRefused) || !errors.Is(err, cluster.ErrTooLarge) {
		t.Errorf("%v", err)
	}
	if c.current() == nil {
		t.Error("the connection was given up")
	}
}

func (c *Client) connectForTest(ctx context.Context) error { _, err := c.connect(ctx); return err }

func (l *link) pending() []uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	var ids []uint64
	for id := range l.waiting {
		ids = append(ids, id)
	}
	return ids
}

// A call that gives up while it waits for its turn to write is never sent, so
// that a late Begin cannot follow the End for which it was called off.
func TestACallThatGaveUpIsNotSentLater(t *testing.T) {
	c, path := newTestClient(t)
	got := make(chan Method, 4)
	defer fakeGuard(t, path, func(conn net.Conn, r *bufio.Reader) {
		say(conn, Message{Hello: &Hello{Version: ProtocolVersion}})
		for {
			m, err := ReadMessage(r)
			if err != nil {
				return
			}
			got <- m.Method
			say(conn, Message{ID: m.ID})
		}
	})()
	if _, err := c.State(soon(t)); err != nil {
		t.Fatal(err)
	}
	<-got
	l := c.current()
	l.writing.Lock() // another call is writing
	ctx, cancel := context.WithCancelCause(soon(t))
	ended := make(chan error, 1)
	go func() { ended <- c.Begin(ctx, may(1), cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: 1}) }()
	why := errors.New("the role has ended")
	cancel(why)
	l.writing.Unlock()
	if err := <-ended; !errors.Is(err, why) {
		t.Errorf("a call that gave up: %v", err)
	}
	if err := c.End(soon(t), cluster.OwnerPrimary, 1); err != nil {
		t.Fatal(err)
	}
	if m := <-got; m != MethodEnd {
		t.Errorf("the guard was sent %s after its caller had given up", m)
	}
}

// may is the right to what is asked of the guard at that epoch.
func may(e cluster.Epoch) cluster.Token { return mayWhile(e, func() error { return nil }) }

func mayWhile(e cluster.Epoch, live func() error) cluster.Token {
	return cluster.MintToken(cluster.NewTokenWire(cluster.NodeLeaseID{Epoch: e}, "", "", false), live)
}

// What gives something is not sent once its token is dead, though that died while
// the call waited for its turn to write; what takes away needs none.
func TestNothingIsOrderedByADeadToken(t *testing.T) {
	c, path := newTestClient(t)
	got := make(chan Method, 16)
	defer fakeGuard(t, path, func(conn net.Conn, r *bufio.Reader) {
		say(conn, Message{Hello: &Hello{Version: ProtocolVersion}})
		for {
			m, err := ReadMessage(r)
			if err != nil {
				return
			}
			got <- m.Method
			say(conn, Message{ID: m.ID})
		}
	})()
	if err := c.connectForTest(soon(t)); err != nil {
		t.Fatal(err)
	}
	over := errors.New("the role has ended")
	role := cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: 7}
	orders := map[string]func(cluster.Token) error{
		"begin":   func(k cluster.Token) error { return c.Begin(soon(t), k, role) },
		"extend":  func(k cluster.Token) error { return c.Extend(soon(t), k, role) },
		"present": func(k cluster.Token) error { return c.Present(soon(t), k, 7, nil) },
		"start": func(k cluster.Token) error {
			return c.StartService(soon(t), k, cluster.OwnerPrimary, 7, cluster.ServiceSpec{})
		},
		"stop": func(k cluster.Token) error { return c.StopService(soon(t), k, cluster.OwnerPrimary, 7, "x") },
		"run": func(k cluster.Token) error {
			_, err := c.Run(soon(t), k, cluster.RunRequest{Owner: cluster.OwnerPrimary, Epoch: 7})
			return err
		},
	}
	l := c.current()
	for name, order := range orders {
		if err := order(cluster.Token{}); !errors.Is(err, cluster.ErrNoToken) {
			t.Errorf("%s without a token: %v", name, err)
		}
		if err := order(may(6)); !errors.Is(err, cluster.ErrNoToken) {
			t.Errorf("%s by a token of another epoch: %v", name, err)
		}
		var dead atomic.Bool
		l.writing.Lock() // another call is writing
		ended := make(chan error, 1)
		asked := make(chan struct{}, 16)
		go func() {
			ended <- order(mayWhile(7, func() error {
				asked <- struct{}{}
				if dead.Load() {
					return over
				}
				return nil
			}))
		}()
		for len(l.pending()) == 0 {
			<-time.After(time.Millisecond)
		}
		dead.Store(true)
		l.writing.Unlock()
		if err := <-ended; !errors.Is(err, over) || !errors.Is(err, cluster.ErrNoToken) || len(asked) != 1 {
			t.Errorf("%s by a token that has died meanwhile: %v, asked %d times", name, err, len(asked))
		}
		if err := order(may(7)); err != nil {
			t.Errorf("%s by a live one: %v", name, err)
		}
	}
	if err := errors.Join(c.Withdraw(soon(t), 7), c.End(soon(t), cluster.OwnerPrimary, 7), c.Relinquish(soon(t))); err != nil {
		t.Errorf("what takes away: %v", err)
	}
	if len(got) != len(orders)+3 {
		t.Errorf("the guard was asked %d times, want %d", len(got), len(orders)+3)
	}
}
