package zkhandler

import (
	"fmt"
	"strings"

	"pvc.internal/cluster"
)

// treeRoots are the subtrees that belong to us (and, of old, to PVC).
var treeRoots = []string{"/config", "/nodes", "/logs", "/faults", "/agent"}

// schema maps keys to znode paths under a root. This file alone knows a path.
type schema struct{ root string } // "" or "/a/b"

func newSchema(root string) (schema, error) {
	root = strings.TrimRight(root, "/")
	if root == "" {
		return schema{}, nil
	}
	if root[0] != '/' {
		return schema{}, fmt.Errorf("zookeeper.root %q must begin with '/'", root)
	}
	for _, segment := range strings.Split(root[1:], "/") {
		if err := checkSegment(segment); err != nil {
			return schema{}, fmt.Errorf("zookeeper.root %q: %w", root, err)
		}
	}
	if root == "/zookeeper" || strings.HasPrefix(root, "/zookeeper/") {
		return schema{}, fmt.Errorf("zookeeper.root %q: /zookeeper belongs to ZooKeeper itself", root)
	}
	return schema{root: root}, nil
}

// checkSegment refuses what ZooKeeper would, and the child-name prefix that
// crashes the client library.
func checkSegment(s string) error {
	switch {
	case s == "" || s == "." || s == "..":
		return fmt.Errorf("%q is not a znode name", s)
	case len(s) > 255:
		return fmt.Errorf("a znode name of %d bytes is too long (255)", len(s))
	case strings.ContainsRune(s, '/'):
		return fmt.Errorf("%q must not contain '/'", s)
	}
	for _, r := range s {
		if r < 0x20 || (r >= 0x7f && r <= 0x9f) || (r >= 0xd800 && r <= 0xf8ff) || r >= 0xfff0 {
			return fmt.Errorf("%q contains the character %U, which a znode name may not", s, r)
		}
	}
	return nil
}

func checkSegments(name string) error {
	for _, s := range strings.Split(name, "/") {
		if err := checkSegment(s); err != nil {
			return err
		}
	}
	return nil
}

// orderDir holds the operators' fence orders, each emptied once it is answered,
// testDir the newest tests of each node's fence devices. Trees made before they
// were there get them from the next node that registers.
const (
	orderDir = "/agent/fence-orders"
	testDir  = "/agent/fence-tests"
)

// membersPath tells of the nodes that were removed; like orderDir it comes into
// an older tree with the next node that registers.
const membersPath = "/agent/members"

// activityDir holds what runs, or waits, under leases: an intent each.
const activityDir = "/agent/activities"

// workloadDir holds a record of each workload. Every tree has it from its first
// day; where a hand has taken it away it comes back with the next node that
// registers.
const workloadDir = "/agent/workloads"

// factsDir holds, from cluster.FactsSchema on, what each node publishes in one
// record. A tree of an earlier schema gets it by migration.
const factsDir = "/agent/facts"

// What a backup and a restore treat by itself. restoreMark stands from the first to
// the last write of a restore: while it is there the tree is a half one, whatever
// else is in it.
const (
	configTop         = "/config"
	wishRecord        = "/config/primary_node"
	maintenanceFlag   = "/config/maintenance"
	fenceLockDir      = "/config/fence_lock"
	nodesTop          = "/nodes"
	logsTop           = "/logs"
	agentTop          = "/agent"
	schemaRecord      = "/agent/schema"
	leaseDir          = "/agent/lease"
	leaseRecord       = "/agent/lease/primary"
	leasesRecord      = "/agent/leases"
	transitionRecord  = "/agent/transition"
	maintenanceRecord = "/agent/maintenance"
	memberOrder       = "/agent/member-order"
	rebalanceRecord   = "/agent/rebalance"
	reprovisionRecord = "/agent/reprovision"
	aliveTop          = "/agent/alive"
	viewsTop          = "/agent/views"
	fencesTop         = "/agent/fences"
	historyTop        = "/agent/history"
	restoreMark       = "/agent/restore"
)

// secretDir holds the sealed passwords of fence devices.
const secretDir = "/agent/secrets"

// parts of a path pattern: {n} is Key.Node, {s} one segment of Key.Name,
// {p} several.
var patterns = map[cluster.KeyKind]string{
	cluster.KeyClusterName:       "/config",
	cluster.KeyPrimaryNode:       "/config/primary_node",
	cluster.KeyMaintenance:       "/config/maintenance",
	cluster.KeyUpstreamIP:        "/config/upstream_ip",
	cluster.KeySelector:          "/config/migration_target_selector",
	cluster.KeyLease:             "/agent/lease/primary",
	cluster.KeyTransition:        "/agent/transition",
	cluster.KeyRoleLockChild:     "/config/primary_node/{s}",
	cluster.KeyFenceLockChild:    "/config/fence_lock/{s}",
	cluster.KeyNodeMode:          "/nodes/{n}",
	cluster.KeyKeepalive:         "/nodes/{n}/keepalive",
	cluster.KeyDaemonMode:        "/nodes/{n}/daemonmode",
	cluster.KeyDaemonState:       "/nodes/{n}/daemonstate",
	cluster.KeyRouterState:       "/nodes/{n}/routerstate",
	cluster.KeyDomainState:       "/nodes/{n}/domainstate",
	cluster.KeyNodeField:         "/nodes/{n}/{p}",
	cluster.KeyPluginField:       "/nodes/{n}/monitoring_data/{p}",
	cluster.KeyNodeRecord:        "/agent/nodes/{n}",
	cluster.KeyAlive:             "/agent/alive/{n}",
	cluster.KeyView:              "/agent/views/{n}",
	cluster.KeyFence:             "/agent/fences/{n}",
	cluster.KeyFailover:          "/agent/failover",
	cluster.KeyMaintenanceRecord: "/agent/maintenance",
	cluster.KeyHistory:           "/agent/history/{s}",
	cluster.KeySchema:            "/agent/schema",
	cluster.KeyLog:               "/logs/{n}/messages",
	cluster.KeyFault:             "/faults/{p}",
	cluster.KeyFaultRoot:         "/faults/{s}",
	cluster.KeyFenceOrder:        orderDir + "/{n}",
	cluster.KeyFenceTests:        testDir + "/{n}",
	cluster.KeySecret:            secretDir + "/{s}",
	cluster.KeyQuorumSet:         "/agent/quorum",
	cluster.KeyMembers:           membersPath,
	cluster.KeyMemberOrder:       "/agent/member-order",
	cluster.KeyNodeLeases:        "/agent/leases",
	cluster.KeyLogDir:            "/logs/{n}",
	cluster.KeyActivity:          activityDir + "/{s}",
	cluster.KeyFactsDir:          factsDir,
	cluster.KeyFacts:             factsDir + "/{n}",
	cluster.KeyWorkload:          workloadDir + "/{s}",
	cluster.KeyReprovision:       reprovisionRecord,
	cluster.KeyRebalance:         rebalanceRecord,
}

// path returns the znode that the key stands for. An unknown key is an error
// and never some parent's path: a write to the wrong level has destroyed
// clusters before.
func (s schema) path(k cluster.Key) (string, error) {
	pattern, ok := patterns[k.Kind]
	if !ok {
		return "", fmt.Errorf("key %s: unknown kind", k)
	}
	if strings.Contains(pattern, "{n}") {
		if err := k.Node.Validate(); err != nil {
			return "", fmt.Errorf("key %s: %w", k, err)
		}
		pattern = strings.Replace(pattern, "{n}", string(k.Node), 1)
	} else if k.Node != "" {
		return "", fmt.Errorf("key %s: this kind has no node", k)
	}
	switch {
	case strings.Contains(pattern, "{s}"):
		if err := checkSegment(k.Name); err != nil {
			return "", fmt.Errorf("key %s: %w", k, err)
		}
		pattern = strings.Replace(pattern, "{s}", k.Name, 1)
	case strings.Contains(pattern, "{p}"):
		if err := checkSegments(k.Name); err != nil {
			return "", fmt.Errorf("key %s: %w", k, err)
		}
		pattern = strings.Replace(pattern, "{p}", k.Name, 1)
	case k.Name != "":
		return "", fmt.Errorf("key %s: this kind has no name", k)
	}
	return s.root + pattern, nil
}

// sequencePath is the path to create a sequential child with: ZooKeeper
// appends ten digits.
func (s schema) sequencePath(k cluster.Key) (string, error) {
	if k.Kind == cluster.KeyHistory && k.Name == "" {
		return s.historyDir() + "/", nil
	}
	return s.path(k)
}

// lockDir is the parent of a lock's children.
func (s schema) lockDir(kind cluster.KeyKind) (string, error) {
	switch kind {
	case cluster.KeyRoleLockChild:
		return s.root + "/config/primary_node", nil
	case cluster.KeyFenceLockChild:
		return s.root + "/config/fence_lock", nil
	}
	return "", fmt.Errorf("key kind %d is not a lock", kind)
}

func (s schema) configPath() string   { return s.root + "/config" }
func (s schema) schemaPath() string   { return s.root + "/agent/schema" }
func (s schema) factsDir() string     { return s.root + factsDir }
func (s schema) syncPath() string     { return s.root + "/agent" }
func (s schema) nodesDir() string     { return s.root + "/nodes" }
func (s schema) workloadsDir() string { return s.root + workloadDir }
func (s schema) aliveDir() string     { return s.root + "/agent/alive" }
func (s schema) historyDir() string   { return s.root + "/agent/history" }
func (s schema) faultsDir() string    { return s.root + "/faults" }
func (s schema) nodeDir(n cluster.NodeID) string {
	return s.root + "/nodes/" + string(n)
}

// barrierPath names no znode; a sync of it marks the point in a connection's
// stream from which on requests are this connection's own.
func (s schema) barrierPath(generation uint64) string {
	return fmt.Sprintf("%s/agent/barrier-%d", s.root, generation)
}

// rootParents are the znodes above the tree, outermost first.
func (s schema) rootParents() []string {
	var parents []string
	for i, r := range s.root {
		if r == '/' && i > 0 {
			parents = append(parents, s.root[:i])
		}
	}
	if s.root != "" {
		parents = append(parents, s.root)
	}
	return parents
}

// leaf is a znode with its first value.
type leaf struct {
	path  string
	value string
}

// freshTree lists the znodes of a new cluster of this schema in creation order,
// but for the lease, whose value is the caller's.
func (s schema) freshTree(clusterName string, version int) []leaf {
	leaves := []leaf{
		{"/config", clusterName},
		{"/config/primary_node", cluster.NoNode},
		{"/config/primary_node/sync_lock", ""},
		{"/config/maintenance", "false"},
		{"/config/upstream_ip", "none"},
		{"/config/migration_target_selector", "mem"},
		{"/config/fence_lock", ""},
		{"/nodes", ""},
		{"/logs", ""},
		{"/faults", ""},
		{"/agent", ""},
		{"/agent/schema", fmt.Sprint(version)},
		{"/agent/lease", ""},
		{"/agent/history", ""},
		{"/agent/nodes", ""},
		{"/agent/alive", ""},
		{"/agent/views", ""},
		{"/agent/fences", ""},
		{orderDir, ""},
		{testDir, ""},
		{membersPath, ""},
		{activityDir, ""},
		{workloadDir, ""},
		{secretDir, ""},
	}
	if version >= cluster.FactsSchema {
		leaves = append(leaves, leaf{factsDir, ""})
	}
	for i := range leaves {
		leaves[i].path = s.root + leaves[i].path
	}
	return leaves
}

// freshFacts is what a node has more from cluster.FactsSchema on.
func (s schema) freshFacts(n cluster.NodeID) []leaf {
	return []leaf{{s.root + factsDir, ""}, {s.root + factsDir + "/" + string(n), ""}}
}

// freshNode lists a node's znodes in creation order, with PVC's defaults, and
// first what an older tree lacks.
func (s schema) freshNode(n cluster.NodeID, mode cluster.Mode, unixSeconds int64) []leaf {
	router := cluster.RouterSecondary
	if mode == cluster.Hypervisor {
		router = cluster.RouterClient
	}
	dir := s.nodeDir(n)
	tree := []leaf{{s.root + membersPath, ""}, {s.root + orderDir, ""}, {s.root + testDir, ""}, {s.root + workloadDir, ""}, {dir, string(mode)}}
	for _, l := range []leaf{
		{"keepalive", fmt.Sprint(unixSeconds)},
		{"daemonmode", string(mode)},
		{"daemonstate", string(cluster.DaemonInit)},
		{"routerstate", string(router)},
		{"domainstate", string(cluster.DomainFlushed)},
		{"staticdata", ""},
		{"memtotal", "0"}, {"memused", "0"}, {"memfree", "0"}, {"memalloc", "0"}, {"memprov", "0"},
		{"vcpualloc", "0"}, {"domainscount", "0"}, {"networkscount", "0"},
		{"cpuload", "0.00"},
		{"runningdomains", ""},
		{"activeschema", ""}, {"latestschema", ""}, {"pvcversion", ""},
		{"monitoring_health", "100"}, {"monitoring_plugins", ""}, {"monitoring_data", ""},
	} {
		tree = append(tree, leaf{dir + "/" + l.path, l.value})
	}
	logs := s.root + "/logs/" + string(n)
	return append(tree, leaf{logs, ""}, leaf{logs + "/messages", ""})
}
