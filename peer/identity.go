package peer

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
)

// Files name the PEM files of one node.
type Files struct {
	CA   string // authorities that every peer's certificate must come from; several during a change-over
	Cert string // this node's certificate
	Key  string // its key, readable by root only
}

// material is one reading of the files. It is never edited.
type material struct {
	files      Files
	name       Name
	roots      *x509.CertPool
	cert       tls.Certificate
	leaf       *x509.Certificate
	ends       time.Time // of the leaf or of its authority, whichever is first
	endsFile   string
	generation uint64
	raw        [3][]byte // contents of CA, Cert, Key
}

// Identity is who this node is to its peers. It reads its files again when
// they change; whoever uses it never waits for a disk.
type Identity struct {
	files Files
	want  Name
	now   func() time.Time

	reading sync.Mutex // one reading at a time
	current atomic.Pointer[material]
	trouble atomic.Pointer[error] // why the files on disk are not in use
	hint    chan struct{}
}

// LoadIdentity reads the files and checks that they belong together and to
// this node of this cluster. An expired certificate is loaded all the same, a
// node must be able to start with it: Expiry tells. now is the wall clock, nil
// for the real one.
func LoadIdentity(f Files, clusterName string, n cluster.NodeID, now func() time.Time) (*Identity, error) {
	if now == nil {
		now = time.Now
	}
	id := &Identity{files: f, want: NodeName(clusterName, n), now: now, hint: make(chan struct{}, 1)}
	if _, err := id.Reload(); err != nil {
		return nil, fmt.Errorf("load this node's identity: %w", err)
	}
	return id, nil
}

// Run looks at the files once each minute, and soon after a handshake has
// failed, until ctx ends. Files that do not fit leave the ones before in use.
func (id *Identity) Run(ctx context.Context, log *zap.Logger) {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	last := ""
	for {
		changed, err := id.Reload()
		switch {
		case err != nil && err.Error() != last:
			last = err.Error()
			log.Warn("The certificate files do not fit; those read before stay in use", zap.Error(err))
		case err == nil:
			last = ""
		}
		if changed {
			e := id.Expiry(id.now())
			log.Info("The certificate files were read anew", zap.String("cert", id.files.Cert), zap.Time("expires", e.NotAfter))
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-id.hint:
			if !pause(ctx, time.Second) { // a stranger who knocks all the time must not keep the disk busy
				return
			}
		}
	}
}

// pause waits and reports whether ctx still lives.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// lookSoon has Run read the files before its time.
func (id *Identity) lookSoon() {
	select {
	case id.hint <- struct{}{}:
	default:
	}
}

// Reload reads the files now and reports whether they have changed. Files that
// do not fit together or are of somebody else are not taken; those before stay.
func (id *Identity) Reload() (changed bool, err error) {
	id.reading.Lock()
	defer id.reading.Unlock()
	before := id.current.Load()
	m, err := readMaterial(id.files, id.want)
	if err != nil {
		id.trouble.Store(&err)
		return false, err
	}
	id.trouble.Store(nil)
	if before != nil {
		if sameContents(before.raw, m.raw) {
			return false, nil
		}
		m.generation = before.generation + 1
	}
	id.current.Store(m)
	return before != nil, nil
}

func sameContents(a, b [3][]byte) bool {
	return bytes.Equal(a[0], b[0]) && bytes.Equal(a[1], b[1]) && bytes.Equal(a[2], b[2])
}

// readMaterial reads the three files and refuses what is not this node's.
func readMaterial(f Files, want Name) (*material, error) {
	m := &material{files: f, name: want, roots: x509.NewCertPool()}
	for i, file := range []struct{ key, path string }{{"ca", f.CA}, {"cert", f.Cert}, {"key", f.Key}} {
		if file.path == "" {
			return nil, fmt.Errorf("peer.tls.%s is missing: `pvc pki issue %s` makes all three files", file.key, want.Node)
		}
		content, err := os.ReadFile(file.path)
		if err != nil {
			return nil, fmt.Errorf("read peer.tls.%s: %w", file.key, err)
		}
		m.raw[i] = content
	}
	authorities, err := parseAll(m.raw[0])
	if err != nil {
		return nil, fmt.Errorf("peer.tls.ca %s: %w", f.CA, err)
	}
	for _, a := range authorities {
		m.roots.AddCert(a)
	}
	if m.cert, err = tls.X509KeyPair(m.raw[1], m.raw[2]); err != nil {
		return nil, fmt.Errorf("peer.tls.cert %s and peer.tls.key %s do not belong together: %w; copy both from one `pvc pki issue`", f.Cert, f.Key, err)
	}
	if m.leaf, err = x509.ParseCertificate(m.cert.Certificate[0]); err != nil {
		return nil, fmt.Errorf("peer.tls.cert %s: %w", f.Cert, err)
	}
	return m, m.checkOwn(authorities)
}

// checkOwn checks the certificate as the peers will, but for its dates: they
// are looked at each time.
func (m *material) checkOwn(authorities []*x509.Certificate) error {
	within := m.leaf.NotBefore.Add(time.Second)
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		name, err := m.verify([]*x509.Certificate{m.leaf}, usage, within)
		if err != nil {
			return fmt.Errorf("peer.tls.cert %s: %w", m.files.Cert, err)
		}
		if name != m.name {
			return &CertError{File: m.files.Cert, Found: name.String(), What: fmt.Sprintf("this node is %s", m.name),
				Cure: fmt.Sprintf("make the right one with `pvc pki issue %s`, or correct node.name", m.name.Node)}
		}
	}
	m.ends, m.endsFile = m.leaf.NotAfter, m.files.Cert
	for _, a := range authorities {
		if m.leaf.CheckSignatureFrom(a) == nil && a.NotAfter.Before(m.ends) {
			m.ends, m.endsFile = a.NotAfter, m.files.CA
		}
	}
	return nil
}

// parseAll reads every certificate of a PEM file; there must be one.
func parseAll(content []byte) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	for {
		var block *pem.Block
		if block, content = pem.Decode(content); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	if len(all) == 0 {
		return nil, errors.New("it holds no PEM certificate")
	}
	return all, nil
}

// usable returns what to shake hands with, or why a peer would refuse it: a
// node whose own certificate has expired learns nothing of the others.
func (id *Identity) usable() (*material, error) {
	m, now := id.current.Load(), id.now()
	if now.Before(m.leaf.NotBefore) || now.After(m.ends) {
		id.lookSoon()
		err := m.explain(m.leaf, x509.CertificateInvalidError{Cert: m.leaf, Reason: x509.Expired}, now)
		var e *CertError
		if errors.As(err, &e) {
			e.File = m.endsFile
		}
		return m, err
	}
	return m, nil
}

// Expiry is how long this node can still talk to its peers.
type Expiry struct {
	NotAfter time.Time     // of the certificate or its authority, whichever ends first
	File     string        // that it stands in
	Left     time.Duration // negative: it has expired
	Days     int           // the threshold that is passed: 30, 7, 1 or 0 (expired); -1: none
	Text     string        // for a health fault, with the cure; empty where there is none
}

// Expiry returns how long the certificate in use lasts, and the text of a
// health fault from 30 days on, or where the files on disk do not fit.
func (id *Identity) Expiry(now time.Time) Expiry {
	m := id.current.Load()
	e := Expiry{NotAfter: m.ends, File: m.endsFile, Left: m.ends.Sub(now), Days: -1}
	for _, days := range []int{30, 7, 1, 0} {
		if e.Left <= time.Duration(days)*24*time.Hour {
			e.Days = days
		}
	}
	cure := fmt.Sprintf("run `pvc pki renew %s` where the authority's key is, and copy the certificate here", m.name.Node)
	if m.endsFile == m.files.CA {
		cure = "make a new authority with `pvc pki init`, add it to every node's ca file, then issue all certificates anew"
	}
	switch {
	case e.Days == 0:
		e.Text = fmt.Sprintf("%s expired on %s: no peer accepts this node; %s", e.File, e.NotAfter.UTC().Format(when), cure)
	case e.Days > 0:
		e.Text = fmt.Sprintf("%s expires on %s, in %d days; %s", e.File, e.NotAfter.UTC().Format(when), int(e.Left/(24*time.Hour)), cure)
	}
	if t := id.trouble.Load(); t != nil {
		if e.Text != "" {
			e.Text += "; "
		}
		e.Text += fmt.Sprintf("the files on disk are not in use: %v", *t)
	}
	return e
}

// Name is this node's.
func (id *Identity) Name() Name { return id.want }
