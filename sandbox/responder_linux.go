package sandbox

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"strconv"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// ResponderMain answers probes on a node: `sandbox-responder NAME INDEX`. It
// knows nothing of roles: it is bound to the wildcard address and answers for
// whatever its kernel delivers, from the address that was asked.
func ResponderMain(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("sandbox-responder needs a name and an index, got %d arguments", len(args))
	}
	index, err := strconv.Atoi(args[1])
	if err != nil || index < 0 || index >= maxNodes {
		return fmt.Errorf("index %q: 0 to %d", args[1], maxNodes-1)
	}
	born := uint64(now())
	failed := make(chan error, 2)
	listen, ctx := net.ListenConfig{}, context.Background()
	c4, err := listen.ListenPacket(ctx, "udp4", fmt.Sprintf("0.0.0.0:%d", responderPort))
	if err != nil {
		return fmt.Errorf("listen for probes: %w", err)
	}
	defer c4.Close()
	c6, err := listen.ListenPacket(ctx, "udp6", fmt.Sprintf("[::]:%d", responderPort))
	if err != nil {
		return fmt.Errorf("listen for probes: %w", err)
	}
	defer c6.Close()
	for _, c := range []net.PacketConn{c4, c6} {
		raw, err := c.(*net.UDPConn).SyscallConn()
		if err != nil {
			return fmt.Errorf("listen for probes: %w", err)
		}
		if err := raw.Control(func(fd uintptr) { deepen(int(fd)) }); err != nil {
			return fmt.Errorf("listen for probes: %w", err)
		}
	}
	p4, p6 := ipv4.NewPacketConn(c4), ipv6.NewPacketConn(c6)
	if err := p4.SetControlMessage(ipv4.FlagDst|ipv4.FlagInterface, true); err != nil {
		return err
	}
	if err := p6.SetControlMessage(ipv6.FlagDst|ipv6.FlagInterface, true); err != nil {
		return err
	}
	go func() { failed <- answer4(p4, byte(index), born) }()
	go func() { failed <- answer6(p6, byte(index), born) }()
	return <-failed // the other ends with the process
}

func stamp(b []byte, index byte, born uint64) {
	b[6] = index
	binary.BigEndian.PutUint64(b[16:], uint64(now()))
	binary.BigEndian.PutUint64(b[24:], born)
}

func answer4(c *ipv4.PacketConn, index byte, born uint64) error {
	var b [probeSize]byte
	for {
		n, cm, from, err := c.ReadFrom(b[:])
		if err != nil {
			return fmt.Errorf("read a probe: %w", err)
		}
		if n != probeSize || [4]byte(b[:4]) != probeMagic || cm == nil {
			continue
		}
		stamp(b[:], index, born)
		// From the address that was asked: the kernel refuses once it is
		// gone, and that is no answer.
		_, _ = c.WriteTo(b[:], &ipv4.ControlMessage{Src: cm.Dst, IfIndex: cm.IfIndex}, from)
	}
}

func answer6(c *ipv6.PacketConn, index byte, born uint64) error {
	var b [probeSize]byte
	for {
		n, cm, from, err := c.ReadFrom(b[:])
		if err != nil {
			return fmt.Errorf("read a probe: %w", err)
		}
		if n != probeSize || [4]byte(b[:4]) != probeMagic || cm == nil {
			continue
		}
		stamp(b[:], index, born)
		_, _ = c.WriteTo(b[:], &ipv6.ControlMessage{Src: cm.Dst, IfIndex: cm.IfIndex}, from)
	}
}
