package peer_test

import (
	"context"
	"net"
	"testing"
	"time"

	"go.uber.org/zap"

	"pvc.internal/peer"
	"pvc.internal/peer/peertest"
)

// BenchmarkAsk is a probe over the loopback, on a warm and on a fresh connection.
func BenchmarkAsk(b *testing.B) {
	ca := peertest.NewAuthority(b, "demo", time.Now())
	identity := func(n string) *peer.Identity {
		id, err := peer.LoadIdentity(ca.Files(b, "hv1", time.Now()), "demo", "hv1", nil)
		if err != nil {
			b.Fatal(n, err)
		}
		return id
	}
	s := peer.NewServer(peer.ServerConfig{}, identity("server"), func() peer.Status { return peer.Status{Node: "hv1"} }, zap.NewNop())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	c := peer.NewClient(identity("client"), nil)
	for _, warm := range []bool{true, false} {
		name := map[bool]string{true: "warm", false: "fresh"}[warm]
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.Ask(context.Background(), "hv1", l.Addr().String(), peer.KindProbe, nil); err != nil {
					b.Fatal(err)
				}
				if !warm {
					c.Close()
				}
			}
		})
	}
	c.Close()
	if err := s.Shutdown(context.Background()); err != nil {
		b.Error(err)
	}
	<-done
}
