// Command pvc is the operator's command line. It talks to any pvcapid over
// HTTP; nothing of it has to run on a node.
package main

import (
	"context"
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
	arranged, err := arrange(app, argv)
	if err == nil {
		err = app.RunContext(ctx, arranged)
	}
	return report(err, stderr)
}
