package zkhandler

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
)

const defaultPort = "2181"

// parseServers turns the configured list into host:port form. The library's
// own parser accepts a chroot and never connects, and cannot read IPv6.
func parseServers(list []string) ([]string, error) {
	var servers []string
	seen := map[string]bool{}
	for _, entry := range list {
		s, err := parseServer(strings.TrimSpace(entry))
		if err != nil {
			return nil, err
		}
		if !seen[s] {
			seen[s] = true
			servers = append(servers, s)
		}
	}
	if len(servers) == 0 {
		return nil, errors.New("zookeeper.servers is empty: give at least one host:port, this node's own server first")
	}
	return servers, nil
}

func parseServer(s string) (string, error) {
	fail := func(why string) (string, error) {
		return "", fmt.Errorf("zookeeper.servers: %q: %s", s, why)
	}
	switch {
	case s == "":
		return fail("empty entry")
	case strings.Contains(s, ","):
		return fail("give one server per list entry, without commas")
	case strings.Contains(s, "/"):
		return fail("a path after the server is not supported; put it into zookeeper.root")
	}
	host, port := s, defaultPort
	switch {
	case strings.HasPrefix(s, "["):
		end := strings.IndexByte(s, ']')
		if end < 0 || net.ParseIP(zoneless(s[1:end])) == nil {
			return fail("not an IPv6 address in brackets, such as [::1]:2181")
		}
		host = s[1:end]
		if rest := s[end+1:]; rest != "" {
			if rest[0] != ':' {
				return fail("expected ':port' after ']'")
			}
			port = rest[1:]
		}
	case strings.Count(s, ":") > 1:
		if net.ParseIP(zoneless(s)) == nil {
			return fail("not a host:port; write an IPv6 address as [::1]:2181")
		}
	case strings.Contains(s, ":"):
		host, port, _ = strings.Cut(s, ":")
	}
	if host == "" || strings.ContainsAny(host, " \t@") {
		return fail("not a host name")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fail(fmt.Sprintf("port %q is not within 1–65535", port))
	}
	return net.JoinHostPort(host, port), nil
}

func zoneless(addr string) string {
	addr, _, _ = strings.Cut(addr, "%")
	return addr
}

// hostRing is the library's HostProvider. It never resolves (each dial does,
// so a changed address is found and one unresolvable name harms nobody else)
// and never asks for the library's 1 s sleep while the session lives: the
// dialer backs off instead. Once the session is dead it does ask, because the
// library notices Close only in that sleep.
type hostRing struct {
	mu      sync.Mutex
	servers []string // [0] is our own
	round   []string // what is left of this round
	last    string
	open    bool            // last is connected, or was
	suspect map[string]bool // failed or fell silent since it last connected
	dead    func() bool
}

func newHostRing(servers []string, dead func() bool) *hostRing {
	return &hostRing{servers: servers, dead: dead, suspect: map[string]bool{}}
}

// Init is the library's; the list it passes is ours, reshuffled, and ignored.
func (r *hostRing) Init([]string) error { return nil }

// Len returns the number of servers.
func (r *hostRing) Len() int { return len(r.servers) }

// Connected is called after each handshake; the next round then begins anew.
func (r *hostRing) Connected() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.round, r.open = nil, true
	delete(r.suspect, r.last)
}

// silent notes that the connected server did not answer.
func (r *hostRing) silent() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.suspect[r.last] = true
}

// Next returns the server to dial: our own first, then the others shuffled,
// those under suspicion after them, and the one just lost last.
func (r *hostRing) Next() (server string, retryStart bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last != "" && !r.open {
		r.suspect[r.last] = true
	}
	if len(r.round) == 0 {
		r.round = r.order()
	}
	server, r.round = r.round[0], r.round[1:]
	r.last, r.open = server, false
	return server, r.dead()
}

func (r *hostRing) order() []string {
	round := slices.Clone(r.servers)
	others := round[1:]
	rand.Shuffle(len(others), func(i, j int) { others[i], others[j] = others[j], others[i] })
	rank := func(s string) int {
		switch {
		case s == r.last:
			return 2
		case r.suspect[s]:
			return 1
		}
		return 0
	}
	slices.SortStableFunc(round, func(a, b string) int { return rank(a) - rank(b) })
	return round
}
