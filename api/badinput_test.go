package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
)

// The statuses that a server may answer to a client that sends nonsense. A 500
// is a fault of ours.
var tolerable = []int{200, 202, 204, 304, 400, 401, 403, 404, 405, 409, 413, 415, 429, 431, 501, 503, 504}

// check sends one request to the handler and looks at what comes back.
func check(t *testing.T, w *world, r *http.Request) {
	t.Helper()
	r.Host = "127.0.0.1:7370"
	r.RemoteAddr = "127.0.0.1:1"
	ctx, cancel := context.WithCancel(r.Context())
	cancel() // whoever waits for something is gone
	answer := httptest.NewRecorder()
	w.server.Handler().ServeHTTP(answer, r.WithContext(ctx))
	if !slices.Contains(tolerable, answer.Code) {
		t.Errorf("%s %q: %d %s", r.Method, r.URL, answer.Code, answer.Body)
	}
	if kind := answer.Header().Get("Content-Type"); kind == "application/json" && answer.Body.Len() > 0 && !json.Valid(answer.Body.Bytes()) {
		t.Errorf("%s %q: no JSON: %s", r.Method, r.URL, answer.Body)
	}
	for _, key := range w.store.asked() {
		if strings.ContainsAny(string(key.Node), "/\x00\n") || key.Node == ".." {
			t.Errorf("%s %q: %v was asked of the store", r.Method, r.URL, key)
		}
	}
}

// asked are the keys of texts that were read since it was last called.
func (f *fakeStore) asked() []cluster.Key {
	f.mu.Lock()
	defer f.mu.Unlock()
	keys := f.texts
	f.texts = nil
	return keys
}

// allPaths are the table's, with names in them.
func allPaths(w *world) (paths []string) {
	for _, rt := range w.server.routes {
		paths = append(paths, pathOf.Replace(rt.documented()))
	}
	return paths
}

var hostileTexts = []string{"", "true", "state=true", "..", "../config", "%2e%2e%2fconfig", "a/b", "\x00", "\xff\xfe", "%", "%zz", "none", "hv1", " ", "\n", "state=\xff",
	"state=true&state=false", "state[]=1", "limit=(", "limit=" + strings.Repeat("(a*)*", 30), "lines=99999999999999999999", "wait=1e308", "wait=NaN", "wait=-1", "wait=inf", "to=none&from=none", "a=" + strings.Repeat("x", 5000),
	`{"state":true}`, `{"state":{"a":1}}`, `{"state":"true","state":"false"}`, `[`, `{`, `{"state":`, `null`, `"text"`, `{"a":1}{"b":2}`, strings.Repeat("[", 20000), `{"to":"` + strings.Repeat("é", 300) + `"}`, "--x\r\n", "action=confirm&reason=%0a", "sealed=x", "expires=9999999h", "yes-i-really-mean-it=1&name=../x"}

func FuzzQuery(f *testing.F) {
	for i, text := range hostileTexts {
		f.Add(uint8(i), text)
	}
	w, paths := fuzzed()
	f.Fuzz(func(t *testing.T, path uint8, query string) {
		r := httptest.NewRequest(http.MethodGet, paths[int(path)%len(paths)], nil)
		r.URL.RawQuery = query
		for _, method := range []string{get, post, put, del} {
			next := r.Clone(t.Context())
			next.Method = method
			check(t, w, next)
		}
	})
}

func FuzzBody(f *testing.F) {
	for i, text := range hostileTexts {
		for _, media := range []string{"", "application/json", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/\x00"} {
			f.Add(uint8(i), media, text)
		}
	}
	w, paths := fuzzed()
	f.Fuzz(func(t *testing.T, path uint8, media, body string) {
		for _, method := range []string{post, put, del} {
			r := httptest.NewRequest(method, paths[int(path)%len(paths)], strings.NewReader(body))
			r.Header["Content-Type"] = []string{media}
			check(t, w, r)
		}
	})
}

func FuzzHeaders(f *testing.F) {
	for i, text := range hostileTexts {
		for _, name := range []string{"X-Api-Key", "If-None-Match", "Accept", "Last-Event-ID", "Origin", "Sec-Fetch-Site", "Content-Type", "Content-Encoding"} {
			f.Add(uint8(i), name, text)
		}
	}
	w, paths := fuzzed()
	f.Fuzz(func(t *testing.T, path uint8, name, value string) {
		r := httptest.NewRequest(get, paths[int(path)%len(paths)], nil)
		r.Header[name] = []string{value}
		check(t, w, r)
	})
}

func FuzzPath(f *testing.F) {
	for _, text := range hostileTexts {
		f.Add("/api/v1/node/" + text)
	}
	f.Add("/api/v1/../../etc/passwd")
	f.Add("//api/v1/node")
	w, _ := fuzzed()
	f.Fuzz(func(t *testing.T, path string) {
		u := &url.URL{Path: path}
		for _, method := range []string{get, post, put, del, "HEAD", "\x00"} {
			r := &http.Request{Method: method, URL: u, Header: http.Header{}, Body: http.NoBody, RequestURI: u.RequestURI()}
			check(t, w, r)
		}
	})
}

// fuzzed is a world that outlives the inputs of a fuzz test.
func fuzzed() (*world, []string) {
	w := newWorld(&testing.T{})
	w.server.log, w.server.auditLog = zap.NewNop(), zap.NewNop()
	w.server.cfg.RequestTimeout = 50 * time.Millisecond
	return w, allPaths(w)
}

// Names that are paths, too long, or no text are refused with words, whatever
// the path; nothing is read or written by them.
func TestHostileNames(t *testing.T) {
	w := newWorld(t)
	names := []string{"..", ".", "%2e%2e", "../config", "%2e%2e%2fconfig", "..%2fconfig", "a%2fb", "%2fetc%2fpasswd", "a%00b", "a%0ab", "%ff%fe", "%c0%ae%c0%ae", strings.Repeat("x", 300), strings.Repeat("%41", 3000), "none%2f", "a//b", "hv1%2f..%2fhv2"}
	tried := 0
	for _, rt := range w.server.routes {
		good := url.Values{} // so that it is the name that is refused
		for _, p := range rt.params {
			if p.required {
				good.Set(p.name, append(slices.Clone(p.choices), "x")[0])
			}
		}
		for _, name := range rt.names() {
			for _, hostile := range names {
				path := strings.ReplaceAll(rt.documented(), "{"+name+"}", hostile)
				status, body := w.do(rt.method, pathOf.Replace(path)+"?"+good.Encode(), "", "")
				if (status != 400 && status != 404) || !strings.HasPrefix(body, `{"message":`) {
					t.Errorf("%s %s: %d %s", rt.method, path, status, body)
				}
				tried++
			}
		}
	}
	if keys := w.store.asked(); len(keys) > 0 || w.store.commits > 0 || w.reads() > 0 {
		t.Errorf("after %d names: %d writes, %v was read", tried, w.store.commits, keys)
	}
}

// An argument that stands twice with two values is refused; one that stands
// twice with the same is not, and a body wins over the query.
func TestArgumentsThatStandTwice(t *testing.T) {
	const path = "/api/v1/node/hv2/coordinator-state"
	for _, c := range []struct {
		name, path, media, body string
		status                  int
	}{
		{"query", path + "?state=primary&state=secondary", "", "", 400},
		{"form", path, "application/x-www-form-urlencoded", "state=primary&state=secondary", 400},
		{"json", path, "application/json", `{"state":"primary","state":"secondary"}`, 400},
		{"same", path + "?state=primary&state=primary", "", "", 200},
		{"unknown one of PVC's", path + "?state=primary&x=1&x=2", "", "", 200},
		{"body over query", path + "?state=secondary", "application/x-www-form-urlencoded", "state=primary", 200},
		{"ours", "/api/v1/switch?to=hv2&to=hv1", "", "", 400},
		{"settings", "/api/v1/settings/autoFailover?maxCount=1&maxCount=2", "", "", 400},
		{"not UTF-8", path + "?state=%ff", "", "", 400},
		{"broken query", path + "?state=%zz", "", "", 400},
	} {
		w := newWorld(t)
		status, body := w.do(post, c.path, c.media, c.body)
		if status != c.status || w.store.commits != map[bool]int{true: 1, false: 0}[status == 200] {
			t.Errorf("%s: %d %s, %d writes", c.name, status, body, w.store.commits)
		}
		if status == 200 && w.store.snap.PrimaryNode.Value != "hv2" {
			t.Errorf("%s: %s", c.name, body)
		}
	}
}

// Of two switches asked for at the same moment one wins, and the other is told
// which.
func TestTwoSwitchesAtOnce(t *testing.T) {
	w := newWorld(t)
	w.node("hv3", func(n *cluster.NodeView) { n.Mode = present(cluster.Coordinator) })
	w.store.beforeCommit = func(s *cluster.Snapshot) { s.PrimaryNode.Version++; s.PrimaryNode.Value = "hv3" }
	status, body := w.post("/api/v1/switch", "to=hv2")
	if status != 409 || !strings.Contains(body, `\"hv3\" was asked to be primary`) || w.store.snap.PrimaryNode.Value != "hv3" {
		t.Errorf("%d %s; primary_node %q", status, body, w.store.snap.PrimaryNode.Value)
	}
	if status, body := w.post("/api/v1/switch", "to=hv2"); status != 202 { // who has seen it may ask otherwise
		t.Errorf("%d %s", status, body)
	}
	w = newWorld(t)
	w.store.beforeCommit = func(s *cluster.Snapshot) { s.PrimaryNode.Version++; s.PrimaryNode.Value = "hv2" }
	status, body = w.post("/api/v1/node/hv2/coordinator-state", "state=primary")
	w.expect("the same", status, body, 200, `{"message":"Node \"hv2\" is already being set in primary coordinator state."}`)
}

// HEAD is answered as GET, without a body.
func TestHead(t *testing.T) {
	w := newWorld(t, onAnyPort)
	url, stop := w.serve()
	defer func() { _ = stop() }()
	for _, path := range []string{"/node", "/status", "/node/hv1", "/node/nobody"} {
		asked, err := http.Get(url + Prefix + path)
		if err != nil {
			t.Fatal(err)
		}
		_ = asked.Body.Close()
		head, err := http.Head(url + Prefix + path)
		if err != nil {
			t.Fatal(err)
		}
		if body, _ := io.ReadAll(head.Body); len(body) > 0 || head.StatusCode != asked.StatusCode || head.ContentLength != asked.ContentLength {
			t.Errorf("%s: %d and %d bytes, GET %d and %d", path, head.StatusCode, head.ContentLength, asked.StatusCode, asked.ContentLength)
		}
		_ = head.Body.Close()
	}
}

// hung is a store of which no call ever returns by itself.
type hung struct{ *fakeStore }

func (hung) Refresh(ctx context.Context) (*cluster.Snapshot, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}
func (hung) ReadNode(ctx context.Context, _ cluster.NodeID) (map[string]string, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}
func (hung) ReadHistory(ctx context.Context, _ int) ([]cluster.Event, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}
func (hung) ReadText(ctx context.Context, _ cluster.Key) (cluster.Versioned[string], error) {
	<-ctx.Done()
	return cluster.Versioned[string]{}, ctx.Err()
}
func (hung) ReadFaults(ctx context.Context) ([]FaultRecord, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}
func (hung) ReadSecrets(ctx context.Context) (map[string]string, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}
func (hung) ReadActivities(ctx context.Context) ([]cluster.Versioned[cluster.ActivityRecord], error) {
	<-ctx.Done()
	return nil, ctx.Err()
}
func (hung) ReadActivity(ctx context.Context, _ cluster.ActivityID) (cluster.Versioned[cluster.ActivityRecord], error) {
	<-ctx.Done()
	return cluster.Versioned[cluster.ActivityRecord]{}, ctx.Err()
}
func (hung) Initialize(ctx context.Context, _ string, _ bool) error { <-ctx.Done(); return ctx.Err() }

// forget takes all figures and renderings away.
func (w *world) forget() {
	w.server.figures.mu.Lock()
	w.server.figures.of = nil
	w.server.figures.mu.Unlock()
	w.server.renderings.mu.Lock()
	w.server.renderings.last = nil
	w.server.renderings.mu.Unlock()
}

// A store that takes requests and never answers costs a client its patience and
// no more: every path is answered within the request's time.
func TestNothingHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		for _, rt := range w.server.routes {
			silent := hung{w.store}
			w.server.deps.Store, w.server.deps.Details, w.server.deps.Texts = silent, silent, silent
			w.server.deps.Faults, w.server.deps.Secrets, w.server.deps.Initializer = silent, silent, silent
			w.forget()
			began := time.Now()
			status, body := w.do(rt.method, pathOf.Replace(rt.documented())+"?state=primary&action=test&to=hv2&yes-i-really-mean-it=1&node=hv2&maxCount=1&wait=0", "", "")
			if took := time.Since(began); took > w.server.cfg.RequestTimeout+time.Second {
				t.Errorf("%s %s: %d after %s: %s", rt.method, rt.path, status, took, body)
			}
			if status == 500 || rt.method != get && status == 200 {
				t.Errorf("%s %s: %d %s", rt.method, rt.path, status, body)
			}
		}
		if w.store.commits > 0 {
			t.Errorf("%d writes", w.store.commits)
		}
	})
}

// A client that sends its request a byte at a time, or never ends it, is left.
func TestSlowSenders(t *testing.T) {
	w := newWorld(t, onAnyPort)
	server := w.server.httpServer()
	if server.ReadHeaderTimeout <= 0 || server.ReadTimeout <= 0 || server.WriteTimeout <= 0 || server.IdleTimeout <= 0 || server.MaxHeaderBytes <= 0 {
		t.Errorf("a phase has no limit: %+v", server)
	}
	server.ReadHeaderTimeout, server.ReadTimeout, server.IdleTimeout = time.Second, 2*time.Second, time.Second
	listeners, err := w.server.listenAll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- w.server.serve(server, listeners[0]) }()
	defer func() { _ = server.Close(); <-ended }()
	address := listeners[0].Addr().String()
	var all sync.WaitGroup
	for _, begin := range []string{"", "GET /api/v1/node HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: ", "POST /api/v1/status HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\nstate="} {
		for range 20 {
			all.Go(func() {
				c, err := net.Dial("tcp", address)
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				_, _ = io.WriteString(c, begin)
				_ = c.SetReadDeadline(time.Now().Add(60 * time.Second))
				if _, err := io.Copy(io.Discard, c); err != nil { // which ends when the server leaves
					t.Errorf("%q is still connected: %v", begin, err)
				}
			})
		}
	}
	for limit := time.Now().Add(30 * time.Second); ; { // a client of a loaded machine may be too slow itself, once
		response, err := http.Get("http://" + address + "/api/v1/node")
		if err == nil {
			_ = response.Body.Close()
			break
		}
		if time.Now().After(limit) {
			t.Fatal(err)
		}
	}
	all.Wait()
	if w.store.commits > 0 {
		t.Error("half a request changed something")
	}
}

// malformed makes one request that is wrong in some way.
func malformed(r *rand.Rand) []byte {
	pick := func(all []string) string { return all[r.IntN(len(all))] }
	rubbish := func(n int) string {
		b := make([]byte, r.IntN(n)+1)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return string(b)
	}
	path := Prefix + pick([]string{"/node", "/node/hv1", "/status", "/node/hv2/coordinator-state", "/switch", "/faults/x", "/settings/autoFailover", "/fence/hv2", "/node/%2e%2e", "/node/" + url.PathEscape(rubbish(20)), "/../..", "/node/" + strings.Repeat("a", r.IntN(2000))})
	method := pick([]string{"GET", "POST", "PUT", "DELETE", "HEAD", "BREW", "PATCH"})
	head := fmt.Sprintf("%s %s?%s HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n", method, path, url.PathEscape(pick(hostileTexts)))
	body := pick(hostileTexts)
	switch r.IntN(8) {
	case 0:
		return []byte(rubbish(400) + "\r\n\r\n")
	case 1:
		return []byte("GET " + rubbish(60) + " HTTP/1.1\r\n\r\n")
	case 2: // a length that is not that of the body
		return []byte(head + fmt.Sprintf("Content-Length: %d\r\n\r\n", r.IntN(1000)-100) + body)
	case 3:
		return []byte(head + "Transfer-Encoding: chunked\r\n\r\nzz\r\n" + body)
	case 4:
		return []byte(head + "X-" + rubbish(30) + ": " + rubbish(30) + "\r\n\r\n")
	case 5:
		return []byte(head + "X-Long: " + strings.Repeat("x", r.IntN(3*maxHeaderBytes)) + "\r\n\r\n")
	case 6:
		return []byte(head + "Content-Length: 1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
	}
	media := pick([]string{"application/json", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "multipart/form-data", rubbish(10)})
	return []byte(head + "Content-Type: " + strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return '?'
		}
		return c
	}, media) + fmt.Sprintf("\r\nContent-Length: %d\r\n\r\n", len(body)) + body)
}

// Ten thousand malformed requests leave the server answering, its memory
// bounded, and nothing changed but what some of them by chance asked for.
func TestMalformedRequests(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	w := newWorld(t, onAnyPort)
	address, stop := w.serve()
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before, goroutines := heap(), runtime.NumGoroutine()
	var answered, left atomic.Int64
	var all sync.WaitGroup
	const workers, each = 8, 1250
	for i := range workers {
		all.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(i))) //nolint:gosec // no secret
			for range each {
				if sendRaw(t, strings.TrimPrefix(address, "http://"), malformed(r)) {
					answered.Add(1)
				} else {
					left.Add(1)
				}
			}
		})
	}
	all.Wait()
	t.Logf("%d answered, %d left", answered.Load(), left.Load())
	if answered.Load() < workers*each/2 {
		t.Errorf("of %d requests %d were answered at all", workers*each, answered.Load())
	}
	response, err := http.Get(address + "/api/v1/node/hv1")
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Errorf("afterwards: %s", response.Status)
	}
	http.DefaultClient.CloseIdleConnections()
	if err := stop(); err != nil {
		t.Error(err)
	}
	w.store.mu.Lock()
	w.store.history = nil
	w.store.mu.Unlock()
	if after := heap(); after > before+16<<20 {
		t.Errorf("%d KiB of memory are kept", (after-before)>>10)
	}
	for limit := time.Now().Add(30 * time.Second); runtime.NumGoroutine() > goroutines+4; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), goroutines)
		}
	}
	if name := w.store.snap.ClusterName.Value; name != "demo" {
		t.Errorf("the cluster is called %q now", name)
	}
}

// sendRaw sends the bytes, and reports whether an HTTP answer came back.
func sendRaw(t *testing.T, address string, request []byte) bool {
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Error(err)
		return false
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(60 * time.Second))
	_, _ = c.Write(request)
	_ = c.(*net.TCPConn).CloseWrite() // so that the server does not wait for what was announced
	line, err := bufio.NewReader(io.LimitReader(c, 1<<20)).ReadBytes('\n')
	if err != nil {
		return false
	}
	if !bytes.HasPrefix(line, []byte("HTTP/1.")) || bytes.HasPrefix(line, []byte("HTTP/1.1 500")) {
		t.Errorf("%.200q is answered with %q", request, line)
	}
	return true
}
