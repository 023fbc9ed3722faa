package settings

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.uber.org/zap/zapcore"

	"pvc.internal/cluster"
)

// report collects the refusals of one file.
type report struct {
	doc      *document
	refusals []error
}

// refuse records that a key's value cannot work.
func (r *report) refuse(key, format string, args ...any) {
	r.refusals = append(r.refusals, fmt.Errorf("%s: %s: %s", r.doc.where(key), key, fmt.Sprintf(format, args...)))
}

// oneOf refuses any but the given values.
func (r *report) oneOf(key, value string, allowed ...string) {
	if slices.Contains(allowed, value) {
		return
	}
	hint := ""
	if best, d := nearest(value, allowed); d <= max(1, len(value)/2) {
		hint = fmt.Sprintf(": did you mean %q?", best)
	}
	r.refuse(key, "%q is not one of %s%s", value, strings.Join(allowed, ", "), hint)
}

func (r *report) err() error { return errors.Join(r.refusals...) }

// checkNode turns the decoded file into the node's settings.
func checkNode(doc *document, f nodeFile) (Node, error) {
	r := &report{doc: doc}
	n := Node{
		Node: f.Node, Cluster: f.Cluster, ZooKeeper: f.ZooKeeper, SelfFence: f.SelfFence, Watchdog: f.Watchdog,
		Metrics: f.Metrics, StateDir: f.StateDir, RunDir: f.RunDir, Log: f.Log, Profile: f.Timing.Profile, Timing: f.Timing.timing(),
	}
	checkIdentity(r, n.Node)
	checkCluster(r, n.Cluster)
	n.ZooKeeper.Servers = checkZooKeeper(r, n.ZooKeeper)
	n.Peer = checkPeer(r, f.Peer, n.Cluster)
	n.Role = checkRole(r, f.Role, n.Peer)
	n.NodeLeases = checkNodeLeases(r, f.NodeLeases, n.Peer)
	checkSelfFence(r, n)
	n.Addresses = checkAddresses(r, f.Addresses)
	n.Services = checkServices(r, f.Services)
	n.Plugins = checkPlugins(r, f.Plugins)
	n.Fencing = checkFencing(r, f.Fencing, n.Watchdog)
	checkMetrics(r, n.Metrics)
	checkFolder(r, "state_dir", n.StateDir)
	checkFolder(r, "run_dir", n.RunDir)
	n.Workloads = checkWorkloads(r, f.Workloads, n.StateDir)
	checkLog(r, n.Log)
	options := cluster.TimingOptions{Gate: n.Role.Gate, Failsafe: n.Role.Failsafe}
	n.Warnings = slices.Concat(doc.warnings, checkTiming(r, n.Timing, options), n.Peer.warnings(), n.Metrics.warnings())
	if err := r.err(); err != nil {
		return Node{}, err
	}
	return n, nil
}

// checkAPI turns the decoded file into pvcapid's settings.
func checkAPI(doc *document, f apiFile) (API, error) {
	r := &report{doc: doc}
	a := API{
		Node: f.Node, Cluster: f.Cluster, ZooKeeper: f.ZooKeeper, API: f.API, Log: f.Log,
		Profile: f.Timing.Profile, Timing: f.Timing.timing(),
	}
	checkIdentity(r, a.Node)
	checkCluster(r, a.Cluster)
	a.ZooKeeper.Servers = checkZooKeeper(r, a.ZooKeeper)
	checkListener(r, a.API)
	checkLog(r, a.Log)
	// The daemon's file decides about gate and failsafe; here both are taken
	// for granted so that only the intervals themselves are judged.
	a.Warnings = slices.Concat(doc.warnings, checkTiming(r, a.Timing, cluster.TimingOptions{Gate: true, Failsafe: true}))
	if err := r.err(); err != nil {
		return API{}, err
	}
	return a, nil
}

func checkIdentity(r *report, i Identity) {
	if err := i.Name.Validate(); err != nil {
		r.refuse("node.name", "%v", err)
	}
	r.oneOf("node.mode", string(i.Mode), string(cluster.Coordinator), string(cluster.Hypervisor))
}

var clusterName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$`)

func checkCluster(r *report, c Cluster) {
	if c.Name == "" {
		r.refuse("cluster.name", "is missing: every node needs the name that the cluster was initialised with")
	} else if !clusterName.MatchString(c.Name) {
		r.refuse("cluster.name", "%q must be 1–63 letters, digits, '-', '_' or '.', beginning with a letter or digit", c.Name)
	}
}

// checkZooKeeper returns the servers in the form host:port.
func checkZooKeeper(r *report, z ZooKeeper) []string {
	servers := make([]string, 0, len(z.Servers))
	if len(z.Servers) == 0 {
		r.refuse("zookeeper.servers", "is missing: list the ensemble's servers as host:port, this node's own first")
	}
	for i, s := range z.Servers {
		key := fmt.Sprintf("zookeeper.servers[%d]", i)
		server, err := hostPort(s)
		switch {
		case err != nil:
			r.refuse(key, "%v", err)
		case slices.Contains(servers, server):
			r.refuse(key, "%s stands in the list twice", server)
		default:
			servers = append(servers, server)
		}
	}
	if !strings.HasPrefix(z.Root, "/") || path.Clean(z.Root) != z.Root {
		r.refuse("zookeeper.root", "%q must be a path like / or /pvc: absolute, no trailing slash, no . or ..", z.Root)
	}
	r.oneOf("zookeeper.auth.scheme", z.Auth.Scheme, "digest")
	checkDigest(r, "zookeeper.auth", z.Auth.Digest())
	checkDigest(r, "zookeeper.reader", z.Reader)
	if z.Reader.Set() && !z.Auth.Digest().Set() {
		r.refuse("zookeeper.reader", "needs zookeeper.auth beside it: without an owner everybody may read anyway")
	}
	if (z.TLS.Cert == "") != (z.TLS.Key == "") {
		r.refuse("zookeeper.tls", "cert and key belong together: set both or neither")
	}
	if z.TLS.ServerName != "" && z.TLS.CA == "" {
		r.refuse("zookeeper.tls.ca", "is missing: server_name alone does not turn TLS on")
	}
	return servers
}

func checkDigest(r *report, key string, d Digest) {
	if d.User == "" && d.PasswordFile != "" {
		r.refuse(key+".user", "is missing beside password_file")
	}
	if d.User != "" && d.PasswordFile == "" {
		r.refuse(key+".password_file", "is missing beside user %q", d.User)
	}
	if strings.Contains(d.User, ":") {
		r.refuse(key+".user", "%q must not contain a colon", d.User)
	}
}

// hostPort accepts host:port and [IPv6]:port, and adds the port 2181.
func hostPort(s string) (string, error) {
	if host, chroot, ok := strings.Cut(s, "/"); ok {
		return "", fmt.Errorf("%q ends in a chroot, which applies to no single server: write %q here and zookeeper.root: /%s", s, host, chroot)
	}
	if strings.ContainsAny(s, ", \t") {
		return "", fmt.Errorf("%q holds several servers: give each an entry of its own", s)
	}
	if addr, err := netip.ParseAddr(s); err == nil && addr.Is6() {
		return "", fmt.Errorf("%q is ambiguous: write [%s]:2181", s, s)
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		if strings.Contains(s, ":") || s == "" {
			return "", fmt.Errorf("%q is not host:port: write 10.0.0.1:2181 or [fd00::1]:2181", s)
		}
		host, port = s, "2181"
	}
	if host == "" {
		return "", fmt.Errorf("%q names no host: write 127.0.0.1:%s for this one", s, port)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		return "", fmt.Errorf("%q: port %q is not a number from 1 to 65535", s, port)
	}
	return net.JoinHostPort(host, port), nil
}

var itemName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$`)

// checkName refuses a name that is malformed or stands in the list twice.
func checkName(r *report, key, name string, seen map[string]bool) {
	switch {
	case name == "":
		r.refuse(key+".name", "is missing")
	case !itemName.MatchString(name):
		r.refuse(key+".name", "%q must be 1–63 letters, digits, '-', '_' or '.', beginning with a letter or digit", name)
	case seen[name]:
		r.refuse(key+".name", "%q stands in the list twice", name)
	}
	seen[name] = true
}

// checkCommand refuses a program that is not named by its full path: there is
// no search path to rely on in a daemon.
func checkCommand(r *report, key string, argv []string) {
	switch {
	case len(argv) == 0:
		r.refuse(key, "is missing: give the program's full path and its arguments as a list")
	case !filepath.IsAbs(argv[0]):
		r.refuse(key, "%q must be the program's full path", argv[0])
	}
}

func checkFolder(r *report, key, folder string) {
	if !filepath.IsAbs(folder) || filepath.Clean(folder) == "/" {
		r.refuse(key, "%q must be a full path", folder)
	}
}

func checkLog(r *report, l Log) {
	if _, err := zapcore.ParseLevel(l.Level); err != nil || l.Level == "" {
		r.oneOf("log.level", l.Level, "debug", "info", "warn", "error")
	}
	r.oneOf("log.format", l.Format, LogAuto, LogJSON, LogConsole)
}

func checkTiming(r *report, t cluster.Timing, o cluster.TimingOptions) []string {
	warnings, err := t.Validate(o)
	if err != nil {
		for _, line := range strings.Split(err.Error(), "\n") {
			r.refuse("timing", "%s", strings.TrimPrefix(line, "timing: "))
		}
	}
	return warnings
}

func checkListener(r *report, l Listener) {
	if len(l.Listen) == 0 {
		r.refuse("api.listen", "is missing: 127.0.0.1:7370 is the usual address")
	}
	r.oneOf("api.auth", l.Auth, "", "none")
	protected := l.KeysFile != "" || l.TLS.ClientCA != "" || l.Auth == "none"
	for i, listen := range l.Listen {
		key := fmt.Sprintf("api.listen[%d]", i)
		host, port, err := net.SplitHostPort(listen)
		if err != nil || port == "" {
			r.refuse(key, "%q is not address:port: write 127.0.0.1:7370 or [::1]:7370", listen)
			continue
		}
		addr, err := netip.ParseAddr(host)
		if host != "localhost" && (err != nil || !addr.IsLoopback()) && !protected {
			r.refuse(key, "%s can be reached from other hosts, where anybody could switch the primary or fence a node: set api.keys_file or api.tls.client_ca, or write api.auth: none if that is meant", listen)
		}
	}
	if (l.TLS.Cert == "") != (l.TLS.Key == "") {
		r.refuse("api.tls", "cert and key belong together: set both or neither")
	}
	if l.TLS.ClientCA != "" && l.TLS.Cert == "" {
		r.refuse("api.tls.cert", "is missing: client certificates need TLS")
	}
}
