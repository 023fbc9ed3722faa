package driver

import (
	"errors"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pvc.internal/cluster"
)

// TestANodeWithoutRedisNamesThePackage before it makes anything.
func TestANodeWithoutRedisNamesThePackage(t *testing.T) {
	t.Parallel()
	l := newRedisLab(t, nil)
	n := l.nodes["hv1"]
	old := filepath.Join(t.TempDir(), "redis-server")
	if err := os.WriteFile(old, []byte("#!/bin/sh\necho Redis server v=6.0.16 sha=0\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for program, want := range map[string]string{"/nowhere/redis-server": "apt-get install redis-server", old: "version 7"} {
		n.d = NewRedis(RedisConfig{Guard: n.guard, Dir: n.dir, Host: n.host, Node: "hv1", Program: program})
		for _, o := range []cluster.CopyOrder{{Op: cluster.CopyStart}, {Op: cluster.CopyPromote, Secret: "secret one"}, {Op: cluster.CopyFollow, Secret: "secret one", Source: &cluster.CopySource{Node: "hv2"}}} {
			r, err := l.order("hv1", o)
			if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "hv1") || r.State != cluster.CopyMissing {
				t.Errorf("%s: %+v, %v", o.Op, r, err)
			}
		}
		if _, err := os.Stat(filepath.Join(n.dir, "cache")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("something of it was made: %v", err)
		}
	}
}

// TestAFolderThatRedisCannotReachIsNamed, where redis-server itself would only say
// that it cannot open its file.
func TestAFolderThatRedisCannotReachIsNamed(t *testing.T) {
	t.Parallel()
	if _, err := user.Lookup("redis"); err != nil || os.Getuid() != 0 {
		t.Skipf("only root can run it as the user redis, who must be there (%v)", err)
	}
	l := newRedisLab(t, func(w *cluster.Workload) { w.Params["restart"] = "never" })
	n := l.nodes["hv1"]
	closed := filepath.Join(t.TempDir(), "closed")
	if err := errors.Join(os.MkdirAll(filepath.Join(closed, "redis"), 0o755), os.Chmod(filepath.Dir(filepath.Dir(closed)), 0o711), os.Chmod(closed, 0o750)); err != nil {
		t.Fatal(err)
	}
	n.d = NewRedis(RedisConfig{Guard: n.guard, Dir: filepath.Join(closed, "redis"), Host: n.host, Node: "hv1", User: "redis"})
	if _, err := l.order("hv1", cluster.CopyOrder{Op: cluster.CopyStart}); err == nil || !strings.Contains(err.Error(), "may not pass through "+closed+", mode 0750") {
		t.Error(err)
	}
}

// TestEmptyFoldersAreSwept, of which the guard holds nothing, and no others.
func TestEmptyFoldersAreSwept(t *testing.T) {
	t.Parallel()
	l := newRedisLab(t, nil)
	n := l.nodes["hv1"]
	l.must("hv1", cluster.CopyOrder{Op: cluster.CopyStart})
	for folder, files := range map[string][]string{
		"gone": {redisOf, redisConf, redisSecret, redisData + "/" + redisSocket}, "bare": {redisOf},
		"data": {redisOf, redisData + "/dump.rdb"}, "rest": {redisOf, redisData + "/appendonlydir/x"}, "foreign": {"notes"}, "keys": {redisOf, "tls.key"},
	} {
		for _, file := range files {
			path := filepath.Join(n.dir, folder, file)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, 0o600)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(os.Mkdir(filepath.Join(n.dir, "linked"), 0o755), os.WriteFile(filepath.Join(n.dir, "linked", redisOf), nil, 0o600),
		os.Symlink(t.TempDir(), filepath.Join(n.dir, "linked", redisData))); err != nil {
		t.Fatal(err)
	}
	removed, err := n.d.SweepEmpty(t.Context())
	if slices.Sort(removed); err != nil || !slices.Equal(removed, []string{"bare", "gone"}) {
		t.Errorf("removed %v, %v", removed, err)
	}
	entries, err := os.ReadDir(n.dir)
	if err != nil || len(entries) != 6 {
		t.Errorf("there are %v, %v", entries, err)
	}
	if r := l.must("hv1", cluster.CopyOrder{Op: cluster.CopyPromote, Secret: "secret one"}); r.State != cluster.CopyActive {
		t.Errorf("the copy that runs is %+v", r)
	}
	if removed, err := NewRedis(RedisConfig{Guard: n.guard, Dir: filepath.Join(n.dir, "no"), Host: n.host, Node: "hv1"}).SweepEmpty(t.Context()); err != nil || removed != nil {
		t.Errorf("where there is no folder: %v, %v", removed, err)
	}
}
