package main

import (
	"pvc.internal/cmd/settings"
	"pvc.internal/fencing"
)

// fencingConfig turns the settings' fencing part into the package's.
func fencingConfig(s settings.Node) fencing.Config {
	f := s.Fencing
	c := fencing.Config{
		SuccessfulFence: fencing.Policy(f.SuccessfulFence),
		FailedFence:     fencing.Policy(f.FailedFence),
		Nodes:           make(map[string]fencing.NodeConfig, len(f.Nodes)),
		Secrets:         fencing.Secrets{KeyFile: f.Secrets.KeyFile},
		Watchdog:        s.Watchdog.Device != "", TrustSoftdog: s.Watchdog.TrustSoft,
	}
	for name, n := range f.Nodes {
		levels := make([][]fencing.Device, len(n.Levels))
		for i, level := range n.Levels {
			for _, d := range level {
				levels[i] = append(levels[i], fencing.Device{
					Name: d.Name, Type: fencing.DeviceType(d.Type), Address: d.Address, User: d.User,
					PasswordFile: d.PasswordFile, PasswordSealed: d.PasswordSealed, CipherSuite: d.CipherSuite, Timeout: d.Timeout, Poll: d.Poll,
					System: d.System, Auth: fencing.RedfishAuth(d.Auth), CAFile: d.CAFile, Fingerprint: d.Fingerprint, Insecure: d.Insecure,
					Agent: d.Agent, Options: d.Options, PasswordOption: d.PasswordOption, Argv: d.Argv,
				})
			}
		}
		c.Nodes[name] = fencing.NodeConfig{After: fencing.After(n.After), Levels: levels}
	}
	return c.WithDefaults()
}
