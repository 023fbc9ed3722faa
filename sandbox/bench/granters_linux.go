package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"

	nodelease "pvc.internal/agent/lease"
	"pvc.internal/cluster"
	"pvc.internal/peer"
	"pvc.internal/peer/pki"
	"pvc.internal/sandbox"
)

// leasedNodes is how many nodes one primary holds leases of.
const leasedNodes = 1000

// firstGranterPort is the first granter's; the others follow.
const firstGranterPort = 20000

func granterName(i int) cluster.NodeID { return cluster.NodeID(fmt.Sprintf("g%04d", i)) }

// granters are nodes that do nothing but grant their leases, in one process: each
// with a certificate, a listener and a lease file of its own.
type granters struct {
	mu     sync.Mutex
	nodes  []*granterNode
	newest cluster.NodeLeaseID // who asks at present
	report granterReport
}

// granterReport is what the granters tell.
type granterReport struct {
	Asker     string          // the newest
	First     cluster.Instant // its first question
	Last      cluster.Instant // when the newest node granted it its first lease
	Granted   int             // nodes that have granted it theirs
	Again     uint64          // and had to once more, since it was lost
	Answers   uint64          // questions granted in all
	Refused   uint64
	Accepted  uint64 // connections
	FileSyncs uint64 // calls of fsync for all lease files
}

// granterNode is the shell around one lease.Granter: what that asks for is done
// at once, and nothing has to be ended here.
type granterNode struct {
	all  *granters
	file *nodelease.File

	mu     sync.Mutex
	g      nodelease.Granter
	ticket uint64
	serves cluster.NodeLeaseID
}

// newGranterNode makes the node's granter, which has served nobody yet.
func newGranterNode(all *granters, n cluster.NodeID, dir string, t cluster.Timing) *granterNode {
	g := &granterNode{all: all, file: nodelease.NewFile(dir, nil), g: nodelease.NewGranter(nodelease.NewGranterConfig(n, "bench", t))}
	g.feed(nodelease.Input{Kind: nodelease.InputStart})
	return g
}

// answer answers one question for the node's lease.
func (g *granterNode) answer(_ context.Context, from cluster.NodeID, body []byte) ([]byte, error) {
	r, err := cluster.DecodeNodeLeaseRequest(body)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, cluster.ErrRefused)
	}
	g.all.asked(r.ID)
	g.mu.Lock()
	g.ticket++
	a := g.feed(nodelease.Input{Kind: nodelease.InputRequest, Request: r, From: from, Member: true, Ticket: g.ticket})
	first := a.Code == "" && r.Op != cluster.LeaseAbolish && g.serves != r.ID
	switch {
	case first:
		g.serves = r.ID
	case r.Op == cluster.LeaseAbolish:
		g.serves = cluster.NodeLeaseID{}
	}
	g.mu.Unlock()
	g.all.answered(r.ID, a.Code, first)
	return cluster.EncodeNodeLeaseAnswer(a)
}

// feed steps the granter, and once more with whatever its effects bring about.
func (g *granterNode) feed(in nodelease.Input) (answer cluster.NodeLeaseAnswer) {
	for waiting := []nodelease.Input{in}; len(waiting) > 0; waiting = waiting[1:] {
		next, effects := g.g.Step(waiting[0], now())
		g.g = next
		for i := range effects {
			switch e := &effects[i]; e.Kind {
			case nodelease.EffectPersist:
				done := nodelease.Input{Kind: nodelease.InputPersisted, Seq: e.Seq}
				if err := g.file.Write(e.Record); err != nil {
					done.Failed = err.Error()
				}
				waiting = append(waiting, done)
			case nodelease.EffectRevoke:
				g.serves = cluster.NodeLeaseID{}
				waiting = append(waiting, nodelease.Input{Kind: nodelease.InputWorkGone, Seq: e.Seq})
			case nodelease.EffectReply:
				answer = e.Answer
			}
		}
	}
	return answer
}

// asked notes who asks.
func (a *granters) asked(id cluster.NodeLeaseID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if id != a.newest && id.Epoch >= a.newest.Epoch {
		a.newest, a.report.Asker = id, id.Start
		a.report.First, a.report.Last, a.report.Granted, a.report.Again = now(), cluster.Never, 0, 0
	}
}

// answered notes what became of a question.
func (a *granters) answered(id cluster.NodeLeaseID, code cluster.RefusalCode, first bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case code != "":
		a.report.Refused++
	case first && id == a.newest && a.report.Granted < len(a.nodes):
		a.report.Granted++
		a.report.Last = now()
		a.report.Answers++
	case first && id == a.newest:
		a.report.Again++
		a.report.Answers++
	default:
		a.report.Answers++
	}
}

// tell is the report at this instant.
func (a *granters) tell() granterReport {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := a.report
	for _, g := range a.nodes {
		r.FileSyncs += g.file.Counters().Syncs
	}
	return r
}

// countingListener counts the connections.
type countingListener struct {
	net.Listener
	all *granters
}

// Accept implements net.Listener.
func (l countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.all.mu.Lock()
		l.all.report.Accepted++
		l.all.mu.Unlock()
	}
	return c, err
}

// grantersMain is the process of the granters: it says when all listen, answers
// each line of its standard input with a report, and ends with it.
func grantersMain(args []string) error {
	if len(args) != 4 {
		return fmt.Errorf("granters %v: how many, the cluster's name, its authority's folder, a folder", args)
	}
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	raw, err := readAuthority(args[2])
	if err != nil {
		return err
	}
	a := &granters{}
	for i := range n {
		if err := a.listen(i, args[1], raw, args[3]); err != nil {
			return fmt.Errorf("granter %d: %w", i, err)
		}
	}
	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(a.tell()); err != nil {
		return err
	}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		if err := out.Encode(a.tell()); err != nil {
			return err
		}
	}
	return nil
}

// authority is an authority with its certificate as it is handed out.
type authority struct {
	*pki.Authority
	pem []byte
}

func readAuthority(dir string) (*authority, error) {
	certPEM, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		return nil, err
	}
	keyPEM, err := os.ReadFile(filepath.Join(dir, "ca.key"))
	if err != nil {
		return nil, err
	}
	a, err := pki.ParseAuthority(certPEM, keyPEM)
	return &authority{a, certPEM}, err
}

// certify makes a node's key and certificate below dir.
func (a *authority) certify(n cluster.NodeID, dir string) (peer.Files, error) {
	key, keyPEM, err := pki.NewKey()
	if err != nil {
		return peer.Files{}, err
	}
	certPEM, err := a.Issue(n, &key.PublicKey, 1, time.Now())
	if err != nil {
		return peer.Files{}, err
	}
	files := pki.NodeFiles(dir)
	return files, errors.Join(os.WriteFile(files.CA, a.pem, 0o600), os.WriteFile(files.Cert, certPEM, 0o600), os.WriteFile(files.Key, keyPEM, 0o600))
}

// listen begins to grant one node's lease.
func (a *granters) listen(i int, clusterName string, authority *authority, dir string) error {
	n := granterName(i)
	dir = filepath.Join(dir, string(n))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	files, err := authority.certify(n, dir)
	if err != nil {
		return err
	}
	id, err := peer.LoadIdentity(files, clusterName, n, nil)
	if err != nil {
		return err
	}
	g := newGranterNode(a, n, dir, cluster.ProfileLAN())
	server := peer.NewServer(peer.ServerConfig{}, id, func() peer.Status { return peer.Status{Node: n, Incarnation: "bench"} }, zap.NewNop())
	server.Handle(cluster.NodeLeaseQuestion, g.answer)
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", fmt.Sprintf("127.0.0.1:%d", firstGranterPort+i))
	if err != nil {
		return err
	}
	a.nodes = append(a.nodes, g)                             // nobody asks before all listen
	go func() { _ = server.Serve(countingListener{l, a}) }() // ends with the process
	return nil
}

// thousandLeases is the shipped daemon as the primary of a thousand granters.
type thousandLeases struct {
	b        *bench
	l        *lab
	granters *helper
}

// measureThousandLeases has the shipped daemon hold the leases of a thousand
// nodes, whose granters are one other process, by mutual TLS over the loopback of
// its node. Its cost is that of its process, by /proc, with all else that it does.
func (b *bench) measureThousandLeases(ctx context.Context) error {
	l, err := b.cluster(ctx, sandbox.Options{Coordinators: 1, NoHooks: true})
	if err != nil {
		return err
	}
	l.key = "" // its tree is used up afterwards
	e, err := l.ensemble(ctx, cluster.ProfileLAN())
	if err != nil {
		return err
	}
	defer e.close()
	t := &thousandLeases{b: b, l: l}
	dir, err := newFolder(memoryFolder(), "granters")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // of files that nobody needs
	if t.granters, err = b.help(e.inside, "granters", strconv.Itoa(leasedNodes), e.name, filepath.Join(l.Dir(), "pki"), dir); err != nil {
		return err
	}
	defer t.granters.kill()
	var ready granterReport
	if err := t.granters.hear(&ready); err != nil {
		return err
	}
	b.say("   %d granters listen", leasedNodes)
	if err := t.restart(ctx, false); err != nil {
		return err
	}
	if err := enrol(ctx, e); err != nil {
		return err
	}
	if err := pause(ctx, 10*time.Second); err != nil {
		return err
	}
	before, err := t.steady(ctx, b.observed(30*time.Second, 10*time.Second))
	if err != nil {
		return err
	}
	return t.runs(ctx, before)
}

// memoryFolder is where files of many nodes, which share no disk in truth, do not
// wait for the one disk of this machine; empty: there is none.
func memoryFolder() string {
	const shared = "/dev/shm"
	if info, err := os.Stat(shared); err != nil || !info.IsDir() {
		return ""
	}
	return shared
}

// enrol makes the records of nodes that have stopped in order, so that nobody
// thinks of fencing them, and that answer all the same.
func enrol(ctx context.Context, e *ensemble) error {
	h, err := e.handler(newWire(e.inside), 0)
	if err != nil {
		return err
	}
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	places := make(chan struct{}, joinAtOnce)
	var wg sync.WaitGroup
	for i := range leasedNodes {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			err := await(ctx, 60*time.Second, func() error {
				one, cancel := context.WithTimeout(ctx, 5*time.Second)
				defer cancel()
				return enrolOne(one, h, i)
			})
			if err != nil {
				giveUp(fmt.Errorf("enrol %s: %w", granterName(i), err))
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// store is what enrol needs of a session.
type store interface {
	EnsureNode(context.Context, cluster.NodeID, cluster.Mode) error
	ReadText(context.Context, cluster.Key) (cluster.Versioned[string], error)
	Commit(context.Context, cluster.Txn) cluster.TxnResult
}

// enrolOne makes one node's records; a try whose reply was lost is found done.
func enrolOne(ctx context.Context, h store, i int) error {
	n := granterName(i)
	if err := h.EnsureNode(ctx, n, cluster.Hypervisor); err != nil {
		return err
	}
	record := cluster.Key{Kind: cluster.KeyNodeRecord, Node: n}
	if is, err := h.ReadText(ctx, record); err != nil || is.Present {
		return err
	}
	incarnation := cluster.Incarnation("bench." + string(n))
	return h.Commit(ctx, cluster.Txn{Purpose: "register", Ops: []cluster.Op{
		cluster.Set(cluster.Key{Kind: cluster.KeyDaemonState, Node: n}, cluster.AnyVersion, cluster.DaemonStop),
		cluster.Create(record, cluster.NodeRecord{Version: 1, ID: string(incarnation), Incarnation: incarnation,
			Peer: fmt.Sprintf("127.0.0.1:%d", firstGranterPort+i)}),
	}}).Err
}

// restart begins the primary's agent anew, with node leases or without.
func (t *thousandLeases) restart(ctx context.Context, leases bool) error {
	return t.l.reconfigure(ctx, func(settings map[string]any) { settings["node_leases"] = leases })
}

// report asks the granters.
func (t *thousandLeases) report() (r granterReport, err error) {
	if _, err := t.granters.in.Write([]byte("\n")); err != nil {
		return r, fmt.Errorf("ask the granters: %w", err)
	}
	return r, t.granters.hear(&r)
}

// cost is what the primary's agent has cost over a time.
type cost struct{ percent, resident float64 }

// steady watches the primary's agent for so long.
func (t *thousandLeases) steady(ctx context.Context, over time.Duration) (cost, error) {
	agents, err := t.l.watch(ctx, "agent")
	if err != nil {
		return cost{}, err
	}
	from := time.Now()
	if err := pause(ctx, over); err != nil {
		return cost{}, err
	}
	percent, resident, err := since(agents, time.Since(from))
	if err != nil {
		return cost{}, err
	}
	return cost{percent[0], resident[0]}, nil
}

// runs measures the storm and the rest after it, again and again.
func (t *thousandLeases) runs(ctx context.Context, before cost) error {
	var storms, percent, resident, torn, lost, syncs, own, rates []float64
	over := t.b.observed(60*time.Second, 20*time.Second)
	file := filepath.Join(t.l.Nodes()[0].Dir, "state", "lease.json")
	for range min(t.b.runs(1), 3) {
		was, err := t.report()
		if err != nil {
			return err
		}
		if err := t.restart(ctx, true); err != nil {
			return err
		}
		storm, err := t.storm(ctx, was.Asker)
		if err != nil {
			return err
		}
		if err := pause(ctx, 10*time.Second); err != nil {
			return err
		}
		from, err := t.report()
		if err != nil {
			return err
		}
		written := versionOf(file)
		is, err := t.steady(ctx, over)
		if err != nil {
			return err
		}
		to, err := t.report()
		if err != nil {
			return err
		}
		storms, percent, resident = append(storms, millis(storm)), append(percent, is.percent), append(resident, is.resident)
		torn, lost = append(torn, float64(from.Again)), append(lost, float64(to.Again-from.Again))
		syncs = append(syncs, float64(to.FileSyncs-from.FileSyncs))
		changed := 0.0
		if versionOf(file) != written {
			changed = 1
		}
		own = append(own, changed)
		rate := float64(to.Answers-from.Answers) / over.Seconds()
		rates = append(rates, rate)
		t.b.say("   all leases held after %.0f ms; then %.1f %% of a processor, %.0f MiB, %.0f renewals a second (%d connections, load %.1f)",
			millis(storm), is.percent, is.resident, rate, to.Accepted, load())
	}
	t.b.add(figure("a thousand node leases: of one processor", "%", percent, atMost(25)),
		fmt.Sprintf("%.0f s each; %.1f %% with the same records and no leases; load now %.1f", over.Seconds(), before.percent, load()))
	t.b.add(figure("a thousand node leases: resident memory", "MiB", resident, atMost(150)), fmt.Sprintf("%.0f MiB without leases", before.resident))
	t.b.add(figure("a new primary's first question to the thousandth grant, cold", "ms", storms, atMost(10000)), "")
	t.b.add(figure("leases lost meanwhile", "", torn, none), "")
	t.b.add(figure("leases lost afterwards", "", lost, atMost(0)), "")
	t.b.add(figure("renewals a second", "", rates, none), "")
	t.b.add(figure("fsyncs of all lease files in these renewals", "", syncs, atMost(0)), "")
	t.b.add(figure("new versions of the primary's own lease file", "", own, atMost(0)), "")
	return nil
}

// storm waits until all nodes have granted another asker than was their leases,
// and tells how long that took from the first question on.
func (t *thousandLeases) storm(ctx context.Context, was string) (time.Duration, error) {
	var r granterReport
	err := await(ctx, 60*time.Second, func() error {
		var err error
		if r, err = t.report(); err == nil && (r.Granted < leasedNodes || r.Asker == was) {
			err = fmt.Errorf("%d of %d nodes have granted their leases, %d questions refused", r.Granted, leasedNodes, r.Refused)
		}
		return err
	})
	return r.Last.Sub(r.First), err
}

// versionOf tells one version of a file that is always replaced from another.
func versionOf(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return err.Error()
	}
	s, _ := info.Sys().(*syscall.Stat_t)
	if s == nil {
		return info.ModTime().String()
	}
	return fmt.Sprint(s.Ino, s.Size, info.ModTime().UnixNano())
}
