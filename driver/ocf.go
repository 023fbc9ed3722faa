package driver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"pvc.internal/cluster"
)

// OCFGuard is what the ocf driver needs of the guard beside Guard. Agents run
// there and not in this process: what hardens the agent's own unit (a read-only
// file system, few rights) is not for them.
type OCFGuard interface {
	Guard
	// RunInCopy runs a program by the token of whatever activity ordered it, under
	// the node's own deadline (Owner and Epoch are not used). What it starts is a
	// part of the copy by this name, and ends with it; where the guard holds no such
	// copy, or the program is killed, nothing of it is left.
	RunInCopy(ctx context.Context, t cluster.Token, name string, r cluster.RunRequest) (cluster.RunResult, error)
	// Look runs a program that changes nothing, of which nothing is left.
	Look(ctx context.Context, r cluster.RunRequest) (cluster.RunResult, error)
}

// OCFConfig is what the ocf driver needs.
type OCFConfig struct {
	Node  cluster.NodeID
	Guard OCFGuard
	// Root is where agents are installed, as resource.d/<provider>/<type> below it;
	// "" is /usr/lib/ocf.
	Root string
	// StateDir keeps what agents say (scores, attributes), and the commands that
	// they call; it is this driver's alone.
	StateDir string
	// RunDir is where agents keep their pid and state files; "" is their own
	// (/run/resource-agents). Several nodes on one machine need one each.
	RunDir string
	// Program answers the commands of Pacemaker (OCFShim); "" is this program.
	Program string
}

// OCF runs the copies of workloads by OCF resource agents.
//
// An agent's start brings the copy up as a service of the guard, whose end is the
// agent's stop; promote, demote and the other actions that change something run
// within that service. What the copy is, its monitor says, and nothing else.
type OCF struct {
	cfg    OCFConfig
	agents *ocfAgents
	store  ocfStore
	shims  string
}

// afterwardsLimit bounds the look at what a copy is once its order is over, which
// may be over because its time is.
const afterwardsLimit = 5 * time.Second

// NewOCF returns the driver. It fails where it cannot keep its state.
func NewOCF(cfg OCFConfig) (*OCF, error) {
	cfg.Root = cmp.Or(cfg.Root, "/usr/lib/ocf")
	if cfg.Program == "" {
		own, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find this program for the OCF agents' commands: %w", err)
		}
		cfg.Program = own
	}
	o := &OCF{cfg: cfg, agents: newOCFAgents(cfg.Root), store: ocfStore{dir: filepath.Join(cfg.StateDir, "copies")}, shims: filepath.Join(cfg.StateDir, "bin")}
	if err := linkOCFShims(o.shims, cfg.Program); err != nil {
		return nil, err
	}
	if cfg.RunDir != "" {
		if err := os.MkdirAll(cfg.RunDir, 0o755); err != nil {
			return nil, fmt.Errorf("make the OCF agents' folder: %w", err)
		}
	}
	return o, nil
}

// Check reports what is wrong with a workload for its agent on this node.
func (o *OCF) Check(ctx context.Context, w cluster.Workload) error {
	a, err := o.agents.find(ctx, w.Agent)
	if err != nil {
		return fmt.Errorf("workload %s: %w", w.Name, err)
	}
	if err := a.able(w); err != nil {
		return fmt.Errorf("workload %s: %w", w.Name, err)
	}
	if err := a.checkParams(w); err != nil {
		return fmt.Errorf("workload %s: %w", w.Name, err)
	}
	if !a.meta.announces("validate-all") {
		return nil
	}
	r, err := o.look(ctx, a, w, "validate-all", 0)
	if err != nil {
		return fmt.Errorf("workload %s: OCF agent %s could not be asked whether its parameters are right: %w", w.Name, a, err)
	}
	if r.ExitCode != ocfSuccess && r.ExitCode != ocfUnimplemented {
		return fmt.Errorf("workload %s: OCF agent %s refuses it on node %s: %w: %w", w.Name, a, o.cfg.Node, faultOf(r), cluster.ErrRefused)
	}
	return nil
}

// Probe asks the agent's monitor what the copy is.
func (o *OCF) Probe(ctx context.Context, w cluster.Workload) (cluster.CopyReport, error) {
	a, err := o.agents.find(ctx, w.Agent)
	if errors.Is(err, cluster.ErrNotFound) {
		if held, heldErr := o.held(ctx, w); held == nil && heldErr == nil { // as exit status 5: what is not installed does not run
			report := o.report(w, ocfNotInstalled, ocfRecord{})
			report.Error = err.Error()
			return report, nil
		}
	}
	if err != nil {
		return cluster.CopyReport{}, fmt.Errorf("workload %s: %w", w.Name, err)
	}
	return o.probe(ctx, a, w)
}

func (o *OCF) probe(ctx context.Context, a *ocfAgent, w cluster.Workload) (cluster.CopyReport, error) {
	interval := time.Duration(0)
	if o.store.load(w.Name, w.ID).Start != "" {
		interval = recurringMonitor
	}
	r, err := o.look(ctx, a, w, "monitor", interval)
	if err != nil {
		return cluster.CopyReport{}, fmt.Errorf("workload %s: what its copy on node %s is, is not known: OCF agent %s: monitor: %w", w.Name, o.cfg.Node, a, err)
	}
	report := o.report(w, r.ExitCode, o.store.load(w.Name, w.ID)) // with what the monitor has said
	if w.Kind == cluster.WorkloadReplicated && runs(r.ExitCode) && a.meta.announces("notify") {
		report.NotifyMS = max(1, a.notifyLimit(w, otherNotifyLimit).Milliseconds())
	}
	report.Live = w.Live && w.Kind == cluster.WorkloadMovable && a.meta.announces("migrate_to", "migrate_from")
	if report.State == "" {
		return cluster.CopyReport{}, fmt.Errorf("workload %s: what its copy on node %s is, is not known: OCF agent %s: monitor: %w", w.Name, o.cfg.Node, a, faultOf(r))
	}
	earlier := !ended(r.ExitCode) && o.store.earlier(w.Name, w.ID)
	if earlier || report.State == cluster.CopyDead && w.Kind == cluster.WorkloadMovable {
		held, err := o.held(ctx, w)
		if err != nil {
			return cluster.CopyReport{}, fmt.Errorf("workload %s: %w", w.Name, err)
		}
		report.Left = held != nil && (held.Running || held.Left)
		if earlier && held != nil && held.Note != w.ID {
			report.State, report.Start, report.Error = cluster.CopyDead, "", "something of an earlier workload of this name is here, which a start replaces"
			return report, nil
		}
		report.Left = report.Left && report.State == cluster.CopyDead
	}
	if r.ExitCode != ocfSuccess && r.ExitCode != ocfRunningPromoted && r.ExitCode != ocfNotRunning {
		report.Error = fmt.Sprintf("OCF agent %s: monitor: %s", a, faultOf(r))
	}
	return report, nil
}

// report is what a monitor's exit status says, with what else is known.
func (o *OCF) report(w cluster.Workload, code int, record ocfRecord) cluster.CopyReport {
	report := cluster.CopyReport{Workload: w.Name, ID: w.ID, Node: o.cfg.Node}
	report.State, _ = ocfState(w.Kind, code)
	if report.State != cluster.CopyReplica && report.State != cluster.CopyActive {
		return report
	}
	report.Start = record.Start
	if report.State == cluster.CopyReplica {
		report.Follows = record.follows(o.cfg.Node)
	}
	// A score says which of the followers is the better one; it is no measure of how
	// far they are behind whom they follow.
	if report.Follows != cluster.NoCopy {
		report.Offset, report.HasOffset = record.score(w.Name)
	}
	return report
}

// look has the agent tell something.
func (o *OCF) look(ctx context.Context, a *ocfAgent, w cluster.Workload, action string, interval time.Duration) (cluster.RunResult, error) {
	r, err := o.cfg.Guard.Look(ctx, cluster.RunRequest{Argv: []string{a.path, action}, Env: o.env(a, w, action, interval), Timeout: a.timeout(w, action)})
	return r, resultError(r, err)
}

// resultError is why a program has no exit status, if so.
func resultError(r cluster.RunResult, err error) error {
	switch {
	case err != nil:
		return err
	case r.Error != "":
		return errors.New(r.Error)
	case r.ExitCode < 0:
		return errors.New("it was killed by a signal")
	}
	return nil
}

func faultOf(r cluster.RunResult) ocfFault {
	return ocfFault{code: r.ExitCode, reason: exitReason(r.Stderr)}
}

// Order carries out one order.
func (o *OCF) Order(ctx context.Context, t cluster.Token, order cluster.CopyOrder) (cluster.CopyReport, error) {
	w := order.Workload
	a, err := o.agents.find(ctx, w.Agent)
	if errors.Is(err, cluster.ErrNotFound) && (order.Op == cluster.CopyStop || order.Op == cluster.CopyDestroy) {
		return o.endUninstalled(ctx, t, order)
	}
	if err != nil {
		return cluster.CopyReport{}, fmt.Errorf("workload %s: %w", w.Name, err)
	}
	run := &ocfOrder{o: o, a: a, w: w, t: t}
	err = run.carryOut(ctx, order)
	if err == nil && order.Op == cluster.CopyNotify { // which has changed nothing, and is waited for
		return cluster.CopyReport{Workload: w.Name, ID: w.ID, Node: o.cfg.Node, Unknown: true, Error: "it was told, and not looked at"}, nil
	}
	after, cancel := context.WithTimeout(context.WithoutCancel(ctx), min(afterwardsLimit, a.timeout(w, "monitor")))
	defer cancel()
	report, probeErr := o.probe(after, a, w)
	if run.untold != nil && report.Error == "" {
		report.Error = fmt.Sprintf("it was carried out, but its agent did not let itself be told of it: %v", run.untold)
	}
	switch {
	case err == nil && probeErr == nil && order.Op == cluster.CopyDestroy:
		return report, o.store.forget(w.Name)
	case err == nil:
		return report, probeErr
	case probeErr != nil:
		return report, fmt.Errorf("workload %s on node %s: %s: %w; what its copy is now is not known: %w", w.Name, o.cfg.Node, order.Op, err, probeErr)
	}
	return report, fmt.Errorf("workload %s on node %s: %s: %w; its copy there is %s now", w.Name, o.cfg.Node, order.Op, err, report.State)
}

// endUninstalled ends a copy whose agent is not installed any more, as far as the
// guard holds something of it.
func (o *OCF) endUninstalled(ctx context.Context, t cluster.Token, order cluster.CopyOrder) (cluster.CopyReport, error) {
	w := order.Workload
	held, err := o.held(ctx, w)
	if err == nil && held != nil {
		err = o.cfg.Guard.StopCopy(ctx, t, ServiceName(w.Name))
	}
	if err != nil {
		return cluster.CopyReport{}, fmt.Errorf("workload %s on node %s: its OCF agent %s is not installed there any more, by which alone it can be stopped in order: %w", w.Name, o.cfg.Node, w.Agent, err)
	}
	if order.Op == cluster.CopyDestroy {
		err = o.store.forget(w.Name)
	}
	return o.report(w, ocfNotInstalled, ocfRecord{}), err
}

// held is the copy as the guard holds it; nil: it does not.
func (o *OCF) held(ctx context.Context, w cluster.Workload) (*cluster.ServiceState, error) {
	state, err := o.cfg.Guard.State(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask the guard what it holds: %w", err)
	}
	i := slices.IndexFunc(state.Services, func(s cluster.ServiceState) bool {
		return s.Name == ServiceName(w.Name) && (s.Owner == cluster.OwnerNode || s.Owner == "")
	})
	if i < 0 {
		return nil, nil
	}
	return &state.Services[i], nil
}
