package fencing

import (
	"errors"
	"fmt"
	"net"
	"os"
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

// TypeIPMI is a baseboard management controller over lanplus.
const TypeIPMI DeviceType = "ipmi"

// The limits and defaults of a device.
const (
	DefaultCipherSuite = 3
	DefaultTimeout     = 20 * time.Second // of one attempt as a whole
	DefaultPoll        = 500 * time.Millisecond
	DefaultIPMIPort    = 623

	maxUser     = 16 // bytes, by the protocol
	maxPassword = 20
)

// Device is one thing that can take a node's power.
type Device struct {
	Name         string        `mapstructure:"name" json:"name"`
	Type         DeviceType    `mapstructure:"type" json:"type"`
	Address      string        `mapstructure:"address" json:"address"` // host or host:port
	User         string        `mapstructure:"user" json:"user"`
	PasswordFile string        `mapstructure:"password_file" json:"-"` // first line; read at each attempt
	CipherSuite  int           `mapstructure:"cipher_suite" json:"cipher_suite"`
	Timeout      time.Duration `mapstructure:"timeout" json:"timeout"` // one attempt as a whole; 0: 20 s
	Poll         time.Duration `mapstructure:"poll" json:"poll"`       // between status reads; 0: 0.5 s
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
			}
		}
		node.Levels = levels
		nodes[name] = node
	}
	c.Nodes = nodes
	return c
}

func (d Device) withDefaults() Device {
	if d.CipherSuite == 0 {
		d.CipherSuite = DefaultCipherSuite
	}
	if d.Timeout == 0 {
		d.Timeout = DefaultTimeout
	}
	if d.Poll == 0 {
		d.Poll = DefaultPoll
	}
	if _, _, err := net.SplitHostPort(d.Address); err != nil && d.Address != "" {
		d.Address = net.JoinHostPort(strings.Trim(d.Address, "[]"), strconv.Itoa(DefaultIPMIPort))
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
	if c.FailedFence == PolicyMigrate {
		problems = append(problems, errors.New("fencing.failed_fence: migrate needs an armed hardware watchdog on every node, which is not supported yet; use none"))
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
		}
	}
	return problems
}

// Validate reports why the device cannot be used as it stands.
func (d Device) Validate() error {
	d = d.withDefaults()
	switch {
	case d.Name == "":
		return errors.New("name is missing")
	case d.Type != TypeIPMI:
		return fmt.Errorf("device %q: type %q is not known; use %q", d.Name, d.Type, TypeIPMI)
	case d.Address == "":
		return fmt.Errorf("device %q: address is missing", d.Name)
	case len(d.User) < 1 || len(d.User) > maxUser:
		return fmt.Errorf("device %q: user must have 1–%d bytes, has %d", d.Name, maxUser, len(d.User))
	case d.CipherSuite != 3 && d.CipherSuite != 17:
		return fmt.Errorf("device %q: cipher_suite %d is not one of 3, 17", d.Name, d.CipherSuite)
	case d.Timeout < time.Second || d.Timeout > 10*time.Minute:
		return fmt.Errorf("device %q: timeout %s is outside 1s–10m", d.Name, d.Timeout)
	case d.Poll < 50*time.Millisecond || d.Poll > d.Timeout:
		return fmt.Errorf("device %q: poll %s is outside 50ms–%s (its timeout)", d.Name, d.Poll, d.Timeout)
	}
	host, port, err := net.SplitHostPort(d.Address)
	if err != nil || host == "" {
		return fmt.Errorf("device %q: address %q is not host or host:port", d.Name, d.Address)
	}
	if p, err := strconv.Atoi(port); err != nil || p < 1 || p > 65535 {
		return fmt.Errorf("device %q: port %q is outside 1–65535", d.Name, port)
	}
	return nil
}

// password reads the device's password: the file's first line.
func (d Device) password() (string, error) {
	data, err := os.ReadFile(d.PasswordFile)
	if err != nil {
		return "", fmt.Errorf("read the password of device %q: %w", d.Name, err)
	}
	line, _, _ := strings.Cut(string(data), "\n")
	line = strings.TrimRight(line, "\r")
	if len(line) < 1 || len(line) > maxPassword {
		return "", fmt.Errorf("password of device %q in %s: want 1–%d bytes on the first line, has %d", d.Name, d.PasswordFile, maxPassword, len(line))
	}
	return line, nil
}
