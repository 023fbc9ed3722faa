package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"pvc.internal/api"
	"pvc.internal/cluster"
)

// The exit codes; scripts rely on them.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitRefused     = 3 // understood, and not done
	exitUnreachable = 4 // no pvcapid, or its store is away
	exitTimedOut    = 5 // it may still happen
	exitInterrupted = 130
)

// usageError is a command line that says nothing sensible.
type usageError struct{ text string }

func (e usageError) Error() string { return e.text }

func usagef(format string, more ...any) error { return usageError{fmt.Sprintf(format, more...)} }

// report tells the error and returns its exit code.
func report(err error, stderr io.Writer) int {
	if err == nil {
		return exitOK
	}
	code := exitCode(err)
	if code != exitInterrupted {
		fmt.Fprintln(stderr, "pvc:", err)
	}
	return code
}

func exitCode(err error) int {
	var usage usageError
	switch {
	case errors.As(err, &usage):
		return exitUsage
	case errors.Is(err, api.ErrUnreachable), errors.Is(err, cluster.ErrNotLive):
		return exitUnreachable
	case errors.Is(err, cluster.ErrDeadline), errors.Is(err, context.DeadlineExceeded):
		return exitTimedOut
	case errors.Is(err, cluster.ErrRefused):
		return exitRefused
	case errors.Is(err, context.Canceled):
		return exitInterrupted
	}
	return exitFailed
}
