package main

import (
	"context"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"syscall"

	"github.com/coreos/go-systemd/v22/dbus"

	"pvc.internal/cluster"
	"pvc.internal/cmd/settings"
	"pvc.internal/doctor"
)

// apiUnit runs as a user of its own, and reads these settings.
const (
	apiUnit     = "pvcapid.service"
	apiSettings = "/etc/pvc/pvcapid.yaml"
)

// unitsOf looks at our daemons' units, and at those that the role starts.
func unitsOf(ctx context.Context, s settings.Node) ([]doctor.Unit, error) {
	conn, err := dbus.NewSystemConnectionContext(ctx)
	if err != nil {
		return nil, fmt.Errorf("systemd does not answer over D-Bus: %w", err)
	}
	defer conn.Close()
	ours := []string{"pvc.target", "pvc-guard.service", "pvcnoded.service"}
	if s.Node.Mode == cluster.Coordinator {
		ours = append(ours, apiUnit)
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
		if units[i].Name != apiUnit {
			continue
		}
		as, err := conn.GetServicePropertyContext(ctx, apiUnit, "User")
		if err != nil {
			return nil, fmt.Errorf("look at unit %s: %w", apiUnit, err)
		}
		if name, _ := as.Value.Value().(string); name != "" {
			units[i].Barred = barred(name, apiSettings, s.ZooKeeper.Auth.PasswordFile, s.ZooKeeper.Reader.PasswordFile)
		}
	}
	return units, nil
}

// barred says what keeps the user from reading one of the files, "" if nothing
// does. Files that are not there are for others to complain of.
func barred(name string, files ...string) string {
	account, err := user.Lookup(name)
	if err != nil {
		return fmt.Sprintf("there is no user %s: `systemd-sysusers` makes it", name)
	}
	for _, file := range files {
		info, err := os.Stat(file)
		if err != nil {
			continue
		}
		owner, ok := info.Sys().(*syscall.Stat_t)
		mode := info.Mode().Perm()
		switch {
		case !ok, mode&0o004 != 0:
		case mode&0o040 != 0 && account.Gid == strconv.Itoa(int(owner.Gid)):
		case mode&0o400 != 0 && account.Uid == strconv.Itoa(int(owner.Uid)):
		default:
			return fmt.Sprintf("user %s cannot read %s: `chgrp %s %s && chmod 640 %s`", name, file, name, file, file)
		}
	}
	return ""
}
