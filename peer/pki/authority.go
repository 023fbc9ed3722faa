// Package pki makes a cluster's certificates: one authority, and for each node
// a certificate whose only name is the node's (package peer). It is what
// `pvc pki` runs, and what a sandbox and tests use.
//
// The authority's key signs and does nothing else, and belongs on a machine
// that is not a node, or at least in a backup. A node needs three files:
// ca.pem, node.pem and node.key.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"time"

	"pvc.internal/cluster"
	"pvc.internal/peer"
)

// How long certificates last, and how far back they begin, so that a host whose
// clock is a little slow accepts a new one at once.
const (
	AuthorityDays = 3650
	NodeDays      = 397
	backdated     = time.Hour
)

const day = 24 * time.Hour

// Authority signs certificates.
type Authority struct {
	Cert    *x509.Certificate
	Cluster string
	key     *ecdsa.PrivateKey
}

// NewAuthority makes an authority for a cluster and returns it with its
// certificate and key as PEM.
func NewAuthority(clusterName string, now time.Time) (a *Authority, certPEM, keyPEM []byte, err error) {
	if err := peer.CheckCluster(clusterName); err != nil {
		return nil, nil, nil, err
	}
	key, keyPEM, err := newKey()
	if err != nil {
		return nil, nil, nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "pvc authority of " + clusterName, Organization: []string{"pvc"}},
		URIs:         []*url.URL{peer.Name{Cluster: clusterName}.URI()},
		NotBefore:    now.Add(-backdated), NotAfter: now.Add(AuthorityDays * day),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, // it signs nodes, never another authority
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("sign the authority: %w", err)
	}
	certPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	a, err = ParseAuthority(certPEM, keyPEM)
	return a, certPEM, keyPEM, err
}

// ParseAuthority reads an authority from its two files' contents and checks
// that they belong together.
func ParseAuthority(certPEM, keyPEM []byte) (*Authority, error) {
	cert, err := parseCert(certPEM)
	if err != nil {
		return nil, err
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, err
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, errors.New("the authority's key is not that of its certificate: they were copied from different places")
	}
	name, err := authorityName(cert)
	return &Authority{Cert: cert, Cluster: name, key: key}, err
}

// authorityName returns the cluster that an authority's certificate is of.
func authorityName(cert *x509.Certificate) (string, error) {
	name, err := peer.NameOf(cert)
	switch {
	case err != nil:
		return "", fmt.Errorf("the certificate of %q is no authority of a cluster: %w", cert.Subject.CommonName, err)
	case !cert.IsCA || name.Node != "":
		return "", fmt.Errorf("the certificate of %s is no authority", name)
	}
	return name.Cluster, nil
}

// Issue signs a certificate for a node's public key.
func (a *Authority) Issue(n cluster.NodeID, public *ecdsa.PublicKey, days int, now time.Time) ([]byte, error) {
	if err := n.Validate(); err != nil {
		return nil, err
	}
	ends := now.Add(time.Duration(days) * day)
	if days < 1 || ends.After(a.Cert.NotAfter) {
		return nil, fmt.Errorf("a certificate for %d days is not possible: at least 1, and no longer than its authority, which ends on %s", days, a.Cert.NotAfter.UTC().Format(time.DateOnly))
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: string(n), Organization: []string{"pvc"}},
		URIs:         []*url.URL{peer.NodeName(a.Cluster, n).URI()},
		NotBefore:    now.Add(-backdated), NotAfter: ends,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	if template.NotBefore.Before(a.Cert.NotBefore) {
		template.NotBefore = a.Cert.NotBefore
	}
	return a.Sign(template, public)
}

// Sign signs any template; tests make bad certificates with it.
func (a *Authority) Sign(template *x509.Certificate, public *ecdsa.PublicKey) ([]byte, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, a.Cert, public, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", template.Subject.CommonName, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

func newKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("encode a key: %w", err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// NewKey makes a node's key and returns it as PEM, too.
func NewKey() (*ecdsa.PrivateKey, []byte, error) { return newKey() }

func newSerial() (*big.Int, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make a serial number: %w", err)
	}
	return serial.Add(serial, big.NewInt(1)), nil
}

func parseCert(content []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(content)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("it holds no PEM certificate")
	}
	return x509.ParseCertificate(block.Bytes)
}

func parseKey(content []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(content)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("it holds no PEM key (PRIVATE KEY)")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("it holds a key of another kind (%T), not ECDSA", parsed)
	}
	return key, nil
}
