package api

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// listenControl lets an address be listened on that is not on this host yet:
// the floating one is answered on as soon as it arrives here (IP_FREEBIND, for
// which no right is needed).
func listenControl(_, _ string, c syscall.RawConn) error {
	var failed error
	err := c.Control(func(fd uintptr) {
		// The kernel takes the IPv4 option for IPv6 sockets as well.
		failed = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1)
	})
	if err != nil {
		return err
	}
	return failed
}
