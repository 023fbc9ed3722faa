package bench

import (
	"context"
	"testing"

	"pvc.internal/cluster"
)

// ask puts a question to a stand-in's granter and returns its answer.
func (g *granterNode) ask(t *testing.T, op cluster.NodeLeaseOp, id cluster.NodeLeaseID, n uint64) cluster.NodeLeaseAnswer {
	t.Helper()
	body, err := cluster.EncodeNodeLeaseRequest(cluster.NodeLeaseRequest{Op: op, ID: id, N: n})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := g.answer(t.Context(), id.Holder, body)
	if err != nil {
		t.Fatal(err)
	}
	a, err := cluster.DecodeNodeLeaseAnswer(raw)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestTheGrantersCountWhatTheNewestAskerGot(t *testing.T) {
	all := &granters{}
	for i := range 2 {
		all.nodes = append(all.nodes, newGranterNode(all, granterName(i), t.TempDir(), cluster.ProfileLAN()))
	}
	one, two := cluster.NodeLeaseID{Holder: "hv1", Start: "one", Epoch: 1}, cluster.NodeLeaseID{Holder: "hv1", Start: "two", Epoch: 2}
	for _, g := range all.nodes {
		for n := range uint64(50) {
			if a := g.ask(t, cluster.LeaseGrant, one, n+1); a.Code != "" {
				t.Fatalf("refused: %s", a.Detail)
			}
		}
	}
	r := all.tell()
	if r.Granted != 2 || r.Again != 0 || r.Answers != 100 || r.Asker != "one" {
		t.Errorf("%+v", r)
	}
	if r.FileSyncs != 4 { // each file and its folder, once
		t.Errorf("%d fsyncs for two grants and 98 renewals, want 4", r.FileSyncs)
	}
	if a := all.nodes[0].ask(t, cluster.LeaseGrant, two, 1); a.Code != cluster.RefuseLeaseAcquired {
		t.Errorf("another asker was answered %q while one is served", a.Code)
	}
	if r := all.tell(); r.Granted != 0 || r.Refused != 1 || r.Asker != "two" {
		t.Errorf("%+v", r)
	}
	all.nodes[0].ask(t, cluster.LeaseAbolish, one, 51)
	if a := all.nodes[0].ask(t, cluster.LeaseGrant, two, 2); a.Code != "" {
		t.Errorf("refused: %s", a.Detail)
	}
	if r := all.tell(); r.Granted != 1 || r.Last.Before(r.First) {
		t.Errorf("%+v", r)
	}
}

func TestWhateverAKinHasStartedIsFound(t *testing.T) {
	k, err := newKin("")
	if err != nil {
		t.Fatal(err)
	}
	defer k.end()
	p, err := k.start()
	if err != nil {
		t.Fatal(err)
	}
	if err := k.whole(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := len(k.alive()); n < 3 {
		t.Errorf("%d processes were found, want the program, one in a session of its own and one forked twice", n)
	}
	if err := p.Stop(context.Background(), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := k.gone(t.Context(), now()); err != nil {
		t.Error(err)
	}
}

func TestALostLeaseAndAFailoverLeaveNothingAlive(t *testing.T) {
	if _, left, err := lostLease(t.Context()); err != nil || left != 0 {
		t.Errorf("%v processes live when the loss is settled, %v", left, err)
	}
	if p, err := preempted(t.Context()); err != nil || p.alive+int(p.early+p.unlisted) != 0 {
		t.Errorf("%+v, %v", p, err)
	}
}
