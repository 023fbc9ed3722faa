package lease

import (
	"encoding/json"
	"fmt"
	"time"

	"pvc.internal/cluster"
)

// Record is what a node's lease file says. It changes when somebody else is
// served, not when time passes: a lease that is extended costs no write (L4).
type Record struct {
	// Epoch is the largest ever seen here, and EpochOf whose it was.
	Epoch   cluster.Epoch
	EpochOf cluster.NodeID
	// Held: somebody is served, or work for it may live. Holder is zero where it
	// is not known who.
	Held   bool
	Holder cluster.NodeLeaseID
	Period time.Duration
	// Clean: the daemon stopped in order when Left was left of the lease; else
	// the whole period counts.
	Clean bool
	Left  time.Duration
}

// recordVersion is the newest form of the file that this program understands.
const recordVersion = 1

// maxRecord is how many bytes of a lease file are looked at.
const maxRecord = 16 << 10

type recordJSON struct {
	V       int                  `json:"v"`
	Epoch   cluster.Epoch        `json:"epoch,omitempty"`
	EpochOf cluster.NodeID       `json:"epoch_of,omitempty"`
	Held    bool                 `json:"held"`
	Holder  *cluster.NodeLeaseID `json:"holder,omitempty"`
	Period  time.Duration        `json:"period_ns,omitempty"`
	Left    *time.Duration       `json:"left_ns,omitempty"` // after a clean stop only
	Sum     uint32               `json:"sum"`
}

// EncodeRecord renders the file.
func EncodeRecord(r Record) ([]byte, error) {
	j := recordJSON{V: recordVersion, Epoch: r.Epoch, EpochOf: r.EpochOf, Held: r.Held, Period: r.Period}
	if !r.Holder.IsZero() {
		j.Holder = &r.Holder
	}
	if r.Clean {
		j.Left = &r.Left
	}
	j.Sum = j.sum()
	raw, err := json.Marshal(j)
	if err != nil {
		return nil, fmt.Errorf("encode the lease record: %w", err)
	}
	return append(raw, '\n'), nil
}

// DecodeRecord reads the file. An error says why it cannot be believed; the node
// then counts as promised to somebody unknown for a whole period.
func DecodeRecord(raw []byte) (Record, error) {
	if len(raw) > maxRecord {
		return Record{}, fmt.Errorf("the lease record has %d bytes, more than %d", len(raw), maxRecord)
	}
	var version struct {
		V int `json:"v"`
	}
	if err := json.Unmarshal(raw, &version); err != nil {
		return Record{}, fmt.Errorf("read the lease record: %w", err)
	}
	if version.V != recordVersion {
		return Record{}, fmt.Errorf("the lease record has version %d, this program understands %d: another version of it wrote the file", version.V, recordVersion)
	}
	var j recordJSON
	if err := json.Unmarshal(raw, &j); err != nil {
		return Record{}, fmt.Errorf("read the lease record: %w", err)
	}
	if sum := j.sum(); sum != j.Sum {
		return Record{}, fmt.Errorf("the lease record's sum is %d where its contents give %d: it is damaged", j.Sum, sum)
	}
	return j.record()
}

// record checks what the file claims.
func (j recordJSON) record() (Record, error) {
	r := Record{Epoch: j.Epoch, EpochOf: j.EpochOf, Held: j.Held, Period: j.Period}
	if j.Holder != nil {
		r.Holder = *j.Holder
		if err := r.Holder.Valid(); err != nil {
			return Record{}, fmt.Errorf("lease record: %w", err)
		}
	}
	if j.Left != nil {
		r.Clean, r.Left = true, *j.Left
	}
	switch {
	case r.Epoch > cluster.MaxEpoch || r.Holder.Epoch > r.Epoch:
		return Record{}, fmt.Errorf("lease record: the epoch %d is not believable", r.Epoch)
	case r.Held && (r.Period <= 0 || r.Period > cluster.MaxNodeLeaseWait):
		return Record{}, fmt.Errorf("lease record: the period %s is not between 0 and %s", r.Period, cluster.MaxNodeLeaseWait)
	case r.Left < 0 || r.Left > r.Period || (r.Clean && !r.Held):
		return Record{}, fmt.Errorf("lease record: %s cannot be left of %s", r.Left, r.Period)
	case !r.Held && !r.Holder.IsZero():
		return Record{}, fmt.Errorf("lease record: nobody is served, and yet %s", r.Holder)
	}
	return r, nil
}

// sum finds what a disk or an editor has damaged; it keeps nobody out.
func (j recordJSON) sum() uint32 {
	j.Sum = 0
	raw, err := json.Marshal(j)
	if err != nil {
		return 0
	}
	sum := uint32(2166136261) // FNV-1a
	for _, b := range raw {
		sum = (sum ^ uint32(b)) * 16777619
	}
	return sum
}
