// Package router is the agent's side of the primary role's effects on this
// host: the client of the guard process, the request protocol both speak, and
// the pure parts they share (which addresses to add and remove, how long a
// lifetime to give them, the frames that announce them).
//
// The effects themselves live in the guard's process (router/guard), which
// outlives the agent and ends a role at its deadline whatever the agent does
// (I3). Nothing here talks to the kernel's network stack.
package router

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"pvc.internal/cluster"
)

// ProtocolVersion is said by the guard in its first line; a client refuses any other.
const ProtocolVersion = 1

// MaxLine bounds one message in bytes: a program's captured output, Base64
// coded, is the largest thing that travels.
const MaxLine = 8 << 20

// Method names a request.
type Method string

// The requests, one for each method of agent.Guard, Run for fencing, and the
// agent's last words. A guard of an earlier program refuses what it does not know;
// those that came after version 1 are optional, and their callers do without.
const (
	MethodState        Method = "state"
	MethodBegin        Method = "begin"
	MethodExtend       Method = "extend"
	MethodPresent      Method = "present"
	MethodWithdraw     Method = "withdraw"
	MethodStartService Method = "start_service"
	MethodStopService  Method = "stop_service"
	MethodEnd          Method = "end"
	MethodPreflight    Method = "preflight"
	MethodRun          Method = "run"
	MethodRelinquish   Method = "relinquish"
	MethodEndCaller    Method = "end_caller"
)

// Message is one line of the protocol in either direction. A client sends
// {id, method, params, expires}; the guard answers {id, result} or {id, error},
// in any order, and pushes {event} to every connection. Its first line is
// {hello}.
type Message struct {
	ID     uint64          `json:"id,omitempty"`
	Method Method          `json:"method,omitempty"`
	Params json.RawMessage `json:"params,omitempty"`
	// Expires is the caller's deadline on CLOCK_BOOTTIME, Never without one: a
	// guard that reads the request later (it was stopped) refuses it.
	Expires cluster.Instant     `json:"expires,omitempty"`
	Result  json.RawMessage     `json:"result,omitempty"`
	Error   *WireError          `json:"error,omitempty"`
	Event   *cluster.GuardEvent `json:"event,omitempty"`
	Hello   *Hello              `json:"hello,omitempty"`
	Cancel  bool                `json:"cancel,omitempty"` // client: the caller of this id has gone
}

// Hello is the guard's first line on a connection.
type Hello struct {
	Version int `json:"v"`
	PID     int `json:"pid"`
}

// EpochParams are the parameters of withdraw and, with Owner and Name, of the
// requests that name something under an owner.
type EpochParams struct {
	Owner     cluster.DeadlineOwner     `json:"owner,omitempty"`
	Epoch     cluster.Epoch             `json:"epoch"`
	Name      string                    `json:"name,omitempty"`
	Service   *cluster.ServiceSpec      `json:"service,omitempty"`
	Addresses []cluster.FloatingAddress `json:"addresses,omitempty"`
}

// EndCallerParams are the parameters of end_caller. Whom it names the kernel says,
// by the socket's credentials: nobody can have another killed.
type EndCallerParams struct {
	// Start is the caller's start time in clock ticks after boot, with which its
	// process id is no later process's.
	Start uint64 `json:"start"`
	// At is when it is killed, on CLOCK_BOOTTIME.
	At cluster.Instant `json:"at"`
}

// WireError carries an error over the socket, with the sentinel it wraps.
type WireError struct {
	Code string `json:"code,omitempty"`
	Text string `json:"text"`
}

// codes maps the sentinels that callers tell apart to their wire values.
var codes = []struct {
	code string
	err  error
}{
	{"deadline", cluster.ErrDeadline},
	{"stale_epoch", cluster.ErrStaleEpoch},
	{"refused", cluster.ErrRefused},
	{"conflict", cluster.ErrConflict},
	{"not_found", cluster.ErrNotFound},
}

// ToWire turns an error into what the socket carries; nil stays nil.
func ToWire(err error) *WireError {
	if err == nil {
		return nil
	}
	w := &WireError{Text: err.Error()}
	for _, c := range codes {
		if errors.Is(err, c.err) {
			w.Code = c.code
			break
		}
	}
	return w
}

// guardError is an error that the guard returned: its text, and the sentinel
// that errors.Is finds.
type guardError struct {
	text string
	is   error
}

func (e *guardError) Error() string { return e.text }
func (e *guardError) Unwrap() error { return e.is }

// FromWire turns what the socket carried back into an error; nil stays nil. An
// unknown code keeps its text and wraps nothing.
func FromWire(w *WireError) error {
	if w == nil {
		return nil
	}
	for _, c := range codes {
		if c.code == w.Code {
			return &guardError{text: w.Text, is: c.err}
		}
	}
	return &guardError{text: w.Text}
}

// EncodeMessage renders a message as one line with its newline.
func EncodeMessage(m Message) ([]byte, error) {
	b, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode guard message: %w", err)
	}
	if len(b) >= MaxLine {
		return nil, fmt.Errorf("encode guard message: %d bytes, more than the %d allowed: %w", len(b), MaxLine, cluster.ErrTooLarge)
	}
	return append(b, '\n'), nil
}

// NewReader returns a reader for ReadMessage.
func NewReader(r io.Reader) *bufio.Reader { return bufio.NewReaderSize(r, 64<<10) }

// ReadMessage reads the next line. A line that is too long or is no message is
// an error after which the connection is of no further use.
func ReadMessage(r *bufio.Reader) (Message, error) {
	var m Message
	line, err := r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		line, err = readLong(r, line)
	}
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(line, &m); err != nil {
		return m, fmt.Errorf("decode guard message: %w", err)
	}
	return m, nil
}

// readLong goes on where a line did not fit the reader's buffer.
func readLong(r *bufio.Reader, begun []byte) ([]byte, error) {
	line := append([]byte(nil), begun...)
	for {
		more, err := r.ReadSlice('\n')
		line = append(line, more...)
		if len(line) > MaxLine {
			return nil, fmt.Errorf("read guard message: a line of more than %d bytes: %w", MaxLine, cluster.ErrTooLarge)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return line, err
		}
	}
}
