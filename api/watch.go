package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"
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
		case <-s.stopping:
			waiting = false
		}
	}
	writeJSON(w, http.StatusOK, s.view.current(s.now()).cluster())
	return nil
}

// streamEvents sends "cluster" events with the version as id, and "ages".
func (s *Server) streamEvents(w http.ResponseWriter, r *request, since string) {
	out := &eventStream{w: w, control: http.NewResponseController(w)}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no")
	beat := time.NewTicker(beatEvery)
	defer beat.Stop()
	out.comment("watching")
	for out.err == nil {
		st := s.view.current(s.now())
		if st.version != since {
			out.send("cluster", st.version, st.cluster())
			since = st.version
		}
		select {
		case <-st.changed:
		case <-beat.C:
			out.send("ages", "", st.ages())
		case <-r.ctx.Done():
			return
		case <-s.stopping:
			return
		}
	}
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
	err     error
}

func (e *eventStream) send(event, id string, data any) {
	raw, err := json.Marshal(data)
	if err != nil {
		e.err = err
		return
	}
	text := "event: " + event + "\n"
	if id != "" {
		text += "id: " + id + "\n"
	}
	e.write(text + "data: " + string(raw) + "\n\n")
}

func (e *eventStream) comment(text string) { e.write(": " + text + "\n\n") }

func (e *eventStream) write(text string) {
	if e.err != nil {
		return
	}
	_ = e.control.SetWriteDeadline(time.Now().Add(sendTimeout))
	if _, e.err = e.w.Write([]byte(text)); e.err == nil {
		e.err = e.control.Flush()
	}
}
