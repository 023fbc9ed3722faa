package settings

import (
	"fmt"
	"os"
	"strings"

	"go.uber.org/zap"
	"go.uber.org/zap/buffer"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"
)

// NewLogger returns a logger to standard error, and its level, which may be
// changed while the program runs. It never samples, since a dropped line may be
// the one that explains a fence.
func NewLogger(l Log) (*zap.Logger, zap.AtomicLevel, error) {
	level, err := zap.ParseAtomicLevel(l.Level)
	if err != nil {
		return nil, level, fmt.Errorf("log.level: %w", err)
	}
	to := destinationOf(os.Stderr, os.Getenv)
	return zap.New(zapcore.NewCore(encoder(l.Format, to), zapcore.Lock(os.Stderr), level)), level, nil
}

// destination is what is known of where the lines go.
type destination struct {
	terminal bool
	colours  bool
	journal  bool // systemd's: a line may say its priority in front
}

func destinationOf(f *os.File, getenv func(string) string) destination {
	d := destination{terminal: isTerminal(f)}
	d.colours = d.terminal && getenv("NO_COLOR") == "" && getenv("TERM") != "dumb"
	var s unix.Stat_t
	if unix.Fstat(int(f.Fd()), &s) == nil {
		d.journal = getenv("JOURNAL_STREAM") == fmt.Sprintf("%d:%d", s.Dev, s.Ino)
	}
	return d
}

// encoder is how a line is written: for people on a terminal, else as JSON,
// unless the settings say otherwise.
func encoder(format string, to destination) zapcore.Encoder {
	c := zap.NewProductionEncoderConfig()
	c.TimeKey = "time"
	c.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	c.EncodeDuration = zapcore.StringDurationEncoder
	e := zapcore.NewJSONEncoder(c)
	if format == LogConsole || format != LogJSON && to.terminal {
		c.EncodeTime = zapcore.TimeEncoderOfLayout("15:04:05.000")
		c.EncodeLevel = zapcore.CapitalLevelEncoder
		if to.colours {
			c.EncodeLevel = zapcore.CapitalColorLevelEncoder
		}
		e = zapcore.NewConsoleEncoder(c)
	}
	if to.journal {
		return prioritised{e}
	}
	return e
}

// prioritised puts the priority in front of each line, as sd-daemon(3) has it;
// the journal takes it off, and `journalctl -p warning` works.
type prioritised struct{ zapcore.Encoder }

var lines = buffer.NewPool()

// Clone implements zapcore.Encoder.
func (p prioritised) Clone() zapcore.Encoder { return prioritised{p.Encoder.Clone()} }

// EncodeEntry implements zapcore.Encoder.
func (p prioritised) EncodeEntry(e zapcore.Entry, fields []zapcore.Field) (*buffer.Buffer, error) {
	line, err := p.Encoder.EncodeEntry(e, fields)
	if err != nil {
		return nil, err
	}
	defer line.Free()
	out := lines.Get()
	priority := priorityOf(e.Level)
	for _, part := range strings.SplitAfter(line.String(), "\n") { // a stack's lines, too
		if part != "" {
			out.AppendString(priority + part)
		}
	}
	return out, nil
}

func priorityOf(l zapcore.Level) string {
	switch {
	case l >= zapcore.DPanicLevel:
		return "<2>"
	case l == zapcore.ErrorLevel:
		return "<3>"
	case l == zapcore.WarnLevel:
		return "<4>"
	case l == zapcore.InfoLevel:
		return "<6>"
	}
	return "<7>"
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
