package sandbox

import (
	"os/exec"
	"runtime"
)

// forker starts the nodes' PID 1 from one thread that lives as long as the
// sandbox: the kernel's parent-death signal is tied to the *thread* that
// forked, and Go ends threads.
type forker struct {
	requests chan forkRequest
	done     chan struct{}
}

type forkRequest struct {
	cmd    *exec.Cmd
	answer chan error
}

func newForker() *forker {
	f := &forker{requests: make(chan forkRequest), done: make(chan struct{})}
	go func() {
		defer close(f.done)
		// Never unlocked: the thread ends with this goroutine, that is
		// after the last node is gone.
		runtime.LockOSThread()
		for r := range f.requests {
			r.answer <- r.cmd.Start()
		}
	}()
	return f
}

func (f *forker) start(cmd *exec.Cmd) error {
	r := forkRequest{cmd: cmd, answer: make(chan error, 1)}
	f.requests <- r
	return <-r.answer
}

func (f *forker) close() {
	close(f.requests)
	<-f.done
}
