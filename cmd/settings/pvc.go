package settings

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"pvc.internal/cluster"
)

// pvcRules say what a program makes of a file of PVC's own daemons, key by key.
// There are two forms of such a file: the older one below a single key pvc, and
// the flat one that all daemons share.
type pvcRules struct {
	keys     map[string]pvcRule // by PVC's key; x.* is everything below x
	assemble func(*translation) // makes what takes several keys
}

// pvcRule is what becomes of one key.
type pvcRule struct {
	to    string // our key; "": dropped
	why   string // why it is dropped, or what to know beside the new name
	value func(*yaml.Node) *yaml.Node
	// joined: assemble makes the value.
	joined bool
}

// isPVCs reports whether a file is one of PVC's own daemons. One that has keys of
// this program's is this program's, and others in it are refused by their names:
// as PVC's it would lose what it has of ours.
func isPVCs(root *yaml.Node) bool {
	for _, key := range []string{"node", "zookeeper", "addresses", "services", "timing", "watchdog"} {
		if child(root, key) != nil {
			return false
		}
	}
	if n := child(root, "pvc"); n != nil {
		return true
	}
	if c := child(root, "cluster"); child(c, "coordinator_nodes") != nil || child(c, "all_nodes") != nil {
		return true
	}
	signs := 0
	for _, key := range []string{"path", "subsystem", "database", "timer", "migration", "guest_networking", "ceph"} {
		if child(root, key) != nil {
			signs++
		}
	}
	return signs >= 2
}

// translation is a file of PVC's own on its way to ours.
type translation struct {
	doc     *document
	rules   *pvcRules
	from    *yaml.Node
	dropped []droppedKeys
}

// droppedKeys are keys of one parent that are dropped for one reason.
type droppedKeys struct {
	parent string
	why    string
	line   int
	keys   []string
}

// translate turns the document into one of our keys. Each key that is taken
// over and each that is dropped is a warning with its name.
func (d *document) translate(rules *pvcRules) {
	t := &translation{doc: d, rules: rules, from: d.root}
	d.root, d.changed = &yaml.Node{Kind: yaml.MappingNode}, true
	d.warn(1, "this is a file of PVC's own daemons and was translated; `config check` prints it with the keys of this program: write those")
	t.visit(t.from, "")
	for _, g := range t.dropped {
		name := g.keys[0]
		if len(g.keys) > 1 {
			name = "{" + strings.Join(g.keys, ", ") + "}"
		}
		d.warn(g.line, "%s: dropped: %s", join(g.parent, name), g.why)
	}
	rules.assemble(t)
}

func (d *document) warn(line int, format string, args ...any) {
	d.warnings = append(d.warnings, fmt.Sprintf("%s:%d: %s", d.path, line, fmt.Sprintf(format, args...)))
}

// visit meets every key that holds no other.
func (t *translation) visit(n *yaml.Node, at string) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		name, value := n.Content[i], n.Content[i+1]
		key := join(at, name.Value)
		if value.Kind == yaml.AliasNode {
			value = value.Alias
		}
		if value.Kind == yaml.MappingNode && len(value.Content) > 0 {
			t.visit(value, key)
			continue
		}
		t.leaf(key, name, value)
	}
}

func (t *translation) leaf(key string, name, value *yaml.Node) {
	rule, known := t.rules.keys[key]
	for at := key; !known && at != ""; {
		at = at[:max(0, strings.LastIndex(at, "."))]
		rule, known = t.rules.keys[at+".*"]
	}
	switch {
	case !known:
		t.drop(key, name.Line, "it is no key of PVC's that this program knows")
	case rule.joined && rule.to == "": // assemble tells what becomes of it
	case rule.to == "":
		t.drop(key, name.Line, rule.why)
	default:
		t.renamed(key, name.Line, rule)
		if rule.joined {
			return
		}
		if rule.value != nil {
			value = rule.value(value)
		}
		if value != nil {
			t.set(rule.to, key, name.Line, value)
		}
	}
}

func (t *translation) renamed(key string, line int, rule pvcRule) {
	if key == rule.to {
		return
	}
	note := ""
	if rule.why != "" {
		note = ": " + rule.why
	}
	t.doc.warn(line, "%s: renamed to %s%s", key, rule.to, note)
}

func (t *translation) drop(key string, line int, why string) {
	parent, name := "", key
	if i := strings.LastIndex(key, "."); i >= 0 {
		parent, name = key[:i], key[i+1:]
	}
	if last := len(t.dropped) - 1; last >= 0 && t.dropped[last].parent == parent && t.dropped[last].why == why {
		t.dropped[last].keys = append(t.dropped[last].keys, name)
		return
	}
	t.dropped = append(t.dropped, droppedKeys{parent, why, line, []string{name}})
}

// set writes one of our keys, and notes which of PVC's it is from.
func (t *translation) set(key, was string, line int, value *yaml.Node) {
	copied := *value
	copied.Line = line
	t.doc.set(key, &copied)
	t.doc.was[key] = was
}

// at finds a value of PVC's file by its key; nil: it is not there, or PVC's None.
func (t *translation) at(key string) *yaml.Node {
	n := t.from
	for _, step := range strings.Split(key, ".") {
		n = child(n, step)
	}
	if n == nil || n.Tag == "!!null" || n.Kind == yaml.ScalarNode && (n.Value == "" || strings.EqualFold(n.Value, "none")) {
		return nil
	}
	return n
}

// text is the text at the first of the keys that has one.
func (t *translation) text(keys ...string) (text, key string, line int) {
	for _, key := range keys {
		if n := t.at(key); n != nil && n.Kind == yaml.ScalarNode {
			return n.Value, key, n.Line
		}
	}
	return "", "", 0
}

// off reports whether PVC's file switches something off, in YAML 1.1's words.
func (t *translation) off(key string) bool {
	n := t.at(key)
	return n != nil && !isTrue(n)
}

func isTrue(n *yaml.Node) bool {
	return slices.Contains([]string{"true", "yes", "on", "y"}, strings.ToLower(n.Value))
}

// word makes a text node.
func word(text string, line int) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: text, Line: line}
}

// pair adds a key with a text to a mapping that is to become part of the file.
func pair(to *yaml.Node, key, text string, line int) {
	to.Content = append(to.Content, word(key, line), word(text, line))
}

// servers makes the list of ZooKeeper's servers of the coordinators, this
// node's own first, and says what this node is.
func (t *translation) servers(key, own, port string) {
	list := t.at(key)
	if list == nil || list.Kind != yaml.SequenceNode {
		return
	}
	servers := &yaml.Node{Kind: yaml.SequenceNode}
	mode := "hypervisor"
	for _, n := range list.Content {
		server := word(n.Value+":"+port, n.Line)
		if shortName(n.Value) == shortName(own) {
			mode = "coordinator"
			servers.Content = slices.Insert(servers.Content, 0, server)
			continue
		}
		servers.Content = append(servers.Content, server)
	}
	t.set("zookeeper.servers", key, list.Line, servers)
	if own != "" {
		t.set("node.mode", key, list.Line, word(mode, list.Line))
	}
}

// pvcAddress is a floating address as PVC's file has it.
type pvcAddress struct {
	net, cidr, cidrKey, device, deviceKey string
	line, deviceLine                      int
}

// addresses makes the floating addresses.
func (t *translation) addresses(found []pvcAddress) {
	list := &yaml.Node{Kind: yaml.SequenceNode, Line: 0}
	for _, a := range found {
		switch {
		case a.cidr == "" && a.device == "":
			continue
		case a.cidr == "" || a.device == "":
			t.doc.warn(max(a.line, a.deviceLine), "the floating address of the network %s is dropped: it needs an address and a device", a.net)
			continue
		}
		at := fmt.Sprintf("addresses[%d]", len(list.Content))
		entry := &yaml.Node{Kind: yaml.MappingNode, Line: a.line}
		pair(entry, "name", a.net, a.line)
		pair(entry, "cidr", a.cidr, a.line)
		pair(entry, "interface", a.device, a.deviceLine)
		t.doc.was[at+".name"], t.doc.was[at+".cidr"], t.doc.was[at+".interface"] = "the network's name", a.cidrKey, a.deviceKey
		list.Content = append(list.Content, entry)
		t.doc.warn(a.deviceLine, "PVC's daemon made a bridge br%s over %s; this program makes none: write the bridge's name as interface if your network configuration does", a.net, a.device)
	}
	if len(list.Content) > 0 {
		list.Line = list.Content[0].Line
		t.doc.set("addresses", list)
	}
}

// ipmiPassword is where a password belongs that stood in PVC's file.
const ipmiPassword = "/etc/pvc/ipmi.pass"

// ladder adds a node's fence device. The password is never taken over: it would
// stand in a file that is printed and copied.
func (t *translation) ladder(nodes *yaml.Node, node, host, hostKey, user, userKey string, line int) {
	device := &yaml.Node{Kind: yaml.MappingNode, Line: line}
	pair(device, "name", "ipmi", line)
	pair(device, "type", DeviceIPMI, line)
	pair(device, "address", host, line)
	if user != "" {
		pair(device, "user", user, line)
	}
	pair(device, "password_file", ipmiPassword, line)
	level := &yaml.Node{Kind: yaml.SequenceNode, Line: line, Content: []*yaml.Node{device}}
	levels := &yaml.Node{Kind: yaml.SequenceNode, Line: line, Content: []*yaml.Node{level}}
	entry := &yaml.Node{Kind: yaml.MappingNode, Line: line, Content: []*yaml.Node{word("levels", line), levels}}
	nodes.Content = append(nodes.Content, word(node, line), entry)
	at := "fencing.nodes." + node + ".levels[0][0]."
	t.doc.was[at+"name"], t.doc.was[at+"type"], t.doc.was[at+"password_file"] = "PVC knows IPMI only", "PVC knows IPMI only", "where PVC's password belongs"
	t.doc.was[at+"address"], t.doc.was[at+"user"] = hostKey, userKey
}

// password tells what to do about a password in PVC's file; it is not looked at.
func (t *translation) password(key string) {
	if n := t.at(key); n != nil {
		t.doc.warn(n.Line, "%s: not taken over, since a password stands in a file of its own: write it there with `install -m 0600 /dev/stdin %s` and take the key out of this file; until then no fence by that device succeeds", key, ipmiPassword)
	}
}

// pvcIntervals are the keys of a file that set its intervals, each in the places
// where it may stand.
type pvcIntervals struct{ keepalive, fence, suicide []string }

// intervals sets the timing: PVC's own, and what the file says over it. Intervals
// that do not hold together here are left out, so that the daemon starts.
func (t *translation) intervals(in pvcIntervals) {
	t.doc.set("timing.profile", word("pvc", 0))
	t.doc.was["timing.profile"] = "PVC's own intervals"
	keepalive, fence, suicide := t.number(in.keepalive), t.number(in.fence), t.number(in.suicide)
	if suicide.key != "" && suicide.n <= 0 {
		t.doc.warn(suicide.line, "%s: 0 is not taken over: a node that is cut off always ends its own work here, or nobody could start it elsewhere", suicide.key)
	}
	timing := cluster.ProfilePVC()
	if keepalive.n > 0 {
		timing.KeepaliveInterval = time.Duration(keepalive.n) * time.Second
		timing.CollectorDeadline = timing.KeepaliveInterval * 8 / 10
	}
	if fence.n > 0 {
		timing.FenceIntervals = fence.n
	}
	if suicide.n > 0 {
		timing.SuicideIntervals = suicide.n
	}
	if _, err := timing.Validate(cluster.TimingOptions{Gate: true}); err != nil {
		why, _, _ := strings.Cut(err.Error(), "\n")
		t.doc.warn(max(keepalive.line, fence.line, suicide.line), "keepalive_interval, fence_intervals and suicide_intervals are not taken over, those of the profile pvc are used: %s", why)
		return
	}
	for to, number := range map[string]pvcNumber{
		"timing.keepalive_interval": keepalive, "timing.fence_intervals": fence, "timing.suicide_intervals": suicide,
	} {
		if number.n > 0 {
			t.set(to, number.key, number.line, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!int", Value: strconv.Itoa(number.n)})
		}
	}
}

// pvcNumber is a whole number and where it stands; no key: nowhere.
type pvcNumber struct {
	n    int
	key  string
	line int
}

func (t *translation) number(keys []string) pvcNumber {
	text, key, line := t.text(keys...)
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 || n > 3600 {
		if text != "" {
			t.doc.warn(line, "%s: %q is not taken over: it is no whole number from 1 to 3600; the profile's value counts", key, text)
		}
		return pvcNumber{}
	}
	return pvcNumber{n, key, line}
}

// failedFence takes over what follows a fence that failed, where that is safe.
func (t *translation) failedFence(key string) {
	n := t.at(key)
	if n != nil && n.Kind == yaml.ScalarNode && strings.EqualFold(n.Value, "migrate") {
		t.doc.warn(n.Line, "%s: migrate is taken as none: it needs a watchdog in every node (watchdog.device), without which work would run twice", key)
	}
}

var numbers = regexp.MustCompile(`\d+`)

// shortName is a name up to its first dot.
func shortName(name string) string {
	short, _, _ := strings.Cut(name, ".")
	return short
}

// nodeNumber is PVC's id of a node: the last number in its short name, else 0.
func nodeNumber(name string) string {
	if all := numbers.FindAllString(shortName(name), -1); len(all) > 0 {
		return all[len(all)-1]
	}
	return "0"
}

// debugLevel is log.level for PVC's debug.
func debugLevel(n *yaml.Node) *yaml.Node {
	if isTrue(n) {
		return word("debug", n.Line)
	}
	return nil
}

// action is a fence action in our words.
func action(n *yaml.Node) *yaml.Node {
	if strings.EqualFold(n.Value, "migrate") {
		return word("migrate", n.Line)
	}
	return word("none", n.Line)
}
