package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

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
	for {
		var waiting []string
		for _, n := range s.coordinators() {
			if s.zkMode(ctx, n) == "" {
				waiting = append(waiting, string(n.Plan.Name))
			}
		}
		if len(waiting) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			said, _ := os.ReadFile(filepath.Join(s.options.Dir, waiting[0], "log", progZooKeeper+".log"))
			return fmt.Errorf("the ZooKeeper servers of %s do not serve: %w; %s said last: %s",
				strings.Join(waiting, ", "), context.Cause(ctx), waiting[0], said[max(0, len(said)-600):])
		case <-time.After(50 * time.Millisecond):
		}
	}
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
