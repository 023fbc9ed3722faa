package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"
)

// initRequest is one order to a node's PID 1: a line of JSON, answered by one
// line, over the Unix socket init.sock in the node's folder.
type initRequest struct {
	Op     string    `json:"op"` // start, signal, list
	Spec   *procSpec `json:"spec,omitempty"`
	Name   string    `json:"name,omitempty"`
	Signal int       `json:"signal,omitempty"`
}

// procSpec is a program that PID 1 runs.
type procSpec struct {
	Name string   `json:"name"`
	Argv []string `json:"argv"`
	Env  []string `json:"env,omitempty"`
	Dir  string   `json:"dir,omitempty"`
	Log  string   `json:"log"`
	// Instrument runs it before all ordinary programs (asInstrument).
	Instrument bool `json:"instrument,omitempty"`
	// Nice is its scheduling priority, as its systemd unit would set it.
	Nice int `json:"nice,omitempty"`
	// TimerSlack is how late its timers may be, likewise; 0: as the kernel has it.
	TimerSlack time.Duration `json:"timer_slack,omitempty"`
	// Stores gives it the store of descriptors, as FileDescriptorStoreMax= would.
	Stores bool `json:"stores,omitempty"`
	// Again starts it again after it ended, so long after; zero: never. The
	// agent is never started again by itself: whether it comes back is a fault's business.
	Again time.Duration `json:"again,omitempty"`
}

// procStatus is what PID 1 knows of a program.
type procStatus struct {
	Name    string `json:"name"`
	PID     int    `json:"pid"` // in the node's PID namespace
	Running bool   `json:"running"`
	Exit    string `json:"exit,omitempty"` // how it ended last
	Starts  int    `json:"starts"`
}

type initReply struct {
	Error string       `json:"error,omitempty"`
	Procs []procStatus `json:"procs,omitempty"`
}

// askInit sends one order and waits for its answer, at most two seconds.
func askInit(ctx context.Context, socket string, req initRequest) (initReply, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return initReply{}, fmt.Errorf("reach the node's PID 1: %w", err)
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	if err := json.NewEncoder(conn).Encode(req); err != nil {
		return initReply{}, fmt.Errorf("order %s: %w", req.Op, err)
	}
	var reply initReply
	if err := json.NewDecoder(conn).Decode(&reply); err != nil {
		return initReply{}, fmt.Errorf("read the answer to %s: %w", req.Op, err)
	}
	if reply.Error != "" {
		return reply, errors.New(reply.Error)
	}
	return reply, nil
}
