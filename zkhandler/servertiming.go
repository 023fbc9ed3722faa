package zkhandler

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
)

const (
	confTimeout = 800 * time.Millisecond // for the whole exchange, dial and TLS included
	confRetry   = 30 * time.Second       // until a server that did not answer is asked again
	confMax     = 64 << 10               // a longer answer is no ZooKeeper's

	maxTickTime  = time.Hour // beyond these the numbers are taken for rubbish,
	maxSyncLimit = 100_000   // and three times their product fits a Duration
)

// errConfRefused says that the server lives but does not tell its settings.
var errConfRefused = errors.New("the server does not allow the command conf")

// serverTiming is what a server says of its own intervals.
type serverTiming struct {
	tick  time.Duration
	limit int // ticks after which a follower that is cut off gives up; 0 for a server that stands alone
}

// blind is for how long a follower that is cut off from its leader may go on
// answering pings and reads.
func (s serverTiming) blind() time.Duration { return s.tick * time.Duration(s.limit) }

// tooSlow reports whether the leader may have expired a session while a cut-off
// follower still answers its client: the client notices after two thirds of
// the session time-out at the latest, so that the follower must fall silent
// before that.
func (s serverTiming) tooSlow(session time.Duration) bool { return 3*s.blind() >= 2*session }

// cure says what to set, in the words of the two files.
func (s serverTiming) cure(session time.Duration) string {
	longer := fmt.Sprintf("raise session_timeout in this daemon's settings above %s", s.blind()*3/2)
	if limit := (2*session - 1) / (3 * s.tick); limit >= 2 {
		return fmt.Sprintf("set syncLimit to at most %d, or a shorter tickTime, in zoo.cfg of every server and restart them one by one, or %s", limit, longer)
	}
	return fmt.Sprintf("set a shorter tickTime (500 with syncLimit=4 suits sessions from 3.1 s on) in zoo.cfg of every server and restart them one by one, or %s", longer)
}

// inspector reads the settings of each server that a session comes to live on,
// away from the path of requests, and tells what is wrong once.
type inspector struct {
	h    *Handler
	wake chan struct{} // a connection has become live
	told map[string]bool
}

func newInspector(h *Handler) *inspector {
	return &inspector{h: h, wake: make(chan struct{}, 1), told: map[string]bool{}}
}

// run serves wake until ctx ends. A server that was too busy to answer is asked
// again after confRetry.
func (i *inspector) run(ctx context.Context) {
	again := time.NewTimer(confRetry)
	defer again.Stop()
	again.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-i.wake:
		case <-again.C:
		}
		again.Stop()
		if state := i.h.State(); state.Phase == Live && state.Granted > 0 {
			timing, err := i.h.config.readTiming(ctx, state.Server)
			if ctx.Err() != nil {
				return
			}
			i.judge(state, timing, err)
			if err != nil && !errors.Is(err, errConfRefused) {
				again.Reset(confRetry)
			}
		}
	}
}

func (i *inspector) judge(state SessionState, t serverTiming, err error) {
	switch {
	case errors.Is(err, errConfRefused):
		if i.first("refused") {
			i.h.log.Info("the ZooKeeper server does not tell its settings, so that syncLimit × tickTime < ⅔ of the session time-out is not checked; add conf to 4lw.commands.whitelist in zoo.cfg to have it checked",
				zap.String("server", state.Server), zap.Duration("session_timeout", state.Granted))
		}
	case err != nil:
		if i.first("unread") {
			i.h.log.Info("the ZooKeeper server's settings could not be read, so that syncLimit × tickTime < ⅔ of the session time-out is not checked; it is tried again",
				zap.String("server", state.Server), zap.Error(err))
		}
	case t.tooSlow(state.Granted) && i.first(fmt.Sprint(t, state.Granted)):
		i.h.log.Warn("a ZooKeeper server that is cut off from its leader answers for too long: syncLimit × tickTime must be below ⅔ of the session time-out, else this node's session can end without its noticing",
			zap.Duration("sync_limit_x_tick_time", t.blind()), zap.Duration("session_timeout", state.Granted),
			zap.Int("sync_limit", t.limit), zap.Duration("tick_time", t.tick),
			zap.String("server", state.Server), zap.String("cure", t.cure(state.Granted)))
	}
}

// first reports whether key is told for the first time by this process.
func (i *inspector) first(key string) bool {
	if i.told[key] {
		return false
	}
	i.told[key] = true
	return true
}

// readTiming asks one server for its settings over a connection of its own.
func (c Config) readTiming(ctx context.Context, server string) (serverTiming, error) {
	answer, err := c.fourLetter(ctx, server, "conf")
	if err != nil {
		return serverTiming{}, fmt.Errorf("read settings of ZooKeeper server %s: %w", server, err)
	}
	t, err := parseTiming(answer)
	if err != nil {
		return t, fmt.Errorf("read settings of ZooKeeper server %s: %w", server, err)
	}
	return t, nil
}

// fourLetter sends a command of ZooKeeper's plain protocol and returns the
// answer, which the server ends by closing.
func (c Config) fourLetter(ctx context.Context, server, command string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, confTimeout)
	defer cancel()
	conn, raw, err := c.connect(ctx, "tcp", server)
	if err != nil {
		return "", err
	}
	// The socket itself: TLS's Close may block on its alert.
	shut := sync.OnceFunc(func() { raw.Close() })
	defer shut()
	defer context.AfterFunc(ctx, shut)()
	exchange := func() ([]byte, error) {
		if _, err := io.WriteString(conn, command); err != nil {
			return nil, err
		}
		return io.ReadAll(io.LimitReader(conn, confMax+1))
	}
	answer, err := exchange()
	switch {
	case ctx.Err() != nil:
		return "", fmt.Errorf("no whole answer to %s within %s: %w", command, confTimeout, ctx.Err())
	case err != nil && !errors.Is(err, io.ErrUnexpectedEOF): // Netty closes TLS without its alert
		return "", err
	case len(answer) > confMax:
		return "", fmt.Errorf("the answer to %s is longer than %d bytes: not a ZooKeeper server", command, confMax)
	}
	return string(answer), nil
}

// parseTiming reads the answer to conf. A last line without its end is ignored:
// its number may have been cut.
func parseTiming(answer string) (serverTiming, error) {
	if strings.Contains(answer, "not in the whitelist") {
		return serverTiming{}, errConfRefused
	}
	number := func(value string, most int64) (int64, error) {
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil || n < 1 || n > most {
			return 0, fmt.Errorf("%.40q is not a number within 1–%d", value, most)
		}
		return n, nil
	}
	var t serverTiming
	for line := range strings.Lines(answer) {
		key, value, found := strings.Cut(line, "=")
		value, whole := strings.CutSuffix(value, "\n")
		if !found || !whole {
			continue
		}
		switch value = strings.TrimSpace(value); key {
		case "tickTime":
			ms, err := number(value, maxTickTime.Milliseconds())
			if err != nil {
				return serverTiming{}, fmt.Errorf("tickTime: %w", err)
			}
			t.tick = time.Duration(ms) * time.Millisecond
		case "syncLimit":
			n, err := number(value, maxSyncLimit)
			if err != nil {
				return serverTiming{}, fmt.Errorf("syncLimit: %w", err)
			}
			t.limit = int(n)
		}
	}
	if t.tick == 0 {
		return serverTiming{}, fmt.Errorf("no tickTime in the answer to conf, which begins %.40q", answer)
	}
	return t, nil
}
