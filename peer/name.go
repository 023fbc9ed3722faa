package peer

import (
	"crypto/x509"
	"fmt"
	"net/url"
	"regexp"
	"strings"

	"pvc.internal/cluster"
)

// scheme is what a name in a certificate begins with, as SPIFFE has it: the
// trust domain is the cluster, the path the role and the node.
const scheme = "spiffe"

// RoleNode is the role of a certificate with which a node asks and answers.
const RoleNode = "node"

// clusterLabels is what may stand as the host of a name: a cluster's name
// without empty labels, since X.509 reads it as a domain.
var clusterLabels = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*$`)

// Name is whom a certificate speaks for.
type Name struct {
	Cluster string
	Role    string         // RoleNode, or something that is no peer
	Node    cluster.NodeID // empty: the authority's own name
}

// NodeName returns the name of a cluster's node.
func NodeName(clusterName string, n cluster.NodeID) Name {
	return Name{Cluster: clusterName, Role: RoleNode, Node: n}
}

// URI returns the name as it stands in a certificate.
func (n Name) URI() *url.URL {
	u := &url.URL{Scheme: scheme, Host: n.Cluster}
	if n.Node != "" {
		u.Path = "/" + n.Role + "/" + string(n.Node)
	}
	return u
}

// String is the URI.
func (n Name) String() string { return n.URI().String() }

// CheckCluster reports why the name cannot stand in a certificate.
func CheckCluster(name string) error {
	if len(name) > 63 || !clusterLabels.MatchString(name) {
		return fmt.Errorf("%q cannot stand in a certificate as a cluster's name: use 1–63 letters, digits, '-', '_' or single dots inside, beginning with a letter or digit", name)
	}
	return nil
}

// NameOf reads the name from a certificate. There must be exactly one URI: with
// two it would be the reader's choice who the certificate speaks for.
func NameOf(cert *x509.Certificate) (Name, error) {
	if len(cert.URIs) != 1 {
		return Name{}, fmt.Errorf("it has %d URIs among its names, not exactly one like %s", len(cert.URIs), NodeName("CLUSTER", "NODE"))
	}
	u := cert.URIs[0]
	bad := fmt.Errorf("its name %q is not of the form %s", u, NodeName("CLUSTER", "NODE"))
	if u.Scheme != scheme || u.User != nil || u.RawQuery != "" || u.Fragment != "" || CheckCluster(u.Host) != nil {
		return Name{}, bad
	}
	if u.Path == "" {
		return Name{Cluster: u.Host}, nil
	}
	role, node, ok := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	if !ok || role == "" || cluster.NodeID(node).Validate() != nil {
		return Name{}, bad
	}
	return Name{Cluster: u.Host, Role: role, Node: cluster.NodeID(node)}, nil
}
