package sandbox

import (
	"context"
	"net"
	"time"

	"pvc.internal/proc"
	"pvc.internal/zkhandler"
)

// newHandler opens the store as one more small client of the cluster.
func (s *Sandbox) newHandler(dial func(ctx context.Context, network, addr string) (net.Conn, error)) (coordination, error) {
	var servers []string
	for _, n := range s.coordinators() {
		servers = append(servers, s.zkServers(n.Plan)[0])
	}
	return zkhandler.New(zkhandler.Config{Calm: 20 * time.Millisecond, Servers: servers, Root: "/", Dial: dial, WatchNodes: true, NewestSchema: s.options.NewestSchema},
		proc.BootClock{}, s.log.Named("store"), nil)
}
