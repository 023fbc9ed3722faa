package pki_test

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
	"pvc.internal/peer"
	"pvc.internal/peer/pki"
)

const day = 24 * time.Hour

// made returns a folder with an authority and the nodes hv1 and hv2.
func made(t *testing.T, now time.Time) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "pki")
	if _, err := pki.Init(dir, "demo", false, now); err != nil {
		t.Fatal(err)
	}
	for _, n := range []cluster.NodeID{"hv1", "hv2"} {
		if _, err := pki.Issue(dir, n, "", pki.NodeDays, false, now); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func certificate(t *testing.T, path string) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(read(t, path))
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestFilesFitTheDaemonAndNobodyElseReadsKeys(t *testing.T) {
	now := time.Now()
	dir := made(t, now)
	for _, n := range []cluster.NodeID{"hv1", "hv2"} {
		if _, err := peer.LoadIdentity(pki.NodeFiles(filepath.Join(dir, string(n))), "demo", n, nil); err != nil {
			t.Error(err)
		}
	}
	ca := certificate(t, filepath.Join(dir, "ca.pem"))
	if !ca.IsCA || ca.MaxPathLen != 0 || !ca.MaxPathLenZero || ca.NotAfter.Sub(now) < 3649*day {
		t.Errorf("authority: path length %d, until %s", ca.MaxPathLen, ca.NotAfter)
	}
	leaf := certificate(t, filepath.Join(dir, "hv1", "node.pem"))
	if leaf.IsCA || leaf.NotAfter.Sub(now) > 398*day || len(leaf.DNSNames)+len(leaf.IPAddresses) != 0 {
		t.Errorf("node: %+v", leaf)
	}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if want := map[bool]fs.FileMode{true: 0o600, false: 0o644}[strings.HasSuffix(path, ".key")]; info.Mode() != want {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		if strings.HasPrefix(d.Name(), ".") {
			t.Errorf("%s was left behind", path)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestAKeyIsNeverOverwrittenUnasked(t *testing.T) {
	now := time.Now()
	dir := made(t, now)
	caKey, nodeKey := filepath.Join(dir, "ca.key"), filepath.Join(dir, "hv1", "node.key")
	caBefore, nodeBefore := string(read(t, caKey)), string(read(t, nodeKey))
	if _, err := pki.Init(dir, "demo", false, now); !errors.Is(err, pki.ErrExists) {
		t.Error(err)
	}
	if _, err := pki.Issue(dir, "hv1", "", 30, false, now); !errors.Is(err, pki.ErrExists) {
		t.Error(err)
	}
	// One file of the pair is enough.
	if err := os.Remove(filepath.Join(dir, "ca.pem")); err != nil {
		t.Fatal(err)
	}
	if _, err := pki.Init(dir, "demo", false, now); !errors.Is(err, pki.ErrExists) {
		t.Error(err)
	}
	if string(read(t, caKey)) != caBefore || string(read(t, nodeKey)) != nodeBefore {
		t.Error("a key was replaced")
	}
	if _, err := pki.Init(dir, "demo", true, now); err != nil {
		t.Error(err)
	}
	if _, err := pki.Issue(dir, "hv1", "", 30, true, now); err != nil {
		t.Error(err)
	}
	if string(read(t, caKey)) == caBefore || string(read(t, nodeKey)) == nodeBefore {
		t.Error("--force replaced no key")
	}
}

func TestRenewKeepsTheKey(t *testing.T) {
	now := time.Now()
	dir := made(t, now)
	key := string(read(t, filepath.Join(dir, "hv1", "node.key")))
	later := now.Add(300 * day)
	m, err := pki.Renew(dir, "hv1", "", 100, later)
	if err != nil || m.Expires.Sub(later) < 99*day {
		t.Fatal(m, err)
	}
	if string(read(t, filepath.Join(dir, "hv1", "node.key"))) != key {
		t.Error("the key has changed")
	}
	if _, err := peer.LoadIdentity(pki.NodeFiles(filepath.Join(dir, "hv1")), "demo", "hv1", nil); err != nil {
		t.Error(err)
	}
	// The key may lie on the node alone.
	if err := os.Remove(filepath.Join(dir, "hv1", "node.key")); err != nil {
		t.Fatal(err)
	}
	if _, err := pki.Renew(dir, "hv1", t.TempDir(), 100, later); err != nil {
		t.Error(err)
	}
	if _, err := pki.Renew(dir, "hv1", filepath.Join(dir, "hv2"), 100, later); err == nil {
		t.Error("a certificate was put beside another node's key")
	}
}

func TestWhatCannotBeMadeIsRefusedWithItsReason(t *testing.T) {
	now := time.Now()
	dir := made(t, now)
	noKey := made(t, now)
	if err := os.Remove(filepath.Join(noKey, "ca.key")); err != nil {
		t.Fatal(err)
	}
	foreign := made(t, now)
	if err := os.WriteFile(filepath.Join(foreign, "ca.key"), read(t, filepath.Join(dir, "ca.key")), 0o600); err != nil {
		t.Fatal(err)
	}
	issue := func(dir string, n cluster.NodeID, days int) error {
		_, err := pki.Issue(dir, n, "", days, false, now)
		return err
	}
	initialise := func(name string) error {
		_, err := pki.Init(t.TempDir(), name, false, now)
		return err
	}
	renew := func(n cluster.NodeID) error { _, err := pki.Renew(dir, n, "", 10, now); return err }
	for says, err := range map[string]error{
		"pvc pki init":                     issue(t.TempDir(), "hv3", 10),
		"has no key here":                  issue(noKey, "hv3", 10),
		"copied from different places":     issue(foreign, "hv3", 10),
		"for 4000 days is not possible":    issue(dir, "hv3", 4000),
		"for 0 days is not possible":       issue(dir, "hv3", 0),
		"is not a node name":               issue(dir, "../hv3", 10),
		"cannot stand in a certificate":    initialise("my cluster"),
		`"a..b" cannot stand`:              initialise("a..b"),
		"never issued it a certificate":    renew("hv9"),
		`"x/y" is not a node name`:         renew("x/y"),
		"beginning with a letter or digit": initialise(""),
	} {
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v does not say %q", err, says)
		}
	}
}

func TestStatusFindsWhatIsWrong(t *testing.T) {
	now := time.Now()
	copyTo := func(t *testing.T, to, from string) {
		t.Helper()
		if err := os.WriteFile(to, read(t, from), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		spoil func(t *testing.T, dir string)
		at    time.Duration
		says  string // empty: all is well
		warns string
	}{
		"well":    {spoil: func(*testing.T, string) {}},
		"expired": {spoil: func(*testing.T, string) {}, at: 398 * day, says: "has expired: run `pvc pki renew hv1`"},
		"soon":    {spoil: func(*testing.T, string) {}, at: 370 * day, warns: "expires soon"},
		"the key of another": {spoil: func(t *testing.T, dir string) {
			copyTo(t, filepath.Join(dir, "hv1", "node.key"), filepath.Join(dir, "hv2", "node.key"))
		}, says: "is not its key"},
		"the authority's key of another": {spoil: func(t *testing.T, dir string) {
			copyTo(t, filepath.Join(dir, "ca.key"), filepath.Join(dir, "hv2", "node.key"))
		}, says: "is not its key"},
		"of another authority": {spoil: func(t *testing.T, dir string) {
			copyTo(t, filepath.Join(dir, "ca.pem"), filepath.Join(made(t, now), "ca.pem"))
		}, says: "was not signed by this authority"},
		"a copy under another name": {spoil: func(t *testing.T, dir string) {
			copyTo(t, filepath.Join(dir, "_issued", "hv3.pem"), filepath.Join(dir, "_issued", "hv2.pem"))
		}, says: "not of node hv3"},
		"readable by all": {spoil: func(t *testing.T, dir string) {
			if err := os.Chmod(filepath.Join(dir, "hv1", "node.key"), 0o644); err != nil {
				t.Fatal(err)
			}
		}, says: "can be read by others"},
		"rubbish": {spoil: func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, "hv1", "node.pem"), []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, says: "no PEM certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := made(t, now)
			c.spoil(t, dir)
			s, err := pki.Look(dir, now.Add(c.at))
			if err != nil {
				t.Fatal(err)
			}
			var problems, warnings []string
			for _, e := range s.Entries {
				problems, warnings = append(problems, e.Problems...), append(warnings, e.Warnings...)
			}
			if all := strings.Join(problems, "\n"); (c.says == "") != (len(problems) == 0) || !strings.Contains(all, c.says) {
				t.Errorf("problems %q do not say %q", all, c.says)
			}
			if all := strings.Join(warnings, "\n"); !strings.Contains(all, c.warns) {
				t.Errorf("warnings %q do not say %q", all, c.warns)
			}
			if s.Problems() != len(problems) {
				t.Errorf("%d problems counted of %d", s.Problems(), len(problems))
			}
		})
	}
	// A node's own folder holds no authority's key.
	s, err := pki.Look(filepath.Join(made(t, now), "hv1"), now)
	if err != nil || s.Problems() != 0 || len(s.Entries) != 2 || s.Entries[0].Key != "absent" || s.Entries[1].Name != "hv1" || s.Entries[1].Key != "matches" {
		t.Errorf("%+v, %v", s, err)
	}
}
