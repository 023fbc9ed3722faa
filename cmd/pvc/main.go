// Command pvc is the operator's command line. It talks to any pvcapid over
// HTTP; nothing of it has to run on a node.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args, os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is the whole program but the process around it; it returns the exit code.
func run(ctx context.Context, argv []string, stdin io.Reader, stdout, stderr io.Writer) int {
	app := newApp(stdin, stdout, stderr)
	if n := len(argv) - 1; n > 0 && argv[n] == completionFlag {
		for _, word := range completions(ctx, app, argv[1:n]) {
			fmt.Fprintln(stdout, word)
		}
		return exitOK
	}
	arranged, err := arrange(app, argv)
	if err == nil {
		err = app.RunContext(ctx, arranged)
	}
	return report(err, stderr)
}
