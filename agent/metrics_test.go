package agent_test

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pvc.internal/agent"
	"pvc.internal/agent/activity"
	"pvc.internal/cluster"
)

// figures gathers all of the node's, by name and labels: pvc_x{a,b}. A histogram
// gives its count.
func (b *bubble) figures(n cluster.NodeID) map[string]float64 {
	b.t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(b.nodes[n].agent.Figures())
	families, err := registry.Gather()
	if err != nil {
		b.t.Fatal(err)
	}
	all := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			var labels []string
			for _, l := range m.Label {
				labels = append(labels, l.GetValue())
			}
			v := m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
			all[f.GetName()+"{"+strings.Join(labels, ",")+"}"] = v
		}
	}
	return all
}

// talkingAndLeased are three nodes with node leases.
func talkingAndLeased() bubbleOptions {
	o := nodesCalled("hv1", "hv2", "hv3")
	o.talk, o.tune = true, func(*agent.Config, *agent.Deps) {}
	return leased(o)
}

// Everything that is counted leaves the process, and what it says is so.
func TestFiguresTellHowTheAgentFares(t *testing.T) {
	inBubble(t, talkingAndLeased(), func(b *bubble) {
		b.talk.net.Delay("hv1", "hv2", latency)
		b.elect("hv1")
		b.eventually(2*b.timing.NodeLeasePeriod, "all leases are held", func() bool { return b.figures("hv1")["pvc_lease_nodes_count{held}"] == 3 })
		m := b.nodes["hv1"].agent.Activities()
		run := func(body activity.Body) {
			_ = m.Run(context.Background(), activity.Spec{Name: "drain", Quorum: cluster.Majority()}, body)
		}
		run(func(context.Context, *activity.Activity) error { return nil })
		run(func(context.Context, *activity.Activity) error { return errors.New("no") })
		run(func(context.Context, *activity.Activity) error { panic("oh") })
		_ = m.Run(context.Background(), activity.Spec{Name: "drain", Quorum: cluster.All("hv9"), Timeout: -1}, nil)
		time.Sleep(10 * time.Second)
		f := b.figures("hv1")
		for name, want := range map[string]float64{
			"pvc_activity_started_total{}": 3, "pvc_activity_ended_total{well}": 1, "pvc_activity_ended_total{failed}": 2, "pvc_activity_panics_total{}": 1,
			"pvc_activity_present_count{running}": 0, "pvc_activity_stragglers_total{}": 0,
			"pvc_agent_role_mode_bool{primary}": 1, "pvc_lease_nodes_count{asked}": 3, "pvc_lease_holder_events_total{granted}": 3,
			"pvc_lease_holder_events_total{future_discarded}": 0, "pvc_agent_keepalives_total{failed}": 0,
		} {
			if got, there := f[name]; !there || got != want {
				b.t.Errorf("%s is %v (there %v), want %v", name, got, there, want)
			}
		}
		refused := 0.0
		for name, v := range f {
			if strings.HasPrefix(name, "pvc_activity_refused_total{") {
				refused += v
			}
		}
		if refused != 1 {
			b.t.Errorf("refused %v", refused)
		}
		for name, least := range map[string]float64{"pvc_agent_keepalives_total{sent}": 10, "pvc_agent_keepalive_lateness_seconds{}": 10, "pvc_lease_round_trip_seconds{}": 9, "pvc_lease_granter_events_total{granted}": 1,
			"pvc_lease_holder_events_total{extended}": 27, "pvc_agent_role_epoch_number{}": 1, "pvc_agent_role_deadline_seconds{}": 0.5, "pvc_lease_granted_left_seconds{}": 2} {
			if f[name] < least {
				b.t.Errorf("%s is %v, want %v at least", name, f[name], least)
			}
		}
		now := float64(time.Now().UnixMilli()) / 1000
		for loop, oldest := range map[string]float64{"keepalive": 1.1, "decide": 1, "nodewatch": 1, "guard": 5.1, "preflight": 5.1} {
			at, there := f["pvc_agent_loop_last_success_unix_seconds{"+loop+"}"]
			if age := now - at; !there || age > oldest || math.Abs(age) > oldest {
				b.t.Errorf("the loop %s has last succeeded %v s ago (told %v)", loop, age, there)
			}
		}
	})
}

// What an earlier term has counted is not forgotten with it, and who asks for
// figures of a loop that has ended waits for nobody.
func TestFiguresOutliveATermAndTheDaemon(t *testing.T) {
	inBubble(t, talkingAndLeased(), func(b *bubble) {
		b.elect("hv1")
		b.eventually(2*b.timing.NodeLeasePeriod, "all leases are held", func() bool { return b.figures("hv1")["pvc_lease_nodes_count{held}"] == 3 })
		before := b.figures("hv1")["pvc_lease_holder_events_total{asked}"]
		b.elect("hv2")
		f := b.figures("hv1")
		if f["pvc_lease_holder_events_total{asked}"] < before || f["pvc_lease_nodes_count{asked}"] != 0 || f["pvc_agent_role_epoch_number{}"] != 0 {
			b.t.Errorf("after its term: %v questions, %v before; asks %v", f["pvc_lease_holder_events_total{asked}"], before, f["pvc_lease_nodes_count{asked}"])
		}
		b.nodes["hv3"].stop()
		<-b.nodes["hv3"].done
		began := time.Now()
		if _, there := b.figures("hv3")["pvc_lease_holder_events_total{asked}"]; there || time.Since(began) > 0 {
			b.t.Errorf("a loop that has ended told something (%v), after %v", there, time.Since(began))
		}
	})
}
