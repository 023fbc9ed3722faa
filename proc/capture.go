package proc

import (
	"fmt"
	"os"
	"time"
)

// streams are the parent's ends of a captured child's pipes, each with a
// goroutine that finish waits for.
type streams struct {
	stdin  *feeder
	stdout *capture
	stderr *capture
}

// launchCaptured starts a program with its output captured and its input fed.
func (c Command) launchCaptured(prefix string) (*Process, *streams, error) {
	limit := c.OutputLimit
	if limit <= 0 {
		limit = DefaultOutputLimit
	}
	var files []*os.File // the child's ends, ours to close once it has them
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	pipe := func() (r, w *os.File, err error) {
		if r, w, err = os.Pipe(); err != nil {
			return nil, nil, fmt.Errorf("run %s: %w: %w", c.Argv, ErrNotStarted, err)
		}
		return r, w, nil
	}
	if _, err := c.lookup(); err != nil {
		return nil, nil, err
	}
	outR, outW, err := pipe()
	if err != nil {
		return nil, nil, err
	}
	files = append(files, outW)
	errR, errW, err := pipe()
	if err != nil {
		outR.Close()
		return nil, nil, err
	}
	files = append(files, errW)
	inR, inW, err := pipe()
	if err != nil {
		outR.Close()
		errR.Close()
		return nil, nil, err
	}
	files = append(files, inR)
	p, err := launch(c, prefix, inR, outW, errW)
	if err != nil {
		outR.Close()
		errR.Close()
		inW.Close()
		return nil, nil, err
	}
	return p, &streams{stdin: feed(inW, c.Stdin), stdout: read(outR, limit), stderr: read(errR, limit)}, nil
}

// finish collects the output; what has not arrived by the deadline is given up.
func (s *streams) finish(r *Result, deadline time.Time) {
	s.stdin.stop()
	var cutOut, cutErr bool
	r.Stdout, cutOut = s.stdout.stop(deadline)
	r.Stderr, cutErr = s.stderr.stop(deadline)
	r.Truncated = cutOut || cutErr
}

// feeder writes a program's standard input.
type feeder struct {
	pipe *os.File
	done chan struct{}
}

func feed(pipe *os.File, data []byte) *feeder {
	f := &feeder{pipe: pipe, done: make(chan struct{})}
	go func() {
		defer close(f.done)
		_, _ = pipe.Write(data) // a program need not read all of it
		pipe.Close()
	}()
	return f
}

// stop ends the writing, however far it got.
func (f *feeder) stop() {
	_ = f.pipe.SetWriteDeadline(time.Unix(1, 0))
	<-f.done
}

// capture reads one stream to its end and keeps its beginning.
type capture struct {
	pipe  *os.File
	limit int
	kept  []byte
	cut   bool
	done  chan struct{}
}

func read(pipe *os.File, limit int) *capture {
	c := &capture{pipe: pipe, limit: limit, done: make(chan struct{})}
	go c.run()
	return c
}

func (c *capture) run() {
	defer close(c.done)
	buf := make([]byte, 32<<10)
	for {
		n, err := c.pipe.Read(buf)
		keep := min(n, c.limit-len(c.kept))
		c.kept = append(c.kept, buf[:keep]...)
		c.cut = c.cut || keep < n
		if err != nil {
			return
		}
	}
}

// stop waits for the stream's end, at most until the deadline.
func (c *capture) stop(deadline time.Time) ([]byte, bool) {
	_ = c.pipe.SetReadDeadline(deadline)
	<-c.done
	c.pipe.Close()
	return c.kept, c.cut
}
