package settings

import "time"

// Fencing is how lost nodes are switched off, and what follows.
type Fencing struct {
	SuccessfulFence string               `yaml:"successful_fence"` // migrate (default) | none
	FailedFence     string               `yaml:"failed_fence"`     // none (default) | migrate
	Devices         []Device             `yaml:"devices"`          // that several ladders name
	Nodes           map[string]FenceNode `yaml:"nodes"`
	Secrets         FenceSecrets         `yaml:"secrets"`
	TestSchedule    string               `yaml:"test_schedule"` // cron: when the primary tests all devices
}

// FenceSecrets is how sealed passwords are opened.
type FenceSecrets struct {
	KeyFile string `yaml:"key_file"` // mode 0600, the same on all coordinators
}

// FenceNode is the ladder of one node.
type FenceNode struct {
	After  string     `yaml:"after"`  // reboot (default) | off
	Levels [][]Device `yaml:"levels"` // within a level every device must confirm
}

// Device is one way to switch a node off. Which options a type takes is the
// fencing package's to judge. In a ladder one without a type is the device of
// that name under fencing.devices; its options are added to that one's.
type Device struct {
	Name           string        `yaml:"name"`
	Type           string        `yaml:"type"`            // ipmi | redfish | agent | exec
	Address        string        `yaml:"address"`         // ipmi, redfish: host or host:port
	User           string        `yaml:"user"`            // ipmi, redfish
	PasswordFile   string        `yaml:"password_file"`   // first line; read at each attempt
	PasswordSealed string        `yaml:"password_sealed"` // in place of password_file
	PasswordSecret string        `yaml:"password_secret"` // likewise: its name in ZooKeeper
	CipherSuite    int           `yaml:"cipher_suite"`    // ipmi, default 3
	Timeout        time.Duration `yaml:"timeout"`         // one attempt, off and verified; default 20 s
	Poll           time.Duration `yaml:"poll"`            // between reads of the power state; default 0.5 s

	System      string `yaml:"system"`      // redfish: default the only one there is
	Auth        string `yaml:"auth"`        // redfish: session | basic
	CAFile      string `yaml:"ca_file"`     // redfish
	Fingerprint string `yaml:"fingerprint"` // redfish: SHA-256 of the certificate
	Insecure    bool   `yaml:"insecure"`    // redfish: take any certificate

	Agent          string            `yaml:"agent"`           // agent: program
	Options        map[string]string `yaml:"options"`         // agent: its parameters
	PasswordOption string            `yaml:"password_option"` // agent: default password

	Argv []string `yaml:"argv"` // exec
}

// The types of devices.
const (
	DeviceIPMI    = "ipmi"
	DeviceRedfish = "redfish"
	DeviceAgent   = "agent"
	DeviceExec    = "exec"
)

func defaultFencing() Fencing {
	return Fencing{SuccessfulFence: "migrate", FailedFence: "none", TestSchedule: "@hourly"}
}
