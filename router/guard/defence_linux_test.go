package guard

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
	"pvc.internal/router"
)

// segment puts a client and a stranger on the bed's network, behind a bridge in
// the peer's namespace.
type segment struct {
	*bed
	client, stranger       string // namespaces
	holderMAC, strangerMAC string
}

func newSegment(t *testing.T) *segment {
	b := newBed(t, true)
	s := &segment{bed: b, client: b.peer + "c", stranger: b.peer + "s"}
	ip(t, "-n", b.peer, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
	ip(t, "-n", b.peer, "link", "set", "br0", "up")
	ip(t, "-n", b.peer, "link", "set", "peer0", "master", "br0")
	for i, ns := range []string{s.client, s.stranger} {
		ip(t, "netns", "add", ns)
		t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", ns).Run() })
		port := fmt.Sprintf("port%d", i)
		ip(t, "-n", b.peer, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", ns)
		ip(t, "-n", b.peer, "link", "set", port, "master", "br0", "up")
		ip(t, "-n", ns, "link", "set", "eth0", "up")
		ip(t, "-n", ns, "addr", "add", fmt.Sprintf("10.77.0.%d/24", 3+i), "dev", "eth0")
		ip(t, "-n", ns, "addr", "add", fmt.Sprintf("fd77::%d/64", 3+i), "dev", "eth0", "nodad")
	}
	s.holderMAC, s.strangerMAC = macOf(t, b.host, "up0"), macOf(t, s.stranger, "eth0")
	return s
}

func macOf(t *testing.T, ns, dev string) (mac string) {
	inNamespace(t, ns, func() {
		if ifi, err := net.InterfaceByName(dev); err == nil {
			mac = ifi.HardwareAddr.String()
		}
	})
	if mac == "" {
		t.Fatalf("no hardware address of %s", dev)
	}
	return mac
}

// claim sends the stranger's announcement.
func (s *segment) claim(a cluster.FloatingAddress) {
	s.t.Helper()
	inNamespace(s.t, s.stranger, func() {
		ifi, err := net.InterfaceByName("eth0")
		if err != nil {
			s.t.Error(err)
			return
		}
		conn, err := packet.Listen(ifi, packet.Raw, 0, nil)
		if err != nil {
			s.t.Error(err)
			return
		}
		defer conn.Close()
		frame := router.AnnounceFrames(ifi.HardwareAddr, a.Prefix.Addr(), false)[0]
		if _, err := conn.WriteTo(frame, &packet.Addr{HardwareAddr: net.HardwareAddr(frame[:6])}); err != nil {
			s.t.Error(err)
		}
	})
}

// know makes the client ask for the address, so that it has an entry.
func (s *segment) know(a cluster.FloatingAddress) {
	s.t.Helper()
	s.eventually(time.Second, "the client reaches "+a.Name, func() bool { // one answer may take longer on a loaded machine
		return exec.Command("nsenter", "--net=/run/netns/"+s.client, "ping", "-n", "-c1", "-W1", a.Prefix.Addr().String()).Run() == nil
	})
}

// entry is the hardware address that the client has for the address.
func (s *segment) entry(a cluster.FloatingAddress) (mac string) {
	s.t.Helper()
	inNamespace(s.t, s.client, func() {
		list, err := netlink.NeighList(0, netlink.FAMILY_ALL)
		if err != nil {
			s.t.Error(err)
		}
		for _, n := range list {
			if n.IP.Equal(a.Prefix.Addr().AsSlice()) {
				mac = n.HardwareAddr.String()
			}
		}
	})
	return mac
}

// listening reports whether the guard has sockets for claims of both families.
func (s *segment) listening() (four, six bool) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/packet", s.guard.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.Contains(string(raw), " 0806 "), strings.Contains(string(raw), " 86dd ")
}

// atOnce leaves a busy machine time to let the guard, and who looks, run.
const atOnce = 500 * time.Millisecond

// stolenAndBack has the stranger take the address, which the holder must have
// back within the limit. The guard stands still meanwhile, or nobody could see
// the theft.
func (s *segment) stolenAndBack(a cluster.FloatingAddress, limit time.Duration) {
	s.t.Helper()
	s.signal(unix.SIGSTOP)
	s.eventually(time.Second, "the stranger takes "+a.Name, func() bool {
		s.claim(a) // again, should the guard not have stopped yet
		return s.entry(a) == s.strangerMAC
	})
	s.signal(unix.SIGCONT)
	began := time.Now()
	s.eventually(limit, a.Name+" is back", func() bool { return s.entry(a) == s.holderMAC })
	s.t.Logf("%s back after %v", a.Name, time.Since(began))
}

func (s *segment) mustListen() {
	s.t.Helper()
	s.eventually(time.Second, "the guard listens for claims", func() bool { four, six := s.listening(); return four && six })
}

func TestAStolenAddressIsBackAtItsHolderAtOnce(t *testing.T) {
	s := newSegment(t)
	s.begin(1, time.Minute, v4a, v6a)
	presented := time.Now()
	s.mustListen()
	for _, a := range []cluster.FloatingAddress{v4a, v6a} {
		s.know(a)
		s.stolenAndBack(a, atOnce)
	}
	if faults := s.state().Faults; len(faults) > 0 && time.Since(presented) < defenceTail {
		t.Errorf("the previous holder's tail is a fault: %q", faults)
	}
	s.eventually(5*time.Second, "the tail is over", func() bool { return time.Since(presented) > defenceTail+100*time.Millisecond })
	for _, a := range []cluster.FloatingAddress{v4a, v6a} {
		s.know(a)
		s.stolenAndBack(a, atOnce)
		s.stolenAndBack(a, defenceEach+atOnce) // the next defence is due that much later
		e := s.event("address_conflict")
		for _, want := range []string{a.Prefix.Addr().String(), "up0", s.strangerMAC} {
			if e.Name != a.Name || !strings.Contains(e.Text, want) || !strings.Contains(strings.Join(s.state().Faults, "\n"), want) {
				t.Errorf("event %+v, faults %q: want both to name %s", e, s.state().Faults, want)
			}
		}
	}
}

// announced counts the frames by which the holder's host announces these addresses
// from now on, as its kernel takes them: when they arrive is up to the machine's load.
func (s *segment) announced(addrs ...cluster.FloatingAddress) *atomic.Int64 {
	s.t.Helper()
	var tap *packet.Conn
	inNamespace(s.t, s.host, func() {
		ifi, err := net.InterfaceByName("up0")
		if err == nil {
			tap, err = packet.Listen(ifi, packet.Raw, etherAll, nil)
		}
		if err != nil {
			s.t.Error(err)
		}
	})
	if tap == nil {
		s.t.Fatal("nothing can be watched")
	}
	count, done := new(atomic.Int64), make(chan struct{})
	s.t.Cleanup(func() { _ = tap.Close(); <-done })
	go func() {
		defer close(done)
		for buf := make([]byte, 2048); ; {
			n, _, err := tap.ReadFrom(buf)
			if err != nil {
				return
			}
			addr, mac, is := router.Claim(buf[:n])
			if is && mac.String() == s.holderMAC && slices.ContainsFunc(addrs, func(a cluster.FloatingAddress) bool { return a.Prefix.Addr() == addr }) {
				count.Add(1)
			}
		}
	}()
	return count
}

func TestNothingIsDefendedAfterTheRolesEnd(t *testing.T) {
	s := newSegment(t)
	s.begin(1, time.Minute, v4a, v6a)
	s.mustListen()
	s.know(v4a)
	s.know(v6a)
	held := s.announced(v4a, v6a)
	s.eventually(time.Second, "a claim is answered while it is held", func() bool { s.claim(v4a); return held.Load() > 0 })
	s.claim(v4a) // the rounds of its defence are cut off
	if err := s.bed.client.End(s.ctx(), cluster.OwnerPrimary, 1); err != nil {
		t.Fatal(err)
	}
	after := s.announced(v4a, v6a)
	for _, a := range []cluster.FloatingAddress{v4a, v6a} {
		s.eventually(time.Second, "the stranger takes "+a.Name, func() bool { s.claim(a); return s.entry(a) == s.strangerMAC })
	}
	s.eventually(time.Second, "the listeners end", func() bool { four, six := s.listening(); return !four && !six })
	pause(defenceEach + 5*defenceSpacing) // longer than a defence would take to begin
	if n := after.Load(); n != 0 {
		t.Errorf("%d announcements after the role's end", n)
	}
	if faults := strings.Join(s.state().Faults, " "); strings.Contains(faults, v6a.Prefix.Addr().String()) {
		t.Errorf("faults of an address that was claimed when it was not held any more: %q", faults)
	}
}

func TestASuccessorDefendsAdoptedAddressesAndANewInterfaceToo(t *testing.T) {
	s := newSegment(t)
	s.begin(1, time.Minute, v4a, v6a)
	s.kill()
	s.start()
	s.mustListen()
	s.know(v4a)
	s.stolenAndBack(v4a, atOnce)
	ip(t, "-n", s.host, "link", "set", "up0", "down") // the sockets fail
	ip(t, "-n", s.host, "link", "set", "up0", "up")
	s.eventually(3*time.Second, "the guard listens again", func() bool {
		s.claim(v4a)
		return s.entry(v4a) == s.strangerMAC && s.backWithin(v4a, 50*time.Millisecond)
	})
}

func (s *segment) backWithin(a cluster.FloatingAddress, limit time.Duration) bool {
	for end := time.Now().Add(limit); time.Now().Before(end); pause(time.Millisecond) {
		if s.entry(a) == s.holderMAC {
			return true
		}
	}
	return false
}

func TestAFloodOfClaimsBuysNeitherFramesNorProcessorTime(t *testing.T) {
	s := newSegment(t)
	s.begin(1, time.Minute, v4a, v6a)
	s.mustListen()
	before := s.processorTime()
	const lasts = 2 * time.Second
	answers := make(chan int)
	go func() { answers <- s.countAnnouncements(v4a, lasts+200*time.Millisecond) }()
	claims := s.flood(v4a, lasts)
	used, sent := s.processorTime()-before, <-answers
	t.Logf("%d claims in %v: %d frames, %v of processor time", claims, lasts, sent, used)
	perDefence := 2 * defenceRounds // both forms of ARP; Present announces, too
	if most := (int(lasts/defenceEach) + 5) * perDefence; sent > most || sent < 2*perDefence {
		t.Errorf("%d announcements in %v of unending claims, want at most %d", sent, lasts, most)
	}
	if used > lasts/3 {
		t.Errorf("%d claims cost the guard %v of %v", claims, used, lasts)
	}
}

// flood claims the address without a pause, and returns how often.
func (s *segment) flood(a cluster.FloatingAddress, lasts time.Duration) (sent int) {
	inNamespace(s.t, s.stranger, func() {
		ifi, err := net.InterfaceByName("eth0")
		if err != nil {
			s.t.Error(err)
			return
		}
		conn, err := packet.Listen(ifi, packet.Raw, 0, nil)
		if err != nil {
			s.t.Error(err)
			return
		}
		defer conn.Close()
		frame := router.AnnounceFrames(ifi.HardwareAddr, a.Prefix.Addr(), false)[0]
		for end := time.Now().Add(lasts); time.Now().Before(end); sent++ {
			_, _ = conn.WriteTo(frame, &packet.Addr{HardwareAddr: net.HardwareAddr(frame[:6])})
		}
	})
	return sent
}

// countAnnouncements counts the holder's claims that the client hears.
func (s *segment) countAnnouncements(a cluster.FloatingAddress, lasts time.Duration) (count int) {
	inNamespace(s.t, s.client, func() {
		ifi, err := net.InterfaceByName("eth0")
		if err != nil {
			s.t.Error(err)
			return
		}
		mac, _ := net.ParseMAC(s.holderMAC)
		// Of the holder's alone, or the flood would crowd them out.
		filter, err := bpf.Assemble([]bpf.Instruction{
			bpf.LoadAbsolute{Off: 8, Size: 4},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: binary.BigEndian.Uint32(mac[2:]), SkipTrue: 1},
			bpf.RetConstant{Val: 0}, bpf.RetConstant{Val: 512}})
		if err != nil {
			s.t.Error(err)
			return
		}
		conn, err := packet.Listen(ifi, packet.Raw, unix.ETH_P_ARP, &packet.Config{Filter: filter})
		if err != nil {
			s.t.Error(err)
			return
		}
		defer conn.Close()
		_ = conn.SetReadDeadline(time.Now().Add(lasts))
		buf := make([]byte, 512)
		for {
			n, _, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			if hw, ok := router.AnswerTo(buf[:n], a.Prefix.Addr()); ok && hw.String() == s.holderMAC {
				count++
			}
		}
	})
	return count
}

// processorTime is what the guard has used up to now.
func (s *segment) processorTime() time.Duration {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.guard.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	f := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}
