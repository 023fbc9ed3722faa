package collector

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"pvc.internal/cluster"
	"pvc.internal/proc"
)

// PluginConfig is one monitoring plugin: an executable that prints a line of
// text, optionally "|" and performance data, and exits 0 (ok), 1 (warning),
// 2 (critical) or 3 (unknown).
type PluginConfig struct {
	Name     string
	Command  []string
	Interval time.Duration // default 10 s
	Timeout  time.Duration // default 5 s
}

// Bounds of what a plugin may publish, in bytes.
const (
	maxMessage = 1 << 10
	maxData    = 16 << 10
)

// How much each status takes off a node's health of 100.
var healthDelta = [...]int{0: 0, 1: 10, 2: 50, 3: 10}

// statusNames are the plugin statuses as they begin a message.
var statusNames = [...]string{"OK", "WARNING", "CRITICAL", "UNKNOWN"}

const unknown = 3

var pluginName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$`)

// Validate reports what is wrong with the plugin's settings.
func (c PluginConfig) Validate() error {
	switch {
	case !pluginName.MatchString(c.Name):
		return fmt.Errorf("plugin %q: a name is 1–63 letters, digits, '-' or '_'", c.Name)
	case len(c.Command) == 0 || c.Command[0] == "":
		return fmt.Errorf("plugin %s: no command", c.Name)
	case c.Interval < 0 || c.Timeout < 0:
		return fmt.Errorf("plugin %s: interval %v and timeout %v must not be negative", c.Name, c.Interval, c.Timeout)
	}
	return nil
}

// Plugin is the collector of one monitoring plugin, on its own interval. What
// goes wrong with the plugin (it is missing, hangs, prints megabytes, leaves
// processes behind) becomes its message, never the collector's failure.
type Plugin struct {
	c      PluginConfig
	health *Health
	run    func(context.Context, proc.Command) (proc.Result, error)
	wall   func() time.Time

	// Only Collect touches it, and it is never called twice at a time.
	left *proc.Process // of an earlier run, survives SIGKILL
}

// Health collects what all plugins together say of the node.
type Health struct {
	names []string

	mu     sync.Mutex
	deltas map[string]int
}

// NewPlugins makes a collector for each plugin and one for the node's health.
// Two plugins of one name are an error.
func NewPlugins(configs []PluginConfig) ([]*Plugin, *Health, error) {
	h := &Health{deltas: map[string]int{}}
	var plugins []*Plugin
	for _, c := range configs {
		if err := c.Validate(); err != nil {
			return nil, nil, err
		}
		if slices.Contains(h.names, c.Name) {
			return nil, nil, fmt.Errorf("plugin %s: there are two of this name", c.Name)
		}
		if c.Interval == 0 {
			c.Interval = 10 * time.Second
		}
		if c.Timeout == 0 {
			c.Timeout = 5 * time.Second
		}
		h.names = append(h.names, c.Name)
		plugins = append(plugins, &Plugin{c: c, health: h, run: proc.Run, wall: time.Now})
	}
	slices.Sort(h.names)
	return plugins, h, nil
}

// Name implements agent.Collector.
func (h *Health) Name() string { return "health" }

// Collect returns monitoring_plugins, their names separated by blanks, and
// monitoring_health, 0–100.
func (h *Health) Collect(context.Context) (map[string]string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	health := 100
	for _, d := range h.deltas {
		health -= d
	}
	return map[string]string{
		"monitoring_plugins": strings.Join(h.names, " "),
		"monitoring_health":  strconv.Itoa(max(0, health)),
	}, nil
}

func (h *Health) set(plugin string, delta int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.deltas[plugin] = delta
}

// Name implements agent.Collector.
func (p *Plugin) Name() string { return "plugin " + p.c.Name }

// Interval is how often the plugin runs.
func (p *Plugin) Interval() time.Duration { return p.c.Interval }

// Deadline leaves the plugin its own timeout and proc the time to end it.
func (p *Plugin) Deadline() time.Duration { return p.c.Timeout + 3*time.Second }

// verdict is what a run of a plugin comes to.
type verdict struct {
	status  int
	message string
	data    map[string]Perf
	runtime time.Duration
}

// Collect runs the plugin and returns its leaves below monitoring_data/<name>:
// last_run (unix seconds), health_delta, message, data (JSON of the
// performance data), runtime (seconds). The error is the context's when the
// collection was called off.
func (p *Plugin) Collect(ctx context.Context) (map[string]string, error) {
	began := p.wall()
	v := p.check(ctx)
	if ctx.Err() != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return nil, fmt.Errorf("run plugin %s: %w", p.c.Name, context.Cause(ctx))
	}
	p.health.set(p.c.Name, healthDelta[v.status])
	data, err := json.Marshal(v.data)
	if err != nil || len(data) > maxData {
		data = []byte("{}")
		v.message = clip(v.message + " (performance data left out: too large)")
	}
	base := "monitoring_data/" + p.c.Name + "/"
	return map[string]string{
		base + "last_run":     strconv.FormatInt(began.Unix(), 10),
		base + "health_delta": strconv.Itoa(healthDelta[v.status]),
		base + "message":      v.message,
		base + "data":         string(data),
		base + "runtime":      strconv.FormatFloat(v.runtime.Seconds(), 'f', 2, 64),
	}, nil
}

// check runs the plugin once, unless an earlier run cannot be got rid of.
func (p *Plugin) check(ctx context.Context) verdict {
	if p.left != nil && !p.left.Gone() {
		p.left.Kill()
		return verdict{status: unknown, data: map[string]Perf{}, message: fmt.Sprintf(
			"UNKNOWN - an earlier run (pid %d) survives SIGKILL, likely blocked on storage: not started again until it is gone", p.left.Pid())}
	}
	p.left = nil
	r, err := p.run(ctx, proc.Command{Argv: p.c.Command, Timeout: p.c.Timeout})
	p.left = r.Left
	text, perf := splitOutput(string(r.Stdout))
	v := verdict{status: unknown, data: parsePerf(perf), runtime: r.Duration}
	v.message = clip(p.explain(&v, r, err, text))
	return v
}

// explain finds the status and says in words what happened.
func (p *Plugin) explain(v *verdict, r proc.Result, err error, text string) string {
	program := p.c.Command[0]
	switch {
	case errors.Is(err, proc.ErrNotStarted):
		return fmt.Sprintf("UNKNOWN - %s cannot be run: %v", program, err)
	case errors.Is(err, cluster.ErrDeadline) || r.Killed:
		return fmt.Sprintf("UNKNOWN - %s did not end within %v and was killed%s", program, p.c.Timeout, quote(text))
	case err != nil:
		return fmt.Sprintf("UNKNOWN - %s: %v", program, err)
	case r.Signal != "":
		return fmt.Sprintf("UNKNOWN - %s was ended by %s%s", program, r.Signal, quote(text))
	case r.ExitCode < 0 || r.ExitCode > unknown:
		return fmt.Sprintf("UNKNOWN - %s ended with status %d, not 0–3%s", program, r.ExitCode, quote(text+string(r.Stderr)))
	}
	v.status = r.ExitCode
	if strings.TrimSpace(text) == "" {
		text = fmt.Sprintf("%s - %s printed nothing%s", statusNames[v.status], program, quote(string(r.Stderr)))
	}
	if r.Truncated {
		text = clip(text)[:min(len(clip(text)), maxMessage/2)] + fmt.Sprintf(" (it printed more than %d KiB; the rest was dropped)", proc.DefaultOutputLimit>>10)
	}
	return text
}

// quote appends what a failed plugin said, if anything.
func quote(text string) string {
	if text = clip(text); text == "" {
		return ""
	}
	return ": " + text
}

// clip makes a text fit for a message: one line, printable, bounded.
func clip(text string) string {
	if len(text) > 4*maxMessage {
		text = text[:4*maxMessage]
	}
	text = strings.ToValidUTF8(text, "�")
	text = strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return ' '
		}
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, text)
	text = strings.TrimSpace(text)
	for len(text) > maxMessage {
		_, last := utf8.DecodeLastRuneInString(text)
		text = text[:len(text)-last]
	}
	return text
}
