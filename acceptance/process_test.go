package acceptance

import (
	"bufio"
	"bytes"
	"fmt"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"
)

// process is a program that a test started; it ends with the test, and with
// the test binary however that ends.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed once it has been waited for

	mu  sync.Mutex
	out bytes.Buffer // standard output and error
}

var (
	starterOnce sync.Once
	starts      chan func()
)

// startThere starts the command from a thread that lives as long as this
// process: a parent-death signal comes with the end of the *thread*.
func startThere(cmd *exec.Cmd) error {
	starterOnce.Do(func() {
		starts = make(chan func())
		go func() {
			runtime.LockOSThread()
			for start := range starts {
				start()
			}
		}()
	})
	started := make(chan error)
	starts <- func() { started <- cmd.Start() }
	return <-started
}

// start starts the command. Its output is kept, and each line given to see.
func start(t *testing.T, cmd *exec.Cmd, see func(line string)) *process {
	t.Helper()
	p := &process{cmd: cmd, done: make(chan struct{})}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	cmd.WaitDelay = time.Second
	if err := startThere(cmd); err != nil {
		t.Fatalf("start %v: %v", cmd.Args, err)
	}
	go func() {
		defer close(p.done)
		lines := bufio.NewScanner(out)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			p.mu.Lock()
			p.out.WriteString(lines.Text() + "\n")
			p.mu.Unlock()
			if see != nil {
				see(lines.Text())
			}
		}
		_ = cmd.Wait() // how it ended is in ProcessState
	}()
	t.Cleanup(func() { p.end(10 * time.Second) })
	return p
}

// output is what it has printed so far.
func (p *process) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// ended returns the exit status once it has ended by itself.
func (p *process) ended(t *testing.T, limit time.Duration) int {
	t.Helper()
	limit = max(limit, patience)
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(limit):
		t.Fatalf("%v has not ended within %v; it said:\n%s", p.cmd.Args, limit, p.output())
		return 0
	}
}

// lives fails the test if it has ended.
func (p *process) lives(t *testing.T) {
	t.Helper()
	select {
	case <-p.done:
		t.Fatalf("%v has ended (%v); it said:\n%s", p.cmd.Args, p.cmd.ProcessState, p.output())
	default:
	}
}

// end asks it to end and, past the limit, kills it.
func (p *process) end(limit time.Duration) {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
		return
	case <-time.After(limit):
	}
	_ = p.cmd.Process.Kill()
	<-p.done
}

// said returns nil once the output holds the text.
func (p *process) said(text string) func() error {
	return func() error {
		if out := p.output(); !bytes.Contains([]byte(out), []byte(text)) {
			return fmt.Errorf("it said:\n%s", out)
		}
		return nil
	}
}
