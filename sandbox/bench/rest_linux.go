package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"pvc.internal/agent"
	"pvc.internal/cluster"
	"pvc.internal/proc"
	"pvc.internal/sandbox"
	"pvc.internal/zkhandler"
)

// The size of what REST is measured with.
const (
	restNodes       = 100
	restConnections = 16
	restWatchers    = 500
	restRate        = 3000             // requests a second that must be borne
	restAddress     = "127.0.0.1:7390" // within the first node's namespace
	restChanges     = 200 * time.Millisecond
)

// restBench is the shipped pvcapid over the real ensemble, whose tree has the
// records of a hundred nodes that are renewed by a stand-in.
type restBench struct {
	b      *bench
	e      *ensemble
	store  *zkhandler.Handler
	server *exec.Cmd
	ended  chan error
	daemon process
}

// measureREST loads pvcapid as clients do, and has it watched.
func measureREST(ctx context.Context, b *bench) error {
	l, err := b.cluster(ctx, sandbox.Options{Coordinators: 3, NoDaemons: true})
	if err != nil {
		return err
	}
	l.key = "" // its tree is used up afterwards
	defer ordinaryRuntime()()
	e, err := l.ensemble(ctx, cluster.ProfileLAN())
	if err != nil {
		return err
	}
	defer e.close()
	r := &restBench{b: b, e: e}
	if err := r.populate(ctx); err != nil {
		return err
	}
	if err := r.serve(ctx, l.Dir()); err != nil {
		return err
	}
	defer r.stop()
	over := b.observed(10*time.Second, 5*time.Second)
	for _, path := range []string{"/status", "/node"} {
		if err := r.load(ctx, path, over); err != nil {
			return err
		}
	}
	return r.watchers(ctx)
}

// changing are figures of a node, of which some change with each keepalive.
type changing struct{ n atomic.Int64 }

// Name implements agent.Collector.
func (*changing) Name() string { return "bench" }

// Collect implements agent.Collector.
func (c *changing) Collect(context.Context) (map[string]string, error) {
	n := c.n.Add(1)
	return map[string]string{"staticdata": "16 6.1.0-18-amd64 Debian12 x86_64", "cpuload": fmt.Sprintf("%.2f", float64(n%100)/50),
		"memtotal": "64000", "memused": strconv.FormatInt(20000+n%1000, 10), "memfree": strconv.FormatInt(44000-n%1000, 10),
		"memalloc": "0", "memprov": "0", "vcpualloc": "0", "domainscount": "0", "runningdomains": "", "pvcversion": "bench",
		"monitoring_health": "100", "monitoring_plugins": "disk load",
		"monitoring_data/disk/message": "all disks are well", "monitoring_data/disk/health_delta": "0", "monitoring_data/disk/last_run": "1700000000", "monitoring_data/disk/data": `{"disks":["sda","sdb"]}`,
		"monitoring_data/load/message": "load is low", "monitoring_data/load/health_delta": "0", "monitoring_data/load/last_run": "1700000000", "monitoring_data/load/data": `{"load":0.5}`}, nil
}

// populate registers the nodes and has their keepalives written, spread over K,
// each with figures that change.
func (r *restBench) populate(ctx context.Context) error {
	store, err := r.e.handler(newWire(r.e.inside), 0)
	if err != nil {
		return err
	}
	r.store = store
	err = await(ctx, 15*time.Second, func() error {
		one, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		return store.Initialize(one, r.e.name, false)
	})
	if err != nil {
		return err
	}
	for i := range restNodes {
		if err := r.node(ctx, i); err != nil {
			return err
		}
	}
	r.b.say("   %d nodes are registered and write their keepalives", restNodes)
	return nil
}

// benchIncarnation is how register calls a node's start.
func benchIncarnation(n cluster.NodeID) cluster.Incarnation {
	return cluster.Incarnation("bench." + string(n))
}

func restNode(i int) cluster.NodeID { return cluster.NodeID(fmt.Sprintf("r%03d", i)) }

func (r *restBench) node(ctx context.Context, i int) error {
	name := restNode(i)
	err := await(ctx, 60*time.Second, func() error {
		one, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		return register(one, r.store, name)
	})
	if err != nil {
		return fmt.Errorf("register %s: %w", name, err)
	}
	collection, err := agent.NewCollection(proc.BootClock{}, r.e.log, r.e.timing.CollectorDeadline, &changing{})
	if err != nil {
		return err
	}
	k, err := agent.NewKeepalive(agent.KeepaliveConfig{Node: name, Interval: r.e.timing.KeepaliveInterval, Clock: proc.BootClock{}, Collection: collection,
		Incarnation: benchIncarnation(name), Schema: func() (newest, now int) { return cluster.FactsSchema, cluster.FactsSchema },
		Publish: func(ctx context.Context, ops []cluster.Op) cluster.TxnResult {
			return r.store.Commit(ctx, cluster.Txn{Purpose: "keepalive", Ops: ops})
		},
		Repair: func(ctx context.Context, ops []cluster.Op) error {
			return agent.CreateMissing(r.store.Commit)(ctx, ops)
		}})
	if err != nil {
		return err
	}
	if err := k.SetState(cluster.DaemonRun); err != nil {
		return err
	}
	r.e.wg.Go(func() {
		if pause(r.e.life, r.e.timing.KeepaliveInterval*time.Duration(i)/restNodes) == nil {
			_ = k.Run(r.e.life)
		}
	})
	return nil
}

// serve starts the shipped pvcapid.
func (r *restBench) serve(ctx context.Context, dir string) error {
	path := filepath.Join(dir, "pvcapid-bench.yaml")
	text := fmt.Sprintf("node: {name: r000}\ncluster: {name: %s}\nzookeeper: {servers: [%s]}\ntiming: {profile: lan}\napi: {listen: [%q]}\nlog: {level: warn}\n",
		r.e.name, strings.Join(r.e.servers, ", "), restAddress)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return err
	}
	r.server = exec.Command(filepath.Join(r.b.config.BinDir, "pvcapid"), "-c", path) //nolint:noctx // stop ends it
	r.server.Stderr = os.Stderr
	r.server.SysProcAttr = withUs()
	if err := r.e.inside.do(r.server.Start); err != nil {
		return fmt.Errorf("start pvcapid: %w", err)
	}
	r.ended = make(chan error, 1)
	go func() { r.ended <- r.server.Wait() }()
	r.daemon = process{pid: r.server.Process.Pid}
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: r.e.inside.dial, DisableKeepAlives: true}}
	return await(ctx, 60*time.Second, func() error {
		response, err := client.Get("http://" + restAddress + "/api/v1/node") //nolint:noctx // it has a timeout
		if err != nil {
			return err
		}
		defer response.Body.Close()
		var nodes []struct {
			State string `json:"daemon_state"`
			CPUs  int    `json:"cpu_count"`
		}
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("GET /node: %s", response.Status)
		}
		if err := json.NewDecoder(response.Body).Decode(&nodes); err != nil {
			return err
		}
		complete := 0
		for _, n := range nodes {
			if n.State == "run" && n.CPUs == 16 {
				complete++
			}
		}
		if complete != restNodes {
			return fmt.Errorf("%d of %d nodes are complete", complete, restNodes)
		}
		return nil
	})
}

func (r *restBench) stop() {
	_ = r.server.Process.Signal(unix.SIGTERM)
	select {
	case <-r.ended: //nolint:errcheck // it was told to end, however it does
	case <-time.After(10 * time.Second):
		_ = r.server.Process.Kill()
		<-r.ended //nolint:errcheck // it was killed
	}
}

// loadResult is what one run of a load generator found.
type loadResult struct {
	Rate   float64       // requests a second
	P99    float64       // ms
	Errors int           // answers that are no success, connections that broke
	CPU    time.Duration // of the generator
}

// load asks for one path as fast as it is answered.
func (r *restBench) load(ctx context.Context, path string, over time.Duration) error {
	generate, with := func(_ context.Context, url string, over time.Duration) (loadResult, error) {
		return r.ownLoad(url, over, 0)
	}, "our own load generator"
	if wrk, err := exec.LookPath("wrk"); err == nil {
		generate, with = func(ctx context.Context, url string, over time.Duration) (loadResult, error) {
			return r.wrk(ctx, wrk, url, over)
		}, "wrk"
	}
	url := "http://" + restAddress + "/api/v1" + path
	if _, err := generate(ctx, url, time.Second); err != nil { // warm
		return err
	}
	var rates, late, ours, theirs, wrong []float64
	for range 5 {
		before, err := r.daemon.usage()
		if err != nil {
			return err
		}
		from := time.Now()
		result, err := generate(ctx, url, over)
		if err != nil {
			return err
		}
		took := time.Since(from)
		after, err := r.daemon.usage()
		if err != nil {
			return err
		}
		percent := func(cpu time.Duration) float64 { return 100 * cpu.Seconds() / took.Seconds() }
		rates, late, wrong = append(rates, result.Rate), append(late, result.P99), append(wrong, float64(result.Errors))
		ours, theirs = append(ours, percent(after.cpu-before.cpu)), append(theirs, percent(result.CPU))
		r.b.say("   GET %s: %.0f requests/s, 99 %% within %.1f ms, %d failed; pvcapid %.0f %%, client %.0f %% of a processor; load %.1f",
			path, result.Rate, result.P99, result.Errors, ours[len(ours)-1], theirs[len(theirs)-1], load())
	}
	note := fmt.Sprintf("%d nodes with a keepalive each second, %d connections of %s, %.0f s each; load now %.1f", restNodes, restConnections, with, over.Seconds(), load())
	r.b.add(figure("GET "+path+" as fast as it goes, requests a second", "", rates, atLeast(restRate)), note)
	r.b.add(figure("GET "+path+" as fast as it goes, 99th percentile", "ms", late, atMost(20)), "")
	paced, failed, err := r.paced(url, over)
	if err != nil {
		return err
	}
	empty, _, err := r.paced("http://"+restAddress+"/healthz", over) // what of it is this machine's own
	if err != nil {
		return err
	}
	r.b.add(figure(fmt.Sprintf("GET %s at %d requests a second, 99th percentile", path, restRate), "ms", paced, atMost(20)),
		fmt.Sprintf("each counted from when it was due; an empty answer: median %.1f ms, worst %.1f ms", median(empty), slices.Max(empty)))
	r.b.add(figure("GET "+path+", failed", "", append(wrong, failed...), atMost(0)), "")
	r.b.add(figure("GET "+path+", pvcapid's part of one processor", "%", ours, none), "")
	r.b.add(figure("GET "+path+", the client's part of one processor", "%", theirs, none), "")
	return nil
}

// paced asks at the rate that must be borne, by our own generator: how long a
// request takes is counted from the instant at which it was due, so that none is
// hidden behind one that was late.
func (r *restBench) paced(url string, over time.Duration) (late, failed []float64, err error) {
	for range 5 {
		result, err := r.ownLoad(url, over, restRate)
		if err != nil {
			return nil, nil, err
		}
		r.b.say("   %.0f of %d requests/s to %s: 99 %% within %.1f ms of when they were due, %d failed; load %.1f", result.Rate, restRate, url[strings.LastIndexByte(url, '/'):], result.P99, result.Errors, load())
		late, failed = append(late, result.P99), append(failed, float64(result.Errors))
	}
	return late, failed, nil
}

// wrk runs wrk within the namespace.
func (r *restBench) wrk(ctx context.Context, program, url string, over time.Duration) (loadResult, error) {
	cmd := exec.CommandContext(ctx, program, "-t2", "-c"+strconv.Itoa(restConnections), "-d"+strconv.Itoa(int(over.Seconds()))+"s", "--latency", url)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	cmd.SysProcAttr = withUs()
	if err := r.e.inside.do(cmd.Start); err != nil {
		return loadResult{}, fmt.Errorf("start wrk: %w", err)
	}
	if err := cmd.Wait(); err != nil {
		return loadResult{}, fmt.Errorf("wrk: %w", err)
	}
	result, err := parseWrk(out.String())
	result.CPU = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	return result, err
}

// parseWrk reads what wrk prints with --latency.
func parseWrk(text string) (loadResult, error) {
	result := loadResult{Rate: math.NaN(), P99: math.NaN()}
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		switch {
		case len(words) == 2 && words[0] == "99%":
			if d, err := time.ParseDuration(words[1]); err == nil {
				result.P99 = millis(d)
			}
		case len(words) == 2 && words[0] == "Requests/sec:":
			result.Rate, _ = strconv.ParseFloat(words[1], 64)
		case strings.HasPrefix(strings.TrimSpace(line), "Non-2xx") || strings.HasPrefix(strings.TrimSpace(line), "Socket errors"):
			for _, word := range words {
				if n, err := strconv.Atoi(strings.Trim(word, ",")); err == nil {
					result.Errors += n
				}
			}
		}
	}
	if math.IsNaN(result.Rate) || math.IsNaN(result.P99) {
		return result, fmt.Errorf("wrk printed neither a rate nor a percentile: %.300s", text)
	}
	return result, nil
}

// ownLoad runs our own generator, in a process of its own; a rate of 0 is as fast
// as it is answered.
func (r *restBench) ownLoad(url string, over time.Duration, rate int) (loadResult, error) {
	h, err := r.b.help(r.e.inside, "load", strings.TrimPrefix(url, "http://"), strconv.Itoa(restConnections), over.String(), strconv.Itoa(rate))
	if err != nil {
		return loadResult{}, err
	}
	defer h.kill()
	var result loadResult
	err = h.hear(&result)
	return result, err
}

// loadMain asks over so many connections for one path until the time is over,
// each connection one request after the other, and prints a loadResult.
func loadMain(args []string) error {
	if len(args) != 4 {
		return fmt.Errorf("load %v: host:port/path, how many connections, how long, how many a second", args)
	}
	rate, err := strconv.Atoi(args[3])
	if err != nil {
		return err
	}
	connections, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	over, err := time.ParseDuration(args[2])
	if err != nil {
		return err
	}
	address, path, _ := strings.Cut(args[0], "/")
	from := time.Now()
	took, failed := make([][]float64, connections), make([]int, connections)
	var all sync.WaitGroup
	for i := range connections {
		p := pace{next: from, end: from.Add(over)}
		if rate > 0 {
			p.every = time.Second * time.Duration(connections) / time.Duration(rate)
			p.next = from.Add(p.every * time.Duration(i) / time.Duration(connections))
		}
		all.Go(func() { took[i], failed[i] = askUntil(address, "/"+path, &p) })
	}
	all.Wait()
	each := slices.Concat(took...)
	slices.Sort(each)
	result := loadResult{Rate: float64(len(each)) / time.Since(from).Seconds()}
	for _, n := range failed {
		result.Errors += n
	}
	if len(each) > 0 {
		result.P99 = each[len(each)*99/100]
	}
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		return err
	}
	result.CPU = time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
	return json.NewEncoder(os.Stdout).Encode(result)
}

// pace is when the requests of one connection are due.
type pace struct {
	next, end time.Time
	every     time.Duration // 0: as soon as the last is answered
}

// due waits for the next request's instant and returns it; false when the time
// is over.
func (p *pace) due() (time.Time, bool) {
	if p.every == 0 {
		now := time.Now()
		return now, now.Before(p.end)
	}
	at := p.next
	p.next = at.Add(p.every)
	time.Sleep(time.Until(at))
	return at, at.Before(p.end)
}

// askUntil returns how long each answer took, in ms, and how many failed.
func askUntil(address, path string, p *pace) (took []float64, failed int) {
	request := []byte("GET " + path + " HTTP/1.1\r\nHost: " + address + "\r\n\r\n")
	for {
		c, err := (&net.Dialer{Timeout: 5 * time.Second}).Dial("tcp", address) //nolint:noctx // it has a timeout
		if err != nil {
			return took, failed + 1
		}
		in := bufio.NewReaderSize(c, 64<<10)
		for err == nil {
			began, more := p.due()
			if !more {
				_ = c.Close()
				return took, failed
			}
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			if _, err = c.Write(request); err == nil {
				err = readAnswer(in)
			}
			if err != nil {
				failed++
			} else {
				took = append(took, millis(time.Since(began)))
			}
		}
		_ = c.Close()
	}
}

// readAnswer reads one answer with a Content-Length and throws it away.
func readAnswer(in *bufio.Reader) error {
	status, length := "", -1
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return err
		}
		text := strings.TrimSpace(string(line))
		if text == "" {
			break
		}
		if status == "" {
			status = text
		}
		if name, value, ok := strings.Cut(text, ": "); ok && strings.EqualFold(name, "content-length") {
			if length, err = strconv.Atoi(value); err != nil {
				return err
			}
		}
	}
	if length < 0 {
		return errors.New("an answer without a length")
	}
	if _, err := in.Discard(length); err != nil {
		return err
	}
	if !strings.HasPrefix(status, "HTTP/1.1 200") {
		return errors.New(status)
	}
	return nil
}

// watchReport is what the watchers have received.
type watchReport struct {
	Open   int // connections that still bring events
	Events int // with a view
	Fewest int // of one watcher
}

// watchers measures what five hundred of them cost while the view changes.
func (r *restBench) watchers(ctx context.Context) error {
	var more, resident, percent, lost []float64
	for range min(r.b.runs(3), 5) {
		before, err := r.daemon.usage()
		if err != nil {
			return err
		}
		h, err := r.b.help(r.e.inside, "watchers", restAddress, strconv.Itoa(restWatchers))
		if err != nil {
			return err
		}
		found, err := r.watched(ctx, h)
		h.kill()
		if err != nil {
			return err
		}
		r.b.say("   %d watchers: %.1f MiB more than the %.1f MiB before; %d changes, the slowest got %d; pvcapid %.0f %% of a processor; load %.1f",
			restWatchers, found.resident-before.resident, before.resident, found.changes, found.report.Fewest, found.percent, load())
		more, resident = append(more, found.resident-before.resident), append(resident, found.resident)
		percent, lost = append(percent, found.percent), append(lost, float64(restWatchers-found.report.Open))
		if found.report.Fewest < found.changes/2 {
			return fmt.Errorf("of %d changes one watcher received %d", found.changes, found.report.Fewest)
		}
		if err := pause(ctx, 5*time.Second); err != nil { // the server sees that they are gone
			return err
		}
	}
	note := fmt.Sprintf("%d nodes, a change each %v; load now %.1f", restNodes, restChanges, load())
	r.b.add(figure(fmt.Sprintf("%d watchers: resident memory more than without", restWatchers), "MiB", more, atMost(50)), note)
	r.b.add(figure(fmt.Sprintf("%d watchers: resident memory of pvcapid", restWatchers), "MiB", resident, none), "")
	r.b.add(figure(fmt.Sprintf("%d watchers: of one processor", restWatchers), "%", percent, none), "")
	r.b.add(figure(fmt.Sprintf("%d watchers: lost", restWatchers), "", lost, atMost(0)), "")
	return nil
}

// watchedFor is one run of the watchers.
type watchedFor struct {
	resident, percent float64
	changes           int
	report            watchReport
}

// watched changes the view while the watchers watch, and looks at the server.
func (r *restBench) watched(ctx context.Context, h *helper) (watchedFor, error) {
	var w watchedFor
	if err := h.hear(&w.report); err != nil { // all are open
		return w, err
	}
	before, err := r.daemon.usage()
	if err != nil {
		return w, err
	}
	from := time.Now()
	key := cluster.Key{Kind: cluster.KeyDomainState, Node: restNode(0)}
	for over := r.b.observed(20*time.Second, 10*time.Second); time.Since(from) < over; w.changes++ {
		to := []cluster.DomainState{cluster.DomainReady, cluster.DomainFlushed}[w.changes%2]
		if res := r.store.Commit(ctx, cluster.Txn{Purpose: "bench", Ops: []cluster.Op{cluster.Set(key, cluster.AnyVersion, to)}}); res.Outcome != cluster.OutcomeOK {
			return w, fmt.Errorf("change the view: %v %w", res.Outcome, res.Err)
		}
		if err := pause(ctx, restChanges); err != nil {
			return w, err
		}
		now, err := r.daemon.usage()
		if err != nil {
			return w, err
		}
		w.resident = max(w.resident, now.resident)
		w.percent = 100 * (now.cpu - before.cpu).Seconds() / time.Since(from).Seconds()
	}
	if _, err := h.in.Write([]byte("\n")); err != nil {
		return w, fmt.Errorf("ask the watchers: %w", err)
	}
	return w, h.hear(&w.report)
}

// watchersMain opens so many watches, says when all have their first event, and
// answers each line of its standard input with a watchReport.
func watchersMain(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("watchers %v: host:port, how many", args)
	}
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	events, open := make([]atomic.Int64, n), atomic.Int64{}
	first := make(chan error, n)
	for i := range n {
		go func() { // ends with the process
			open.Add(1)
			defer open.Add(-1)
			watchOnce(args[0], &events[i], first)
		}()
	}
	for range n {
		if err := <-first; err != nil {
			return err
		}
	}
	tell := func() error {
		report := watchReport{Open: int(open.Load()), Fewest: math.MaxInt}
		for i := range events {
			got := int(events[i].Load())
			report.Events += got
			report.Fewest = min(report.Fewest, got)
		}
		return json.NewEncoder(os.Stdout).Encode(report)
	}
	if err := tell(); err != nil {
		return err
	}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		if err := tell(); err != nil {
			return err
		}
	}
	return nil
}

// watchOnce counts the events of one watch until it ends.
func watchOnce(address string, events *atomic.Int64, first chan<- error) {
	c, err := (&net.Dialer{Timeout: 30 * time.Second}).Dial("tcp", address) //nolint:noctx // it has a timeout
	if err != nil {
		first <- err
		return
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET /api/v1/watch HTTP/1.1\r\nHost: "+address+"\r\nAccept: text/event-stream\r\n\r\n"); err != nil {
		first <- err
		return
	}
	in := bufio.NewReaderSize(c, 16<<10)
	for {
		line, err := in.ReadSlice('\n')
		switch {
		case errors.Is(err, bufio.ErrBufferFull): // a long line comes in pieces
		case err != nil:
			first <- fmt.Errorf("a watch ended: %w", err) // buffered: one a watch is read
			return
		case bytes.HasPrefix(line, []byte("event: cluster")):
			if events.Add(1) == 1 {
				first <- nil
			}
		}
	}
}
