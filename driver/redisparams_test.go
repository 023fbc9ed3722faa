package driver

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pvc.internal/cluster"
)

func TestRedisParametersThatAreRefused(t *testing.T) {
	for _, c := range []struct{ name, value, want string }{
		{"port", "0", "port"}, {"port", "x", "port"}, {"bind", "eth0", "address"}, {"user", "pvc-admin", "user's name"}, {"user", "a b", "user's name"},
		{"password_file", "secret", "absolute"}, {"restart", "99ms", "100ms"}, {"restart", "soon", "never"}, {"maxmemory", "much", "amount"}, {"appendonly", "yes", "ephemeral"},
		{"save", "3600 1", "ephemeral"}, {"save", "x", "list"}, {"colour", "red", "does not know"}, {"config_user", "x on nopass", "tune"}, {"config_aclfile", "/x", "tune"},
		{"config_requirepass", "x", "tune"}, {"config_replicaof", "a 1", "tune"}, {"config_include", "/x", "tune"}, {"config_loadmodule", "/x", "tune"}, {"config_dir", "/", "tune"},
		{"config_unixsocket", "/x", "tune"}, {"config_port", "1", "tune"}, {"config_bind", "*", "tune"}, {"config_tls-port", "1", "tune"}, {"config_rename-command", "a b", "tune"},
		{"config_masterauth", "x", "tune"}, {"config_protected-mode", "no", "tune"}, {"config_repl-diskless-load", "disabled", "tune"}, {"config_replica-read-only", "no", "tune"},
		{"config_enable-debug-command", "yes", "tune"}, {"config_logfile", "/x", "tune"}, {"config_pidfile", "/x", "tune"}, {"config_dbfilename", "x", "tune"},
		{"config_save", "1 1", "tune"}, {"config_appendonly", "yes", "tune"}, {"config_hz", "10\nuser x on nopass", "signs"}, {"config_hz", "\"", "signs"}, {"config_hz", "", "signs"},
		{"config_hz 10\nuser", "x", "tune"}, {"config_slowlog-x\nuser y on nopass", "10", "tune"},
	} {
		w := cluster.Workload{Name: "cache", Kind: cluster.WorkloadReplicated, Ephemeral: true, Params: map[string]string{c.name: c.value}}
		if _, err := parseRedis(w); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s=%q: %v, want %q", c.name, c.value, err, c.want)
		}
	}
	if _, err := parseRedis(cluster.Workload{Name: "cache", Kind: cluster.WorkloadMovable}); err == nil {
		t.Error("a movable one is taken")
	}
	if p, err := parseRedis(cluster.Workload{Name: "cache", Kind: cluster.WorkloadReplicated}); err != nil || p.port != 6379 || p.passwordFile != "" || p.usualFile != "/etc/pvc/redis/cache.password" {
		t.Errorf("without any: %+v, %v", p, err)
	}
}

func TestTheClientsPasswordIsForRootAlone(t *testing.T) {
	file := filepath.Join(t.TempDir(), "password")
	p := redisParams{passwordFile: file}
	for _, c := range []struct {
		content string
		mode    os.FileMode
		ok      bool
	}{{"long enough\n", 0o600, true}, {"long enough", 0o640, false}, {"short", 0o600, false}, {"two lines\nare no word", 0o600, false}, {strings.Repeat("x", 600), 0o600, false}} {
		if err := os.WriteFile(file, []byte(c.content), c.mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, c.mode); err != nil {
			t.Fatal(err)
		}
		if hash, err := p.password(); (err == nil) != c.ok || c.ok && hash != hashed("long enough") {
			t.Errorf("%q, %v: %q, %v", c.content, c.mode, hash, err)
		}
	}
	p = redisParams{usualFile: file} // the last of those above
	if _, err := p.password(); err == nil {
		t.Error("the usual file is there, and is not looked at")
	}
	p.usualFile = filepath.Join(t.TempDir(), "absent")
	if rule, err := p.password(); err != nil || rule != "nopass" {
		t.Errorf("without any file: %q, %v", rule, err)
	}
	p.passwordFile = p.usualFile
	if _, err := p.password(); err == nil || !strings.Contains(err.Error(), "put it on this node") {
		t.Error(err)
	}
}

// TestARealRedisTakesTheTuning starts one with directives of each sort.
func TestARealRedisTakesTheTuning(t *testing.T) {
	t.Parallel()
	l := newRedisLab(t, func(w *cluster.Workload) {
		for name, value := range map[string]string{"bind": "127.0.0.77 ::1", "user": "app", "maxmemory": "64mb", "config_maxmemory-policy": "allkeys-lru",
			"config_client-output-buffer-limit": "pubsub 32mb 8mb 60", "config_notify-keyspace-events": "KEA", "config_databases": "4", "config_hz": "50", "config_lazyfree-lazy-eviction": "yes",
			"config_min-replicas-to-write": "0", "config_repl-backlog-size": "4mb", "config_slowlog-log-slower-than": "-1", "config_timeout": "300"} {
			w.Params[name] = value
		}
	})
	if err := l.nodes["hv1"].d.Check(t.Context(), l.w); err != nil {
		t.Fatal(err)
	}
	l.must("hv1", cluster.CopyOrder{Op: cluster.CopyPromote, Secret: "secret one"})
	if _, err := l.try("hv1", "app", labPassword, "SET", "a", "1"); err != nil {
		t.Error(err)
	}
	l.refused("hv1", "default", labPassword)
	l.w.Params["user"] = "other" // a changed parameter holds from the next activation on
	if r := l.probe("hv1"); r.State != cluster.CopyPending {
		t.Errorf("with another user it is %+v", r)
	}
	l.must("hv1", cluster.CopyOrder{Op: cluster.CopyPromote, Secret: "secret one"})
	l.refused("hv1", "app", labPassword)
	if _, err := l.try("hv1", "other", labPassword, "GET", "a"); err != nil {
		t.Error(err)
	}
}
