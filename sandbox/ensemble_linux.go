package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
)

// fourLetter asks one ZooKeeper server one of its four-letter words, from the
// client's namespace.
func (s *Sandbox) fourLetter(ctx context.Context, n *Node, word string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	conn, err := s.net.client.dial(ctx, "tcp", fmt.Sprintf("%s:%d", n.Plan.Cluster.Addr(), zkClientPort))
	if err != nil {
		return "", fmt.Errorf("reach the ZooKeeper server of %s: %w", n.Plan.Name, err)
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	if _, err := io.WriteString(conn, word); err != nil {
		return "", fmt.Errorf("ask the ZooKeeper server of %s for %q: %w", n.Plan.Name, word, err)
	}
	raw, err := io.ReadAll(io.LimitReader(conn, 1<<16))
	if len(raw) > 0 {
		return string(raw), nil // the server may end the connection with a reset
	}
	return "", fmt.Errorf("ask the ZooKeeper server of %s for %q: %w", n.Plan.Name, word, err)
}

// zkMode returns what a server says it is: "leader", "follower", "standalone",
// or "" while it does not serve.
func (s *Sandbox) zkMode(ctx context.Context, n *Node) string {
	answer, err := s.fourLetter(ctx, n, "srvr")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(answer) {
		if mode, ok := strings.CutPrefix(strings.TrimSpace(line), "Mode: "); ok {
			return mode
		}
	}
	return ""
}

// ZooKeeperLeader returns the node whose server leads the ensemble; a lone
// server leads itself.
func (s *Sandbox) ZooKeeperLeader(ctx context.Context) (*Node, error) {
	for _, n := range s.coordinators() {
		if !n.Powered() {
			continue
		}
		if mode := s.zkMode(ctx, n); mode == "leader" || mode == "standalone" {
			return n, nil
		}
	}
	return nil, errors.New("no ZooKeeper server says that it leads")
}

// waitEnsemble waits until every coordinator's server serves.
func (s *Sandbox) waitEnsemble(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, ensembleTimeout)
	defer cancel()
	var care nurse
	var waiting []*Node
	for {
		var still []*Node
		for _, n := range s.coordinators() {
			if s.zkMode(ctx, n) == "" {
				still = append(still, n)
			}
		}
		if len(still) == 0 {
			return nil
		}
		if ctx.Err() == nil { // else nobody was asked
			waiting = still
			care.look(ctx, waiting)
		}
		select {
		case <-ctx.Done():
			var names []string
			var said []byte
			for _, n := range waiting {
				names = append(names, string(n.Plan.Name))
				said = n.serverLog()
			}
			return fmt.Errorf("the ZooKeeper servers of %s do not serve: %w; the last said last: %s",
				strings.Join(names, ", "), context.Cause(ctx), said[max(0, len(said)-600):])
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// serverLog is what the node's ZooKeeper server has logged.
func (n *Node) serverLog() []byte {
	text, _ := os.ReadFile(filepath.Join(n.Dir, "log", progZooKeeper+".log"))
	return text
}

// deaf reports, by its log, that a ZooKeeper server hears of no election any
// more and so stays out of the ensemble until it is started again. Its thread
// that hears of them dies where another's vote arrives while it gives up
// leading (a null pointer in FastLeaderElection's WorkerReceiver, seen with 3.8.0).
func deaf(log []byte) bool {
	died := bytes.LastIndex(log, []byte("Thread Thread[WorkerReceiver["))
	return died > bytes.LastIndex(log, []byte("QuorumPeerConfig - Reading configuration from"))
}

// nurse starts servers again that are deaf, each once, as an operator would:
// what is tested is how the cluster bears the ensemble's troubles, and this one
// never ends by itself.
type nurse struct {
	looked  cluster.Instant
	started map[*Node]bool
}

// look treats those that do not serve; it may be called as often as one likes.
func (u *nurse) look(ctx context.Context, waiting []*Node) {
	if now().Sub(u.looked) < time.Second {
		return
	}
	u.looked = now()
	for _, n := range waiting {
		if u.started[n] || !n.Powered() || !deaf(n.serverLog()) {
			continue
		}
		if u.started == nil {
			u.started = map[*Node]bool{}
		}
		u.started[n] = true
		n.sandbox.history.Add(Entry{Kind: KindNote, Name: "ensemble", Node: n.Plan.Name,
			Text: "its ZooKeeper server hears of no election any more: it is started again"})
		if n.Signal(ctx, progZooKeeper, unix.SIGKILL) == nil {
			n.restarted(ctx, progZooKeeper)
		}
	}
}

// restarted starts a program that has been killed once its end is noticed.
func (n *Node) restarted(ctx context.Context, program string) {
	for range 100 {
		if have, err := n.Programs(ctx); err != nil || !have[program].Running {
			break
		}
		if pause(ctx, 20*time.Millisecond) != nil {
			return
		}
	}
	_ = n.ensureRunning(ctx, program) // who waits for it says whether it runs
}

func (s *Sandbox) coordinators() []*Node {
	var out []*Node
	for _, n := range s.nodes {
		if n.Plan.Mode == cluster.Coordinator {
			out = append(out, n)
		}
	}
	return out
}
