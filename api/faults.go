package api

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"pvc.internal/cluster"
)

// Fault is a fault of the cluster as PVC's clients know it. Times are local to
// whoever wrote them, "2006-01-02 15:04:05"; empty: never.
type Fault struct {
	ID             string `json:"id"`
	LastReported   string `json:"last_reported"`
	FirstReported  string `json:"first_reported"`
	AcknowledgedAt string `json:"acknowledged_at"`
	Status         string `json:"status"` // new or ack
	HealthDelta    int    `json:"health_delta"`
	Message        string `json:"message"`
}

// FaultRecord is a fault's leaves (first_time, last_time, ack_time, status,
// delta, message) as they are written.
type FaultRecord struct {
	ID     string
	Fields map[string]string
}

// Faults reads the records of faults.
type Faults interface {
	// ReadFaults returns all of them, ordered by id.
	ReadFaults(ctx context.Context) ([]FaultRecord, error)
}

const faultTime = "2006-01-02 15:04:05"

// newestFirst are the keys that sort backwards, as PVC sorts them.
var newestFirst = []string{"last_reported", "first_reported"}

var faultParams = []param{{name: "sort_key", kind: argText, about: "last_reported otherwise, newest first",
	choices:  []string{"first_reported", "last_reported", "acknowledged_at", "status", "health_delta", "message"},
	complain: "A valid sort key must be specified"}}

func (f FaultRecord) fault() Fault {
	delta, err := strconv.Atoi(strings.TrimSpace(f.Fields["delta"]))
	message := f.Fields["message"]
	if err != nil && f.Fields["delta"] != "" {
		message += fmt.Sprintf(" (its health delta %.20q is not a whole number and counts as 0)", f.Fields["delta"])
	}
	return Fault{ID: f.ID, LastReported: f.Fields["last_time"], FirstReported: f.Fields["first_time"],
		AcknowledgedAt: f.Fields["ack_time"], Status: f.Fields["status"], HealthDelta: delta, Message: message}
}

func (f Fault) sortedBefore(other Fault, key string) int {
	var order int
	switch key {
	case "first_reported":
		order = cmp.Compare(f.FirstReported, other.FirstReported)
	case "acknowledged_at":
		order = cmp.Compare(f.AcknowledgedAt, other.AcknowledgedAt)
	case "status":
		order = cmp.Compare(f.Status, other.Status)
	case "health_delta":
		order = cmp.Compare(f.HealthDelta, other.HealthDelta)
	case "message":
		order = cmp.Compare(f.Message, other.Message)
	default:
		order = cmp.Compare(f.LastReported, other.LastReported)
	}
	if slices.Contains(newestFirst, key) {
		return -order
	}
	return order
}

func (s *Server) getFaults(r *request) (answer, error) {
	records, err := s.faultRecords(r)
	if err != nil {
		return answer{}, err
	}
	key := r.args.text("sort_key")
	if key == "" {
		key = "last_reported"
	}
	faults := []Fault{}
	for _, f := range records {
		faults = append(faults, f.fault())
	}
	slices.SortStableFunc(faults, func(a, b Fault) int { return a.sortedBefore(b, key) })
	return ok(faults)
}

// faultRecords reads the fault that the path names, or all.
func (s *Server) faultRecords(r *request) ([]FaultRecord, error) {
	records, err := s.deps.Faults.ReadFaults(r.ctx)
	if err != nil {
		return nil, fmt.Errorf("read the faults: %w", err)
	}
	id := r.http.PathValue("fault")
	if id == "" {
		return records, nil
	}
	for _, f := range records {
		if f.ID == id {
			return []FaultRecord{f}, nil
		}
	}
	return nil, refuse(http.StatusNotFound, fmt.Sprintf("No fault with ID %s found", id))
}

func (s *Server) putFaults(r *request) (answer, error) {
	return s.changeFaults(r, "acknowledged", func(f FaultRecord) []cluster.Op {
		if f.Fields["status"] == "ack" {
			return nil
		}
		// A race is harmless here: two acknowledgements are one.
		return []cluster.Op{
			cluster.Set(faultLeaf(f.ID, "ack_time"), cluster.AnyVersion, time.Now().Format(faultTime)),
			cluster.Set(faultLeaf(f.ID, "status"), cluster.AnyVersion, "ack"),
		}
	})
}

func (s *Server) deleteFaults(r *request) (answer, error) {
	return s.changeFaults(r, "deleted", func(f FaultRecord) []cluster.Op {
		var ops []cluster.Op
		for leaf := range f.Fields {
			ops = append(ops, cluster.Delete(faultLeaf(f.ID, leaf), cluster.AnyVersion))
		}
		return append(ops, cluster.Delete(cluster.Key{Kind: cluster.KeyFaultRoot, Name: f.ID}, cluster.AnyVersion))
	})
}

func faultLeaf(id, leaf string) cluster.Key {
	return cluster.Key{Kind: cluster.KeyFault, Name: id + "/" + leaf}
}

// changeFaults changes fault by fault, each in one transaction with its entry
// in the history. One that changes meanwhile is read again; one that is gone
// by then is as its owner wants it.
func (s *Server) changeFaults(r *request, done string, change func(FaultRecord) []cluster.Op) (answer, error) {
	records, err := s.faultRecords(r)
	if err != nil {
		return answer{}, err
	}
	ids := []string{}
	for _, f := range records {
		if err := s.changeFault(r, f, done, change); err != nil && len(ids) > 0 {
			return answer{}, refuse(s.failureFor(err).status, fmt.Sprintf("Of %d faults these were %s: %s; at fault %s it failed: %v. Ask again for the rest.",
				len(records), done, strings.Join(ids, ", "), f.ID, err))
		} else if err != nil {
			return answer{}, err
		}
		ids = append(ids, f.ID)
	}
	text := fmt.Sprintf("Successfully %s fault(s) %s", done, strings.Join(ids, ", "))
	return answer{status: http.StatusOK, body: Message{text}, change: text}, nil
}

func (s *Server) changeFault(r *request, f FaultRecord, done string, change func(FaultRecord) []cluster.Op) error {
	sent := false
	for range askAttempts {
		ops := change(f)
		if len(ops) == 0 {
			return nil
		}
		result := s.commit(r.ctx, "api.fault", s.event(r, "fault", fmt.Sprintf("fault %s was %s: %s", f.ID, done, f.Fields["message"]), map[string]string{"fault": f.ID}), ops...)
		switch result.Outcome {
		case cluster.OutcomeOK:
			return nil
		case cluster.OutcomeConflict:
		case cluster.OutcomeUnknown:
			sent = true
		default:
			return outcomeError(result)
		}
		records, err := s.deps.Faults.ReadFaults(r.ctx)
		if err != nil && sent {
			return lostReply()
		}
		if err != nil {
			return fmt.Errorf("read the faults: %w", err)
		}
		at := slices.IndexFunc(records, func(now FaultRecord) bool { return now.ID == f.ID })
		if at < 0 {
			return nil
		}
		f = records[at]
	}
	if sent {
		return lostReply()
	}
	return fmt.Errorf("%w in each of %d attempts; ask again", cluster.ErrConflict, askAttempts)
}
