package fencing

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// authority is a certificate authority of a test.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string // its certificate, PEM
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, file: filepath.Join(t.TempDir(), "ca.pem")}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(raw); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(a.file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return a
}

// issue makes a controller's certificate that ends so long from now.
func (a *authority) issue(ends time.Duration, host net.IP) tls.Certificate {
	a.t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "controller"}, IPAddresses: []net.IP{host},
		NotBefore: time.Now().Add(-30 * time.Minute), NotAfter: time.Now().Add(ends), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, a.cert, a.key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{raw}, PrivateKey: a.key}
}

// TestRedfishCertificates: one that has expired, is of another name or of another
// authority is refused before anything is asked, and the error says which.
func TestRedfishCertificates(t *testing.T) {
	ours, other := newAuthority(t), newAuthority(t)
	here, elsewhere := net.IPv4(127, 0, 0, 1), net.IPv4(192, 0, 2, 1)
	for name, c := range map[string]struct {
		certificate tls.Certificate
		words       string // empty: it is taken
	}{
		"good":              {ours.issue(time.Hour, here), ""},
		"expired":           {ours.issue(-time.Minute, here), "expired"},
		"of another name":   {ours.issue(time.Hour, elsewhere), "192.0.2.1"},
		"another authority": {other.issue(time.Hour, here), "unknown authority"},
	} {
		t.Run(name, func(t *testing.T) {
			fake := newController()
			server := httptest.NewUnstartedServer(fake)
			server.Config.ErrorLog = log.New(io.Discard, "", 0)
			server.TLS = &tls.Config{Certificates: []tls.Certificate{c.certificate}}
			server.StartTLS()
			defer server.Close()
			d := testDevice(t, "rf", server.Listener.Addr().String())
			d.Type, d.CipherSuite, d.CAFile, d.Timeout = TypeRedfish, 0, ours.file, time.Second
			r := attempt(t, d, ActionTest)
			server.CloseClientConnections()
			if c.words == "" {
				if r.Result != ResultOn || r.Fault != "" {
					t.Errorf("%+v", r)
				}
				return
			}
			if r.Result != ResultUnknown || r.Fault != FaultMisconfigured || !strings.Contains(r.Error, c.words) {
				t.Errorf("want %q in %+v", c.words, r)
			}
			if r := attempt(t, d, ActionOff); r.Result != ResultUnknown || !strings.Contains(r.Error, c.words) {
				t.Errorf("off: %+v", r)
			}
			fake.mu.Lock()
			defer fake.mu.Unlock()
			if len(fake.heard) != 0 {
				t.Errorf("it was asked %v", fake.heard)
			}
		})
	}
}
