package settings

import "time"

// Fencing is how lost nodes are switched off, and what follows.
type Fencing struct {
	SuccessfulFence string               `yaml:"successful_fence"` // migrate (default) | none
	FailedFence     string               `yaml:"failed_fence"`     // none (default) | migrate
	Nodes           map[string]FenceNode `yaml:"nodes"`
}

// FenceNode is the ladder of one node.
type FenceNode struct {
	After  string     `yaml:"after"`  // reboot (default) | off
	Levels [][]Device `yaml:"levels"` // within a level every device must confirm
}

// Device is one way to switch a node off.
type Device struct {
	Name         string        `yaml:"name"`
	Type         string        `yaml:"type"`    // ipmi
	Address      string        `yaml:"address"` // host or host:port, default port 623
	User         string        `yaml:"user"`
	PasswordFile string        `yaml:"password_file"` // first line; read at each attempt
	CipherSuite  int           `yaml:"cipher_suite"`  // default 3
	Timeout      time.Duration `yaml:"timeout"`       // one attempt, off and verified; default 20 s
	Poll         time.Duration `yaml:"poll"`          // between reads of the power state; default 0.5 s
}

// DeviceIPMI is a baseboard management controller over lanplus.
const DeviceIPMI = "ipmi"

func defaultFencing() Fencing {
	return Fencing{SuccessfulFence: "migrate", FailedFence: "none"}
}
