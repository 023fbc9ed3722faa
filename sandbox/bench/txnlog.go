package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// txn is one transaction out of a ZooKeeper server's own log.
type txn struct {
	zxid    int64
	at      time.Time // when the leader took it in, by its clock, to a millisecond
	session int64
	writes  []write
	failed  bool // a Multi of which nothing came about
}

// write is what a transaction did to one znode.
type write struct {
	path string
	data []byte // of a set or create
	kind int32
}

// The types of ZooKeeper's transactions that carry a path.
const (
	txnCreate    = 1
	txnDelete    = 2
	txnSet       = 5
	txnCheck     = 13
	txnMulti     = 14
	txnCreate2   = 15
	txnContainer = 19
	txnTTL       = 21
	txnError     = -1
)

// sets returns what the transaction wrote to the path; ok is false if nothing.
func (t txn) sets(path string) (data []byte, ok bool) {
	for _, w := range t.writes {
		if w.path == path && (w.kind == txnSet || w.kind == txnCreate || w.kind == txnCreate2) {
			return w.data, true
		}
	}
	return nil, false
}

var errShort = errors.New("record ends early")

// field reads from a record; after an error it returns zeros.
type field struct {
	raw []byte
	err error
}

func (f *field) take(n int) []byte {
	if f.err != nil || n < 0 || n > len(f.raw) {
		f.err = errShort
		return nil
	}
	b := f.raw[:n]
	f.raw = f.raw[n:]
	return b
}

func (f *field) int32() int32 {
	if b := f.take(4); b != nil {
		return int32(binary.BigEndian.Uint32(b))
	}
	return 0
}

func (f *field) int64() int64 {
	if b := f.take(8); b != nil {
		return int64(binary.BigEndian.Uint64(b))
	}
	return 0
}

// bytes reads a buffer; a length of −1 is none.
func (f *field) bytes() []byte {
	n := f.int32()
	if n < 0 {
		return nil
	}
	return f.take(int(n))
}

// parseTxn reads one record of the log.
func parseTxn(raw []byte) (txn, error) {
	f := &field{raw: raw}
	t := txn{session: f.int64()}
	_ = f.int32() // the request's number in its session
	t.zxid = f.int64()
	t.at = time.UnixMilli(f.int64())
	kind := f.int32()
	if kind != txnMulti {
		t.add(kind, f)
		return t, f.err
	}
	for range f.int32() {
		part := f.int32()
		if part == txnError {
			t.failed = true
		}
		t.add(part, &field{raw: f.bytes()})
		if f.err != nil {
			break
		}
	}
	return t, f.err
}

func (t *txn) add(kind int32, f *field) {
	switch kind {
	case txnCreate, txnCreate2, txnContainer, txnTTL, txnSet:
		t.writes = append(t.writes, write{path: string(f.bytes()), data: f.bytes(), kind: kind})
	case txnDelete, txnCheck:
		t.writes = append(t.writes, write{path: string(f.bytes()), kind: kind})
	}
}

// readLog reads one log file up to its padding, or to a record that is being
// written.
func readLog(r io.Reader) ([]txn, error) {
	all, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	if len(all) < 16 || string(all[:4]) != "ZKLG" {
		return nil, errors.New("not a transaction log of ZooKeeper")
	}
	f := &field{raw: all[16:]}
	var out []txn
	for {
		_ = f.int64() // checksum
		body := f.bytes()
		if f.err != nil || len(body) == 0 {
			return out, nil //nolint:nilerr // the log's end: it is being written
		}
		t, err := parseTxn(body)
		if err != nil {
			return out, fmt.Errorf("transaction %d of the log: %w", len(out)+1, err)
		}
		out = append(out, t)
		_ = f.take(1) // end of record
	}
}

// transactions reads all logs in a ZooKeeper server's data folder, oldest
// transaction first, from the given time on.
func transactions(dir string, from time.Time) ([]txn, error) {
	files, err := filepath.Glob(filepath.Join(dir, "version-2", "log.*"))
	if err != nil || len(files) == 0 {
		return nil, fmt.Errorf("no transaction log in %s: %w", dir, errors.Join(err, os.ErrNotExist))
	}
	var out []txn
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		part, err := readLog(f)
		_ = f.Close()
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		for _, t := range part {
			if !t.at.Before(from) {
				out = append(out, t)
			}
		}
	}
	slices.SortFunc(out, func(a, b txn) int {
		switch {
		case a.zxid < b.zxid:
			return -1
		case a.zxid > b.zxid:
			return 1
		}
		return 0
	})
	return slices.CompactFunc(out, func(a, b txn) bool { return a.zxid == b.zxid }), nil
}

// leasePath is the record of who is primary.
const leasePath = "/agent/lease/primary"

func keepalivePath(node string) string { return "/nodes/" + node + "/keepalive" }

// keepaliveNode returns whose keepalive the transaction writes, or "".
func (t txn) keepaliveNode() string {
	for _, w := range t.writes {
		if rest, ok := strings.CutPrefix(w.path, "/nodes/"); ok && w.kind == txnSet {
			if node, leaf, ok := strings.Cut(rest, "/"); ok && leaf == "keepalive" {
				return node
			}
		}
	}
	return ""
}

// intervals are the times between the successful writes of a znode.
func intervals(all []txn, path string) []time.Duration {
	var out []time.Duration
	var last time.Time
	for _, t := range all {
		if _, ok := t.sets(path); !ok || t.failed {
			continue
		}
		if !last.IsZero() {
			out = append(out, t.at.Sub(last))
		}
		last = t.at
	}
	return out
}
