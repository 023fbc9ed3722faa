package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"pvc.internal/agent/activity"
	"pvc.internal/agent/janitor"
	"pvc.internal/cluster"
)

// The bounds of the applies of one pass.
const (
	// appliesAtOnce is how many workloads are brought to their chains at once.
	appliesAtOnce = 16
	// applyWait is how long one waits for the leases of its members.
	applyWait = time.Second
	// applyLimit bounds one workload's, of which a pass waits for handPatience. What a
	// node has begun then goes on there, and is found by the next pass.
	applyLimit = 30 * time.Second
)

// apply brings the copies of each workload to its chain, all beside each other, each
// as work in hand that needs the leases of all of its members: whoever still serves
// another leader, is silent, or has an agent that hangs, stops nobody else's. One that
// fails is left to the next pass; one that takes long goes on beside it.
func (r *passRun) apply(ctx context.Context, list []janitor.Action) {
	hand := r.p.w.hand
	jobs := make([]handJob, len(list))
	for i, a := range list {
		r.applied[a.Workload] = true
		jobs[i] = r.piece(a, r.snap.Workloads[a.Workload].Value)
	}
	hand.carry(ctx, jobs, 0, func(left []handJob) (places []int) {
		for i := range min(len(left), appliesAtOnce-hand.waited(applyCause)) {
			places = append(places, i)
		}
		return places
	})
}

// applyCause is what an apply is in hand for.
const applyCause = "apply"

// piece is the apply of one workload. It uses what it is given only, since it may
// outlive its pass.
func (r *passRun) piece(a janitor.Action, record cluster.Workload) handJob {
	p, copies := r.p, maps.Clone(r.reports[a.Workload])
	return handJob{workload: a.Workload, seen: a.Seen, cause: applyCause, limit: applyLimit,
		spec: activity.Spec{Name: applyCause + "-" + a.Workload, Quorum: cluster.All(a.Members...), Timeout: applyWait},
		body: func(ctx context.Context, act *activity.Activity) error { return p.steps(ctx, act, a, record, copies) },
		ended: func(err error) {
			p.counts.applied(err)
			p.applied(a.Workload, err)
			if err != nil && !interrupted(err) {
				p.w.d.Log.Warn("a workload's copies were not brought to its chain; the next pass tries again", zap.String("workload", a.Workload), zap.Error(err))
			}
		}}
}

// applied notes how a workload's apply has ended, for its record: who looks at it is
// to see why it does not run. One that was interrupted says nothing of it.
func (p *janitorPass) applied(workload string, err error) {
	p.failing.Lock()
	defer p.failing.Unlock()
	switch {
	case err == nil:
		delete(p.failed, workload)
	case !interrupted(err):
		text := bounded500(strings.ReplaceAll(err.Error(), "\n", "; "))
		if p.failed == nil {
			p.failed = map[string]string{}
		}
		if !sameWords(p.failed[workload], text) { // times and counts in it are not written anew each time
			p.failed[workload] = text
		}
	}
}

// failedApplies are the workloads whose last apply has failed, with the reasons.
func (p *janitorPass) failedApplies() map[string]string {
	p.failing.Lock()
	defer p.failing.Unlock()
	return maps.Clone(p.failed)
}

// steps gives the orders, those of one stage at once, and those of the next only
// once all of them are carried out.
func (p *janitorPass) steps(ctx context.Context, act *activity.Activity, a janitor.Action, record cluster.Workload, copies map[cluster.NodeID]cluster.CopyReport) error {
	secret := ""
	heard := p.w.notes.of(act.Token(), record, a.Seen, copies)
	for _, s := range a.Steps {
		if s.Op == cluster.CopyFollow {
			heard.follow[s.Node] = true
		}
		if s.NewSecret && secret == "" {
			secret = rand.Text()
		}
	}
	for at := 0; at < len(a.Steps); {
		end := at
		for end < len(a.Steps) && a.Steps[end].Stage == a.Steps[at].Stage {
			end++
		}
		if err := p.stage(ctx, act, a.Steps[at:end], heard, secret); err != nil {
			return err
		}
		at = end
	}
	return nil
}

// stage gives the orders of one stage; the error has all that failed.
func (p *janitorPass) stage(ctx context.Context, act *activity.Activity, steps []janitor.Step, heard *hearing, secret string) error {
	token := act.Token()
	deeds := make([]deed, len(steps))
	for i, s := range steps {
		deeds[i] = deed{s.Node, s.Op}
	}
	said := heard.before(ctx, deeds...)
	errs, reports := make([]error, len(steps)), make([]cluster.CopyReport, len(steps))
	var wg sync.WaitGroup
	for i, s := range steps {
		o := cluster.CopyOrder{Op: s.Op, Workload: heard.w, Seen: heard.seen, Secret: secret, Expect: s.Expect}
		if s.Source != cluster.NoCopy {
			o.Source = &cluster.CopySource{Node: s.Source}
		}
		wg.Add(1)
		if err := act.Go(string(s.Op)+" "+string(s.Node), func(ctx context.Context) error {
			defer wg.Done()
			reports[i], errs[i] = p.order(ctx, token, s, o)
			return nil
		}); err != nil {
			wg.Done()
			errs[i] = err
		}
	}
	wg.Wait()
	for i, s := range steps {
		heard.found(s.Node, reports[i], errs[i])
	}
	heard.after(ctx, said)
	return errors.Join(append(slices.Clone(errs), token.Check())...)
}

// order gives one order and logs it, without its secret.
func (p *janitorPass) order(ctx context.Context, t cluster.Token, s janitor.Step, o cluster.CopyOrder) (cluster.CopyReport, error) {
	report, err := p.w.copies.Order(ctx, t, s.Node, o)
	p.w.d.Log.Info("a copy was given an order", zap.String("workload", o.Workload.Name), zap.String("peer", string(s.Node)), zap.String("order", string(s.Op)),
		zap.String("source", string(s.Source)), zap.String("state", string(report.State)), zap.Error(err))
	return report, err
}
