package api

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
)

// access is who may ask for what: the part of a configuration that can be
// replaced while the server runs. It is not changed once it is published.
type access struct {
	auth       string
	protectAll bool
	guarded    bool
	keys       *keyring
	tls        *tls.Config    // of a handshake; nil without TLS
	roots      *x509.CertPool // that client certificates go back to; nil: none is accepted
	replaced   chan struct{}  // closed when another takes its place
	proven     provenChains
}

// newAccess loads what the configuration names. The configuration is valid.
func newAccess(c Config, log *zap.Logger) (*access, error) {
	keys, err := loadKeys(c.KeysFile)
	if err != nil {
		return nil, err
	}
	a := &access{auth: c.Auth, protectAll: c.ProtectAll, guarded: c.guarded(), keys: keys, replaced: make(chan struct{})}
	if c.TLS.Cert == "" {
		return a, nil
	}
	pair := &renewedPair{files: c.TLS, log: log}
	if err := pair.load(); err != nil {
		return nil, err
	}
	a.tls = &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}, GetCertificate: pair.certificate}
	if a.roots, err = clientRoots(c.TLS.ClientCA); err != nil {
		return nil, err
	}
	if a.roots != nil {
		a.tls.ClientCAs = a.roots
		// Given, not required: probes and a key's holder come without one.
		a.tls.ClientAuth = tls.VerifyClientCertIfGiven
	}
	return a, nil
}

func clientRoots(path string) (*x509.CertPool, error) {
	if path == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read api.tls.client_ca: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("api.tls.client_ca %q holds no PEM certificate", path)
	}
	return pool, nil
}

// Reload adopts the keys, the certificates and protect_all of another
// configuration for the next request on, of connections and watches that are
// open already too: those of a key that is gone end. A setting that needs a
// restart is refused by its name. On an error nothing is changed.
func (s *Server) Reload(c Config) error {
	s.reloading.Lock()
	defer s.reloading.Unlock()
	c = c.withDefaults()
	if err := c.Validate(); err != nil {
		return err
	}
	if names := s.needRestart(c); len(names) > 0 {
		return fmt.Errorf("%s cannot be changed while pvcapid runs; nothing was adopted: restart it (`systemctl restart pvcapid`), or take the change back", strings.Join(names, ", "))
	}
	next, err := newAccess(c, s.log)
	if err != nil {
		return err
	}
	old := s.access.Swap(next)
	close(old.replaced)
	s.log.Info("keys and certificates were read anew", zap.Int("keys", len(next.keys.keys)), zap.Bool("client_certificates", next.roots != nil), zap.Bool("protect_all", next.protectAll))
	return nil
}

// needRestart names the settings that differ and that a running server keeps.
func (s *Server) needRestart(c Config) []string {
	now, was := s.access.Load(), s.cfg
	var names []string
	for _, setting := range []struct {
		name    string
		differs bool
	}{
		{"api.listen", !slices.Equal(c.Listen, was.Listen)},
		{"api.auth", c.Auth != was.Auth},
		{"api.tls.cert and api.tls.key (turning TLS on or off)", (c.TLS.Cert != "") != (now.tls != nil)},
		{"api.keys_file and api.tls.client_ca (taking both away)", now.guarded && !c.guarded()},
		{"node.name", c.Node != was.Node},
		{"cluster.name", c.ClusterName != was.ClusterName},
		{"timing", c.Timing != was.Timing || c.Profile != was.Profile},
		{"the request timeout", c.RequestTimeout != was.RequestTimeout},
	} {
		if setting.differs {
			names = append(names, setting.name)
		}
	}
	return names
}

// handshakeConfig has each handshake go by what is adopted at that moment.
func (s *Server) handshakeConfig() *tls.Config {
	if s.access.Load().tls == nil {
		return nil
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return s.access.Load().tls, nil }}
}

// certificateLook is how often a handshake looks whether the certificate's
// files have been renewed.
const certificateLook = time.Second

// renewedPair is the server's certificate, read anew when its files change. A
// pair that cannot be loaded, such as a half written one, leaves the last one
// in use.
type renewedPair struct {
	files TLSFiles
	log   *zap.Logger

	mu     sync.Mutex
	pair   *tls.Certificate
	stamp  string // of the files that pair was read from
	told   string // of files that could not be read: said once
	looked time.Time
}

// load reads the pair for the first time.
func (p *renewedPair) load() error {
	p.stamp, p.looked = p.stampNow(), time.Now()
	pair, err := tls.LoadX509KeyPair(p.files.Cert, p.files.Key)
	if err != nil {
		return fmt.Errorf("load api.tls.cert %q and api.tls.key %q: %w", p.files.Cert, p.files.Key, err)
	}
	p.pair = &pair
	return nil
}

// certificate answers a handshake.
func (p *renewedPair) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := time.Now(); now.Sub(p.looked) >= certificateLook {
		p.looked = now
		p.renewLocked()
	}
	return p.pair, nil
}

func (p *renewedPair) renewLocked() {
	stamp := p.stampNow()
	if stamp == p.stamp {
		return
	}
	pair, err := tls.LoadX509KeyPair(p.files.Cert, p.files.Key)
	if err != nil {
		if p.told != stamp {
			p.told = stamp
			p.log.Warn("the renewed certificate cannot be used; the last one stays in use", zap.String("cert", p.files.Cert), zap.String("key", p.files.Key), zap.Error(err))
		}
		return
	}
	p.pair, p.stamp = &pair, stamp
	p.log.Info("the renewed certificate is in use", zap.String("cert", p.files.Cert))
}

// stampNow tells one state of the files from another.
func (p *renewedPair) stampNow() string {
	var stamp strings.Builder
	for _, path := range []string{p.files.Cert, p.files.Key} {
		info, err := os.Stat(path)
		if err != nil {
			fmt.Fprintf(&stamp, "%v;", err)
			continue
		}
		fmt.Fprintf(&stamp, "%d %d;", info.Size(), info.ModTime().UnixNano())
	}
	return stamp.String()
}

// provenChains remembers which client certificates go back to the present
// roots: a connection may be older than they are.
type provenChains struct {
	mu    sync.Mutex
	until map[[sha256.Size]byte]time.Time
}

const provenEntries = 1024 // forgets everything when full, rather than grow

// proves reports whether the certificate that a connection was opened with is
// one that would be accepted now.
func (a *access) proves(chain []*x509.Certificate) error {
	if a.roots == nil || len(chain) == 0 {
		return errors.New("no client certificates are accepted")
	}
	leaf, now := chain[0], time.Now()
	id := sha256.Sum256(leaf.Raw)
	a.proven.mu.Lock()
	until, known := a.proven.until[id]
	a.proven.mu.Unlock()
	if known && now.Before(until) {
		return nil
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: a.roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return err
	}
	a.proven.mu.Lock()
	defer a.proven.mu.Unlock()
	if a.proven.until == nil || len(a.proven.until) >= provenEntries {
		a.proven.until = map[[sha256.Size]byte]time.Time{}
	}
	a.proven.until[id] = leaf.NotAfter
	return nil
}
