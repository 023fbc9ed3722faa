package peer_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"pvc.internal/peer"
)

func TestOwnSideOfTheLoopbackIsFine(t *testing.T) {
	if err := peer.OwnSide("127.0.0.1:7371"); err != nil {
		t.Error(err)
	}
}

// In a namespace of its own: no route, a cable pulled, and all well.
func TestOwnSideInANamespace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes a network namespace")
	}
	if addr := os.Getenv("PVC_OWN_SIDE"); addr != "" {
		fmt.Printf("verdict: %v\n", peer.OwnSide(addr))
		return
	}
	for _, program := range []string{"ip", "unshare"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip("needs " + program)
		}
	}
	const up = "ip link add name own type veth peer name far && ip addr add 10.77.0.1/24 dev own && ip link set own up && ip link set far up && " +
		"for i in $(seq 100); do ip link show own | grep -q 'state UP' && break; sleep 0.1; done; " // the kernel tells it a moment later
	for name, c := range map[string]struct{ setup, says string }{
		"well":       {up, "verdict: <nil>"},
		"no route":   {"", "no way to 10.77.0.2:7371"},
		"no carrier": {up + "ip link set far down && for i in $(seq 100); do ip link show own | grep -q 'state UP' || break; sleep 0.1; done; ", "own interface own, which leads to 10.77.0.2:7371, is down or has no carrier"},
		"down":       {up + "ip link set own down && ", "no way to 10.77.0.2:7371"},
	} {
		cmd := exec.Command("unshare", "--net", "sh", "-c", c.setup+"exec "+os.Args[0]+" -test.run '^TestOwnSideInANamespace$'")
		cmd.Env = append(os.Environ(), "PVC_OWN_SIDE=10.77.0.2:7371")
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), c.says) {
			t.Errorf("%s: %v, %s", name, err, out)
		}
	}
}
