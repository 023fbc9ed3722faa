package pvc_test

import (
	"encoding/binary"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// rhythm is between two questions of a prober.
const rhythm = 5 * time.Millisecond

// prober asks an address from the bridge again and again, as any neighbour would.
type prober struct {
	stop, done chan struct{}
	answers    []time.Time
}

// probe asks until silence is called, or the test ends.
func (h *hall) probe(t *testing.T, address string) *prober {
	t.Helper()
	p := &prober{stop: make(chan struct{}), done: make(chan struct{})}
	opened := make(chan error, 1)
	go func() {
		defer close(p.done)
		runtime.LockOSThread() // not unlocked: the thread ends with its namespace and priority
		socket, err := icmpSocket("/run/netns/"+h.netns, netip.MustParseAddr(address))
		opened <- err
		if err == nil {
			p.run(socket)
			_ = unix.Close(socket)
		}
	}()
	if err := <-opened; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.end)
	return p
}

// icmpSocket opens a socket in the namespace that hears of one address only. The
// calling thread stays there, before all ordinary ones: what measures shall not
// wait for what it measures.
func icmpSocket(netns string, address netip.Addr) (int, error) {
	ns, err := os.Open(netns)
	if err != nil {
		return -1, err
	}
	defer ns.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return -1, err
	}
	_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: 2, Priority: 1}, 0) // SCHED_RR
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_ICMP)
	if err != nil {
		return -1, err
	}
	return socket, unix.Connect(socket, &unix.SockaddrInet4{Addr: address.As4()})
}

func (p *prober) run(socket int) {
	echo := []byte{8, 0, 0, 0, 0, 0, 0, 0} // type, code, checksum, identifier, number
	packet := make([]byte, 128)
	fds := []unix.PollFd{{Fd: int32(socket), Events: unix.POLLIN}}
	for next := time.Now(); ; {
		select {
		case <-p.stop:
			return
		default:
		}
		if now := time.Now(); !now.Before(next) {
			binary.BigEndian.PutUint16(echo[6:], binary.BigEndian.Uint16(echo[6:])+1)
			binary.BigEndian.PutUint16(echo[2:], ^(8<<8 + binary.BigEndian.Uint16(echo[6:]))) // no carry: the number stays small
			_, _ = unix.Write(socket, echo)                                                   // nobody there: no answer, which is what is looked for
			next = now.Add(rhythm)
		}
		_, _ = unix.Poll(fds, max(1, int(time.Until(next).Milliseconds())))
		for {
			n, err := unix.Read(socket, packet) // an IPv4 header of 20 bytes, then the answer's type
			if err != nil {
				break
			}
			if n > 20 && packet[20] == 0 {
				p.answers = append(p.answers, time.Now())
			}
		}
	}
}

func (p *prober) end() {
	select {
	case <-p.stop:
	default:
		close(p.stop)
	}
	<-p.done
}

// silence ends the probe and returns the longest time between two answers, and
// how many there were.
func (p *prober) silence() (time.Duration, int) {
	p.end()
	var longest time.Duration
	for i := 1; i < len(p.answers); i++ {
		longest = max(longest, p.answers[i].Sub(p.answers[i-1]))
	}
	return longest.Round(100 * time.Microsecond), len(p.answers)
}
