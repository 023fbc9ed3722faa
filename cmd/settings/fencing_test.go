package settings

import (
	"strings"
	"testing"
)

func TestFenceDevices(t *testing.T) {
	n := mustLoad(t, least+`fencing:
  secrets: {key_file: /etc/pvc/fence.key}
  nodes:
    b:
      levels:
        - - {name: rf, type: redfish, address: h, user: u, password_sealed: "YWdl", system: "1", fingerprint: "ab"}
        - - {name: pdu, type: agent, agent: fence_apc, options: {ip: h, plug: "03"}}
          - {name: own, type: exec, argv: [/x, off]}
`)
	if n.Fencing.Secrets.KeyFile != "/etc/pvc/fence.key" {
		t.Errorf("secrets %+v", n.Fencing.Secrets)
	}
	levels := n.Fencing.Nodes["b"].Levels
	if levels[0][0].System != "1" || levels[0][0].PasswordSealed != "YWdl" || levels[1][0].Options["plug"] != "03" || levels[1][1].Argv[1] != "off" {
		t.Errorf("levels %+v", levels)
	}
	for want, device := range map[string]string{
		"options[plug]":   "{name: a, type: agent, agent: x, options: {plug: 3}}", // 03 would become 3, and 010 8
		"ca_file":         "{name: a, type: redfish, address: h, password_file: /x, ca_file: ca.pem}",
		"password_file":   "{name: a, type: redfish, address: h}",
		"address":         "{name: a, type: redfish, password_file: /x}",
		`mean "redfish"?`: "{name: a, type: redfsh, address: h, password_file: /x}",
	} {
		_, err := LoadNode(write(t, least+"fencing: {nodes: {b: {levels: [["+device+"]]}}}\n"))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q in %v", want, err)
		}
	}
	if _, err := LoadNode(write(t, least+"fencing: {secrets: {key_file: fence.key}}\n")); err == nil || !strings.Contains(err.Error(), "fencing.secrets.key_file") {
		t.Errorf("a key file by a relative path: %v", err)
	}
}
