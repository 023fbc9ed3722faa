package api

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// authority signs certificates for one test and writes them as PEM files.
type authority struct {
	t      *testing.T
	folder string
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	serial int64
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, folder: t.TempDir()}
	a.cert, a.key = a.issue("ca", &x509.Certificate{Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

func (a *authority) file(name string) string { return filepath.Join(a.folder, name) }

// issue writes NAME.pem and NAME.key.
func (a *authority) issue(name string, c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	a.serial++
	c.SerialNumber = big.NewInt(a.serial)
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	raw, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	a.write(name+".pem", "CERTIFICATE", der)
	a.write(name+".key", "EC PRIVATE KEY", raw)
	made, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return made, key
}

func (a *authority) write(name, kind string, der []byte) {
	if err := os.WriteFile(a.file(name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		a.t.Fatal(err)
	}
}

func (a *authority) client(name string, units ...string) TLSFiles {
	a.issue(name, &x509.Certificate{Subject: pkix.Name{CommonName: name, OrganizationalUnit: units}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return TLSFiles{Cert: a.file(name + ".pem"), Key: a.file(name + ".key"), ClientCA: a.file("ca.pem")}
}

// A client certificate stands for a key; its organisational unit names the
// role. One of a stranger's authority gets no connection.
func TestClientCertificates(t *testing.T) {
	ours := newAuthority(t)
	ours.issue("server", &x509.Certificate{Subject: pkix.Name{CommonName: "server"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}})
	w := newWorld(t, onAnyPort, func(c *Config) {
		c.TLS = TLSFiles{Cert: ours.file("server.pem"), Key: ours.file("server.key"), ClientCA: ours.file("ca.pem")}
	})
	_, stop := w.serve()
	defer func() { _ = stop() }()
	address := "https://" + w.server.Addrs()[0].String()
	client := func(files TLSFiles) *Client {
		c, err := NewClient(ClientConfig{URL: address, TLS: files, Timeout: 5 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	nobody := client(TLSFiles{ClientCA: ours.file("ca.pem")})
	_, err := nobody.Cluster(t.Context())
	expectClass(t, err, cluster.ErrRefused, "X-Api-Key Authentication required.")

	reader := client(ours.client("rita"))
	if _, err := reader.Cluster(t.Context()); err != nil {
		t.Error(err)
	}
	_, err = reader.Switch(t.Context(), "hv2", "", false)
	expectClass(t, err, cluster.ErrRefused, `This needs the role "operate"; "rita" has the role "read".`)

	operator := client(ours.client("olga", "operate"))
	if _, err := operator.Switch(t.Context(), "hv2", "", false); err != nil {
		t.Error(err)
	}
	if by := w.store.history[0].Fields["by"]; by != "olga" {
		t.Errorf("history says it was %q", by)
	}

	stranger := newAuthority(t).client("mallory", "admin")
	stranger.ClientCA = ours.file("ca.pem")
	_, err = client(stranger).Cluster(t.Context())
	expectClass(t, err, ErrUnreachable, "tls")

	old := &tls.Config{MaxVersion: tls.VersionTLS11, InsecureSkipVerify: true} // only to see that the server refuses it
	if c, err := tls.Dial("tcp", w.server.Addrs()[0].String(), old); err == nil {
		_ = c.Close()
		t.Error("TLS 1.1 was accepted")
	}
}
