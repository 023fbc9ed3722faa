package fencing

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
	"pvc.internal/sandbox/bmc"
)

// needAgent skips a test that runs one of the distribution's fence agents.
func needAgent(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("%s is not installed (packages fence-agents, ipmitool)", name)
		}
	}
}

// dummy is fence_dummy with a power state in a file.
func dummy(t *testing.T, power string) (Device, string) {
	t.Helper()
	needAgent(t, "fence_dummy")
	file := filepath.Join(t.TempDir(), "power")
	if err := os.WriteFile(file, []byte(power), 0o600); err != nil {
		t.Fatal(err)
	}
	return Device{Name: "dummy", Type: TypeAgent, Agent: "fence_dummy", Options: map[string]string{"status_file": file},
		Timeout: 20 * time.Second, Poll: 50 * time.Millisecond}, file
}

func agentAttempt(t *testing.T, d Device, password, action string) AttemptResult {
	t.Helper()
	a := Attempt{Version: 1, Device: d.withDefaults(), Password: password, Action: action, Node: "hv2", Incarnation: "boot.1"}
	if err := a.validate(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), d.Timeout)
	defer cancel()
	return a.do(ctx)
}

func TestAgentOffIsVerified(t *testing.T) {
	d, file := dummy(t, "on")
	if r := agentAttempt(t, d, "", ActionTest); r.Result != ResultOn || r.Fault != "" || len(r.Notes) != 0 {
		t.Errorf("test: %+v", r)
	}
	if r := agentAttempt(t, d, "", ActionOff); r.Result != ResultOff || r.Error != "" {
		t.Errorf("off: %+v", r)
	}
	if text, _ := os.ReadFile(file); string(text) != "off" {
		t.Errorf("the machine is %q", text)
	}
	if r := agentAttempt(t, d, "", ActionOff); r.Result != ResultOff {
		t.Errorf("already off: %+v", r)
	}
	if r := agentAttempt(t, d, "", ActionOn); r.Result != ResultOn {
		t.Errorf("on: %+v", r)
	}
	if r := agentAttempt(t, d, "", ActionStatus); r.Result != ResultOn {
		t.Errorf("status: %+v", r)
	}
}

func TestAgentMetadataJudgesTheSettings(t *testing.T) {
	needAgent(t, "fence_dummy", "fence_apc", "fence_ipmilan")
	for want, d := range map[string]Device{
		`options.ipp is unknown: the nearest it knows is "ip"`:             {Agent: "fence_apc", Options: map[string]string{"ipp": "x", "username": "u", "plug": "1", "ip": "h"}},
		`options.user_name is unknown: the nearest it knows is "username"`: {Agent: "fence_apc", Options: map[string]string{"user_name": "u", "ip": "h", "plug": "1"}},
		"options.plug is missing; the agent requires it":                   {Agent: "fence_apc", Options: map[string]string{"ip": "h", "username": "u"}},
		"options.ip is missing":                                            {Agent: "fence_apc", Options: map[string]string{"username": "u", "plug": "1"}},
		`options.power_wait: "long" is not a number of seconds`:            {Agent: "fence_dummy", Options: map[string]string{"power_wait": "long"}},
		`options.privlvl: "god" is not one of callback, user`:              {Agent: "fence_ipmilan", Options: map[string]string{"privlvl": "god"}},
		`options.lanplus: "perhaps" is not one of 1, 0`:                    {Agent: "fence_ipmilan", Options: map[string]string{"lanplus": "perhaps"}},
		`options.ipport: "http" is not a whole number`:                     {Agent: "fence_ipmilan", Options: map[string]string{"ipport": "http"}},
		`it takes no api-word: the nearest it knows is`:                    {Agent: "fence_apc", PasswordOption: "api-word", Options: map[string]string{"ip": "h", "username": "u", "plug": "1"}},
		"is the package that brings fence_abacus installed?":               {Agent: "fence_abacus"},
		"is not a fence agent's":                                           {Agent: "/bin/echo"},
		"":                                                                 {Agent: "fence_apc", Options: map[string]string{"ip": "h", "username": "u", "plug": "1", "login-timeout": "3", "ssh": "1"}},
		" ":                                                                {Agent: "fence_apc", Options: map[string]string{"ipaddr": "h", "login": "u", "port": "1"}},
	} {
		t.Run(strings.TrimSpace(want), func(t *testing.T) {
			t.Parallel()
			d.Name, d.Type = "d", TypeAgent
			device := agentDevice{device: d.withDefaults(), password: NewSecret("x")}
			if d.Agent == "fence_dummy" {
				device.password = Secret{}
			}
			_, err := device.check(t.Context())
			if want = strings.TrimSpace(want); want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), want) || faultOf(err) != FaultMisconfigured {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestAgentSettings(t *testing.T) {
	good := Device{Name: "pdu", Type: TypeAgent, Agent: "fence_apc", Options: map[string]string{"ip": "h"}}
	for want, edit := range map[string]func(*Device){
		"agent is missing":          func(d *Device) { d.Agent = "" },
		"neither a program's name":  func(d *Device) { d.Agent = "../fence_apc" },
		"takes no power":            func(d *Device) { d.Agent = "/usr/sbin/fence_scsi" },
		"not the settings' to":      func(d *Device) { d.Options = map[string]string{"action": "metadata"} },
		"no parameter's name":       func(d *Device) { d.Options = map[string]string{"ip=1\nx": "y"} },
		"a line break":              func(d *Device) { d.Options = map[string]string{"ip": "h\naction=on"} },
		"use password_file":         func(d *Device) { d.Options = map[string]string{"password": "x"} },
		"password_option: secret":   func(d *Device) { d.Options = map[string]string{"secret_key": "x"} },
		"password-script: use":      func(d *Device) { d.Options = map[string]string{"password-script": "x"} },
		"address is not an option":  func(d *Device) { d.Address = "h" },
		"argv is not an option":     func(d *Device) { d.Argv = []string{"/x"} },
		"insecure is not an option": func(d *Device) { d.Insecure = true },
	} {
		d := good
		edit(&d)
		if err := d.Validate(); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), `"pdu"`) {
			t.Errorf("want %q in %v", want, err)
		}
	}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
}

// ipmilan is fence_ipmilan at a controller.
func ipmilan(t *testing.T, m bmc.Power, faults *bmc.Faults) Device {
	t.Helper()
	needAgent(t, "fence_ipmilan", "ipmitool")
	native := startBMC(t, m, faults)
	host, port, _ := strings.Cut(native.Address, ":")
	return Device{Name: "lan", Type: TypeAgent, Agent: "fence_ipmilan", PasswordFile: native.PasswordFile, Timeout: 20 * time.Second, Poll: 100 * time.Millisecond,
		Options: map[string]string{"ip": host, "ipport": port, "username": "fencer", "lanplus": "1", "cipher": "3", "power_wait": "0"}}
}

func TestFenceIPMILan(t *testing.T) {
	m := &machine{on: true}
	d := ipmilan(t, m, nil)
	r := agentAttempt(t, d, testPassword, ActionTest)
	if r.Result != ResultOn || r.Fault != "" || len(r.Notes) != 1 || !strings.Contains(r.Notes[0], "type ipmi does the same") {
		t.Errorf("test: %+v", r)
	}
	r = agentAttempt(t, d, testPassword, ActionOff)
	if on, offs, _ := m.state(); r.Result != ResultOff || on || offs != 1 {
		t.Fatalf("off: %+v; machine on=%v after %d orders", r, on, offs)
	}
	t.Logf("off and verified in %d ms", r.Micros/1000)
	if r := agentAttempt(t, d, testPassword, ActionOn); r.Result != ResultOn {
		t.Errorf("on: %+v", r)
	}
	r = agentAttempt(t, d, "not-the-password", ActionTest)
	if r.Result != ResultUnknown || r.Fault == "" || strings.Contains(r.Error, "not-the-password") {
		t.Errorf("wrong password: %+v", r)
	}
	t.Logf("wrong password: %s: %s", r.Fault, r.Error)
}

func TestALyingControllerBehindAnAgentHasFailed(t *testing.T) {
	faults := &bmc.Faults{}
	faults.Lying(true)
	d := ipmilan(t, &machine{on: true}, faults)
	d.Options["power_timeout"] = "3"
	// All of its time passes, and the agent, in Python, may take seconds for a status
	// on a busy machine: then it is given more.
	for _, d.Timeout = range []time.Duration{8 * time.Second, 20 * time.Second, time.Minute} {
		began := time.Now()
		r := agentAttempt(t, d, testPassword, ActionOff)
		if took := time.Since(began); took > d.Timeout+10*time.Second {
			t.Errorf("took %s of %s", took, d.Timeout)
		}
		switch {
		case r.Result == ResultFailed && strings.Contains(r.Error, "still reads on"):
			return
		case r.Result != ResultUnknown || !strings.Contains(r.Error, "deadline exceeded"):
			t.Fatalf("%+v", r)
		}
		t.Logf("its power was not read within %s", d.Timeout)
	}
	t.Error("never read")
}

// fakeAgent writes a program that logs what it was given and then does as told.
func fakeAgent(t *testing.T, name, body string) (path, log string) {
	t.Helper()
	dir := t.TempDir()
	path, log = filepath.Join(dir, name), filepath.Join(dir, "log")
	script := fmt.Sprintf("#!/bin/sh\nin=$(cat)\naction=$(echo \"$in\" | sed -n 's/^action=//p')\nscript=$(echo \"$in\" | sed -n 's/^password_script=//p')\n"+
		"{ echo \"argv: $*\"; echo \"$in\"; env | sed 's/^/env: /'; [ -n \"$script\" ] && echo \"fetched: $(sh -c \"$script\")\"; } >>%s\n%s\n", log, body)
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return path, log
}

func TestAgentsAreToldOnStandardInputOnly(t *testing.T) {
	for name, careless := range map[string]bool{"fence_good": false, "fence_ipmilan": true} {
		path, log := fakeAgent(t, name, `[ $action = status ] && echo "Status: OFF" && exit 2; exit 0`)
		d := Device{Name: "x", Type: TypeAgent, Agent: path, Timeout: 5 * time.Second, Poll: 50 * time.Millisecond,
			Options: map[string]string{"ip": "h", "plug": ` "3" `}}
		if r := agentAttempt(t, d, testPassword, ActionOff); r.Result != ResultOff {
			t.Fatalf("%s: %+v", name, r)
		}
		raw, _ := os.ReadFile(log)
		lines := strings.Split(string(raw), "\n")
		for _, want := range []string{"action=off", "action=status", "nodename=hv2", "ip=h", `plug=" "3" "`} {
			if !slices.Contains(lines, want) {
				t.Errorf("%s: no line %q in\n%s", name, want, raw)
			}
		}
		for _, line := range lines {
			if strings.Contains(line, testPassword) && line != "password="+testPassword && line != "fetched: "+testPassword {
				t.Errorf("%s: the password stands in %q", name, line)
			}
			if strings.HasPrefix(line, "argv: ") && line != "argv: " {
				t.Errorf("%s: %q", name, line)
			}
		}
		if fetched := slices.Contains(lines, "fetched: "+testPassword); fetched != careless {
			t.Errorf("%s: password fetched by a script: %v", name, fetched)
		}
		if inText := slices.Contains(lines, "password="+testPassword); inText == careless {
			t.Errorf("%s: password on standard input: %v", name, inText)
		}
	}
}

// TestNothingButAVerifiedOffIsAProof gives agents and programs every other end.
func TestNothingButAVerifiedOffIsAProof(t *testing.T) {
	for name, c := range map[string]struct{ body, result, words string }{
		"says off only in off": {`[ $action = status ] && exit 0; echo "Success: Powered OFF"; exit 0`, ResultFailed, "still reads on"},
		"refuses off":          {`[ $action = status ] && exit 0; echo "relay stuck" >&2; exit 1`, ResultFailed, "relay stuck"},
		"off all the same":     {`[ $action = status ] && { echo "Status: OFF"; exit 2; }; exit 1`, ResultOff, ""},
		"off with warnings":    {`[ $action = status ] && { echo old >&2; echo "Status: OFF"; exit 2; }; exit 0`, ResultOff, ""},
		"off without a word":   {`[ $action = status ] && exit 2; exit 0`, ResultOff, ""},
		"usage error":          {`[ $action = status ] && { echo "usage: x [-h]" >&2; exit 2; }; exit 0`, ResultUnknown, "usage: x"},
		"syntax error":         {`[ $action = status ] && { if; }`, ResultUnknown, "exit status 2"},
		"missing script":       {`exec sh /no/such/script`, ResultUnknown, "/no/such/script"},
		"login denied":         {`exit 3`, ResultUnknown, "exit status 3"},
		"other status":         {`exit 7`, ResultUnknown, "exit status 7"},
		"killed":               {`kill -9 $$`, ResultUnknown, "ended by"},
		"prints a flood":       {`[ $action = status ] && { yes | head -c 3000000; exit 1; }; exit 0`, ResultUnknown, "exit status 1"},
		"off hangs":            {`[ $action = status ] && { echo "Status: OFF"; exit 2; }; sleep 100`, ResultOff, ""},
		"status hangs":         {`[ $action = status ] && sleep 100; exit 0`, ResultUnknown, "not readable"},
		"refuses off once":     {`[ $action = status ] && { [ -e $0.off ] && exit 2; exit 0; }; [ -e $0.asked ] && touch $0.off && exit 0; touch $0.asked; exit 1`, ResultOff, ""},
		"repeats the password": {`[ $action = status ] && { echo "$in" >&2; exit 1; }; exit 0`, ResultUnknown, "password=[secret]"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path, _ := fakeAgent(t, "fence_odd", c.body)
			d := Device{Name: "x", Type: TypeAgent, Agent: path, Timeout: 3 * time.Second, Poll: 50 * time.Millisecond}
			began := time.Now()
			r := agentAttempt(t, d, testPassword, ActionOff)
			if r.Result != c.result || !strings.Contains(r.Error, c.words) || (r.Error == "") != (c.result == ResultOff) {
				t.Errorf("%+v", r)
			}
			if strings.Contains(r.Error, testPassword) || len(r.Error) > 1100 {
				t.Errorf("error: %s", r.Error)
			}
			if took := time.Since(began); took > d.Timeout+10*time.Second {
				t.Errorf("took %s of %s", took, d.Timeout)
			}
		})
	}
}

// TestARefusedLoginIsNotRepeated: an account that is locked is of no use.
func TestARefusedLoginIsNotRepeated(t *testing.T) {
	t.Parallel()
	path, log := fakeAgent(t, "fence_denied", `echo "ERROR: Unable to connect/login to fencing device" >&2; exit 1`)
	d := Device{Name: "x", Type: TypeAgent, Agent: path, Timeout: 20 * time.Second, Poll: 50 * time.Millisecond}
	if r := agentAttempt(t, d, testPassword, ActionOff); r.Result != ResultUnknown || !strings.Contains(r.Error, "Unable to connect/login") {
		t.Errorf("%+v", r)
	}
	raw, _ := os.ReadFile(log)
	if n := strings.Count(string(raw), "action="); n > 4 {
		t.Errorf("it was asked %d times", n)
	}
}

func TestAFabricAgentIsRefused(t *testing.T) {
	path, _ := fakeAgent(t, "fence_port", `cat <<'X'
<resource-agent name="fence_port"><parameters/><actions><action name="on" automatic="1"/><action name="off"/><action name="monitor"/></actions></resource-agent>
X`)
	d := Device{Name: "x", Type: TypeAgent, Agent: path, Timeout: 5 * time.Second}
	r := agentAttempt(t, d, "", ActionTest)
	if r.Fault != FaultMisconfigured || !strings.Contains(r.Error, "takes no power") || !strings.Contains(r.Error, "no action status") {
		t.Errorf("%+v", r)
	}
}

func TestEditDistance(t *testing.T) {
	for pair, want := range map[[2]string]int{{"", ""}: 0, {"a", ""}: 1, {"", "ab"}: 2, {"plug", "plgu"}: 2, {"ip", "ipp"}: 1, {"kitten", "sitting"}: 3} {
		if got := editDistance(pair[0], pair[1]); got != want {
			t.Errorf("%v: %d, want %d", pair, got, want)
		}
	}
	if !bytes.Equal([]byte(quoted(" a")), []byte(`" a"`)) || quoted("a b") != "a b" {
		t.Error("quoted")
	}
}

// TestAnAgentDiesWithItsAttempt: whoever ends the attempt's process ends what
// it started, or a stopped agent would send its order on waking (I5).
func TestAnAgentDiesWithItsAttempt(t *testing.T) {
	path, _ := fakeAgent(t, "fence_slow", `sh -c 'echo $$ >"$0".pid; exec sleep 1000' "$0" & wait`)
	d := Device{Name: "x", Type: TypeAgent, Agent: path, Timeout: 30 * time.Second}.withDefaults()
	stdin, err := json.Marshal(Attempt{Version: 1, Device: d, Action: ActionOff})
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(t.Context())
	defer end()
	ended := make(chan cluster.RunResult, 1)
	go func() {
		r, _ := runBelow(ctx, cluster.RunRequest{Argv: childRunner(t).Argv, Env: map[string]string{childEnv: "1"}, Stdin: stdin, Timeout: 20 * time.Second})
		ended <- r
	}()
	var pid int
	for limit := time.Now().Add(15 * time.Second); pid == 0; <-time.After(5 * time.Millisecond) {
		raw, _ := os.ReadFile(path + ".pid")
		pid, _ = strconv.Atoi(strings.TrimSpace(string(raw)))
		if time.Now().After(limit) {
			t.Fatal("the agent does not start")
		}
	}
	end()
	if r := <-ended; r.Error == "" {
		t.Errorf("the attempt ended by itself: %+v", r)
	}
	if state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil && !strings.Contains(string(state), ") Z ") {
		t.Errorf("the agent's program lives on: %s", state)
	}
}
