package peer

import (
	"context"
	"fmt"
	"net"
	"time"
)

// ownSide says what is wrong with this host's own way to the address, nil if
// nothing is: no route, or the interface that carries the source address is
// down or has no carrier. It sends nothing.
func ownSide(addr string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	// Connecting a UDP socket asks the kernel for route and source only.
	conn, err := (&net.Dialer{}).DialContext(ctx, "udp", addr)
	if err != nil {
		return fmt.Errorf("no way to %s: %w", addr, err)
	}
	source := conn.LocalAddr().(*net.UDPAddr).IP
	_ = conn.Close()
	interfaces, err := net.Interfaces()
	if err != nil {
		return fmt.Errorf("look at own interfaces: %w", err)
	}
	for _, i := range interfaces {
		if !carries(i, source) {
			continue
		}
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagRunning == 0 {
			return fmt.Errorf("own interface %s, which leads to %s, is down or has no carrier", i.Name, addr)
		}
		return nil
	}
	return fmt.Errorf("own address %s, which leads to %s, is on no interface", source, addr)
}

func carries(i net.Interface, source net.IP) bool {
	addrs, err := i.Addrs()
	if err != nil {
		return false
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.Equal(source) {
			return true
		}
	}
	return false
}
