package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
	"pvc.internal/peer/pki"
)

// authority makes one for a cluster and returns its folder.
func authority(t *testing.T, clusterName string) string {
	t.Helper()
	dir := t.TempDir()
	if _, err := pki.Init(dir, clusterName, false, time.Now()); err != nil {
		t.Fatal(err)
	}
	return dir
}

// certified issues a node's files and returns the peer section that names them.
func certified(t *testing.T, authority, node string, days int) (section, folder string) {
	t.Helper()
	folder = t.TempDir()
	if _, err := pki.Issue(authority, cluster.NodeID(node), folder, days, false, time.Now()); err != nil {
		t.Fatal(err)
	}
	f := pki.NodeFiles(folder)
	return fmt.Sprintf("peer: {listen: \"10.0.0.1:7371\", tls: {ca: %s, cert: %s, key: %s}}\n", f.CA, f.Cert, f.Key), folder
}

// Where nodes do not talk nobody is asked to stop: the fencer has nobody to ask
// through, and not one that holds nothing.
func TestNobodyIsAskedToStopWithoutPeers(t *testing.T) {
	if soft := (&talk{}).soft(); soft != nil {
		t.Errorf("%T", soft)
	}
}

// What is wrong with a certificate is said before the daemon starts with it.
func TestConfigCheckLooksAtTheCertificate(t *testing.T) {
	demo, other := authority(t, "demo"), authority(t, "other")
	good, _ := certified(t, demo, "hv1", 300)
	soon, _ := certified(t, demo, "hv1", 6)
	hv2, _ := certified(t, demo, "hv2", 300)
	foreign, _ := certified(t, other, "hv1", 300)
	_, mixed := certified(t, demo, "hv1", 300)
	missing, gone := certified(t, demo, "hv1", 300)
	if err := os.Remove(filepath.Join(gone, "node.key")); err != nil {
		t.Fatal(err)
	}
	before, _, _ := strings.Cut(good, "key: ")
	exchanged := before + "key: " + pki.NodeFiles(mixed).Key + "}}\n"
	for _, c := range []struct {
		name, section string
		code          int
		want          []string
	}{
		{"good", good, 0, []string{"good: node hv1"}},
		{"ends soon", soon, 0, []string{"warning: ", "expires on", "pvc pki renew hv1"}},
		{"another node's", hv2, 78, []string{"spiffe://demo/node/hv2", "spiffe://demo/node/hv1"}},
		{"another cluster's", foreign, 78, []string{"spiffe://other/"}},
		{"no key", missing, 78, []string{"peer.tls.key", "no such file"}},
		{"two issues mixed", exchanged, 78, []string{"do not belong together"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, output := capture(t, "config", "check", "-c", settingsFile(t, c.section))
			for _, want := range c.want {
				if code != c.code || !strings.Contains(output, want) {
					t.Errorf("status %d, want %d; output, which should hold %q:\n%s", code, c.code, want, output)
				}
			}
		})
	}
}
