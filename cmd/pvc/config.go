package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"pvc.internal/cmd/settings"
)

func (t *terminal) configCommand() *cli.Command {
	return &cli.Command{Name: "config", Usage: "settings files of the daemons on this machine", Subcommands: []*cli.Command{{
		Name: "check", Usage: "what a settings file and the environment mean, where each value is from, and what is wrong",
		Action: t.configCheck, Flags: []cli.Flag{
			&cli.StringFlag{Name: "config", Aliases: []string{"c"}, Usage: "settings `FILE`", Value: "/etc/pvc/pvcnoded.yaml"},
			&cli.StringFlag{Name: "daemon", Usage: "`pvcnoded|pvcapid`: whose file it is; by default its name says so"},
		},
	}}}
}

// checkedSettings is the answer for programs.
type checkedSettings struct {
	Program  string           `json:"program"`
	File     string           `json:"file"`
	Settings []checkedSetting `json:"settings"`
	Warnings []string         `json:"warnings"`
}

type checkedSetting struct {
	Key    string `json:"key"`
	Value  string `json:"value"` // as YAML; what may be a secret is not in it
	Origin string `json:"origin"`
}

func (t *terminal) configCheck(c *cli.Context) error {
	if _, err := names(c); err != nil {
		return err
	}
	file, daemon := c.String("config"), c.String("daemon")
	if daemon == "" {
		daemon = "pvcnoded"
		if strings.HasPrefix(filepath.Base(file), "pvcapid") {
			daemon = "pvcapid"
		}
	}
	var i settings.Inspection
	var err error
	switch daemon {
	case "pvcnoded":
		if _, i, err = settings.InspectNode(file, os.Environ()); err == nil {
			_, err = loadNode(file) // with what the packages judge
		}
	case "pvcapid":
		_, i, err = settings.InspectAPI(file, os.Environ())
	default:
		return usagef("--daemon must be pvcnoded or pvcapid, not %q", daemon)
	}
	if err != nil {
		return fmt.Errorf("the settings are refused:\n%w", err)
	}
	answer := checkedSettings{Program: i.Program, File: i.File, Settings: []checkedSetting{}, Warnings: append([]string{}, i.Warnings...)}
	for _, s := range i.Settings {
		answer.Settings = append(answer.Settings, checkedSetting{s.Key, s.Value, s.Origin})
	}
	var printed error
	if err := t.show(c, answer, func() { printed = i.Write(t.out) }); err != nil {
		return err
	}
	return printed
}
