package sandbox

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync"
	"time"

	"pvc.internal/cluster"
)

// Status is a sandbox that is up, for people and programs.
type Status struct {
	Name    string         `json:"name"`
	Profile string         `json:"profile"`
	Dir     string         `json:"dir"`
	API     string         `json:"api,omitempty"`
	Primary cluster.NodeID `json:"primary,omitempty"`
	Leader  cluster.NodeID `json:"zookeeper_leader,omitempty"`
	Nodes   []NodeStatus   `json:"nodes"`
	Missing string         `json:"missing,omitempty"` // to a cluster at rest
}

// NodeStatus is one of its nodes.
type NodeStatus struct {
	Name     cluster.NodeID `json:"name"`
	Mode     cluster.Mode   `json:"mode"`
	Powered  bool           `json:"powered"`
	PID      int            `json:"pid,omitempty"` // of its PID 1, on this machine
	Address  string         `json:"address"`
	BMC      string         `json:"bmc"`
	Programs []procStatus   `json:"programs,omitempty"`
}

// Status tells how the sandbox is.
func (s *Sandbox) Status(ctx context.Context) Status {
	st := Status{Name: s.options.Name, Profile: s.options.Profile, Dir: s.options.Dir, API: s.URL(), Primary: s.holder()}
	if leader, err := s.ZooKeeperLeader(ctx); err == nil {
		st.Leader = leader.Plan.Name
	}
	for _, n := range s.nodes {
		ns := NodeStatus{Name: n.Plan.Name, Mode: n.Plan.Mode, Powered: n.Powered(),
			Address: n.Plan.Cluster.Addr().String(), BMC: n.Plan.BMC.String()}
		if r := n.lastRunning.Load(); r != nil && ns.Powered {
			ns.PID = r.pid
			if reply, err := n.ask(ctx, initRequest{Op: "list"}); err == nil {
				ns.Programs = reply.Procs
			}
		}
		st.Nodes = append(st.Nodes, ns)
	}
	if s.store != nil {
		if snap := s.store.latest(); snap == nil {
			st.Missing = "nothing has been seen of the store yet"
		} else if err := s.unconverged(snap); err != nil {
			st.Missing = err.Error()
		}
	}
	return st
}

// controlRequest is an order to a sandbox that another process holds: one line
// of JSON over control.sock in its folder.
type controlRequest struct {
	Op     string        `json:"op"` // status, script, down
	Script ScriptRequest `json:"script"`
}

// ScriptRequest names a script: its faults one after the other, or drawn at
// random where it says for how long.
type ScriptRequest struct {
	Faults  []string      `json:"faults,omitempty"` // none: all
	Lasting time.Duration `json:"lasting,omitempty"`
	Seed    uint64        `json:"seed,omitempty"`
	Rounds  int           `json:"rounds,omitempty"` // of each fault; 0 is 1
}

// Script makes the script; it fails on a fault that does not exist.
func (r ScriptRequest) Script() (Script, error) {
	faults, err := SelectFaults(r.Faults)
	switch {
	case err != nil:
		return nil, err
	case r.Lasting > 0:
		return Drawn(faults, r.Seed, r.Lasting), nil
	}
	return Repeated(faults, r.Rounds), nil
}

// Timeout bounds the whole script: what is named may take longer than the
// demo's faults.
func (r ScriptRequest) Timeout() time.Duration {
	return demoTimeout + r.Lasting + time.Duration(len(r.Faults)*max(1, r.Rounds))*faultTimeout
}

// faultTimeout is how long a fault that is named may take.
const faultTimeout = 5 * time.Minute

// controlLine is one line of the answer; the last one has Done.
type controlLine struct {
	Text   string  `json:"text,omitempty"`
	Status *Status `json:"status,omitempty"`
	Report *Report `json:"report,omitempty"`
	Error  string  `json:"error,omitempty"`
	Done   bool    `json:"done,omitempty"`
}

// controlPath is the socket of the sandbox in the folder.
func controlPath(dir string) string { return filepath.Join(dir, "control.sock") }

// ServeControl answers orders from other processes until ctx ends or "down" is
// ordered; one script runs at a time. It calls ready once others can order.
func (s *Sandbox) ServeControl(ctx context.Context, ready func()) error {
	ln, err := new(net.ListenConfig).Listen(ctx, "unix", controlPath(s.options.Dir))
	if err != nil {
		return fmt.Errorf("listen for orders: %w", err)
	}
	ready()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	var script sync.Mutex
	for {
		conn, err := ln.Accept()
		if err != nil {
			return nil // ctx has ended, or the listener with it
		}
		wg.Go(func() {
			defer conn.Close()
			if s.order(ctx, conn, &script) {
				cancel()
			}
		})
	}
}

// order carries one order out; true means "down".
func (s *Sandbox) order(ctx context.Context, conn net.Conn, script *sync.Mutex) (down bool) {
	var req controlRequest
	_ = conn.SetReadDeadline(time.Now().Add(2 * time.Second))
	r := bufio.NewReader(conn)
	line, err := r.ReadBytes('\n')
	if err != nil || json.Unmarshal(line, &req) != nil {
		return false
	}
	_ = conn.SetReadDeadline(time.Time{})
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // whoever ordered a script and goes away ends it
		_, _ = io.Copy(io.Discard, r)
		cancel()
	}()
	e := json.NewEncoder(conn)
	switch req.Op {
	case "status":
		st := s.Status(ctx)
		_ = e.Encode(controlLine{Status: &st, Done: true})
	case "down":
		_ = e.Encode(controlLine{Done: true})
		return true
	case "script":
		if !script.TryLock() {
			_ = e.Encode(controlLine{Error: "another script is running on this sandbox", Done: true})
			return false
		}
		defer script.Unlock()
		s.orderedScript(ctx, e, req.Script)
	default:
		_ = e.Encode(controlLine{Error: fmt.Sprintf("unknown order %q", req.Op), Done: true})
	}
	return false
}

func (s *Sandbox) orderedScript(ctx context.Context, e *json.Encoder, r ScriptRequest) {
	script, err := r.Script()
	if err != nil {
		_ = e.Encode(controlLine{Error: err.Error(), Done: true})
		return
	}
	ctx, cancel := context.WithTimeout(ctx, r.Timeout())
	defer cancel()
	rep, err := s.Run(ctx, script, lineWriter{e})
	last := controlLine{Report: &rep, Done: true}
	if err != nil && rep.Error == "" {
		last.Error = err.Error()
	}
	_ = e.Encode(last)
}

// lineWriter sends what is printed as answer lines.
type lineWriter struct{ e *json.Encoder }

func (w lineWriter) Write(b []byte) (int, error) {
	if err := w.e.Encode(controlLine{Text: string(b)}); err != nil {
		return 0, err
	}
	return len(b), nil
}

// SelectFaults returns the named faults in the order given; the demo's for none.
func SelectFaults(names []string) ([]Fault, error) {
	var out []Fault
	if len(names) == 0 {
		for _, f := range Faults() {
			if !f.Extra {
				out = append(out, f)
			}
		}
	}
	for _, name := range names {
		f, err := FaultNamed(name)
		if err != nil {
			return nil, err
		}
		out = append(out, f)
	}
	return out, nil
}

// ErrDown says that no sandbox of this name is up.
var ErrDown = errors.New("no such sandbox is up")

// Remote is a sandbox that another process holds.
type Remote struct{ dir string }

func dialControl(ctx context.Context, dir string) (net.Conn, error) {
	dialer := net.Dialer{Timeout: time.Second}
	return dialer.DialContext(ctx, "unix", controlPath(dir))
}

// Find returns the sandbox that is up in the folder, ErrDown if none is.
func Find(dir string) (*Remote, error) {
	conn, err := dialControl(context.Background(), dir)
	if err != nil {
		return nil, fmt.Errorf("%w in %s; `pvc sandbox up` starts one", ErrDown, dir)
	}
	_ = conn.Close()
	return &Remote{dir: dir}, nil
}

func (r *Remote) order(ctx context.Context, req controlRequest, out io.Writer) (controlLine, error) {
	conn, err := dialControl(ctx, r.dir)
	if err != nil {
		return controlLine{}, fmt.Errorf("%w in %s", ErrDown, r.dir)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if err := json.NewEncoder(conn).Encode(req); err != nil {
		return controlLine{}, fmt.Errorf("order %s: %w", req.Op, err)
	}
	d := json.NewDecoder(conn)
	for {
		var l controlLine
		if err := d.Decode(&l); err != nil {
			if ctx.Err() != nil {
				return l, ctx.Err()
			}
			return l, fmt.Errorf("the sandbox's process ended while it carried out %s: %w", req.Op, err)
		}
		if l.Text != "" {
			_, _ = io.WriteString(out, l.Text)
		}
		if l.Done {
			if l.Error != "" {
				return l, errors.New(l.Error)
			}
			return l, nil
		}
	}
}

// Status asks how it is.
func (r *Remote) Status(ctx context.Context) (Status, error) {
	l, err := r.order(ctx, controlRequest{Op: "status"}, io.Discard)
	if err != nil || l.Status == nil {
		return Status{}, err
	}
	return *l.Status, nil
}

// Run runs a script on it.
func (r *Remote) Run(ctx context.Context, script ScriptRequest, out io.Writer) (Report, error) {
	l, err := r.order(ctx, controlRequest{Op: "script", Script: script}, out)
	if l.Report == nil {
		return Report{}, err
	}
	return *l.Report, err
}

// Down ends it and waits, at most 20 s, until nothing is left.
func (r *Remote) Down(ctx context.Context) error {
	st, _ := loadState(r.dir)
	if _, err := r.order(ctx, controlRequest{Op: "down"}, io.Discard); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for st.Supervisor.alive() {
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return fmt.Errorf("process %d, which holds the sandbox, has not ended: %w", st.Supervisor.PID, err)
		}
	}
	return nil
}
