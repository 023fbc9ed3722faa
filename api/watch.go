package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"pvc.internal/cluster"
)

// Ages are the seconds since each node's keepalive was last seen to change.
// They are sent each second beside the changes, and have no version.
type Ages map[string]float64

// The rhythm of a watch.
const (
	beatEvery    = time.Second
	longPollWait = 30 * time.Second
	sendTimeout  = 5 * time.Second // of one event; a client that does not read is dropped
)

// watch sends the view at once if the client's version is another, and at each
// change: as server-sent events where they are accepted, else one answer. A
// version of another server, or of this one before its restart, is simply
// another, so a client resumes anywhere without losing a change.
func (s *Server) watch(w http.ResponseWriter, r *request) error {
	select {
	case s.watchers <- struct{}{}:
		defer func() { <-s.watchers }()
	default:
		return refuse(http.StatusServiceUnavailable, fmt.Sprintf("There are %d watchers already; try again later.", maxWatchers))
	}
	since := r.args.text("since")
	if last := r.http.Header.Get("Last-Event-ID"); last != "" {
		since = last
	}
	if strings.Contains(r.http.Header.Get("Accept"), "text/event-stream") {
		s.streamEvents(w, r, since)
		return nil
	}
	return s.longPoll(w, r, since)
}

// longPoll answers with the view as soon as its version is not since; with the
// same view when nothing happened.
func (s *Server) longPoll(w http.ResponseWriter, r *request, since string) error {
	wait := r.args.wait(longPollWait)
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(wait + writeTimeout))
	over := time.NewTimer(wait)
	defer over.Stop()
	for waiting := true; waiting; {
		st := s.view.current(s.now())
		if st.version != since {
			break
		}
		select {
		case <-st.changed:
		case <-over.C:
			waiting = false
		case <-r.ctx.Done():
			return r.ctx.Err()
		case <-r.access.replaced:
			if fail := s.still(r); fail != nil {
				return fail
			}
		case <-s.stopping:
			waiting = false
		}
	}
	text, err := s.clusterEvent(s.view.current(s.now()))
	if err != nil {
		return err
	}
	w.Header().Set("Cache-Control", "no-store")
	writeText(w, http.StatusOK, text.body)
	return nil
}

// streamEvents sends "cluster" events with the version as id, and "ages".
func (s *Server) streamEvents(w http.ResponseWriter, r *request, since string) {
	out := &eventStream{w: w, control: http.NewResponseController(w), within: s.sendWithin}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no")
	beat := time.NewTicker(beatEvery)
	defer beat.Stop()
	out.write([]byte(": watching\n\n"))
	for out.err == nil {
		st := s.view.current(s.now())
		if st.version != since {
			text, err := s.clusterEvent(st)
			if err != nil {
				return
			}
			out.write(text.event)
			since = text.version
		}
		select {
		case <-st.changed:
		case <-beat.C:
			text, err := s.agesEvent()
			if err != nil {
				return
			}
			out.write(text)
		case <-r.access.replaced:
			if s.still(r) != nil {
				return
			}
		case <-r.ctx.Done():
			return
		case <-s.stopping:
			return
		}
	}
}

// broadcast keeps what was sent last, encoded once for all watchers.
type broadcast struct {
	mu      sync.Mutex
	cluster broadcastText
	ages    broadcastText
}

// broadcastText is not changed once it is kept.
type broadcastText struct {
	counter uint64 // of the view, with its name
	version string
	made    cluster.Instant
	event   []byte // with what surrounds the body; nil before the first
	body    []byte // within event
}

// clusterEvent is the view, or a later one, as an event and as a body. Its ages
// are a beat old at most.
func (s *Server) clusterEvent(st state) (broadcastText, error) {
	b := &s.broadcast
	b.mu.Lock()
	defer b.mu.Unlock()
	if last := b.cluster; last.event != nil && last.counter >= st.counter && st.now.Sub(last.made) < beatEvery {
		return last, nil
	}
	text, err := textOf("cluster", st.version, st.cluster())
	if err != nil {
		return text, err
	}
	text.counter, text.version, text.made = st.counter, st.version, st.now
	b.cluster = text
	return text, nil
}

// agesEvent is the ages as an event; watchers share those of half a beat.
func (s *Server) agesEvent() ([]byte, error) {
	b := &s.broadcast
	b.mu.Lock()
	defer b.mu.Unlock()
	now := s.now()
	if b.ages.event != nil && now.Sub(b.ages.made) < beatEvery/2 {
		return b.ages.event, nil
	}
	text, err := textOf("ages", "", s.view.current(now).ages())
	if err != nil {
		return nil, err
	}
	text.made = now
	b.ages = text
	return text.event, nil
}

func textOf(event, id string, data any) (broadcastText, error) {
	raw, err := json.Marshal(data)
	if err != nil {
		return broadcastText{}, fmt.Errorf("encode the event %q: %w", event, err)
	}
	var text bytes.Buffer
	fmt.Fprintf(&text, "event: %s\n", event)
	if id != "" {
		fmt.Fprintf(&text, "id: %s\n", id)
	}
	text.WriteString("data: ")
	from := text.Len()
	text.Write(raw)
	text.WriteString("\n\n")
	whole := bytes.Clone(text.Bytes()) // no larger than it is: it may stay for long
	return broadcastText{event: whole, body: whole[from : from+len(raw)+1]}, nil
}

func (st state) ages() Ages {
	ages := Ages{}
	if st.snap != nil {
		for name, n := range st.snap.Nodes {
			if n.Keepalive.Present {
				ages[string(name)] = st.now.Sub(n.Keepalive.SeenAt).Seconds()
			}
		}
	}
	return ages
}

// eventStream writes server-sent events; after the first error it does nothing.
type eventStream struct {
	w       http.ResponseWriter
	control *http.ResponseController
	within  time.Duration // of one event
	err     error
}

func (e *eventStream) write(text []byte) {
	if e.err != nil {
		return
	}
	_ = e.control.SetWriteDeadline(time.Now().Add(e.within))
	if _, e.err = e.w.Write(text); e.err == nil {
		e.err = e.control.Flush()
	}
}
