package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
)

// Options says what cluster to build. The zero value, after Defaults, is three
// coordinators with the profile "lan".
type Options struct {
	Name         string // distinguishes sandboxes of one machine; default "demo"
	Coordinators int    // 1, 2, 3 or 5; default 3
	Hypervisors  int    // 0…3
	Profile      string // timing profile: lan (default), fast or pvc
	// Timing overrides single keys of the profile, as in pvcnoded.yaml's
	// timing section ("renew_interval": "250ms").
	Timing map[string]string
	// Dir is the sandbox's folder; default <temporary folder>/pvc-sandbox-<name>.
	// It is removed by Down.
	Dir string
	// BinDir holds pvcnoded, pvcapid and pvc; default: the running program's folder.
	BinDir string
	// NodeBinDirs has a node run the programs of another folder at first
	// (Node.UseBinaries).
	NodeBinDirs map[cluster.NodeID]string
	// NewestSchema holds the first tree back to an earlier schema than this
	// program knows, as programs of that schema would make it; 0: it is not.
	NewestSchema int
	// Helper is the argv prefix that leads to Helper's entry points
	// (sandbox-init, sandbox-responder, sandbox-hook); default: BinDir/pvc.
	Helper []string
	// APIListen is the loopback address of this machine that is relayed to a
	// node's pvcapid; default 127.0.0.1:7370, "none" turns it off.
	APIListen string
	// NoHooks leaves the primary-only hook service out.
	NoHooks bool
	// Workloads has Ready start DemoWorkloads.
	Workloads bool
	// NoDaemons starts the ensemble and the responders but none of the
	// project's daemons.
	NoDaemons bool
	// Watchdogs gives every node a hardware watchdog, simulated outside of it
	// (Watchdog), which its guard arms: failed_fence is migrate then.
	Watchdogs bool
	// WatchdogReboots has a node that its watchdog has reset boot again so long
	// after; 0: it stays without power.
	WatchdogReboots time.Duration
	// RequireDeadProof has who takes the role wait until its lost holder is
	// proven dead (role.require_dead_proof).
	RequireDeadProof bool
	// KeepFiles leaves Dir in place on Down, for a look at the logs.
	KeepFiles bool
	Log       *zap.Logger
}

var sandboxName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,15}$`)

// Defaults fills in what is unset.
func (o Options) Defaults() Options {
	if o.Name == "" {
		o.Name = "demo"
	}
	if o.Coordinators == 0 {
		o.Coordinators = 3
	}
	if o.Profile == "" {
		o.Profile = "lan"
	}
	if o.Dir == "" {
		o.Dir = filepath.Join(os.TempDir(), "pvc-sandbox-"+o.Name)
	}
	if o.BinDir == "" {
		if exe, err := os.Executable(); err == nil {
			o.BinDir = filepath.Dir(exe)
		}
	}
	if len(o.Helper) == 0 {
		o.Helper = []string{filepath.Join(o.BinDir, "pvc")}
	}
	if o.APIListen == "" {
		o.APIListen = "127.0.0.1:7370"
	}
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	return o
}

// Validate reports what cannot be built, naming the value and what is allowed.
func (o Options) Validate() error {
	if !sandboxName.MatchString(o.Name) {
		return fmt.Errorf("sandbox name %q: use 1–16 of a–z, 0–9 and '-'", o.Name)
	}
	switch o.Coordinators {
	case 1, 2, 3, 5:
	default:
		return fmt.Errorf("%d coordinators: 1, 2, 3 or 5 can be built", o.Coordinators)
	}
	if o.Hypervisors < 0 || o.Hypervisors > 3 {
		return fmt.Errorf("%d hypervisors: 0 to 3 can be built", o.Hypervisors)
	}
	switch o.Profile {
	case "lan", "fast", "pvc":
	default:
		return fmt.Errorf("timing profile %q: lan, fast or pvc", o.Profile)
	}
	// A Unix socket's path is at most 107 bytes long.
	if long := filepath.Join(o.Dir, "hv5", "run", "guard.sock"); len(long) > 107 {
		return fmt.Errorf("folder %s is too deep for Unix sockets: choose a shorter one", o.Dir)
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("the sandbox makes namespaces and must run as root, not as uid %d", os.Geteuid())
	}
	return nil
}

// Bounds of the sandbox's own waits.
const (
	nodeStartTimeout = 10 * time.Second // PID 1 up and its links made
	ensembleTimeout  = 60 * time.Second // every ZooKeeper server serves; a JVM starts slowly on a busy machine
	clusterTimeout   = 60 * time.Second // every node runs and one is primary
)
