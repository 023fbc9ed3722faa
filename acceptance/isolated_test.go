package acceptance

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
	"pvc.internal/sandbox"
)

// cutOff drops what a node sends to ZooKeeper, and that alone, until the
// returned function is called.
func (c *testCluster) cutOff(t *testing.T, node string) (heal func()) {
	t.Helper()
	nft := func(rules string) error {
		cmd := c.inside(t, node, "nft", "-f", "-")
		cmd.Stdin = strings.NewReader(rules)
		return cmd.Run()
	}
	if err := nft("table inet cut { chain out { type filter hook output priority 0; tcp dport 2181 drop; }; }\n"); err != nil {
		t.Fatalf("cut %s off from ZooKeeper: %v", node, err)
	}
	return func() {
		if err := nft("delete table inet cut\n"); err != nil {
			t.Errorf("heal %s: %v", node, err)
		}
	}
}

// A node that has lost ZooKeeper alone answers the others directly: it is
// isolated, not dead, and nobody shoots it before it must have stopped its work
// by itself (protocol §5).
func TestANodeThatAnswersTheOthersIsNotShot(t *testing.T) {
	c := newCluster(t, 3, 1)
	defer c.tellOnFailure(t)()
	node := c.Nodes()[3].Plan.Name
	log := filepath.Join(c.Dir(), c.primary(t), "log", "pvcnoded.log")
	judged := func(as string) bool {
		raw, err := os.ReadFile(log)
		return err == nil && strings.Contains(string(raw), `"peer":"`+string(node)+`","from":"late","to":"`+as+`"`)
	}
	timing := cluster.ProfileLAN()
	from := len(c.History().Entries())
	heal := c.cutOff(t, string(node))
	began := time.Now()
	for !judged("isolated") {
		if time.Since(began) > timing.SuspectAfter()+3*timing.KeepaliveInterval {
			t.Fatalf("the primary does not judge %s as isolated", node)
		}
		time.Sleep(100 * time.Millisecond)
	}
	// Its session has ended long since, and by that alone it would be dead.
	time.Sleep(timing.SessionTimeout - timing.KeepaliveInterval/2)
	heal()
	c.rests(t)
	for _, e := range c.History().Entries()[from:] {
		if e.Node == node && (e.Kind == sandbox.KindFence || e.Kind == sandbox.KindPower) {
			t.Errorf("%s was touched: %+v", node, e)
		}
	}
	if judged("dead") {
		t.Errorf("the primary judged %s as dead", node)
	}
}
