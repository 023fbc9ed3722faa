package pvc_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// authority gives each machine a certificate.
func (h *hall) authority(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	must(t, "bin/pvc", "pki", "init", "--cluster", "units", "--dir", dir)
	for _, m := range h.machines {
		must(t, "bin/pvc", "pki", "issue", m.name, "--dir", dir)
		m.pki = filepath.Join(dir, m.name)
	}
}

// labCopy is a workload of the machines.
type labCopy struct {
	name, driver, params string
	copies               int    // on how many machines
	pid                  string // prints the process of a copy; "": there is none
	state                string // prints what a copy without a process consists of
}

// labCopies are of each driver. The program and the unit write where the node daemon
// may not, one OCF agent has its process forked, Debian's own keep files, and a real
// redis-server runs as a user of its own.
var labCopies = []labCopy{
	{"program", "exec", "--kind movable --param command=/opt/copy", 1, "cat /etc/copy.pid", ""},
	{"unit", "systemd:lab@.service", "--kind movable", 1, "systemctl show -P MainPID lab@unit", ""},
	{"agent", "ocf:test:Odd", "--kind movable --param state=/etc/odd --param do_start=daemon", 1, "cat /etc/odd.start", ""},
	{"dummy", "ocf:heartbeat:Dummy", "--kind movable", 1, "", "stat -c %i.%Y /run/pvc/ocf/Dummy-dummy.state"},
	{"pair", "ocf:heartbeat:Stateful", "--kind replicated", 2, "", "cd /run/pvc/ocf && cat Stateful-pair.state && stat -c %i.%Y Stateful-pair.state"},
	{"cache", "redis", "--ephemeral", 2, "pgrep -x redis-server", ""},
}

// look prints what the copy is on a machine, and fails where there is none: its
// process with its start time, or its state.
func (c labCopy) look() string {
	if c.pid == "" {
		return c.state
	}
	return "p=$(" + c.pid + " 2>/dev/null) && [ $p != 0 ] && kill -0 $p 2>/dev/null && echo $p $(cut -d' ' -f22 /proc/$p/stat)"
}

// copies has machines run copies of each kind, outside of what the daemon may do,
// and ends the daemon and the guard under them.
func copies(t *testing.T, h *hall) {
	p := h.primary(t)
	m := h.other(p)
	for _, x := range h.machines {
		prepareForCopies(t, x)
	}
	for _, x := range []*machine{m, p} {
		x.sh(t, "pvc node ready "+x.name+" --wait")
	}
	for _, c := range labCopies {
		chain := m.name
		if c.copies == 2 {
			chain += "," + p.name
		}
		eventually(t, 60*time.Second, c.name+" is added", func() error { // the nodes' leases may not be told yet
			out, err := m.try(fmt.Sprintf("pvc workload add %s --driver %s --chain %s %s --wait --wait-timeout 30s", c.name, c.driver, chain, c.params))
			if err != nil && !strings.Contains(out, "workloads_without_leases") {
				t.Fatalf("%s: %v: %s", c.name, err, out)
			}
			return err
		})
	}
	m.apart(t)
	m.hearsOfAUnitsEnd(t)
	m.until(t, 30*time.Second, "a replica has what is written", "redis-cli -h "+m.fixed+" set word kept && redis-cli -h "+m.fixed+" wait 1 5000 | grep -x 1")
	p.until(t, 30*time.Second, "the agent's replica is there", "grep slave /run/pvc/ocf/Stateful-pair.state")
	for what, line := range map[string]string{
		"a restart of the daemon": "systemctl restart pvcnoded", "kill -9 of the daemon": "kill -9 $(systemctl show -P MainPID pvcnoded)",
	} {
		h.survive(t, what, func() {
			agent := m.pid(t, "pvcnoded")
			began := time.Now()
			m.sh(t, line)
			m.until(t, 30*time.Second, "another daemon is READY", `systemctl is-active --quiet pvcnoded && [ "$(systemctl show -P MainPID pvcnoded)" != `+agent+" ]")
			t.Logf("%s under copies: another was READY after %v", what, time.Since(began).Round(time.Millisecond))
		})
	}
	h.survive(t, "kill -9 of the guard", func() {
		guard := m.pid(t, "pvc-guard")
		m.sh(t, "kill -9 "+guard)
		m.until(t, 30*time.Second, "another guard runs", `p=$(systemctl show -P MainPID pvc-guard) && [ "$p" != 0 ] && [ "$p" != `+guard+" ]")
	})
	m.hearsOfAUnitsEnd(t) // one that an earlier guard has started
}

// prepareForCopies brings what the workloads' copies are run by into a machine.
func prepareForCopies(t *testing.T, x *machine) {
	t.Helper()
	put(t, x.root+"/opt/copy", "#!/bin/sh\necho $$ >/etc/copy.pid\n"+
		"trap 'if [ -e /etc/copy.slow ]; then sleep 7; mv /etc/copy.slow /etc/copy.saved; fi; exit' TERM\nsleep 1000002 & wait\n")
	put(t, x.root+"/etc/systemd/system/lab@.service", "[Service]\nExecStart=/bin/sh -c 'echo %i >/etc/lab; exec sleep 1000003'\nSlice=pvc.slice\nLimitNOFILE=777\n")
	must(t, "cp", "-r", ocfAgents, x.root+"/usr/lib/")
	must(t, "mkdir", "-p", x.root+"/usr/lib/ocf/resource.d/test")
	must(t, "cp", "driver/testdata/ocf/resource.d/test/Odd", x.root+"/usr/lib/ocf/resource.d/test/Odd")
	x.sh(t, "chmod 755 /opt/copy /usr/lib/ocf/resource.d/test/Odd; systemctl daemon-reload")
}

// apart expects that the machine's copies share neither the daemon's hardening nor
// the limits of its units and the guard's.
func (m *machine) apart(t *testing.T) {
	t.Helper()
	pids := map[string]string{}
	for _, c := range labCopies {
		if c.pid != "" {
			pids[c.name] = m.copyOf(t, c.pid)
		}
	}
	for line, want := range map[string]string{
		"grep NoNewPrivs /proc/" + pids["program"] + "/status": "0", "grep NoNewPrivs /proc/" + pids["agent"] + "/status": "0",
		"cat /proc/" + pids["unit"] + "/limits | grep 'Max open files'": "777",
		"stat -c %U /proc/" + pids["cache"]:                             "redis",
	} {
		if out := m.sh(t, line); !strings.Contains(out, want) {
			t.Errorf("%s says %q, not %s", line, out, want)
		}
	}
	for name, pid := range pids {
		out := m.sh(t, "grep ^0: /proc/"+pid+"/cgroup; cat /proc/"+pid+"/oom_score_adj")
		if !strings.Contains(out, "/pvc.slice/") || strings.Contains(out, "pvcnoded.service") || strings.Contains(out, "pvc-guard.service") || !strings.HasSuffix(out, "\n0\n") {
			t.Errorf("%s runs in this group, and with this score for when memory runs out: %s", name, out)
		}
	}
	any := m.sh(t, "systemd-run --quiet --wait --pipe cat /proc/self/limits")
	for _, name := range []string{"program", "agent"} { // redis-server takes more open files by itself
		if has := m.sh(t, "cat /proc/"+pids[name]+"/limits"); has != any {
			t.Errorf("%s has these limits:\n%s\nand any service has these:\n%s", name, has, any)
		}
	}
	limits := "for u in pvc.slice pvc-guard.service; do for l in MemoryMax MemoryHigh TasksMax; do systemctl show -P $l $u; done; done"
	if out := m.sh(t, limits+" | sort -u"); out != "infinity\n" {
		t.Errorf("what copies run in, and by, has limits: %s", out)
	}
}

// hearsOfAUnitsEnd ends the unit of a copy: the guard is told by systemd, and has the
// copy started again.
func (m *machine) hearsOfAUnitsEnd(t *testing.T) {
	t.Helper()
	const told = "journalctl --no-pager -u pvc-guard | grep 'service exited' | grep -c copy-unit || true"
	pid, before := m.copyOf(t, "systemctl show -P MainPID lab@unit"), m.sh(t, told)
	m.sh(t, "kill -9 "+pid)
	m.until(t, 30*time.Second, "the guard is told of the unit's end", `[ "$(`+told+`)" -gt `+strings.TrimSpace(before)+" ]")
	m.until(t, 60*time.Second, "it runs again", `p=$(systemctl show -P MainPID lab@unit) && [ "$p" != 0 ] && [ "$p" != `+pid+" ]")
	m.until(t, 60*time.Second, "the cluster says so", "pvc workload info unit -o json | tr -d ' ' | grep -q '\"state\":\"running\"'")
}

// copyOf waits for a copy's process and returns its number.
func (m *machine) copyOf(t *testing.T, pid string) (number string) {
	t.Helper()
	eventually(t, 30*time.Second, "the copy's process: "+pid, func() error {
		out, err := m.try("p=$(" + pid + ") && [ $p != 0 ] && kill -0 $p && echo $p")
		number = strings.TrimSpace(out)
		return err
	})
	return number
}

// survive expects the very same copies, on whichever machines they run, before and
// after, and that the cluster says so then.
func (h *hall) survive(t *testing.T, what string, body func()) {
	t.Helper()
	type copyOn struct {
		labCopy
		on    *machine
		found string
	}
	var list []copyOn
	for _, c := range labCopies {
		found := 0
		for _, m := range h.machines {
			if out, err := m.try(c.look()); err == nil {
				list, found = append(list, copyOn{c, m, out}), found+1
			}
		}
		if found != c.copies {
			t.Errorf("%s: %d copies of %s are there, not %d", what, found, c.name, c.copies)
		}
	}
	body()
	for _, c := range list {
		if out, err := c.on.try(c.look()); err != nil || out != c.found {
			t.Errorf("%s: %q of %s on %s did not survive: %s", what, c.found, c.name, c.on.name, out)
		}
		c.on.until(t, 60*time.Second, c.name+" is running still", "pvc workload info "+c.name+" -o json | tr -d ' ' | grep -q '\"state\":\"running\"'")
	}
}

// endCopies stops the target of a machine that runs copies: all of them are gone when
// that returns, also one that took longer to save than the node's right lasts without
// its daemon, and the others' stay. When it is back each runs again, and of the one
// that came back empty the other copy serves, with what was written.
func endCopies(t *testing.T, h *hall) {
	var m, other *machine // with all copies, and with the replicas
	for _, x := range h.machines {
		if _, err := x.try(labCopies[0].look()); err == nil {
			m = x
		} else if _, err := x.try("pgrep -x redis-server"); err == nil {
			other = x
		}
	}
	if m == nil || other == nil {
		t.Fatal("no machine has the program's copy, or none the replicas")
	}
	replica := other.sh(t, "pgrep -x redis-server")
	began := time.Now()
	m.sh(t, "touch /etc/copy.slow && systemctl stop pvc.target")
	t.Logf("the target was stopped under %d copies in %v", len(labCopies), time.Since(began).Round(time.Millisecond))
	for _, c := range labCopies {
		if out, err := m.try(c.look()); err == nil {
			t.Errorf("%s: it is still there after the target's stop: %s", c.name, out)
		}
	}
	m.nothingLeft(t)
	if out, err := m.try("ls /etc/copy.saved"); err != nil {
		t.Errorf("the program was killed while it saved: %s", out)
	}
	if now := other.sh(t, "pgrep -x redis-server"); now != replica {
		t.Errorf("the stop of %s has ended the copy on %s: process %s, before %s", m.name, other.name, now, replica)
	}
	m.sh(t, "timeout 30 systemctl start pvc.target")
	defer func() {
		if t.Failed() {
			out, _ := m.try("pvc history -n 30; pvc workload list; pvc workload info unit")
			t.Logf("what the cluster says:\n%s", out)
			for _, x := range h.machines {
				out, _ := x.try("journalctl --no-pager -o cat -p warning -n 20 -u pvc-guard -u pvcnoded")
				t.Logf("the warnings of %s:\n%s", x.name, out)
			}
		}
	}()
	other.until(t, 60*time.Second, "the replica serves what was written", "redis-cli -h "+other.fixed+" get word | grep -x kept")
	for _, c := range labCopies {
		if c.copies == 1 {
			m.until(t, 60*time.Second, c.name+" runs again", c.look())
			m.until(t, 60*time.Second, "the cluster says so", "pvc workload info "+c.name+" -o json | tr -d ' ' | grep -q '\"state\":\"running\"'")
		}
	}
}

// nothingLeft expects that no process of a copy is on the machine.
func (m *machine) nothingLeft(t *testing.T) {
	t.Helper()
	if out, err := m.try("{ pgrep -fl '[s]leep 100000[23]|[s]leep 1000$|[r]edis-server'; ls /run/pvc/ocf/*.state 2>/dev/null; } | grep ."); err == nil {
		t.Errorf("%s: something of the workloads is left: %s", m.name, out)
	}
}

// removeCopies removes the workloads, of which nothing is left.
func removeCopies(t *testing.T, h *hall) {
	m := h.primary(t)
	for _, c := range labCopies {
		m.sh(t, "pvc workload remove "+c.name+" --destroy --yes --wait --wait-timeout 60s")
	}
	for _, x := range h.machines {
		x.nothingLeft(t)
	}
}
