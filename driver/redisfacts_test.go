package driver

import (
	"strings"
	"testing"

	"pvc.internal/cluster"
)

// What a process says of itself is taken as it says it or not at all: an offset that
// went back is told as it is now, with the history and the start that it is of, and one
// that is none makes the copy's state unknown, which leaves the workload as it is.
func TestOffsetsOfRedisThatGoBackOrAreNone(t *testing.T) {
	t.Parallel()
	users := []any{"user " + redisAdmin + " on", "user " + redisHolds + " off"}
	info := func(role, history, offset string) string {
		return "run_id:abc\r\nrole:" + role + "\r\nmaster_replid:" + history + "\r\nmaster_host:127.0.0.9\r\nmaster_link_status:up\r\n" + offset + "\r\ndb0:keys=3,expires=0\r\n"
	}
	for name, c := range map[string]struct {
		info string
		want string // of the error
		is   cluster.CopyReport
	}{
		"as it was":               {info("master", "h1", "master_repl_offset:1000"), "", cluster.CopyReport{State: cluster.CopyPending, Offset: 1000, History: "h1"}},
		"gone back":               {info("master", "h1", "master_repl_offset:10"), "", cluster.CopyReport{State: cluster.CopyPending, Offset: 10, History: "h1"}},
		"of another history":      {info("slave", "h2", "slave_repl_offset:7"), "", cluster.CopyReport{State: cluster.CopyReplica, Offset: 7, History: "h2"}},
		"below nothing":           {info("slave", "h2", "slave_repl_offset:-1"), "", cluster.CopyReport{State: cluster.CopyReplica, Offset: -1, History: "h2"}},
		"none":                    {info("master", "h1", ""), "master_repl_offset", cluster.CopyReport{}},
		"a replica's of a master": {info("master", "h1", "slave_repl_offset:5"), "master_repl_offset", cluster.CopyReport{}},
		"a word":                  {info("slave", "h1", "slave_repl_offset:many"), "slave_repl_offset", cluster.CopyReport{}},
		"too large":               {info("master", "h1", "master_repl_offset:99999999999999999999"), "master_repl_offset", cluster.CopyReport{}},
		"no history":              {info("master", "", "master_repl_offset:5"), "master_replid", cluster.CopyReport{}},
		"no role":                 {info("sentinel", "h1", "master_repl_offset:5"), "role", cluster.CopyReport{}},
		"nothing":                 {"", "run_id", cluster.CopyReport{}},
	} {
		f, err := readFacts(c.info, users)
		if (err != nil) != (c.want != "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if err != nil {
			continue
		}
		copied := &redisCopy{d: NewRedis(RedisConfig{Dir: t.TempDir(), Node: "hv1"}), w: cluster.Workload{Name: "cache", Ephemeral: true}, p: redisParams{user: "default"}, folder: t.TempDir()}
		r := copied.report(f)
		if r.State != c.is.State || r.Offset != c.is.Offset || r.History != c.is.History || !r.HasOffset || r.Start != "abc" {
			t.Errorf("%s: %+v, want %+v", name, r, c.is)
		}
	}
}
