package main

import (
	"pvc.internal/cmd/settings"
	"pvc.internal/fencing"
)

// fencingConfig turns the settings' fencing part into the package's.
func fencingConfig(f settings.Fencing) fencing.Config {
	c := fencing.Config{
		SuccessfulFence: fencing.Policy(f.SuccessfulFence),
		FailedFence:     fencing.Policy(f.FailedFence),
		Nodes:           make(map[string]fencing.NodeConfig, len(f.Nodes)),
	}
	for name, n := range f.Nodes {
		levels := make([][]fencing.Device, len(n.Levels))
		for i, level := range n.Levels {
			for _, d := range level {
				levels[i] = append(levels[i], fencing.Device{
					Name: d.Name, Type: fencing.DeviceType(d.Type), Address: d.Address, User: d.User,
					PasswordFile: d.PasswordFile, CipherSuite: d.CipherSuite, Timeout: d.Timeout, Poll: d.Poll,
				})
			}
		}
		c.Nodes[name] = fencing.NodeConfig{After: fencing.After(n.After), Levels: levels}
	}
	return c.WithDefaults()
}
