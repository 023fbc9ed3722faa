package fencing

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// lab is a program of an operator's that keeps its power state in a file.
func lab(t *testing.T, body string) (d Device, dir string) {
	t.Helper()
	dir = t.TempDir()
	path := filepath.Join(dir, "lab-power")
	text := fmt.Sprintf("#!/bin/sh\ncd %s\nread -r word\necho \"$PVC_FENCE_ACTION $PVC_FENCE_NODE $PVC_FENCE_INCARNATION argv=$* word=${#word} env=$(env | grep -c -- \"${word:-none}\")\" >>log\n%s\n", dir, body)
	if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	return Device{Name: "lab", Type: TypeExec, Argv: []string{path, "one", "two words"}, Timeout: 3 * time.Second, Poll: 50 * time.Millisecond}, dir
}

const labPower = `case $PVC_FENCE_ACTION in off) echo off >power;; on) rm -f power;; status) [ -e power ] && exit 2; exit 0;; esac`

func TestExecOffIsVerified(t *testing.T) {
	d, dir := lab(t, labPower)
	for _, step := range []struct{ action, want string }{
		{ActionStatus, ResultOn}, {ActionTest, ResultOn}, {ActionOff, ResultOff}, {ActionOff, ResultOff}, {ActionOn, ResultOn}, {ActionStatus, ResultOn},
	} {
		if r := agentAttempt(t, d, testPassword, step.action); r.Result != step.want || r.Error != "" {
			t.Errorf("%s: %+v", step.action, r)
		}
	}
	log, _ := os.ReadFile(filepath.Join(dir, "log"))
	line := fmt.Sprintf("hv2 boot.1 argv=one two words word=%d env=0\n", len(testPassword))
	want := ""
	for _, action := range []string{"status", "status", "status", "off", "status", "status", "on", "status"} {
		want += action + " " + line
	}
	if string(log) != want {
		t.Errorf("the program saw\n%swant\n%s", log, want)
	}
}

// TestAProgramThatHangsInStatusIsOrderedOffAllTheSame: nothing is proven by
// that, but the power may be gone.
func TestAProgramThatHangsInStatusIsOrderedOffAllTheSame(t *testing.T) {
	t.Parallel()
	d, dir := lab(t, `[ $PVC_FENCE_ACTION = status ] && sleep 100; exit 0`)
	began := time.Now()
	if r := agentAttempt(t, d, "", ActionOff); r.Result != ResultUnknown || !strings.Contains(r.Error, "not readable") {
		t.Errorf("%+v", r)
	}
	if took := time.Since(began); took > d.Timeout+10*time.Second {
		t.Errorf("took %s of %s", took, d.Timeout)
	}
	if log, _ := os.ReadFile(filepath.Join(dir, "log")); strings.Count(string(log), "off hv2") != 1 {
		t.Errorf("want one order, which was acknowledged, in\n%s", log)
	}
}

func TestExecEndsThatProveNothing(t *testing.T) {
	for name, c := range map[string]struct{ body, result, words string }{
		"nothing done":                 {`exit 0`, ResultFailed, "still reads on"},
		"unknown status":               {`exit 3`, ResultUnknown, "exit status 3"},
		"bad argument":                 {`echo "bad argument" >&2; exit 2`, ResultUnknown, "also prints a line off"},
		"complains, off":               {`echo "slow" >&2; echo off; exit 2`, ResultOff, ""},
		"hangs":                        {`sleep 100`, ResultUnknown, "deadline"},
		"refuses once":                 {`case $PVC_FENCE_ACTION in off) [ -e asked ] && echo off >power; touch asked; [ -e power ];; status) [ -e power ] && exit 2; exit 0;; esac`, ResultOff, ""},
		"status hangs until the order": {`case $PVC_FENCE_ACTION in off) echo off >power;; status) [ -e power ] && exit 2; sleep 100;; esac`, ResultOff, ""},
		"status hangs once after it":   {`case $PVC_FENCE_ACTION in off) echo off >power;; status) [ -e power ] || exit 0; [ -e read ] && exit 2; touch read; sleep 100;; esac`, ResultOff, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, _ := lab(t, c.body)
			d.Timeout = 3 * time.Second
			if r := agentAttempt(t, d, "", ActionOff); r.Result != c.result || !strings.Contains(r.Error, c.words) {
				t.Errorf("%+v", r)
			}
		})
	}
	d := Device{Name: "lab", Type: TypeExec, Argv: []string{"/no/such/program"}, Timeout: time.Second}
	if r := agentAttempt(t, d, "", ActionTest); r.Fault != FaultMisconfigured {
		t.Errorf("%+v", r)
	}
	for want, argv := range map[string][]string{"argv is missing": nil, "no absolute path": {"sh"}} {
		if err := (Device{Name: "lab", Type: TypeExec, Argv: argv}).Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v", argv, err)
		}
	}
}
