package api

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// everyLevel writes what it is given whatever the level that is set: a record of
// a change is not left out because somebody wants a quiet log.
type everyLevel struct{ zapcore.Core }

// Enabled implements zapcore.Core.
func (everyLevel) Enabled(zapcore.Level) bool { return true }

// With implements zapcore.Core.
func (c everyLevel) With(fields []zapcore.Field) zapcore.Core { return everyLevel{c.Core.With(fields)} }

// Check implements zapcore.Core.
func (c everyLevel) Check(e zapcore.Entry, to *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	return to.AddCore(e, c)
}

func auditLogger(log *zap.Logger) *zap.Logger {
	return log.Named("audit").WithOptions(zap.WrapCore(func(c zapcore.Core) zapcore.Core { return everyLevel{c} }))
}

// longestAudited bounds each text of a stranger's in an audit record, in bytes.
const longestAudited = 256

// secretWords mark arguments whose value is never written down, wherever it
// stands.
var secretWords = []string{"sealed", "secret", "password", "passphrase", "token", "key"}

// audit records each request that changes something, or would have, and each
// one that was refused for who sent it. Records of changes are never left out;
// those of strangers are as many as auditBudget allows.
func (s *Server) audit(rt route, r *http.Request, who caller, given args, status int, result string) {
	stranger := status == http.StatusUnauthorized || status == http.StatusTooManyRequests
	switch {
	case stranger:
		allowed, dropped := s.strangers.allow(remoteHost(r), time.Now())
		if !allowed {
			return
		}
		s.auditLog.Warn("request refused", auditFields(r, who, nil, status, result, zap.Int("left_out_before", dropped))...)
	case rt.method == get && status != http.StatusForbidden:
	default:
		s.auditLog.Info("change requested", auditFields(r, who, given, status, result)...)
	}
}

// auditFields are who, from where, what and with which result.
func auditFields(r *http.Request, who caller, given args, status int, result string, more ...zap.Field) []zap.Field {
	return append([]zap.Field{
		zap.String("who", who.name), zap.Stringer("role", who.role), zap.String("from", r.RemoteAddr),
		zap.String("method", cut(r.Method)), zap.String("path", cut(r.URL.Path)), zap.Any("arguments", redacted(given)),
		zap.Int("status", status), zap.String("result", result),
	}, more...)
}

// redacted are the arguments as they may be written down: what was sent in a
// secret's place by mistake may be the secret itself.
func redacted(given args) args {
	shown := args{}
	for name, value := range given {
		switch {
		case secretArgument(name):
			value = hiddenValue
		case name == "params": // of a workload: a password may be among them
			value = paramNames(value)
		}
		shown[name] = cut(value)
	}
	return shown
}

func secretArgument(name string) bool {
	for _, word := range secretWords {
		if strings.Contains(strings.ToLower(name), word) {
			return true
		}
	}
	return false
}

func cut(text string) string {
	if len(text) <= longestAudited {
		return text
	}
	return strings.ToValidUTF8(text[:longestAudited], "") + "…"
}

// The bound on the records of strangers, each window.
const (
	strangersEach = 10  // an address
	strangersAll  = 120 // all together
)

// auditBudget keeps strangers from filling the disk with their refusals.
type auditBudget struct {
	mu      sync.Mutex
	each    failureCount
	until   time.Time
	used    int
	dropped int
}

// allow reports whether a refusal may be recorded, and how many were not since
// the last that was.
func (b *auditBudget) allow(from string, now time.Time) (bool, int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !now.Before(b.until) {
		b.until, b.used = now.Add(authFailureWindow), 0
	}
	if b.each.note(from, now) > strangersEach || b.used >= strangersAll {
		b.dropped++
		return false, 0
	}
	b.used++
	dropped := b.dropped
	b.dropped = 0
	return true, dropped
}

// paramNames are the names of a workload's parameters, without their values.
func paramNames(text string) string {
	var given map[string]any
	if json.Unmarshal([]byte(text), &given) != nil {
		return hiddenValue
	}
	return strings.Join(slices.Sorted(maps.Keys(given)), ", ")
}
