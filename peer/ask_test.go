package peer_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
	"pvc.internal/peer"
	"pvc.internal/peer/peertest"
)

func TestAQuestionIsAnsweredToWhomTheCertificateNames(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		a, b := w.join("hv1"), w.join("hv2")
		defer leave(a, b)
		mustAsk(t, a, b, time.Second)
		mustAsk(t, b, a, time.Second)
		for range 10 {
			mustAsk(t, a, b, time.Second)
		}
		if n := w.net.Connections("hv1", "hv2"); n != 2 {
			t.Errorf("%d connections for one question at a time in each direction, not one each", n)
		}
	})
}

func TestAProbeTellsTheStoreLinkInDurations(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		a, b := w.join("hv1"), w.join("hv2")
		defer leave(a, b)
		for _, want := range []peer.StoreLink{
			{Live: true, Since: 90 * time.Second, Acknowledged: 42 * time.Millisecond},
			{Live: false, Since: 3 * time.Second, Acknowledged: 5 * time.Second},
			{Live: true, Since: time.Second, Acknowledged: -1},
		} {
			b.status.Store = want
			raw, err := a.client.Ask(t.Context(), "hv2", b.addr, peer.KindProbe, nil)
			if err != nil {
				t.Fatal(err)
			}
			got, err := peer.DecodeStatus(raw)
			if err != nil || got.Store != want || got.Incarnation != "boot.1" {
				t.Errorf("%s: %+v, %v; want %+v", raw, got, err, want)
			}
			if strings.Contains(string(raw), "2000-") {
				t.Errorf("%s holds a date", raw)
			}
		}
	})
}

func TestAnswersToProbesThatMakeNoSense(t *testing.T) {
	for _, raw := range []string{"", "[]", `{"v":1}`, `{"node":"hv1"}`, `{"v":1,"node":"hv1","store":{"since_ms":-1}}`,
		`{"v":1,"node":"hv1","store":{"since_ms":1,"acknowledged_ms":-1}}`,
		`{"v":1,"node":"hv1","store":{"since_ms":1763647000000}}`} { // a time of day
		if s, err := peer.DecodeStatus([]byte(raw)); err == nil {
			t.Errorf("%s was read as %+v", raw, s)
		}
	}
	if _, err := peer.DecodeStatus([]byte(`{"v":2,"node":"hv1","store":{},"new":[1]}`)); err != nil {
		t.Errorf("a newer answer: %v", err)
	}
}

// The server's own listener: a taken address is told by its key, and the end
// of the context ends it.
func TestRun(t *testing.T) {
	ca := peertest.NewAuthority(t, "demo", time.Now())
	id, err := peer.LoadIdentity(ca.Files(t, "hv1", time.Now()), "demo", "hv1", nil)
	if err != nil {
		t.Fatal(err)
	}
	run := func(ctx context.Context, listen string) error {
		return peer.NewServer(peer.ServerConfig{Listen: listen}, id, nil, zap.NewNop()).Run(ctx)
	}
	_, taken := loopback(t, ca, "hv2", peer.ServerConfig{})
	if err := run(t.Context(), taken); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), "peer.listen") {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := run(ctx, "127.0.0.1:0"); err != nil {
		t.Error(err)
	}
	if err := run(ctx, "127.0.0.1:0"); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err) // ctx had ended before it began
	}
}

func TestRefusalsAreTold(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		a, b := w.join("hv1"), w.join("hv2")
		defer leave(a, b)
		b.server.Handle("no", func(context.Context, cluster.NodeID, []byte) ([]byte, error) {
			return nil, fmt.Errorf("%w: epoch 7 is old", cluster.ErrRefused)
		})
		b.server.Handle("panic", func(context.Context, cluster.NodeID, []byte) ([]byte, error) { panic("oh") })
		b.server.Handle("large", func(context.Context, cluster.NodeID, []byte) ([]byte, error) {
			return make([]byte, peer.MaxBody+1), nil
		})
		b.server.Handle("slow", func(ctx context.Context, _ cluster.NodeID, _ []byte) ([]byte, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
		for kind, want := range map[string]struct {
			class  error
			status int
			text   string
		}{
			"no":      {cluster.ErrRefused, 409, "epoch 7 is old"},
			"panic":   {cluster.ErrRefused, 500, "the handler failed"},
			"large":   {cluster.ErrRefused, 500, "more than 65536"},
			"unknown": {cluster.ErrRefused, 404, "another version"},
			"Bad/..":  {peer.ErrLocal, 0, "no kind of question"},
			"slow":    {cluster.ErrDeadline, 0, "waiting for the answer"},
		} {
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			_, err := a.client.Ask(ctx, "hv2", b.addr, kind, nil)
			cancel()
			var e *peer.Error
			if !errors.As(err, &e) || !errors.Is(err, want.class) && want.status == 0 || e.Status != want.status || !strings.Contains(err.Error(), want.text) {
				// The server may say "out of time" in the very instant in which the asker's own time ends.
				if kind == "slow" && errors.As(err, &e) && e.Status == 504 {
					continue
				}
				t.Errorf("%s: %v", kind, err)
			}
		}
		mustAsk(t, a, b, time.Second)
	})
}

func TestBodiesAreBounded(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		a, b := w.join("hv1"), w.join("hv2")
		defer leave(a, b)
		b.server.Handle("size", func(_ context.Context, _ cluster.NodeID, body []byte) ([]byte, error) { return body, nil })
		full := bytes.Repeat([]byte("x"), peer.MaxBody)
		got, err := a.client.Ask(t.Context(), "hv2", b.addr, "size", full)
		if err != nil || !bytes.Equal(got, full) {
			t.Errorf("a full body: %d bytes, %v", len(got), err)
		}
		if _, err := a.client.Ask(t.Context(), "hv2", b.addr, "size", append(full, 'x')); !errors.Is(err, peer.ErrLocal) {
			t.Errorf("a body too large was sent: %v", err)
		}
		// A foreign client does not hold itself back.
		conn := w.tls(a, b)
		defer conn.Close()
		go func() {
			_, _ = fmt.Fprintf(conn, "POST /peer/v1/size HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n%s", strings.Repeat("x", 1000000))
		}()
		raw, _ := io.ReadAll(io.LimitReader(conn, 30))
		if !strings.Contains(string(raw), "413") {
			t.Errorf("a body of a megabyte was answered with %q", raw)
		}
	})
}

// tls connects as a node and leaves the talking to the test.
func (w *world) tls(from, to *member) net.Conn {
	w.t.Helper()
	files := w.ca.Files(w.t, from.name, time.Now())
	pair, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	if err != nil {
		w.t.Fatal(err)
	}
	raw, err := w.net.Dial(string(from.name))(context.Background(), "tcp", to.addr)
	if err != nil {
		w.t.Fatal(err)
	}
	return tls.Client(raw, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}})
}

func TestOldTLSIsRefused(t *testing.T) {
	ca := peertest.NewAuthority(t, "demo", time.Now())
	_, addr := loopback(t, ca, "hv2", peer.ServerConfig{})
	files := ca.Files(t, "hv1", time.Now())
	pair, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	if err != nil {
		t.Fatal(err)
	}
	for version, good := range map[uint16]bool{tls.VersionTLS12: false, tls.VersionTLS13: true} {
		conn, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, MaxVersion: version, Certificates: []tls.Certificate{pair}})
		if (err == nil) != good {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
		if err == nil {
			conn.Close()
		}
	}
}

// Who trickles is shut out, with and without a certificate, and nobody else
// waits for it.
func TestSlowStrangersAreShutOut(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		a, b := w.join("hv1"), w.join("hv2")
		defer leave(a, b)
		slow := w.tls(a, b)
		if _, err := io.WriteString(slow, "POST /peer/v1/echo HTTP/1.1\r\n"); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		gone := make(chan time.Duration, 1)
		go func() {
			defer slow.Close()
			for i := 0; time.Since(began) < time.Minute; i++ {
				if _, err := fmt.Fprintf(slow, "X-%d: y\r\n", i); err != nil {
					break
				}
				time.Sleep(100 * time.Millisecond)
			}
			gone <- time.Since(began)
		}()
		go func() { _, _ = io.Copy(io.Discard, slow) }()
		var mute []net.Conn
		for i := range 200 { // from ten hosts, more together than may shake hands at once
			c, err := w.net.Dial(fmt.Sprintf("stranger%d", i%10))(t.Context(), "tcp", b.addr)
			if err != nil {
				t.Fatal(err)
			}
			mute = append(mute, c)
			synctest.Wait()
		}
		time.Sleep(2100 * time.Millisecond) // the handshakes' limit: their places are free again
		mustAsk(t, a, b, 75*time.Millisecond)
		for _, c := range mute {
			_ = c.SetReadDeadline(time.Now().Add(time.Second))
			if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("a mute stranger has its connection still: %v", err)
			}
			c.Close()
		}
		if took := <-gone; took > 3*time.Second {
			t.Errorf("a trickling node kept its connection for %v", took)
		}
	})
}

func TestOneHostCannotTakeAllHandshakes(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		a, b := w.join("hv1"), w.join("hv2")
		defer leave(a, b)
		for range 200 {
			c, err := w.net.Dial("stranger")(t.Context(), "tcp", b.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			synctest.Wait()
		}
		mustAsk(t, a, b, 75*time.Millisecond)
	})
}

func TestAHundredAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		a, b := w.join("hv1"), w.join("hv2")
		defer leave(a, b)
		var all sync.WaitGroup
		for range 100 {
			all.Go(func() { mustAskQuietly(t, a, b) })
		}
		all.Wait()
		time.Sleep(time.Second)
		if n := w.net.Connections("hv1", "hv2"); n > 4 {
			t.Errorf("%d connections are left open", n)
		}
	})
}

func mustAskQuietly(t *testing.T, a, b *member) {
	if answer, took, err := ask(a, b, 3*time.Second); err != nil {
		t.Errorf("%q, %v after %v", answer, err, took)
	}
}

// A node that is busy is alive: probes need no slot.
func TestAProbeIsAnsweredByABusyNode(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		a, b := w.join("hv1"), w.join("hv2", func(c *peer.ServerConfig) { c.Requests = 2 })
		defer leave(a, b)
		hold := make(chan struct{})
		b.server.Handle("hold", func(context.Context, cluster.NodeID, []byte) ([]byte, error) { <-hold; return nil, nil })
		var all sync.WaitGroup
		for range 2 {
			all.Go(func() { _, _ = a.client.Ask(context.Background(), "hv2", b.addr, "hold", nil) })
		}
		synctest.Wait()
		if e, _ := mustFail(t, a, b, time.Second, cluster.ErrRefused); e.Status != 503 {
			t.Errorf("a busy node said %v", e)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 75*time.Millisecond)
		defer cancel()
		if _, err := a.client.Ask(ctx, "hv2", b.addr, peer.KindProbe, nil); err != nil {
			t.Error(err)
		}
		close(hold)
		all.Wait()
	})
}

func TestShutdownIsBoundedAndNamesWhoIsStuck(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		a, b := w.join("hv1"), w.join("hv2")
		hold := make(chan struct{})
		b.server.Handle("hold", func(context.Context, cluster.NodeID, []byte) ([]byte, error) { <-hold; return nil, nil })
		asked := make(chan error, 1)
		go func() {
			_, err := a.client.Ask(context.Background(), "hv2", b.addr, "hold", nil)
			asked <- err
		}()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		err := b.server.Shutdown(ctx)
		if took := time.Since(began); err == nil || !strings.Contains(err.Error(), "hold") || took > 2*time.Second {
			t.Errorf("%v after %v", err, took)
		}
		if err := <-asked; err == nil {
			t.Error("a question was answered by a node that had shut down")
		}
		close(hold)
		synctest.Wait()
		leave(a, b)
	})
}

// What the network says of a peer, and what this host says of itself.
func TestFailuresToConnectAreToldApart(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		id := w.identity("hv1")
		for errno, want := range map[syscall.Errno]struct {
			class   error
			silence bool
		}{
			syscall.ECONNREFUSED:  {peer.ErrUnreachable, true},
			syscall.EHOSTUNREACH:  {peer.ErrUnreachable, true},
			syscall.ETIMEDOUT:     {cluster.ErrDeadline, true},
			syscall.ENETUNREACH:   {peer.ErrLocal, false},
			syscall.ENETDOWN:      {peer.ErrLocal, false},
			syscall.EADDRNOTAVAIL: {peer.ErrLocal, false},
			syscall.EPERM:         {peer.ErrLocal, false},
			syscall.EMFILE:        {peer.ErrLocal, false},
			syscall.EIO:           {peer.ErrLocal, false},
		} {
			c := peer.NewClient(id, func(context.Context, string, string) (net.Conn, error) {
				return nil, &net.OpError{Op: "dial", Err: errno}
			})
			_, err := c.Ask(t.Context(), "hv2", "hv2:7371", "echo", nil)
			var e *peer.Error
			if !errors.As(err, &e) || !errors.Is(err, want.class) || e.Silence() != want.silence {
				t.Errorf("%v: %v", errno, err)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := peer.NewClient(id, nil).Ask(ctx, "hv2", "hv2:7371", "echo", nil); !errors.Is(err, peer.ErrLocal) {
			t.Errorf("nothing was asked, and the error is %v", err)
		}
	})
}

// On real sockets: an answer, a refused port, and nothing left behind.
func TestRealSockets(t *testing.T) {
	ca := peertest.NewAuthority(t, "demo", time.Now())
	id, err := peer.LoadIdentity(ca.Files(t, "hv1", time.Now()), "demo", "hv1", nil)
	if err != nil {
		t.Fatal(err)
	}
	before := runtime.NumGoroutine()
	server, addr := loopback(t, ca, "hv2", peer.ServerConfig{})
	c := peer.NewClient(id, nil)
	var all sync.WaitGroup
	for range 100 {
		all.Go(func() {
			if _, err := c.Ask(t.Context(), "hv2", addr, peer.KindProbe, nil); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	_, err = c.Ask(t.Context(), "hv2", addr, peer.KindProbe, nil)
	var e *peer.Error
	if !errors.As(err, &e) || !errors.Is(err, peer.ErrUnreachable) || !e.Silence() {
		t.Errorf("after the end: %v", err)
	}
	c.Close()
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before+1; runtime.Gosched() {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<16)
			t.Fatalf("%d goroutines, before %d:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
	}
}
