package zkhandler

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"pvc.internal/cluster"
)

const recordVersion = 1

// encode turns a value of the kind's type into a znode's bytes. Texts are
// spelled as PVC spells them, our own records are JSON with "v".
func encode(kind cluster.KeyKind, value any) ([]byte, error) {
	switch v := value.(type) {
	case nil:
		switch kind {
		case cluster.KeyRoleLockChild, cluster.KeyFenceLockChild, cluster.KeyFaultRoot, cluster.KeyFenceOrder, cluster.KeyMemberOrder:
			return []byte{}, nil
		}
	case string:
		if textKind(kind) {
			return []byte(v), nil
		}
	case bool:
		if kind == cluster.KeyMaintenance {
			return strconv.AppendBool(nil, v), nil
		}
	case int64:
		if kind == cluster.KeyKeepalive {
			return strconv.AppendInt(nil, v, 10), nil
		}
	case int:
		switch kind {
		case cluster.KeyKeepalive, cluster.KeySchema:
			return strconv.AppendInt(nil, int64(v), 10), nil
		}
	case cluster.NodeID:
		if kind == cluster.KeyPrimaryNode {
			return []byte(v), nil
		}
	case cluster.Mode:
		if (kind == cluster.KeyNodeMode || kind == cluster.KeyDaemonMode) && v.Valid() {
			return []byte(v), nil
		}
	case cluster.DaemonState:
		if kind == cluster.KeyDaemonState && v.Valid() {
			return []byte(v), nil
		}
	case cluster.RouterState:
		if kind == cluster.KeyRouterState && v.Valid() {
			return []byte(v), nil
		}
	case cluster.DomainState:
		if kind == cluster.KeyDomainState && v.Valid() {
			return []byte(v), nil
		}
	default:
		return encodeRecord(kind, value)
	}
	return nil, fmt.Errorf("a record of kind %d cannot hold %T %v", kind, value, value)
}

func textKind(kind cluster.KeyKind) bool {
	switch kind {
	case cluster.KeyClusterName, cluster.KeyPrimaryNode, cluster.KeyUpstreamIP, cluster.KeySelector,
		cluster.KeyNodeField, cluster.KeyPluginField, cluster.KeyLog, cluster.KeyFault, cluster.KeyFaultRoot, cluster.KeyFactsDir, cluster.KeyFacts:
		return true
	}
	return false
}

// encodeRecord encodes one of our own JSON records, stamped with its version.
func encodeRecord(kind cluster.KeyKind, value any) ([]byte, error) {
	fits := false
	switch v := value.(type) {
	case cluster.Lease:
		v.Version, fits = stamp(v.Version), kind == cluster.KeyLease
		value = v
	case cluster.Transition:
		v.Version, fits = stamp(v.Version), kind == cluster.KeyTransition
		value = v
	case cluster.LockOwner:
		v.Version, fits = stamp(v.Version), kind == cluster.KeyRoleLockChild || kind == cluster.KeyFenceLockChild
		value = v
	case cluster.NodeRecord:
		v.Version, fits = stamp(v.Version), kind == cluster.KeyNodeRecord
		value = v
	case cluster.Alive:
		v.Version, fits = stamp(v.Version), kind == cluster.KeyAlive
		value = v
	case cluster.FenceRecord:
		v.Version, fits = stamp(v.Version), kind == cluster.KeyFence
		value = v
	case cluster.FenceTests:
		v.Version, fits = stamp(v.Version), kind == cluster.KeyFenceTests
		value = v
	case cluster.FenceOrder:
		v.Version, fits = stamp(v.Version), kind == cluster.KeyFenceOrder
		value = v
	case cluster.SealedSecret:
		v.Version, fits = stamp(v.Version), kind == cluster.KeySecret
		value = v
	case cluster.QuorumSet:
		v.Version, fits = stamp(v.Version), kind == cluster.KeyQuorumSet && v.Validate() == nil
		value = v
	case cluster.Members:
		v.Version, fits = stamp(v.Version), kind == cluster.KeyMembers
		value = v
	case cluster.NodeLeases:
		v.Version, fits = stamp(v.Version), kind == cluster.KeyNodeLeases
		value = v
	case cluster.MemberOrder:
		v.Version, fits = stamp(v.Version), kind == cluster.KeyMemberOrder
		value = v
	case cluster.ActivityRecord:
		v.Version, fits = stamp(v.Version), kind == cluster.KeyActivity
		value = v
	case cluster.FailoverSettings:
		v.Version, fits = stamp(v.Version), kind == cluster.KeyFailover
		value = v
	case cluster.MaintenanceRecord:
		v.Version, fits = stamp(v.Version), kind == cluster.KeyMaintenanceRecord
		value = v
	case cluster.Event:
		v.Version, fits = stamp(v.Version), kind == cluster.KeyHistory
		value = v
	case cluster.Workload, cluster.ReprovisionSettings, cluster.Rebalance:
		return encodeWorkloads(kind, value)
	default:
		fits = kind == cluster.KeyView
	}
	if !fits {
		return nil, fmt.Errorf("a record of kind %d cannot hold a %T", kind, value)
	}
	data, err := json.Marshal(value)
	if err != nil {
		return nil, fmt.Errorf("encode a %T: %w", value, err)
	}
	return data, nil
}

// encodeWorkloads encodes the records that have to do with workloads. What whoever
// reads it would have to leave alone is not written.
func encodeWorkloads(kind cluster.KeyKind, value any) ([]byte, error) {
	fits, fault := false, error(nil)
	switch v := value.(type) {
	case cluster.Workload:
		v.Version, fits, fault = stamp(v.Version), kind == cluster.KeyWorkload, v.Validate()
		value = v
	case cluster.ReprovisionSettings:
		v.Version, fits, fault = stamp(v.Version), kind == cluster.KeyReprovision, v.Validate()
		value = v
	case cluster.Rebalance:
		v.Version, fits = stamp(v.Version), kind == cluster.KeyRebalance
		value = v
	}
	switch {
	case !fits:
		return nil, fmt.Errorf("a record of kind %d cannot hold a %T", kind, value)
	case fault != nil:
		return nil, fault
	}
	data, err := json.Marshal(value)
	if err != nil {
		return nil, fmt.Errorf("encode a %T: %w", value, err)
	}
	return data, nil
}

func stamp(version int) int {
	if version == 0 {
		return recordVersion
	}
	return version
}

// The decoders are tolerant: blanks around a text, PVC's older spellings,
// fields and versions of a newer program, are all read. What has no meaning is
// an error, never a zero value that looks like one.

func decodeText(data []byte) (string, error) {
	return strings.TrimSpace(string(data)), nil
}

func decodePrimary(data []byte) (string, error) {
	text := strings.TrimSpace(string(data))
	if text == "" || strings.EqualFold(text, cluster.NoNode) {
		return cluster.NoNode, nil
	}
	return text, cluster.NodeID(text).Validate()
}

func decodeBool(data []byte) (bool, error) {
	switch strings.ToLower(strings.TrimSpace(string(data))) {
	case "true":
		return true, nil
	case "false", "":
		return false, nil
	}
	return false, fmt.Errorf("%s is neither true nor false", excerpt(data))
}

func decodeSeconds(data []byte) (int64, error) {
	text, _, _ := strings.Cut(strings.TrimSpace(string(data)), ".") // PVC's tools have written fractions
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s is not a number of UNIX seconds", excerpt(data))
	}
	return n, nil
}

func decodeSchema(data []byte) (int, error) {
	n, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || n < cluster.FirstSchema {
		return 0, fmt.Errorf("%s, not a version number", excerpt(data))
	}
	return n, nil
}

func decodeMode(data []byte) (cluster.Mode, error) {
	return decodeWord(data, cluster.Mode.Valid, "daemon mode")
}

func decodeDaemonState(data []byte) (cluster.DaemonState, error) {
	return decodeWord(data, cluster.DaemonState.Valid, "daemon state")
}

func decodeRouterState(data []byte) (cluster.RouterState, error) {
	return decodeWord(data, cluster.RouterState.Valid, "router state")
}

func decodeDomainState(data []byte) (cluster.DomainState, error) {
	return decodeWord(data, cluster.DomainState.Valid, "domain state")
}

func decodeWord[T ~string](data []byte, valid func(T) bool, what string) (T, error) {
	word := T(strings.TrimSpace(string(data)))
	if !valid(word) {
		return "", fmt.Errorf("%s is not a %s", excerpt(data), what)
	}
	return word, nil
}

func decodeRecord[T any](data []byte) (T, error) {
	var value, zero T
	trimmed := bytes.TrimSpace(data)
	if len(trimmed) == 0 || trimmed[0] != '{' {
		return zero, fmt.Errorf("%s is not a JSON object", excerpt(data))
	}
	if err := json.Unmarshal(trimmed, &value); err != nil {
		return zero, fmt.Errorf("%s: %w", excerpt(data), err)
	}
	return value, nil
}

// maxLeaseTTL bounds how long a lease may claim to last: a longer one would
// keep everybody from the role until somebody mends the record.
const maxLeaseTTL = time.Hour

// decodeLease refuses a lease from which nobody can tell how long its holder
// may still act (I1): one without a version, and a held one without a ttl.
func decodeLease(data []byte) (cluster.Lease, error) {
	lease, err := decodeRecord[cluster.Lease](data)
	switch {
	case err != nil:
	case lease.Version <= 0:
		err = fmt.Errorf("%s: a lease has a version \"v\" above 0", excerpt(data))
	case lease.TTLMillis < 0 || lease.TTLMillis == 0 && !lease.Released() || lease.TTLMillis > maxLeaseTTL.Milliseconds():
		err = fmt.Errorf("%s: ttl_ms is %d, not within 1 and %d", excerpt(data), lease.TTLMillis, maxLeaseTTL.Milliseconds())
	default:
		err = checkEpoch(data, lease.Epoch)
	}
	if err != nil {
		return cluster.Lease{}, err
	}
	return lease, nil
}

func decodeTransition(data []byte) (cluster.Transition, error) {
	t, err := decodeRecord[cluster.Transition](data)
	if err == nil {
		err = checkEpoch(data, t.Epoch)
	}
	if err != nil {
		return cluster.Transition{}, err
	}
	return t, nil
}

func decodeFence(data []byte) (cluster.FenceRecord, error) {
	f, err := decodeRecord[cluster.FenceRecord](data)
	if err == nil {
		err = checkEpoch(data, f.Epoch)
	}
	if err != nil {
		return cluster.FenceRecord{}, err
	}
	return f, nil
}

// emptied reports whether a record stands without a value, as a fence order's
// does once it has been answered.
func emptied(data []byte) bool { return len(bytes.TrimSpace(data)) == 0 }

// decodeFenceOrder refuses an order that does not say what to do: nothing is
// guessed where power may be taken.
func decodeFenceOrder(data []byte) (cluster.FenceOrder, error) {
	o, err := decodeRecord[cluster.FenceOrder](data)
	switch {
	case err != nil:
	case o.ID == "" || o.Node == "" || o.Action == "":
		err = fmt.Errorf("%s: an order has an id, a node and an action", excerpt(data))
	}
	if err != nil {
		return cluster.FenceOrder{}, err
	}
	return o, nil
}

// decodeQuorumSet refuses a set of which no majority could be held, and one from
// which nobody can tell who is in it: what counts is never guessed (A3).
func decodeQuorumSet(data []byte) (cluster.QuorumSet, error) {
	q, err := decodeRecord[cluster.QuorumSet](data)
	switch {
	case err != nil:
	case q.Version <= 0:
		err = fmt.Errorf("%s: a quorum set has a version \"v\" above 0", excerpt(data))
	default:
		if err = q.Validate(); err == nil {
			err = checkEpoch(data, q.Epoch)
		}
	}
	if err != nil {
		return cluster.QuorumSet{}, err
	}
	return q, nil
}

// decodeMembers refuses a record that names nobody where it should.
func decodeMembers(data []byte) (cluster.Members, error) {
	m, err := decodeRecord[cluster.Members](data)
	if err == nil {
		err = checkEpoch(data, m.Epoch)
	}
	for _, r := range m.Removed {
		if err == nil {
			err = r.Node.Validate()
		}
	}
	if err != nil {
		return cluster.Members{}, err
	}
	return m, nil
}

// decodeMemberOrder refuses an order that does not say what to do.
func decodeMemberOrder(data []byte) (cluster.MemberOrder, error) {
	o, err := decodeRecord[cluster.MemberOrder](data)
	switch {
	case err != nil:
	case o.ID == "" || o.Node == "" || o.Action == "":
		err = fmt.Errorf("%s: an order has an id, a node and an action", excerpt(data))
	}
	if err != nil {
		return cluster.MemberOrder{}, err
	}
	return o, nil
}

// decodeActivity refuses a record that does not say what runs where: a sweep
// would take it for somebody else's.
func decodeActivity(data []byte) (cluster.ActivityRecord, error) {
	a, err := decodeRecord[cluster.ActivityRecord](data)
	switch {
	case err != nil:
	case a.ID == "" || a.Node == "" || a.Incarnation == "":
		err = fmt.Errorf("%s: an activity has an id, a node and an incarnation", excerpt(data))
	default:
		err = checkEpoch(data, a.Epoch)
	}
	if err != nil {
		return cluster.ActivityRecord{}, err
	}
	return a, nil
}

// decodeWorkload refuses what nobody could tell a copy's place from: the workload
// is then left alone until somebody mends its record.
func decodeWorkload(data []byte) (cluster.Workload, error) {
	w, err := decodeRecord[cluster.Workload](data)
	if err == nil {
		err = w.Validate()
	}
	if err == nil && w.Next != nil {
		err = checkEpoch(data, w.Next.Epoch)
	}
	if err == nil && w.Answer != nil {
		err = checkEpoch(data, w.Answer.Epoch)
	}
	if err != nil {
		return cluster.Workload{}, err
	}
	return w, nil
}

// decodeReprovision refuses settings that do not say how many nodes may be
// reprovisioned.
func decodeReprovision(data []byte) (cluster.ReprovisionSettings, error) {
	s, err := decodeRecord[cluster.ReprovisionSettings](data)
	if err == nil {
		if err = s.Validate(); err != nil {
			err = fmt.Errorf("%s: %w", excerpt(data), err)
		}
	}
	if err != nil {
		return cluster.ReprovisionSettings{}, err
	}
	return s, nil
}

// decodeRebalance refuses a record that does not say which rebalance it is of, or
// how far that is.
func decodeRebalance(data []byte) (cluster.Rebalance, error) {
	r, err := decodeRecord[cluster.Rebalance](data)
	switch {
	case err != nil:
	case r.ID == "" || r.State == "":
		err = fmt.Errorf("%s: a rebalance has an id and a state", excerpt(data))
	default:
		err = checkEpoch(data, r.Epoch)
	}
	if err != nil {
		return cluster.Rebalance{}, err
	}
	return r, nil
}

// checkEpoch refuses an epoch from which adding one could wrap around, so that
// a typing error never makes all later holders stale (I2).
func checkEpoch(data []byte, e cluster.Epoch) error {
	if e > cluster.MaxEpoch {
		return fmt.Errorf("%s: epoch %d is above %d", excerpt(data), uint64(e), uint64(cluster.MaxEpoch))
	}
	return nil
}

// decodeLockOwner reports whether the data is ours; any other child of a lock
// is a foreign client's.
func decodeLockOwner(data []byte) (owner cluster.LockOwner, ours bool) {
	owner, err := decodeRecord[cluster.LockOwner](data)
	if err != nil || owner.Version == 0 || owner.Node.Validate() != nil || owner.Incarnation == "" {
		return cluster.LockOwner{}, false
	}
	return owner, true
}

// excerpt quotes a record for a message, cut short.
func excerpt(data []byte) string {
	const most = 60
	if len(data) > most {
		return fmt.Sprintf("%q…", data[:most])
	}
	return fmt.Sprintf("%q", data)
}
