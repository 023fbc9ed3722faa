package acceptance

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"pvc.internal/cluster"
	"pvc.internal/peer/pki"
)

// device is one fence device of a node "hv2", as settings have it.
func device(keys settings) settings {
	return settings{"fencing.nodes.hv2.levels": [][]settings{{keys}}}
}

// also adds one more change.
func (s settings) also(key string, value any) settings {
	s[key] = value
	return s
}

func ipmi(more settings) settings {
	return settings{"name": "bmc", "type": "ipmi", "address": "192.0.2.9", "user": "fencer", "password_file": "/etc/pvc/bmc.pass"}.with(more)
}

// TestBadFencing: what is wrong with the fencing part or the certificate is
// told before the daemon does anything.
func TestBadFencing(t *testing.T) {
	t.Parallel()
	needs(t)
	sealed := ipmi(settings{"password_sealed": "YWdl"})
	delete(sealed, "password_file")
	for name, c := range map[string]struct {
		change settings
		words  []string
	}{
		"unknown type":           {device(ipmi(settings{"type": "impi"})), []string{"fencing.nodes.hv2.levels[0][0].type", `did you mean "ipmi"`}},
		"unknown option":         {device(ipmi(settings{"pasword_file": "/x"})), []string{"pasword_file is unknown", `"password_file"`}},
		"option of another type": {device(ipmi(settings{"system": "1"})), []string{"hv2", `"bmc"`, "system is not an option of type ipmi"}},
		"unknown device": {device(settings{"name": "strip-b"}).also("fencing.devices", []settings{ipmi(settings{"name": "strip-a"})}),
			[]string{"fencing.nodes.hv2.levels[0][0]", `no device is called "strip-b"`, `did you mean "strip-a"`}},
		"an action of one's own":  {device(settings{"name": "pdu", "type": "agent", "agent": "fence_apc", "options": settings{"action": "on"}}), []string{`"pdu"`, "not the settings' to choose"}},
		"no power behind it":      {device(settings{"name": "scsi", "type": "agent", "agent": "fence_scsi"}), []string{`"scsi"`, "takes no power"}},
		"two passwords":           {device(ipmi(settings{"password_sealed": "YWdl"})).also("fencing.secrets.key_file", "/etc/pvc/fence.key"), []string{`"bmc"`, "password_file", "password_sealed", "keep one"}},
		"sealed without a key":    {device(sealed), []string{"password_sealed", "fencing.secrets.key_file"}},
		"the same twice":          {settings{"fencing.nodes.hv2.levels": [][]settings{{ipmi(nil)}, {ipmi(nil)}}}, []string{"fencing.nodes.hv2.levels[1][0]", "twice"}},
		"an empty level":          {settings{"fencing.nodes.hv2.levels": [][]settings{{}}}, []string{"fencing.nodes.hv2.levels[0]", "would prove nothing"}},
		"after what":              {device(ipmi(nil)).also("fencing.nodes.hv2.after", "on"), []string{"fencing.nodes.hv2.after", "reboot, off"}},
		"migrate, no watchdog":    {settings{"fencing.failed_fence": "migrate"}, []string{"fencing.failed_fence", "watchdog.device"}},
		"self-fence, no watchdog": {settings{"self_fence": "watchdog"}, []string{"self_fence", "watchdog.device"}},
		"no schedule":             {settings{"fencing.test_schedule": "now and then"}, []string{"fencing.test_schedule"}},
	} {
		t.Run(name, func(t *testing.T) { refusedAtStart(t, c.change, c.words) })
	}
}

// refusedAtStart wants the daemon and its check to refuse the settings, by name
// of the file and with those words, and nothing to be made.
func refusedAtStart(t *testing.T, change settings, words []string) {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "pvcnoded.yaml")
	goodNode(dir).with(change).write(t, file)
	for _, args := range [][]string{{"-c", file}, {"guard", "-c", file}, {"config", "check", "-c", file}} {
		out, code := runs(t, exec.CommandContext(t.Context(), program("pvcnoded"), args...))
		if code != exitSettings {
			t.Errorf("pvcnoded %v ended with status %d, want %d", args, code, exitSettings)
		}
		wants(t, "the refusal", out, append(words, file)...)
	}
	if _, err := os.Stat(filepath.Join(dir, "state")); err == nil {
		t.Error("the state folder was made before the settings were judged")
	}
}

// TestBadCertificates: one of another name or authority is refused, one that
// has expired is told with its cure and keeps no node from starting: its role
// and its keepalives need none.
func TestBadCertificates(t *testing.T) {
	needs(t)
	dir, now := t.TempDir(), time.Now()
	authority := func(name string, at time.Time) string {
		folder := filepath.Join(dir, name)
		if _, err := pki.Init(folder, "demo", false, at); err != nil {
			t.Fatal(err)
		}
		return folder
	}
	issue := func(authority string, node cluster.NodeID, folder string, at time.Time) settings {
		folder = filepath.Join(dir, folder)
		if _, err := pki.Issue(authority, node, folder, 30, false, at); err != nil {
			t.Fatal(err)
		}
		f := pki.NodeFiles(folder)
		return settings{"peer.listen": "192.0.2.1:7371", "peer.tls.ca": f.CA, "peer.tls.cert": f.Cert, "peer.tls.key": f.Key}
	}
	ours, theirs, old := authority("ours", now), authority("theirs", now), authority("old", now.AddDate(0, 0, -60))
	good := issue(ours, "hv1", "good", now)
	for name, c := range map[string]struct {
		change settings
		code   int
		words  []string
	}{
		"of another node":      {issue(ours, "hv2", "other", now), exitSettings, []string{"spiffe://demo/node/hv2", "spiffe://demo/node/hv1", "pvc pki issue hv1"}},
		"of another authority": {issue(theirs, "hv1", "foreign", now).also("peer.tls.ca", good["peer.tls.ca"]), exitSettings, []string{"no authority of this node"}},
		"missing":              {issue(ours, "hv1", "keyless", now).also("peer.tls.key", filepath.Join(dir, "none.key")), exitSettings, []string{"peer.tls.key", "none.key"}},
		"expired":              {issue(old, "hv1", "expired", now.AddDate(0, 0, -60)), 0, []string{"warning: ", "expired on", "pvc pki renew hv1"}},
		"good":                 {good, 0, []string{"good: node hv1"}},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "pvcnoded.yaml")
			goodNode(t.TempDir()).with(c.change).write(t, file)
			out, code := runs(t, exec.CommandContext(t.Context(), program("pvcnoded"), "config", "check", "-c", file))
			if code != c.code {
				t.Errorf("ended with status %d, want %d", code, c.code)
			}
			wants(t, "the check", out, append(c.words, file)...)
		})
	}
}
