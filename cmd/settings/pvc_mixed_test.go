package settings

import (
	"strings"
	"testing"
)

// Keys of PVC's in a file of this program's make it none of PVC's: it would lose
// what it has of ours.
func TestOurFileWithKeysOfPVCs(t *testing.T) {
	ours := strings.Replace(least, "cluster: {name: demo}", "cluster: {name: demo, coordinator_nodes: [hv1, hv2]}", 1) +
		"timer: {keepalive_interval: 5}\nceph: {}\naddresses: [{name: a, cidr: 10.0.0.1/24, interface: eth0}]\n"
	_, _, err := InspectNode(write(t, ours), nil)
	if err == nil || !strings.Contains(err.Error(), "timer") || !strings.Contains(err.Error(), "coordinator_nodes") {
		t.Errorf("%v", err)
	}
}
