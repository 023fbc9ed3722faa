package acceptance

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// exitSettings is the status of a daemon that its settings stop: systemd does
// not start it again.
const exitSettings = 78

// goodNode are settings that the node daemon accepts; nothing of them is used.
func goodNode(dir string) settings {
	return settings{
		"node": settings{"name": "hv1"}, "cluster": settings{"name": "demo"},
		"zookeeper": settings{"servers": []string{"192.0.2.1:2181"}},
		"state_dir": filepath.Join(dir, "state"), "run_dir": filepath.Join(dir, "run"),
	}
}

// TestBadSettings: each mistake is refused at once, by name, with the cure.
func TestBadSettings(t *testing.T) {
	needs(t)
	address := func(cidr string) settings {
		return settings{"addresses": []settings{{"name": "up", "cidr": cidr, "interface": "eth0"}}}
	}
	server := func(s string) settings { return settings{"zookeeper.servers": []string{s}} }
	for name, c := range map[string]struct {
		change settings
		words  []string
	}{
		"unknown key":             {settings{"timing.keepalive_intervall": "1s"}, []string{"timing.keepalive_intervall", `did you mean "keepalive_interval"`}},
		"unknown section":         {settings{"adresses": []string{}}, []string{"adresses", `did you mean "addresses"`}},
		"text for a number":       {settings{"node.priority": "high"}, []string{"node.priority", "high", "whole number"}},
		"text for a truth":        {settings{"role.gate": "maybe"}, []string{"role.gate", "maybe", "neither true nor false"}},
		"no duration":             {settings{"timing.role_ttl": "soon"}, []string{"timing.role_ttl", "soon", "500ms"}},
		"unsafe lease":            {settings{"timing.role_ttl": "1s"}, []string{"role_ttl", "1.6s", "700ms"}},
		"collector deadline":      {settings{"timing.collector_deadline": "2s"}, []string{"collector_deadline", "2s", "1s"}},
		"fenced before expiry":    {settings{"timing.fence_intervals": 2}, []string{"fence_intervals", "2s", "2.9s"}},
		"address without length":  {address("10.0.0.10"), []string{"addresses[0].cidr", "10.0.0.10/24"}},
		"no address":              {address("banana"), []string{"addresses[0].cidr", "banana", "10.0.0.10/24"}},
		"the network itself":      {address("10.0.0.0/24"), []string{"addresses[0].cidr", "10.0.0.0/24"}},
		"chroot":                  {server("zk1:2181/pvc"), []string{"zookeeper.servers[0]", "zookeeper.root: /pvc", "zk1:2181"}},
		"several in one":          {server("zk1:2181,zk2:2181"), []string{"zookeeper.servers[0]", "entry of its own"}},
		"IPv6 without brackets":   {server("fd00::1"), []string{"zookeeper.servers[0]", "[fd00::1]:2181"}},
		"port":                    {server("zk1:99999"), []string{"zookeeper.servers[0]", "99999", "65535"}},
		"password file missing":   {settings{"zookeeper.auth": settings{"scheme": "digest", "user": "pvc"}}, []string{"zookeeper.auth.password_file"}},
		"plugin without a path":   {settings{"plugins": []settings{{"name": "load", "command": []string{"check_load"}}}}, []string{"plugins[0].command", "full path"}},
		"service of unknown kind": {settings{"services": []settings{{"name": "dns", "kind": "hok", "command": []string{"/bin/true"}}}}, []string{"services[0].kind", `did you mean "hook"`}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, "pvcnoded.yaml")
			goodNode(dir).with(c.change).write(t, file)
			out, code := runs(t, exec.CommandContext(t.Context(), program("pvcnoded"), "-c", file))
			if code != exitSettings {
				t.Errorf("ended with status %d, want %d", code, exitSettings)
			}
			wants(t, "the refusal", out, append(c.words, file)...)
			checked, code := runs(t, exec.CommandContext(t.Context(), program("pvcnoded"), "config", "check", "-c", file))
			if code == 0 {
				t.Errorf("`pvcnoded config check` finds nothing wrong: %s", checked)
			}
			if _, err := os.Stat(filepath.Join(dir, "state")); err == nil {
				t.Error("the state folder was made before the settings were judged")
			}
		})
	}
}

// TestUnreadablePassword is told by name. It may yet come, so that the daemon is
// started again.
func TestUnreadablePassword(t *testing.T) {
	needs(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "pvcnoded.yaml")
	goodNode(dir).with(settings{"zookeeper.auth": settings{"scheme": "digest", "user": "pvc", "password_file": "/nonexistent/pass"}}).write(t, file)
	for _, args := range [][]string{{"-c", file}, {"config", "check", "-c", file}} {
		out, code := runs(t, exec.CommandContext(t.Context(), program("pvcnoded"), args...))
		if code == 0 {
			t.Errorf("pvcnoded %v ended with status 0", args)
		}
		wants(t, fmt.Sprint("pvcnoded ", args), out, "/nonexistent/pass", "pvc")
	}
}

// TestAllMistakesAreToldTogether: one run names every mistake of a file.
func TestAllMistakesAreToldTogether(t *testing.T) {
	needs(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "pvcnoded.yaml")
	goodNode(dir).with(settings{"cluster.name": "", "node.mode": "king", "zookeeper.root": "pvc/"}).write(t, file)
	out, _ := runs(t, exec.CommandContext(t.Context(), program("pvcnoded"), "-c", file))
	wants(t, "the refusal", out, "cluster.name", "node.mode", "zookeeper.root")
}

// TestAPIListen: whoever is not on this host is let in only on purpose.
func TestAPIListen(t *testing.T) {
	needs(t)
	api := func(keys settings) settings {
		s := goodNode("").with(settings{"api": keys})
		delete(s, "state_dir")
		delete(s, "run_dir")
		return s
	}
	dir := t.TempDir()
	for i, c := range []struct {
		keys settings
		code int
		want []string
	}{
		{settings{"listen": []string{"0.0.0.0:7370"}}, exitSettings, []string{"api.listen[0]", "keys_file", "auth: none"}},
		{settings{"listen": []string{"127.0.0.1:7370", "[::]:7370"}}, exitSettings, []string{"api.listen[1]", "auth: none"}},
		{settings{"listen": []string{"7370"}}, exitSettings, []string{"api.listen[0]", "127.0.0.1:7370"}},
		{settings{"listen": []string{"0.0.0.0:7370"}, "auth": "nobody"}, exitSettings, []string{"api.auth"}},
		{settings{"listen": []string{"0.0.0.0:7370"}, "keys_file": "/nonexistent/keys"}, exitSettings, []string{"/nonexistent/keys"}},
		{settings{"listen": []string{"0.0.0.0:7370"}, "auth": "none"}, 0, nil},
		{settings{"listen": []string{"127.0.0.1:7370", "[::1]:7370"}}, 0, nil},
	} {
		t.Run(strings.Trim(fmt.Sprint(c.keys), "map[]"), func(t *testing.T) {
			file := filepath.Join(dir, fmt.Sprint(i, ".yaml"))
			api(c.keys).write(t, file)
			out, code := runs(t, exec.CommandContext(t.Context(), program("pvcapid"), "-check", "-c", file))
			if code != c.code {
				t.Errorf("status %d, want %d: %s", code, c.code, out)
			}
			wants(t, "the refusal", out, c.want...)
		})
	}
}
