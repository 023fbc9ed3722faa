package main

import (
	"context"
	"path/filepath"

	"go.uber.org/zap"

	"pvc.internal/cmd/settings"
	"pvc.internal/proc"
	"pvc.internal/router/guard"
)

// guardConfig is what the guard and its sweep are started with.
func guardConfig(s settings.Node) guard.Config {
	return guard.Config{
		Socket:    filepath.Join(s.RunDir, "guard.sock"),
		StateFile: filepath.Join(s.StateDir, "guard.json"),
		Addresses: s.Addresses,
		UseGate:   s.Role.Gate,
		Grace:     s.Timing.Grace,
		Margin:    s.Timing.TakerMargin,
	}
}

// runGuard runs the guard until ctx ends.
func runGuard(ctx context.Context, s settings.Node, log *zap.Logger) error {
	return guard.Run(ctx, guardConfig(s), proc.BootClock{}, log.Named("guard"))
}

// sweepGuard ends whatever a guard that died left behind.
func sweepGuard(_ context.Context, s settings.Node, _ *zap.Logger) error {
	return guard.Sweep(guardConfig(s))
}
