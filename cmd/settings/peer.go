package settings

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"pvc.internal/peer"
)

// Peer is how this node talks to the others past ZooKeeper. All empty: it does
// not, and then a silent node is judged by its session alone and there is no
// failsafe.
type Peer struct {
	Listen    string  `yaml:"listen"`    // address:port on which it answers
	Advertise string  `yaml:"advertise"` // host:port at which the others find it; default: listen
	TLS       PeerTLS `yaml:"tls"`
}

// PeerTLS names the files that `pvc pki issue` makes.
type PeerTLS struct {
	CA   string `yaml:"ca"`
	Cert string `yaml:"cert"`
	Key  string `yaml:"key"`
}

// Set reports whether nodes talk directly.
func (p Peer) Set() bool { return p != Peer{} }

// Files are the certificate's, as the package that reads them wants them.
func (p Peer) Files() peer.Files { return peer.Files{CA: p.TLS.CA, Cert: p.TLS.Cert, Key: p.TLS.Key} }

// warnings are about an address that works and is of little use.
func (p Peer) warnings() []string {
	host, _, err := net.SplitHostPort(p.Advertise)
	addr, notAddr := netip.ParseAddr(host)
	if err != nil || host != "localhost" && (notAddr != nil || !addr.IsLoopback()) {
		return nil
	}
	return []string{fmt.Sprintf("peer.advertise %s is reached from this host only: nodes on other hosts cannot ask this one", p.Advertise)}
}

// checkPeer returns the section with its default.
func checkPeer(r *report, p Peer, c Cluster) Peer {
	if !p.Set() {
		return p
	}
	host := checkEndpoint(r, "peer.listen", p.Listen, "10.0.0.1:7371")
	addr, err := netip.ParseAddr(host)
	everywhere := p.Listen != "" && (host == "" || err == nil && addr.IsUnspecified())
	switch {
	case p.Advertise != "":
		host := checkEndpoint(r, "peer.advertise", p.Advertise, "hv1.example.org:7371")
		if addr, err := netip.ParseAddr(host); err == nil && addr.IsUnspecified() {
			r.refuse("peer.advertise", "%s is no address that another node could reach: write this node's own", p.Advertise)
		}
	case everywhere:
		r.refuse("peer.advertise", "is missing: peer.listen %s stands for every address of this host, and the other nodes need one of them", p.Listen)
	default:
		p.Advertise = p.Listen
	}
	for _, file := range []struct{ key, path string }{{"ca", p.TLS.CA}, {"cert", p.TLS.Cert}, {"key", p.TLS.Key}} {
		if file.path == "" {
			r.refuse("peer.tls."+file.key, "is missing: `pvc pki issue NODE` makes ca, cert and key")
			continue
		}
		checkFolder(r, "peer.tls."+file.key, file.path)
	}
	if c.Name != "" && clusterName.MatchString(c.Name) {
		if err := peer.CheckCluster(c.Name); err != nil {
			r.refuse("cluster.name", "%v; certificates of peer.tls carry it", err)
		}
	}
	return p
}

// checkEndpoint refuses what is not host:port and returns the host; an empty
// one stands for every address.
func checkEndpoint(r *report, key, s, example string) string {
	if s == "" {
		r.refuse(key, "is missing: write this node's address and a port, as %s", example)
		return ""
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		if addr, err := netip.ParseAddr(s); err == nil {
			example = netip.AddrPortFrom(addr, 7371).String()
		}
		r.refuse(key, "%q is not host:port: write %s", s, example)
		return ""
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		r.refuse(key, "%q: port %q is not a number from 1 to 65535", s, port)
	}
	return host
}

// checkRole returns the section with its defaults.
func checkRole(r *report, f roleFile, p Peer) Role {
	role := Role{RequireDeadProof: f.RequireDeadProof, OnStartFailure: f.OnStartFailure, Failsafe: p.Set(), Gate: f.Gate}
	r.oneOf("role.on_start_failure", role.OnStartFailure, StartFailureKeep, StartFailureYield)
	if f.Failsafe != nil {
		role.Failsafe = *f.Failsafe
	}
	if role.Failsafe && !p.Set() {
		r.refuse("role.failsafe", "true needs nodes that talk directly: set peer.listen and peer.tls, or write false")
	}
	return role
}

// checkNodeLeases returns whether node leases are in use.
func checkNodeLeases(r *report, written *bool, p Peer) bool {
	if written == nil {
		return p.Set()
	}
	if *written && !p.Set() {
		r.refuse("node_leases", "true needs nodes that talk directly: set peer.listen and peer.tls, or write false")
	}
	return *written
}
