package pvc_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// packageOf makes a package that ships these settings files, with stand-ins for
// the programs, and returns its path.
func packageOf(t *testing.T, version, settings string) string {
	t.Helper()
	dir := t.TempDir()
	for _, program := range []string{"pvcnoded", "pvcapid", "pvc"} {
		put(t, filepath.Join(dir, program), "#!/bin/sh\n")
	}
	put(t, filepath.Join(dir, "pvcnoded.yaml"), settings)
	put(t, filepath.Join(dir, "pvcapid.yaml"), settings)
	must(t, "make", "-s", "package", "DIST="+dir, "DEB_VERSION="+version, "BIN="+dir, "ETC="+dir)
	return filepath.Join(dir, "pvc_"+version+"_amd64.deb")
}

// dpkgIn has dpkg install the package below root, where nobody answers a question.
func dpkgIn(t *testing.T, root, deb string) string {
	t.Helper()
	c := exec.Command("dpkg", "--root="+root, "--force-depends", "--force-script-chrootless", "--force-unsafe-io", "-i", deb)
	c.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("dpkg -i %s, with nobody to answer: %v\n%s", filepath.Base(deb), err, out)
	}
	return string(out)
}

// An upgrade never asks about settings: those that an operator has changed stay,
// and what the new version ships otherwise is told; those that nobody has changed
// follow the package.
func TestUpgradeKeepsChangedSettings(t *testing.T) {
	for _, program := range []string{"dpkg", "make", "systemd-sysusers"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs %s: make deps installs it", program)
		}
	}
	if _, err := os.Stat("bin/nfpm"); err != nil {
		t.Skip("needs bin/nfpm: run make bin/nfpm")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: the package's files belong to it")
	}
	root := t.TempDir()
	for _, dir := range []string{"var/lib/dpkg/updates", "var/lib/dpkg/info", "etc"} {
		must(t, "mkdir", "-p", filepath.Join(root, dir))
	}
	put(t, filepath.Join(root, "var/lib/dpkg/status"), "")
	node, api := filepath.Join(root, "etc/pvc/pvcnoded.yaml"), filepath.Join(root, "etc/pvc/pvcapid.yaml")
	is := func(when, path, want string) {
		t.Helper()
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("%s %s is %q (%v), want %q", when, filepath.Base(path), got, err, want)
		}
	}
	dpkgIn(t, root, packageOf(t, "1.0", "old: 1\nsame: 1\n"))
	is("after the installation", node, "old: 1\nsame: 1\n")
	if info, err := os.Stat(node); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("it may be read by others: %v, %v", info, err)
	}
	put(t, node, "mine: 1\n")
	second := packageOf(t, "2.0", "new: 2\nsame: 1\n")
	out := dpkgIn(t, root, second)
	is("after the upgrade", node, "mine: 1\n")
	is("after the upgrade", api, "new: 2\nsame: 1\n")
	for _, want := range []string{"/etc/pvc/pvcnoded.yaml is yours and stays", "-old: 1", "+new: 2"} {
		if !strings.Contains(out, want) {
			t.Errorf("the upgrade does not say %q:\n%s", want, out)
		}
	}
	if out := dpkgIn(t, root, second); strings.Contains(out, "yours") {
		t.Errorf("the same version again, and something is new:\n%s", out)
	}
	is("after the second time", node, "mine: 1\n")
}
