package fencing

import (
	"context"
	"path/filepath"
)

// Leak says how the device's agent gives its password away to others on the
// machine that runs it; empty: no way is known, or it has no password.
func (d Device) Leak() string {
	if d.Type != TypeAgent || d.PasswordFile == "" && d.PasswordSealed == "" && d.PasswordSecret == "" {
		return ""
	}
	return leaks[filepath.Base(d.Agent)]
}

// CheckPassword reports why the device's password could not be fetched now, as
// an attempt would. It reads the file, or opens the sealed text with the key
// that Config.WithDefaults has named; it tells nothing of it.
func (d Device) CheckPassword() error {
	_, err := d.secret(context.Background())
	return err
}

// Exposed names, each with its cure, files of the device whose password others
// on this machine can read.
func (d Device) Exposed() []string { return d.exposed(context.Background()) }
