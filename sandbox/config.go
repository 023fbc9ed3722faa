package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"pvc.internal/cluster"
	"pvc.internal/peer/pki"
)

// The BMCs' credentials: of simulated machines, so they are no secret.
const (
	BMCUser     = "admin"
	bmcPassword = "sandbox"
)

// peerPort is where a node answers the others, on the cluster network.
const peerPort = 7371

// hookService is the name of the primary-only service that the sandbox's
// primary runs.
const hookService = "beacon"

type settingsFile struct {
	Node      map[string]any    `yaml:"node"`
	Cluster   map[string]any    `yaml:"cluster"`
	ZooKeeper map[string]any    `yaml:"zookeeper"`
	Timing    map[string]string `yaml:"timing"`
	Peer      map[string]any    `yaml:"peer,omitempty"`
	Role      map[string]any    `yaml:"role,omitempty"`
	Addresses []map[string]any  `yaml:"addresses,omitempty"`
	Services  []map[string]any  `yaml:"services,omitempty"`
	Fencing   map[string]any    `yaml:"fencing,omitempty"`
	API       map[string]any    `yaml:"api,omitempty"`
	StateDir  string            `yaml:"state_dir,omitempty"`
	RunDir    string            `yaml:"run_dir,omitempty"`
	SelfFence string            `yaml:"self_fence,omitempty"`
	Watchdog  map[string]any    `yaml:"watchdog,omitempty"`
	Log       map[string]any    `yaml:"log,omitempty"`
}

// zkServers lists the ensemble's client addresses, the node's own first.
func (s *Sandbox) zkServers(p NodePlan) []string {
	var own, others []string
	for _, n := range s.nodes {
		if n.Plan.Mode != cluster.Coordinator {
			continue
		}
		addr := fmt.Sprintf("%s:%d", n.Plan.Cluster.Addr(), zkClientPort)
		if n.Plan.Index == p.Index {
			own = append(own, addr)
		} else {
			others = append(others, addr)
		}
	}
	return append(own, others...)
}

// writeFiles makes the node's folder with every file its programs read.
func (s *Sandbox) writeFiles(n *Node) error {
	for _, sub := range []string{"state", "zk", "log"} {
		if err := os.MkdirAll(filepath.Join(n.Dir, sub), 0o750); err != nil {
			return fmt.Errorf("make the folder of %s: %w", n.Plan.Name, err)
		}
	}
	if err := n.makeRunFolder(); err != nil {
		return err
	}
	if err := n.UseBinaries(s.options.NodeBinDirs[n.Plan.Name]); err != nil {
		return err
	}
	if err := s.certify(n); err != nil {
		return err
	}
	files := map[string]string{"bmc.pass": bmcPassword + "\n"}
	if n.Plan.Mode == cluster.Coordinator {
		files["zoo.cfg"] = s.zooConfig(n)
		files["zk/myid"] = fmt.Sprintf("%d\n", n.Plan.Index+1)
	}
	agent, err := yaml.Marshal(s.agentSettings(n))
	if err != nil {
		return err
	}
	api, err := yaml.Marshal(s.apiSettings(n))
	if err != nil {
		return err
	}
	files["pvcnoded.yaml"], files["pvcapid.yaml"] = string(agent), string(api)
	if s.options.Watchdogs {
		files[watchdogFile] = "" // what is mounted on needs to be there
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(n.Dir, name), []byte(text), 0o600); err != nil {
			return fmt.Errorf("write %s of %s: %w", name, n.Plan.Name, err)
		}
	}
	return nil
}

// certify makes the node's key and certificate, and for the first node the
// sandbox's own authority.
func (s *Sandbox) certify(n *Node) error {
	authority, at := filepath.Join(s.options.Dir, "pki"), time.Now()
	if n.Plan.Index == 0 {
		if _, err := pki.Init(authority, s.options.Name, true, at); err != nil {
			return err
		}
	}
	_, err := pki.Issue(authority, n.Plan.Name, filepath.Join(n.Dir, "pki"), pki.NodeDays, true, at)
	return err
}

func (s *Sandbox) common(n *Node) settingsFile {
	timing := map[string]string{"profile": s.options.Profile}
	for k, v := range s.options.Timing {
		timing[k] = v
	}
	return settingsFile{
		Node:      map[string]any{"name": string(n.Plan.Name), "mode": string(n.Plan.Mode)},
		Cluster:   map[string]any{"name": s.options.Name},
		ZooKeeper: map[string]any{"servers": s.zkServers(n.Plan)},
		Timing:    timing,
		Log:       map[string]any{"level": "debug"},
	}
}

func (s *Sandbox) agentSettings(n *Node) settingsFile {
	f := s.common(n)
	f.StateDir, f.RunDir = filepath.Join(n.Dir, "state"), filepath.Join(n.Dir, "run")
	f.Role = map[string]any{"gate": true, "require_dead_proof": s.options.RequireDeadProof}
	files := pki.NodeFiles(filepath.Join(n.Dir, "pki"))
	f.Peer = map[string]any{
		"listen": fmt.Sprintf("%s:%d", n.Plan.Cluster.Addr(), peerPort),
		"tls":    map[string]any{"ca": files.CA, "cert": files.Cert, "key": files.Key},
	}
	for _, a := range FloatingAddresses() {
		f.Addresses = append(f.Addresses, map[string]any{
			"name": a.Name, "cidr": a.Prefix.String(), "interface": a.Interface})
	}
	if !s.options.NoHooks {
		f.Services = []map[string]any{{
			"name": hookService, "kind": "hook",
			"command":       append(append([]string{}, s.options.Helper...), "sandbox-hook", string(n.Plan.Name), s.hookSocket()),
			"start_timeout": "10s", "stop_timeout": "5s",
		}}
	}
	nodes := map[string]any{}
	for _, other := range s.nodes {
		device := map[string]any{
			"name": "bmc", "type": "ipmi", "address": other.Plan.BMC.String(), "user": BMCUser,
			"password_file": filepath.Join(n.Dir, "bmc.pass"), "cipher_suite": 3,
		}
		nodes[string(other.Plan.Name)] = map[string]any{"after": "reboot", "levels": [][]map[string]any{{device}}}
	}
	f.Fencing = map[string]any{"successful_fence": "migrate", "failed_fence": "none", "nodes": nodes}
	if s.options.Watchdogs {
		f.SelfFence, f.Watchdog = "watchdog", map[string]any{"device": n.watchdogPath()}
		f.Fencing["failed_fence"] = "migrate"
	}
	return f
}

func (s *Sandbox) apiSettings(n *Node) settingsFile {
	f := s.common(n)
	f.API = map[string]any{"listen": []string{fmt.Sprintf("127.0.0.1:%d", apiPort)}, "auth": ""}
	return f
}

// zooConfig is the node's zoo.cfg: short ticks, so that a lost ZooKeeper leader
// is noticed within syncLimit × tickTime = 0.8 s.
func (s *Sandbox) zooConfig(n *Node) string {
	var b strings.Builder
	fmt.Fprintf(&b, "tickTime=200\ninitLimit=20\nsyncLimit=4\nmaxSessionTimeout=10000\n")
	fmt.Fprintf(&b, "dataDir=%s\nclientPort=%d\nclientPortAddress=%s\n", filepath.Join(n.Dir, "zk"), zkClientPort, n.Plan.Cluster.Addr())
	fmt.Fprintf(&b, "admin.enableServer=false\nmaxClientCnxns=0\n4lw.commands.whitelist=*\n")
	members := s.coordinators()
	if len(members) == 1 {
		return b.String()
	}
	for _, m := range members {
		fmt.Fprintf(&b, "server.%d=%s:%d:%d\n", m.Plan.Index+1, m.Plan.Cluster.Addr(), zkPeerPort, zkElectionPort)
	}
	return b.String()
}

// Programs of a node, as its PID 1 knows them.
const (
	progResponder = "responder"
	progZooKeeper = "zookeeper"
	progGuard     = "guard"
	progAgent     = "pvcnoded"
	progAPI       = "pvcapid"
)

// The priorities of the daemons' systemd units.
const (
	guardNice       = -10
	agentNice       = -15
	agentTimerSlack = time.Millisecond
)

// programs lists what the node starts when it is powered on, in order.
func (s *Sandbox) programs(n *Node) []procSpec {
	spec := func(name string, again time.Duration, argv ...string) procSpec {
		return procSpec{Name: name, Argv: argv, Again: again, Dir: n.Dir, Log: filepath.Join(n.Dir, "log", name+".log")}
	}
	helper := func(args ...string) []string { return append(append([]string{}, s.options.Helper...), args...) }
	list := []procSpec{spec(progResponder, 100*time.Millisecond, helper("sandbox-responder", string(n.Plan.Name), fmt.Sprint(n.Plan.Index))...)}
	list[0].Instrument = true
	if n.Plan.Mode == cluster.Coordinator {
		list = append(list, spec(progZooKeeper, 0, zooKeeperArgv(n)...))
	}
	if s.options.NoDaemons {
		return list
	}
	bin := func(name string) string { return filepath.Join(n.Dir, binFolder, name) }
	conf := filepath.Join(n.Dir, "pvcnoded.yaml")
	guard := spec(progGuard, time.Second, bin("pvcnoded"), "guard", "-c", conf)
	agent := spec(progAgent, 0, bin("pvcnoded"), "-c", conf)
	guard.Nice, agent.Nice, agent.TimerSlack = guardNice, agentNice, agentTimerSlack
	guard.Stores = s.options.Watchdogs
	list = append(list, guard, agent)
	if n.Plan.Mode == cluster.Coordinator {
		list = append(list, spec(progAPI, time.Second, bin("pvcapid"), "-c", filepath.Join(n.Dir, "pvcapid.yaml")))
	}
	return list
}

// zooKeeperArgv runs (without container support: in a control group namespace
// the JVM fails over the v1 hierarchies it cannot find) Debian's ZooKeeper in little memory and few threads: the
// whole ensemble shares a small machine.
func zooKeeperArgv(n *Node) []string {
	return []string{"/usr/bin/java",
		"-Xmx128m", "-Xss512k", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData", "-XX:-UseContainerSupport",
		"-Dorg.slf4j.simpleLogger.showDateTime=true", "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS", "-Dorg.slf4j.simpleLogger.defaultLogLevel=info",
		"-cp", n.Dir + ":/usr/share/java/zookeeper.jar:/usr/share/java/slf4j-simple.jar",
		"org.apache.zookeeper.server.quorum.QuorumPeerMain", filepath.Join(n.Dir, "zoo.cfg")}
}
