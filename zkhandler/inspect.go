package zkhandler

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-zookeeper/zk"

	"pvc.internal/cluster"
)

// ServerReport is what one server tells of itself in ZooKeeper's four-letter
// words, to whoever looks for what is wrong with the ensemble.
type ServerReport struct {
	Server   string
	Err      error    // it could not be asked; all else is empty then
	Idle     bool     // it answers, and serves nobody: it has no majority
	Refused  []string // of srvr, conf and mntr those that its whitelist lacks
	Version  string   // empty: not told
	Mode     string   // leader, follower, observer, standalone; empty: not told
	Tick     time.Duration
	Sync     int // syncLimit in ticks; 0: not told, or it stands alone
	Clients  int // maxClientCnxns; 0: no limit; −1: not told
	Members  int // voting members of its ensemble; 0: not told, or it stands alone
	Fsync    bool
	FsyncAvg time.Duration // of its log since it started, where Fsync
	FsyncMax time.Duration
}

// The words that a report is made of.
var reportWords = []string{"srvr", "conf", "mntr"}

// AskServers asks every server of the settings at once, each word over a
// connection of its own, and returns their reports in the order of the
// settings. It takes at most 0.8 s and needs no session.
func (c Config) AskServers(ctx context.Context) ([]ServerReport, error) {
	servers, err := parseServers(c.Servers)
	if err != nil {
		return nil, err
	}
	reports := make([]ServerReport, len(servers))
	var wait sync.WaitGroup
	for i, server := range servers {
		wait.Go(func() { reports[i] = c.askServer(ctx, server) })
	}
	wait.Wait()
	return reports, nil
}

func (c Config) askServer(ctx context.Context, server string) ServerReport {
	answers, errs := make([]string, len(reportWords)), make([]error, len(reportWords))
	var wait sync.WaitGroup
	for i, word := range reportWords {
		wait.Go(func() { answers[i], errs[i] = c.fourLetter(ctx, server, word) })
	}
	wait.Wait()
	r := ServerReport{Server: server, Clients: -1}
	if err := errors.Join(errs...); err != nil {
		// The first says it all; the others mostly repeat it.
		i := slices.IndexFunc(errs, func(e error) bool { return e != nil })
		return ServerReport{Server: server, Err: errs[i]}
	}
	for i, word := range reportWords {
		switch {
		case strings.Contains(answers[i], "not in the whitelist"):
			r.Refused = append(r.Refused, word)
		case strings.Contains(answers[i], "not currently serving requests"):
			r.Idle = true
		default:
			r.read(word, answers[i])
		}
	}
	return r
}

// read takes what it knows out of an answer; what it does not know it leaves out.
func (r *ServerReport) read(word, answer string) {
	if word == "conf" {
		if t, err := parseTiming(answer); err == nil {
			r.Tick, r.Sync = t.tick, t.limit
		}
	}
	for line := range strings.Lines(answer) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), map[string]string{"srvr": ":", "conf": "=", "mntr": "\t"}[word])
		switch value = strings.TrimSpace(value); {
		case word == "srvr" && key == "Mode":
			r.Mode = value
		case word == "srvr" && key == "Zookeeper version":
			r.Version, _, _ = strings.Cut(value, "-")
			r.Version, _, _ = strings.Cut(r.Version, ",")
		case word == "conf" && key == "maxClientCnxns":
			if n, err := strconv.Atoi(value); err == nil && n >= 0 {
				r.Clients = n
			}
		case word == "conf" && strings.HasPrefix(key, "server.") && !strings.Contains(value, ":observer"):
			r.Members++
		case word == "mntr" && key == "zk_avg_fsynctime":
			r.FsyncAvg, r.Fsync = milliseconds(value)
		case word == "mntr" && key == "zk_max_fsynctime":
			r.FsyncMax, _ = milliseconds(value)
		}
	}
}

func milliseconds(text string) (time.Duration, bool) {
	ms, err := strconv.ParseFloat(text, 64)
	if err != nil || !(ms >= 0 && ms <= float64(time.Hour.Milliseconds())) { // as this, NaN is neither
		return 0, false
	}
	return time.Duration(ms * float64(time.Millisecond)), true
}

// OpenToAll reports whether everybody who reaches ZooKeeper may change the
// tree as it is, whatever the settings say: a tree keeps the permissions that
// it was made with. It fails with cluster.ErrNotFound where there is none.
func (h *Handler) OpenToAll(ctx context.Context) (bool, error) {
	lease, err := h.schema.path(cluster.Key{Kind: cluster.KeyLease})
	if err != nil {
		return false, err
	}
	for _, path := range []string{h.schema.configPath(), lease} {
		acl, _, err := request(ctx, h, func(c *zk.Conn) ([]zk.ACL, error) {
			acl, _, err := c.GetACL(path)
			return acl, err
		})
		if err != nil {
			return false, fmt.Errorf("read who may write to %s: %w", path, err)
		}
		for _, a := range acl {
			if a.Scheme == "world" && a.Perms&^zk.PermRead != 0 {
				return true, nil
			}
		}
	}
	return false, nil
}
