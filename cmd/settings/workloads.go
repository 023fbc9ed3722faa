package settings

import "path/filepath"

// Workloads is how the copies of workloads are run on this node.
type Workloads struct {
	OCFRoot   string `yaml:"ocf_root"`   // where OCF resource agents are, below it resource.d
	RedisUser string `yaml:"redis_user"` // whom redis-server runs as; "": root, as the guard
	// RedisDir has a folder for each redis copy. Default: workloads/redis in the state
	// folder; with RedisUser, who may not look into that, beside it: /var/lib/pvc-redis.
	RedisDir string `yaml:"redis_dir"`
}

func defaultWorkloads() Workloads { return Workloads{OCFRoot: "/usr/lib/ocf"} }

// checkWorkloads returns the section with what follows from other keys.
func checkWorkloads(r *report, w Workloads, stateDir string) Workloads {
	checkFolder(r, "workloads.ocf_root", w.OCFRoot)
	switch {
	case w.RedisDir != "":
	case w.RedisUser != "":
		w.RedisDir = filepath.Clean(stateDir) + "-redis"
	default:
		w.RedisDir = filepath.Join(stateDir, "workloads", "redis")
	}
	checkFolder(r, "workloads.redis_dir", w.RedisDir)
	return w
}
