package sandbox

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// network is the hub with its three bridges and the client's namespace.
type network struct {
	hub    *namespace
	client *namespace
	nl     *netlink.Handle // in the hub
}

// buildNetwork makes the bridges and attaches the client to two of them.
func buildNetwork() (*network, error) {
	n := &network{}
	var err error
	if n.hub, err = newNamespace(); err != nil {
		return nil, err
	}
	if n.client, err = newNamespace(); err != nil {
		n.close()
		return nil, err
	}
	if n.nl, err = netlink.NewHandleAt(netns.NsHandle(n.hub.fd())); err != nil {
		n.close()
		return nil, fmt.Errorf("open netlink in the hub: %w", err)
	}
	if err = n.addBridges(); err == nil {
		err = n.attachClient()
	}
	if err != nil {
		n.close()
		return nil, err
	}
	return n, nil
}

func (n *network) addBridges() error {
	if err := n.hub.do(quietNewLinks); err != nil {
		return err
	}
	if err := bringUp(n.nl, "lo"); err != nil {
		return err
	}
	snooping := false
	for _, name := range []string{linkUpstream, linkCluster, linkMgmt} {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		// Of its own: a bridge without one takes the lowest of its ports', which
		// come and go with the nodes, and neighbours would look for a BMC at the
		// old one until they give it up.
		attrs.HardwareAddr = macOf(hubHost, name)
		if err := n.nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}); err != nil {
			return fmt.Errorf("add bridge %s: %w", name, err)
		}
		if err := bringUp(n.nl, name); err != nil {
			return err
		}
	}
	return nil
}

// attachClient gives the client its two interfaces and addresses.
func (n *network) attachClient() error {
	if err := n.client.do(quietNewLinks); err != nil {
		return err
	}
	for _, link := range []string{linkUpstream, linkCluster} {
		if err := n.plug("k-"+link, link, netlink.NsFd(n.client.fd()), macOf(clientHost, link), link); err != nil {
			return err
		}
	}
	return configure(n.client, map[string][]netip.Prefix{
		"lo":         nil,
		linkUpstream: {hostIn(upstreamNet4, clientHost), hostIn(upstreamNet6, clientHost)},
		linkCluster:  {hostIn(clusterNet4, clientHost)},
	})
}

// plug makes a veth pair: port is its end in the hub, on the bridge; the other
// end, with the MAC and name given, goes to the namespace peerNS.
func (n *network) plug(port, peer string, peerNS any, mac net.HardwareAddr, bridge string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = port
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: peer, PeerHardwareAddr: mac, PeerNamespace: peerNS}
	if err := n.nl.LinkAdd(veth); err != nil {
		return fmt.Errorf("add link %s: %w", port, err)
	}
	master, err := n.nl.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", bridge, err)
	}
	if err := n.nl.LinkSetMaster(veth, master); err != nil {
		return fmt.Errorf("put %s on bridge %s: %w", port, bridge, err)
	}
	return bringUp(n.nl, port)
}

func portName(p NodePlan, link string) string { return fmt.Sprintf("%s-%s", link[:1], p.Name) }

// attachNode wires a node whose PID 1 is the process pid.
func (n *network) attachNode(p NodePlan, pid int) error {
	for _, link := range []string{linkUpstream, linkCluster, linkMgmt} {
		if err := n.plug(portName(p, link), link, netlink.NsPid(pid), p.MAC(link), link); err != nil {
			return err
		}
	}
	ns, err := namespaceOf(pid)
	if err != nil {
		return err
	}
	defer ns.close()
	return configure(ns, map[string][]netip.Prefix{
		"lo":         nil,
		linkUpstream: {p.Upstream, p.Up6},
		linkCluster:  {p.Cluster},
		linkMgmt:     {p.Mgmt},
	})
}

// setPorts takes the hub's end of the node's links up or down. With a port
// down the node's own interface loses its carrier.
func (n *network) setPorts(p NodePlan, up bool, links ...string) error {
	var errs []error
	for _, link := range links {
		port, err := n.nl.LinkByName(portName(p, link))
		if err != nil {
			errs = append(errs, fmt.Errorf("find port of %s on %s: %w", p.Name, link, err))
			continue
		}
		if up {
			err = n.nl.LinkSetUp(port)
		} else {
			err = n.nl.LinkSetDown(port)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("set port of %s on %s: %w", p.Name, link, err))
		}
	}
	return errors.Join(errs...)
}

// detachNode removes the node's links; one that is gone already is no error.
func (n *network) detachNode(p NodePlan) {
	for _, link := range []string{linkUpstream, linkCluster, linkMgmt} {
		if port, err := n.nl.LinkByName(portName(p, link)); err == nil {
			_ = n.nl.LinkDel(port)
		}
	}
}

// addHubAddress gives the management bridge an address, for a BMC.
func (n *network) addHubAddress(p netip.Prefix) error {
	bridge, err := n.nl.LinkByName(linkMgmt)
	if err != nil {
		return err
	}
	return addAddress(n.nl, bridge, p)
}

func (n *network) close() {
	if n.nl != nil {
		n.nl.Close()
	}
	n.hub.close()
	n.client.close()
}

// quietNewLinks turns off what would delay or add addresses of its own on the
// links to come: duplicate address detection and router solicitations.
func quietNewLinks() error {
	for file, value := range map[string]string{
		"/proc/sys/net/ipv6/conf/default/accept_dad":           "0",
		"/proc/sys/net/ipv6/conf/all/accept_dad":               "0",
		"/proc/sys/net/ipv6/conf/default/router_solicitations": "0",
		"/proc/sys/net/ipv6/conf/default/disable_ipv6":         "0",
		"/proc/sys/net/ipv6/conf/all/disable_ipv6":             "0",
	} {
		if err := os.WriteFile(file, []byte(value), 0); err != nil {
			return fmt.Errorf("set %s to %s: %w", file, value, err)
		}
	}
	return nil
}

// configure adds the addresses to the namespace's interfaces and brings them up.
func configure(ns *namespace, want map[string][]netip.Prefix) error {
	h, err := netlink.NewHandleAt(netns.NsHandle(ns.fd()))
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	for name, prefixes := range want {
		if err := bringUp(h, name); err != nil {
			return err
		}
		link, err := h.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find interface %s: %w", name, err)
		}
		for _, p := range prefixes {
			if err := addAddress(h, link, p); err != nil {
				return fmt.Errorf("add %s to %s: %w", p, name, err)
			}
		}
	}
	return nil
}

func addAddress(h *netlink.Handle, link netlink.Link, p netip.Prefix) error {
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
	if p.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	return h.AddrAdd(link, addr)
}

func bringUp(h *netlink.Handle, name string) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", name, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring %s up: %w", name, err)
	}
	return nil
}
