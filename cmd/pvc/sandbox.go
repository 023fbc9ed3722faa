package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
	"go.uber.org/zap"

	"pvc.internal/sandbox"
	"pvc.internal/sandbox/bench"
)

// sandboxCommand is `pvc sandbox …`: whole clusters on this machine.
func sandboxCommand() *cli.Command {
	up := append(sandboxFlags(),
		&cli.BoolFlag{Name: "wait", Usage: "return only once the cluster rests: all nodes run, one is primary", Value: true})
	return &cli.Command{
		Name: "sandbox", Usage: "run a whole cluster on this machine, in namespaces (root)",
		Subcommands: []*cli.Command{
			{Name: "up", Usage: "start a cluster and leave it running", Flags: up, Action: sandboxUp},
			{Name: "status", Usage: "show the running cluster", Flags: sandboxNameFlags(), Action: sandboxStatus},
			{Name: "fault", Usage: "run one fault on the running cluster and heal it", ArgsUsage: "NAME",
				Flags: sandboxNameFlags(), Action: sandboxFault, Description: faultList()},
			{Name: "demo", Usage: "run the whole fault script and print what the client saw", Flags: demoFlags(), Action: sandboxDemo, Description: faultList()},
			benchCommand(),
			{Name: "chaos", Usage: "run troubles at random that overlap, and check what came of them", Flags: chaosFlags(), Action: sandboxChaos},
			{Name: "down", Usage: "end the running cluster", Flags: sandboxNameFlags(), Action: sandboxDown},
			{Name: "supervise", Hidden: true, Flags: up, Action: sandboxSupervise},
		},
	}
}

// sandboxHelperCommands are the programs that run inside a sandbox's nodes.
func sandboxHelperCommands() []*cli.Command {
	entry := func(name string, run func([]string) error) *cli.Command {
		return &cli.Command{Name: name, Hidden: true, Action: func(c *cli.Context) error { return run(c.Args().Slice()) }}
	}
	return []*cli.Command{
		entry("sandbox-init", sandbox.InitMain),
		entry("sandbox-responder", sandbox.ResponderMain),
		entry("sandbox-hook", sandbox.HookMain),
		entry("sandbox-copy", sandbox.CopyMain),
		entry("sandbox-bench", bench.HelperMain),
	}
}

func sandboxNameFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "name", Usage: "`NAME` of the sandbox", Value: "demo"},
		&cli.StringFlag{Name: "dir", Usage: "its `FOLDER` (default: one in the temporary folder, by its name)"},
	}
}

func sandboxFlags() []cli.Flag {
	return append(sandboxNameFlags(),
		&cli.IntFlag{Name: "coordinators", Usage: "`N`: 1, 2, 3 or 5", Value: 3},
		&cli.IntFlag{Name: "hypervisors", Usage: "`N`: 0 to 3", Value: 0},
		&cli.StringFlag{Name: "profile", Usage: "timing `PROFILE`: lan, fast or pvc", Value: "lan"},
		&cli.StringFlag{Name: "bin", Usage: "`FOLDER` of pvcnoded, pvcapid and pvc (default: this program's)"},
		&cli.StringFlag{Name: "listen", Usage: "loopback `ADDRESS` where the cluster's API answers, or none", Value: "127.0.0.1:7370"},
		&cli.BoolFlag{Name: "no-hooks", Usage: "give the primary no service to stop and start"},
		&cli.BoolFlag{Name: "workloads", Usage: "have it run some workloads: a program, OCF agents, a Redis pair"},
		&cli.BoolFlag{Name: "keep-files", Usage: "leave the folder with all logs and the history in place"},
	)
}

func demoFlags() []cli.Flag {
	return append(sandboxFlags(),
		&cli.StringFlag{Name: "faults", Usage: "only these `NAMES`, separated by commas"},
		&cli.IntFlag{Name: "rounds", Usage: "go through them `N` times", Value: 1},
		&cli.DurationFlag{Name: "for", Usage: "draw faults at random for so `LONG`, one after the other"},
		&cli.Uint64Flag{Name: "seed", Usage: "`SEED` of what is drawn (default: a new one, which is printed)"},
		&cli.BoolFlag{Name: "keep", Usage: "leave the cluster up afterwards"})
}

func chaosFlags() []cli.Flag {
	return append(sandboxFlags(),
		&cli.IntFlag{Name: "minutes", Usage: "for `M` minutes; a bout that has begun is finished", Value: 20},
		&cli.Uint64Flag{Name: "seed", Usage: "`SEED` of what is drawn (default: a new one, which is printed)"},
		&cli.IntFlag{Name: "bout", Usage: "only the bout of this `NUMBER`, as a failed run names it"},
		&cli.IntFlag{Name: "moves", Usage: "only the first `N` moves of that bout"},
		&cli.StringFlag{Name: "troubles", Usage: "only these `NAMES`, separated by commas"})
}

// sandboxChaos runs chaos on a cluster of its own.
func sandboxChaos(c *cli.Context) error {
	f, err := format(c)
	if err != nil {
		return err
	}
	r := sandbox.ChaosRequest{Seed: c.Uint64("seed"), Lasting: time.Duration(c.Int("minutes")) * time.Minute, Bout: c.Int("bout"), Moves: c.Int("moves")}
	if names := c.String("troubles"); names != "" {
		r.Troubles = strings.Split(names, ",")
	}
	if r.Seed == 0 {
		r.Seed = rand.Uint64()
	}
	o := sandboxOptions(c)
	if err := errors.Join(r.Validate(), o.Validate()); err != nil {
		return usageError{err.Error()}
	}
	if err := sweepKilled(o); err != nil {
		return err
	}
	lines := c.App.Writer
	if f != formatTable {
		lines = c.App.ErrWriter
	}
	rep, err := sandbox.RunChaos(c.Context, o, r, lines)
	if rep.Bouts == 0 && err != nil {
		return err
	}
	t := &terminal{out: c.App.Writer, err: c.App.ErrWriter}
	if shown := t.show(c, rep, func() { fmt.Fprint(t.out, rep.Text()) }); shown != nil {
		return shown
	}
	return rep.Err()
}

func faultList() string {
	var b strings.Builder
	b.WriteString("The faults:")
	for _, f := range sandbox.Faults() {
		fmt.Fprintf(&b, "\n  %-20s %s", f.Name, f.Text)
	}
	return b.String()
}

func sandboxOptions(c *cli.Context) sandbox.Options {
	return sandbox.Options{
		Name: c.String("name"), Dir: c.String("dir"),
		Coordinators: c.Int("coordinators"), Hypervisors: c.Int("hypervisors"), Profile: c.String("profile"),
		BinDir: c.String("bin"), APIListen: c.String("listen"), NoHooks: c.Bool("no-hooks"), Workloads: c.Bool("workloads"), KeepFiles: c.Bool("keep-files"), Log: zap.NewNop(),
	}.Defaults()
}

// findSandbox finds the running sandbox that the flags name.
func findSandbox(c *cli.Context) (*sandbox.Remote, error) {
	return sandbox.Find(sandbox.Options{Name: c.String("name"), Dir: c.String("dir")}.Defaults().Dir)
}

func sandboxUp(c *cli.Context) error {
	o := sandboxOptions(c)
	if err := o.Validate(); err != nil {
		return usageError{err.Error()}
	}
	if err := startSupervisor(c.Context, o, c.Bool("wait")); err != nil {
		return err
	}
	printUse(c.App.Writer, o)
	return nil
}

func printUse(w io.Writer, o sandbox.Options) {
	fmt.Fprintf(w, "The cluster %q is up: %d coordinators, %d hypervisors, profile %s.\n", o.Name, o.Coordinators, o.Hypervisors, o.Profile)
	name := ""
	if o.Name != "demo" {
		name = " --name " + o.Name
	}
	if o.Dir != (sandbox.Options{Name: o.Name}).Defaults().Dir {
		name += " --dir " + o.Dir
	}
	if o.APIListen != "none" {
		fmt.Fprintf(w, "  export PVC_API=http://%s\n  pvc node list\n  pvc node primary hv2 --wait\n  curl http://%s/api/v1/status\n", o.APIListen, o.APIListen)
	}
	fmt.Fprintf(w, "  pvc sandbox status%s\n  pvc sandbox fault power-loss-follower%s\n  pvc sandbox down%s\nIts logs and history are under %s.\n", name, name, name, o.Dir)
}

// startSupervisor starts this program again as the process that holds the
// sandbox, and waits until it says that it is up.
func startSupervisor(ctx context.Context, o sandbox.Options, wait bool) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	said, tell, err := os.Pipe()
	if err != nil {
		return err
	}
	defer said.Close()
	log, err := os.OpenFile(o.Dir+".log", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o640)
	if err != nil {
		return fmt.Errorf("open the sandbox's log: %w", err)
	}
	defer log.Close()
	//nolint:noctx // it outlives this command
	cmd := exec.Command(exe, "sandbox", "supervise", "--name", o.Name, "--dir", o.Dir, "--bin", o.BinDir,
		"--coordinators", fmt.Sprint(o.Coordinators), "--hypervisors", fmt.Sprint(o.Hypervisors),
		"--profile", o.Profile, "--listen", o.APIListen, fmt.Sprintf("--no-hooks=%v", o.NoHooks), fmt.Sprintf("--workloads=%v", o.Workloads), fmt.Sprintf("--keep-files=%v", o.KeepFiles), fmt.Sprintf("--wait=%v", wait))
	cmd.ExtraFiles = []*os.File{tell}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = tell.Close()
	if err != nil {
		return fmt.Errorf("start the sandbox's process: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()
	line, _ := bufio.NewReader(said).ReadString('\n')
	line = strings.TrimSpace(line)
	if line == "up" {
		return cmd.Process.Release()
	}
	_ = cmd.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if line == "" {
		line = "its process ended at once; see " + o.Dir + ".log"
	}
	return fmt.Errorf("start the sandbox: %s", line)
}

// sandboxSupervise holds a sandbox until it is told to end it. It answers on
// descriptor 3: "up", or what went wrong.
func sandboxSupervise(c *cli.Context) error {
	tell := os.NewFile(3, "started")
	fail := func(err error) error {
		if tell != nil {
			fmt.Fprintln(tell, strings.ReplaceAll(err.Error(), "\n", " "))
		}
		return err
	}
	o := sandboxOptions(c)
	s, err := sandbox.Up(c.Context, o)
	if err != nil {
		return fail(err)
	}
	defer func() {
		s.Down()
		_ = os.Remove(o.Dir + ".log")
	}()
	if c.Bool("wait") {
		if _, err := s.Ready(c.Context); err != nil {
			return fail(err)
		}
	}
	return s.ServeControl(c.Context, func() {
		if tell != nil {
			fmt.Fprintln(tell, "up")
			_ = tell.Close()
		}
	})
}

func sandboxStatus(c *cli.Context) error {
	r, err := findSandbox(c)
	if err != nil {
		return err
	}
	st, err := r.Status(c.Context)
	if err != nil {
		return err
	}
	t := &terminal{out: c.App.Writer, err: c.App.ErrWriter}
	return t.show(c, st, func() {
		g := t.grid("node", "mode", "power", "pid", "address", "bmc", "programs")
		for _, n := range st.Nodes {
			power := "off"
			if n.Powered {
				power = "on"
			}
			var programs []string
			for _, p := range n.Programs {
				word := p.Name
				if !p.Running {
					word += " (" + p.Exit + ")"
				}
				programs = append(programs, word)
			}
			g.AppendRow([]any{n.Name, n.Mode, power, n.PID, n.Address, n.BMC, strings.Join(programs, ", ")})
		}
		g.Render()
		t.say("Primary: %s. ZooKeeper leader: %s. API: %s. Folder: %s.", st.Primary, st.Leader, st.API, st.Dir)
		if st.Missing != "" {
			t.say("Not at rest: %s.", st.Missing)
		}
	})
}

func sandboxFault(c *cli.Context) error {
	if c.NArg() != 1 {
		return usagef("name one fault. %s", faultList())
	}
	if _, err := sandbox.FaultNamed(c.Args().First()); err != nil {
		return usageError{err.Error()}
	}
	r, err := findSandbox(c)
	if err != nil {
		return err
	}
	return finishDemo(c, func(out io.Writer) (sandbox.Report, error) {
		return r.Run(c.Context, sandbox.ScriptRequest{Faults: c.Args().Slice()}, out)
	})
}

// scriptRequest is what the demo's flags ask for.
func scriptRequest(c *cli.Context) sandbox.ScriptRequest {
	r := sandbox.ScriptRequest{Lasting: c.Duration("for"), Seed: c.Uint64("seed"), Rounds: c.Int("rounds")}
	if f := c.String("faults"); f != "" {
		r.Faults = strings.Split(f, ",")
	}
	if r.Lasting > 0 && r.Seed == 0 {
		r.Seed = rand.Uint64()
	}
	return r
}

// sandboxDemo runs a script: on a cluster of its own, or with --keep on one
// that stays.
func sandboxDemo(c *cli.Context) error {
	request := scriptRequest(c)
	script, err := request.Script()
	if err != nil {
		return usageError{err.Error()}
	}
	if request.Lasting > 0 {
		fmt.Fprintf(c.App.ErrWriter, "seed %d: give it with --seed to repeat the order\n", request.Seed)
	}
	o := sandboxOptions(c)
	if err := o.Validate(); err != nil {
		return usageError{err.Error()}
	}
	if !c.Bool("keep") {
		if err := sweepKilled(o); err != nil {
			return err
		}
		return finishDemo(c, func(out io.Writer) (sandbox.Report, error) {
			ctx, cancel := context.WithTimeout(c.Context, request.Timeout())
			defer cancel()
			return sandbox.Demo(ctx, o, script, out)
		})
	}
	if _, err := sandbox.Find(o.Dir); err != nil {
		if err := startSupervisor(c.Context, o, false); err != nil {
			return err
		}
	}
	r, err := sandbox.Find(o.Dir)
	if err != nil {
		return err
	}
	err = finishDemo(c, func(out io.Writer) (sandbox.Report, error) { return r.Run(c.Context, request, out) })
	if errors.Is(err, context.Canceled) {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		return errors.Join(err, r.Down(ctx))
	}
	printUse(c.App.ErrWriter, o)
	return err
}

// finishDemo runs the script and prints its report; the lines go to the error
// output where the report is for a program.
func finishDemo(c *cli.Context, run func(io.Writer) (sandbox.Report, error)) error {
	f, err := format(c)
	if err != nil {
		return err
	}
	lines := c.App.Writer
	if f != formatTable {
		lines = c.App.ErrWriter
	}
	rep, err := run(lines)
	if len(rep.Results) == 0 && err != nil {
		return err
	}
	t := &terminal{out: c.App.Writer, err: c.App.ErrWriter}
	if shown := t.show(c, rep, func() { rep.Table(t.out) }); shown != nil {
		return shown
	}
	if err != nil {
		return err
	}
	return rep.Err()
}

// sweepKilled removes what a sandbox left whose process was killed.
func sweepKilled(o sandbox.Options) error {
	if err := sandbox.Sweep(o.Dir); err != nil {
		return err
	}
	if err := os.Remove(o.Dir + ".log"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the sandbox's log: %w", err)
	}
	return nil
}

func sandboxDown(c *cli.Context) error {
	o := sandbox.Options{Name: c.String("name"), Dir: c.String("dir")}.Defaults()
	r, err := sandbox.Find(filepath.Clean(o.Dir))
	if errors.Is(err, sandbox.ErrDown) {
		return sweepKilled(o)
	}
	if err != nil {
		return err
	}
	err = r.Down(c.Context)
	if _, gone := sandbox.Find(o.Dir); err != nil && errors.Is(gone, sandbox.ErrDown) {
		return sweepKilled(o) // it ended while it was asked
	}
	return err
}
