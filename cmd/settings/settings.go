package settings

import (
	"os"
	"strings"
	"time"

	"pvc.internal/cluster"
)

// Node is the file of pvcnoded and its guard.
type Node struct {
	Node      Identity
	Cluster   Cluster
	ZooKeeper ZooKeeper
	Peer      Peer
	Role      Role
	// NodeLeases: nodes serve the leader by leases; default: whether they talk
	// directly (peer).
	NodeLeases bool
	SelfFence  string // stop-work | reboot | watchdog
	Watchdog   Watchdog
	Workloads  Workloads
	Plugins    []Plugin
	Fencing    Fencing // its ladders hold whole devices: what stood under devices is filled in
	Metrics    Metrics
	StateDir   string
	RunDir     string
	Log        Log
	Profile    string // of the timing, by name
	Timing     cluster.Timing
	Addresses  []cluster.FloatingAddress
	Services   []cluster.ServiceSpec
	Warnings   []string // to be logged once at start
}

// API is the file of pvcapid.
type API struct {
	Node      Identity
	Cluster   Cluster
	ZooKeeper ZooKeeper
	API       Listener
	Log       Log
	Profile   string
	Timing    cluster.Timing
	Warnings  []string
}

// Identity is what this node is called and may become.
type Identity struct {
	Name     cluster.NodeID `yaml:"name"` // default: the short host name
	Mode     cluster.Mode   `yaml:"mode"` // default: coordinator
	Priority int            `yaml:"priority"`
}

// Cluster names the cluster.
type Cluster struct {
	Name string `yaml:"name"`
}

// ZooKeeper is how the ensemble is reached.
type ZooKeeper struct {
	Servers []string `yaml:"servers"` // host:port, own server first
	Root    string   `yaml:"root"`    // default: /
	Auth    Auth     `yaml:"auth"`
	Reader  Digest   `yaml:"reader"`
	TLS     TLS      `yaml:"tls"`
}

// Digest is a user whose password stands in a file.
type Digest struct {
	User         string `yaml:"user"`
	PasswordFile string `yaml:"password_file"`
}

// Set reports whether the identity is configured.
func (d Digest) Set() bool { return d.User != "" }

// Auth is the identity that owns the tree.
type Auth struct {
	Scheme       string `yaml:"scheme"` // digest, the only one
	User         string `yaml:"user"`
	PasswordFile string `yaml:"password_file"`
}

// Digest returns the identity without its scheme.
func (a Auth) Digest() Digest { return Digest{User: a.User, PasswordFile: a.PasswordFile} }

// TLS is the client's side of TLS to ZooKeeper; all empty: plain TCP.
type TLS struct {
	CA         string `yaml:"ca"`
	Cert       string `yaml:"cert"`
	Key        string `yaml:"key"`
	ServerName string `yaml:"server_name"`
}

// Set reports whether TLS is configured.
func (t TLS) Set() bool { return t != TLS{} }

// Role is how this node handles the primary role.
type Role struct {
	RequireDeadProof bool
	OnStartFailure   string // keep | yield
	Failsafe         bool   // default: whether nodes talk directly (peer)
	Gate             bool   // default true; false only where there is no nftables
}

// roleFile is Role as it stands in the file.
type roleFile struct {
	RequireDeadProof bool   `yaml:"require_dead_proof"`
	OnStartFailure   string `yaml:"on_start_failure"`
	Failsafe         *bool  `yaml:"failsafe"` // nil: not written
	Gate             bool   `yaml:"gate"`
}

// The values of Role.OnStartFailure.
const (
	StartFailureKeep  = "keep"
	StartFailureYield = "yield"
)

// Plugin is a monitoring-plugins executable run on a schedule.
type Plugin struct {
	Name     string        `yaml:"name"`
	Command  []string      `yaml:"command"`
	Interval time.Duration `yaml:"interval"` // default 60 s
	Timeout  time.Duration `yaml:"timeout"`  // default 5 s
}

// Log is what is logged, and how; it always goes to standard error.
type Log struct {
	Level  string `yaml:"level"`  // debug, info (default), warn, error
	Format string `yaml:"format"` // auto (default), json, console
}

// The values of Log.Format.
const (
	LogAuto    = "auto"    // lines for people on a terminal, else JSON
	LogJSON    = "json"    // an object a line
	LogConsole = "console" // lines for people wherever they go
)

func defaultLog() Log { return Log{Level: "info", Format: LogAuto} }

// Listener is where and for whom pvcapid answers.
type Listener struct {
	Listen     []string  `yaml:"listen"` // default: 127.0.0.1:7370
	Auth       string    `yaml:"auth"`   // "", or "none": answer everybody
	KeysFile   string    `yaml:"keys_file"`
	TLS        ServerTLS `yaml:"tls"`
	ProtectAll bool      `yaml:"protect_all"`
}

// ServerTLS is pvcapid's certificate and the authority of its clients'.
type ServerTLS struct {
	Cert     string `yaml:"cert"`
	Key      string `yaml:"key"`
	ClientCA string `yaml:"client_ca"`
}

// nodeFile is what stands in the file of pvcnoded, key by key.
type nodeFile struct {
	Node       Identity      `yaml:"node"`
	Cluster    Cluster       `yaml:"cluster"`
	ZooKeeper  ZooKeeper     `yaml:"zookeeper"`
	Timing     timingFile    `yaml:"timing"`
	Peer       Peer          `yaml:"peer"`
	Role       roleFile      `yaml:"role"`
	NodeLeases *bool         `yaml:"node_leases"` // nil: not written
	SelfFence  string        `yaml:"self_fence"`
	Watchdog   Watchdog      `yaml:"watchdog"`
	Addresses  []addressFile `yaml:"addresses"`
	Services   []serviceFile `yaml:"services"`
	Workloads  Workloads     `yaml:"workloads"`
	Plugins    []Plugin      `yaml:"plugins"`
	Fencing    Fencing       `yaml:"fencing"`
	Metrics    Metrics       `yaml:"metrics"`
	StateDir   string        `yaml:"state_dir"`
	RunDir     string        `yaml:"run_dir"`
	Log        Log           `yaml:"log"`
}

// apiFile is what stands in the file of pvcapid.
type apiFile struct {
	Node      Identity   `yaml:"node"`
	Cluster   Cluster    `yaml:"cluster"`
	ZooKeeper ZooKeeper  `yaml:"zookeeper"`
	Timing    timingFile `yaml:"timing"`
	API       Listener   `yaml:"api"`
	Log       Log        `yaml:"log"`
}

type addressFile struct {
	Name      string `yaml:"name"`
	CIDR      string `yaml:"cidr"`
	Interface string `yaml:"interface"`
}

type serviceFile struct {
	Name         string        `yaml:"name"`
	Kind         string        `yaml:"kind"`
	Command      []string      `yaml:"command"`
	Check        []string      `yaml:"check"`
	Unit         string        `yaml:"unit"`
	StartTimeout time.Duration `yaml:"start_timeout"` // default 10 s
	StopTimeout  time.Duration `yaml:"stop_timeout"`  // default 5 s
}

// LoadNode reads the file of pvcnoded and its guard, and this process's
// environment over it. The error joins every refusal found.
func LoadNode(path string) (Node, error) {
	n, _, err := InspectNode(path, os.Environ())
	return n, err
}

// InspectNode is LoadNode with the environment given, as NAME=value; it also
// tells where each value comes from.
func InspectNode(path string, environ []string) (Node, Inspection, error) {
	f := nodeFile{
		Node:      defaultIdentity(),
		ZooKeeper: defaultZooKeeper(),
		Role:      roleFile{OnStartFailure: StartFailureKeep, Gate: true},
		SelfFence: SelfFenceStopWork,
		Workloads: defaultWorkloads(),
		Fencing:   defaultFencing(),
		Metrics:   defaultMetrics(),
		StateDir:  "/var/lib/pvc",
		RunDir:    "/run/pvc",
		Log:       defaultLog(),
	}
	doc, err := decode(path, environ, target{&f, &f.Timing, &f.Fencing, nodePrefix, nodeRules()})
	if err != nil {
		return Node{}, Inspection{}, err
	}
	n, err := checkNode(doc, f)
	if err != nil {
		return Node{}, Inspection{}, err
	}
	f.effective(n)
	options := cluster.TimingOptions{Gate: n.Role.Gate, Failsafe: n.Role.Failsafe}
	return n, inspect("pvcnoded", doc, &f, n.Timing, options, n.Warnings), nil
}

// effective fills in what was left to follow from other keys.
func (f *nodeFile) effective(n Node) {
	f.Peer, f.ZooKeeper.Servers, f.Plugins = n.Peer, n.ZooKeeper.Servers, n.Plugins
	f.Role.Failsafe, f.NodeLeases, f.Workloads = &n.Role.Failsafe, &n.NodeLeases, n.Workloads
	for i, s := range n.Services {
		f.Services[i].StartTimeout, f.Services[i].StopTimeout = s.StartTimeout, s.StopTimeout
	}
}

// LoadAPI reads the file of pvcapid, and this process's environment over it.
// The error joins every refusal found.
func LoadAPI(path string) (API, error) {
	a, _, err := InspectAPI(path, os.Environ())
	return a, err
}

// InspectAPI is LoadAPI with the environment given, as NAME=value; it also
// tells where each value comes from.
func InspectAPI(path string, environ []string) (API, Inspection, error) {
	f := apiFile{
		Node:      defaultIdentity(),
		ZooKeeper: defaultZooKeeper(),
		API:       Listener{Listen: []string{"127.0.0.1:7370"}},
		Log:       defaultLog(),
	}
	doc, err := decode(path, environ, target{into: &f, timing: &f.Timing, prefix: apiPrefix, pvc: apiRules()})
	if err != nil {
		return API{}, Inspection{}, err
	}
	a, err := checkAPI(doc, f)
	if err != nil {
		return API{}, Inspection{}, err
	}
	f.ZooKeeper.Servers = a.ZooKeeper.Servers
	return a, inspect("pvcapid", doc, &f, a.Timing, cluster.TimingOptions{Gate: true, Failsafe: true}, a.Warnings), nil
}

// hostname is a variable for the tests.
var hostname = os.Hostname

func defaultIdentity() Identity {
	host, _ := hostname() // an empty name is refused by its own check
	short, _, _ := strings.Cut(host, ".")
	return Identity{Name: cluster.NodeID(short), Mode: cluster.Coordinator}
}

func defaultZooKeeper() ZooKeeper {
	return ZooKeeper{Root: "/", Auth: Auth{Scheme: "digest"}}
}
