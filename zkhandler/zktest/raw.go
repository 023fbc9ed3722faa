package zktest

import (
	"fmt"
	"io"
	"net"
	"time"
)

// Raw speaks the wire protocol over a connection one frame at a time, for
// tests of what no client library lets through: a session re-attached by id, a
// wrong password, a frame too large. It works against the real ensemble too.
// Deadlines are the caller's, on Conn.
type Raw struct{ Conn net.Conn }

// Handshake is the server's answer to a connect request.
type Handshake struct {
	Timeout  time.Duration // negotiated
	Session  int64         // 0: the session asked for is not there
	Password []byte
}

// Reply is the server's answer to a request, or a watch event (Xid −1).
type Reply struct {
	Xid  int32
	Zxid int64
	Code int32 // 0 or the error
	Body []byte
}

// Connect opens a session (Handshake zero) or re-attaches to one. lastZxid is
// what the client claims to have seen.
func (r Raw) Connect(h Handshake, lastZxid int64) (Handshake, error) {
	password := h.Password
	if password == nil {
		password = make([]byte, 16)
	}
	e := &encoder{}
	e.int32(0)
	e.int64(lastZxid)
	e.int32(int32(h.Timeout / time.Millisecond))
	e.int64(h.Session)
	e.bytes(password)
	if _, err := r.Conn.Write(e.frame()); err != nil {
		return Handshake{}, fmt.Errorf("send connect request: %w", err)
	}
	frame, err := readFrame(r.Conn)
	if err != nil {
		return Handshake{}, fmt.Errorf("read connect response: %w", err)
	}
	d := &decoder{buf: frame}
	d.int32()
	answer := Handshake{Timeout: time.Duration(d.int32()) * time.Millisecond, Session: d.int64(), Password: d.bytes()}
	return answer, d.err
}

// Send sends a request whose body is the path alone, or empty for an empty path.
func (r Raw) Send(xid, code int32, path string) error {
	e := &encoder{}
	e.int32(xid)
	e.int32(code)
	if path != "" {
		e.string(path)
	}
	_, err := r.Conn.Write(e.frame())
	return err
}

// Next reads the next reply or event.
func (r Raw) Next() (Reply, error) {
	frame, err := readFrame(r.Conn)
	if err != nil {
		return Reply{}, err
	}
	d := &decoder{buf: frame}
	reply := Reply{Xid: d.int32(), Zxid: d.int64(), Code: d.int32()}
	reply.Body = d.buf
	return reply, d.err
}

// Word sends a four-letter word and returns all that comes back.
func (r Raw) Word(word string) (string, error) {
	if _, err := r.Conn.Write([]byte(word)); err != nil {
		return "", err
	}
	text, err := io.ReadAll(r.Conn)
	return string(text), err
}
