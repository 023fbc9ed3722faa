package agent_test

import (
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pvc.internal/cluster"
	"pvc.internal/peer/peertest"
)

// A node whose certificate has ended, is another node's or another authority's
// is asked for its lease like every other, over real connections, and is not
// believed: the primary holds no lease of it, lists it with what is wrong with
// the certificate and how to mend it, and counts each question that came to
// nothing. The others' leases are held all the while.
func TestANodeWithABadCertificateIsNotHeld(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(k *talkers)
		says  []string
	}{
		"expired": {func(k *talkers) {
			ends := time.Now().Add(time.Minute)
			k.spoil["hv3"] = func(c *x509.Certificate) { c.NotAfter = ends }
		}, []string{"spiffe://bubble/node/hv3", "expired on", "pvc pki renew hv3"}},
		"another node's": {func(k *talkers) { k.alias["hv3"] = "hv9" }, []string{"hv3 was asked and hv9 answers"}},
		"another authority's": {func(k *talkers) { k.signer["hv3"] = peertest.NewAuthority(k.b.t, "bubble", time.Now()) },
			[]string{"pvc authority of bubble", "no authority of this node", "ca.pem"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, o := newLeasing(leaseTrio...)
			o.names = nil
			inBubbleOf(t, o, l, func(b *bubble) {
				c.spoil(b.talk)
				for _, n := range leaseTrio {
					b.start(n)
				}
				b.elect("hv1")
				b.eventually(2*time.Minute, "the list says what is wrong with the certificate of hv3", func() bool {
					seen := l.record().Nodes["hv3"]
					for _, w := range c.says {
						if !strings.Contains(seen.Detail, w) {
							return false
						}
					}
					return seen.State == cluster.LeaseSeenRefused && seen.Code == cluster.RefuseNoAnswer
				})
				before := b.unanswered("hv1")
				b.always(3*b.timing.NodeLeasePeriod, "hv1 holds the others' leases and not that of hv3", func() bool { return l.holding("hv1", "hv1", "hv2") })
				if now := b.unanswered("hv1"); before == 0 || now <= before {
					t.Errorf("%v questions without an answer were counted, %v before", now, before)
				}
				if !l.quorum("hv1") {
					t.Error("two of three are no majority")
				}
			})
		})
	}
}

// unanswered is how many questions of a node's for leases came to nothing, as it
// tells Prometheus.
func (b *bubble) unanswered(n cluster.NodeID) float64 {
	b.t.Helper()
	all := prometheus.NewPedanticRegistry()
	if err := all.Register(b.nodes[n].agent.Figures()); err != nil {
		b.t.Fatal(err)
	}
	families, err := all.Gather()
	if err != nil {
		b.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "pvc_lease_holder_events_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			if m.GetLabel()[0].GetValue() == "no_answer" {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}
