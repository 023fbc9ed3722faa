package fencing

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// controller is a redfish controller with faults.
type controller struct {
	mu      sync.Mutex
	power   machine
	states  []string // told in place of the power, one a read; the last stays
	tokens  map[string]bool
	orders  []string // ResetTypes
	logins  int
	deleted int
	heard   []string // every request's method and path
	asked   context.Context
	secrets int // requests that held the password outside the login

	lying, forgets, noSessions, task, taskFails, huge bool
	busy                                              int           // 503s to give
	mute                                              bool          // no answer about the system while it is on
	drops                                             int           // orders to acknowledge and to forget, with all sessions
	hangs                                             int           // answers to stop in the middle of; -1: all
	delay                                             time.Duration // of each answer
	allowed                                           []string      // nil: none is told
	info                                              bool          // tell allowed by ActionInfo
	systems                                           []string
	redirect, sessionAt                               string
}

func newController() *controller {
	return &controller{power: machine{on: true}, tokens: map[string]bool{}, allowed: []string{"On", "ForceOff", "PushPowerButton"}, systems: []string{"1"}}
}

func (c *controller) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if c.delay > 0 {
		time.Sleep(c.delay)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heard, c.asked = append(c.heard, r.Method+" "+r.URL.Path), r.Context()
	w.Header().Set("Content-Type", "application/json")
	body, _ := io.ReadAll(r.Body)
	login := r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/Sessions")
	if strings.Contains(fmt.Sprint(r.URL, r.Header, string(body)), testPassword) && !login {
		c.secrets++
	}
	switch {
	case c.busy > 0:
		c.busy--
		c.refuse(w, http.StatusServiceUnavailable, "The service is starting.")
	case c.redirect != "":
		http.Redirect(w, r, c.redirect, http.StatusTemporaryRedirect)
	case c.huge:
		_, _ = w.Write([]byte(`{"x":"` + strings.Repeat("x", redfishBody) + `"}`))
	case r.URL.Path == "/redfish/v1/":
		c.tell(w, map[string]any{"Systems": link("/redfish/v1/Systems"), "Links": map[string]any{"Sessions": link("/redfish/v1/SessionService/Sessions")}})
	case login:
		c.login(w, body)
	case !c.allowedIn(r):
		c.refuse(w, http.StatusUnauthorized, "The session is unknown.")
	default:
		c.serve(w, r, body)
	}
}

func link(path string) map[string]string { return map[string]string{"@odata.id": path} }

func (c *controller) tell(w http.ResponseWriter, v any) {
	data, _ := json.Marshal(v)
	if c.hangs != 0 {
		c.hangs--
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		_, _ = w.Write(data[:len(data)/2])
		_ = http.NewResponseController(w).Flush()
		ended := c.asked.Done()
		c.mu.Unlock()
		<-ended
		c.mu.Lock()
		return
	}
	_, _ = w.Write(data)
}

func (c *controller) refuse(w http.ResponseWriter, status int, message string) {
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{"code": "Base.1.0.GeneralError", "message": "see more",
		"@Message.ExtendedInfo": []map[string]string{{"MessageId": "Base.1.0.X", "Message": message}}}})
}

func (c *controller) login(w http.ResponseWriter, body []byte) {
	var who struct{ UserName, Password string }
	_ = json.Unmarshal(body, &who)
	c.logins++
	switch {
	case c.noSessions:
		w.WriteHeader(http.StatusNotFound)
	case who.UserName != "fencer" || who.Password != testPassword:
		c.refuse(w, http.StatusUnauthorized, "The password "+who.Password+" is wrong.")
	default:
		token := fmt.Sprintf("token-%d", c.logins)
		c.tokens[token] = true
		w.Header().Set("X-Auth-Token", token)
		at := c.sessionAt
		if at == "" {
			at = "/redfish/v1/SessionService/Sessions/"
		}
		w.Header().Set("Location", at+token)
		w.WriteHeader(http.StatusCreated)
	}
}

func (c *controller) allowedIn(r *http.Request) bool {
	user, password, basic := r.BasicAuth()
	return c.tokens[r.Header.Get("X-Auth-Token")] || basic && user == "fencer" && password == testPassword
}

func (c *controller) serve(w http.ResponseWriter, r *http.Request, body []byte) {
	id, found := strings.CutPrefix(r.URL.Path, "/redfish/v1/Systems/")
	reset := strings.HasSuffix(id, "/Actions/ComputerSystem.Reset")
	switch {
	case r.Method == http.MethodDelete:
		c.deleted++
		delete(c.tokens, r.Header.Get("X-Auth-Token"))
		w.WriteHeader(http.StatusNoContent)
	case r.URL.Path == "/redfish/v1/Systems":
		members := []map[string]string{}
		for _, name := range c.systems {
			members = append(members, link("/redfish/v1/Systems/"+name))
		}
		c.tell(w, map[string]any{"Members": members, "Members@odata.count": len(members)})
	case r.URL.Path == "/task":
		if c.taskFails {
			c.tell(w, map[string]any{"TaskState": "Exception", "TaskStatus": "Critical", "Messages": []map[string]string{{"Message": "The relay is stuck."}}})
			return
		}
		w.WriteHeader(http.StatusAccepted)
		c.tell(w, map[string]string{"TaskState": "Running"})
	case r.URL.Path == "/info":
		c.tell(w, map[string]any{"Parameters": []map[string]any{{"Name": "ResetType", "AllowableValues": c.allowed}}})
	case found && reset && r.Method == http.MethodPost:
		c.reset(w, body)
	case found && c.mute && c.power.on:
		ended := r.Context().Done()
		c.mu.Unlock()
		<-ended
		c.mu.Lock()
	case found && slices.Contains(c.systems, id):
		c.tell(w, c.system(id))
	default:
		c.refuse(w, http.StatusNotFound, "There is no "+r.URL.Path+".")
	}
}

func (c *controller) system(id string) map[string]any {
	state := any(map[bool]string{true: "On", false: "Off"}[c.power.on])
	if len(c.states) > 0 {
		if state = c.states[0]; c.states[0] == "null" {
			state = nil
		}
		if len(c.states) > 1 {
			c.states = c.states[1:]
		}
	}
	reset := map[string]any{"target": "/redfish/v1/Systems/" + id + "/Actions/ComputerSystem.Reset"}
	if c.info {
		reset["@Redfish.ActionInfo"] = "/info"
	} else if c.allowed != nil {
		reset["ResetType@Redfish.AllowableValues"] = c.allowed
	}
	return map[string]any{"PowerState": state, "Actions": map[string]any{"#ComputerSystem.Reset": reset}}
}

func (c *controller) reset(w http.ResponseWriter, body []byte) {
	var order struct{ ResetType string }
	_ = json.Unmarshal(body, &order)
	c.orders = append(c.orders, order.ResetType)
	if c.forgets || c.drops > 0 {
		clear(c.tokens)
	}
	if c.drops > 0 {
		c.drops--
	} else if !c.lying && !c.taskFails {
		switch order.ResetType {
		case "ForceOff":
			_ = c.power.Off()
		case "On":
			_ = c.power.On()
		}
	}
	if c.task || c.taskFails {
		w.Header().Set("Location", "/task")
		w.WriteHeader(http.StatusAccepted)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// serveRedfish serves it over TLS until the test ends and returns a device
// that pins its certificate.
func serveRedfish(t *testing.T, c *controller) (Device, *httptest.Server) {
	t.Helper()
	server := httptest.NewUnstartedServer(c)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.CloseClientConnections)
	t.Cleanup(server.Close)
	d := testDevice(t, "rf", server.Listener.Addr().String())
	d.Type, d.CipherSuite, d.Fingerprint = TypeRedfish, 0, fingerprint(server)
	return d, server
}

func fingerprint(server *httptest.Server) string {
	sum := sha256.Sum256(server.Certificate().Raw)
	return hex.EncodeToString(sum[:])
}

func TestRedfishOffIsVerified(t *testing.T) {
	c := newController()
	d, _ := serveRedfish(t, c)
	r := attempt(t, d, ActionOff)
	if r.Result != ResultOff || r.Error != "" {
		t.Fatalf("off: %+v", r)
	}
	t.Logf("off and verified in %d µs", r.Micros)
	if !slices.Equal(c.orders, []string{"ForceOff"}) || c.logins != 1 || c.deleted != 1 || len(c.tokens) != 0 || c.secrets != 0 {
		t.Errorf("orders %v, %d logins, %d sessions given back, password in %d other requests", c.orders, c.logins, c.deleted, c.secrets)
	}
	if r := attempt(t, d, ActionStatus); r.Result != ResultOff {
		t.Errorf("status: %+v", r)
	}
	if r := attempt(t, d, ActionOff); r.Result != ResultOff || len(c.orders) != 1 {
		t.Errorf("already off: %+v, orders %v", r, c.orders)
	}
	if r := attempt(t, d, ActionOn); r.Result != ResultOn || !c.power.on || c.orders[1] != "On" {
		t.Errorf("on: %+v, orders %v", r, c.orders)
	}
}

// TestRedfishFaults gives each fault one attempt at power off.
func TestRedfishFaults(t *testing.T) {
	for name, f := range map[string]struct {
		fault   func(*controller, *Device)
		result  string
		words   string // in the error
		orders  int
		timeout time.Duration
	}{
		"lies":                  {func(c *controller, _ *Device) { c.lying = true }, ResultFailed, "still reads on", 1, time.Second},
		"busy for a while":      {func(c *controller, _ *Device) { c.busy = 7 }, ResultOff, "", 1, 0},
		"busy for ever":         {func(c *controller, _ *Device) { c.busy = 1 << 30 }, ResultUnknown, "The service is starting", 0, 3 * time.Second},
		"wrong password":        {func(c *controller, d *Device) { d.User = "nobody" }, ResultUnknown, "the login is refused", 0, 0},
		"powering off for ever": {func(c *controller, _ *Device) { c.states = []string{"PoweringOff"} }, ResultUnknown, `"PoweringOff" is neither`, 1, time.Second},
		"null for ever":         {func(c *controller, _ *Device) { c.states = []string{"null"} }, ResultUnknown, "tells no power state", 1, time.Second},
		"null, then off":        {func(c *controller, _ *Device) { c.states = []string{"On", "null", "PoweringOff", "Off"} }, ResultOff, "", 1, 0},
		"off in another case":   {func(c *controller, _ *Device) { c.states = []string{"off"} }, ResultUnknown, "neither", 1, time.Second},
		"hangs once":            {func(c *controller, _ *Device) { c.hangs = 1 }, ResultOff, "", 1, 12 * time.Second},
		"hangs for ever":        {func(c *controller, _ *Device) { c.hangs = -1 }, ResultUnknown, "not readable", 0, 2 * time.Second},
		"huge":                  {func(c *controller, _ *Device) { c.huge = true }, ResultUnknown, "more than 1048576 bytes", 0, 3 * time.Second},
		"task":                  {func(c *controller, _ *Device) { c.task = true }, ResultOff, "", 1, 0},
		"task fails":            {func(c *controller, _ *Device) { c.taskFails = true }, ResultFailed, "The relay is stuck", 1, time.Second},
		"no such reset":         {func(c *controller, _ *Device) { c.allowed = []string{"PushPowerButton", "GracefulShutdown"} }, ResultFailed, "only PushPowerButton, GracefulShutdown", 0, 3 * time.Second},
		"resets in action info": {func(c *controller, _ *Device) { c.info = true }, ResultOff, "", 1, 0},
		"info without it": {func(c *controller, _ *Device) { c.info, c.allowed = true, []string{"Nmi"} },
			ResultFailed, "only Nmi", 0, 3 * time.Second},
		"resets not told":     {func(c *controller, _ *Device) { c.allowed = nil }, ResultOff, "", 1, 0},
		"session forgotten":   {func(c *controller, _ *Device) { c.forgets = true }, ResultOff, "", 1, 0},
		"hangs in the state":  {func(c *controller, _ *Device) { c.mute = true }, ResultOff, "", 1, 12 * time.Second},
		"restarts mid-way":    {func(c *controller, _ *Device) { c.drops = 1 }, ResultOff, "", 2, 0},
		"no sessions":         {func(c *controller, _ *Device) { c.noSessions = true }, ResultOff, "", 1, 0},
		"basic":               {func(c *controller, d *Device) { d.Auth = RedfishBasic }, ResultOff, "", 1, 0},
		"sessions only":       {func(c *controller, d *Device) { c.noSessions, d.Auth = true, RedfishSession }, ResultUnknown, "status 404", 0, 3 * time.Second},
		"several systems":     {func(c *controller, _ *Device) { c.systems = []string{"1", "2"} }, ResultUnknown, "name one with system", 0, 3 * time.Second},
		"one of several":      {func(c *controller, d *Device) { c.systems, d.System = []string{"1", "2"}, "2" }, ResultOff, "", 1, 0},
		"system as path":      {func(c *controller, d *Device) { d.System = "/redfish/v1/Systems/1" }, ResultOff, "", 1, 0},
		"no such system":      {func(c *controller, d *Device) { d.System = "9" }, ResultUnknown, "There is no /redfish/v1/Systems/9", 0, 3 * time.Second},
		"no system":           {func(c *controller, _ *Device) { c.systems = nil }, ResultUnknown, "has 0 systems", 0, 3 * time.Second},
		"session lives apart": {func(c *controller, _ *Device) { c.sessionAt = "https://elsewhere.invalid/" }, ResultOff, "", 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newController()
			d, server := serveRedfish(t, c)
			f.fault(c, &d)
			if f.timeout != 0 {
				d.Timeout = f.timeout
			}
			started := time.Now()
			r := attempt(t, d, ActionOff)
			if r.Result != f.result || !strings.Contains(r.Error, f.words) || (r.Error == "") != (f.words == "") {
				t.Errorf("result %q, want %q with %q: %s", r.Result, f.result, f.words, r.Error)
			}
			if took := time.Since(started); took > d.Timeout+closeTimeout+5*time.Second {
				t.Errorf("took %s of %s", took, d.Timeout)
			}
			server.CloseClientConnections()
			c.mu.Lock()
			defer c.mu.Unlock()
			if len(c.orders) != f.orders || slices.ContainsFunc(c.orders, func(o string) bool { return o != "ForceOff" }) {
				t.Errorf("orders %v, want %d", c.orders, f.orders)
			}
			if strings.Contains(r.Error, testPassword) || strings.Contains(r.Error, "token-") {
				t.Errorf("the error tells a secret: %s", r.Error)
			}
			if c.logins > 2 && !c.noSessions {
				t.Errorf("%d logins: an account would be locked", c.logins)
			}
		})
	}
}

// TestRedfishTrust: without trust the password is not sent.
func TestRedfishTrust(t *testing.T) {
	c := newController()
	d, server := serveRedfish(t, c)
	authority := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(authority, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	right := d.Fingerprint
	d.Timeout = 20 * time.Second
	for name, trust := range map[string]struct {
		set   func(*Device)
		words string // of the error; empty: trusted
	}{
		"pinned":            {func(d *Device) { d.Fingerprint = right }, ""},
		"pinned, colons":    {func(d *Device) { d.Fingerprint = strings.ToUpper(right[:2] + ":" + right[2:4] + " " + right[4:]) }, ""},
		"another's":         {func(d *Device) { d.Fingerprint = strings.Repeat("ab", 32) }, "fingerprint " + right},
		"system's":          {func(*Device) {}, "fingerprint: " + right},
		"authority":         {func(d *Device) { d.CAFile = authority }, ""},
		"authority missing": {func(d *Device) { d.CAFile = authority + ".no" }, "no such file"},
		"insecure":          {func(d *Device) { d.Insecure = true }, ""},
	} {
		d := d
		d.Fingerprint = ""
		trust.set(&d)
		c.mu.Lock()
		c.logins, c.heard = 0, nil
		c.mu.Unlock()
		r := attempt(t, d, ActionTest)
		if trust.words == "" {
			if r.Result != ResultOn || r.Fault != "" || (len(r.Notes) == 1) != d.Insecure {
				t.Errorf("%s: %+v", name, r)
			}
			continue
		}
		if r.Result != ResultUnknown || r.Fault != FaultMisconfigured || !strings.Contains(r.Error, trust.words) {
			t.Errorf("%s: %+v", name, r)
		}
		c.mu.Lock()
		if len(c.heard) != 0 {
			t.Errorf("%s: the stranger heard %v", name, c.heard)
		}
		c.mu.Unlock()
	}
}

// TestRedfishFollowsNobody: no redirect, and no link that leads elsewhere.
func TestRedfishFollowsNobody(t *testing.T) {
	other := newController()
	_, elsewhere := serveRedfish(t, other)
	c := newController()
	c.redirect = elsewhere.URL + "/redfish/v1/"
	d, _ := serveRedfish(t, c)
	d.Timeout = 4 * time.Second
	if r := attempt(t, d, ActionOff); r.Result != ResultUnknown || !strings.Contains(r.Error, "it redirects (307)") {
		t.Errorf("%+v", r)
	}
	conn, err := newRedfishConn(d, Secret{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for given, want := range map[string]string{
		"/a/b?c=d": "/a/b?c=d", "https://" + d.Address + "/a": "/a", "https://evil.invalid/a": "", "//evil.invalid/a": "", "": "", "a/b": "", "::": "",
		"https://u@evil.invalid\\@" + d.Address + "/": "", "/%2e%2e/x": "/%2e%2e/x",
	} {
		if got := conn.local(given); got != want {
			t.Errorf("local(%q) = %q, want %q", given, got, want)
		}
	}
	if len(other.heard) != 0 {
		t.Errorf("the other host heard %v", other.heard)
	}
}

func TestRedfishUnreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	d := testDevice(t, "rf", address)
	d.Type, d.CipherSuite, d.Timeout, d.Insecure = TypeRedfish, 0, time.Second, true
	if r := attempt(t, d, ActionTest); r.Fault != FaultUnreachable || !strings.Contains(r.Error, "refused") {
		t.Errorf("%+v", r)
	}
	// A port that answers, but not in TLS.
	plainServer := httptest.NewServer(newController())
	defer plainServer.Close()
	d.Address = plainServer.Listener.Addr().String()
	if r := attempt(t, d, ActionTest); r.Fault != FaultMisconfigured {
		t.Errorf("%+v", r)
	}
}

// pipes is a listener without a network, for virtual time.
type pipes struct {
	conns chan net.Conn
	ended chan struct{}
}

func (p pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.ended:
		return nil, net.ErrClosed
	}
}
func (p pipes) Close() error   { close(p.ended); return nil }
func (p pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 443} }

func (p pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case p.conns <- far:
		return near, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// TestRedfishSlow: each answer takes 20 s. What the attempt has decides.
func TestRedfishSlow(t *testing.T) {
	certificate := httptest.NewUnstartedServer(nil)
	certificate.StartTLS()
	defer certificate.Close()
	for timeout, want := range map[time.Duration]string{4 * time.Minute: ResultOff, 20 * time.Second: ResultUnknown} {
		t.Run(timeout.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newController()
				c.delay = 20 * time.Second
				lines := pipes{conns: make(chan net.Conn), ended: make(chan struct{})}
				server := &http.Server{Handler: c, ErrorLog: log.New(io.Discard, "", 0)}
				served := make(chan error, 1)
				go func() {
					served <- server.Serve(tls.NewListener(lines, &tls.Config{Certificates: certificate.TLS.Certificates}))
				}()
				d := Device{Name: "rf", Type: TypeRedfish, Address: "127.0.0.1:443", User: "fencer", Fingerprint: fingerprint(certificate), Timeout: timeout}.withDefaults()
				ctx, cancel := context.WithTimeout(t.Context(), timeout)
				defer cancel()
				began := time.Now()
				result, err := redfishDevice{device: d, password: NewSecret(testPassword), dial: lines.dial}.off(ctx)
				if took := time.Since(began); result != want || took > timeout+closeTimeout {
					t.Errorf("%s after %s: %v", result, took, err)
				} else {
					t.Logf("%s after %s: %v", result, took, err)
				}
				server.Close()
				<-served
				time.Sleep(time.Minute) // handlers that still wait end
			})
		})
	}
}
