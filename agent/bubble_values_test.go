package agent_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"pvc.internal/agent"
	"pvc.internal/cluster"
)

// fixedValues is a collector whose figures never change.
type fixedValues map[string]string

func (fixedValues) Name() string { return "fixed" }

func (v fixedValues) Collect(context.Context) (map[string]string, error) { return v, nil }

// Rubbish that somebody writes over what a node publishes goes away by itself,
// though the node has nothing new to say: what its own view shows it at once,
// the rest within a minute.
func TestRubbishOverPublishedValuesDoesNotStay(t *testing.T) {
	t.Parallel()
	values := fixedValues{
		"staticdata": "4 6.1.0 GNU/Linux x86_64", "memtotal": "8000", "monitoring_health": "100", "monitoring_plugins": "load",
		"monitoring_data/load/message": "OK - all is well", "monitoring_data/load/health_delta": "0",
	}
	o := nodesCalled("hv1", "hv2")
	o.tune = func(_ *agent.Config, d *agent.Deps) {
		collection, err := agent.NewCollection(d.Clock, d.Log, 800*time.Millisecond, values)
		if err != nil {
			t.Error(err)
		}
		d.Collector = collection
	}
	inBubble(t, o, func(b *bubble) {
		b.elect("hv1")
		b.sighted()
		time.Sleep(2 * b.timing.SessionTimeout) // nothing of the views changes any more
		view, record := b.read("/agent/views/hv2"), b.read("/agent/nodes/hv2")
		at := func(leaf string) string { return "/nodes/hv2/" + leaf }
		for leaf := range values {
			b.store.Set(at(leaf), []byte("\x00rubbish"))
		}
		b.store.Set("/agent/views/hv2", []byte("{"))
		b.eventually(time.Minute, "every value is there again", func() bool {
			for leaf, want := range values {
				if b.read(at(leaf)) != want {
					return false
				}
			}
			return b.read("/agent/views/hv2") == view
		})
		for _, path := range []string{"/nodes/hv2", "/agent/nodes/hv2", at("daemonstate"), at("routerstate"), at("domainstate"), at("keepalive")} {
			b.store.Set(path, []byte("\x00rubbish"))
		}
		b.eventually(2*b.timing.KeepaliveInterval, "the records that all nodes watch can be read", func() bool {
			return b.read("/nodes/hv2") == string(cluster.Coordinator) && b.read("/agent/nodes/hv2") == record &&
				b.read(at("daemonstate")) == "run" && b.read(at("routerstate")) == "secondary" &&
				b.read(at("domainstate")) == "flushed" && !strings.Contains(b.read(at("keepalive")), "rubbish")
		})
	})
}

// What keeps a primary-only service from running is published at once, under
// its name, and taken back when it runs.
func TestAFailedServiceIsPublished(t *testing.T) {
	t.Parallel()
	inBubble(t, threeNodes(), func(b *bubble) {
		b.elect("hv1")
		b.guard("hv2").breakService("web", errors.New("exit status 1"))
		b.wish("hv2")
		b.eventually(4*time.Second, "hv2 is primary", func() bool { return b.primary() == "hv2" })
		said := func() string {
			var v agent.View
			if err := json.Unmarshal([]byte(b.read("/agent/views/hv2")), &v); err != nil {
				return err.Error()
			}
			return v.ServiceFault
		}
		b.eventually(b.timing.KeepaliveInterval/2, "hv2 says which service fails, and why", func() bool {
			return strings.Contains(said(), "web") && strings.Contains(said(), "exit status 1")
		})
		b.guard("hv2").breakService("web", nil)
		b.eventually(10*time.Second, "the service runs and nothing is said", func() bool { return said() == "" })
		b.always(3*b.timing.SessionTimeout, "nothing is said of services that run", func() bool { return said() == "" })
	})
}
