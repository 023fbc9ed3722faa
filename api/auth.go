package api

import (
	"bufio"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"
)

// Role says what a caller may do; each includes those before it.
type Role uint8

// The roles.
const (
	RoleNone Role = iota
	RoleRead
	RoleOperate
	RoleAdmin
)

var roleNames = [...]string{"none", "read", "operate", "admin"}

// String names the role as the keys file does.
func (r Role) String() string { return roleNames[min(int(r), len(roleNames)-1)] }

func parseRole(s string) (Role, error) {
	for i, name := range roleNames[1:] {
		if s == name {
			return Role(i + 1), nil
		}
	}
	return RoleNone, fmt.Errorf("%q is not a role: use read, operate or admin", s)
}

// caller is who sent a request, as far as that is known.
type caller struct {
	name string
	role Role
}

type key struct {
	name string
	role Role
	hash [sha256.Size]byte
}

// keyring holds the hashed keys; it is not changed after loading.
type keyring struct{ keys []key }

func loadKeys(path string) (*keyring, error) {
	if path == "" {
		return &keyring{}, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open api.keys_file: %w", err)
	}
	defer f.Close()
	ring := &keyring{}
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		k, err := parseKey(line)
		if err != nil {
			return nil, fmt.Errorf("api.keys_file %s line %d: %w", path, n, err)
		}
		for _, other := range ring.keys {
			if other.hash == k.hash {
				return nil, fmt.Errorf("api.keys_file %s line %d: %q and %q have the same key: make one for each", path, n, other.name, k.name)
			}
		}
		ring.keys = append(ring.keys, k)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read api.keys_file: %w", err)
	}
	if len(ring.keys) == 0 {
		return nil, fmt.Errorf("api.keys_file %s holds no key: add lines \"name:role:sha256hex\" (printf %%s KEY | sha256sum)", path)
	}
	return ring, nil
}

// parseKey never puts the line into its error: somebody may have written the
// key itself where its hash belongs.
func parseKey(line string) (key, error) {
	parts := strings.Split(line, ":")
	if len(parts) != 3 || parts[0] == "" {
		return key{}, fmt.Errorf("is not name:role:sha256hex")
	}
	role, err := parseRole(parts[1])
	if err != nil {
		return key{}, err
	}
	k := key{name: parts[0], role: role}
	sum, err := hex.DecodeString(parts[2])
	if err != nil || len(sum) != sha256.Size {
		return key{}, fmt.Errorf("key %q: the third part is not a SHA-256 in 64 hexadecimal digits", k.name)
	}
	copy(k.hash[:], sum)
	return k, nil
}

// find compares with every key, always all of them, in constant time.
func (r *keyring) find(presented string) (caller, bool) {
	sum := sha256.Sum256([]byte(presented))
	var found caller
	ok := false
	for i := range r.keys {
		if subtle.ConstantTimeCompare(sum[:], r.keys[i].hash[:]) == 1 {
			found, ok = caller{r.keys[i].name, r.keys[i].role}, true
		}
	}
	return found, ok
}

// authenticate says who sends the request, or what to answer instead. It runs
// before any argument is parsed.
func (s *Server) authenticate(acc *access, rt route, r *http.Request) (caller, *failure) {
	if !acc.guarded {
		if acc.auth != AuthNone && !localName(r.Host) {
			return caller{}, refuse(http.StatusForbidden, fmt.Sprintf("This server answers without keys, so only to local names, not to %q.", r.Host))
		}
		return caller{"anyone", RoleAdmin}, nil
	}
	if rt.open && !acc.protectAll {
		return caller{"anyone", RoleRead}, nil
	}
	who, fail := s.identify(acc, r)
	if fail != nil {
		return caller{}, fail
	}
	if who.role < rt.need {
		return who, refuse(http.StatusForbidden, fmt.Sprintf("This needs the role %q; %q has the role %q.", rt.need, who.name, who.role))
	}
	return who, nil
}

func (s *Server) identify(acc *access, r *http.Request) (caller, *failure) {
	from := remoteHost(r)
	presented := r.Header.Get("X-Api-Key")
	if presented == "" {
		if who, ok := acc.certificateCaller(r); ok {
			return who, nil
		}
		return caller{}, refuse(http.StatusUnauthorized, "X-Api-Key Authentication required.")
	}
	if wait := s.failedAuth.blocked(from, time.Now()); wait > 0 {
		seconds := int(wait.Seconds()) + 1
		f := refuse(http.StatusTooManyRequests, fmt.Sprintf("Too many failed keys from %s; try again in %d s.", from, seconds))
		f.retryAfter = seconds
		return caller{}, f
	}
	who, ok := acc.keys.find(presented)
	if !ok {
		s.failedAuth.note(from, time.Now())
		s.metrics.authFailures.Inc()
		return caller{}, refuse(http.StatusUnauthorized, "X-Api-Key Authentication failed.")
	}
	return who, nil
}

// still reports whether the sender of a request that goes on for long may still
// ask for it: a key may have been revoked since.
func (s *Server) still(r *request) *failure {
	acc := s.access.Load()
	who, fail := s.authenticate(acc, r.route, r.http)
	if fail == nil {
		r.access, r.caller = acc, who
	} else {
		s.audit(r.route, r.http, r.caller, nil, fail.status, "ended: "+fail.text)
	}
	return fail
}

// certificateCaller takes the role from the subject's organisational unit; a
// verified certificate that names none may read.
func (acc *access) certificateCaller(r *http.Request) (caller, bool) {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 || acc.proves(r.TLS.PeerCertificates) != nil {
		return caller{}, false
	}
	subject := r.TLS.PeerCertificates[0].Subject
	who := caller{name: subject.CommonName, role: RoleRead}
	for _, unit := range subject.OrganizationalUnit {
		if role, err := parseRole(unit); err == nil && role > who.role {
			who.role = role
		}
	}
	return who, true
}

// localName reports whether a Host header names this machine or an address: a
// page that rebinds its own name to 127.0.0.1 does not.
func localName(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
	return host == "" || host == "localhost" || net.ParseIP(host) != nil
}

// remoteHost is the sender's address; of IPv6 its /64 network, since whoever has
// one address there has them all.
func remoteHost(r *http.Request) string {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	address := from.Addr().Unmap().WithZone("")
	if address.Is6() && !address.IsLoopback() {
		if network, err := address.Prefix(64); err == nil {
			return network.String()
		}
	}
	return address.String()
}

// The bound on guessing: so many failures an address and window.
const (
	authFailuresAllowed = 10
	authFailureWindow   = time.Minute
	authFailureEntries  = 4096 // forgets everything when full, rather than grow
)

// failureCount limits how often an address may present a wrong key.
type failureCount struct {
	mu   sync.Mutex
	from map[string]failureEntry
}

type failureEntry struct {
	count int
	until time.Time
}

// blocked returns how long the address has to wait; 0 when it may try.
func (f *failureCount) blocked(from string, now time.Time) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	e := f.from[from]
	if e.count < authFailuresAllowed || !now.Before(e.until) {
		return 0
	}
	return e.until.Sub(now)
}

// note counts a failure and returns how many there were in this window.
func (f *failureCount) note(from string, now time.Time) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.from == nil || len(f.from) >= authFailureEntries {
		f.from = make(map[string]failureEntry)
	}
	e := f.from[from]
	if !now.Before(e.until) {
		e = failureEntry{until: now.Add(authFailureWindow)}
	}
	e.count++
	f.from[from] = e
	return e.count
}
