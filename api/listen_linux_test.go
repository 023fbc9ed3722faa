package api

import (
	"context"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// floating is an address that no host has: it is set aside for documentation.
const floating = "192.0.2.77"

// A server starts while its floating address is on another node.
func TestListensOnAnAddressThatIsElsewhere(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Listen, c.Auth = []string{floating + ":0", "127.0.0.1:0"}, AuthNone })
	_, stop := w.serve()
	if len(w.server.Addrs()) != 2 {
		t.Errorf("%v", w.server.Addrs())
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// The address is answered on as soon as it is there, and by who opened it
// before it was.
func TestAnswersOnceTheAddressIsThere(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: it makes a network namespace")
	}
	done := make(chan struct{})
	go func() { // its thread has the namespace, and ends with it
		defer close(done)
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error("no network namespace: ", err)
			return
		}
		answersThere(t)
	}()
	<-done
}

func answersThere(t *testing.T) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Error(err)
		return
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Error(err)
		return
	}
	w := newWorld(t, func(c *Config) { c.Listen, c.Auth = []string{floating + ":7370"}, AuthNone })
	listeners, err := w.server.listenAll(t.Context())
	if err != nil {
		t.Error(err)
		return
	}
	server := w.server.httpServer()
	ended := make(chan error, 1)
	go func() { ended <- w.server.serve(server, listeners[0]) }()
	defer func() { _ = server.Close(); <-ended }()
	dial := func() (net.Conn, error) {
		return (&net.Dialer{Timeout: 30 * time.Second}).Dial("tcp", floating+":7370")
	}
	if c, err := dial(); err == nil {
		_ = c.Close()
		t.Error("it answers before the address is there")
	}
	address, err := netlink.ParseAddr(floating + "/32")
	if err != nil {
		t.Error(err)
		return
	}
	if err := netlink.AddrAdd(lo, address); err != nil {
		t.Error(err)
		return
	}
	c, err := dial()
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := c.Write([]byte("GET /healthz HTTP/1.0\r\n\r\n")); err != nil {
		t.Error(err)
	}
	answer := make([]byte, 12)
	if _, err := c.Read(answer); err != nil || string(answer) != "HTTP/1.0 200" {
		t.Errorf("%q %v", answer, err)
	}
}

// Without it an address of another host cannot be listened on at all: what
// TestListensOnAnAddressThatIsElsewhere rests on.
func TestAddressIsElsewhere(t *testing.T) {
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", floating+":0")
	if err == nil {
		_ = l.Close()
		t.Skipf("%s is on this host, or the kernel binds what is not (ip_nonlocal_bind)", floating)
	}
}
