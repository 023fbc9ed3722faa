package driver

import (
	"encoding/xml"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"pvc.internal/cluster"
)

// The exit statuses of Pacemaker's commands.
const (
	crmOK          = 0
	crmFailed      = 1
	crmUnsupported = 3
	crmUsage       = 64
	crmNoSuch      = 105
)

// The environment by which a shim knows for whom it answers.
const (
	shimRecord   = "PVC_OCF_RECORD"   // file
	shimID       = "PVC_OCF_ID"       // Workload.ID
	shimNode     = "PVC_OCF_NODE"     // this node
	shimMembers  = "PVC_OCF_MEMBERS"  // the workload's nodes
	shimInstance = "PVC_OCF_INSTANCE" // as the agent knows it
	shimAgent    = "PVC_OCF_AGENT"    // heartbeat:redis
)

// shimCommands are the commands of Pacemaker that promotable agents call, and
// that this program answers under their names.
var shimCommands = map[string]func(*shim, shimArgs) int{
	"crm_attribute": (*shim).attribute,
	"crm_master":    (*shim).master,
	"attrd_updater": (*shim).updater,
	"crm_node":      (*shim).node,
	"crm_mon":       (*shim).mon,
	"cibadmin":      (*shim).cib,
	"crm_resource":  (*shim).resource,
}

// IsOCFShim reports whether a program that was called by this name is to answer an
// OCF agent as one of Pacemaker's commands.
func IsOCFShim(program string) bool { return shimCommands[filepath.Base(program)] != nil }

// OCFShim answers an OCF agent as the command of Pacemaker after which it was
// called (args[0]), and returns its exit status.
func OCFShim(args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	name := filepath.Base(args[0])
	s := &shim{name: name, stdout: stdout, stderr: stderr, file: getenv(shimRecord), id: getenv(shimID), self: getenv(shimNode),
		members: strings.Fields(getenv(shimMembers)), instance: getenv(shimInstance), agent: getenv(shimAgent)}
	if s.file == "" || s.self == "" || s.instance == "" {
		return s.fail(crmUsage, "there is no Pacemaker here: this answers OCF agents that PVC runs, and nobody else")
	}
	a, err := parseShim(name, args[1:])
	if err != nil {
		return s.fail(crmUsage, "%v", err)
	}
	return shimCommands[name](s, a)
}

// linkOCFShims makes the folder of shims: this program, under each of their names.
func linkOCFShims(dir, program string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the OCF agents' commands: %w", err)
	}
	for name := range shimCommands {
		path := filepath.Join(dir, name)
		if to, err := os.Readlink(path); err == nil && to == program {
			continue
		}
		_ = os.Remove(path + ".new")
		if err := os.Symlink(program, path+".new"); err != nil {
			return fmt.Errorf("make the OCF agents' commands: %w", err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			return fmt.Errorf("make the OCF agents' commands: %w", err)
		}
	}
	return nil
}

// shim is one call of a command.
type shim struct {
	name, file, id, self, instance, agent string
	members                               []string
	stdout, stderr                        io.Writer
}

func (s *shim) fail(code int, format string, args ...any) int {
	fmt.Fprintf(s.stderr, "%s: %s\n", s.name, fmt.Sprintf(format, args...))
	return code
}

func (s *shim) record() ocfRecord { return readOCFRecord(s.file, s.id) }

// attributeOf names an attribute: whose and how long it lives.
func (s *shim) attributeOf(a shimArgs) (lifetime, name string, code int) {
	name = a.value["name"]
	if of, ok := a.value["promotion"]; ok {
		if of == "" {
			of = s.instance
		}
		name = scoreAttribute(of)
	}
	if name == "" {
		return "", "", s.fail(crmUsage, "no attribute is named")
	}
	if node := a.value["node"]; node != "" && node != s.self && node != "local" {
		return "", name, s.fail(crmNoSuch, "attribute %s of node %s is not known on %s: each node keeps its own", name, node, s.self)
	}
	switch a.value["type"] {
	case "crm_config", "rsc_defaults", "op_defaults", "tickets":
		return attributeCluster, name, crmOK
	}
	switch a.value["lifetime"] {
	case "reboot", "status":
		return attributeReboot, name, crmOK
	}
	if a.value["type"] == "status" || a.promotion || s.name == "attrd_updater" {
		return attributeReboot, name, crmOK
	}
	return attributeForever, name, crmOK
}

// attribute is crm_attribute.
func (s *shim) attribute(a shimArgs) int {
	lifetime, name, code := s.attributeOf(a)
	if code != crmOK {
		if a.action == "query" && a.value["default"] != "" && code == crmNoSuch {
			fmt.Fprintln(s.stdout, a.value["default"])
			return crmOK
		}
		return code
	}
	switch a.action {
	case "update":
		value := a.value["update"]
		return s.set(lifetime, name, &value)
	case "delete":
		return s.set(lifetime, name, nil)
	}
	value, ok := s.record().attribute(lifetime, name)
	if !ok {
		if value, ok = a.value["default"]; !ok {
			return s.fail(crmNoSuch, "attribute %s is not set", name)
		}
	}
	switch {
	case s.name == "attrd_updater":
		fmt.Fprintf(s.stdout, "name=%q host=%q value=%q\n", name, s.self, value)
	case a.quiet:
		fmt.Fprintln(s.stdout, value)
	default:
		scope := map[string]string{attributeReboot: "status", attributeForever: "nodes", attributeCluster: "crm_config"}[lifetime]
		fmt.Fprintf(s.stdout, "scope=%s  name=%s value=%s\n", scope, name, value)
	}
	return crmOK
}

func (s *shim) set(lifetime, name string, value *string) int {
	err := changeOCFRecord(s.file, s.id, func(r *ocfRecord) error { return r.setAttribute(lifetime, name, value) })
	if err != nil {
		return s.fail(crmFailed, "%v", err)
	}
	return crmOK
}

// master is crm_master: crm_attribute of the promotion score.
func (s *shim) master(a shimArgs) int {
	a.value["promotion"], a.promotion = a.value["resource"], true
	return s.attribute(a)
}

// updater is attrd_updater: crm_attribute of what lives until the next boot.
func (s *shim) updater(a shimArgs) int { return s.attribute(a) }

// node is crm_node.
func (s *shim) node(a shimArgs) int {
	switch a.action {
	case "name":
		fmt.Fprintln(s.stdout, s.self)
	case "partition":
		fmt.Fprintln(s.stdout, strings.Join(s.members, " ")+" ")
	case "quorum":
		fmt.Fprintln(s.stdout, 1) // without one nothing of a workload runs
	case "list":
		for i, m := range s.members {
			fmt.Fprintf(s.stdout, "%d %s member\n", i+1, m)
		}
	case "id":
		fmt.Fprintln(s.stdout, slices.Index(s.members, s.self)+1)
	default:
		return s.fail(crmUsage, "it answers -n, -l, -p, -q and -i only")
	}
	return crmOK
}

// The part of crm_mon's XML that agents read.
type monXML struct {
	XMLName   xml.Name
	Version   string        `xml:"version,attr"`
	Nodes     []monNode     `xml:"nodes>node"`
	Resources []monResource `xml:"resources>resource"`
}

type monNode struct {
	Name    string `xml:"name,attr"`
	ID      int    `xml:"id,attr"`
	Online  bool   `xml:"online,attr"`
	Standby bool   `xml:"standby,attr"`
	Pending bool   `xml:"pending,attr"`
}

type monResource struct {
	ID       string    `xml:"id,attr"`
	Agent    string    `xml:"resource_agent,attr"`
	Role     string    `xml:"role,attr"`
	Active   bool      `xml:"active,attr"`
	Orphaned bool      `xml:"orphaned,attr"`
	Blocked  bool      `xml:"blocked,attr"`
	Managed  bool      `xml:"managed,attr"`
	Failed   bool      `xml:"failed,attr"`
	Running  int       `xml:"nodes_running_on,attr"`
	On       []monNode `xml:"node"`
}

// roles are the workload's copies as far as this node was told of them.
func (s *shim) roles() (nodes []monNode, resources []monResource) {
	promoted := string(s.record().Promoted)
	for i, m := range s.members {
		n := monNode{Name: m, ID: i + 1, Online: true}
		nodes = append(nodes, n)
		role := "Unpromoted"
		if m == promoted {
			role = "Promoted"
		}
		resources = append(resources, monResource{ID: s.instance, Agent: "ocf:" + s.agent, Role: role, Active: true, Managed: true, Running: 1, On: []monNode{n}})
	}
	return nodes, resources
}

// mon is crm_mon.
func (s *shim) mon(a shimArgs) int {
	nodes, resources := s.roles()
	if !a.xml {
		for _, r := range resources {
			fmt.Fprintf(s.stdout, "  * %s\t(%s):\t %s %s\n", r.ID, r.Agent, r.Role, r.On[0].Name)
		}
		return crmOK
	}
	x := monXML{XMLName: xml.Name{Local: "pacemaker-result"}, Version: "2.1.5", Nodes: nodes, Resources: resources}
	if a.oldXML {
		x.XMLName.Local = "crm_mon"
	}
	raw, err := xml.MarshalIndent(x, "", "  ")
	if err != nil {
		return s.fail(crmFailed, "%v", err)
	}
	fmt.Fprintf(s.stdout, "<?xml version=\"1.0\"?>\n%s\n", raw)
	return crmOK
}

// The part of a CIB that agents read.
type cibXML struct {
	XMLName xml.Name       `xml:"cib"`
	Nodes   []cibNode      `xml:"configuration>nodes>node"`
	Status  []cibNodeState `xml:"status>node_state"`
}

type cibNode struct {
	ID    int    `xml:"id,attr"`
	Uname string `xml:"uname,attr"`
}

type cibNodeState struct {
	ID     int       `xml:"id,attr"`
	Uname  string    `xml:"uname,attr"`
	Crmd   string    `xml:"crmd,attr"`
	Values []cibPair `xml:"transient_attributes>instance_attributes>nvpair"`
}

type cibPair struct {
	Name  string `xml:"name,attr"`
	Value string `xml:"value,attr"`
}

// cib is cibadmin: it can be asked for all, and for nothing else.
func (s *shim) cib(a shimArgs) int {
	if a.action != "query" {
		return s.fail(crmUnsupported, "only a query is answered: there is no CIB here")
	}
	if a.value["xpath"] != "" || a.value["scope"] != "" {
		return s.fail(crmNoSuch, "only the whole is answered, no part of it: there is no CIB here")
	}
	var x cibXML
	for i, m := range s.members {
		x.Nodes = append(x.Nodes, cibNode{ID: i + 1, Uname: m})
		state := cibNodeState{ID: i + 1, Uname: m, Crmd: "online"}
		if m == s.self {
			of := s.record().Attributes[attributeReboot]
			for _, name := range sortedKeys(of) {
				state.Values = append(state.Values, cibPair{Name: name, Value: of[name]})
			}
		}
		x.Status = append(x.Status, state)
	}
	raw, err := xml.MarshalIndent(x, "", "  ")
	if err != nil {
		return s.fail(crmFailed, "%v", err)
	}
	fmt.Fprintf(s.stdout, "%s\n", raw)
	return crmOK
}

// resource is crm_resource: where the copies are, and nothing that orders.
func (s *shim) resource(a shimArgs) int {
	if a.action != "locate" {
		return s.fail(crmUnsupported, "it tells where a resource runs (--locate) and does nothing: PVC orders its copies itself")
	}
	promoted := s.record().Promoted
	for _, m := range s.members {
		mark := ""
		if cluster.NodeID(m) == promoted {
			mark = " Promoted"
		}
		if a.quiet {
			fmt.Fprintln(s.stdout, m)
		} else {
			fmt.Fprintf(s.stdout, "resource %s is running on: %s%s\n", s.instance, m, mark)
		}
	}
	return crmOK
}
