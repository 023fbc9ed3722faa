package main

import (
	"context"
	"fmt"

	"github.com/coreos/go-systemd/v22/dbus"

	"pvc.internal/cluster"
	"pvc.internal/cmd/settings"
	"pvc.internal/doctor"
)

// unitsOf looks at our daemons' units, and at those that the role starts.
func unitsOf(ctx context.Context, s settings.Node) ([]doctor.Unit, error) {
	conn, err := dbus.NewSystemConnectionContext(ctx)
	if err != nil {
		return nil, fmt.Errorf("systemd does not answer over D-Bus: %w", err)
	}
	defer conn.Close()
	ours := []string{"pvc-guard.service", "pvcnoded.service"}
	if s.Node.Mode == cluster.Coordinator {
		ours = append(ours, "pvcapid.service")
	}
	var units []doctor.Unit
	for _, name := range ours {
		units = append(units, doctor.Unit{Name: name, Ours: true})
	}
	for _, service := range s.Services {
		if service.Kind == cluster.ServiceUnit {
			units = append(units, doctor.Unit{Name: service.Unit})
		}
	}
	for i := range units {
		props, err := conn.GetUnitPropertiesContext(ctx, units[i].Name)
		if err != nil {
			return nil, fmt.Errorf("look at unit %s: %w", units[i].Name, err)
		}
		text := func(key string) string { v, _ := props[key].(string); return v }
		units[i].Load, units[i].Active, units[i].File = text("LoadState"), text("ActiveState"), text("UnitFileState")
	}
	return units, nil
}
