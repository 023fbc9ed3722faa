package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"pvc.internal/api"
	"pvc.internal/cluster"
)

// pursuit shows what becomes of an order, step by step, until it is over.
type pursuit[T any] struct {
	t     *terminal
	quiet bool     // nothing but the end is printed, as JSON or YAML
	shown []string // lines printed
	last  T        // as seen last
	// read looks once; see says whether it is over, and how.
	read func(context.Context) (T, error)
	see  func(T) (over bool, end error)
	// unfinished is the error of who has waited in vain.
	unfinished func(atMost time.Duration) error
}

// pursuitLook is how often it is looked: much of what is waited for makes no
// change of the cluster's view. Tests are less patient.
var pursuitLook = 500 * time.Millisecond

// checkWait refuses a time that nobody could wait.
func checkWait(c *cli.Context) error {
	if c.Bool("wait") && c.Duration("wait-timeout") <= 0 {
		return usagef("--wait-timeout must be above zero, like 60s")
	}
	return nil
}

func (p *pursuit[T]) say(format string, more ...any) {
	if !p.quiet {
		p.t.say(format, more...)
	}
}

// line prints a line with its time, once.
func (p *pursuit[T]) line(format string, more ...any) {
	if text := fmt.Sprintf(format, more...); !slices.Contains(p.shown, text) {
		p.shown = append(p.shown, text)
		p.say("  %s  %s", time.Now().Format("15:04:05.000"), text)
	}
}

// run says what was ordered, follows, and prints the end for programs.
func (p *pursuit[T]) run(c *cli.Context, ordered string) error {
	shape, err := format(c)
	if err != nil {
		return err
	}
	p.quiet = shape != formatTable
	p.say("%s", ordered)
	end := p.follow(c.Context, c.Duration("wait-timeout"))
	if p.quiet {
		if err := p.t.show(c, p.last, nil); err != nil {
			return err
		}
	}
	return end
}

// follow looks again and again until it is over or the time is. A server that
// cannot be reached for a while ends nothing.
func (p *pursuit[T]) follow(ctx context.Context, atMost time.Duration) error {
	limited, cancel := context.WithTimeout(ctx, atMost)
	defer cancel()
	look := time.NewTicker(pursuitLook)
	defer look.Stop()
	for {
		v, err := p.read(limited)
		switch {
		case err == nil:
			p.last = v
			if over, end := p.see(v); over {
				return end
			}
		case limited.Err() != nil:
		case errors.Is(err, api.ErrUnreachable), errors.Is(err, cluster.ErrDeadline):
			p.line("(%s)", err)
		default:
			return err
		}
		select {
		case <-look.C:
		case <-limited.Done():
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return p.unfinished(atMost)
		}
	}
}
