package pvc_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestUnits installs the package on three machines and leads them through what
// happens to services: from the first start to the power cut. The steps build on
// each other. What they measure is printed; what they demand has no clock in it
// but generous limits. PVC_SOAK=1 measures the upgrades five times.
func TestUnits(t *testing.T) {
	packages := buildPackages(t)
	h := newHall(t, 3)
	h.authority(t)
	firstPrimary(t, h, packages[0])
	step := func(name string, body func(t *testing.T, h *hall)) {
		if !t.Failed() {
			t.Run(name, func(t *testing.T) { body(t, h) })
		}
	}
	step("hardened", hardened)
	step("copies of workloads", copies)
	step("kill -9 of the agent", killAgent)
	step("kill -9 of the guard", killGuard)
	step("stop of the agent", stopAgent)
	step("reload", reload)
	rounds := 1
	if os.Getenv("PVC_SOAK") != "" {
		rounds = 5
	}
	for range rounds {
		step("upgrades in maintenance", func(t *testing.T, h *hall) { upgradeInMaintenance(t, h, packages[1]) })
		step("upgrade of the primary", func(t *testing.T, h *hall) { upgradePrimary(t, h, packages[0]) })
	}
	step("stop of the target under copies", endCopies)
	step("removal of workloads", removeCopies)
	step("a daemon that hangs", hang)
	step("settings that are refused", func(t *testing.T, h *hall) { refusedSettings(t, h, packages[0]) })
	step("remove and purge", removeAndPurge)
	step("a full disk, then no network", func(t *testing.T, h *hall) { badStart(t, h, packages[0]) })
	step("stop of the target", stopTarget)
	step("no guard comes back", noGuard)
	step("power cut", powerCut)
}

// newSetting is a line that the second package ships, and the first does not.
const newSetting = "# A setting of the second version."

const addressIsThere = "ip -o address show dev " + uplink + " | grep -q " + floating + "/24"

// buildPackages makes two packages: of what make build has built, and of the same
// tree with another version, which ships other settings.
func buildPackages(t *testing.T) []string {
	t.Helper()
	if os.Getenv("PVC_UNITS_TEST") == "" || os.Geteuid() != 0 {
		return make([]string, 2) // newHall skips the test
	}
	dist, second := t.TempDir(), t.TempDir()
	must(t, "sh", "-c", "cp bin/pvc "+second)
	must(t, "go", "build", "-ldflags", "-s -w -X main.version=v2.0-second", "-o", second, "./cmd/pvcnoded", "./cmd/pvcapid")
	must(t, "make", "-s", "package", "DIST="+dist, "DEB_VERSION=1.0+first")
	must(t, "sh", "-c", "for f in pvcnoded pvcapid; do { cat etc/$f.yaml; echo '"+newSetting+"'; } >"+second+"/$f.yaml || exit 1; done")
	must(t, "make", "-s", "package", "DIST="+dist, "DEB_VERSION=2.0+second", "BIN="+second, "ETC="+second)
	return []string{filepath.Join(dist, "pvc_1.0+first_amd64.deb"), filepath.Join(dist, "pvc_2.0+second_amd64.deb")}
}

// each does something to every machine at once.
func (h *hall) each(body func(m *machine)) {
	var all sync.WaitGroup
	for _, m := range h.machines {
		all.Go(func() { body(m) })
	}
	all.Wait()
}

// apt has apt-get do something with the package, without a question.
func (m *machine) apt(t *testing.T, command string, debs ...string) string {
	t.Helper()
	for i, deb := range debs {
		path := "/var/tmp/" + filepath.Base(deb)
		content, err := os.ReadFile(deb)
		if err == nil {
			err = os.WriteFile(m.root+path, content, 0o644)
		}
		if err != nil {
			t.Errorf("%s: %v", m.name, err)
			return ""
		}
		debs[i] = path
	}
	out, err := m.try("DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends --allow-downgrades -o Dpkg::Use-Pty=0 -o Dpkg::Options::=--force-unsafe-io " +
		command + " " + strings.Join(debs, " ") + " </dev/null")
	if err != nil {
		t.Errorf("%s: apt-get %s: %v\n%s", m.name, command, err, out)
	}
	return out
}

// configure writes the two files, and what they name.
func (m *machine) configure(t *testing.T) {
	t.Helper()
	shared := fmt.Sprintf("node: {name: %s}\ncluster: {name: units}\nzookeeper: {servers: [%s], auth: {scheme: digest, user: pvc, password_file: /etc/pvc/zookeeper.pass}}\n"+
		"timing: {role_ttl: 4s, write_gap: 3s, suicide_intervals: 5, fence_intervals: 6}\n", m.name, zkServers)
	put(t, m.root+"/etc/pvc/pvcapid.yaml", shared)
	put(t, m.root+"/etc/pvc/pvcnoded.yaml", shared+
		"addresses: [{name: a, cidr: "+floating+"/24, interface: "+uplink+"}]\n"+
		"peer: {listen: '"+m.fixed+":7371', tls: {ca: /etc/pvc/pki/ca.pem, cert: /etc/pvc/pki/node.pem, key: /etc/pvc/pki/node.key}}\n"+
		"role: {failsafe: false}\n"+
		"workloads: {redis_user: redis}\n"+
		"services: [{name: web, kind: hook, command: [/opt/web], check: [/bin/true]}]\n"+
		"plugins: [{name: rights, command: [/opt/rights], interval: 1s, timeout: 1s}]\n"+
		"fencing: {nodes: {hv2: {levels: [[{name: lab, type: exec, argv: [/opt/power]}]]}}}\n")
	for name, script := range map[string]string{
		"web":    "exec sleep 1000000",
		"rights": "cat /proc/self/cgroup /proc/self/status >/var/tmp/rights.new && mv /var/tmp/rights.new /var/tmp/rights; setpriv --reuid 65534 --clear-groups true && echo fine",
		"power":  `[ "$PVC_FENCE_ACTION" = status ]`,
	} {
		put(t, m.root+"/opt/"+name, "#!/bin/sh\n"+script+"\n")
	}
	must(t, "cp", "-rT", m.pki, m.root+"/etc/pvc/pki")
	if out, err := m.try("chmod 755 /opt/*; umask 027; echo secret >/etc/pvc/zookeeper.pass; chgrp pvcapid /etc/pvc/zookeeper.pass; chmod 640 /etc/pvc/*.yaml"); err != nil {
		t.Errorf("%s: %v: %s", m.name, err, out)
	}
}

// firstPrimary installs on three fresh machines and waits for the role.
func firstPrimary(t *testing.T, h *hall, deb string) {
	t.Helper()
	began := time.Now()
	h.each(func(m *machine) {
		m.apt(t, "install", deb)
		if state := m.state("pvcnoded"); state != "inactive" {
			t.Errorf("%s: the installation has started pvcnoded, before its settings: %s", m.name, state)
		}
		m.configure(t)
		if out, err := m.try("timeout 30 systemctl enable --now pvc.target"); err != nil {
			t.Errorf("%s: enable --now pvc.target: %v: %s", m.name, err, out)
		}
	})
	if t.Failed() {
		return
	}
	installed := time.Since(began)
	h.machines[0].until(t, 60*time.Second, "the cluster is initialised", "pvc cluster init --yes --name units")
	p := h.primary(t)
	t.Logf("install to first primary (%s): %.1f s, of which the three installations took %.1f s", p.name, time.Since(began).Seconds(), installed.Seconds())
	for _, m := range h.machines {
		m.until(t, 60*time.Second, m.name+" is READY", "systemctl is-active --quiet pvcnoded pvc-guard pvcapid pvc.target")
	}
	p.until(t, 30*time.Second, "the role's service runs", "pgrep -f '[s]leep 1000000'")
}

// primary waits until one machine has the floating address and says that it is
// primary.
func (h *hall) primary(t *testing.T) *machine {
	t.Helper()
	var holder *machine
	eventually(t, 60*time.Second, "one machine is primary", func() error {
		holder = nil
		for _, m := range h.machines {
			if m.leader == 0 {
				continue
			}
			if _, err := m.try(addressIsThere); err == nil {
				if holder != nil { // it may have moved in between
					return fmt.Errorf("%s and %s have the address", holder.name, m.name)
				}
				holder = m
			}
		}
		if holder == nil {
			return fmt.Errorf("nobody has the address")
		}
		out, err := holder.try("pvc node list --coordinator-state primary")
		if err != nil || !strings.Contains(out, holder.name) {
			return fmt.Errorf("%s has the address, and the cluster says: %s", holder.name, out)
		}
		return nil
	})
	return holder
}

// other returns the last machine that is not m.
func (h *hall) other(m *machine) *machine {
	for i := len(h.machines) - 1; ; i-- {
		if h.machines[i] != m {
			return h.machines[i]
		}
	}
}

// hardened looks at what the daemons may do, and that what needs rights works.
func hardened(t *testing.T, h *hall) {
	m := h.primary(t)
	for unit, most := range map[string]float64{"pvcapid": 2.0, "pvcnoded": 5.0} {
		out := m.sh(t, "systemd-analyze security --no-pager "+unit+" | tail -n 1")
		score := regexp.MustCompile(`: (\d+\.\d)`).FindStringSubmatch(out)
		if score == nil {
			t.Fatalf("no score of %s: %s", unit, out)
		}
		value, _ := strconv.ParseFloat(score[1], 64)
		t.Logf("systemd-analyze security %s: %s", unit, score[1])
		if value > most {
			t.Errorf("%s is exposed more than %.1f", unit, most)
		}
	}
	status := m.sh(t, "cat /proc/$(systemctl show -P MainPID pvcapid)/status")
	if uid := strings.TrimSpace(m.sh(t, "id -u pvcapid")); !strings.Contains(status, "Uid:\t"+uid+"\t") || uid == "0" {
		t.Errorf("pvcapid does not run as its own user: %s", status)
	}
	if !strings.Contains(status, "CapBnd:\t0000000000000000") || !strings.Contains(status, "CapEff:\t0000000000000000") {
		t.Errorf("pvcapid has capabilities: %s", status)
	}
	m.until(t, 30*time.Second, "the plugin ran", "test -e /var/tmp/rights")
	if out := m.sh(t, "cat /var/tmp/rights"); !regexp.MustCompile(`0::.*pvcnoded\.service/.+`).MatchString(out) {
		t.Errorf("the plugin has no control group of its own:\n%s", out)
	}
	m.until(t, 30*time.Second, "the plugin is well", "pvc node info "+m.name+" -o json | grep -q fine")
	if out, err := m.try("pvc fence test hv2 --wait"); err != nil || !strings.Contains(out, "ready") {
		t.Errorf("a fence device is not used: %v: %s", err, out)
	}
	doctor := "pvc doctor -o json | tr -d '\n ' | grep -o '\"check\":\"units\"[^}]*'"
	if out, _ := m.try(doctor); strings.Count(out, `"verdict":"ok"`) != 4 || !strings.Contains(out, `"pvc.target"`) {
		t.Errorf("the doctor does not find four units well: %s", out)
	}
	m.sh(t, "chmod 600 /etc/pvc/pvcapid.yaml")
	if out, _ := m.try(doctor); !strings.Contains(out, "cannotread/etc/pvc/pvcapid.yaml") {
		t.Errorf("the doctor does not see what pvcapid cannot read: %s", out)
	}
	m.sh(t, "chmod 640 /etc/pvc/pvcapid.yaml")
	for path, want := range map[string]string{"/etc/pvc/pvcapid.yaml": "root:pvcapid 640", "/etc/pvc/pvcnoded.yaml": "root:root 640", "/var/lib/pvc": "root:root 750", "/run/pvc": "root:root 750"} {
		if got := strings.TrimSpace(m.sh(t, "stat -c '%U:%G %a' "+path)); got != want {
			t.Errorf("%s is %s, not %s", path, got, want)
		}
	}
	if out, err := m.try("setpriv --reuid pvcapid --regid pvcapid --clear-groups cat /etc/pvc/pvcnoded.yaml /var/lib/pvc/node.json"); err == nil {
		t.Errorf("pvcapid reads what is the node's: %s", out)
	}
}

func killAgent(t *testing.T, h *hall) {
	m := h.primary(t)
	agent, guard, rest := m.pid(t, "pvcnoded"), m.pid(t, "pvc-guard"), m.pid(t, "pvcapid")
	m.sh(t, "kill -9 "+agent)
	m.watchWhile(t, "the address is there", addressIsThere, func() {
		m.until(t, 30*time.Second, "another agent is READY", fmt.Sprintf(
			`systemctl is-active --quiet pvcnoded && [ "$(systemctl show -P MainPID pvcnoded)" != %s ]`, agent))
		time.Sleep(3 * time.Second) // longer than the lease the dead agent held
	})
	if m.pid(t, "pvc-guard") != guard || m.pid(t, "pvcapid") != rest || m.state("pvc.target") != "active" {
		t.Errorf("guard, pvcapid or the target did not outlive the agent")
	}
}

func killGuard(t *testing.T, h *hall) {
	m := h.primary(t)
	agent, guard := m.pid(t, "pvcnoded"), m.pid(t, "pvc-guard")
	m.sh(t, "kill -9 "+guard)
	m.until(t, 30*time.Second, "another guard runs", fmt.Sprintf(
		`systemctl is-active --quiet pvc-guard && p=$(systemctl show -P MainPID pvc-guard) && [ "$p" != 0 ] && [ "$p" != %s ]`, guard))
	if now := m.pid(t, "pvcnoded"); now != agent {
		t.Errorf("the agent was restarted with the guard: process %s, before %s", now, agent)
	}
	h.primary(t)
}

// stopAgent stops the daemon of the primary and nothing else.
func stopAgent(t *testing.T, h *hall) {
	m := h.primary(t)
	guard := m.pid(t, "pvc-guard")
	m.sh(t, "systemctl stop pvcnoded")
	if out, err := m.try(addressIsThere); err == nil {
		t.Errorf("the address is still there after an orderly stop: %s", out)
	}
	if h.primary(t) == m {
		t.Errorf("%s is still primary", m.name)
	}
	if now := m.pid(t, "pvc-guard"); now != guard || m.state("pvc-guard") != "active" {
		t.Errorf("the guard did not survive: process %s, before %s", now, guard)
	}
	m.sh(t, "systemctl start pvcnoded")
}

// reload has the daemons read their settings again: what can be adopted is, what
// cannot is named, and nothing is restarted or moved.
func reload(t *testing.T, h *hall) {
	m := h.primary(t)
	agent, rest := m.pid(t, "pvcnoded"), m.pid(t, "pvcapid")
	m.sh(t, "cd /etc/pvc && cp -p pvcnoded.yaml /var/tmp/ && echo 'log: {level: debug}' >>pvcnoded.yaml && sed -i 's/role_ttl: 4s/role_ttl: 4100ms/' pvcnoded.yaml && systemctl reload pvcnoded pvcapid")
	m.until(t, 30*time.Second, "what needs a restart is named", "systemctl show -P StatusText pvcnoded | grep role_ttl")
	m.until(t, 30*time.Second, "the level has changed", `journalctl --no-pager -u pvcnoded | grep -q '"level":"debug"'`)
	m.sh(t, "cp -p /var/tmp/pvcnoded.yaml /etc/pvc/ && systemctl reload pvcnoded")
	m.until(t, 30*time.Second, "it is as before", "! systemctl show -P StatusText pvcnoded | grep role_ttl")
	if m.pid(t, "pvcnoded") != agent || m.pid(t, "pvcapid") != rest || m.state("pvcnoded") != "active" || m.state("pvcapid") != "active" {
		t.Errorf("a reload has restarted a daemon")
	}
	if h.primary(t) != m {
		t.Errorf("a reload has moved the role")
	}
}

// upgradeInMaintenance upgrades the machines one by one; the address stays and
// answers.
func upgradeInMaintenance(t *testing.T, h *hall, deb string) {
	m := h.primary(t)
	m.sh(t, "pvc cluster maintenance on --wait --reason upgrade")
	address, floor := h.probe(t, floating), h.probe(t, h.other(m).fixed)
	watched := map[*machine]*exec.Cmd{}
	for _, x := range h.machines {
		watched[x] = exec.Command("ip", "-n", x.netns, "monitor", "address")
		start(t, watched[x], filepath.Join(t.TempDir(), x.name))
	}
	h.survive(t, "the upgrades", func() {
		for _, x := range h.machines {
			before := x.sh(t, "cat /usr/share/pvc/pvcnoded.yaml")
			out := x.apt(t, "install --reinstall", deb) // also where an earlier round has left it
			if told := strings.Contains(out, "+"+newSetting); told == strings.Contains(before, newSetting) {
				t.Errorf("%s: the upgrade says which settings are new: %v, after a version that shipped: %s\n%s", x.name, told, tail([]byte(before)), out)
			}
			x.until(t, 60*time.Second, "the new version runs on "+x.name, "systemctl is-active --quiet pvcnoded && pvc node info "+x.name+" -o json | grep -q v2.0-second")
			x.until(t, 60*time.Second, "no program of the old version runs on "+x.name,
				`systemctl is-active --quiet pvc-guard pvcapid && ! { for u in pvc-guard pvcnoded pvcapid; do readlink /proc/$(systemctl show -P MainPID $u)/exe; done; } | grep deleted`)
		}
	})
	if settings := m.sh(t, "cat /etc/pvc/pvcnoded.yaml"); !strings.Contains(settings, "name: "+m.name) || strings.Contains(settings, newSetting) {
		t.Errorf("the upgrade has changed the settings: %s", settings)
	}
	silence, answers := address.silence()
	noise, _ := floor.silence()
	t.Logf("upgrade of three machines in maintenance: the address was silent for %v at most (of %d answers), a fixed one for %v", silence, answers, noise)
	if silence > 500*time.Millisecond+noise {
		t.Errorf("the address was silent for %v", silence)
	}
	for x := range watched {
		if out, err := os.ReadFile(watched[x].Stdout.(*os.File).Name()); err != nil || strings.Contains(string(out), "Deleted") {
			t.Errorf("an address of %s was removed (%v): %s", x.name, err, out)
		}
	}
	if h.primary(t) != m {
		t.Errorf("the role has moved")
	}
	m.sh(t, "pvc cluster maintenance off --wait")
}

// upgradePrimary upgrades the primary alone, outside of maintenance.
func upgradePrimary(t *testing.T, h *hall, deb string) {
	m := h.primary(t)
	address, floor := h.probe(t, floating), h.probe(t, h.other(m).fixed)
	h.survive(t, "the primary's upgrade", func() { m.apt(t, "install", deb) })
	to := h.primary(t)
	silence, _ := address.silence()
	noise, _ := floor.silence()
	t.Logf("upgrade of the primary: the role went to %s, the address was silent for %v at most, a fixed one for %v", to.name, silence, noise)
	if to == m {
		t.Errorf("%s has kept the role", m.name)
	}
	if state := m.state("pvcnoded"); state != "active" {
		t.Errorf("the upgrade returned, and pvcnoded of %s is %s", m.name, state)
	}
}

// hang stops a daemon: systemd's watchdog aborts it, and starts another.
func hang(t *testing.T, h *hall) {
	m := h.other(h.primary(t))
	const dropIn = "/run/systemd/system/pvcnoded.service.d"
	m.sh(t, "mkdir -p "+dropIn+" && printf '[Service]\\nWatchdogSec=3s\\n' >"+dropIn+"/short.conf && systemctl daemon-reload && systemctl restart pvcnoded")
	m.until(t, 30*time.Second, "it stands still", // a busy machine may have had it aborted before
		"p=$(systemctl show -P MainPID pvcnoded); echo $p >/var/tmp/stopped; [ $p != 0 ] && kill -STOP $p")
	agent := strings.TrimSpace(m.sh(t, "cat /var/tmp/stopped"))
	m.until(t, 30*time.Second, "another agent is READY", fmt.Sprintf(
		`systemctl is-active --quiet pvcnoded && [ "$(systemctl show -P MainPID pvcnoded)" != %s ]`, agent))
	if out := m.sh(t, "journalctl --no-pager -u pvcnoded"); !strings.Contains(out, "Watchdog timeout") || !strings.Contains(out, "SIGABRT: abort") {
		t.Errorf("no word of the watchdog, or no stacks:\n%s", tail([]byte(out)))
	}
	m.sh(t, "rm -r "+dropIn+" && systemctl daemon-reload && systemctl restart pvcnoded")
}

func refusedSettings(t *testing.T, h *hall, deb string) {
	m := h.other(h.primary(t))
	m.sh(t, "cp -p /etc/pvc/pvcnoded.yaml /var/tmp/good.yaml && echo 'nonsense: 1' >>/etc/pvc/pvcnoded.yaml && systemctl restart --no-block pvcnoded")
	m.until(t, 30*time.Second, "the daemon has ended for good", `[ "$(systemctl show -P ActiveState pvcnoded)" = failed ]`)
	if out := m.sh(t, "systemctl show -P ExecMainStatus pvcnoded; journalctl --no-pager -u pvcnoded -n 20"); !strings.HasPrefix(out, "78\n") || !strings.Contains(out, "nonsense") {
		t.Errorf("not with status 78 and the key's name: %s", out)
	}
	if state := m.state("pvc.target"); state != "active" {
		t.Errorf("the target is %s", state)
	}
	m.sh(t, "cp -p /var/tmp/good.yaml /etc/pvc/pvcnoded.yaml && systemctl start pvc.target && systemctl start pvcnoded")
	// An upgrade to a version that refuses them stops nothing, and says so.
	m.sh(t, "echo 'nonsense: 1' >>/etc/pvc/pvcnoded.yaml")
	agent, guard := m.pid(t, "pvcnoded"), m.pid(t, "pvc-guard")
	if out := m.apt(t, "install --reinstall", deb); !strings.Contains(out, "nonsense is unknown") || !strings.Contains(out, "the daemons still run") {
		t.Errorf("the upgrade does not say that the settings are refused: %s", out)
	}
	if m.pid(t, "pvcnoded") != agent || m.pid(t, "pvc-guard") != guard {
		t.Errorf("the upgrade has restarted what the new version refuses to be")
	}
	m.sh(t, "cp -p /var/tmp/good.yaml /etc/pvc/pvcnoded.yaml")
	m.apt(t, "install --reinstall", deb)
	if m.pid(t, "pvcnoded") == agent || m.pid(t, "pvc-guard") == guard {
		t.Errorf("the second try has not restarted the daemons")
	}
}

// removeAndPurge takes the last machine out of the primary's company.
func removeAndPurge(t *testing.T, h *hall) {
	m := h.other(h.primary(t))
	m.apt(t, "remove pvc")
	if out := m.sh(t, "ls /etc/pvc/pvcnoded.yaml /var/lib/pvc/node.json; pgrep -l pvc || true; ls /etc/systemd/system/*.wants"); strings.Contains(out, "pvcnoded\n") || strings.Contains(out, "pvc.target") || strings.Contains(out, "pvcapid.service") {
		t.Errorf("after remove: %s", out)
	}
	if _, err := exec.LookPath("nft"); err == nil {
		if out, err := exec.Command("ip", "netns", "exec", m.netns, "nft", "list", "tables").CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("after remove there are nftables tables (%v): %s", err, out)
		}
	}
	m.sh(t, "mkdir -p /var/lib/pvc-redis/left")
	p := h.primary(t)
	p.until(t, 30*time.Second, "the others see an orderly stop", "pvc node info "+m.name+" -o json | grep -q '\"stop\"'")
	m.apt(t, "purge pvc")
	if out, err := m.try("ls -d /etc/pvc /var/lib/pvc /var/lib/pvc-redis /run/pvc; dpkg-query -W pvc"); err == nil || strings.Contains(out, "\n/") || strings.HasPrefix(out, "/") {
		t.Errorf("after purge: %s", out)
	}
	if out, err := p.try("pvc node list -o json"); err != nil || !strings.Contains(out, `"`+m.name+`"`) {
		t.Errorf("the cluster has forgotten %s: %v: %s", m.name, err, out)
	}
}

// badStart installs anew where the disk is full, then where there is no network:
// the daemons say so, leave nothing half done, and go on when it is mended.
func badStart(t *testing.T, h *hall, deb string) {
	m := h.other(h.primary(t))
	m.apt(t, "install", deb)
	m.configure(t)
	m.sh(t, "mount -t tmpfs -o size=64k tmpfs /var/lib/pvc && { dd if=/dev/zero of=/var/lib/pvc/full 2>/dev/null || true; } && timeout 30 systemctl enable --now pvc.target")
	m.until(t, 30*time.Second, "the daemon says what is wrong", "journalctl --no-pager -u pvcnoded | grep 'no space left on device' | grep /var/lib/pvc")
	if out := m.sh(t, "find /var/lib/pvc -type f -size 0 ! -name '*lock'; find /var/lib/pvc -name 'node.json*'"); out != "" {
		t.Errorf("half done: %s", out)
	}
	if state := m.state("pvcnoded"); state == "active" {
		t.Errorf("pvcnoded runs without its state")
	}
	quietly("ip", "-n", h.netns, "link", "set", m.port, "down")
	m.sh(t, "rm /var/lib/pvc/full")
	m.until(t, 30*time.Second, "the daemon waits and says so", `[ "$(systemctl show -P ActiveState pvcnoded)" = activating ] && systemctl show -P StatusText pvcnoded | grep -i 'waiting for ZooKeeper'`)
	m.until(t, 30*time.Second, "pvcapid says so, too", "pvc node list 2>&1 | grep -i ZooKeeper")
	quietly("ip", "-n", h.netns, "link", "set", m.port, "up")
	m.until(t, 60*time.Second, "the daemon is READY", "systemctl is-active --quiet pvcnoded pvcapid pvc-guard && pvc node list --daemon-state run | grep "+m.name)
}

// stopTarget stops what runs on the primary, and starts it again.
func stopTarget(t *testing.T, h *hall) {
	m := h.primary(t)
	m.sh(t, "systemctl stop pvc.target")
	for _, unit := range []string{"pvc-guard", "pvcnoded", "pvcapid"} {
		if state := m.state(unit); state != "inactive" {
			t.Errorf("after the target's stop %s is %s", unit, state)
		}
	}
	when := func(unit string) float64 {
		us, _ := strconv.ParseFloat(strings.TrimSpace(m.sh(t, "systemctl show -P InactiveEnterTimestampMonotonic "+unit)), 64)
		return us
	}
	if agent, guard := when("pvcnoded"), when("pvc-guard"); agent == 0 || guard < agent {
		t.Errorf("the guard ended at %v, before the daemon at %v", guard, agent)
	}
	if out, err := m.try(addressIsThere); err == nil {
		t.Errorf("the address is still there: %s", out)
	}
	if to := h.primary(t); to == m {
		t.Errorf("the role has not moved")
	}
	m.sh(t, "timeout 30 systemctl start pvc.target")
	m.until(t, 60*time.Second, "it is READY again", "systemctl is-active --quiet pvcnoded pvcapid pvc-guard")
}

// noGuard has no guard start any more: the daemon ends the role's effects by
// itself, under its own hardened rights, and another machine takes over.
func noGuard(t *testing.T, h *hall) {
	m := h.primary(t)
	m.until(t, 30*time.Second, "the service runs", "pgrep -f '[s]leep 1000000'")
	const dropIn = "/run/systemd/system/pvc-guard.service.d"
	m.sh(t, "mkdir -p "+dropIn+" && printf '[Service]\\nExecStart=\\nExecStart=/bin/false\\n' >"+dropIn+"/none.conf && systemctl daemon-reload && systemctl kill -s KILL pvc-guard")
	m.until(t, 60*time.Second, "everything of the role has ended", "! "+addressIsThere+" && ! pgrep -f '[s]leep 1000000'")
	if h.primary(t) == m {
		t.Errorf("%s has the role back, without a guard", m.name)
	}
	m.sh(t, "rm -r "+dropIn+" && systemctl daemon-reload && systemctl restart pvc-guard")
	m.until(t, 60*time.Second, "it could be primary again", "pvc node primary "+m.name+" --dry-run")
}

// powerCut kills the primary's init, and with it all that runs there.
func powerCut(t *testing.T, h *hall) {
	m := h.primary(t)
	began := time.Now()
	m.cutPower()
	to := h.primary(t)
	t.Logf("power cut of %s: %s was primary after %.1f s", m.name, to.name, time.Since(began).Seconds())
	to.until(t, 30*time.Second, "the service runs there", "pgrep -f '[s]leep 1000000'")
}
