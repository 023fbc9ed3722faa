package settings

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"
)

func encode(t *testing.T, format string, to destination, level zapcore.Level) string {
	t.Helper()
	b, err := encoder(format, to).EncodeEntry(zapcore.Entry{Level: level, Time: time.Unix(1, 0).UTC(), Message: "hello", LoggerName: "zk"},
		[]zapcore.Field{zap.Duration("after", time.Second), zap.Error(errors.New("two\nlines"))})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestLogFormats(t *testing.T) {
	for name, c := range map[string]struct {
		format string
		to     destination
		level  zapcore.Level
		json   bool
		want   []string
		not    string
	}{
		"a pipe":               {LogAuto, destination{}, zapcore.InfoLevel, true, []string{`"after":"1s"`, `"time":"1970-01-01T00:00:01Z"`}, "\x1b"},
		"a terminal":           {LogAuto, destination{terminal: true, colours: true}, zapcore.WarnLevel, false, []string{"\x1b[33mWARN", "hello"}, "<4>"},
		"one without colours":  {LogAuto, destination{terminal: true}, zapcore.WarnLevel, false, []string{"\tWARN\t", "00:00:01.000"}, "\x1b"},
		"json on a terminal":   {LogJSON, destination{terminal: true, colours: true}, zapcore.InfoLevel, true, nil, "\x1b"},
		"console into a pipe":  {LogConsole, destination{}, zapcore.InfoLevel, false, []string{"\tINFO\t"}, "\x1b"},
		"the journal":          {LogAuto, destination{journal: true}, zapcore.ErrorLevel, false, []string{`<3>{"level":"error"`}, "\x1b"},
		"the journal, for all": {LogJSON, destination{journal: true}, zapcore.DebugLevel, false, []string{`<7>{`}, "\x1b"},
	} {
		line := encode(t, c.format, c.to, c.level)
		if json.Valid([]byte(line)) != c.json {
			t.Errorf("%s: %q, JSON: %v", name, line, !c.json)
		}
		for _, want := range c.want {
			if !strings.Contains(line, want) {
				t.Errorf("%s: %q does not hold %q", name, line, want)
			}
		}
		if strings.Contains(line, c.not) && c.not != "" {
			t.Errorf("%s: %q holds %q", name, line, c.not)
		}
	}
}

func TestDestination(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "log")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var s unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &s); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"JOURNAL_STREAM": fmt.Sprintf("%d:%d", s.Dev, s.Ino)}
	if d := destinationOf(f, func(name string) string { return env[name] }); d != (destination{journal: true}) {
		t.Errorf("%+v", d)
	}
	env["JOURNAL_STREAM"] = "1:1" // inherited, and standard error redirected since
	if d := destinationOf(f, func(name string) string { return env[name] }); d != (destination{}) {
		t.Errorf("%+v", d)
	}
}

// Ten thousand equal lines are ten thousand lines; the level follows at once.
func TestLogIsNotSampledAndFollowsItsLevel(t *testing.T) {
	stderr := os.Stderr
	f, err := os.CreateTemp(t.TempDir(), "log")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	os.Stderr = f
	defer func() { os.Stderr = stderr }()
	log, level, err := NewLogger(Log{Level: "info", Format: LogAuto})
	if err != nil {
		t.Fatal(err)
	}
	child := log.Named("child").With(zap.Int("n", 1))
	for range 1000 {
		child.Info("the same")
	}
	child.Debug("not yet")
	level.SetLevel(zapcore.DebugLevel)
	child.Debug("now")
	level.SetLevel(zapcore.WarnLevel)
	child.Info("no more")
	content, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(content), "the same"); n != 1000 {
		t.Errorf("%d of 1000 lines", n)
	}
	if strings.Contains(string(content), "not yet") || strings.Contains(string(content), "no more") || !strings.Contains(string(content), `"msg":"now"`) {
		t.Errorf("%s", content[len(content)-300:])
	}
}

func TestColoursAreForTerminalsOnly(t *testing.T) {
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no terminal to be had: %v", err)
	}
	defer terminal.Close()
	for env, colours := range map[string]bool{"": true, "NO_COLOR=1": false, "TERM=dumb": false, "TERM=xterm": true} {
		name, value, _ := strings.Cut(env, "=")
		d := destinationOf(terminal, func(asked string) string {
			if asked == name {
				return value
			}
			return ""
		})
		if !d.terminal || d.colours != colours {
			t.Errorf("%q: %+v", env, d)
		}
	}
}
