package fencing

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
)

func devices(names ...string) []Device {
	list := make([]Device, len(names))
	for i, name := range names {
		list[i].Name = name
	}
	return list
}

func results(pairs ...string) []cluster.FenceAttempt {
	var list []cluster.FenceAttempt
	for _, pair := range pairs {
		name, result, _ := strings.Cut(pair, "=")
		list = append(list, cluster.FenceAttempt{Device: name, Result: result})
	}
	return list
}

func TestLadder(t *testing.T) {
	levels := [][]Device{{}, devices("left", "right"), devices("bmc")}
	for name, c := range map[string]struct {
		rounds [][]cluster.FenceAttempt
		proven bool
		left   bool // something is left to try
	}{
		"both supplies":      {[][]cluster.FenceAttempt{results("left=off", "right=off")}, true, false},
		"one supply":         {[][]cluster.FenceAttempt{results("left=off", "right=failed")}, false, true},
		"one result missing": {[][]cluster.FenceAttempt{results("left=off")}, false, true},
		"unknown":            {[][]cluster.FenceAttempt{results("left=off", "right=unknown")}, false, true},
		"on":                 {[][]cluster.FenceAttempt{results("left=off", "right=on")}, false, true},
		"second level":       {[][]cluster.FenceAttempt{results("left=off", "right=on"), results("bmc=off")}, true, false},
		"all failed":         {[][]cluster.FenceAttempt{results("left=on", "right=on"), results("bmc=unknown")}, false, false},
		"a result too many":  {[][]cluster.FenceAttempt{results("left=off", "right=off"), results("bmc=on")}, true, false},
		"another's result":   {[][]cluster.FenceAttempt{results("bmc=off")}, false, true},
		"the newest counts":  {[][]cluster.FenceAttempt{results("left=off", "right=off", "left=on")}, false, true},
	} {
		l := NewLadder(levels)
		for _, round := range c.rounds {
			l = l.Report(round)
		}
		if l.Proven() != c.proven || (l.Level() != nil) != c.left {
			t.Errorf("%s: proven %v, next level %v", name, l.Proven(), l.Level())
		}
	}
	if l := NewLadder(nil); l.Proven() || l.Level() != nil || l.Report(nil).Proven() {
		t.Error("no device at all proves something")
	}
}

// A supply that an earlier level has cut stays dark unless it is ordered on,
// whichever level proved the node off.
func TestDarkDevices(t *testing.T) {
	levels := [][]Device{devices("left", "right"), devices("bmc")}
	for name, c := range map[string]struct {
		attempts []cluster.FenceAttempt
		dark     string
	}{
		"one level":                      {results("left=off", "right=off"), "left right"},
		"an earlier level's half":        {results("left=off", "right=failed", "bmc=off"), "left bmc"},
		"the newest result counts":       {results("left=off", "right=off", "right=on"), "left"},
		"given power again":              {results("left=off", "left=on"), ""},
		"silent since it read off":       {results("left=off", "left=unknown"), "left"},
		"unknown is not off":             {results("left=unknown", "bmc=off"), "bmc"},
		"a device that is not set there": {results("gone=off", "bmc=off"), "bmc"},
		"nothing":                        {nil, ""},
	} {
		var names []string
		for _, d := range Dark(levels, c.attempts) {
			names = append(names, d.Name)
		}
		if got := strings.Join(names, " "); got != c.dark {
			t.Errorf("%s: %q, want %q", name, got, c.dark)
		}
	}
	if got := proving(levels, results("left=off", "right=on", "bmc=off")); len(got) != 1 || got[0].Name != "bmc" {
		t.Errorf("the proving level is %v", got)
	}
	if got := proving(levels, results("left=off")); got != nil {
		t.Errorf("half a level proves as %v", got)
	}
}

func TestConfigNamesWhatIsWrong(t *testing.T) {
	good := Device{Name: "bmc", Type: TypeIPMI, Address: "192.0.2.1", User: "admin"}
	with := func(edit func(*Device)) Config {
		d := good
		edit(&d)
		return Config{Nodes: map[string]NodeConfig{"hv2": {Levels: [][]Device{{d}}}}}
	}
	if err := with(func(*Device) {}).Validate(); err != nil {
		t.Errorf("a good one: %v", err)
	}
	for want, c := range map[string]Config{
		"fencing.successful_fence": {SuccessfulFence: "perhaps"},
		"fencing.failed_fence":     {FailedFence: PolicyMigrate},
		"fencing.nodes.hv2.after":  {Nodes: map[string]NodeConfig{"hv2": {After: "dinner"}}},
		"levels[0]: no device":     {Nodes: map[string]NodeConfig{"hv2": {Levels: [][]Device{{}}}}},
		"stands twice":             {Nodes: map[string]NodeConfig{"hv2": {Levels: [][]Device{{good}, {good}}}}},
		"name is missing":          with(func(d *Device) { d.Name = "" }),
		"type \"abacus\"":          with(func(d *Device) { d.Type = "abacus" }),
		"address is missing":       with(func(d *Device) { d.Address = "" }),
		"port \"0\"":               with(func(d *Device) { d.Address = "h:0" }),
		"port \"http\"":            with(func(d *Device) { d.Address = "h:http" }),
		"user must have":           with(func(d *Device) { d.User = strings.Repeat("u", 17) }),
		"cipher_suite 1":           with(func(d *Device) { d.CipherSuite = 1 }),
		"timeout 1ms":              with(func(d *Device) { d.Timeout = time.Millisecond }),
		"poll 1m0s":                with(func(d *Device) { d.Poll = time.Minute }),
	} {
		err := c.Validate()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q in %v", want, err)
		}
	}
}

func TestConfigDefaultsAndLookup(t *testing.T) {
	given := Config{Nodes: map[string]NodeConfig{"hv2": {Levels: [][]Device{{{Name: "bmc", Address: "2001:db8::1"}}}}, "hv3": {}}}
	c := given.WithDefaults()
	n, ok := c.Node("HV2")
	d := n.Levels[0][0]
	if !ok || n.After != AfterReboot || d.CipherSuite != 3 || d.Timeout != 20*time.Second || d.Poll != 500*time.Millisecond || d.Address != "[2001:db8::1]:623" {
		t.Errorf("%v %+v", ok, n)
	}
	if given.Nodes["hv2"].Levels[0][0].Timeout != 0 {
		t.Error("the input was edited")
	}
	if _, ok := c.Node("hv3"); ok {
		t.Error("a node without devices counts as configured")
	}
	if _, ok := c.Node("hv4"); ok {
		t.Error("an unknown node counts as configured")
	}
}

func TestPasswordFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pass")
	d := Device{Name: "bmc", PasswordFile: file}
	for content, want := range map[string]string{"secret": "secret", "secret\n": "secret", "two words\r\nrest": "two words", "": "", "\nx": "", strings.Repeat("x", 21): ""} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := d.password(t.Context())
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", content, got, err)
		}
		if err != nil && strings.Contains(err.Error(), "xxx") {
			t.Errorf("the error tells the password: %v", err)
		}
	}
	d.PasswordFile = file + ".missing"
	if _, err := d.password(t.Context()); err == nil || !strings.Contains(err.Error(), "bmc") {
		t.Errorf("missing file: %v", err)
	}
}
