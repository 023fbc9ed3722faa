package driver

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
)

func TestACommandLineIsCutIntoWords(t *testing.T) {
	for line, want := range map[string][]string{
		"/bin/true":                   {"/bin/true"},
		"  a  b\tc\n":                 {"a", "b", "c"},
		`a 'b c' "d e" f\ g`:          {"a", "b c", "d e", "f g"},
		`sh -c 'echo "$X" | cat; :'`:  {"sh", "-c", `echo "$X" | cat; :`},
		`a "" ''`:                     {"a", "", ""},
		`a"b"'c'`:                     {"abc"},
		`a 'b\c' "d\"e"`:              {"a", `b\c`, `d"e`},
		`a $(rm -rf /) * > x`:         {"a", "$(rm", "-rf", "/)", "*", ">", "x"},
		``:                            nil,
		`   `:                         nil,
		`'' a`:                        nil,
		`a "b`:                        nil,
		`a 'b`:                        nil,
		`a \`:                         nil,
		"/opt/größe --name='ü ß' \\ä": {"/opt/größe", "--name=ü ß", "ä"},
	} {
		got, err := SplitWords(line)
		if !slices.Equal(got, want) || (err == nil) != (want != nil) {
			t.Errorf("%q: %q, %v; want %q", line, got, err, want)
		}
	}
}

func program(params map[string]string) cluster.Workload {
	return cluster.Workload{Name: "vm1", ID: "id-1", Kind: cluster.WorkloadMovable, Driver: cluster.DriverExec, Params: params}
}

func TestWhatAnExecWorkloadMustBe(t *testing.T) {
	d := NewExec("hv1", newShelf())
	replicated := program(map[string]string{"command": "/bin/true"})
	replicated.Kind = cluster.WorkloadReplicated
	for name, c := range map[string]struct {
		w    cluster.Workload
		says string
	}{
		"no command":          {program(nil), "needs the parameter command"},
		"an unknown one":      {program(map[string]string{"command": "/bin/true", "comand": "x"}), "driver exec knows command"},
		"no program":          {program(map[string]string{"command": "/nonexistent --x"}), "cannot be run on node hv1"},
		"no check":            {program(map[string]string{"command": "/bin/true", "check": "/nonexistent"}), "cannot be run"},
		"a quote":             {program(map[string]string{"command": "/bin/true 'x"}), "not completed"},
		"no time":             {program(map[string]string{"command": "/bin/true", "stop_timeout": "soon"}), "stop_timeout"},
		"too long":            {program(map[string]string{"command": "/bin/true", "start_timeout": "1h"}), "start_timeout"},
		"at once":             {program(map[string]string{"command": "/bin/true", "restart": "1ms"}), "restart"},
		"no such user":        {program(map[string]string{"command": "/bin/true", "user": "no-such-user"}), `no user "no-such-user"`},
		"a variable's name":   {program(map[string]string{"command": "/bin/true", "env_A B": "x"}), "environment variable"},
		"it promotes nothing": {replicated, "movable workloads only"},
	} {
		if err := d.Check(t.Context(), c.w); !errors.Is(err, cluster.ErrRefused) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
	if err := d.Check(t.Context(), program(map[string]string{"command": "/bin/sleep 1", "user": "root", "env_A": "b", "restart": "2"})); err != nil {
		t.Errorf("one that is well: %v", err)
	}
}

// noStarts is a guard that starts nothing.
type noStarts struct{ ExecGuard }

func (noStarts) StartCopy(context.Context, cluster.Token, cluster.ServiceSpec) error {
	return errors.New("it did not start")
}

// An exec copy is what the guard says of it and its check says.
func TestAnExecCopyIsWhatItsGuardAndItsCheckSay(t *testing.T) {
	g := newShelf()
	d := NewExec("hv1", g)
	w := program(map[string]string{"command": "/bin/sleep 1000", "check": "/bin/check it", "stop_timeout": "3", "restart": "1s", "user": "nobody", "env_COLOR": "dark blue"})
	look := func() cluster.CopyReport {
		t.Helper()
		r, err := d.Probe(context.Background(), w)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := look(); r.State != cluster.CopyMissing {
		t.Errorf("before it was started: %+v", r)
	}
	if _, err := d.Order(t.Context(), over(), cluster.CopyOrder{Op: cluster.CopyStart, Workload: w}); !errors.Is(err, cluster.ErrNoToken) {
		t.Errorf("by a token that is over: %v", err)
	}
	if _, err := NewExec("hv1", noStarts{g}).Order(t.Context(), live(), cluster.CopyOrder{Op: cluster.CopyStart, Workload: w}); err == nil || errors.Is(err, cluster.ErrRefused) || !strings.Contains(err.Error(), "install it there") {
		t.Errorf("a start that failed, whose check is not installed: %v", err)
	}
	r, err := d.Order(t.Context(), live(), cluster.CopyOrder{Op: cluster.CopyStart, Workload: w})
	if err != nil || r.State != cluster.CopyActive || r.Start != "7.1" {
		t.Errorf("started: %+v, %v", r, err)
	}
	s := g.specs["copy-vm1"]
	if s.Kind != cluster.ServiceHook || strings.Join(s.Command, "|") != "/bin/sleep|1000" || s.StopTimeout != 3*time.Second || s.Restart != time.Second || s.User != "nobody" ||
		s.Note != "id-1" || !slices.Contains(s.Env, "COLOR=dark blue") || !slices.Contains(s.Env, "PVC_WORKLOAD=vm1") {
		t.Errorf("the service: %+v", s)
	}
	g.look = cluster.RunResult{ExitCode: 3, Stderr: []byte("not ready")}
	if r := look(); r.State != cluster.CopyDead || !strings.Contains(r.Error, "not ready") || !r.Left {
		t.Errorf("its check fails: %+v", r)
	}
	g.look = cluster.RunResult{}
	g.set(func(s *cluster.ServiceState) { s.Note = "id-0" })
	if r := look(); r.State != cluster.CopyDead || !strings.Contains(r.Error, "earlier workload") || !r.Left {
		t.Errorf("of an earlier workload: %+v", r)
	}
	g.set(func(s *cluster.ServiceState) { s.Note, s.Running, s.Error = "id-1", false, "exit status 1" })
	if r := look(); r.State != cluster.CopyDead || r.Error != "exit status 1" || r.Left {
		t.Errorf("it has ended: %+v", r)
	}
	g.set(func(s *cluster.ServiceState) { s.Left = true })
	if r := look(); r.State != cluster.CopyDead || !r.Left {
		t.Errorf("it has ended, and a process of its group has not: %+v", r)
	}
	g.fail = errors.New("no guard")
	if _, err := d.Probe(t.Context(), w); err == nil {
		t.Error("the state of a copy is told although the guard does not answer")
	}
	g.fail = nil
	if r, err := d.Order(t.Context(), live(), cluster.CopyOrder{Op: cluster.CopyStop, Workload: w}); err != nil || r.State != cluster.CopyMissing {
		t.Errorf("stopped: %+v, %v", r, err)
	}
	if _, err := d.Order(t.Context(), live(), cluster.CopyOrder{Op: cluster.CopyPromote, Workload: w}); !errors.Is(err, cluster.ErrRefused) {
		t.Errorf("promoted: %v", err)
	}
}

// A unit is a workload's only if nothing else starts it.
func TestAUnitIsAWorkloadsOnly(t *testing.T) {
	g := newShelf()
	d := NewSystemd("hv1", g)
	unit := unitState{Load: "loaded", File: "static", Active: "inactive"}
	var asked string
	d.look = func(_ context.Context, name string) (unitState, error) { asked = name; return unit, nil }
	w := cluster.Workload{Name: "web", ID: "id-web", Kind: cluster.WorkloadMovable, Driver: cluster.DriverSystemd, Agent: "site@.service"}
	if err := d.Check(t.Context(), w); err != nil || asked != "site@web.service" {
		t.Errorf("unit %s: %v", asked, err)
	}
	for name, u := range map[string]unitState{
		"missing": {Load: "not-found"}, "masked": {Load: "masked", File: "masked"}, "enabled": {Load: "loaded", File: "enabled"},
		"wanted": {Load: "loaded", File: "static", WantedBy: []string{"multi-user.target"}},
	} {
		unit = u
		if err := d.Check(t.Context(), w); !errors.Is(err, cluster.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := d.Order(t.Context(), live(), cluster.CopyOrder{Op: cluster.CopyStart, Workload: w}); err == nil || len(g.specs) != 0 {
			t.Errorf("%s: started: %v, %v", name, err, g.specs)
		}
	}
	for name, edit := range map[string]func(*cluster.Workload){
		"no template":   func(w *cluster.Workload) { w.Agent = "ssh.service" },
		"a path":        func(w *cluster.Workload) { w.Agent = "../site@.service" },
		"a parameter":   func(w *cluster.Workload) { w.Params = map[string]string{"command": "x"} },
		"it is a chain": func(w *cluster.Workload) { w.Kind = cluster.WorkloadReplicated },
	} {
		other := w
		edit(&other)
		if err := d.Check(t.Context(), other); !errors.Is(err, cluster.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	unit = unitState{Load: "loaded", File: "disabled", Active: "active"}
	if r, err := d.Probe(t.Context(), w); err != nil || r.State != cluster.CopyActive || r.Error == "" {
		t.Errorf("one that runs, and not as a copy: %+v, %v", r, err)
	}
	if _, err := d.Order(t.Context(), live(), cluster.CopyOrder{Op: cluster.CopyStop, Workload: w}); err != nil || g.specs["copy-web"].Unit != "site@web.service" {
		t.Errorf("it is taken over to be stopped: %v, %+v", err, g.specs)
	}
	unit.Active = "inactive"
	if r, err := d.Order(t.Context(), live(), cluster.CopyOrder{Op: cluster.CopyStart, Workload: w}); err != nil || r.State != cluster.CopyActive {
		t.Errorf("started: %+v, %v", r, err)
	}
}
