package fencing

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"pvc.internal/cluster"
)

// Policy says what follows a fence.
type Policy string

// The policies.
const (
	PolicyMigrate Policy = "migrate" // workloads restart elsewhere
	PolicyNone    Policy = "none"
)

// After says what follows once a node is verified off.
type After string

// What may follow.
const (
	AfterReboot After = "reboot" // power on again, without waiting for the node
	AfterOff    After = "off"
)

// DeviceType names the protocol a device speaks.
type DeviceType string

// The types of devices.
const (
	TypeIPMI    DeviceType = "ipmi"    // a baseboard management controller over lanplus
	TypeRedfish DeviceType = "redfish" // one that speaks Redfish, over HTTPS
	TypeAgent   DeviceType = "agent"   // a ClusterLabs fence agent
	TypeExec    DeviceType = "exec"    // a program of the operator's
)

// The limits and defaults of a device.
const (
	DefaultCipherSuite = 3
	DefaultTimeout     = 20 * time.Second // of one attempt as a whole
	DefaultPoll        = 500 * time.Millisecond
	DefaultIPMIPort    = 623
	DefaultRedfishPort = 443

	maxUser     = 16 // bytes, by the protocol
	maxPassword = 20
)

// Device is one thing that can take a node's power. Which of the options a type
// takes is in `takes`; any other is an error.
type Device struct {
	Name    string     `mapstructure:"name" json:"name"`
	Type    DeviceType `mapstructure:"type" json:"type"`
	Address string     `mapstructure:"address" json:"address,omitempty"` // ipmi, redfish: host or host:port
	User    string     `mapstructure:"user" json:"user,omitempty"`       // ipmi, redfish

	PasswordFile   string `mapstructure:"password_file" json:"-"`   // first line; read at each attempt
	PasswordSealed string `mapstructure:"password_sealed" json:"-"` // what Seal made, in place of password_file
	PasswordSecret string `mapstructure:"password_secret" json:"-"` // name of a sealed one in ZooKeeper, likewise

	CipherSuite int           `mapstructure:"cipher_suite" json:"cipher_suite,omitempty"` // ipmi: 3 (default) or 17
	Timeout     time.Duration `mapstructure:"timeout" json:"timeout"`                     // one attempt as a whole; 0: 20 s
	Poll        time.Duration `mapstructure:"poll" json:"poll"`                           // between status reads; 0: 0.5 s

	System      string      `mapstructure:"system" json:"system,omitempty"`           // redfish: id or path; empty: the only one there is
	Auth        RedfishAuth `mapstructure:"auth" json:"auth,omitempty"`               // redfish: empty is session, basic where there are none
	CAFile      string      `mapstructure:"ca_file" json:"ca_file,omitempty"`         // redfish: PEM; empty: the system's authorities
	Fingerprint string      `mapstructure:"fingerprint" json:"fingerprint,omitempty"` // redfish: SHA-256 of the certificate, hexadecimal
	Insecure    bool        `mapstructure:"insecure" json:"insecure,omitempty"`       // redfish: take any certificate

	Agent          string            `mapstructure:"agent" json:"agent,omitempty"`                     // agent: program, such as fence_apc
	Options        map[string]string `mapstructure:"options" json:"options,omitempty"`                 // agent: its own parameters
	PasswordOption string            `mapstructure:"password_option" json:"password_option,omitempty"` // agent: the parameter the password goes to; empty: password

	Argv []string `mapstructure:"argv" json:"argv,omitempty"` // exec: program and arguments

	keyFile string // of fencing.secrets; WithDefaults sets it
	lookup  Lookup // WithSecrets sets it
}

// Secrets is the `fencing.secrets` section.
type Secrets struct {
	KeyFile string `mapstructure:"key_file" json:"key_file"` // opens password_sealed; mode 0600, the same on all coordinators
}

// Lookup fetches what Seal made from where the cluster keeps it, by its name,
// within ctx. It is asked at each attempt, so that a changed one needs no restart.
type Lookup func(ctx context.Context, name string) (sealed string, err error)

// WithSecrets returns a copy whose devices find the passwords that are kept in
// ZooKeeper (password_secret).
func (c Config) WithSecrets(lookup Lookup) Config {
	nodes := make(map[string]NodeConfig, len(c.Nodes))
	for name, node := range c.Nodes {
		levels := make([][]Device, len(node.Levels))
		for i, level := range node.Levels {
			levels[i] = slices.Clone(level)
			for j := range levels[i] {
				levels[i][j].lookup = lookup
			}
		}
		node.Levels = levels
		nodes[name] = node
	}
	c.Nodes = nodes
	return c
}

// NodeConfig is how one node is fenced.
type NodeConfig struct {
	After  After      `mapstructure:"after" json:"after"`
	Levels [][]Device `mapstructure:"levels" json:"levels"`
}

// Devices counts the node's devices over all levels.
func (n NodeConfig) Devices() int {
	count := 0
	for _, level := range n.Levels {
		count += len(level)
	}
	return count
}

// Config is the `fencing` section.
type Config struct {
	SuccessfulFence Policy                `mapstructure:"successful_fence" json:"successful_fence"`
	FailedFence     Policy                `mapstructure:"failed_fence" json:"failed_fence"`
	Nodes           map[string]NodeConfig `mapstructure:"nodes" json:"nodes"`
	Secrets         Secrets               `mapstructure:"secrets" json:"secrets"`

	// Watchdog says that this node's settings name a watchdog of its own, and
	// TrustSoftdog that a software one counts as a proof (`watchdog`).
	Watchdog     bool `mapstructure:"-" json:"-"`
	TrustSoftdog bool `mapstructure:"-" json:"-"`
}

// WithDefaults returns a copy in which every omitted value has its default;
// the receiver's maps and slices are not shared.
func (c Config) WithDefaults() Config {
	if c.SuccessfulFence == "" {
		c.SuccessfulFence = PolicyMigrate
	}
	if c.FailedFence == "" {
		c.FailedFence = PolicyNone
	}
	nodes := make(map[string]NodeConfig, len(c.Nodes))
	for name, node := range c.Nodes {
		if node.After == "" {
			node.After = AfterReboot
		}
		levels := make([][]Device, len(node.Levels))
		for i, level := range node.Levels {
			levels[i] = make([]Device, len(level))
			for j, device := range level {
				levels[i][j] = device.withDefaults()
				levels[i][j].keyFile = c.Secrets.KeyFile
			}
		}
		node.Levels = levels
		nodes[name] = node
	}
	c.Nodes = nodes
	return c
}

func (d Device) withDefaults() Device {
	port := 0
	switch d.Type {
	case TypeIPMI, "":
		port = DefaultIPMIPort
		if d.CipherSuite == 0 {
			d.CipherSuite = DefaultCipherSuite
		}
	case TypeRedfish:
		port = DefaultRedfishPort
	case TypeAgent:
		if d.PasswordOption == "" {
			d.PasswordOption = "password"
		}
	}
	if d.Timeout == 0 {
		d.Timeout = DefaultTimeout
	}
	if d.Poll == 0 {
		d.Poll = DefaultPoll
	}
	if _, _, err := net.SplitHostPort(d.Address); err != nil && d.Address != "" && port != 0 {
		d.Address = net.JoinHostPort(strings.Trim(d.Address, "[]"), strconv.Itoa(port))
	}
	return d
}

// Node is how the node is fenced, and whether anything is configured for it.
// A name that differs only in case is the same node: the settings' reader
// lower-cases keys.
func (c Config) Node(n cluster.NodeID) (NodeConfig, bool) {
	if node, ok := c.Nodes[string(n)]; ok {
		return node, node.Devices() > 0
	}
	for name, node := range c.Nodes {
		if strings.EqualFold(name, string(n)) {
			return node, node.Devices() > 0
		}
	}
	return NodeConfig{}, false
}

// Validate reports everything that stands against the configuration, each with
// the path of the setting.
func (c Config) Validate() error {
	var problems []error
	for key, p := range map[string]Policy{"successful_fence": c.SuccessfulFence, "failed_fence": c.FailedFence} {
		if p != "" && p != PolicyMigrate && p != PolicyNone {
			problems = append(problems, fmt.Errorf("fencing.%s: %q is not one of migrate, none", key, p))
		}
	}
	if c.FailedFence == PolicyMigrate && !c.Watchdog {
		problems = append(problems, errors.New("fencing.failed_fence: migrate waits until the lost node's own watchdog must have reset it, and watchdog.device is not set here; set it on every node, or use none"))
	}
	names := make([]string, 0, len(c.Nodes))
	for name := range c.Nodes {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		problems = append(problems, c.Nodes[name].validate("fencing.nodes."+name)...)
	}
	return errors.Join(problems...)
}

func (n NodeConfig) validate(path string) []error {
	var problems []error
	if n.After != "" && n.After != AfterReboot && n.After != AfterOff {
		problems = append(problems, fmt.Errorf("%s.after: %q is not one of reboot, off", path, n.After))
	}
	seen := make(map[string]bool)
	for i, level := range n.Levels {
		if len(level) == 0 {
			problems = append(problems, fmt.Errorf("%s.levels[%d]: no device in this level", path, i))
		}
		for j, device := range level {
			at := fmt.Sprintf("%s.levels[%d][%d]", path, i, j)
			if seen[device.Name] {
				problems = append(problems, fmt.Errorf("%s.name: %q stands twice; results are told apart by it", at, device.Name))
			}
			seen[device.Name] = true
			if err := device.Validate(); err != nil {
				problems = append(problems, fmt.Errorf("%s: %w", at, err))
			}
			if err := device.validateSecret(); err != nil {
				problems = append(problems, fmt.Errorf("%s: %w", at, err))
			}
		}
	}
	return problems
}

// Validate reports why the device cannot be used as it stands.
func (d Device) Validate() error {
	d = d.withDefaults()
	if d.Name == "" {
		return errors.New("name is missing")
	}
	if err := d.misplaced(); err != nil {
		return fmt.Errorf("device %q: %w", d.Name, err)
	}
	var err error
	switch d.Type {
	case TypeIPMI:
		err = d.validateIPMI()
	case TypeRedfish:
		err = d.validateRedfish()
	case TypeAgent:
		err = d.validateAgent()
	case TypeExec:
		err = d.validateExec()
	default:
		err = fmt.Errorf("type %q is not known; use one of %s, %s, %s, %s", d.Type, TypeIPMI, TypeRedfish, TypeAgent, TypeExec)
	}
	switch {
	case err != nil:
	case d.Timeout < time.Second || d.Timeout > 10*time.Minute:
		err = fmt.Errorf("timeout %s is outside 1s–10m", d.Timeout)
	case d.Poll < 50*time.Millisecond || d.Poll > d.Timeout:
		err = fmt.Errorf("poll %s is outside 50ms–%s (its timeout)", d.Poll, d.Timeout)
	}
	if err != nil {
		return fmt.Errorf("device %q: %w", d.Name, err)
	}
	return nil
}

func (d Device) validateIPMI() error {
	switch {
	case len(d.User) < 1 || len(d.User) > maxUser:
		return fmt.Errorf("user must have 1–%d bytes, has %d", maxUser, len(d.User))
	case d.CipherSuite != 3 && d.CipherSuite != 17:
		return fmt.Errorf("cipher_suite %d is not one of 3, 17", d.CipherSuite)
	}
	return d.validateAddress()
}

func (d Device) validateAddress() error {
	if d.Address == "" {
		return errors.New("address is missing")
	}
	host, port, err := net.SplitHostPort(d.Address)
	if err != nil || host == "" {
		return fmt.Errorf("address %q is not host or host:port", d.Address)
	}
	if p, err := strconv.Atoi(port); err != nil || p < 1 || p > 65535 {
		return fmt.Errorf("port %q is outside 1–65535", port)
	}
	return nil
}

// takes lists the options that only some types have, and those types.
var takes = []struct {
	option string
	set    func(Device) bool
	types  []DeviceType
}{
	{"address", func(d Device) bool { return d.Address != "" }, []DeviceType{TypeIPMI, TypeRedfish}},
	{"user", func(d Device) bool { return d.User != "" }, []DeviceType{TypeIPMI, TypeRedfish}},
	{"cipher_suite", func(d Device) bool { return d.CipherSuite != 0 }, []DeviceType{TypeIPMI}},
	{"system", func(d Device) bool { return d.System != "" }, []DeviceType{TypeRedfish}},
	{"auth", func(d Device) bool { return d.Auth != "" }, []DeviceType{TypeRedfish}},
	{"ca_file", func(d Device) bool { return d.CAFile != "" }, []DeviceType{TypeRedfish}},
	{"fingerprint", func(d Device) bool { return d.Fingerprint != "" }, []DeviceType{TypeRedfish}},
	{"insecure", func(d Device) bool { return d.Insecure }, []DeviceType{TypeRedfish}},
	{"agent", func(d Device) bool { return d.Agent != "" }, []DeviceType{TypeAgent}},
	{"options", func(d Device) bool { return len(d.Options) > 0 }, []DeviceType{TypeAgent}},
	{"password_option", func(d Device) bool { return d.PasswordOption != "" }, []DeviceType{TypeAgent}},
	{"argv", func(d Device) bool { return len(d.Argv) > 0 }, []DeviceType{TypeExec}},
}

// misplaced refuses an option that the device's type would not read.
func (d Device) misplaced() error {
	known := []DeviceType{TypeIPMI, TypeRedfish, TypeAgent, TypeExec}
	for _, option := range takes {
		if !option.set(d) || slices.Contains(option.types, d.Type) || !slices.Contains(known, d.Type) {
			continue
		}
		hint := ""
		if d.Type == TypeAgent && (option.option == "address" || option.option == "user") {
			hint = "; an agent has its own parameters under options, mostly ip and username"
		}
		return fmt.Errorf("%s is not an option of type %s%s", option.option, d.Type, hint)
	}
	return nil
}

// validateSecret judges where the password comes from. The child that makes an
// attempt is told the password itself, so that this is for the settings only.
func (d Device) validateSecret() error {
	given := slices.DeleteFunc([]string{d.PasswordFile, d.PasswordSealed, d.PasswordSecret}, func(s string) bool { return s == "" })
	switch {
	case len(given) > 1:
		return fmt.Errorf("device %q: more than one of password_file, password_sealed and password_secret is given; keep one", d.Name)
	case d.PasswordSecret != "":
		if err := cluster.CheckSecretName(d.PasswordSecret); err != nil {
			return fmt.Errorf("device %q: password_secret: %w", d.Name, err)
		}
	case d.PasswordSealed != "":
		if _, err := sealedReader(d.PasswordSealed); err != nil {
			return fmt.Errorf("device %q: password_sealed: %w", d.Name, err)
		}
	case d.Type == TypeRedfish && d.PasswordFile == "":
		return fmt.Errorf("device %q: give password_file, password_sealed or password_secret", d.Name)
	}
	return nil
}

// password fetches the device's password (see secret).
func (d Device) password(ctx context.Context) (string, error) {
	password, err := d.secret(ctx)
	if err != nil {
		return "", err
	}
	return password.Reveal(), nil
}
