package fencing

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
	"pvc.internal/proc"
)

// agentOutput bounds each of an agent's streams, in bytes; metadata is the
// longest, with some 20 kB.
const agentOutput = 256 << 10

// metadataTimeout bounds the reading of an agent's metadata.
const metadataTimeout = 10 * time.Second

// noPower are the agents of the common collection that take no power: what they
// report as off is a cut from a resource, a guess or somebody's word, and the
// node may live on. None of them proves a death (I4).
var noPower = map[string]string{
	"fence_ack_manual": "it waits for a person's word; use pvc fence confirm", "fence_heuristics_ping": "it only pings",
	"fence_kdump": "it only listens for a crash dump", "fence_compute": "it acts on a cloud's records",
	"fence_evacuate": "it acts on a cloud's records",
	"fence_amt":      "it reports a sleeping node (S3), which wakes with all it had, as off; use type exec with a program that tells S5 from S3",
	"fence_scsi":     "it cuts the node from a disk", "fence_mpath": "it cuts the node from a disk",
	"fence_brocade": "it switches a storage port", "fence_sanbox2": "it switches a storage port",
	"fence_cisco_mds": "it switches a storage port", "fence_ifmib": "it switches a network port",
}

// leaks are the agents that pass the password on to another program where
// others may read it, and how.
var leaks = map[string]string{
	"fence_ipmilan": ipmitoolLeak, "fence_ipmilanplus": ipmitoolLeak, "fence_idrac": ipmitoolLeak, "fence_imm": ipmitoolLeak,
	"fence_ilo3": ipmitoolLeak, "fence_ilo4": ipmitoolLeak, "fence_ilo5": ipmitoolLeak,
	"fence_vmware": "gives the password to its helper on the command line, where every user of this machine can read it while it runs",
}

const ipmitoolLeak = "gives the password to ipmitool on the command line, where every user of this machine can read it while it runs; type ipmi does the same work without that"

var (
	agentName  = regexp.MustCompile(`^[A-Za-z0-9_.-]+$`)
	optionName = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)
	secretName = regexp.MustCompile(`(?i)passw|secret|token|passphrase|api_?key`)
)

func (d Device) validateAgent() error {
	switch {
	case d.Agent == "":
		return errors.New("agent is missing: the program's name, such as fence_apc")
	case strings.Contains(d.Agent, "/") && !filepath.IsAbs(d.Agent), !strings.Contains(d.Agent, "/") && !agentName.MatchString(d.Agent):
		return fmt.Errorf("agent %q is neither a program's name nor an absolute path", d.Agent)
	case noPower[filepath.Base(d.Agent)] != "":
		return fmt.Errorf("agent %s takes no power: %s; it cannot prove a node dead", d.Agent, noPower[filepath.Base(d.Agent)])
	case !optionName.MatchString(d.PasswordOption):
		return fmt.Errorf("password_option %q is no parameter's name", d.PasswordOption)
	}
	for _, name := range sortedKeys(d.Options) {
		switch {
		case !optionName.MatchString(name):
			return fmt.Errorf("options: %q is no parameter's name", name)
		case slices.Contains([]string{"action", "option"}, name):
			return fmt.Errorf("options.%s: the action is not the settings' to choose", name)
		case strings.HasSuffix(plain(name), "_script"), plain(name) == plain(d.PasswordOption):
			return fmt.Errorf("options.%s: use password_file or password_sealed", name)
		case secretName.MatchString(name):
			return fmt.Errorf("options.%s: a secret does not belong in the settings; use password_file or password_sealed with password_option: %s", name, name)
		case strings.ContainsAny(d.Options[name], "\n\r\x00"):
			return fmt.Errorf("options.%s: the value has a line break or a zero byte", name)
		}
	}
	return nil
}

// plain is a parameter's name as agents compare them.
func plain(name string) string { return strings.ReplaceAll(name, "-", "_") }

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// agentDevice is a ClusterLabs fence agent. It is told everything on its
// standard input; the proof is a status of its own after the order.
type agentDevice struct {
	device   Device
	password Secret
	node     cluster.NodeID
}

func (d agentDevice) off(ctx context.Context) (string, error) {
	// An agent finds out by itself that the power is off already.
	return offThenRead(ctx, d.device, func(ctx context.Context) error { return d.order(ctx, ActionOff) }, d.status)
}

func (d agentDevice) on(ctx context.Context) (string, error) {
	if err := d.order(ctx, ActionOn); err != nil {
		return ResultUnknown, err
	}
	return ResultOn, nil
}

func (d agentDevice) status(ctx context.Context) (string, error) {
	out, err := d.run(ctx, ActionStatus)
	if err != nil {
		return ResultUnknown, err
	}
	return readExit(d.device, out)
}

func (d agentDevice) order(ctx context.Context, action string) error {
	out, err := d.run(ctx, action)
	if err == nil && out.ExitCode != 0 {
		err = fmt.Errorf("%s by device %q: %s", action, d.device.Name, ended(out))
	}
	return err
}

func (d agentDevice) run(ctx context.Context, action string) (proc.Result, error) {
	lines := []string{"action=" + action}
	if d.node != "" {
		lines = append(lines, "nodename="+string(d.node))
	}
	if action != ActionStatus && d.device.Options["power_timeout"] == "" && d.device.Options["power-timeout"] == "" {
		// Its own limit of 20 s would outlast what this attempt has.
		lines = append(lines, "power_timeout="+strconv.Itoa(max(1, int(remaining(ctx, d.device.Timeout).Seconds()))))
	}
	for _, name := range sortedKeys(d.device.Options) {
		lines = append(lines, name+"="+quoted(d.device.Options[name]))
	}
	if !d.password.Empty() {
		line, done, err := d.passwordLine()
		if err != nil {
			return proc.Result{ExitCode: -1}, err
		}
		defer done()
		lines = append(lines, line)
	}
	return runProgram(ctx, d.device, action, proc.Command{
		Argv: []string{d.device.Agent}, Stdin: []byte(strings.Join(lines, "\n") + "\n"), OutputLimit: agentOutput,
	}, d.password)
}

// quoted protects what the agents' reader would strip: spaces at the ends and
// one pair of quotes.
func quoted(value string) string {
	if value != strings.TrimSpace(value) || strings.HasPrefix(value, `"`) {
		return `"` + value + `"`
	}
	return value
}

// passwordLine is the line that brings the password. An agent that is known to
// be careless with it gets a command that fetches it instead, so that it stands
// at least in none of the agent's own warnings and logs. What is fetched is a
// file in memory that ends with this process, whatever ends it.
func (d agentDevice) passwordLine() (line string, done func(), err error) {
	text := d.password.Reveal()
	option := d.device.PasswordOption
	if leaks[filepath.Base(d.device.Agent)] == "" || option != "password" || text != strings.TrimSpace(text) {
		return option + "=" + quoted(text), func() {}, nil
	}
	fd, err := unix.MemfdCreate("pvc-fence-attempt", unix.MFD_CLOEXEC)
	if err != nil {
		return "", nil, fmt.Errorf("keep the password of device %q in memory: %w", d.device.Name, err)
	}
	file := os.NewFile(uintptr(fd), "password")
	if _, err := file.WriteString(text); err != nil {
		file.Close()
		return "", nil, fmt.Errorf("keep the password of device %q in memory: %w", d.device.Name, err)
	}
	return fmt.Sprintf("password_script=cat /proc/%d/fd/%d", os.Getpid(), fd), func() { file.Close() }, nil
}

// agentFault guesses the kind of failure from an exit status, and from the
// words where the status is the 1 that agents give for nearly everything.
func agentFault(out proc.Result) Fault {
	switch out.ExitCode {
	case 3, 10, 11:
		return FaultDenied
	case 4, 5:
		return FaultUnreachable
	}
	said := strings.ToLower(string(out.Stderr) + " " + string(out.Stdout))
	contains := func(words ...string) bool {
		return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(said, w) })
	}
	switch {
	case contains("password", "login denied", "unauthori", "authentication", "permission denied", "unable to connect/login"):
		return FaultDenied
	case contains("timed out", "timeout", "connection refused", "connection lost", "no route", "unreachable", "could not resolve"):
		return FaultUnreachable
	case contains("you have to", "unknown option", "usage:", "not a valid"):
		return FaultMisconfigured
	}
	return FaultUnclear
}

// agentMetadata is what an agent says of itself.
type agentMetadata struct {
	XMLName    xml.Name         `xml:"resource-agent"`
	Parameters []agentParameter `xml:"parameters>parameter"`
	Actions    []agentAction    `xml:"actions>action"`
}

type agentParameter struct {
	Name       string `xml:"name,attr"`
	Required   string `xml:"required,attr"`
	Deprecated string `xml:"deprecated,attr"`
	Obsoletes  string `xml:"obsoletes,attr"`
	Content    struct {
		Type    string `xml:"type,attr"`
		Options []struct {
			Value string `xml:"value,attr"`
		} `xml:"option"`
	} `xml:"content"`
}

type agentAction struct {
	Name      string `xml:"name,attr"`
	Automatic string `xml:"automatic,attr"`
}

// check reads the agent's metadata and holds the settings against them.
func (d agentDevice) check(ctx context.Context) ([]string, error) {
	meta, err := readMetadata(ctx, d.device)
	if err == nil {
		err = meta.judge(d.device, !d.password.Empty())
	}
	if err != nil {
		return nil, faulty(FaultMisconfigured, err)
	}
	name := filepath.Base(d.device.Agent)
	leak := leaks[name]
	if leak == "" && meta.parameter("ipmitool_path") != nil {
		leak = ipmitoolLeak
	}
	if leak == "" || d.password.Empty() {
		return nil, nil
	}
	return []string{name + " " + leak}, nil
}

func readMetadata(ctx context.Context, d Device) (agentMetadata, error) {
	var meta agentMetadata
	reading, cancel := context.WithTimeout(ctx, metadataTimeout)
	defer cancel()
	out, err := runProgram(reading, d, "metadata", proc.Command{Argv: []string{d.Agent, "-o", "metadata"}, OutputLimit: agentOutput}, Secret{})
	if errors.Is(err, proc.ErrNotStarted) {
		return meta, fmt.Errorf("%w; is the package that brings %s installed?", err, d.Agent)
	}
	if err != nil {
		return meta, err
	}
	if err := xml.Unmarshal(out.Stdout, &meta); err != nil || out.ExitCode != 0 {
		return meta, fmt.Errorf("device %q: %s -o metadata is not a fence agent's: %s", d.Name, d.Agent, ended(out))
	}
	return meta, nil
}

func (m agentMetadata) parameter(name string) *agentParameter {
	for i := range m.Parameters {
		if plain(m.Parameters[i].Name) == plain(name) {
			return &m.Parameters[i]
		}
	}
	return nil
}

// judge reports everything in the device's settings that the agent would not
// take or misses; agents themselves only warn of an unknown parameter.
func (m agentMetadata) judge(d Device, password bool) error {
	d = d.withDefaults()
	var problems []error
	problem := func(format string, args ...any) {
		problems = append(problems, fmt.Errorf("device %q: %s: "+format, append([]any{d.Name, d.Agent}, args...)...))
	}
	for _, action := range []string{ActionOff, ActionOn, ActionStatus} {
		i := slices.IndexFunc(m.Actions, func(a agentAction) bool { return a.Name == action })
		switch {
		case i < 0:
			problem("it knows no action %s, so that it cannot take power and prove it", action)
		case action == ActionOn && m.Actions[i].Automatic == "1":
			problem("it cuts the node from a resource and takes no power, which proves no death")
		}
	}
	given := map[string]bool{"action": true}
	for _, name := range sortedKeys(d.Options) {
		given[plain(name)] = true
		if p := m.parameter(name); p == nil {
			problem("options.%s is unknown: %s", name, m.nearest(name))
		} else if why := p.refuses(d.Options[name]); why != "" {
			problem("options.%s: %q %s", name, d.Options[name], why)
		}
	}
	if password {
		given[plain(d.PasswordOption)] = true
		if m.parameter(d.PasswordOption) == nil {
			problem("it takes no %s: %s", d.PasswordOption, m.nearest(d.PasswordOption))
		}
	}
	for _, p := range m.Parameters {
		if p.Required == "1" && p.Deprecated != "1" && !given[plain(p.Name)] && !given[plain(p.Obsoletes)] {
			problem("options.%s is missing; the agent requires it", p.Name)
		}
	}
	return errors.Join(problems...)
}

// refuses tells why the parameter does not take a value, or nothing.
func (p agentParameter) refuses(value string) string {
	switch p.Content.Type {
	case "select":
		var choices []string
		for _, o := range p.Content.Options {
			choices = append(choices, o.Value)
		}
		if len(choices) > 0 && !slices.Contains(choices, value) {
			return "is not one of " + strings.Join(choices, ", ")
		}
	case "integer":
		if _, err := strconv.Atoi(value); err != nil {
			return "is not a whole number"
		}
	case "second":
		if n, err := strconv.ParseFloat(strings.TrimSuffix(value, "s"), 64); err != nil || n < 0 {
			return "is not a number of seconds"
		}
	case "boolean":
		if !slices.Contains([]string{"1", "yes", "on", "true", "0", "no", "off", "false"}, strings.ToLower(value)) {
			return "is not one of 1, 0, yes, no, on, off, true, false"
		}
	}
	return ""
}

// nearest names the parameter that was probably meant. A deprecated one is
// never offered.
func (m agentMetadata) nearest(name string) string {
	best, distance := "", 1<<30
	for _, p := range m.Parameters {
		if p.Deprecated == "1" || p.Name == "action" {
			continue
		}
		if n := editDistance(plain(name), plain(p.Name)); n < distance {
			best, distance = p.Name, n
		}
	}
	if best == "" {
		return "it has no parameters"
	}
	return fmt.Sprintf("the nearest it knows is %q", best)
}

// editDistance counts the insertions, deletions and replacements between two
// words (Levenshtein).
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
