package sandbox

import (
	"fmt"
	"net"
	"net/netip"

	"pvc.internal/cluster"
)

// The networks. They exist inside the sandbox's namespaces only, so that two
// sandboxes never meet and the machine's own routes are untouched.
var (
	upstreamNet4 = netip.MustParsePrefix("192.0.2.0/24")
	upstreamNet6 = netip.MustParsePrefix("fd00:5076:6301::/64")
	clusterNet4  = netip.MustParsePrefix("198.51.100.0/24")
	mgmtNet4     = netip.MustParsePrefix("203.0.113.0/24")
)

// Names of a node's and the client's interfaces; bridges carry the same names.
const (
	linkUpstream = "upstream"
	linkCluster  = "cluster"
	linkMgmt     = "mgmt"
)

// Ports inside the namespaces.
const (
	zkClientPort   = 2181
	zkPeerPort     = 2888
	zkElectionPort = 3888
	apiPort        = 7370
	responderPort  = 7399
	bmcPort        = 623
)

// clientHost is the client's host part on the upstream and cluster networks.
const clientHost = 2

// hubHost numbers the bridges themselves.
const hubHost = 1

// NodePlan is what one node is made of; it follows from its index alone, so
// that a node that is powered on again is the same machine.
type NodePlan struct {
	Index    int // from 0; coordinators first
	Name     cluster.NodeID
	Mode     cluster.Mode
	Upstream netip.Prefix
	Up6      netip.Prefix
	Cluster  netip.Prefix
	Mgmt     netip.Prefix
	BMC      netip.AddrPort // on the management network, outside the node
}

// MAC returns the node's hardware address on the link, locally administered
// and the same after each power-on.
func (p NodePlan) MAC(link string) net.HardwareAddr {
	return macOf(byte(10+p.Index), link)
}

func macOf(host byte, link string) net.HardwareAddr {
	var l byte
	switch link {
	case linkUpstream:
		l = 1
	case linkCluster:
		l = 2
	case linkMgmt:
		l = 3
	}
	return net.HardwareAddr{0x02, 0x50, 0x56, 0x43, l, host}
}

// hostIn returns the host-th address of the network, with its prefix length.
func hostIn(network netip.Prefix, host byte) netip.Prefix {
	raw := network.Addr().AsSlice()
	raw[len(raw)-1] = host
	addr, _ := netip.AddrFromSlice(raw)
	return netip.PrefixFrom(addr, network.Bits())
}

// planNodes lays out the nodes: hv1…hvN, coordinators first.
func planNodes(coordinators, hypervisors int) []NodePlan {
	plans := make([]NodePlan, 0, coordinators+hypervisors)
	for i := range coordinators + hypervisors {
		mode := cluster.Coordinator
		if i >= coordinators {
			mode = cluster.Hypervisor
		}
		host := byte(10 + i)
		plans = append(plans, NodePlan{
			Index: i, Name: cluster.NodeID(fmt.Sprintf("hv%d", i+1)), Mode: mode,
			Upstream: hostIn(upstreamNet4, host), Up6: hostIn(upstreamNet6, host),
			Cluster: hostIn(clusterNet4, host), Mgmt: hostIn(mgmtNet4, host),
			BMC: netip.AddrPortFrom(hostIn(mgmtNet4, 100+host).Addr(), bmcPort),
		})
	}
	return plans
}

// FloatingAddresses are what the primary carries in every sandbox: IPv4 and
// IPv6 upstream and IPv4 on the cluster network.
func FloatingAddresses() []cluster.FloatingAddress {
	return []cluster.FloatingAddress{
		{Name: "upstream-v4", Prefix: hostIn(upstreamNet4, 200), Interface: linkUpstream},
		{Name: "upstream-v6", Prefix: hostIn(upstreamNet6, 200), Interface: linkUpstream},
		{Name: "cluster-v4", Prefix: hostIn(clusterNet4, 200), Interface: linkCluster},
	}
}

// bmcPrefix is the BMC's address with the management network's length.
func bmcPrefix(p NodePlan) netip.Prefix { return netip.PrefixFrom(p.BMC.Addr(), mgmtNet4.Bits()) }
