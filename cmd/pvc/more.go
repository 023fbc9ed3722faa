package main

import "github.com/urfave/cli/v2"

// moreCommands are those that do not talk to a pvcapid.
func moreCommands() []*cli.Command {
	return append([]*cli.Command{sandboxCommand()}, sandboxHelperCommands()...)
}
