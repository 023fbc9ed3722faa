package settings

import (
	"fmt"
	"net"
	"net/netip"
)

// Metrics is where pvcnoded tells its figures, as Prometheus reads them.
type Metrics struct {
	Listen string `yaml:"listen"` // host:port, default 127.0.0.1:7372; "": nowhere
}

func defaultMetrics() Metrics { return Metrics{Listen: "127.0.0.1:7372"} }

// checkMetrics refuses an address that does not say who may ask: an empty host
// would be everybody, by omission.
func checkMetrics(r *report, m Metrics) {
	if m.Listen == "" {
		return
	}
	host, port, err := net.SplitHostPort(m.Listen)
	switch {
	case err != nil:
		r.refuse("metrics.listen", "%q is not host:port: write 127.0.0.1:7372, or \"\" for none", m.Listen)
	case host == "":
		r.refuse("metrics.listen", "%q names no host: write 127.0.0.1:%s, or 0.0.0.0:%s if everybody who reaches this node may read its figures", m.Listen, port, port)
	case !validPort(port):
		r.refuse("metrics.listen", "%q has no port of 1 to 65535", m.Listen)
	}
}

func validPort(port string) bool {
	a, err := netip.ParseAddrPort("127.0.0.1:" + port)
	return err == nil && a.Port() > 0
}

// warnings says who may read the figures where that is not this host alone.
func (m Metrics) warnings() []string {
	host, _, err := net.SplitHostPort(m.Listen)
	if a, parseErr := netip.ParseAddr(host); err != nil || host == "localhost" || parseErr == nil && a.IsLoopback() {
		return nil
	}
	return []string{fmt.Sprintf("metrics.listen: whoever reaches %s may read this node's figures; there is no login", m.Listen)}
}
