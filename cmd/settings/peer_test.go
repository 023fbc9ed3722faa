package settings

import (
	"strings"
	"testing"
)

const files = "tls: {ca: /c, cert: /n, key: /k}"

// An accepted section, and what every other one is refused with.
func TestPeer(t *testing.T) {
	n := mustLoad(t, least+`peer: {listen: "10.0.0.1:7371", `+files+"}\n")
	if n.Peer.Advertise != "10.0.0.1:7371" || !n.Role.Failsafe || len(n.Warnings) != 0 {
		t.Errorf("advertise %q, failsafe %v, warnings %q", n.Peer.Advertise, n.Role.Failsafe, n.Warnings)
	}
	if n := mustLoad(t, least+`peer: {listen: "10.0.0.1:7371", `+files+"}\nrole: {failsafe: false}\n"); n.Role.Failsafe {
		t.Error("failsafe: false was not heeded")
	}
	if n := mustLoad(t, least+`peer: {listen: "127.0.0.1:7371", `+files+"}\n"); len(n.Warnings) != 1 || !strings.Contains(n.Warnings[0], "this host only") {
		t.Errorf("an address of this host only: warnings %q", n.Warnings)
	}
	const peers = `peer: {listen: "10.0.0.1:7371", ` + files + "}\n"
	if on, off, none := mustLoad(t, least+peers), mustLoad(t, least+peers+"node_leases: false\n"), mustLoad(t, least); !on.NodeLeases || off.NodeLeases || none.NodeLeases {
		t.Errorf("node leases %v with peers, %v switched off, %v without peers", on.NodeLeases, off.NodeLeases, none.NodeLeases)
	}
	for name, c := range map[string]struct {
		file string
		want []string
	}{
		"node leases without peer": {least + "node_leases: true\n", []string{"node_leases", "peer.listen", "write false"}},
		"failsafe without peer":    {least + "role: {failsafe: true}\n", []string{"role.failsafe", "peer.listen", "write false"}},
		"not true or false":        {least + "role: {failsafe: maybe}\n", []string{"failsafe", "maybe is neither true nor false"}},
		"no listen":                {least + "peer: {" + files + "}\n", []string{"peer.listen: is missing", "10.0.0.1:7371"}},
		"no port":                  {least + "peer: {listen: 10.0.0.7, " + files + "}\n", []string{"peer.listen", "write 10.0.0.7:7371"}},
		"port":                     {least + `peer: {listen: "10.0.0.7:0", ` + files + "}\n", []string{"peer.listen", `port "0"`, "1 to 65535"}},
		"every address":            {least + `peer: {listen: "0.0.0.0:7371", ` + files + "}\n", []string{"peer.advertise: is missing", "0.0.0.0:7371"}},
		"every address, short":     {least + `peer: {listen: ":7371", ` + files + "}\n", []string{"peer.advertise: is missing"}},
		"advertised to nobody":     {least + `peer: {listen: ":7371", advertise: "[::]:7371", ` + files + "}\n", []string{"peer.advertise", "no address that another node could reach"}},
		"advertised, no port":      {least + `peer: {listen: ":7371", advertise: hv1, ` + files + "}\n", []string{"peer.advertise", `"hv1" is not host:port`}},
		"no certificate":           {least + `peer: {listen: "10.0.0.1:7371"}` + "\n", []string{"peer.tls.ca: is missing", "peer.tls.cert", "peer.tls.key", "pvc pki issue"}},
		"relative path":            {least + `peer: {listen: "10.0.0.1:7371", tls: {ca: c.pem, cert: /n, key: /k}}` + "\n", []string{"peer.tls.ca", "full path"}},
		"name in certificates":     {strings.Replace(least, "demo", "a..b", 1) + `peer: {listen: "10.0.0.1:7371", ` + files + "}\n", []string{"cluster.name", `"a..b" cannot stand in a certificate`}},
		"unknown":                  {least + `peer: {lisen: "10.0.0.1:7371"}` + "\n", []string{"peer.lisen is unknown", `did you mean "listen"`}},
		"unknown file":             {least + `peer: {tls: {crt: /n}}` + "\n", []string{"peer.tls.crt is unknown", `did you mean "cert"`}},
	} {
		refused(t, name, c.file, c.want)
	}
}

func TestSelfFenceAndWatchdog(t *testing.T) {
	dog := least + "watchdog: {device: /dev/watchdog, "
	for name, c := range map[string]struct {
		file string
		want []string
	}{
		"value":               {least + "self_fence: stopwork\n", []string{"self_fence", `did you mean "stop-work"`}},
		"no device":           {least + "self_fence: watchdog\n", []string{"self_fence", "watchdog.device"}},
		"relative device":     {least + "watchdog: {device: watchdog}\n", []string{"watchdog.device", "full path"}},
		"pretimeout alone":    {least + "watchdog: {pretimeout: 2}\n", []string{"watchdog.pretimeout", "watchdog.device"}},
		"pretimeout too long": {dog + "pretimeout: 5}\n", []string{"watchdog.pretimeout: 5s", "timing.watchdog 5s"}},
		"pretimeout broken":   {dog + "pretimeout: 1.5}\n", []string{"watchdog.pretimeout", "whole seconds"}},
		"pretimeout negative": {dog + "pretimeout: -1}\n", []string{"watchdog.pretimeout", "whole seconds"}},
		"time-out":            {dog + "}\ntiming: {watchdog: 500ms}\n", []string{"timing.watchdog", "500ms", "1s"}},
		"unknown":             {least + "watchdog: {devce: /dev/watchdog}\n", []string{"watchdog.devce is unknown", `"device"`}},
		"migrate without":     {least + "fencing: {failed_fence: migrate}\n", []string{"fencing.failed_fence", "watchdog.device"}},
	} {
		refused(t, name, c.file, c.want)
	}
	n := mustLoad(t, dog+"pretimeout: 4}\nself_fence: reboot\nfencing: {failed_fence: migrate}\n")
	if n.SelfFence != SelfFenceReboot || n.Watchdog.Device != "/dev/watchdog" || n.Fencing.FailedFence != "migrate" {
		t.Errorf("%+v, %s", n.Watchdog, n.SelfFence)
	}
}

// A ladder may name a device that stands under fencing.devices.
func TestSharedFenceDevices(t *testing.T) {
	const shared = "fencing:\n  devices: [{name: pdu-a, type: agent, agent: fence_apc, options: {ip: h, plug: \"1\"}}, {name: pdu-b, type: exec, argv: [/x]}]\n"
	n := mustLoad(t, least+shared+`  nodes:
    b: {levels: [[{name: pdu-a, options: {plug: "3"}}, {name: pdu-b}]]}
    c: {levels: [[{name: pdu-a}]]}
`)
	b, c := n.Fencing.Nodes["b"].Levels[0], n.Fencing.Nodes["c"].Levels[0]
	if b[0].Agent != "fence_apc" || b[0].Options["ip"] != "h" || b[0].Options["plug"] != "3" || b[1].Argv[0] != "/x" {
		t.Errorf("ladder of b: %+v", b)
	}
	if c[0].Options["plug"] != "1" {
		t.Errorf("the plug of b has gone to c: %+v", c)
	}
	for name, x := range map[string]struct {
		file string
		want []string
	}{
		"unknown":   {shared + "  nodes: {b: {levels: [[{name: pdu-c}]]}}\n", []string{"fencing.nodes.b.levels[0][0]", `no device is called "pdu-c"`, `did you mean "pdu-a"`}},
		"none":      {"fencing: {nodes: {b: {levels: [[{name: bmc}]]}}}\n", []string{`no device is called "bmc"`, "has none"}},
		"overrides": {shared + "  nodes: {b: {levels: [[{name: pdu-a, agent: fence_eaton}]]}}\n", []string{`device "pdu-a"`, "only options"}},
		"itself":    {"fencing: {devices: [{name: x, type: ipmi, password_file: /p}]}\n", []string{"fencing.devices[0].address: is missing"}},
		"twice":     {"fencing: {devices: [{name: x, type: exec, argv: [/x]}, {name: x, type: exec, argv: [/x]}]}\n", []string{"fencing.devices[1].name", "twice"}},
		"no key":    {"fencing: {nodes: {b: {levels: [[{name: x, type: redfish, address: h, password_sealed: YWdl}]]}}}\n", []string{"password_sealed", "fencing.secrets.key_file"}},
	} {
		refused(t, name, least+x.file, x.want)
	}
}

// refused wants every one of the words in the refusal.
func refused(t *testing.T, name, file string, want []string) {
	t.Helper()
	_, err := LoadNode(write(t, file))
	if err == nil {
		t.Errorf("%s: accepted", name)
		return
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s: %q is not in:\n%v", name, w, err)
		}
	}
}
