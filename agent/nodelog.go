package agent

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

const (
	// nodeLogBytes bounds a node's log in the store, and what waits to go there.
	nodeLogBytes = 64 << 10
	// nodeLogLine bounds one line.
	nodeLogLine = 2 << 10
)

// NodeLog gathers this node's newest log lines for the store, where they can be
// read from any other node (`pvc node log`). Whoever logs never waits for it:
// beyond its bound the oldest line goes, and their number is told in their place.
// The agent that it is handed to brings the lines to the store.
type NodeLog struct {
	mu      sync.Mutex
	waiting []string // oldest first
	bytes   int
	first   uint64 // number of the oldest that waits
	lost    uint64 // dropped since the last that was shipped
	more    chan struct{}
}

// NewNodeLog makes an empty one.
func NewNodeLog() *NodeLog { return &NodeLog{more: make(chan struct{}, 1)} }

// Core takes every entry of Info and above that the level lets through: what the
// journal has, and nothing else.
func (l *NodeLog) Core(level zapcore.LevelEnabler) zapcore.Core {
	c := zap.NewProductionEncoderConfig()
	c.EncodeTime = func(t time.Time, to zapcore.PrimitiveArrayEncoder) {
		to.AppendString(t.UTC().Format("2006-01-02T15:04:05.000Z"))
	}
	c.EncodeDuration = zapcore.StringDurationEncoder
	c.EncodeLevel = zapcore.CapitalLevelEncoder
	c.CallerKey, c.ConsoleSeparator = "", " "
	return &nodeLogCore{log: l, level: level, encoder: zapcore.NewConsoleEncoder(c)}
}

// nodeLogCore is a NodeLog as zap wants it.
type nodeLogCore struct {
	log     *NodeLog
	level   zapcore.LevelEnabler
	encoder zapcore.Encoder
}

// Enabled implements zapcore.LevelEnabler.
func (c *nodeLogCore) Enabled(l zapcore.Level) bool {
	return l >= zapcore.InfoLevel && c.level.Enabled(l)
}

// With implements zapcore.Core.
func (c *nodeLogCore) With(fields []zapcore.Field) zapcore.Core {
	encoder := c.encoder.Clone()
	for _, f := range fields {
		f.AddTo(encoder)
	}
	return &nodeLogCore{c.log, c.level, encoder}
}

// Check implements zapcore.Core.
func (c *nodeLogCore) Check(e zapcore.Entry, to *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return to.AddCore(e, c)
	}
	return to
}

// Write implements zapcore.Core; it never waits.
func (c *nodeLogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	e.Stack = "" // the journal has it
	line, err := c.encoder.EncodeEntry(e, fields)
	if err != nil {
		return err
	}
	defer line.Free()
	c.log.add(oneLine(line.String()))
	return nil
}

// Sync implements zapcore.Core.
func (c *nodeLogCore) Sync() error { return nil }

var lineBreaks = strings.NewReplacer("\r\n", " | ", "\n", " | ", "\r", " | ", "\x1b", "")

// oneLine makes of an entry a single line of bounded length.
func oneLine(s string) string {
	s = strings.TrimRight(s, "\n")
	if len(s) > nodeLogLine {
		s = s[:nodeLogLine] + "…"
	}
	return lineBreaks.Replace(strings.ToValidUTF8(s, "?"))
}

func (l *NodeLog) add(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting = append(l.waiting, line)
	l.bytes += len(line) + 1
	for l.bytes > nodeLogBytes {
		l.drop(1)
		l.lost++
	}
	select {
	case l.more <- struct{}{}:
	default:
	}
}

// drop forgets the n oldest; with mu held.
func (l *NodeLog) drop(n int) {
	for _, line := range l.waiting[:n] {
		l.bytes -= len(line) + 1
	}
	l.waiting = l.waiting[n:]
	l.first += uint64(n)
	if len(l.waiting) == 0 {
		l.waiting = nil // not to keep what was long
	}
}

// parcel is a batch of lines on its way.
type parcel struct {
	lines []string
	end   uint64 // number of the line behind the last
	lost  uint64 // that the first line tells of
}

// parcel returns what waits, oldest first; it goes on waiting until shipped.
func (l *NodeLog) parcel() parcel {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := parcel{end: l.first + uint64(len(l.waiting)), lost: l.lost}
	if l.lost > 0 {
		p.lines = append(p.lines, fmt.Sprintf("(%d earlier lines are left out: too many came at once, or the store was away; the journal has them)", l.lost))
	}
	p.lines = append(p.lines, l.waiting...)
	return p
}

// shipped forgets what a parcel held, as far as it still waits.
func (l *NodeLog) shipped(p parcel) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lost -= min(l.lost, p.lost)
	if p.end > l.first {
		l.drop(int(min(p.end-l.first, uint64(len(l.waiting)))))
	}
}

// some reports whether anything waits.
func (l *NodeLog) some() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.waiting) > 0
}
