package pki

import (
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"pvc.internal/peer"
)

// soon is when a certificate's end is worth a word.
const soon = 30 * day

// Entry is one certificate as status shows it.
type Entry struct {
	Name     string    `json:"name"` // node, or "authority"
	SANs     []string  `json:"sans"`
	File     string    `json:"file"`
	Serial   string    `json:"serial"`
	NotAfter time.Time `json:"expires"`
	DaysLeft int       `json:"days_left"`
	Key      string    `json:"key"`      // matches, absent (not here), or missing in Problems' words
	Problems []string  `json:"problems"` // none of these will be accepted as it is
	Warnings []string  `json:"warnings"`
}

// Status is what lies in a folder.
type Status struct {
	Dir     string  `json:"dir"`
	Cluster string  `json:"cluster"`
	Entries []Entry `json:"certificates"`
}

// Problems counts what is wrong.
func (s Status) Problems() int {
	n := 0
	for _, e := range s.Entries {
		n += len(e.Problems)
	}
	return n
}

// Look reports on an authority's folder (ca.pem, ca.key, issued certificates
// and nodes' folders) or on a node's (ca.pem, node.pem, node.key).
func Look(dir string, now time.Time) (Status, error) {
	s := Status{Dir: dir}
	caPath := filepath.Join(dir, caCert)
	ca, err := readCert(caPath)
	if errors.Is(err, fs.ErrNotExist) {
		return s, fmt.Errorf("there is no %s in %s: give the folder of the authority, or of a node's files, with --dir", caCert, dir)
	}
	if err != nil {
		return s, fmt.Errorf("read the authority: %w", err)
	}
	authority := entry("authority", caPath, ca, now)
	if s.Cluster, err = authorityName(ca); err != nil {
		authority.Problems = append(authority.Problems, err.Error())
	}
	authority.checkKey(filepath.Join(dir, caKey), ca)
	s.Entries = append(s.Entries, authority)
	l := look{ca: ca, cluster: s.Cluster, now: now, seen: map[string]bool{}}
	l.folder(dir)
	copies, _ := filepath.Glob(filepath.Join(dir, issued, "*.pem"))
	sort.Strings(copies)
	for _, path := range copies {
		name := strings.TrimSuffix(filepath.Base(path), ".pem")
		if own := filepath.Join(dir, name); !l.folder(own) {
			l.add(name, path, "")
		}
	}
	s.Entries = append(s.Entries, l.entries...)
	return s, nil
}

// look gathers the nodes' entries.
type look struct {
	ca      *x509.Certificate
	cluster string
	now     time.Time
	seen    map[string]bool
	entries []Entry
}

// folder adds a node's folder; false: it holds no certificate.
func (l *look) folder(dir string) bool {
	files := NodeFiles(dir)
	if _, err := os.Lstat(files.Cert); err != nil {
		return false
	}
	l.add("", files.Cert, files.Key)
	return true
}

func (l *look) add(name, path, keyPath string) {
	if l.seen[path] {
		return
	}
	l.seen[path] = true
	cert, err := readCert(path)
	if err != nil {
		l.entries = append(l.entries, Entry{Name: name, File: path, SANs: []string{}, Problems: []string{err.Error()}, Warnings: []string{}})
		return
	}
	named, nameErr := peer.NameOf(cert)
	if name == "" {
		name = string(named.Node)
	}
	e := entry(name, path, cert, l.now)
	switch {
	case nameErr != nil:
		e.Problems = append(e.Problems, nameErr.Error())
	case named.Role != peer.RoleNode || named.Cluster != l.cluster || string(named.Node) != name:
		e.Problems = append(e.Problems, fmt.Sprintf("it is of %s, not of node %s in cluster %s", named, name, l.cluster))
	}
	if err := cert.CheckSignatureFrom(l.ca); err != nil {
		e.Problems = append(e.Problems, fmt.Sprintf("it was not signed by this authority (%v): issue it anew with --force", err))
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		if !contains(cert.ExtKeyUsage, usage) {
			e.Problems = append(e.Problems, "it is not for both client and server authentication: issue it anew with --force")
			break
		}
	}
	e.checkKey(keyPath, cert)
	l.entries = append(l.entries, e)
}

func contains(list []x509.ExtKeyUsage, u x509.ExtKeyUsage) bool {
	for _, x := range list {
		if x == u {
			return true
		}
	}
	return false
}

func entry(name, path string, cert *x509.Certificate, now time.Time) Entry {
	e := Entry{Name: name, File: path, Serial: fmt.Sprintf("%x", cert.SerialNumber), NotAfter: cert.NotAfter.UTC(), SANs: []string{},
		DaysLeft: int(cert.NotAfter.Sub(now) / day), Key: "absent", Problems: []string{}, Warnings: []string{}}
	for _, u := range cert.URIs {
		e.SANs = append(e.SANs, u.String())
	}
	e.SANs = append(e.SANs, cert.DNSNames...)
	cure := fmt.Sprintf("run `pvc pki renew %s`", name)
	if cert.IsCA {
		cure = "make a new authority in another folder, add it to every node's ca file, then issue all certificates anew"
	}
	switch left := cert.NotAfter.Sub(now); {
	case left <= 0:
		e.Problems = append(e.Problems, "it has expired: "+cure)
	case now.Before(cert.NotBefore):
		e.Problems = append(e.Problems, fmt.Sprintf("it is valid only from %s: set the clock", cert.NotBefore.UTC().Format(time.RFC3339)))
	case left <= soon:
		e.Warnings = append(e.Warnings, "it expires soon: "+cure)
	}
	return e
}

// checkKey compares a key file with the certificate and looks at who can read it.
func (e *Entry) checkKey(path string, cert *x509.Certificate) {
	if path == "" {
		return
	}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	content, readErr := os.ReadFile(path)
	if err != nil || readErr != nil {
		e.Key = "unreadable"
		e.Problems = append(e.Problems, fmt.Sprintf("its key %s cannot be read: %v", path, errors.Join(err, readErr)))
		return
	}
	key, err := parseKey(content)
	public, ok := cert.PublicKey.(*ecdsa.PublicKey)
	switch {
	case err != nil:
		e.Key = "unreadable"
		e.Problems = append(e.Problems, fmt.Sprintf("its key %s: %v", path, err))
	case !ok || !key.PublicKey.Equal(public):
		e.Key = "differs"
		e.Problems = append(e.Problems, fmt.Sprintf("%s is not its key: copy both files from one `pvc pki issue`", path))
	default:
		e.Key = "matches"
	}
	if info.Mode().Perm()&0o077 != 0 {
		e.Problems = append(e.Problems, fmt.Sprintf("%s can be read by others (mode %04o): chmod 600 it", path, info.Mode().Perm()))
	}
}
