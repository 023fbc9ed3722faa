package peer

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"pvc.internal/cluster"
)

// Dial connects to a peer. It must end when ctx does.
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

// link is a client's connection to one node, used by one question at a time.
type link struct {
	raw     net.Conn
	tls     *tls.Conn
	limit   *io.LimitedReader
	reader  *bufio.Reader
	usedBy  uint64    // generation of the identity that accepted the peer
	ends    time.Time // of the peer's certificate
	resting time.Time // since when it is idle
}

// connect makes a fresh connection and verifies that the node is at its end.
func connect(ctx context.Context, dial Dial, id *Identity, n cluster.NodeID, addr string) (*link, error) {
	m, err := id.usable()
	if err != nil {
		return nil, err
	}
	raw, err := dial(ctx, "tcp", addr)
	if err != nil {
		return nil, &failure{dialing, err}
	}
	conn := tls.Client(raw, &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{m.cert},
		// A node is known by the name in its certificate, never by the address
		// that was dialled; VerifyConnection does the whole verification.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			return m.verifyNode(s.PeerCertificates, n, id.now())
		},
	})
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		id.lookSoon()
		return nil, &failure{handshaking, err}
	}
	limit := &io.LimitedReader{R: conn}
	return &link{raw: raw, tls: conn, limit: limit, reader: bufio.NewReaderSize(limit, 4096), usedBy: m.generation,
		ends: conn.ConnectionState().PeerCertificates[0].NotAfter}, nil
}

// close ends the connection without waiting for anything.
func (l *link) close() { _ = l.raw.Close() }

// reply is a whole answer.
type reply struct {
	status int
	body   []byte
	reuse  bool
}

// exchange sends the question and reads the answer before ctx ends.
func (l *link) exchange(ctx context.Context, kind string, body []byte) (reply, error) {
	deadline, _ := ctx.Deadline() // Ask has seen to it that there is one
	if err := l.tls.SetDeadline(deadline); err != nil {
		return reply{}, &failure{asking, err}
	}
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { defer close(woken); l.close() })
	r, err := l.talk(kind, body, time.Until(deadline))
	if !stop() {
		<-woken
	}
	if err != nil {
		return reply{}, &failure{asking, err}
	}
	return r, nil
}

func (l *link) talk(kind string, body []byte, left time.Duration) (reply, error) {
	r := &http.Request{Method: http.MethodPost, URL: &url.URL{Scheme: "https", Host: "peer", Path: prefix + kind}, Host: "peer",
		Header: http.Header{"Content-Type": {"application/json"}, leftHeader: {strconv.FormatInt(max(1, left.Milliseconds()), 10)}},
		Body:   io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body))}
	var out bytes.Buffer
	if err := r.Write(&out); err != nil {
		return reply{}, err
	}
	if _, err := l.tls.Write(out.Bytes()); err != nil {
		// A server that has refused says why before it closes.
		if answer, readErr := l.read(r); readErr == nil || remoteAlert(readErr) != "" {
			return answer, readErr
		}
		return reply{}, err
	}
	return l.read(r)
}

func (l *link) read(r *http.Request) (reply, error) {
	l.limit.N = MaxBody + maxHeader
	answer, err := http.ReadResponse(l.reader, r)
	if err != nil {
		return reply{}, err
	}
	defer func() { _ = answer.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(answer.Body, MaxBody+1))
	switch {
	case err != nil:
		return reply{}, err
	case len(body) > MaxBody:
		return reply{}, fmt.Errorf("the answer holds more than %d bytes", MaxBody)
	}
	return reply{answer.StatusCode, body, !answer.Close && l.reader.Buffered() == 0}, nil
}

// outcome turns a whole answer into what Ask returns.
func (r reply) outcome() ([]byte, error) {
	if r.status == http.StatusOK {
		return r.body, nil
	}
	var c complaint
	if json.Unmarshal(r.body, &c) != nil || c.Error == "" {
		c.Error = fmt.Sprintf("it answered with status %d", r.status)
	}
	if r.status == http.StatusUnauthorized {
		return nil, &Error{Class: ErrUnauthenticated, Status: r.status, Reason: "the peer refused this node's certificate: " + c.Error}
	}
	return nil, &Error{Class: cluster.ErrRefused, Status: r.status, Reason: c.Error}
}

// answered reports whether the error is a peer's own word.
func answered(err error) bool {
	var e *Error
	return err == nil || (errors.As(err, &e) && e.Status != 0)
}
