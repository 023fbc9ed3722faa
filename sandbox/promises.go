package sandbox

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"pvc.internal/cluster"
)

// promiseLog takes out of a coordinator's log what it has promised the holder
// of the role. Nothing else tells: an outage that bound everybody may be over
// before it can be seen from outside, and a server's answer, a late one above
// all, does not say which writes were without one for how long. The daemon
// writes the line after it is bound and before it answers, so that whatever
// the holder may rest on stands in the log, no earlier than it was given.
type promiseLog struct {
	node cluster.NodeID
	path string
	read int64 // bytes that have been taken
}

// promisedLine is a line of the daemon's log, as far as it tells of promises.
type promisedLine struct {
	Time     time.Time      `json:"time"`
	Msg      string         `json:"msg"`
	Peer     cluster.NodeID `json:"peer"`
	Right    string         `json:"right"`
	Promised string         `json:"promised"`
}

// The line's words.
const (
	promisedMsg  = "asked in an outage"
	promisedRole = "role"
)

// fresh returns the promises that have been logged since the last call; boot
// turns a reading of the wall clock into one of the boot clock.
func (l *promiseLog) fresh(boot func(time.Time) cluster.Instant) ([]Entry, error) {
	f, err := os.Open(l.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil // the daemon has not been started yet
	case err != nil:
		return nil, fmt.Errorf("read what %s has promised: %w", l.node, err)
	}
	defer f.Close()
	if _, err := f.Seek(l.read, io.SeekStart); err != nil {
		return nil, fmt.Errorf("read what %s has promised: %w", l.node, err)
	}
	text, err := io.ReadAll(f)
	if err != nil {
		return nil, fmt.Errorf("read what %s has promised: %w", l.node, err)
	}
	text = text[:bytes.LastIndexByte(text, '\n')+1] // what is being written comes next time
	l.read += int64(len(text))
	return parsePromises(l.node, text, boot), nil
}

func parsePromises(node cluster.NodeID, text []byte, boot func(time.Time) cluster.Instant) []Entry {
	var out []Entry
	for line := range bytes.Lines(text) {
		var l promisedLine
		if !bytes.Contains(line, []byte(promisedMsg)) || json.Unmarshal(line, &l) != nil || l.Msg != promisedMsg || l.Right != promisedRole {
			continue
		}
		if d, err := time.ParseDuration(l.Promised); err == nil && d > 0 {
			out = append(out, Entry{At: boot(l.Time), Kind: KindPromise, Node: node, By: string(l.Peer), TTLMillis: d.Milliseconds()})
		}
	}
	return out
}
