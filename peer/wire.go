package peer

import (
	"encoding/json"
	"fmt"
	"regexp"
	"time"

	"pvc.internal/cluster"
)

// The wire.
const (
	// prefix stands before the kind in a request's path. A change that an older
	// peer would misread gets a new number.
	prefix = "/peer/v1/"
	// MaxBody is the most that a question or an answer may hold, in bytes.
	MaxBody = 64 << 10
	// maxHeader bounds the header lines of either direction.
	maxHeader = 8 << 10
	// KindProbe asks whether a node is alive; every Server answers it.
	KindProbe = "probe"
	// leftHeader tells the server how many milliseconds the asker still waits.
	leftHeader = "Pvc-Left-Ms"
)

var kindName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)

func checkKind(kind string) error {
	if !kindName.MatchString(kind) {
		return fmt.Errorf("%q is no kind of question: use 1–32 small letters, digits and '-'", kind)
	}
	return nil
}

// StoreLink is how a node stands to ZooKeeper. All ages are counted by that
// node up to the moment of its answer.
type StoreLink struct {
	Live         bool          // its session is connected
	Since        time.Duration // how long that has been so, or not
	Acknowledged time.Duration // age of its newest acknowledged write; negative: none since it started
}

// Status is a node's answer to a probe.
type Status struct {
	Node        cluster.NodeID
	Incarnation cluster.Incarnation
	Store       StoreLink
}

// statusWire is Status on the wire: ages in milliseconds, rounded down.
type statusWire struct {
	Version     int                 `json:"v"`
	Node        cluster.NodeID      `json:"node"`
	Incarnation cluster.Incarnation `json:"incarnation"`
	Store       struct {
		Live           bool   `json:"live"`
		SinceMs        int64  `json:"since_ms"`
		AcknowledgedMs *int64 `json:"acknowledged_ms,omitempty"` // absent: none
	} `json:"store"`
}

func encodeStatus(s Status) ([]byte, error) {
	w := statusWire{Version: 1, Node: s.Node, Incarnation: s.Incarnation}
	w.Store.Live, w.Store.SinceMs = s.Store.Live, s.Store.Since.Milliseconds()
	if s.Store.Acknowledged >= 0 {
		ms := s.Store.Acknowledged.Milliseconds()
		w.Store.AcknowledgedMs = &ms
	}
	return json.Marshal(w)
}

// DecodeStatus reads the answer to a probe; it ignores what it does not know.
func DecodeStatus(raw []byte) (Status, error) {
	var w statusWire
	if err := json.Unmarshal(raw, &w); err != nil {
		return Status{}, fmt.Errorf("read the answer to a probe: %w", err)
	}
	if w.Version < 1 || w.Node == "" || !plausible(w.Store.SinceMs) || (w.Store.AcknowledgedMs != nil && !plausible(*w.Store.AcknowledgedMs)) {
		return Status{}, fmt.Errorf("read the answer to a probe: %q lacks its version or node, or has an impossible age", raw)
	}
	s := Status{Node: w.Node, Incarnation: w.Incarnation,
		Store: StoreLink{Live: w.Store.Live, Since: time.Duration(w.Store.SinceMs) * time.Millisecond, Acknowledged: -1}}
	if w.Store.AcknowledgedMs != nil {
		s.Store.Acknowledged = time.Duration(*w.Store.AcknowledgedMs) * time.Millisecond
	}
	return s, nil
}

// plausible reports whether an age in milliseconds is one, and no time of day.
func plausible(ms int64) bool { return ms >= 0 && ms < int64(30*365*24*time.Hour/time.Millisecond) }

// complaint is the body of every answer that is not a success.
type complaint struct {
	Error string `json:"error"`
}
