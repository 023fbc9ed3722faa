package peertest

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"pvc.internal/cluster"
	"pvc.internal/peer"
	"pvc.internal/peer/pki"
)

// Authority issues certificates for a test, good and bad ones.
type Authority struct {
	*pki.Authority
	PEM []byte
}

// NewAuthority makes one that begins at now (in a bubble: the bubble's time).
func NewAuthority(t testing.TB, clusterName string, now time.Time) *Authority {
	t.Helper()
	a, certPEM, _, err := pki.NewAuthority(clusterName, now)
	if err != nil {
		t.Fatal(err)
	}
	return &Authority{a, certPEM}
}

// Files writes a node's three files into a folder of the test. Each edit may
// spoil the certificate before it is signed.
func (a *Authority) Files(t testing.TB, n cluster.NodeID, now time.Time, edit ...func(*x509.Certificate)) peer.Files {
	t.Helper()
	return a.WriteFiles(t, t.TempDir(), n, now, edit...)
}

// WriteFiles is Files into a folder of the caller's.
func (a *Authority) WriteFiles(t testing.TB, dir string, n cluster.NodeID, now time.Time, edit ...func(*x509.Certificate)) peer.Files {
	t.Helper()
	key, keyPEM, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: string(n)},
		URIs:      []*url.URL{peer.NodeName(a.Cluster, n).URI()},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(pki.NodeDays * 24 * time.Hour),
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	for _, e := range edit {
		e(template)
	}
	certPEM, err := a.Sign(template, &key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	files := peer.Files{CA: filepath.Join(dir, "ca.pem"), Cert: filepath.Join(dir, "node.pem"), Key: filepath.Join(dir, "node.key")}
	for path, content := range map[string][]byte{files.CA: a.PEM, files.Cert: certPEM, files.Key: keyPEM} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return files
}
