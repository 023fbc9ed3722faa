package main

import (
	"pvc.internal/cmd/settings"
	"pvc.internal/fencing"
)

// fencingConfig turns the settings' fencing part into the package's.
func fencingConfig(s settings.Node) fencing.Config { return s.FencingConfig() }
