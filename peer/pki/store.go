package pki

import (
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"pvc.internal/cluster"
	"pvc.internal/peer"
)

// The files of an authority's folder and of a node's.
const (
	caCert   = "ca.pem"
	caKey    = "ca.key"
	nodeCert = "node.pem"
	nodeKey  = "node.key"
	issued   = "_issued" // folder of copies of every certificate issued; no node can be called that
)

// ErrExists says that a key would have been overwritten.
var ErrExists = errors.New("it exists already")

// Made is what a command has written.
type Made struct {
	Name    string    `json:"name"` // the URI in the certificate
	Expires time.Time `json:"expires"`
	Files   []string  `json:"files"`
}

// NodeFiles returns the three files in a node's folder.
func NodeFiles(dir string) peer.Files {
	return peer.Files{CA: filepath.Join(dir, caCert), Cert: filepath.Join(dir, nodeCert), Key: filepath.Join(dir, nodeKey)}
}

// Init makes an authority in dir. Without force it never touches one that is
// there.
func Init(dir, clusterName string, force bool, now time.Time) (Made, error) {
	certPath, keyPath := filepath.Join(dir, caCert), filepath.Join(dir, caKey)
	if err := vacant(force, certPath, keyPath); err != nil {
		return Made{}, fmt.Errorf("make an authority: %w; every certificate it has signed would become worthless, --force does it all the same", err)
	}
	a, certPEM, keyPEM, err := NewAuthority(clusterName, now)
	if err != nil {
		return Made{}, fmt.Errorf("make an authority: %w", err)
	}
	if err := writeAll(dir, []file{{caKey, keyPEM, 0o600}, {caCert, certPEM, 0o644}}); err != nil {
		return Made{}, fmt.Errorf("make an authority: %w", err)
	}
	return Made{peer.Name{Cluster: a.Cluster}.String(), a.Cert.NotAfter, []string{certPath, keyPath}}, nil
}

// open reads the authority in dir.
func open(dir string) (*Authority, []byte, error) {
	certPEM, err := os.ReadFile(filepath.Join(dir, caCert))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("there is no authority in %s: make one with `pvc pki init --cluster NAME --dir %s`, or give its folder with --dir", dir, dir)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read the authority: %w", err)
	}
	keyPEM, err := os.ReadFile(filepath.Join(dir, caKey))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("the authority in %s has no key here (%s): run this where the authority was made", dir, caKey)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read the authority's key: %w", err)
	}
	a, err := ParseAuthority(certPEM, keyPEM)
	if err != nil {
		return nil, nil, fmt.Errorf("read the authority in %s: %w", dir, err)
	}
	return a, certPEM, nil
}

// Issue makes a key and a certificate for a node in the folder out ("": the
// node's own below dir). Without force it never touches a key that is there.
func Issue(dir string, n cluster.NodeID, out string, days int, force bool, now time.Time) (Made, error) {
	if err := n.Validate(); err != nil {
		return Made{}, err
	}
	if out == "" {
		out = filepath.Join(dir, string(n))
	}
	a, caPEM, err := open(dir)
	if err != nil {
		return Made{}, err
	}
	files := NodeFiles(out)
	if err := vacant(force, files.Key, files.Cert); err != nil {
		return Made{}, fmt.Errorf("issue %s: %w; a new date for the same key comes from `pvc pki renew %s`, a new key from --force", n, err, n)
	}
	key, keyPEM, err := newKey()
	if err != nil {
		return Made{}, err
	}
	certPEM, err := a.Issue(n, &key.PublicKey, days, now)
	if err != nil {
		return Made{}, fmt.Errorf("issue %s: %w", n, err)
	}
	// The key first: with the old certificate beside it the pair does not fit,
	// and a running daemon keeps what it has read until both are there.
	if err := writeAll(out, []file{{nodeKey, keyPEM, 0o600}, {nodeCert, certPEM, 0o644}, {caCert, caPEM, 0o644}}); err != nil {
		return Made{}, fmt.Errorf("issue %s: %w", n, err)
	}
	return record(dir, a, n, certPEM, []string{files.CA, files.Cert, files.Key})
}

// record keeps the copy by which renew and status know the node.
func record(dir string, a *Authority, n cluster.NodeID, certPEM []byte, files []string) (Made, error) {
	if err := writeAll(filepath.Join(dir, issued), []file{{string(n) + ".pem", certPEM, 0o644}}); err != nil {
		return Made{}, fmt.Errorf("keep a copy of the certificate: %w", err)
	}
	cert, err := parseCert(certPEM)
	if err != nil {
		return Made{}, err
	}
	return Made{peer.NodeName(a.Cluster, n).String(), cert.NotAfter, files}, nil
}

// Renew signs a node's present key anew. The key stays where it is, on the
// node, so that one file changes and at no instant do two not fit together.
func Renew(dir string, n cluster.NodeID, out string, days int, now time.Time) (Made, error) {
	if err := n.Validate(); err != nil {
		return Made{}, err
	}
	if out == "" {
		out = filepath.Join(dir, string(n))
	}
	a, caPEM, err := open(dir)
	if err != nil {
		return Made{}, err
	}
	before, err := readCert(filepath.Join(dir, issued, string(n)+".pem"))
	if errors.Is(err, fs.ErrNotExist) {
		return Made{}, fmt.Errorf("renew %s: this authority has never issued it a certificate: use `pvc pki issue %s`", n, n)
	}
	if err != nil {
		return Made{}, fmt.Errorf("renew %s: %w", n, err)
	}
	public, ok := before.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return Made{}, fmt.Errorf("renew %s: its key is of another kind (%T): use `pvc pki issue %s --force`", n, before.PublicKey, n)
	}
	certPEM, err := a.Issue(n, public, days, now)
	if err != nil {
		return Made{}, fmt.Errorf("renew %s: %w", n, err)
	}
	files := NodeFiles(out)
	if err := fitsKey(files.Key, public); err != nil {
		return Made{}, fmt.Errorf("renew %s: %w", n, err)
	}
	if err := writeAll(out, []file{{nodeCert, certPEM, 0o644}, {caCert, caPEM, 0o644}}); err != nil {
		return Made{}, fmt.Errorf("renew %s: %w", n, err)
	}
	return record(dir, a, n, certPEM, []string{files.CA, files.Cert})
}

// fitsKey refuses to put a certificate beside a key that is not its own.
func fitsKey(path string, public *ecdsa.PublicKey) error {
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the key lies on the node
	}
	if err != nil {
		return fmt.Errorf("read the key: %w", err)
	}
	key, err := parseKey(content)
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	if !key.PublicKey.Equal(public) {
		return fmt.Errorf("%s is another key than the one last issued: give another folder with --out, or issue anew with --force", path)
	}
	return nil
}

// vacant refuses where one of the files is there, unless forced.
func vacant(force bool, paths ...string) error {
	for _, p := range paths {
		_, err := os.Lstat(p)
		switch {
		case err == nil && !force:
			return fmt.Errorf("%s: %w", p, ErrExists)
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return err
		}
	}
	return nil
}

func readCert(path string) (*x509.Certificate, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	cert, err := parseCert(content)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return cert, nil
}

// file is one to be written.
type file struct {
	name    string
	content []byte
	mode    fs.FileMode
}

// writeAll writes the files in order, each whole or not at all: temporary file,
// fsync, rename, fsync of the folder.
func writeAll(dir string, files []file) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	folder, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = folder.Close() }()
	for _, f := range files {
		if err := write(dir, f); err != nil {
			return err
		}
		if err := folder.Sync(); err != nil {
			return fmt.Errorf("sync %s: %w", dir, err)
		}
	}
	return nil
}

func write(dir string, f file) error {
	tmp, err := os.CreateTemp(dir, "."+f.name+".*") // made with mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(tmp.Name()) }() // gone already after the rename
	if err = tmp.Chmod(f.mode); err == nil {
		_, err = tmp.Write(f.content)
	}
	if err == nil {
		err = tmp.Sync()
	}
	if closeErr := tmp.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), filepath.Join(dir, f.name))
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", filepath.Join(dir, f.name), err)
	}
	return nil
}
