package settings

import (
	"maps"
	"net/netip"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Why keys of PVC's are dropped.
const (
	notVMs       = "this program does not run virtual machines"
	notCeph      = "this program does not manage storage"
	notNetworks  = "this program makes no networks: they belong into the host's own network configuration"
	notDNS       = "the database belongs to PVC's DNS or metadata service, which is not part of this program"
	notDatabase  = "the database is not used by this program"
	notOneByOne  = "functions are not switched here: what a node does follows from node.mode, addresses and services"
	notFiles     = "logs go to standard error, so to the journal, and the newest lines to ZooKeeper"
	notByKey     = "a line is logged for what changes, never for a keepalive"
	notColours   = "colours are used on a terminal only; NO_COLOR switches them off"
	notPlugins   = "plugins are named one by one under plugins, with their commands"
	notAll       = "each node registers itself; nobody lists them"
	notSelector  = "the migration target selector is a record of the cluster, not a setting of a node"
	notTest      = "fencing is never switched off by a device that does not answer; that is a health fault"
	notNodesFile = "pvcapid reads it, this program does not"
	notAPIsFile  = "pvcnoded reads it, this program does not"
	notAPI       = "pvcapid runs on every coordinator: `systemctl enable pvcapid`"
	notBackups   = "backups and mirrors of virtual machines are not part of this program"
	notCookies   = "there are no cookies to sign"
	notMonitored = "each plugin has an interval of its own (plugins)"
)

// pvcNetworks are PVC's networks with a floating address, in their order.
var pvcNetworks = []string{"upstream", "cluster", "storage"}

// nodeRules are pvcnoded's.
func nodeRules() *pvcRules {
	return &pvcRules{keys: nodeKeys(), assemble: func(t *translation) {
		if child(t.from, "pvc") != nil {
			assembleOld(t)
			return
		}
		assembleFlat(t)
	}}
}

func nodeKeys() map[string]pvcRule {
	keys := oldKeys()
	maps.Copy(keys, flatKeys())
	return keys
}

// oldKeys are those below the key pvc.
func oldKeys() map[string]pvcRule {
	keys := map[string]pvcRule{
		"pvc.node":                                                   {to: "node.name"},
		"pvc.debug":                                                  {to: "log.level", value: debugLevel},
		"pvc.functions.*":                                            {why: notOneByOne},
		"pvc.functions.enable_api":                                   {why: notAPI},
		"pvc.cluster.coordinators":                                   {to: "zookeeper.servers and node.mode", joined: true},
		"pvc.cluster.networks.*":                                     {why: notNetworks},
		"pvc.coordinator.*":                                          {why: notDNS},
		"pvc.system.migration.*":                                     {why: notSelector},
		"pvc.system.configuration.storage.*":                         {why: notCeph},
		"pvc.system.configuration.networking.*":                      {why: notNetworks},
		"pvc.system.configuration.logging.*":                         {why: notFiles},
		"pvc.system.configuration.logging.log_keepalives":            {why: notByKey},
		"pvc.system.configuration.logging.log_colours":               {why: notColours},
		"pvc.system.configuration.directories.*":                     {why: notFiles},
		"pvc.system.configuration.directories.dynamic_directory":     {to: "run_dir"},
		"pvc.system.configuration.directories.plugin_directory":      {why: notPlugins},
		"pvc.system.configuration.directories.console_log_directory": {why: notVMs},
		"pvc.system.fencing.actions.successful_fence":                {to: "fencing.successful_fence", value: action},
		"pvc.system.fencing.actions.failed_fence":                    {to: "fencing.failed_fence", joined: true},
	}
	for _, at := range []string{"pvc.system.intervals.", "pvc.system.fencing.intervals."} { // the older place is the second
		keys[at+"vm_shutdown_timeout"] = pvcRule{why: notVMs}
		keys[at+"keepalive_interval"] = pvcRule{to: "timing.keepalive_interval", joined: true}
		keys[at+"monitoring_interval"] = pvcRule{why: notMonitored}
		keys[at+"fence_intervals"] = pvcRule{to: "timing.fence_intervals", joined: true}
		keys[at+"suicide_intervals"] = pvcRule{to: "timing.suicide_intervals", joined: true}
		keys[at+"suicide_interval"] = pvcRule{to: "timing.suicide_intervals", joined: true}
	}
	for key, to := range map[string]string{
		"host": "fencing.nodes", "address": "fencing.nodes", "user": "fencing.nodes", "pass": "",
	} {
		keys["pvc.system.fencing.ipmi."+key] = pvcRule{to: to, joined: true}
	}
	for _, net := range pvcNetworks {
		keys["pvc.cluster.networks."+net+".floating_ip"] = pvcRule{to: "addresses", joined: true}
		keys["pvc.system.configuration.networking."+net+".device"] = pvcRule{to: "addresses", joined: true}
	}
	return keys
}

// flatKeys are those of the file that PVC's daemons share.
func flatKeys() map[string]pvcRule {
	keys := map[string]pvcRule{
		"path.*":                              {why: notFiles},
		"path.dynamic_directory":              {to: "run_dir"},
		"path.plugin_directory":               {why: notPlugins},
		"path.console_log_directory":          {why: notVMs},
		"path.ceph_directory":                 {why: notCeph},
		"subsystem.*":                         {why: notOneByOne},
		"subsystem.enable_api":                {why: notAPI},
		"cluster.name":                        {to: "cluster.name"},
		"cluster.all_nodes":                   {why: notAll},
		"cluster.coordinator_nodes":           {to: "zookeeper.servers and node.mode", joined: true},
		"cluster.networks.*":                  {why: notNetworks},
		"database.zookeeper.port":             {to: "zookeeper.servers", joined: true},
		"database.*":                          {why: notDatabase},
		"timer.vm_shutdown_timeout":           {why: notVMs},
		"timer.keepalive_interval":            {to: "timing.keepalive_interval", joined: true},
		"timer.monitoring_interval":           {why: notMonitored},
		"fencing.disable_on_ipmi_failure":     {why: notTest},
		"fencing.intervals.fence_intervals":   {to: "timing.fence_intervals", joined: true},
		"fencing.intervals.suicide_intervals": {to: "timing.suicide_intervals", joined: true},
		"fencing.intervals.suicide_interval":  {to: "timing.suicide_intervals", joined: true},
		"fencing.actions.successful_fence":    {to: "fencing.successful_fence", value: action},
		"fencing.actions.failed_fence":        {to: "fencing.failed_fence", joined: true},
		"fencing.ipmi.hostname":               {to: "fencing.nodes", joined: true},
		"fencing.ipmi.hostname_format":        {to: "fencing.nodes", joined: true},
		"fencing.ipmi.username":               {to: "fencing.nodes", joined: true},
		"fencing.ipmi.password":               {joined: true},
		"migration.*":                         {why: notSelector},
		"logging.*":                           {why: notFiles},
		"logging.debug_logging":               {to: "log.level", value: debugLevel},
		"logging.log_keepalives":              {why: notByKey},
		"logging.log_colours":                 {why: notColours},
		"guest_networking.*":                  {why: notNetworks},
		"ceph.*":                              {why: notCeph},
		"api.*":                               {why: notNodesFile},
		"autobackup.*":                        {why: notBackups},
		"automirror.*":                        {why: notBackups},
	}
	for _, net := range pvcNetworks {
		for _, key := range []string{"device", "ipv4.netmask", "ipv4.floating_address"} {
			keys["cluster.networks."+net+"."+key] = pvcRule{to: "addresses", joined: true}
		}
	}
	return keys
}

// assembleOld makes what takes several keys of a file below the key pvc. Such a
// file describes its own node's fence device only.
func assembleOld(t *translation) {
	own, _, _ := t.text("pvc.node")
	if own == "" {
		own = string(defaultIdentity().Name)
	}
	t.servers("pvc.cluster.coordinators", own, "2181")
	t.doc.set("cluster.name", word("pvc", 0))
	t.doc.was["cluster.name"] = "PVC's file names none"
	t.doc.warn(1, "it names no cluster: taken as %q; the tree must be initialised by that name (`pvc cluster init --name pvc`), or PVCNODED_CLUSTER_NAME says another", "pvc")
	both := func(names ...string) (keys []string) {
		for _, name := range names {
			keys = append(keys, "pvc.system.intervals."+name, "pvc.system.fencing.intervals."+name)
		}
		return keys
	}
	t.intervals(pvcIntervals{both("keepalive_interval"), both("fence_intervals"), both("suicide_intervals", "suicide_interval")})
	var found []pvcAddress
	for _, net := range pvcNetworks {
		a := pvcAddress{net: net}
		a.cidr, a.cidrKey, a.line = t.text("pvc.cluster.networks." + net + ".floating_ip")
		a.device, a.deviceKey, a.deviceLine = t.text("pvc.system.configuration.networking." + net + ".device")
		found = append(found, a)
	}
	if !t.off("pvc.functions.enable_networking") {
		t.addresses(found)
	}
	t.failedFence("pvc.system.fencing.actions.failed_fence")
	host, hostKey, line := t.text("pvc.system.fencing.ipmi.host", "pvc.system.fencing.ipmi.address")
	if host != "" {
		user, userKey, _ := t.text("pvc.system.fencing.ipmi.user")
		nodes := &yaml.Node{Kind: yaml.MappingNode, Line: line}
		t.ladder(nodes, own, host, hostKey, user, userKey, line)
		t.doc.set("fencing.nodes", nodes)
		t.doc.warn(line, "%s: here every coordinator has the devices of all nodes: write this one's into the files of the others, too", hostKey)
	}
	t.password("pvc.system.fencing.ipmi.pass")
}

// assembleFlat makes what takes several keys of the file that PVC's daemons
// share, which describes the devices of all nodes by a pattern.
func assembleFlat(t *translation) {
	own := string(defaultIdentity().Name)
	port, _, _ := t.text("database.zookeeper.port")
	if port == "" {
		port = "2181"
	}
	t.servers("cluster.coordinator_nodes", own, port)
	t.intervals(pvcIntervals{[]string{"timer.keepalive_interval"}, []string{"fencing.intervals.fence_intervals"},
		[]string{"fencing.intervals.suicide_intervals", "fencing.intervals.suicide_interval"}})
	var found []pvcAddress
	for _, net := range pvcNetworks {
		at := "cluster.networks." + net + "."
		a := pvcAddress{net: net}
		a.cidr, a.cidrKey, a.line = t.text(at + "ipv4.floating_address")
		if bits, _, _ := t.text(at + "ipv4.netmask"); a.cidr != "" && bits != "" {
			a.cidr += "/" + bits
		}
		a.device, a.deviceKey, a.deviceLine = t.text(at + "device")
		found = append(found, a)
	}
	if !t.off("subsystem.enable_networking") {
		t.addresses(found)
	}
	t.failedFence("fencing.actions.failed_fence")
	flatLadders(t)
	t.password("fencing.ipmi.password")
}

func flatLadders(t *translation) {
	pattern, key, line := t.text("fencing.ipmi.hostname", "fencing.ipmi.hostname_format")
	all := t.at("cluster.all_nodes")
	if pattern == "" || all == nil || all.Kind != yaml.SequenceNode {
		return
	}
	if !strings.Contains(pattern, "{node_id}") && len(all.Content) > 1 {
		t.doc.warn(line, "%s: dropped: one name cannot be the device of %d nodes: write a ladder for each under fencing.nodes", key, len(all.Content))
		return
	}
	user, userKey, _ := t.text("fencing.ipmi.username")
	nodes := &yaml.Node{Kind: yaml.MappingNode, Line: line}
	for _, n := range all.Content {
		t.ladder(nodes, n.Value, strings.ReplaceAll(pattern, "{node_id}", nodeNumber(n.Value)), key, user, userKey, line)
	}
	t.doc.set("fencing.nodes", nodes)
}

// apiRules are pvcapid's.
func apiRules() *pvcRules {
	keys := map[string]pvcRule{
		"pvc.debug":                         {to: "log.level", value: debugLevel},
		"pvc.coordinators":                  {to: "zookeeper.servers", joined: true},
		"pvc.provisioner.*":                 {why: notVMs},
		"pvc.api.authentication.secret_key": {why: notCookies},

		"cluster.*":                 {why: notAPIsFile},
		"cluster.name":              {to: "cluster.name"},
		"cluster.coordinator_nodes": {to: "zookeeper.servers and node.mode", joined: true},
		"database.*":                {why: notDatabase},
		"database.zookeeper.port":   {to: "zookeeper.servers", joined: true},
		"timer.*":                   {why: notAPIsFile},
		"timer.keepalive_interval":  {to: "timing.keepalive_interval", joined: true},
		"logging.debug_logging":     {to: "log.level", value: debugLevel},
		"api.authentication.*":      {why: notCookies},
		"autobackup.*":              {why: notBackups},
		"automirror.*":              {why: notBackups},
	}
	for _, section := range []string{"path", "subsystem", "fencing", "migration", "logging", "guest_networking", "ceph"} {
		keys[section+".*"] = pvcRule{why: notAPIsFile}
	}
	for _, key := range []string{"pvc.api.listen_address", "pvc.api.listen_port", "api.listen.address", "api.listen.port"} {
		keys[key] = pvcRule{to: "api.listen", joined: true}
	}
	for _, key := range []string{"pvc.api.authentication.enabled", "api.authentication.enabled"} {
		keys[key] = pvcRule{to: "api.auth", joined: true}
	}
	for _, key := range []string{"pvc.api.authentication.tokens", "api.token"} {
		keys[key] = pvcRule{to: "api.keys_file", joined: true}
	}
	for _, key := range []string{"pvc.api.ssl.enabled", "pvc.api.ssl.cert_file", "pvc.api.ssl.key_file", "api.ssl.enabled", "api.ssl.certificate", "api.ssl.private_key"} {
		keys[key] = pvcRule{to: "api.tls", joined: true}
	}
	return &pvcRules{keys: keys, assemble: assembleAPI}
}

// apiKeys is where keys belong that stood in PVC's file.
const apiKeys = "/etc/pvc/api-keys"

func assembleAPI(t *translation) {
	own := string(defaultIdentity().Name)
	if child(t.from, "pvc") != nil {
		t.servers("pvc.coordinators", own, "2181")
		t.doc.set("cluster.name", word("pvc", 0))
		t.doc.was["cluster.name"] = "PVC's file names none"
	} else {
		port, _, _ := t.text("database.zookeeper.port")
		if port == "" {
			port = "2181"
		}
		t.servers("cluster.coordinator_nodes", own, port)
	}
	t.intervals(pvcIntervals{keepalive: []string{"timer.keepalive_interval"}})
	t.listener()
	enabled := t.at("pvc.api.authentication.enabled")
	if enabled == nil {
		enabled = t.at("api.authentication.enabled")
	}
	switch {
	case enabled != nil && !isTrue(enabled):
		t.set("api.auth", "authentication.enabled", enabled.Line, word("none", enabled.Line))
		t.doc.warn(enabled.Line, "authentication is switched off: whoever reaches the address may switch the primary and fence nodes; set api.keys_file")
	case enabled != nil:
		t.set("api.keys_file", "authentication.enabled", enabled.Line, word(apiKeys, enabled.Line))
		t.doc.warn(enabled.Line, "the tokens are not taken over, since keys stand in a file of their own, hashed: for each write a line into %s, `printf 'NAME:admin:%%s\\n' \"$(printf %%s \"$TOKEN\" | sha256sum | cut -d' ' -f1)\"`, and take the tokens out of this file", apiKeys)
	}
	t.certificate()
}

// listener makes the address of PVC's API ours.
func (t *translation) listener() {
	address, key, line := t.text("pvc.api.listen_address", "api.listen.address")
	port, _, _ := t.text("pvc.api.listen_port", "api.listen.port")
	if address == "" {
		return
	}
	if port == "" {
		port = "7370"
	}
	if a, err := netip.ParseAddr(address); err == nil && a.Is6() {
		address = "[" + address + "]"
	}
	t.set("api.listen", key, line, &yaml.Node{Kind: yaml.SequenceNode, Content: []*yaml.Node{word(address+":"+port, line)}})
}

// certificate takes TLS over where it is switched on.
func (t *translation) certificate() {
	on := t.at("pvc.api.ssl.enabled")
	if on == nil {
		on = t.at("api.ssl.enabled")
	}
	if on == nil || !isTrue(on) {
		return
	}
	for to, from := range map[string][]string{
		"api.tls.cert": {"pvc.api.ssl.cert_file", "api.ssl.certificate"}, "api.tls.key": {"pvc.api.ssl.key_file", "api.ssl.private_key"},
	} {
		if file, key, line := t.text(from...); file != "" {
			t.set(to, key, line, word(file, line))
		}
	}
}
