package api

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"pvc.internal/cluster"
)

// Message is the body of every success and failure text. On PVC's paths it is
// all there is.
type Message struct {
	Message string `json:"message"`
}

// ArgumentErrors is the body of a 400: the arguments by name, each with what is
// wrong with it.
type ArgumentErrors struct {
	Message map[string]string `json:"message"`
}

// Away is the body of a 503: how long the store has been away, and the last
// answer known, which may be wrong by now.
type Away struct {
	Message     string  `json:"message"`
	Stale       bool    `json:"stale"`
	AwaySeconds float64 `json:"away_seconds"`
	Last        any     `json:"last,omitempty"`
}

// answer is what a handler returns. A nil body is an empty one.
type answer struct {
	status int
	body   any
	change string // for changes: what was done, for the audit record
}

func ok(body any) (answer, error) { return answer{status: http.StatusOK, body: body}, nil }

func done(text string) (answer, error) {
	return answer{status: http.StatusOK, body: Message{text}, change: text}, nil
}

// failure is an error with its status and body.
type failure struct {
	status int
	body   any
	text   string
	// retryAfter is after how many seconds it may be tried again; 0: not told.
	retryAfter int
}

// Error returns the text for people.
func (f *failure) Error() string { return f.text }

func refuse(status int, text string) *failure {
	return &failure{status: status, body: Message{text}, text: text}
}

func badArgument(name, text string) *failure {
	return &failure{status: http.StatusBadRequest, text: name + ": " + text,
		body: ArgumentErrors{map[string]string{name: text}}}
}

// statusOf maps the vocabulary's errors to statuses. A lost reply is 504: it
// may have happened; all else that says the store cannot be used now is 503.
var statusOf = []struct {
	err    error
	status int
}{
	{cluster.ErrNotLive, http.StatusServiceUnavailable},
	{cluster.ErrConflict, http.StatusConflict},
	{cluster.ErrUnknown, http.StatusGatewayTimeout},
	{cluster.ErrNotFound, http.StatusNotFound},
	{cluster.ErrRefused, http.StatusBadRequest},
	{cluster.ErrAuth, http.StatusServiceUnavailable},
	{cluster.ErrSchemaNewer, http.StatusServiceUnavailable},
	{cluster.ErrTooLarge, http.StatusRequestEntityTooLarge},
	{cluster.ErrDeadline, http.StatusGatewayTimeout},
	{context.DeadlineExceeded, http.StatusServiceUnavailable},
	{context.Canceled, http.StatusServiceUnavailable},
}

// failureFor turns any error into a failure.
func (s *Server) failureFor(err error) *failure {
	var f *failure
	if errors.As(err, &f) {
		return f
	}
	status := http.StatusInternalServerError
	for _, m := range statusOf {
		if errors.Is(err, m.err) {
			status = m.status
			break
		}
	}
	if status == http.StatusServiceUnavailable {
		return s.awayFailure(err.Error(), nil)
	}
	return refuse(status, err.Error())
}

// awayFailure is a 503 that says since when the store has been away.
func (s *Server) awayFailure(why string, last any) *failure {
	away := s.view.current(s.now()).away
	text := fmt.Sprintf("ZooKeeper cannot be used now (%s); nothing was changed. Check the ensemble and try again.", why)
	if away > 0 {
		text = fmt.Sprintf("ZooKeeper has been away for %s (%s); nothing was changed. Check the ensemble and try again.", away.Round(100*time.Millisecond), why)
	}
	return &failure{status: http.StatusServiceUnavailable, text: text,
		body: Away{Message: text, Stale: true, AwaySeconds: away.Seconds(), Last: last}}
}

// write answers with the failure.
func (f *failure) write(w http.ResponseWriter) {
	if f.retryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(f.retryAfter))
	}
	writeJSON(w, f.status, f.body)
}

// encoded is a body that was encoded once for many requests, with its line end.
// It is never changed.
type encoded struct {
	raw  []byte
	etag string // names the text, quoted as in the header
}

// encode makes a body that many requests share.
func encode(body any) (*encoded, error) {
	raw, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	return encodedFrom(append(raw, '\n')), nil
}

func encodedFrom(raw []byte) *encoded {
	sum := sha256.Sum256(raw)
	return &encoded{raw, `"` + hex.EncodeToString(sum[:12]) + `"`}
}

// MarshalJSON implements json.Marshaler.
func (e *encoded) MarshalJSON() ([]byte, error) { return e.raw, nil }

// writeAnswer answers a request. Of a body that many share only its name is
// answered to a client that has it already (If-None-Match).
func writeAnswer(w http.ResponseWriter, r *http.Request, a answer) {
	e, shared := a.body.(*encoded)
	if !shared {
		writeJSON(w, a.status, a.body)
		return
	}
	header := w.Header()
	header.Set("ETag", e.etag)
	header.Set("Cache-Control", "no-cache") // keep it, but ask each time
	if has := r.Header.Get("If-None-Match"); has != "" && strings.Contains(has, e.etag) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	writeText(w, a.status, e.raw)
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	if body == nil {
		w.WriteHeader(status)
		return
	}
	raw, err := json.Marshal(body)
	if err != nil { // a type of ours that cannot be encoded: a bug, told rather than hidden
		status, raw = http.StatusInternalServerError, []byte(`{"message": "the answer cannot be encoded as JSON"}`)
	}
	w.Header().Set("Cache-Control", "no-store")
	writeText(w, status, append(raw, '\n'))
}

func writeText(w http.ResponseWriter, status int, raw []byte) {
	header := w.Header()
	header.Set("Content-Type", "application/json")
	header.Set("Content-Length", strconv.Itoa(len(raw)))
	header.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(raw)
}
