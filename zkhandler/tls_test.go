package zkhandler

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"

	"pvc.internal/cluster"
	"pvc.internal/zkhandler/zkreal"
)

const storePassword = "changeit"

// authority issues the certificates of one test.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, dir: t.TempDir()}
	a.key, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	must(t, err)
	a.cert, err = x509.ParseCertificate(der)
	must(t, err)
	a.write("ca.pem", "CERTIFICATE", der)
	return a
}

func (a *authority) file(name string) string { return filepath.Join(a.dir, name) }

func (a *authority) write(name, kind string, der []byte) {
	must(a.t, os.WriteFile(a.file(name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
}

// issue writes name.pem and name.key.
func (a *authority) issue(name string, hosts ...string) {
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	must(a.t, err)
	a.write(name+".pem", "CERTIFICATE", der)
	der, err = x509.MarshalPKCS8PrivateKey(key)
	must(a.t, err)
	a.write(name+".key", "PRIVATE KEY", der)
}

func (a *authority) run(name string, args ...string) {
	a.t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		a.t.Skipf("needs %s: %v", name, err)
	}
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		a.t.Fatalf("%s: %v: %s", name, err, out)
	}
}

// stores makes the server's PKCS12 stores.
func (a *authority) stores(server string) *zkreal.TLS {
	s := &zkreal.TLS{KeyStore: a.file("key.p12"), TrustStore: a.file("trust.p12"), Password: storePassword}
	a.run("openssl", "pkcs12", "-export", "-in", a.file(server+".pem"), "-inkey", a.file(server+".key"), "-out", s.KeyStore, "-passout", "pass:"+storePassword)
	a.run("keytool", "-importcert", "-noprompt", "-alias", "ca", "-file", a.file("ca.pem"), "-keystore", s.TrustStore, "-storetype", "PKCS12", "-storepass", storePassword)
	return s
}

// By certificate we are who we are without any credentials, what we create is
// ours alone, and a server with another name is refused.
func TestCertificateIsTheIdentity(t *testing.T) {
	a := newAuthority(t)
	a.issue("server", "zk.example", "127.0.0.1")
	a.issue("client")
	e := zkreal.StartWith(t, 1, zkreal.Options{TLS: a.stores("server"), JVM: []string{"-Dzookeeper.ssl.hostnameVerification=false"}})
	c := Config{Servers: e.SecureServers(), SessionTimeout: 6 * time.Second,
		TLS: &TLSFiles{CA: a.file("ca.pem"), Cert: a.file("client.pem"), Key: a.file("client.key"), ServerName: "zk.example"}}
	h, _ := start(t, c)
	awaitPhase(t, h, Live)
	must(t, h.Initialize(bound(t), "demo", false))
	must(t, setPrimary(h, "hv1").Err)

	byAddress := c
	byAddress.TLS = &TLSFiles{CA: c.TLS.CA, Cert: c.TLS.Cert, Key: c.TLS.Key}
	same, _ := start(t, byAddress)
	awaitPhase(t, same, Live)

	raw, _, err := zk.Connect(e.Servers(), 6*time.Second, zk.WithLogInfo(false))
	must(t, err)
	defer raw.Close()
	if _, err := raw.Set("/config", []byte("x"), -1); err == nil {
		t.Fatal("a client without a certificate writes")
	}

	wrong := c
	wrong.TLS = &TLSFiles{CA: c.TLS.CA, Cert: c.TLS.Cert, Key: c.TLS.Key, ServerName: "other.example"}
	_, _, err = wrong.connect(t.Context(), "tcp", e.SecureServers()[0])
	if err == nil || !strings.Contains(err.Error(), "other.example") {
		t.Fatalf("a server of another name: %v", err)
	}
	other, _ := start(t, wrong)
	if r := setPrimary(other, "hv2"); r.Outcome != cluster.OutcomeNotSent {
		t.Fatalf("commit through a server of another name: %+v", r)
	}
}
