package main

import (
	"testing"

	"pvc.internal/agent"
	"pvc.internal/agent/collector"
	"pvc.internal/cluster"
	"pvc.internal/cmd/settings"
)

// Whose records a daemon follows: what a hypervisor asks of ZooKeeper must not
// grow with the number of nodes.
func TestWhoseRecordsADaemonFollows(t *testing.T) {
	for _, c := range []struct {
		mode cluster.Mode
		all  bool
		one  cluster.NodeID
	}{{cluster.Coordinator, true, ""}, {cluster.Hypervisor, false, "hv7"}} {
		s := settings.Node{Timing: cluster.ProfileLAN()}
		s.Node.Name, s.Node.Mode = "hv7", c.mode
		s.ZooKeeper.Servers = []string{"zk1:2181"}
		config, err := zooKeeperConfig(s)
		if err != nil || config.WatchNodes != c.all || config.WatchNode != c.one {
			t.Errorf("a %s follows all: %v, one: %q, %v", c.mode, config.WatchNodes, config.WatchNode, err)
		}
	}
}

// What the agent has renewed when copies come and go is what is made here.
func TestTheCopiesCollectorHasTheNameThatIsRenewed(t *testing.T) {
	if name := collector.NewCopies(nil, nil).Name(); name != agent.CopiesCollector {
		t.Errorf("it is named %q, and %q is renewed", name, agent.CopiesCollector)
	}
}
