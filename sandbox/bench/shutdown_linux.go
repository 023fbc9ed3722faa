package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
	"pvc.internal/sandbox"
)

// agentProgram is the agent's name among a node's programs.
const agentProgram = "pvcnoded"

// reconfigure edits the settings of every node's agent and starts it again,
// one node after the other. The cluster is of no use to another part then.
func (l *lab) reconfigure(ctx context.Context, edit func(settings map[string]any)) error {
	l.key = ""
	for _, n := range l.Nodes() {
		path := filepath.Join(n.Dir, "pvcnoded.yaml")
		raw, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		var settings map[string]any
		if err := yaml.Unmarshal(raw, &settings); err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		edit(settings)
		if raw, err = yaml.Marshal(settings); err != nil {
			return err
		}
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			return err
		}
		if err := n.Signal(ctx, agentProgram, unix.SIGTERM); err != nil {
			return err
		}
		if err := l.agentEnds(ctx, n, 30*time.Second); err != nil {
			return err
		}
		if err := n.Start(ctx, agentProgram); err != nil {
			return err
		}
		if err := l.WaitConverged(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (l *lab) agentEnds(ctx context.Context, n *sandbox.Node, limit time.Duration) error {
	return await(ctx, limit, func() error {
		have, err := n.Programs(ctx)
		if err == nil && have[agentProgram].Running {
			err = fmt.Errorf("the agent of %s has not ended", n.Plan.Name)
		}
		return err
	})
}

// slowService takes 60 s to end, whatever it is told.
const slowService = `trap 'sleep 60; exit 0' TERM; while :; do sleep 1 & wait $!; done`

func measureShutdown(ctx context.Context, b *bench) error {
	l, err := b.cluster(ctx, sandbox.Options{NoHooks: true, Coordinators: 3})
	if err != nil {
		return err
	}
	err = l.reconfigure(ctx, func(settings map[string]any) {
		settings["services"] = []map[string]any{{"name": "slow", "kind": "hook", "command": []string{"/bin/sh", "-c", slowService},
			"start_timeout": "10s", "stop_timeout": "70s"}}
	})
	if err != nil {
		return err
	}
	n := l.Node(l.Status(ctx).Primary)
	if n == nil {
		return errors.New("nobody is primary")
	}
	from, wall := now(), time.Now()
	if err := n.Signal(ctx, agentProgram, unix.SIGTERM); err != nil {
		return err
	}
	if err := l.agentEnds(ctx, n, 120*time.Second); err != nil {
		return err
	}
	took := time.Since(wall)
	if err := pause(ctx, time.Second); err != nil {
		return err
	}
	log, err := l.log(wall)
	if err != nil {
		return err
	}
	b.addShutdown(l, n.Plan.Name, log, from, took)
	return nil
}

// addShutdown tells what the others saw of the node that shut down.
func (b *bench) addShutdown(l *lab, node cluster.NodeID, log []txn, from cluster.Instant, took time.Duration) {
	k := cluster.ProfileLAN().KeepaliveInterval
	missed, worst := 0.0, 0.0
	for _, d := range intervals(log, keepalivePath(string(node))) {
		if d > k*3/2 {
			missed++
		}
		worst = max(worst, millis(d-k))
	}
	suspected := 0.0
	for _, e := range l.History().Since(from) {
		if e.Node == node && (e.Kind == sandbox.KindFence || e.Kind == sandbox.KindDaemon && e.Text == string(cluster.DaemonDead)) {
			suspected++
		}
	}
	states, after := daemonStates(log, string(node))
	states = slices.Compact(states) // the same is written again each minute
	wrong := 1.0
	if strings.Join(states, " ") == fmt.Sprintf("%s %s", cluster.DaemonShutdown, cluster.DaemonStop) {
		wrong = 0
	}
	b.add(figure("shutdown with a service of 60 s: took", "ms", []float64{millis(took)}, none), "states written: "+strings.Join(states, ", "))
	b.add(figure("shutdown: keepalives missed", "", []float64{missed}, atMost(0)), fmt.Sprintf("worst lateness %s", quantity(worst, "ms")))
	b.add(figure("shutdown: suspicions and fences of the node", "", []float64{suspected}, atMost(0)), "")
	b.add(figure("shutdown: states other than shutdown, then stop", "", []float64{wrong}, atMost(0)), "")
	b.add(figure("shutdown: writes of the node after stop", "", []float64{after}, atMost(0)), "")
}

// daemonStates lists the states that the node wrote, and how many of its
// writes came after the last one.
func daemonStates(log []txn, node string) (states []string, after float64) {
	var session int64
	for _, t := range log {
		if t.keepaliveNode() == node && !t.failed {
			session = t.session
		}
	}
	for _, t := range log {
		if t.failed || t.session != session {
			continue
		}
		if data, ok := t.sets("/nodes/" + node + "/daemonstate"); ok {
			states, after = append(states, string(data)), 0
		} else if len(t.writes) > 0 {
			after++
		}
	}
	return states, after
}
