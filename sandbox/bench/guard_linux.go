package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"pvc.internal/agent/activity"
	"pvc.internal/cluster"
	"pvc.internal/proc"
	"pvc.internal/router"
)

// stopFor is how long a guard is stopped.
const stopFor = 10 * time.Second

// bed is the shipped guard alone in a namespace of its own, with one floating
// address, a responder beside it and a client that asks it every 2 ms.
type bed struct {
	dir     string
	host    *namespace
	client  *namespace
	address cluster.FloatingAddress
	guard   *exec.Cmd
	link    *router.Client
	rights  *activity.Manager // what the role's orders are given by
	right   *activity.Right
	close   []func()
	epoch   cluster.Epoch

	mu      sync.Mutex
	answers []cluster.Instant // when the question of each answer was sent
	events  []addressEvent
}

// addressEvent is the address's coming or going in the guard's kernel.
type addressEvent struct {
	at cluster.Instant
	on bool
}

// outcome is what one stopped guard did after its deadline.
type outcome struct {
	answers   int           // given to questions sent after the deadline
	recreated bool          // the address came back when the guard went on
	left      time.Duration // how long a re-created address stayed
}

// stops are the ways in which a guard is stopped, in turn.
var stops = []struct {
	text string
	run  func(context.Context, *bed) (outcome, error)
}{
	{"before the gate's refresh", func(ctx context.Context, b *bed) (outcome, error) { return b.held(ctx, newElement) }},
	{"before the address's refresh", func(ctx context.Context, b *bed) (outcome, error) { return b.held(ctx, newAddress) }},
	{"at a random instant near the deadline", func(ctx context.Context, b *bed) (outcome, error) { return b.stopped(ctx) }},
}

func measureGuard(ctx context.Context, b *bench) error {
	const beds = 5
	rounds := (b.runs(5) + beds - 1) / beds
	results := make([][]outcome, len(stops))
	var mu sync.Mutex
	errs := make([]error, beds)
	var wg sync.WaitGroup
	for i := range beds {
		wg.Go(func() {
			errs[i] = b.guardBed(ctx, i, rounds, func(kind int, o outcome) {
				mu.Lock()
				defer mu.Unlock()
				results[kind] = append(results[kind], o)
			})
		})
	}
	wg.Wait()
	for kind, all := range results {
		var answers, left []float64
		recreated := 0
		for _, o := range all {
			answers = append(answers, float64(o.answers))
			if o.recreated {
				recreated++
				left = append(left, millis(o.left))
			}
		}
		b.add(figure("answers after the deadline, guard stopped "+stops[kind].text, "", answers, atMost(0)), "continued 10 s later")
		if recreated > 0 {
			b.add(figure("address re-created on continuing stays, guard stopped "+stops[kind].text, "ms", left, atMost(5)), "")
		} else {
			b.say("   stopped %s, no address was re-created in %d rounds", stops[kind].text, len(all))
		}
	}
	return errors.Join(errs...)
}

// guardBed runs the rounds of one bed.
func (b *bench) guardBed(ctx context.Context, index, rounds int, tell func(int, outcome)) error {
	bed, err := newBed(b.config.BinDir, b.config.Name, index)
	if err != nil {
		return fmt.Errorf("guard's bed %d: %w", index, err)
	}
	defer bed.closeAll()
	for range rounds {
		for kind, s := range stops {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			o, err := s.run(ctx, bed)
			if err != nil {
				return fmt.Errorf("guard stopped %s: %w", s.text, err)
			}
			tell(kind, o)
			b.say("   guard %d stopped %s: %d answers after its deadline, re-created %v for %v", index, s.text, o.answers, o.recreated, o.left)
		}
	}
	return nil
}

// newBed makes the namespaces and starts guard, responder and client.
func newBed(bin, name string, index int) (*bed, error) {
	b := &bed{address: cluster.FloatingAddress{Name: "only", Interface: "up", Prefix: netip.MustParsePrefix("192.0.2.200/24")}}
	var err error
	defer func() {
		if err != nil {
			b.closeAll()
		}
	}()
	if b.dir, err = newFolder("", fmt.Sprintf("%s-guard%d", name, index)); err != nil {
		return nil, err
	}
	b.onClose(func() { _ = os.RemoveAll(b.dir) })
	for _, step := range []func() error{b.wire, b.watch, b.respond, b.ask, func() error { return b.startGuard(bin) }} {
		if err = step(); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func (b *bed) onClose(f func()) { b.close = append(b.close, f) }

func (b *bed) closeAll() {
	for i := len(b.close) - 1; i >= 0; i-- {
		b.close[i]()
	}
	b.close = nil
}

// wire joins the two namespaces by one link. The client knows the floating
// address's hardware address beforehand, so that no neighbour cache decides.
func (b *bed) wire() error {
	var err error
	if b.host, err = newNamespace(); err != nil {
		return err
	}
	b.onClose(b.host.close)
	if b.client, err = newNamespace(); err != nil {
		return err
	}
	b.onClose(b.client.close)
	client, err := netlink.NewHandleAt(netns.NsHandle(b.client.fd()))
	if err != nil {
		return err
	}
	defer client.Close()
	host, err := netlink.NewHandleAt(netns.NsHandle(b.host.fd()))
	if err != nil {
		return err
	}
	defer host.Close()
	mac := net.HardwareAddr{2, 0x50, 0x56, 0x43, 9, 1}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "up"
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "up", PeerHardwareAddr: mac, PeerNamespace: netlink.NsFd(b.host.fd())}
	if err := client.LinkAdd(veth); err != nil {
		return fmt.Errorf("add a link: %w", err)
	}
	for h, address := range map[*netlink.Handle]string{client: "192.0.2.2/24", host: "192.0.2.1/24"} {
		link, err := h.LinkByName("up")
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr(address)
		if err != nil {
			return err
		}
		if err := errors.Join(h.AddrAdd(link, addr), h.LinkSetUp(link)); err != nil {
			return err
		}
	}
	up, err := client.LinkByName("up")
	if err != nil {
		return err
	}
	return client.NeighSet(&netlink.Neigh{LinkIndex: up.Attrs().Index, State: netlink.NUD_PERMANENT,
		IP: b.address.Prefix.Addr().AsSlice(), HardwareAddr: mac})
}

// watch notes when the address comes and goes.
func (b *bed) watch() error {
	updates, stop := make(chan netlink.AddrUpdate, 64), make(chan struct{})
	handle := netns.NsHandle(b.host.fd())
	if err := netlink.AddrSubscribeWithOptions(updates, stop, netlink.AddrSubscribeOptions{Namespace: &handle, ErrorCallback: func(error) {}}); err != nil {
		return fmt.Errorf("watch the addresses: %w", err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		held := false
		for u := range updates {
			ip, _ := netip.AddrFromSlice(u.LinkAddress.IP)
			if ip.Unmap() != b.address.Prefix.Addr() || held == u.NewAddr {
				continue
			}
			held = u.NewAddr
			b.mu.Lock()
			b.events = append(b.events, addressEvent{now(), held})
			b.mu.Unlock()
		}
	}()
	b.onClose(func() { close(stop); <-done })
	return nil
}

// bedPort is where the responder listens.
const bedPort = 7399

// respond answers every question from the address that was asked, for as long
// as the kernel delivers it.
func (b *bed) respond() error {
	var conn net.PacketConn
	err := b.host.do(func() error {
		var err error
		conn, err = new(net.ListenConfig).ListenPacket(context.Background(), "udp4", fmt.Sprintf("0.0.0.0:%d", bedPort))
		return err
	})
	if err != nil {
		return err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		var buf [16]byte
		for {
			n, from, err := conn.ReadFrom(buf[:])
			if err != nil {
				return
			}
			_, _ = conn.WriteTo(buf[:n], from) // from the host's own address: whatever is let in counts, also where its answer would be stopped
		}
	}()
	b.onClose(func() { _ = conn.Close(); <-done })
	return nil
}

// ask sends the client's questions, each with its instant, and files what is
// answered.
func (b *bed) ask() error {
	var conn net.PacketConn
	err := b.client.do(func() error {
		var err error
		conn, err = new(net.ListenConfig).ListenPacket(context.Background(), "udp4", "192.0.2.2:0")
		return err
	})
	if err != nil {
		return err
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		ticker := time.NewTicker(2 * time.Millisecond)
		defer ticker.Stop()
		to := &net.UDPAddr{IP: b.address.Prefix.Addr().AsSlice(), Port: bedPort}
		for {
			select {
			case <-stop:
				return
			case <-ticker.C:
				_, _ = conn.WriteTo(fmt.Appendf(nil, "%016x", uint64(now())), to)
			}
		}
	})
	wg.Go(func() {
		var buf [64]byte
		for {
			n, _, err := conn.ReadFrom(buf[:])
			if err != nil {
				if errors.Is(err, net.ErrClosed) {
					return
				}
				continue
			}
			var sent uint64
			if _, err := fmt.Sscanf(string(buf[:n]), "%016x", &sent); err == nil {
				b.mu.Lock()
				b.answers = append(b.answers, cluster.Instant(sent))
				b.mu.Unlock()
			}
		}
	})
	b.onClose(func() { close(stop); _ = conn.Close(); wg.Wait() })
	return nil
}

// startGuard runs the shipped guard in the host's namespace. The thread that
// starts it lives as long as the bed: the guard dies with it.
func (b *bed) startGuard(bin string) error {
	settings := fmt.Sprintf("node: {name: bed, mode: coordinator}\ncluster: {name: bench}\nzookeeper: {servers: [\"127.0.0.1:2181\"]}\n"+
		"addresses: [{name: %s, cidr: %s, interface: up}]\nstate_dir: %s\nrun_dir: %s\n", b.address.Name, b.address.Prefix, b.dir, b.dir)
	path := filepath.Join(b.dir, "pvcnoded.yaml")
	if err := os.WriteFile(path, []byte(settings), 0o600); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(b.dir, "guard.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(bin, "pvcnoded"), "guard", "-c", path) //nolint:noctx // end ends it, and the kernel with this process
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = withUs()
	started, end := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread()
		err := unix.Setns(b.host.fd(), unix.CLONE_NEWNET)
		if err == nil {
			err = cmd.Start()
		}
		started <- err
		<-end
	}()
	if err := <-started; err != nil {
		close(end)
		return fmt.Errorf("start a guard: %w", err)
	}
	b.guard = cmd
	// Waited for at the end only: a wait beside the tracer's takes its stops away.
	b.onClose(func() { _ = cmd.Process.Kill(); _ = cmd.Wait(); close(end) })
	b.rights = activity.New(activity.Config{Self: "bed", Clock: proc.BootClock{}})
	b.link = router.NewClient(filepath.Join(b.dir, "guard.sock"), zap.NewNop())
	b.onClose(b.link.Close)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return await(ctx, 5*time.Second, func() error {
		_, err := b.link.State(ctx)
		return err
	})
}

// hold begins a role of that length and waits until the client is answered.
func (b *bed) hold(ctx context.Context, length time.Duration) (cluster.Instant, error) {
	b.epoch++
	b.mu.Lock()
	b.answers, b.events = nil, nil
	b.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	deadline := now().Add(length)
	d := cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: b.epoch, Deadline: deadline, Sent: now()}
	b.right = b.rights.Hold(context.WithoutCancel(ctx), d)
	if err := b.link.Begin(ctx, b.right.Token(), d); err != nil {
		return 0, err
	}
	if err := b.link.Present(ctx, b.right.Token(), b.epoch, []cluster.FloatingAddress{b.address}); err != nil {
		return 0, err
	}
	return deadline, await(ctx, time.Second, func() error {
		b.mu.Lock()
		defer b.mu.Unlock()
		if len(b.answers) == 0 {
			return errors.New("the bed's address does not answer")
		}
		return nil
	})
}

// held stops the guard as it is about to send the kernel the message, by a
// renewal that is received in time, and lets it go on ten seconds later.
func (b *bed) held(ctx context.Context, message uint16) (outcome, error) {
	deadline, err := b.hold(ctx, 1200*time.Millisecond)
	if err != nil {
		return outcome{}, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 4 {
			if pause(ctx, 200*time.Millisecond) != nil {
				return
			}
			// What the guard has taken in, or may have before it was
			// stopped, is its right.
			d := cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: b.epoch, Deadline: now().Add(1200 * time.Millisecond), Sent: now()}
			one, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
			b.right.Extend(d.Deadline)
			if b.link.Extend(one, b.right.Token(), d) == nil || one.Err() != nil {
				deadline = max(deadline, d.Deadline)
			}
			cancel()
		}
	}()
	_, released, err := holdAt(b.guard.Process.Pid, message, stopFor, 3*time.Second)
	<-done
	if err != nil {
		return outcome{}, err
	}
	return b.judge(ctx, deadline, now().Add(-time.Since(released)))
}

// stopped stops the guard at a random instant in the last 30 ms before its
// deadline.
func (b *bed) stopped(ctx context.Context) (outcome, error) {
	deadline, err := b.hold(ctx, 900*time.Millisecond)
	if err != nil {
		return outcome{}, err
	}
	if err := pause(ctx, deadline.Sub(now())-time.Duration(rand.Int64N(int64(30*time.Millisecond)))); err != nil {
		return outcome{}, err
	}
	_ = b.guard.Process.Signal(unix.SIGSTOP)
	if err := pause(ctx, stopFor); err != nil {
		return outcome{}, err
	}
	released := now()
	_ = b.guard.Process.Signal(unix.SIGCONT)
	return b.judge(ctx, deadline, released)
}

// judge waits until the guard has had its time to go on, and counts.
func (b *bed) judge(ctx context.Context, deadline, released cluster.Instant) (outcome, error) {
	if err := pause(ctx, 1500*time.Millisecond); err != nil {
		return outcome{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	var o outcome
	for _, at := range b.answers {
		if at > deadline {
			o.answers++
		}
	}
	var came cluster.Instant
	for _, e := range b.events {
		switch {
		case e.on && e.at >= released:
			came = e.at
		case !e.on && !came.IsZero():
			o.recreated, o.left = true, max(o.left, e.at.Sub(came))
			came = cluster.Never
		}
	}
	if !came.IsZero() {
		o.recreated, o.left = true, now().Sub(came)
	}
	return o, nil
}
