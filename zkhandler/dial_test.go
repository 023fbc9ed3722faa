package zkhandler

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"
)

// pipe is a bounded connection of a dialer and the server's end of it.
func pipe(t *testing.T, d *dialer) (*boundConn, net.Conn) {
	t.Helper()
	ours, server := net.Pipe()
	d.config = Config{SessionTimeout: time.Second, Dial: func(context.Context, string, string) (net.Conn, error) { return ours, nil }}
	d.ring = newHostRing([]string{"zk:2181"}, func() bool { return false })
	d.barrier = schema{}.barrierPath
	d.ctx = t.Context()
	c, err := d.dial("tcp", "zk:2181", 0)
	must(t, err)
	t.Cleanup(func() { server.Close() })
	server.SetDeadline(time.Now().Add(10 * time.Second))
	return c.(*boundConn), server
}

func frame(body ...any) []byte {
	var b bytes.Buffer
	for _, v := range body {
		if s, ok := v.(string); ok {
			binary.Write(&b, binary.BigEndian, int32(len(s)))
			b.WriteString(s)
			continue
		}
		binary.Write(&b, binary.BigEndian, v)
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(b.Len())), b.Bytes()...)
}

func readFrame(t *testing.T, r io.Reader) []byte {
	t.Helper()
	head := make([]byte, 4)
	_, err := io.ReadFull(r, head)
	must(t, err)
	body := make([]byte, binary.BigEndian.Uint32(head))
	_, err = io.ReadFull(r, body)
	must(t, err)
	return body
}

// greetings does the handshake and returns the zxid that the client claims.
func greetings(t *testing.T, c *boundConn, server net.Conn) int64 {
	t.Helper()
	claimed := make(chan int64, 1)
	go func() {
		claimed <- int64(binary.BigEndian.Uint64(readFrame(t, server)[4:]))
		server.Write(frame(int32(0), int32(900), int64(77), "0123456789abcdef"))
	}()
	c.Write(frame(int32(0), int64(0), int32(1000), int64(0), "0123456789abcdef"))
	readFrame(t, c)
	if got := time.Duration(c.granted.Load()); got != 900*time.Millisecond || c.session.Load() != 77 {
		t.Fatalf("granted %s in session %d", got, c.session.Load())
	}
	return <-claimed
}

func reply(xid int32, zxid int64, code int32) []byte { return frame(xid, zxid, code) }

// What an earlier connection left in the library's queue never reaches the
// server, and its caller hears that it was not sent.
func TestRequestsLeftInTheQueueAreDropped(t *testing.T) {
	c, server := pipe(t, &dialer{})
	greetings(t, c, server)
	barrier := frame(int32(7), int32(opSync), schema{}.barrierPath(c.generation))
	go func() {
		c.Write(frame(int32(5), int32(14), "a stale multi"))
		c.Write(frame(int32(6), int32(opSync), schema{}.barrierPath(c.generation+1)))
		c.Write(barrier)
		c.Write(frame(int32(8), int32(14), "a fresh multi"))
	}()
	if first := readFrame(t, server); !bytes.Equal(first, barrier[4:]) {
		t.Fatalf("the server sees %q before the barrier", first)
	}
	if second := readFrame(t, server); int32(binary.BigEndian.Uint32(second)) != 8 {
		t.Fatalf("the server sees %q after the barrier", second)
	}
	go server.Write(reply(7, 100, 0))
	for _, want := range [][2]int32{{5, codeDropped}, {6, codeDropped}, {7, 0}} {
		got := readFrame(t, c)
		xid, code := int32(binary.BigEndian.Uint32(got)), int32(binary.BigEndian.Uint32(got[12:]))
		if xid != want[0] || code != want[1] {
			t.Fatalf("reply %d with code %d, want %v", xid, code, want)
		}
	}
}

// Watches are re-armed from before the last connection on which they were
// known to be armed, whatever replies came before the library asked for it.
func TestWatchesAreRearmedFromTheRightPoint(t *testing.T) {
	d := &dialer{}
	rewatch := func(c *boundConn, server net.Conn, zxid int64, acknowledge bool) (since int64) {
		greetings(t, c, server)
		go server.Write(reply(1, zxid, 0))
		if got := readFrame(t, c); binary.BigEndian.Uint64(got[4:]) != 0 {
			t.Fatal("the library sees a zxid")
		}
		go c.Write(frame(int32(9), int32(opSetWatches), int64(-1), int32(0), int32(0), int32(0)))
		since = int64(binary.BigEndian.Uint64(readFrame(t, server)[8:]))
		if acknowledge {
			go server.Write(reply(9, zxid, 0))
			readFrame(t, c)
		}
		return since
	}
	for i, step := range []struct {
		zxid int64
		ack  bool
		want int64
	}{
		{100, true, 0},    // first connection
		{200, false, 0},   // looks back to where the first began
		{300, true, 0},    // the second never had them armed
		{400, true, 200},  // the third had, and began at 200
		{500, false, 300}, // and so on
	} {
		c, server := pipe(t, d)
		if got := rewatch(c, server, step.zxid, step.ack); got != step.want {
			t.Fatalf("connection %d re-arms from %d, want %d", i+1, got, step.want)
		}
	}
	c, server := pipe(t, d)
	if claimed := greetings(t, c, server); claimed != 500 {
		t.Fatalf("claims to have seen %d, want 500", claimed)
	}
}

func TestGarbageIsRefusedBeforeTheLibrarySeesIt(t *testing.T) {
	for name, junk := range map[string][]byte{
		"ssh banner": []byte("SSH-2.0-OpenSSH_9.2p1 Debian\r\n"),
		"too short":  frame(int32(1)),
	} {
		c, server := pipe(t, &dialer{})
		go server.Write(junk)
		if _, err := c.Read(make([]byte, 4)); err == nil {
			t.Errorf("%s: passed on in the handshake", name)
		}
		c, server = pipe(t, &dialer{})
		greetings(t, c, server)
		go server.Write(junk)
		if _, err := c.Read(make([]byte, 4)); err == nil {
			t.Errorf("%s: passed on after the handshake", name)
		}
	}
}

// The library asks for 6.7 session time-outs in the handshake, and for no
// deadline at all within it.
func TestHandshakeCannotOutlastItsClamp(t *testing.T) {
	c, server := pipe(t, &dialer{})
	go server.Write([]byte{0, 0, 0, 37})
	began := time.Now()
	c.SetReadDeadline(time.Now().Add(time.Hour))
	c.SetReadDeadline(time.Time{})
	if _, err := io.ReadFull(c, make([]byte, 4)); err == nil {
		t.Fatal("a handshake of four bytes was accepted")
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Fatalf("took %s", took)
	}
	if n, err := c.Write(frame(int32(1), int32(1))); n != 12 || err != nil {
		t.Fatalf("a write to a closed connection returned %d, %v: the library would block for ever", n, err)
	}
}
