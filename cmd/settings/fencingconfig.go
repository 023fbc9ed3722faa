package settings

import "pvc.internal/fencing"

// FencingConfig returns the fencing part as the package that does it wants it,
// with its defaults.
func (n Node) FencingConfig() fencing.Config {
	f := n.Fencing
	c := fencing.Config{
		SuccessfulFence: fencing.Policy(f.SuccessfulFence),
		FailedFence:     fencing.Policy(f.FailedFence),
		Nodes:           make(map[string]fencing.NodeConfig, len(f.Nodes)),
		Secrets:         fencing.Secrets{KeyFile: f.Secrets.KeyFile},
		Watchdog:        n.Watchdog.Device != "", TrustSoftdog: n.Watchdog.TrustSoft,
	}
	for name, node := range f.Nodes {
		levels := make([][]fencing.Device, len(node.Levels))
		for i, level := range node.Levels {
			for _, d := range level {
				levels[i] = append(levels[i], fencing.Device{
					Name: d.Name, Type: fencing.DeviceType(d.Type), Address: d.Address, User: d.User,
					PasswordFile: d.PasswordFile, PasswordSealed: d.PasswordSealed, PasswordSecret: d.PasswordSecret, CipherSuite: d.CipherSuite, Timeout: d.Timeout, Poll: d.Poll,
					System: d.System, Auth: fencing.RedfishAuth(d.Auth), CAFile: d.CAFile, Fingerprint: d.Fingerprint, Insecure: d.Insecure,
					Agent: d.Agent, Options: d.Options, PasswordOption: d.PasswordOption, Argv: d.Argv,
				})
			}
		}
		c.Nodes[name] = fencing.NodeConfig{After: fencing.After(node.After), Levels: levels}
	}
	return c.WithDefaults()
}
