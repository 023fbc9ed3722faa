package role

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
)

var update = flag.Bool("update", false, "rewrite the golden scripts' outcome; commit only what you understand")

// TestScripts runs testdata/*.txt: commands above the line "----", and below it
// what the cluster did, read like a log. Latencies are 1 ms, so the times are
// the protocol's own.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			raw, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			commands, want, _ := strings.Cut(string(raw), "\n----\n")
			got := runScript(t, commands)
			if *update {
				if err := os.WriteFile(file, []byte(commands+"\n----\n"+got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != want {
				t.Errorf("%s: what happened differs; got\n%s\nwant\n%s", file, got, want)
			}
		})
	}
}

func runScript(t *testing.T, commands string) string {
	w := &world{t: t, rng: rand.New(rand.NewPCG(1, 1)), now: cluster.Instant(time.Second), timing: lan(), fixed: true,
		loseReply: map[string]string{}, crashAt: map[string]string{}, recorded: map[string]int{}}
	w.store.recs = map[cluster.Key]*znode{leaseKey: {value: cluster.Lease{Version: 1}}, wishKey: {value: cluster.NoNode}}
	for _, line := range strings.Split(commands, "\n") {
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		w.logf("> %s", strings.Join(words, " "))
		w.command(words)
	}
	var out strings.Builder
	for _, line := range w.log {
		if !strings.Contains(line, "role.renew") && !strings.Contains(line, "role.ready") {
			out.WriteString(line + "\n")
		}
	}
	return out.String()
}

func (w *world) node(name string) *modelNode {
	for _, n := range w.nodes {
		if string(n.id) == name {
			return n
		}
	}
	w.t.Fatalf("no node %s", name)
	return nil
}

func (w *world) duration(s string) time.Duration {
	d, err := time.ParseDuration(s)
	if err != nil {
		w.t.Fatal(err)
	}
	return d
}

func (w *world) command(words []string) {
	arg := func(i int) string {
		if i < len(words) {
			return words[i]
		}
		return ""
	}
	switch words[0] {
	case "nodes":
		var count int
		_, _ = fmt.Sscan(arg(1), &count)
		if arg(2) == "services" {
			w.services = []cluster.ServiceSpec{{Name: "hook", StartTimeout: time.Second, StopTimeout: time.Second}}
		}
		w.deadProof = arg(2) == "deadproof"
		w.failsafe.on = arg(2) == "failsafe"
		for i := range count {
			w.nodes = append(w.nodes, &modelNode{id: cluster.NodeID(fmt.Sprintf("hv%d", i+1)), w: w})
		}
		for _, n := range w.nodes {
			n.boot()
		}
	case "run":
		w.runUntil(w.now.Add(w.duration(arg(1))))
	case "wish":
		w.wish(arg(1))
	case "kill":
		w.node(arg(1)).kill()
	case "power-loss":
		w.node(arg(1)).powerLoss()
	case "boot":
		w.node(arg(1)).boot()
	case "pause":
		n := w.node(arg(1))
		n.paused = w.now.Add(w.duration(arg(2)))
		w.after(w.duration(arg(2))+time.Microsecond, n.resume)
	case "cut":
		w.node(arg(1)).cut = true
	case "heal":
		w.node(arg(1)).cut = false
		w.publish()
	case "stop":
		w.node(arg(1)).step(Event{Stop: true})
	case "suspend":
		w.node(arg(1)).step(Event{Suspended: true})
	case "fenced":
		n := w.node(arg(1))
		w.store.zxid++
		w.store.recs[cluster.Key{Kind: cluster.KeyFence, Node: n.id}] = &znode{value: cluster.FenceRecord{
			ID: "f", Node: n.id, Incarnation: n.inc, Stage: cluster.FenceDone, Proof: "verified_off"}, mzxid: w.store.zxid}
		w.publish()
	case "unhealthy":
		w.node(arg(1)).unhealthy = true
	case "maintenance":
		w.maintenance = arg(1) == "on"
		w.publish()
	case "stall":
		w.store.stall = w.now.Add(w.duration(arg(1)))
	case "part":
		w.part(w.node(arg(1)), w.node(arg(2)), true)
	case "join":
		w.join()
	case "node-ended":
		w.node(arg(1)).step(Event{NodeEnded: "no keepalive was acknowledged"})
	case "seen": // a node tells of an epoch that it has seen
		var e cluster.Epoch
		_, _ = fmt.Sscan(arg(2), &e)
		w.node(arg(1)).step(Event{EpochSeen: e})
	case "lose-reply":
		w.loseReply[arg(1)] = arg(2)
	case "crash-at":
		w.crashAt[arg(1)] = arg(2)
	default:
		w.t.Fatalf("unknown command %q", words[0])
	}
}
