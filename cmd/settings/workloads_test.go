package settings

import "testing"

// TestRedisFolders: who may not look into the state folder has copies beside it.
func TestRedisFolders(t *testing.T) {
	t.Parallel()
	for section, want := range map[string]string{
		"{}":                  "/var/lib/pvc/workloads/redis",
		"{redis_user: redis}": "/var/lib/pvc-redis",
		"{redis_user: redis, redis_dir: /srv/redis}": "/srv/redis",
	} {
		if n := mustLoad(t, least+"workloads: "+section+"\n"); n.Workloads.RedisDir != want {
			t.Errorf("%s: %s, not %s", section, n.Workloads.RedisDir, want)
		}
	}
	if n := mustLoad(t, least+"state_dir: /srv/pvc/\nworkloads: {redis_user: redis}\n"); n.Workloads.RedisDir != "/srv/pvc-redis" {
		t.Error(n.Workloads.RedisDir)
	}
}
