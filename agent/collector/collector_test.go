package collector

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"pvc.internal/cluster"
	"pvc.internal/proc"
)

func TestHostFigures(t *testing.T) {
	h := NewHost()
	for range 2 {
		v, err := h.Collect(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		n := func(leaf string) int {
			i, err := strconv.Atoi(v[leaf])
			if err != nil || i < 0 {
				t.Fatalf("%s is %q", leaf, v[leaf])
			}
			return i
		}
		if total := n("memtotal"); total < 64 || n("memused")+n("memfree") > total || n("memused")+n("memfree") < total-2 {
			t.Fatalf("memory %v", v)
		}
		if !regexp.MustCompile(`^\d+\.\d\d$`).MatchString(v["cpuload"]) {
			t.Fatalf("load %q", v["cpuload"])
		}
		if !regexp.MustCompile(`^[1-9]\d* \S+ GNU/Linux \S+$`).MatchString(v["staticdata"]) {
			t.Fatalf("static data %q", v["staticdata"])
		}
	}
}

// plugin makes one whose program is a shell script.
func plugin(t *testing.T, script string) (*Plugin, *Health) {
	t.Helper()
	timeout := 30 * time.Second
	if strings.HasSuffix(script, "sleep 1000") { // never ends
		timeout = 300 * time.Millisecond
	}
	plugins, health, err := NewPlugins([]PluginConfig{{
		Name: "load", Command: []string{"/bin/sh", "-c", script}, Timeout: timeout}})
	if err != nil {
		t.Fatal(err)
	}
	return plugins[0], health
}

func leaf(t *testing.T, values map[string]string, name string) string {
	t.Helper()
	v, ok := values["monitoring_data/load/"+name]
	if !ok {
		t.Fatalf("%s is missing in %v", name, values)
	}
	return v
}

func TestAPluginsStatusTextAndFigures(t *testing.T) {
	for _, c := range []struct {
		script, message, data, delta, health string
	}{
		{`echo "OK - load 0.5|load1=0.50;9;10;0"`, "OK - load 0.5", `{"load1":{"value":0.5,"warn":"9","crit":"10","min":"0"}}`, "0", "100"},
		{`echo "WARNING - hot|'a b'=7C"; exit 1`, "WARNING - hot", `{"a b":{"value":7,"unit":"C"}}`, "10", "90"},
		{`printf 'CRITICAL - full\nlong text | x=1\ny=2%%'; exit 2`, "CRITICAL - full", `{"x":{"value":1},"y":{"value":2,"unit":"%"}}`, "50", "50"},
		{`echo what; exit 3`, "what", `{}`, "10", "90"},
		{`echo problem >&2; exit 2`, "CRITICAL - /bin/sh printed nothing: problem", `{}`, "50", "50"},
	} {
		p, h := plugin(t, c.script)
		v, err := p.Collect(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if leaf(t, v, "message") != c.message || leaf(t, v, "data") != c.data || leaf(t, v, "health_delta") != c.delta {
			t.Errorf("%s: %v", c.script, v)
		}
		if run, err := strconv.ParseInt(leaf(t, v, "last_run"), 10, 64); err != nil || time.Since(time.Unix(run, 0)) > time.Minute {
			t.Errorf("last run %q", leaf(t, v, "last_run"))
		}
		if _, err := strconv.ParseFloat(leaf(t, v, "runtime"), 64); err != nil || len(v) != 5 {
			t.Errorf("leaves %v", v)
		}
		of, _ := h.Collect(t.Context())
		if want := map[string]string{"monitoring_plugins": "load", "monitoring_health": c.health}; !maps.Equal(of, want) {
			t.Errorf("%s: health %v", c.script, of)
		}
	}
}

func TestWhatGoesWrongWithAPluginBecomesItsMessage(t *testing.T) {
	for script, want := range map[string]string{
		`echo so far; sleep 1000`: `^UNKNOWN - /bin/sh did not end within 300ms and was killed: so far$`,
		`setsid sh -c 'trap "" TERM HUP; echo $$ >&2; sleep 1000' & echo OK; exit 0`: `^OK$`,
		`head -c 10485760 /dev/zero | tr '\0' x; exit 0`:                             `^x{512} \(it printed more than 64 KiB; the rest was dropped\)$`,
		`kill -SEGV $$`: `^UNKNOWN - /bin/sh was ended by SIGSEGV$`,
		`echo oops; echo no module >&2; exit 126`: `^UNKNOWN - /bin/sh ended with status 126, not 0–3: oops ?no module$`,
		`printf 'OK \033[31m\377 red'`:            `^OK \[31m� red$`,
	} {
		p, _ := plugin(t, script)
		began := time.Now()
		v, err := p.Collect(t.Context())
		if err != nil {
			t.Errorf("%s: failed: %v", script, err)
			continue
		}
		if m := leaf(t, v, "message"); !regexp.MustCompile(want).MatchString(m) || len(m) > maxMessage {
			t.Errorf("%s: message %q", script, m)
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("%s: took %v", script, took)
		}
	}
	plugins, _, err := NewPlugins([]PluginConfig{{Name: "load", Command: []string{"/no/such/check_load"}}})
	if err != nil {
		t.Fatal(err)
	}
	v, err := plugins[0].Collect(t.Context())
	if m := v["monitoring_data/load/message"]; err != nil || !strings.Contains(m, "/no/such/check_load cannot be run") || v["monitoring_data/load/health_delta"] != "10" {
		t.Errorf("missing program: %q, %v", m, err)
	}
}

func TestAPluginsGrandchildInItsOwnSessionDies(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pid")
	p, _ := plugin(t, `setsid sh -c 'echo $$ > `+file+`; exec sleep 1000' & sleep 1000`)
	if _, err := p.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat("/proc/" + strings.TrimSpace(string(raw)) + "/exe"); err == nil {
		t.Fatal("it lives on")
	}
}

func TestACollectionCalledOffIsNoVerdict(t *testing.T) {
	p, _ := plugin(t, `sleep 1000`)
	ctx, cancel := context.WithCancelCause(t.Context())
	shutdown := errors.New("shutting down")
	time.AfterFunc(50*time.Millisecond, func() { cancel(shutdown) })
	if v, err := p.Collect(ctx); !errors.Is(err, shutdown) || len(v) != 0 {
		t.Fatalf("%v, %v", v, err)
	}
}

// A run that survives SIGKILL is stood in for by a process that lives on.
func TestARunThatCannotBeKilledIsNotStartedAgain(t *testing.T) {
	p, _ := plugin(t, ``)
	left, err := proc.Start(proc.Command{Argv: []string{"/bin/sh", "-c", "sleep 1000"}})
	if err != nil {
		t.Fatal(err)
	}
	runs := 0
	p.run = func(context.Context, proc.Command) (proc.Result, error) {
		if runs++; runs > 1 {
			return proc.Result{Stdout: []byte("OK again")}, nil
		}
		return proc.Result{Left: left, Killed: true, ExitCode: -1}, fmt.Errorf("%w: %w", cluster.ErrDeadline, proc.ErrStraggler)
	}
	first, _ := p.Collect(t.Context())
	second, _ := p.Collect(t.Context())
	if runs != 1 || !strings.Contains(leaf(t, first, "message"), "killed") || !strings.Contains(leaf(t, second, "message"), strconv.Itoa(left.Pid())) {
		t.Fatalf("%d runs: %v, then %v", runs, first, second)
	}
	if err := left.Stop(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if third, _ := p.Collect(t.Context()); leaf(t, third, "message") != "OK again" {
		t.Fatalf("after it is gone: %v", third)
	}
}

// The guard is asked with each keepalive unless it is known that nothing is here and
// nothing is being ordered.
func TestWhereNoCopyIsTheGuardIsAskedSeldom(t *testing.T) {
	var names []string
	var fails error
	busy := false
	c := NewCopies(func(context.Context) ([]string, error) { return names, fails }, func() bool { return busy })
	expect := func(what string, want time.Duration) {
		t.Helper()
		if got := c.Interval(); got != want {
			t.Errorf("%s: asked each %v, not each %v", what, got, want)
		}
	}
	expect("before the first answer", 0)
	look := func() {
		if v, err := c.Collect(t.Context()); err == nil && v["domainscount"] != strconv.Itoa(len(names)) {
			t.Errorf("%v of %v", v, names)
		}
	}
	look()
	expect("nothing is here", restingInterval)
	busy = true
	expect("nothing is here yet, but is being ordered", 0)
	busy = false
	fails = errors.New("no answer")
	look()
	expect("not known", 0)
	names, fails = []string{"cache"}, nil
	look()
	expect("a copy is here", 0)
}

func TestHealthIsNeverBelowZero(t *testing.T) {
	_, h, err := NewPlugins([]PluginConfig{{Name: "b", Command: []string{"x"}}, {Name: "a", Command: []string{"x"}}})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		h.set(strconv.Itoa(i), 50)
	}
	v, _ := h.Collect(t.Context())
	if v["monitoring_health"] != "0" || v["monitoring_plugins"] != "a b" {
		t.Fatalf("%v", v)
	}
}

func TestWrongPluginSettingsAreRefused(t *testing.T) {
	ok := PluginConfig{Name: "load", Command: []string{"x"}}
	for name, list := range map[string][]PluginConfig{
		"slash":    {{Name: "../load", Command: []string{"x"}}},
		"dot":      {{Name: "..", Command: []string{"x"}}},
		"no name":  {{Command: []string{"x"}}},
		"nothing":  {{Name: "load"}},
		"empty":    {{Name: "load", Command: []string{""}}},
		"negative": {{Name: "load", Command: []string{"x"}, Interval: -1}},
		"twice":    {ok, ok},
	} {
		if _, _, err := NewPlugins(list); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	plugins, _, err := NewPlugins([]PluginConfig{ok})
	if err != nil || plugins[0].Interval() != 10*time.Second || plugins[0].Deadline() <= 5*time.Second {
		t.Fatalf("%+v, %v", plugins, err)
	}
}

func TestPerformanceData(t *testing.T) {
	for in, want := range map[string]map[string]Perf{
		"":                    {},
		"a=1 b=2.5MB;;;;":     {"a": {Value: 1}, "b": {Value: 2.5, Unit: "MB"}},
		"a=-3;1:2;~:5":        {"a": {Value: -3, Warn: "1:2", Crit: "~:5"}},
		"'it''s'=1s x=U y=":   {"it's": {Value: 1, Unit: "s"}},
		"junk a=1":            {"a": {Value: 1}},
		"'open=1":             {},
		"a=1e3 b=nan c=inf =": {"a": {Value: 1000}},
		"é=1":                 {"é": {Value: 1}},
	} {
		if got := parsePerf(in); !maps.Equal(got, want) {
			t.Errorf("%q: %v, want %v", in, got, want)
		}
	}
}

func FuzzPluginOutput(f *testing.F) {
	for _, seed := range []string{"OK|a=1", "OK - x\nmore|'a b'=1;2;3\n", "|'", "|=", "|''=1", "x|a=\xff"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, out string) {
		text, perf := splitOutput(out)
		figures := parsePerf(perf)
		if _, err := json.Marshal(figures); err != nil || len(figures) > maxPerf {
			t.Fatalf("%d figures, %v", len(figures), err)
		}
		if m := clip(text); len(m) > maxMessage || !utf8.ValidString(m) || strings.ContainsAny(m, "\n\r\x00") {
			t.Fatalf("message %q", m)
		}
		if !slices.IsSorted([]int{len(text), len(out)}) {
			t.Fatal("the text grew")
		}
	})
}
