package zkhandler

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
)

// TLSFiles name the PEM files for TLS to ZooKeeper.
type TLSFiles struct {
	CA         string // authorities that the server's certificate must come from; required
	Cert, Key  string // our certificate; both or neither. Its subject is our x509 identity
	ServerName string // name to verify; default the host part of each server
}

func (f *TLSFiles) validate() error {
	switch {
	case f == nil:
		return nil
	case f.CA == "":
		return errors.New("zookeeper.tls.ca is missing: without it no server's certificate can be verified")
	case (f.Cert == "") != (f.Key == ""):
		return fmt.Errorf("zookeeper.tls: cert %q and key %q belong together, give both or neither", f.Cert, f.Key)
	}
	return nil
}

// identifies reports whether the server learns who we are by certificate.
func (f *TLSFiles) identifies() bool { return f != nil && f.Cert != "" }

// config reads the files afresh, so that a renewed certificate is used from
// the next dial on without a restart.
func (f *TLSFiles) config(host string) (*tls.Config, error) {
	pem, err := os.ReadFile(f.CA)
	if err != nil {
		return nil, fmt.Errorf("read zookeeper.tls.ca: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("zookeeper.tls.ca %s holds no PEM certificate", f.CA)
	}
	c := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12, ServerName: f.ServerName}
	if c.ServerName == "" {
		c.ServerName = host
	}
	if f.Cert != "" {
		pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
		if err != nil {
			return nil, fmt.Errorf("load zookeeper.tls.cert and key: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// wrap does the handshake over raw, bounded by ctx, and closes raw on failure.
func (f *TLSFiles) wrap(ctx context.Context, raw net.Conn, host string) (net.Conn, error) {
	config, err := f.config(host)
	if err != nil {
		raw.Close()
		return nil, err
	}
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("TLS handshake with %s: %w", host, err)
	}
	return conn, nil
}
