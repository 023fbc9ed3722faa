package settings

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"pvc.internal/cluster"
)

// checkFencing returns the fencing part with its defaults, every ladder made of
// whole devices. What a device itself accepts is the fencing package's to judge.
func checkFencing(r *report, f Fencing, w Watchdog) Fencing {
	r.oneOf("fencing.successful_fence", f.SuccessfulFence, "migrate", "none")
	r.oneOf("fencing.failed_fence", f.FailedFence, "none", "migrate")
	if f.FailedFence == "migrate" && w.Device == "" {
		r.refuse("fencing.failed_fence", "migrate waits until a lost node's watchdog has surely reset it, and this node has none: set watchdog.device on every node, or write none and confirm by hand")
	}
	if f.Secrets.KeyFile != "" {
		checkFolder(r, "fencing.secrets.key_file", f.Secrets.KeyFile)
	}
	shared := map[string]bool{}
	for i, d := range f.Devices {
		at := fmt.Sprintf("fencing.devices[%d]", i)
		checkName(r, at, d.Name, shared)
		checkDevice(r, at, d, f.Secrets)
	}
	nodes := make(map[string]FenceNode, len(f.Nodes))
	for name, n := range f.Nodes {
		key := "fencing.nodes." + name
		if err := cluster.NodeID(name).Validate(); err != nil {
			r.refuse(key, "%v", err)
		}
		nodes[name] = checkFenceNode(r, key, n, f)
	}
	f.Nodes, f.Devices = nodes, nil
	return f
}

func checkFenceNode(r *report, key string, n FenceNode, f Fencing) FenceNode {
	if n.After == "" {
		n.After = "reboot"
	}
	r.oneOf(key+".after", n.After, "reboot", "off")
	if len(n.Levels) == 0 {
		r.refuse(key+".levels", "is missing: give at least one list of devices")
	}
	names := map[string]bool{}
	levels := make([][]Device, len(n.Levels))
	for i, level := range n.Levels {
		if len(level) == 0 {
			r.refuse(fmt.Sprintf("%s.levels[%d]", key, i), "is empty: a level without a device would prove nothing")
		}
		for j, d := range level {
			at := fmt.Sprintf("%s.levels[%d][%d]", key, i, j)
			checkName(r, at, d.Name, names)
			d, whole := named(r, at, d, f.Devices)
			if whole {
				checkDevice(r, at, d, f.Secrets)
			}
			levels[i] = append(levels[i], d)
		}
	}
	n.Levels = levels
	return n
}

// named returns the device itself, or the shared one that a name without a type
// stands for, with the options of this place added: a power strip has one
// address and a plug for each node. False: it is refused already.
func named(r *report, at string, d Device, shared []Device) (Device, bool) {
	if d.Type != "" || d.Name == "" {
		return d, d.Type != ""
	}
	var names []string
	for _, s := range shared {
		if s.Name == d.Name {
			return s.with(r, at, d), true
		}
		names = append(names, s.Name)
	}
	hint := "and fencing.devices, where devices of that kind stand, has none"
	if len(names) > 0 {
		best, _ := nearest(d.Name, names)
		hint = fmt.Sprintf("and fencing.devices has only %s: did you mean %q?", strings.Join(names, ", "), best)
	}
	r.refuse(at, "no device is called %q: it has no type here, %s", d.Name, hint)
	return d, false
}

// with returns a copy with the options of one ladder added; nothing else of a
// shared device changes from ladder to ladder.
func (s Device) with(r *report, at string, d Device) Device {
	options := maps.Clone(s.Options)
	if options == nil && len(d.Options) > 0 {
		options = map[string]string{}
	}
	maps.Copy(options, d.Options)
	here := d
	here.Name, here.Options = "", nil
	if !here.empty() {
		r.refuse(at, "device %q stands under fencing.devices: only options may be added here, anything else belongs there", d.Name)
	}
	s.Options = options
	return s
}

// empty reports whether nothing is set.
func (s Device) empty() bool {
	return s.Type == "" && s.Address == "" && s.User == "" && s.PasswordFile == "" && s.PasswordSealed == "" && s.PasswordSecret == "" && s.CipherSuite == 0 &&
		s.Timeout == 0 && s.Poll == 0 && s.System == "" && s.Auth == "" && s.CAFile == "" && s.Fingerprint == "" && !s.Insecure &&
		s.Agent == "" && s.PasswordOption == "" && len(s.Argv) == 0
}

func checkDevice(r *report, key string, d Device, secrets FenceSecrets) {
	r.oneOf(key+".type", d.Type, DeviceIPMI, DeviceRedfish, DeviceAgent, DeviceExec)
	controller := !slices.Contains([]string{DeviceAgent, DeviceExec}, d.Type)
	if controller && d.Address == "" {
		r.refuse(key+".address", "is missing: host or host:port of the device")
	}
	if controller && d.PasswordFile == "" && d.PasswordSealed == "" && d.PasswordSecret == "" {
		r.refuse(key+".password_file", "is missing: a file whose first line is the device's password")
	}
	if d.PasswordSealed != "" && secrets.KeyFile == "" {
		r.refuse(key+".password_sealed", "cannot be opened: name the key's file in fencing.secrets.key_file, or use password_file")
	}
	if d.PasswordSecret != "" && secrets.KeyFile == "" {
		r.refuse(key+".password_secret", "cannot be opened: name the key's file in fencing.secrets.key_file, or use password_file")
	}
	if d.PasswordFile != "" {
		checkFolder(r, key+".password_file", d.PasswordFile)
	}
	if d.CAFile != "" {
		checkFolder(r, key+".ca_file", d.CAFile)
	}
}
