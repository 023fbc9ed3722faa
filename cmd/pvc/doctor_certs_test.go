package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The end of a chain is that of whatever in it ends first, and what is no
// certificate is no end.
func TestEndOfCertificates(t *testing.T) {
	dir := t.TempDir()
	for _, line := range []string{"pki init --cluster demo", "pki issue hv1 --days 5 --out " + dir + "/hv1"} {
		if got := pvc(t, newServer(t, nil), "", append(strings.Fields(line), "--dir", dir)...); got.code != exitOK {
			t.Fatalf("%s: %+v", line, got)
		}
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	node, err := os.ReadFile(filepath.Join(dir, "hv1", "node.pem"))
	if err != nil {
		t.Fatal(err)
	}
	chain := filepath.Join(dir, "chain.pem")
	if err := os.WriteFile(chain, append(ca, node...), 0o600); err != nil {
		t.Fatal(err)
	}
	if end, err := endOf(chain); err != nil || time.Until(end) > 6*24*time.Hour || time.Until(end) < 3*24*time.Hour {
		t.Errorf("%v, %v", end, err)
	}
	for text, want := range map[string]string{"no pem": "no PEM certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n": chain} {
		if err := os.WriteFile(chain, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := endOf(chain); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}
