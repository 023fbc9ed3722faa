package sandbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
)

// prober asks every floating address every 2 ms from the client's namespace:
// once as any client would, and once each node by its MAC. It is one thread
// with a fixed rhythm and non-blocking sockets.
type prober struct {
	log     *roundLog
	history *History
	addrs   []cluster.FloatingAddress
	nodes   []NodePlan
	stop    atomic.Bool
	done    chan struct{}

	udp4, udp6 int
	packets    map[string]int // link → packet socket
	frames     [][]*probeFrame
	links      []int // of each address: its packet socket
	asks       []unix.Sockaddr
	runs       *answerRuns
	settles    chan chan struct{}
	followed   chan struct{}
	restore    func()
}

// startProber opens the sockets in the client's namespace and begins.
func startProber(client *namespace, nodes []NodePlan, addrs []cluster.FloatingAddress, h *History) (*prober, error) {
	p := &prober{
		log: newRoundLog(), history: h, addrs: addrs, nodes: nodes, done: make(chan struct{}),
		packets: map[string]int{}, settles: make(chan chan struct{}), followed: make(chan struct{}), udp4: -1, udp6: -1, runs: newAnswerRuns(h, addrs, nodes),
	}
	if err := client.do(p.open); err != nil {
		p.closeSockets()
		return nil, fmt.Errorf("start the prober: %w", err)
	}
	p.restore = quietRuntime()
	go p.run()
	go p.follow()
	return p, nil
}

// quietRuntime keeps Go's runtime out of the prober's way: a collection stops
// every thread until the slowest one, of ordinary priority on a busy machine,
// has answered (82 ms were seen), and a thread that comes back from the kernel
// waits until one of Go's processors is free. So nothing is collected before
// the heap reaches quietHeap, and there are processors to spare. The returned
// function puts things back.
func quietRuntime() (restore func()) {
	limit := debug.SetMemoryLimit(quietHeap)
	percent := debug.SetGCPercent(-1)
	processors := runtime.GOMAXPROCS(max(spareProcessors, runtime.GOMAXPROCS(0)))
	return func() {
		debug.SetGCPercent(percent)
		debug.SetMemoryLimit(limit)
		runtime.GOMAXPROCS(processors)
	}
}

const (
	quietHeap       = 384 << 20
	spareProcessors = 8
)

func (p *prober) open() error {
	var err error
	if p.udp4, err = udpSocket(unix.AF_INET, &unix.SockaddrInet4{}); err != nil {
		return err
	}
	if p.udp6, err = udpSocket(unix.AF_INET6, &unix.SockaddrInet6{}); err != nil {
		return err
	}
	for _, link := range []string{linkUpstream, linkCluster} {
		iface, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		// Protocol 0: it sends only.
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open a packet socket: %w", err)
		}
		p.packets[link] = fd
		if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: iface.Index}); err != nil {
			return fmt.Errorf("bind a packet socket to %s: %w", link, err)
		}
	}
	return p.prepare()
}

// prepare lays out all datagrams and frames, so that a round only fills in
// its number.
func (p *prober) prepare() error {
	for _, a := range p.addrs {
		to := netip.AddrPortFrom(a.Prefix.Addr(), responderPort)
		from := hostIn(clusterNet4, clientHost).Addr()
		fd := p.udp4
		switch {
		case a.Prefix.Addr().Is6():
			from, fd = hostIn(upstreamNet6, clientHost).Addr(), p.udp6
			p.asks = append(p.asks, &unix.SockaddrInet6{Port: responderPort, Addr: to.Addr().As16()})
		case a.Interface == linkUpstream:
			from = hostIn(upstreamNet4, clientHost).Addr()
			fallthrough
		default:
			p.asks = append(p.asks, &unix.SockaddrInet4{Port: responderPort, Addr: to.Addr().As4()})
		}
		port, err := localPort(fd)
		if err != nil {
			return err
		}
		var frames []*probeFrame
		for _, n := range p.nodes {
			frames = append(frames, newProbeFrame(macOf(clientHost, a.Interface), n.MAC(a.Interface),
				netip.AddrPortFrom(from, port), to))
		}
		p.frames = append(p.frames, frames)
		p.links = append(p.links, p.packets[a.Interface])
	}
	return nil
}

func udpSocket(family int, bind unix.Sockaddr) (int, error) {
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open a UDP socket: %w", err)
	}
	deepen(fd)
	if err := unix.Bind(fd, bind); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("bind a UDP socket: %w", err)
	}
	return fd, nil
}

// probeBuffer holds a second of probes or answers: with the kernel's usual
// 208 KiB a process that did not run for 0.1 s lost what came meanwhile, and an
// overlap read as shorter than it was.
const probeBuffer = 8 << 20

// deepen gives a socket a receive buffer of probeBuffer.
func deepen(fd int) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, probeBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, probeBuffer) // as far as the kernel lets us
	}
}

func localPort(fd int) (uint16, error) {
	name, err := unix.Getsockname(fd)
	if err != nil {
		return 0, err
	}
	switch a := name.(type) {
	case *unix.SockaddrInet4:
		return uint16(a.Port), nil
	case *unix.SockaddrInet6:
		return uint16(a.Port), nil
	}
	return 0, errors.New("a UDP socket has no port")
}

func (p *prober) run() {
	defer close(p.done)
	defer p.closeSockets()
	asInstrument(2, p.rounds)
}

// rounds is the loop; a round that is late is not made up for. It does nothing
// but ask and listen: writing down is follow's.
func (p *prober) rounds() {
	next := now()
	var buf [probeSize]byte
	for !p.stop.Load() {
		next = next.Add(probePeriod)
		at := now()
		if at > next {
			next = at // no backlog: the missed rounds are gone
		} else {
			sleepUntil(next)
			at = now()
		}
		number := p.log.begin(at)
		p.drain(number, buf[:])
		p.send(number, buf[:])
	}
}

// follow writes the history from the rounds that are final.
func (p *prober) follow() {
	defer close(p.followed)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-p.done:
			p.runs.upTo(p.log)
			p.runs.late(p.log)
			p.runs.flush()
			return
		case done := <-p.settles:
			p.runs.upTo(p.log)
			p.runs.late(p.log)
			p.runs.flush()
			close(done)
		case <-tick.C:
			p.runs.upTo(p.log)
		}
	}
}

// send asks each address once, then each node by its MAC.
func (p *prober) send(number uint64, buf []byte) {
	for i := range p.addrs {
		putProbe(buf, probeAsk, i, number)
		fd := p.udp4
		if p.addrs[i].Prefix.Addr().Is6() {
			fd = p.udp6
		}
		_ = unix.Sendto(fd, buf, 0, p.asks[i]) // an unreachable address is a silence, not an error
	}
	var took [maxAddresses]time.Duration
	began := now()
	for i := range p.addrs {
		for _, f := range p.frames[i] {
			_, _ = unix.Write(p.links[i], f.fill(i, number))
		}
		ended := now()
		took[i], began = ended.Sub(began), ended
	}
	p.log.sent(number, took)
}

func (p *prober) drain(number uint64, buf []byte) {
	for _, fd := range []int{p.udp4, p.udp6} {
		for {
			n, err := unix.Read(fd, buf)
			if err == unix.EINTR || err == unix.ECONNREFUSED {
				continue
			}
			if err != nil {
				break
			}
			if a, ok := parseAnswer(buf[:n]); ok {
				p.log.answered(number, a)
			}
		}
	}
}

// settled waits until all rounds up to the instant are final: by their number,
// not by the clock, since a prober that is delayed leaves rounds out.
func (p *prober) settled(ctx context.Context, until cluster.Instant) error {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	for {
		if _, end := p.log.final(); end > 0 && p.log.copy(end-1).at >= until {
			return nil
		}
		if err := pause(ctx, 5*probePeriod); err != nil {
			return err
		}
	}
}

// settleTimeout bounds the wait for a prober that hardly runs; its stalls are
// told.
const settleTimeout = 10 * time.Second

// settle makes the history complete up to now, but for the rounds that are
// still out.
func (p *prober) settle(ctx context.Context) {
	if p.settled(ctx, now().Add(5*probePeriod)) != nil && ctx.Err() != nil {
		return
	}
	done := make(chan struct{})
	select {
	case p.settles <- done:
		<-done
	case <-p.followed:
	case <-ctx.Done():
	}
}

// close ends the prober and waits for it.
func (p *prober) close() {
	p.stop.Store(true)
	<-p.done
	<-p.followed
	p.restore()
}

func (p *prober) closeSockets() {
	for _, fd := range []int{p.udp4, p.udp6} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
	for _, fd := range p.packets {
		_ = unix.Close(fd)
	}
}

func sleepUntil(t cluster.Instant) {
	ts := unix.NsecToTimespec(int64(t))
	_ = unix.ClockNanosleep(unix.CLOCK_BOOTTIME, unix.TIMER_ABSTIME, &ts, nil)
}

// answerRuns turns finished rounds into history entries: who answered from
// when to when, when two did, and when nobody did.
type answerRuns struct {
	history *History
	addrs   []cluster.FloatingAddress
	nodes   []NodePlan
	node    [maxAddresses][maxNodes]Span // running stretch of each node's answers
	twice   [maxAddresses]Span
	both    [maxAddresses]uint8
	last    [maxAddresses]cluster.Instant // last ordinary answer
	done    uint64                        // number of the next round to take in
	tardy   uint64                        // late answers that have been taken in
}

func newAnswerRuns(h *History, addrs []cluster.FloatingAddress, nodes []NodePlan) *answerRuns {
	return &answerRuns{history: h, addrs: addrs, nodes: nodes}
}

// upTo takes in the rounds that have become final, but the newest: the next
// one helps to judge it.
func (a *answerRuns) upTo(l *roundLog) {
	first, end := l.final()
	for a.done = max(a.done, first+1); a.done+1 < end; a.done++ {
		around := []round{l.copy(a.done - 1), l.copy(a.done), l.copy(a.done + 1)}
		for i := range a.addrs {
			a.single(i, around[1])
			a.double(i, around)
			a.silence(i, around[1])
		}
	}
}

// late takes in what was answered after its round was final, as stretches of
// their own.
func (a *answerRuns) late(l *roundLog) {
	answers := l.tardyFrom(a.tardy)
	if len(answers) == 0 {
		return
	}
	a.tardy += uint64(len(answers))
	slices.SortFunc(answers, func(x, y tardyAnswer) int { return cmp.Compare(x.number, y.number) })
	first, end := l.final()
	own := newAnswerRuns(a.history, a.addrs, a.nodes)
	for k, t := range answers {
		if k > 0 && answers[k-1].number == t.number || t.number <= first || t.number+1 >= end {
			continue
		}
		around := l.span(l.copy(t.number-1).at, l.copy(t.number+1).at)
		if len(around) != 3 {
			continue
		}
		only := round{at: around[1].at}
		for _, same := range answers[k:] {
			if same.number != t.number {
				break
			}
			only.each[same.addr] |= 1 << same.node
		}
		for i := range a.addrs {
			own.single(i, only)
			own.double(i, around)
		}
	}
	own.flush()
}

func (a *answerRuns) single(i int, r round) {
	for n := range a.nodes {
		s := &a.node[i][n]
		if r.each[i]&(1<<n) != 0 {
			if s.From.IsZero() {
				s.From = r.at
			}
			s.To = r.at
		} else if !s.From.IsZero() && r.at.Sub(s.To) > runGap {
			a.emit(i, n)
		}
	}
}

func (a *answerRuns) emit(i, n int) {
	s := &a.node[i][n]
	a.history.Add(Entry{At: s.From, Until: s.To, Kind: KindAnswer, Node: a.nodes[n].Name, Addr: a.addrs[i].Name})
	*s = Span{}
}

func (a *answerRuns) double(i int, around []round) {
	r, s := around[1], &a.twice[i]
	switch judge(around, 1, i) {
	case double:
		if !s.From.IsZero() && r.at.Sub(s.To) > runGap {
			a.emitTwice(i) // nobody asked meanwhile: two stretches, for all one knows
		}
		if s.From.IsZero() {
			s.From = r.at
		}
		s.To = r.at
		a.both[i] |= r.each[i]
	case single:
		if !s.From.IsZero() && r.at.Sub(s.To) > runGap {
			a.emitTwice(i)
		}
	}
}

func (a *answerRuns) emitTwice(i int) {
	e := Entry{At: a.twice[i].From, Until: a.twice[i].To, Kind: KindTwice, Addr: a.addrs[i].Name}
	for n := range a.nodes {
		if a.both[i]&(1<<n) != 0 {
			e.Nodes = append(e.Nodes, a.nodes[n].Name)
		}
	}
	a.history.Add(e)
	a.twice[i], a.both[i] = Span{}, 0
}

func (a *answerRuns) silence(i int, r round) {
	if r.asked[i] == noNode {
		return
	}
	if !a.last[i].IsZero() && r.at.Sub(a.last[i]) > runGap {
		a.history.Add(Entry{At: a.last[i], Until: r.at, Kind: KindSilence, Addr: a.addrs[i].Name})
	}
	a.last[i] = r.at
}

// flush records the stretches that are still running.
func (a *answerRuns) flush() {
	for i := range a.addrs {
		for n := range a.nodes {
			if !a.node[i][n].From.IsZero() {
				a.emit(i, n)
			}
		}
		if !a.twice[i].From.IsZero() {
			a.emitTwice(i)
		}
	}
}
