package driver

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
)

// Bounds of what is kept of one workload.
const (
	ocfRecordVersion = 1
	maxOCFRecord     = 256 << 10 // bytes
	maxOCFAttributes = 256       // of one lifetime
	maxOCFAttribute  = 8 << 10   // bytes of one value
	ocfLockTimeout   = 5 * time.Second
	ocfLockPause     = 2 * time.Millisecond
)

// The lifetimes of attributes: until the machine's next boot, for ever, and those
// that Pacemaker keeps once for the whole cluster, of which a node has its own
// idea here.
const (
	attributeReboot  = "reboot"
	attributeForever = "forever"
	attributeCluster = "cluster"
)

// ocfRecord is what this node keeps of its copy of a workload: what the agent has
// said by the commands of Pacemaker (attributes, the promotion score), and what it
// was last ordered. Nothing that safety needs stands only here.
type ocfRecord struct {
	Version int    `json:"v"`
	ID      string `json:"id"`   // Workload.ID; another one begins anew
	Boot    string `json:"boot"` // the kernel's; what is of another one has ended
	// Start names the start of the copy by this driver; "": none is under way.
	Start string `json:"start,omitempty"`
	// Promoted is the node whose copy is the active one, as far as was told here.
	Promoted cluster.NodeID `json:"promoted,omitempty"`
	// Activation names the activation that the copy was last told of.
	Activation string                       `json:"activation,omitempty"`
	Attributes map[string]map[string]string `json:"attributes,omitempty"`
}

// follows is whom the copy of this node follows, as far as it was told.
func (r ocfRecord) follows(self cluster.NodeID) cluster.NodeID {
	if r.Promoted == self {
		return cluster.NoCopy
	}
	return r.Promoted
}

// attribute returns an attribute of one lifetime.
func (r ocfRecord) attribute(lifetime, name string) (string, bool) {
	v, ok := r.Attributes[lifetime][name]
	return v, ok
}

// setAttribute sets one; nil deletes it. It fails where too many or too long ones
// are kept.
func (r *ocfRecord) setAttribute(lifetime, name string, value *string) error {
	if value == nil {
		delete(r.Attributes[lifetime], name)
		return nil
	}
	if r.Attributes == nil {
		r.Attributes = map[string]map[string]string{}
	}
	of := r.Attributes[lifetime]
	if of == nil {
		of = map[string]string{}
		r.Attributes[lifetime] = of
	}
	if _, known := of[name]; !known && len(of) >= maxOCFAttributes || len(name)+len(*value) > maxOCFAttribute {
		return fmt.Errorf("attribute %.64q: at most %d of %d bytes are kept: %w", name, maxOCFAttributes, maxOCFAttribute, cluster.ErrTooLarge)
	}
	of[name] = *value
	return nil
}

// infinity is Pacemaker's largest score.
const infinity = 1_000_000

// scoreAttribute is the name under which an instance's promotion score is kept.
func scoreAttribute(instance string) string {
	name, _, _ := strings.Cut(instance, ":")
	return "master-" + name
}

// score is the promotion score that the copy has said.
func (r ocfRecord) score(instance string) (int64, bool) {
	text, ok := r.attribute(attributeReboot, scoreAttribute(instance))
	if !ok {
		text, ok = r.attribute(attributeForever, scoreAttribute(instance))
	}
	if !ok {
		return 0, false
	}
	switch strings.ToUpper(text) {
	case "INFINITY", "+INFINITY":
		return infinity, true
	case "-INFINITY":
		return -infinity, true
	}
	n, err := strconv.ParseInt(text, 10, 64)
	return min(max(n, -infinity), infinity), err == nil
}

// ocfStore keeps the records of a node, one file each. What changes one holds its
// lock, since the agents' commands do so from processes of their own.
type ocfStore struct{ dir string }

func (s ocfStore) file(workload string) string { return filepath.Join(s.dir, workload+".json") }

// load reads a workload's record. One of an earlier workload of the name, and one
// that cannot be read, is an empty one; what a boot has ended is not in it.
func (s ocfStore) load(workload, id string) ocfRecord {
	return readOCFRecord(s.file(workload), id)
}

// earlier reports whether the newest start that was kept under the name is of
// another workload.
func (s ocfStore) earlier(workload, id string) bool {
	r, ok := parseOCFRecord(s.file(workload))
	return ok && r.ID != id && r.Start != ""
}

func parseOCFRecord(file string) (r ocfRecord, ok bool) {
	raw, err := readBounded(file, maxOCFRecord)
	if err != nil || json.Unmarshal(raw, &r) != nil || r.Version != ocfRecordVersion {
		return ocfRecord{}, false
	}
	return r, true
}

func readOCFRecord(file, id string) ocfRecord {
	empty := ocfRecord{Version: ocfRecordVersion, ID: id, Boot: bootID()}
	r, ok := parseOCFRecord(file)
	if !ok || r.ID != id {
		return empty
	}
	if r.Boot != empty.Boot {
		delete(r.Attributes, attributeReboot)
		r.Boot, r.Start, r.Promoted, r.Activation = empty.Boot, "", cluster.NoCopy, ""
	}
	return r
}

// change applies an edit to a workload's record.
func (s ocfStore) change(workload, id string, edit func(*ocfRecord) error) error {
	return changeOCFRecord(s.file(workload), id, edit)
}

// changeOCFRecord applies an edit to a record's file, whole or not at all. It is
// not made durable: after a loss of power an older one counts, or none.
func changeOCFRecord(file, id string, edit func(*ocfRecord) error) error {
	unlock, err := lockOCF(file)
	if err != nil {
		return err
	}
	defer unlock()
	r := readOCFRecord(file, id)
	if err := edit(&r); err != nil {
		return err
	}
	raw, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode %s: %w", file, err)
	}
	if len(raw) > maxOCFRecord {
		return fmt.Errorf("write %s: %d bytes, more than %d: %w", file, len(raw), maxOCFRecord, cluster.ErrTooLarge)
	}
	next := file + ".new" // nobody else writes it: we hold the lock
	if err := os.WriteFile(next, raw, 0o600); err != nil {
		return fmt.Errorf("keep the state of an OCF copy: %w", err)
	}
	if err := os.Rename(next, file); err != nil {
		return fmt.Errorf("keep the state of an OCF copy: %w", err)
	}
	return nil
}

// forget removes a workload's record.
func (s ocfStore) forget(workload string) error {
	unlock, err := lockOCF(s.file(workload))
	if err != nil {
		return err
	}
	defer unlock()
	for _, f := range []string{s.file(workload), s.file(workload) + ".lock"} {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("forget the state of an OCF copy: %w", err)
		}
	}
	return nil
}

// lockOCF takes the lock of a record's file.
func lockOCF(file string) (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return nil, fmt.Errorf("keep the state of an OCF copy: %w", err)
	}
	f, err := os.OpenFile(file+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the state of an OCF copy: %w", err)
	}
	for end := time.Now().Add(ocfLockTimeout); ; time.Sleep(ocfLockPause) {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			return func() { f.Close() }, nil
		}
		if time.Now().After(end) {
			f.Close()
			return nil, fmt.Errorf("lock the state of an OCF copy: %s is held by another process since %v: %w", f.Name(), ocfLockTimeout, cluster.ErrDeadline)
		}
	}
}

func readBounded(file string, limit int64) ([]byte, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if info.Size() > limit {
		return nil, fmt.Errorf("read %s: it has %d bytes: %w", file, info.Size(), cluster.ErrTooLarge)
	}
	return os.ReadFile(file)
}

// bootID names this boot of the kernel.
func bootID() string {
	raw, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(raw))
}
