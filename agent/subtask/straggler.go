package subtask

import (
	"bytes"
	"fmt"
	"runtime"
	"strings"
)

// Straggler is something that survived a stop.
type Straggler struct {
	Name  string
	Child bool   // a child process, else a goroutine
	Stack string // a goroutine's stack, "" if it ended meanwhile; a process's starter's while it starts
}

// StragglerError tells what survived a stop.
type StragglerError struct {
	Activity   string
	Cause      error
	Stragglers []Straggler
}

// Error names the stragglers, without their stacks.
func (e *StragglerError) Error() string {
	var names []string
	for _, s := range e.Stragglers {
		kind := "goroutine"
		if s.Child {
			kind = "child process"
		}
		names = append(names, fmt.Sprintf("%s %s", kind, s.Name))
	}
	return fmt.Sprintf("stop %s (%v): still there: %s", e.Activity, e.Cause, strings.Join(names, ", "))
}

// Unwrap returns the cause of the stop.
func (e *StragglerError) Unwrap() error { return e.Cause }

// PanicError is the error of a subtask that panicked.
type PanicError struct {
	Value any
	Stack string
}

// Error says what it panicked with, without the stack.
func (e *PanicError) Error() string { return fmt.Sprintf("panic: %v", e.Value) }

// stragglers names what is left, with stacks. It is empty if the last has ended
// meanwhile.
func (r *Registry) stragglers() []Straggler {
	var left []Straggler
	stacks := allStacks()
	for _, t := range r.list() {
		left = append(left, Straggler{Name: t.name, Child: t.process, Stack: stacks[t.goroutine]})
	}
	return left
}

// goroutineID reads the running goroutine's number off its stack's first line,
// "goroutine 12 [running]:". It serves to name a straggler, nothing else.
func goroutineID() string {
	buf := make([]byte, 64)
	return idOf(buf[:runtime.Stack(buf, false)])
}

func idOf(stack []byte) string {
	rest, ok := bytes.CutPrefix(stack, []byte("goroutine "))
	if !ok {
		return ""
	}
	id, _, _ := bytes.Cut(rest, []byte(" "))
	return string(id)
}

// maxStacks bounds the dump of all goroutines, in bytes.
const maxStacks = 8 << 20

// allStacks returns every goroutine's stack by its number.
func allStacks() map[string]string {
	buf := make([]byte, 64<<10)
	n := runtime.Stack(buf, true)
	for n == len(buf) && n < maxStacks {
		buf = make([]byte, 2*n)
		n = runtime.Stack(buf, true)
	}
	stacks := map[string]string{}
	for stack := range bytes.SplitSeq(buf[:n], []byte("\n\n")) {
		if id := idOf(stack); id != "" {
			stacks[id] = string(stack)
		}
	}
	return stacks
}
