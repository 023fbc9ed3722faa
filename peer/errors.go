package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"pvc.internal/cluster"
)

// The classes of failure that an *Error wraps. A refusal wraps
// cluster.ErrRefused, a missed deadline cluster.ErrDeadline.
var (
	// ErrUnreachable says that no conversation came about or that it broke.
	ErrUnreachable = errors.New("unreachable")
	// ErrUnauthenticated says that one side does not accept the other's certificate.
	ErrUnauthenticated = errors.New("not authenticated")
	// ErrLocal says that this host could not ask: it says nothing of the peer.
	ErrLocal = errors.New("could not ask")
)

// Error is why a question has no answer.
type Error struct {
	Class  error // one of the above, cluster.ErrRefused or cluster.ErrDeadline
	Node   cluster.NodeID
	Addr   string
	Kind   string
	Reason string // in words, with the cure where there is one
	Status int    // of a refusal: the HTTP status

	silence bool
}

// Error tells who was asked what, and what came of it.
func (e *Error) Error() string {
	return fmt.Sprintf("ask %s at %s for %s: %v: %s", e.Node, e.Addr, e.Kind, e.Class, e.Reason)
}

// Unwrap returns the class.
func (e *Error) Unwrap() error { return e.Class }

// Silence reports whether the question went out to the network, and the
// network, not this host, says that nobody answers there. Only this may count
// against a node (I6).
func (e *Error) Silence() bool { return e.silence }

// stage is how far a question got.
type stage uint8

const (
	dialing stage = iota
	handshaking
	asking
)

// failure is an attempt's error before it is put into words.
type failure struct {
	at  stage
	err error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// classify turns what went wrong into its class. ctx is the caller's.
func classify(ctx context.Context, err error, waited time.Duration) *Error {
	var ready *Error
	if errors.As(err, &ready) {
		return ready
	}
	var f *failure
	at := dialing
	if errors.As(err, &f) {
		at = f.at
	}
	var cert *CertError
	var garbled tls.RecordHeaderError
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return &Error{Class: ErrLocal, Reason: "the asker gave up"}
	case errors.As(err, &cert):
		return &Error{Class: ErrUnauthenticated, Reason: cert.Error()}
	case errors.As(err, &garbled):
		return &Error{Class: ErrUnauthenticated, Reason: "something answers there that is no peer (no TLS): check the address that the node publishes"}
	case remoteAlert(err) != "":
		return &Error{Class: ErrUnauthenticated, Reason: remoteAlert(err)}
	case timedOut(err) || (errors.Is(err, net.ErrClosed) && errors.Is(ctx.Err(), context.DeadlineExceeded)):
		return &Error{Class: cluster.ErrDeadline, silence: true, Reason: fmt.Sprintf("no answer within %v (%s)", waited.Round(time.Millisecond), at)}
	case at == dialing:
		return dialError(err)
	}
	return &Error{Class: ErrUnreachable, Reason: fmt.Sprintf("the connection broke (%s): %v", at, err)}
}

// String names the stage for people.
func (s stage) String() string {
	return [...]string{"connecting", "in the TLS handshake", "waiting for the answer"}[s]
}

func timedOut(err error) bool {
	var n net.Error
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) || (errors.As(err, &n) && n.Timeout())
}

// remoteAlert returns what a peer's TLS alert means, "" if there is none. In
// TLS 1.3 it arrives after the client's own handshake is over.
func remoteAlert(err error) string {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "remote error" {
		return ""
	}
	return fmt.Sprintf("the peer refused this node's certificate (%v): its log says why; `pvc pki status` on both nodes shows the files", op.Err)
}

// dialError tells what the network says from what this host says of itself.
func dialError(err error) *Error {
	for _, n := range []syscall.Errno{syscall.ECONNREFUSED, syscall.EHOSTUNREACH, syscall.ECONNRESET, syscall.EHOSTDOWN} {
		if errors.Is(err, n) {
			return &Error{Class: ErrUnreachable, silence: true, Reason: n.Error()}
		}
	}
	for _, n := range []syscall.Errno{syscall.ENETUNREACH, syscall.ENETDOWN, syscall.EADDRNOTAVAIL, syscall.EPERM, syscall.EACCES,
		syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EINVAL} {
		if errors.Is(err, n) {
			return &Error{Class: ErrLocal, Reason: fmt.Sprintf("this host cannot connect: %v", n)}
		}
	}
	return &Error{Class: ErrLocal, Reason: err.Error()}
}
