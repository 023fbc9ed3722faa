package zkhandler_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"reflect"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-zookeeper/zk"
	"go.uber.org/zap"

	"pvc.internal/cluster"
	"pvc.internal/zkhandler"
	"pvc.internal/zkhandler/zkreal"
	"pvc.internal/zkhandler/zktest"
)

// env is an ensemble under test: the one in memory or a real one.
type env struct {
	servers []string
	tick    time.Duration
	root    string         // a path of this case's own, which exists
	fake    *zktest.Server // nil on the real ensemble
}

// dialer returns the way in for a client of this name.
func (e *env) dialer(client string) func(ctx context.Context, network, addr string) (net.Conn, error) {
	if e.fake != nil {
		return e.fake.Dialer(client)
	}
	return (&net.Dialer{}).DialContext
}

// conformanceCase is one thing that must hold over both ensembles.
type conformanceCase struct {
	name string
	run  func(t *testing.T, e *env)
}

// onBoth runs the cases in bubbles over zktest and against a real ensemble of
// three servers.
func onBoth(t *testing.T, cases []conformanceCase) {
	t.Run("memory", func(t *testing.T) {
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { c.run(t, newFake(t)) })
			})
		}
	})
	t.Run("ensemble", func(t *testing.T) {
		servers := zkreal.Start(t, 3).Servers()
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) { c.run(t, newReal(t, servers, "/"+c.name)) })
		}
	})
}

func newReal(t *testing.T, servers []string, root string) *env {
	e := &env{servers: servers, tick: realTick, root: root}
	e.makeRoot(t)
	return e
}

func newFake(t *testing.T) *env {
	srv := zktest.New(zktest.Options{TickTime: realTick, MaxSessionTimeout: time.Minute})
	t.Cleanup(srv.Close)
	e := &env{servers: srv.Servers(), tick: realTick, fake: srv, root: "/case"}
	e.makeRoot(t)
	return e
}

func (e *env) makeRoot(t *testing.T) {
	c := e.connect(t, "setup", 10*time.Second, nil)
	_, err := c.Create(e.root, nil, 0, openACL)
	must(t, err)
}

// openACL lets everybody do everything.
var openACL = zk.WorldACL(zk.PermAll)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t *testing.T, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Fatalf("error %v, want %v", got, want)
	}
}

// patience is how long a real server on a busy machine is waited for.
const patience = 30 * time.Second

// eventually polls for what another party does.
func eventually(t *testing.T, within time.Duration, what string, ok func() bool) {
	t.Helper()
	within = max(within, patience)
	for end := time.Now().Add(within); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", within, what)
		}
	}
}

// quiet swallows the library's log.
type quiet struct{}

func (quiet) Printf(string, ...any) {}

// fixedHosts is a host provider that looks nothing up and keeps the order.
type fixedHosts struct {
	servers []string
	next    int
	good    int
}

func (h *fixedHosts) Init([]string) error { return nil }
func (h *fixedHosts) Len() int            { return len(h.servers) }
func (h *fixedHosts) Connected()          { h.good = h.next }

// Next says once a round that all servers have been tried in vain.
func (h *fixedHosts) Next() (string, bool) {
	tried := h.next - h.good
	h.next++
	return h.servers[(h.next-1)%len(h.servers)], tried > 0 && tried%len(h.servers) == 0
}

// connect opens a session with the bare client library and waits for it.
func (e *env) connect(t *testing.T, client string, timeout time.Duration, wrap func(net.Conn) net.Conn) *zk.Conn {
	t.Helper()
	live := make(chan struct{}, 64)
	conn := e.open(t, client, timeout, wrap, func(ev zk.Event) {
		if ev.State == zk.StateHasSession {
			select {
			case live <- struct{}{}:
			default:
			}
		}
	})
	select {
	case <-live:
	case <-time.After(patience):
		t.Fatalf("client %q has no session after %s", client, patience)
	}
	return conn
}

func (e *env) open(t *testing.T, client string, timeout time.Duration, wrap func(net.Conn) net.Conn, callback func(zk.Event)) *zk.Conn {
	t.Helper()
	dial := e.dialer(client)
	conn, events, err := zk.Connect(e.servers, timeout, zk.WithLogger(quiet{}), zk.WithLogInfo(false),
		zk.WithHostProvider(&fixedHosts{servers: e.servers}), zk.WithEventCallback(callback),
		zk.WithDialer(func(network, addr string, limit time.Duration) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(context.Background(), limit)
			defer cancel()
			c, err := dial(ctx, network, addr)
			if err == nil && wrap != nil {
				c = wrap(c)
			}
			return c, err
		}))
	must(t, err)
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		for range events {
		}
	}()
	t.Cleanup(func() {
		conn.Close()
		<-drained
	})
	return conn
}

// raw dials one server for a test at wire level.
func (e *env) raw(t *testing.T, client, addr string) zktest.Raw {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := e.dialer(client)(ctx, "tcp", addr)
	must(t, err)
	must(t, c.SetDeadline(time.Now().Add(20*time.Second)))
	t.Cleanup(func() { c.Close() })
	return zktest.Raw{Conn: c}
}

// cutter is a connection that a test can cut or mute from the client's side.
type cutter struct {
	net.Conn
	muted *atomic.Bool
}

// cuttable wraps a client's connections; the pointer holds the latest.
func cuttable() (*atomic.Pointer[cutter], func(net.Conn) net.Conn) {
	last, muted := &atomic.Pointer[cutter]{}, &atomic.Bool{}
	return last, func(c net.Conn) net.Conn {
		cut := &cutter{Conn: c, muted: muted}
		last.Store(cut)
		return cut
	}
}

// mute ends the client's connection, and nothing is ever sent on a later one.
func (c *cutter) mute() {
	c.muted.Store(true)
	c.Close()
}

func (c *cutter) Write(p []byte) (int, error) {
	if c.muted.Load() {
		c.Close()
		return 0, net.ErrClosed
	}
	return c.Conn.Write(p)
}

// realTick is the tick of both ensembles; sessions last at most a minute.
const realTick = 200 * time.Millisecond

// TestConformance holds zktest to what a real ensemble does, as far as
// zkhandler relies on it. A case that fails on one side only means that
// bubbles prove nothing about production there.
func TestConformance(t *testing.T) {
	onBoth(t, []conformanceCase{
		{"TimeoutIsNegotiated", timeoutIsNegotiated},
		{"SessionIsReattachedByIDAndPassword", sessionIsReattached},
		{"ClientFromTheFutureIsTurnedAway", clientFromTheFuture},
		{"EphemeralsGoWithTheCloseAtOnce", ephemeralsGoWithClose},
		{"EphemeralsGoWithTheExpiryNotEarlier", ephemeralsGoWithExpiry},
		{"SequenceNumbersCountCreations", sequenceNumbers},
		{"VersionsGuardSetAndDelete", versionsGuard},
		{"MultiIsAtomicAndSaysWhichOpFailed", multiIsAtomic},
		{"MultiSeesItsOwnOps", multiSeesItself},
		{"WatchesFireOnce", watchesFireOnce},
		{"ReconnectRearmsWatchesAndFiresMissedOnes", reconnectRearms},
		{"AccessIsEnforced", accessIsEnforced},
		{"FrameAboveOneMiBDropsTheConnection", frameLimit},
		{"TreeErrors", treeErrors},
		{"PingsAndUnknownOps", pingsAndUnknownOps},
	})
}

func timeoutIsNegotiated(t *testing.T, e *env) {
	for _, c := range []struct{ asked, granted time.Duration }{
		{time.Millisecond, 2 * e.tick},
		{6 * e.tick, 6 * e.tick},
		{time.Hour, time.Minute},
	} {
		got, err := e.raw(t, "a", e.servers[0]).Connect(zktest.Handshake{Timeout: c.asked}, 0)
		must(t, err)
		if got.Timeout != c.granted || got.Session == 0 || len(got.Password) != 16 {
			t.Errorf("asked for %s: granted %s, session %x, password of %d bytes; want %s, a session, 16 bytes",
				c.asked, got.Timeout, got.Session, len(got.Password), c.granted)
		}
	}
}

func sessionIsReattached(t *testing.T, e *env) {
	first := e.raw(t, "a", e.servers[0])
	h, err := first.Connect(zktest.Handshake{Timeout: 10 * e.tick}, 0)
	must(t, err)
	again, err := e.raw(t, "a", e.servers[1]).Connect(h, 0)
	must(t, err)
	if again.Session != h.Session || !bytes.Equal(again.Password, h.Password) {
		t.Errorf("re-attached as %x, want %x", again.Session, h.Session)
	}
	wrong := h
	wrong.Password = bytes.Repeat([]byte{7}, 16)
	for name, other := range map[string]zktest.Handshake{
		"wrong password":  wrong,
		"unknown session": {Session: 4711, Timeout: time.Second, Password: h.Password},
	} {
		r := e.raw(t, "a", e.servers[2])
		got, err := r.Connect(other, 0)
		must(t, err)
		if got.Session != 0 || got.Timeout != 0 {
			t.Errorf("%s: got session %x, timeout %s; want neither", name, got.Session, got.Timeout)
		}
		if _, err := r.Next(); err == nil {
			t.Errorf("%s: the connection goes on after the refusal", name)
		}
	}
}

func clientFromTheFuture(t *testing.T, e *env) {
	if h, err := e.raw(t, "a", e.servers[0]).Connect(zktest.Handshake{Timeout: time.Second}, 1<<60); err == nil {
		t.Errorf("a client that has seen zxid 2^60 got session %x, want the connection closed", h.Session)
	}
}

func ephemeralsGoWithClose(t *testing.T, e *env) {
	owner, other := e.connect(t, "a", time.Hour, nil), e.connect(t, "b", time.Hour, nil)
	_, err := owner.Create(e.root+"/e", nil, zk.FlagEphemeral, openACL)
	must(t, err)
	_, err = other.Sync(e.root)
	must(t, err)
	ok, stat, gone, err := other.ExistsW(e.root + "/e")
	must(t, err)
	if !ok || stat.EphemeralOwner != owner.SessionID() {
		t.Fatalf("exists %v, owner %x, want owner %x", ok, stat.EphemeralOwner, owner.SessionID())
	}
	owner.Close()
	if ev := within(t, gone, 2*e.tick); ev.Type != zk.EventNodeDeleted {
		t.Errorf("event %v, want the deletion", ev)
	}
}

// within returns the event, or fails.
func within(t *testing.T, ch <-chan zk.Event, limit time.Duration) zk.Event {
	t.Helper()
	limit = max(limit, patience)
	select {
	case ev := <-ch:
		return ev
	case <-time.After(limit):
		t.Fatalf("no event within %s", limit)
		return zk.Event{}
	}
}

func ephemeralsGoWithExpiry(t *testing.T, e *env) {
	timeout := 5 * e.tick
	last, wrap := cuttable()
	owner, other := e.connect(t, "a", timeout, wrap), e.connect(t, "b", time.Hour, nil)
	_, err := owner.Create(e.root+"/e", nil, zk.FlagEphemeral, openACL)
	must(t, err)
	_, err = other.Sync(e.root)
	must(t, err)
	ok, _, gone, err := other.ExistsW(e.root + "/e")
	must(t, err)
	if !ok {
		t.Fatal("the ephemeral is not there")
	}
	contact := time.Now()
	_, err = owner.Sync("/") // the last that the servers hear of it
	must(t, err)
	last.Load().mute()
	if ev := within(t, gone, 4*timeout); ev.Type != zk.EventNodeDeleted {
		t.Errorf("event %v, want the deletion", ev)
	}
	if lived := time.Since(contact); lived < timeout {
		t.Errorf("the session ended %s after its last request, before its timeout of %s", lived, timeout)
	}
}

func sequenceNumbers(t *testing.T, e *env) {
	c := e.connect(t, "a", time.Hour, nil)
	create := func(name string, flags int32) string {
		p, err := c.Create(e.root+"/"+name, nil, flags, openACL)
		must(t, err)
		return strings.TrimPrefix(p, e.root+"/")
	}
	got := []string{create("x-", zk.FlagSequence), create("plain", 0), create("y-", zk.FlagSequence|zk.FlagEphemeral)}
	must(t, c.Delete(e.root+"/plain", -1))
	must(t, c.Delete(e.root+"/y-0000000002", -1))
	got = append(got, create("x-", zk.FlagSequence))
	want := []string{"x-0000000000", "plain", "y-0000000002", "x-0000000003"}
	if !slices.Equal(got, want) {
		t.Errorf("names %q, want %q: the number counts all creations under the parent and no deletion", got, want)
	}
	_, stat, err := c.Get(e.root)
	must(t, err)
	if stat.Cversion != 6 || stat.NumChildren != 2 {
		t.Errorf("cversion %d, children %d, want 6 (4 creations, 2 deletions) and 2", stat.Cversion, stat.NumChildren)
	}
}

func versionsGuard(t *testing.T, e *env) {
	c, p := e.connect(t, "a", time.Hour, nil), e.root+"/v"
	_, err := c.Create(p, []byte("0"), 0, openACL)
	must(t, err)
	_, before, err := c.Get(p)
	must(t, err)
	_, err = c.Set(p, []byte("1"), 1)
	wantErr(t, err, zk.ErrBadVersion)
	after, err := c.Set(p, []byte("11"), 0)
	must(t, err)
	if after.Version != 1 || after.Czxid != before.Czxid || after.Mzxid <= before.Mzxid || after.DataLength != 2 {
		t.Errorf("after the write %+v, before %+v", after, before)
	}
	wantErr(t, c.Delete(p, 0), zk.ErrBadVersion)
	must(t, c.Delete(p, 1))
	_, err = c.Create(p, nil, 0, openACL)
	must(t, err)
	_, again, err := c.Get(p)
	must(t, err)
	if again.Version != 0 || again.Mzxid <= after.Mzxid {
		t.Errorf("re-created: version %d, mzxid %x; want 0 and above %x", again.Version, again.Mzxid, after.Mzxid)
	}
}

func multiIsAtomic(t *testing.T, e *env) {
	c, p := e.connect(t, "a", time.Hour, nil), e.root+"/m"
	_, err := c.Create(p, []byte("0"), 0, openACL)
	must(t, err)
	results, err := c.Multi(
		&zk.CreateRequest{Path: p + "/child", Acl: openACL},
		&zk.CheckVersionRequest{Path: p, Version: 7},
		&zk.SetDataRequest{Path: p, Data: []byte("x"), Version: -1})
	wantErr(t, err, zk.ErrBadVersion)
	if len(results) != 3 || results[0].Error != nil || !errors.Is(results[1].Error, zk.ErrBadVersion) || results[2].Error == nil {
		t.Errorf("results %v, want ok, bad version, rolled back", results)
	}
	if data, stat, err := c.Get(p); err != nil || string(data) != "0" || stat.Version != 0 || stat.Cversion != 0 {
		t.Errorf("after a failed multi: %q %+v %v, want nothing changed", data, stat, err)
	}
	results, err = c.Multi(
		&zk.CheckVersionRequest{Path: p, Version: 0},
		&zk.CreateRequest{Path: p + "/s-", Acl: openACL, Flags: zk.FlagSequence},
		&zk.SetDataRequest{Path: p, Data: []byte("x"), Version: 0})
	must(t, err)
	if results[1].String != p+"/s-0000000000" || results[2].Stat.Version != 1 {
		t.Errorf("results %+v", results)
	}
	_, child, err := c.Get(p + "/s-0000000000")
	must(t, err)
	if child.Czxid != results[2].Stat.Mzxid {
		t.Errorf("the operations of one multi have zxids %x and %x, want one", child.Czxid, results[2].Stat.Mzxid)
	}
	if results, err = c.Multi(); err != nil || len(results) != 0 {
		t.Errorf("empty multi: %v %v, want nothing and no error", results, err)
	}
}

func multiSeesItself(t *testing.T, e *env) {
	c, p := e.connect(t, "a", time.Hour, nil), e.root+"/m"
	_, err := c.Multi(
		&zk.CreateRequest{Path: p, Data: []byte("0"), Acl: openACL},
		&zk.CreateRequest{Path: p + "/a", Acl: openACL},
		&zk.SetDataRequest{Path: p, Data: []byte("1"), Version: 0},
		&zk.CheckVersionRequest{Path: p, Version: 1},
		&zk.DeleteRequest{Path: p + "/a", Version: 0},
		&zk.SetDataRequest{Path: p, Data: []byte("2"), Version: 1})
	must(t, err)
	if data, stat, err := c.Get(p); err != nil || string(data) != "2" || stat.Version != 2 || stat.NumChildren != 0 {
		t.Errorf("%q %+v %v", data, stat, err)
	}
}

func watchesFireOnce(t *testing.T, e *env) {
	c, w, p := e.connect(t, "a", time.Hour, nil), e.connect(t, "b", time.Hour, nil), e.root+"/w"
	_, _, created, err := w.ExistsW(p)
	must(t, err)
	_, _, children, err := w.ChildrenW(e.root)
	must(t, err)
	_, err = c.Create(p, nil, 0, openACL)
	must(t, err)
	if ev := within(t, created, 5*time.Second); ev.Type != zk.EventNodeCreated || ev.Path != p {
		t.Errorf("event %v, want the creation", ev)
	}
	if ev := within(t, children, 5*time.Second); ev.Type != zk.EventNodeChildrenChanged || ev.Path != e.root {
		t.Errorf("event %v, want changed children", ev)
	}
	_, _, changed, err := w.GetW(p)
	must(t, err)
	for range 2 {
		_, err = c.Multi(&zk.SetDataRequest{Path: p, Data: []byte("1"), Version: -1})
		must(t, err)
	}
	if ev := within(t, changed, 5*time.Second); ev.Type != zk.EventNodeDataChanged {
		t.Errorf("event %v, want changed data", ev)
	}
	_, _, data, err := w.GetW(p)
	must(t, err)
	_, _, kids, err := w.ChildrenW(p)
	must(t, err)
	must(t, c.Delete(p, -1))
	for _, ch := range []<-chan zk.Event{data, kids} {
		if ev := within(t, ch, 5*time.Second); ev.Type != zk.EventNodeDeleted {
			t.Errorf("event %v, want the deletion", ev)
		}
	}
}

func reconnectRearms(t *testing.T, e *env) {
	last, wrap := cuttable()
	c, w, p := e.connect(t, "a", time.Hour, nil), e.connect(t, "b", 15*e.tick, wrap), e.root+"/w"
	_, err := c.Create(p, nil, 0, openACL)
	must(t, err)
	_, err = w.Sync(p)
	must(t, err)
	session := w.SessionID()
	_, _, changed, err := w.GetW(p)
	must(t, err)
	_, _, absent, err := w.ExistsW(p + "/later")
	must(t, err)
	must(t, last.Load().Close())
	_, err = c.Set(p, []byte("missed"), -1)
	must(t, err)
	if ev := within(t, changed, 5*time.Second); ev.Type != zk.EventNodeDataChanged {
		t.Errorf("event %v, want changed data", ev)
	}
	_, err = c.Create(p+"/later", nil, 0, openACL)
	must(t, err)
	if ev := within(t, absent, 5*time.Second); ev.Type != zk.EventNodeCreated {
		t.Errorf("event %v, want the creation", ev)
	}
	if w.SessionID() != session {
		t.Errorf("session %x after the cut, want %x still", w.SessionID(), session)
	}
}

func accessIsEnforced(t *testing.T, e *env) {
	owner, thief, nobody := e.connect(t, "a", time.Hour, nil), e.connect(t, "b", time.Hour, nil), e.connect(t, "c", time.Hour, nil)
	must(t, owner.AddAuth("digest", []byte("pvc:right")))
	must(t, thief.AddAuth("digest", []byte("pvc:wrong"))) // no error: it merely proves somebody else
	acl := append(zk.DigestACL(zk.PermAll, "pvc", "right"), zk.DigestACL(zk.PermRead, "reader", "r")...)
	p := e.root + "/secret"
	_, err := owner.Create(p, []byte("s"), 0, acl)
	must(t, err)
	for name, c := range map[string]*zk.Conn{"wrong password": thief, "anonymous": nobody} {
		_, err := c.Sync(p)
		must(t, err)
		_, _, err = c.Get(p)
		wantErr(t, err, zk.ErrNoAuth)
		_, err = c.Set(p, nil, -1)
		wantErr(t, err, zk.ErrNoAuth)
		_, err = c.Create(p+"/x", nil, 0, openACL)
		wantErr(t, err, zk.ErrNoAuth)
		if results, err := c.Multi(&zk.SetDataRequest{Path: p, Version: -1}); !errors.Is(err, zk.ErrNoAuth) || len(results) != 1 {
			t.Errorf("%s: multi %v %v, want not authenticated", name, results, err)
		}
		if ok, _, err := c.Exists(p); err != nil || !ok {
			t.Errorf("%s: exists %v %v, want yes: it needs no permission", name, ok, err)
		}
	}
	must(t, nobody.AddAuth("digest", []byte("reader:r")))
	data, _, err := nobody.Get(p)
	must(t, err)
	if string(data) != "s" {
		t.Errorf("reader got %q", data)
	}
	_, err = nobody.Set(p, nil, -1)
	wantErr(t, err, zk.ErrNoAuth)
	seen, _, err := nobody.GetACL(p)
	must(t, err)
	if seen[0].ID != "pvc:x" {
		t.Errorf("a reader sees %q, want the digest masked", seen[0].ID)
	}
	_, err = thief.Create(e.root+"/a", nil, 0, []zk.ACL{})
	wantErr(t, err, zk.ErrInvalidACL)
	_, err = e.connect(t, "d", time.Hour, nil).Create(e.root+"/a", nil, 0, zk.AuthACL(zk.PermAll))
	wantErr(t, err, zk.ErrInvalidACL)
	stat, err := owner.SetACL(p, openACL, 0)
	must(t, err)
	if stat.Aversion != 1 {
		t.Errorf("aversion %d, want 1", stat.Aversion)
	}
	_, err = thief.Set(p, nil, -1)
	must(t, err)
}

func frameLimit(t *testing.T, e *env) {
	last, wrap := cuttable()
	c := e.connect(t, "a", time.Hour, wrap)
	_, err := c.Create(e.root+"/big", make([]byte, 1<<20-200), 0, openACL)
	must(t, err)
	before := last.Load()
	if _, err = c.Create(e.root+"/bigger", make([]byte, 1<<20+200), 0, openACL); err == nil {
		t.Fatal("a request above the limit was answered")
	}
	ok, _, err := c.Exists(e.root + "/bigger")
	must(t, err)
	if ok || last.Load() == before {
		t.Errorf("exists %v, connection replaced %v; want no and yes", ok, last.Load() != before)
	}
}

func treeErrors(t *testing.T, e *env) {
	c := e.connect(t, "a", time.Hour, nil)
	_, err := c.Create(e.root+"/no/parent", nil, 0, openACL)
	wantErr(t, err, zk.ErrNoNode)
	_, err = c.Create(e.root, nil, 0, openACL)
	wantErr(t, err, zk.ErrNodeExists)
	_, err = c.Create(e.root+"/e", nil, zk.FlagEphemeral, openACL)
	must(t, err)
	_, err = c.Create(e.root+"/e/child", nil, 0, openACL)
	wantErr(t, err, zk.ErrNoChildrenForEphemerals)
	wantErr(t, c.Delete(e.root, -1), zk.ErrNotEmpty)
	wantErr(t, c.Delete(e.root+"/absent", -1), zk.ErrNoNode)
	_, _, err = c.Get(e.root + "/absent")
	wantErr(t, err, zk.ErrNoNode)
	_, _, err = c.Children(e.root + "/absent")
	wantErr(t, err, zk.ErrNoNode)
	children, _, err := c.Children("/")
	must(t, err)
	if !slices.Contains(children, "zookeeper") {
		t.Errorf("children of the root: %q, want zookeeper's own among them", children)
	}
	for _, bad := range []string{"relative", e.root + "//x", e.root + "/../x", e.root + "/x/"} {
		if _, err := c.Multi(&zk.CreateRequest{Path: bad, Acl: openACL}); err == nil {
			t.Errorf("path %q was accepted", bad)
		}
	}
}

func pingsAndUnknownOps(t *testing.T, e *env) {
	r := e.raw(t, "a", e.servers[0])
	_, err := r.Connect(zktest.Handshake{Timeout: time.Second}, 0)
	must(t, err)
	must(t, r.Send(-2, 11, ""))
	if pong, err := r.Next(); err != nil || pong.Xid != -2 || pong.Code != 0 || len(pong.Body) != 0 {
		t.Errorf("ping answered by %+v %v", pong, err)
	}
	must(t, r.Send(1, 9, "/"))
	if synced, err := r.Next(); err != nil || synced.Xid != 1 || synced.Code != 0 || string(synced.Body[4:]) != "/" {
		t.Errorf("sync answered by %+v %v", synced, err)
	}
	must(t, r.Send(2, 99, ""))
	if reply, err := r.Next(); err != nil || reply.Code != -6 {
		t.Errorf("unknown operation answered by %+v %v, want code -6", reply, err)
	}
}

// TestHandlerConformance holds zkhandler to what it promises, over both
// ensembles, so that a test in a bubble stands for production.
func TestHandlerConformance(t *testing.T) {
	onBoth(t, []conformanceCase{
		{"EmptyTreeIsTold", emptyTreeIsTold},
		{"NothingIsTouchedOutsideTheRoot", nothingOutsideTheRoot},
		{"NewerSchemaIsRefused", newerSchema},
		{"RubbishInOneRecordHidesNoOther", rubbishInARecord},
		{"OutcomesAreToldApart", outcomesAreToldApart},
		{"LostReplyIsUnknownAndCanBeReread", lostReplyIsUnknown},
		{"WrongCredentialsAreRefused", wrongCredentials},
		{"SeenAtMovesOnlyWithTheRecord", seenAtMovesWithTheRecord},
		{"WatchedChangesArePublished", watchedChangesArePublished},
		{"FenceOrdersComeAndGo", fenceOrdersComeAndGo},
		{"MembersComeAndGo", membersComeAndGo},
		{"WorkloadsComeAndGo", workloadsComeAndGo},
		{"FactsAreReadWhereTheyCount", factsAreRead},
		{"MigrationGoesOnFromTheTree", migrationGoesOn},
		{"ActivitiesAreRead", activitiesAreRead},
		{"EndOfRunEndsTheEphemerals", endOfRunEndsEphemerals},
		{"LockQueueIsOrderedByNumberAlone", lockQueueOrder},
		{"ForeignLockChildIsWaitedForAndKept", foreignLockChild},
		{"LockSurvivesALostReply", lockSurvivesLostReply},
		{"LockGivesUpInTimeAndLeavesNothing", lockGivesUp},
	})
}

// bare is a client that plants what zkhandler never would.
func (e *env) bare(t *testing.T) *zk.Conn { return e.connect(t, "bare", time.Hour, nil) }

func emptyTreeIsTold(t *testing.T, e *env) {
	h := e.joined(t, "a", nil)
	if name, initialised, err := h.CheckTree(soon(t)); name != "" || initialised || err != nil {
		t.Fatalf("empty tree: %q %v %v, want no cluster and no error", name, initialised, err)
	}
	s, err := h.Refresh(soon(t))
	must(t, err)
	if s.Lease.Present || s.PrimaryNode.Present || s.ClusterName.Present || s.Lease.Err != nil {
		t.Errorf("an empty tree shows %+v", s)
	}
	wantErr(t, h.EnsureNode(soon(t), "hv1", cluster.Coordinator), cluster.ErrNotFound)
	must(t, h.Initialize(soon(t), "demo", false))
	wantErr(t, h.Initialize(soon(t), "other", false), cluster.ErrConflict)
	if name, initialised, err := h.CheckTree(soon(t)); name != "demo" || !initialised || err != nil {
		t.Errorf("after the initialisation: %q %v %v", name, initialised, err)
	}
	s, err = h.Refresh(soon(t))
	must(t, err)
	if !s.Lease.Present || !s.Lease.Value.Released() || s.PrimaryNode.Value != cluster.NoNode {
		t.Errorf("fresh tree: lease %+v, primary %q; want a released lease and %q", s.Lease, s.PrimaryNode.Value, cluster.NoNode)
	}
}

func nothingOutsideTheRoot(t *testing.T, e *env) {
	c := e.bare(t)
	before, _, err := c.Children("/")
	must(t, err)
	h := e.live(t, "a", func(cfg *zkhandler.Config) { cfg.Root = e.root + "/deep/er" })
	must(t, h.EnsureNode(soon(t), "hv1", cluster.Coordinator))
	wantOutcome(t, h.Commit(soon(t), register("hv1")), cluster.OutcomeOK)
	_, err = h.Lock(soon(t), cluster.KeyRoleLockChild, cluster.LockOwner{Node: "hv1", Incarnation: "x.1"})
	must(t, err)
	after, _, err := c.Children("/")
	must(t, err)
	if e.fake != nil && len(after) != len(before) {
		t.Errorf("children of / were %q and are %q", before, after)
	}
	for path, want := range map[string]string{e.root: "deep", e.root + "/deep": "er"} {
		if names, _, err := c.Children(path); err != nil || len(names) != 1 || names[0] != want {
			t.Errorf("children of %s: %q %v, want %q", path, names, err, want)
		}
	}
	if _, _, err := c.Get(e.root + "/deep/er/config/primary_node"); err != nil {
		t.Error(err)
	}
}

func newerSchema(t *testing.T, e *env) {
	h, c := e.live(t, "a", nil), e.bare(t)
	_, err := c.Set(e.root+"/agent/schema", []byte("99"), -1)
	must(t, err)
	_, _, err = h.CheckTree(soon(t))
	wantErr(t, err, cluster.ErrSchemaNewer)
	for _, rubbish := range []string{"", "one", "-1"} {
		_, err = c.Set(e.root+"/agent/schema", []byte(rubbish), -1)
		must(t, err)
		if _, _, err = h.CheckTree(soon(t)); err == nil || !strings.Contains(err.Error(), e.root+"/agent/schema") {
			t.Errorf("schema %q: %v, want an error that names the path", rubbish, err)
		}
	}
}

func rubbishInARecord(t *testing.T, e *env) {
	h, c := e.live(t, "a", nil), e.bare(t)
	for path, rubbish := range map[string]string{
		"/agent/lease/primary": "{\"v\":1,", "/config/maintenance": "perhaps", "/config/primary_node": "\xff/.."} {
		_, err := c.Set(e.root+path, []byte(rubbish), -1)
		must(t, err)
	}
	s, err := h.Refresh(soon(t))
	must(t, err)
	if !s.Lease.Present || s.Lease.Err == nil || !reflect.DeepEqual(s.Lease.Value, cluster.Lease{}) {
		t.Errorf("lease %+v, want present, an error, and no value", s.Lease)
	}
	eventually(t, 5*time.Second, "the rubbish is shown as such", func() bool {
		s, err = h.Refresh(soon(t))
		must(t, err)
		return s.Maintenance.Err != nil && s.PrimaryNode.Err != nil
	})
	if s.ClusterName.Value != "test" || s.ClusterName.Err != nil {
		t.Errorf("the cluster's name is %+v beside unreadable records", s.ClusterName)
	}
}

func outcomesAreToldApart(t *testing.T, e *env) {
	idle, err := zkhandler.New(zkhandler.Config{Servers: e.servers, Root: e.root, Dial: e.dialer("idle")}, testClock{}, zap.NewNop(), nil)
	must(t, err)
	wantOutcome(t, idle.Commit(soon(t), write("load")), cluster.OutcomeNotSent)
	h := e.live(t, "a", nil)
	lease, primary := cluster.Key{Kind: cluster.KeyLease}, cluster.Key{Kind: cluster.KeyPrimaryNode}
	absent := cluster.Key{Kind: cluster.KeyTransition}
	for _, c := range []struct {
		name    string
		ops     []cluster.Op
		outcome cluster.Outcome
		failed  int
	}{
		{"all right", []cluster.Op{cluster.Check(lease, 0), cluster.Set(primary, 0, "hv1"), cluster.Create(absent, cluster.Transition{ID: "x"})}, cluster.OutcomeOK, -1},
		{"old version", []cluster.Op{cluster.Check(lease, 0), cluster.Set(primary, 0, "hv2")}, cluster.OutcomeConflict, 1},
		{"failed check", []cluster.Op{cluster.Check(lease, 7), cluster.Set(primary, 1, "hv2")}, cluster.OutcomeConflict, 0},
		{"exists already", []cluster.Op{cluster.Set(primary, 1, "hv2"), cluster.Create(absent, cluster.Transition{ID: "y"})}, cluster.OutcomeConflict, 1},
		{"gone", []cluster.Op{cluster.Delete(cluster.Key{Kind: cluster.KeyAlive, Node: "hv1"}, cluster.AnyVersion)}, cluster.OutcomeConflict, 0},
		{"value of a wrong type", []cluster.Op{cluster.Set(primary, 1, 17)}, cluster.OutcomeRefused, -1},
	} {
		r := h.Commit(soon(t), cluster.Txn{Purpose: c.name, Ops: c.ops})
		if r.Outcome != c.outcome || r.FailedOp != c.failed {
			t.Errorf("%s: %s at %d (%v), want %s at %d", c.name, r.Outcome, r.FailedOp, r.Err, c.outcome, c.failed)
		}
		if c.outcome == cluster.OutcomeOK && !slices.Equal(r.Versions, []int32{0, 1, 0}) {
			t.Errorf("%s: versions %v, want 0, 1, 0", c.name, r.Versions)
		}
	}
	s, err := h.Refresh(soon(t))
	must(t, err)
	if s.PrimaryNode.Value != "hv1" || s.PrimaryNode.Version != 1 || s.Transition.Value.ID != "x" {
		t.Errorf("primary %+v, transition %+v: a failed transaction left a trace", s.PrimaryNode, s.Transition)
	}
}

func lostReplyIsUnknown(t *testing.T, e *env) {
	d := &deafener{}
	h := e.live(t, "a", d.edit)
	session := h.State().Session
	d.op.Store(opMulti)
	r := h.Commit(soon(t), write("load"))
	wantOutcome(t, r, cluster.OutcomeUnknown)
	wantErr(t, r.Err, cluster.ErrUnknown)
	e.untilLive(t, h)
	got, err := h.ReadText(soon(t), selector)
	must(t, err)
	if got.Value != "load" || h.State().Session != session {
		t.Errorf("value %q in session %x; want the write to have happened, in %x", got.Value, h.State().Session, session)
	}
}

// deafener loses the reply to the next request of an operation: the frame goes
// out, nothing more is read, the connection ends.
type deafener struct{ op atomic.Int32 }

func (d *deafener) edit(c *zkhandler.Config) {
	dial := c.Dial
	c.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &deafened{Conn: conn, deafener: d}, nil
	}
}

type deafened struct {
	net.Conn
	*deafener
	xid atomic.Int32 // of the request whose reply is to be lost; 0 none
}

func (c *deafened) Write(p []byte) (int, error) {
	if len(p) >= 12 {
		if op := int32(binary.BigEndian.Uint32(p[8:])); op != 0 && c.op.CompareAndSwap(op, 0) {
			c.xid.Store(int32(binary.BigEndian.Uint32(p[4:])))
		}
	}
	return c.Conn.Write(p)
}

// Read throws everything away from the request on, and ends the connection
// when the reply has come: the request has then been carried out.
func (c *deafened) Read(p []byte) (int, error) {
	for {
		n, err := c.Conn.Read(p)
		xid := c.xid.Load()
		if err != nil || xid == 0 {
			return n, err
		}
		if bytes.Contains(p[:n], binary.BigEndian.AppendUint32(nil, uint32(xid))) {
			c.Close()
			return 0, net.ErrClosed
		}
	}
}

func wrongCredentials(t *testing.T, e *env) {
	as := func(password string) func(*zkhandler.Config) {
		return func(c *zkhandler.Config) { c.Auth = &zkhandler.Digest{User: "pvc", Password: password} }
	}
	right := e.live(t, "a", as("right"))
	wantOutcome(t, right.Commit(soon(t), write("load")), cluster.OutcomeOK)
	wrong := e.joined(t, "b", as("wrong"))
	r := wrong.Commit(soon(t), write("vms"))
	wantOutcome(t, r, cluster.OutcomeRefused)
	wantErr(t, r.Err, cluster.ErrAuth)
	_, _, err := wrong.CheckTree(soon(t))
	wantErr(t, err, cluster.ErrAuth)
	acl, _, err := e.bare(t).GetACL(e.root + "/config")
	if err == nil {
		for _, a := range acl {
			if a.Scheme == "world" {
				t.Errorf("a record made with credentials is open to %+v", a)
			}
		}
	}
	got, err := right.ReadText(soon(t), selector)
	must(t, err)
	if got.Value != "load" {
		t.Errorf("value %q, want what its owner wrote", got.Value)
	}
}

func seenAtMovesWithTheRecord(t *testing.T, e *env) {
	last, wrap := cuttable()
	h := e.live(t, "a", func(c *zkhandler.Config) {
		dial := c.Dial
		c.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dial(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return wrap(conn), nil
		}
	})
	transition := cluster.Key{Kind: cluster.KeyTransition}
	commit := func(ops ...cluster.Op) {
		t.Helper()
		wantOutcome(t, h.Commit(soon(t), cluster.Txn{Purpose: "test", Ops: ops}), cluster.OutcomeOK)
	}
	look := func() cluster.Versioned[cluster.Transition] {
		t.Helper()
		s, err := h.Refresh(soon(t))
		must(t, err)
		return s.Transition
	}
	commit(cluster.Create(transition, cluster.Transition{ID: "x"}))
	first := look()
	if now := (testClock{}).Now(); !first.Present || first.SeenAt.IsZero() || first.SeenAt.After(now) {
		t.Fatalf("first look: %+v at %d", first, now)
	}
	time.Sleep(10 * time.Millisecond)
	if again := look(); again.SeenAt != first.SeenAt {
		t.Errorf("seen at %d, then at %d: reading again is no sign of life", first.SeenAt, again.SeenAt)
	}
	session := h.State().Session
	must(t, last.Load().Close())
	eventually(t, 5*time.Second, "reconnected", func() bool {
		s, err := h.Refresh(soon(t))
		return err == nil && s.Live
	})
	if again := look(); again.SeenAt != first.SeenAt || h.State().Session != session {
		t.Errorf("seen at %d, after a reconnect at %d: that is no sign of life", first.SeenAt, again.SeenAt)
	}
	commit(cluster.Delete(transition, 0), cluster.Create(transition, cluster.Transition{ID: "x"}))
	if reborn := look(); reborn.Version != 0 || !reborn.SeenAt.After(first.SeenAt) || reborn.Mzxid <= first.Mzxid {
		t.Errorf("first %+v, re-created %+v: the same version of another znode must count as new", first, reborn)
	}
	commit(cluster.Delete(transition, 0))
	if gone := look(); gone.Present {
		t.Errorf("deleted, and still there: %+v", gone)
	}
}

func watchedChangesArePublished(t *testing.T, e *env) {
	h, c := e.live(t, "a", func(c *zkhandler.Config) { c.Resync = time.Hour }), e.bare(t)
	must(t, h.EnsureNode(soon(t), "hv1", cluster.Coordinator))
	snapshots, cancel := h.Subscribe()
	defer cancel()
	primary(t, snapshots, cluster.NoNode)
	_, err := c.Set(e.root+"/config/primary_node", []byte("hv1"), -1)
	must(t, err)
	primary(t, snapshots, "hv1")
	_, err = c.Set(e.root+"/nodes/hv1/daemonstate", []byte("run"), -1)
	must(t, err)
	limit := time.After(patience)
	for {
		select {
		case s := <-snapshots:
			if s.Nodes["hv1"].Daemon.Value == cluster.DaemonRun {
				return
			}
		case <-limit:
			t.Fatal("a node's changed state was not published")
		}
	}
}

// An operator's order reaches everybody, and so does its end. A tree from before
// there were orders gets their folders with the next node that registers.
func fenceOrdersComeAndGo(t *testing.T, e *env) {
	h, c := e.live(t, "a", func(c *zkhandler.Config) { c.Resync = time.Hour }), e.bare(t)
	for _, folder := range []string{"/agent/fence-orders", "/agent/fence-tests"} {
		must(t, c.Delete(e.root+folder, -1))
	}
	must(t, h.EnsureNode(soon(t), "hv1", cluster.Coordinator))
	must(t, h.EnsureNode(soon(t), "hv2", cluster.Coordinator))
	snapshots, cancel := h.Subscribe()
	defer cancel()
	until := func(what string, ok func(cluster.Versioned[cluster.FenceOrder]) bool) (last cluster.Versioned[cluster.FenceOrder]) {
		t.Helper()
		limit := time.After(patience)
		for {
			select {
			case s := <-snapshots:
				if last = s.Nodes["hv1"].Order; ok(last) {
					return last
				}
			case <-limit:
				t.Fatalf("%s: %+v", what, last)
			}
		}
	}
	key := cluster.Key{Kind: cluster.KeyFenceOrder, Node: "hv1"}
	order := cluster.FenceOrder{Version: 1, ID: "o1", Node: "hv1", Incarnation: "b.1", Action: cluster.OrderConfirm, Reason: "unplugged", By: "ada", UnixMS: 7}
	wantOutcome(t, h.Commit(soon(t), cluster.Txn{Purpose: "order", Ops: []cluster.Op{cluster.Create(key, order)}}), cluster.OutcomeOK)
	seen := until("the order is not seen", func(o cluster.Versioned[cluster.FenceOrder]) bool { return o.Present })
	if seen.Value != order || seen.Err != nil {
		t.Errorf("%+v", seen)
	}
	_, err := c.Set(e.root+"/agent/fence-orders/hv1", []byte(`{"v":1,"id":"o2","node":"hv1"}`), -1)
	must(t, err)
	seen = until("an order without an action is taken", func(o cluster.Versioned[cluster.FenceOrder]) bool { return o.Err != nil })
	if !seen.Present || seen.Value != (cluster.FenceOrder{}) || seen.Version != 1 {
		t.Errorf("%+v", seen)
	}
	commit := func(op cluster.Op, want cluster.Outcome) {
		t.Helper()
		wantOutcome(t, h.Commit(soon(t), cluster.Txn{Purpose: "order", Ops: []cluster.Op{op}}), want)
	}
	commit(cluster.EndOrder("hv1", seen), cluster.OutcomeOK)
	ended := until("its end is not seen", func(o cluster.Versioned[cluster.FenceOrder]) bool { return !o.Present })
	if ended.Err != nil || ended.Value != (cluster.FenceOrder{}) || ended.Version != 2 || ended.Mzxid == 0 {
		t.Errorf("emptied: %+v", ended)
	}
	commit(cluster.Put(key, ended, order), cluster.OutcomeOK)
	again := until("the next order is not seen", func(o cluster.Versioned[cluster.FenceOrder]) bool { return o.Present })
	if again.Value != order || again.Version != 3 {
		t.Errorf("the next: %+v", again)
	}
	commit(cluster.EndOrder("hv1", seen), cluster.OutcomeConflict) // a late answer to the first
	commit(cluster.EndOrder("hv1", again), cluster.OutcomeOK)
	until("the second end is not seen", func(o cluster.Versioned[cluster.FenceOrder]) bool { return !o.Present && o.Version == 4 })
	must(t, c.Delete(e.root+"/agent/fence-orders/hv1", -1)) // as earlier programs end an order
	gone := until("its deletion is not seen", func(o cluster.Versioned[cluster.FenceOrder]) bool { return !o.Present && o.Mzxid == 0 })
	commit(cluster.Put(key, gone, order), cluster.OutcomeOK)
	first := until("an order where none was is not seen", func(o cluster.Versioned[cluster.FenceOrder]) bool { return o.Present })
	commit(cluster.Delete(key, first.Version), cluster.OutcomeOK)
	until("its end is not seen", func(o cluster.Versioned[cluster.FenceOrder]) bool { return !o.Present })
	tests := cluster.Key{Kind: cluster.KeyFenceTests, Node: "hv1"}
	wantOutcome(t, h.Commit(soon(t), cluster.Txn{Purpose: "tests", Ops: []cluster.Op{cluster.Create(tests, cluster.FenceTests{By: "hv2"})}}), cluster.OutcomeOK)
	if text, err := h.ReadText(soon(t), tests); err != nil || text.Value != `{"v":1,"unix_ms":0,"by":"hv2","epoch":0,"devices":null}` {
		t.Errorf("%+v %v", text, err)
	}
}

func endOfRunEndsEphemerals(t *testing.T, e *env) {
	h, stop := e.start(t, "a", nil)
	e.untilLive(t, h)
	must(t, h.Initialize(soon(t), "demo", false))
	wantOutcome(t, h.Commit(soon(t), register("hv1")), cluster.OutcomeOK)
	c := e.bare(t)
	_, err := c.Sync(e.root)
	must(t, err)
	exists, _, gone, err := c.ExistsW(e.root + "/agent/alive/hv1")
	must(t, err)
	if !exists {
		t.Fatal("the alive record is not there")
	}
	stop()
	if ev := within(t, gone, time.Second); ev.Type != zk.EventNodeDeleted {
		t.Errorf("event %v, want the deletion at once, not at the session's time-out", ev)
	}
	wantOutcome(t, h.Commit(soon(t), write("load")), cluster.OutcomeNotSent)
}

// queued waits until the role lock has so many children.
func (e *env) queued(t *testing.T, c *zk.Conn, n int) []string {
	t.Helper()
	var names []string
	eventually(t, 5*time.Second, fmt.Sprintf("%d lock children", n), func() bool {
		all, _, err := c.Children(e.root + "/config/primary_node")
		must(t, err)
		names = slices.DeleteFunc(all, func(n string) bool { return !strings.Contains(n, "__lock__") })
		return len(names) == n
	})
	return names
}

func (e *env) lockAs(t *testing.T, h *zkhandler.Handler, node cluster.NodeID) <-chan cluster.LockChild {
	got := make(chan cluster.LockChild, 1)
	ctx := soon(t)
	go func() {
		defer close(got)
		child, err := h.Lock(ctx, cluster.KeyRoleLockChild, cluster.LockOwner{Node: node, Incarnation: "x.1"})
		if err != nil {
			t.Errorf("lock of %s: %v", node, err)
			return
		}
		got <- child
	}()
	return got
}

func notYet(t *testing.T, got <-chan cluster.LockChild, why string) {
	t.Helper()
	select {
	case child := <-got:
		t.Fatalf("%s got the lock %s", child.Name, why)
	case <-time.After(100 * time.Millisecond):
	}
}

func granted(t *testing.T, got <-chan cluster.LockChild) cluster.LockChild {
	t.Helper()
	select {
	case child := <-got:
		return child
	case <-time.After(patience):
		t.Fatalf("the lock was not granted within %s", patience)
		return cluster.LockChild{}
	}
}

func lockQueueOrder(t *testing.T, e *env) {
	c := e.bare(t)
	names := []cluster.NodeID{"hv1", "hv2", "hv3"}
	var handlers []*zkhandler.Handler
	var waiting []<-chan cluster.LockChild
	for i, name := range names {
		h := e.live(t, string(name), nil)
		handlers = append(handlers, h)
		waiting = append(waiting, e.lockAs(t, h, name))
		e.queued(t, c, i+1) // so that they queue in this order, whatever their random names
	}
	last := int64(-1)
	for i := range names {
		child := granted(t, waiting[i])
		if child.Owner.Node != names[i] || child.Seq <= last || child.Session != handlers[i].State().Session {
			t.Errorf("place %d: %+v", i, child)
		}
		last = child.Seq
		for _, other := range waiting[i+1:] {
			notYet(t, other, "behind "+child.Name)
		}
		must(t, handlers[i].Unlock(soon(t), cluster.KeyRoleLockChild, child))
		must(t, handlers[i].Unlock(soon(t), cluster.KeyRoleLockChild, child)) // gone already is no error
	}
	e.queued(t, c, 0)
}

func foreignLockChild(t *testing.T, e *env) {
	h, c := e.live(t, "a", nil), e.bare(t)
	// As kazoo makes it; "z" sorts behind ours by name and before it by number.
	foreign, err := c.Create(e.root+"/config/primary_node/"+strings.Repeat("z", 32)+"__lock__", []byte("host-1"), zk.FlagEphemeral|zk.FlagSequence, openACL)
	must(t, err)
	got := e.lockAs(t, h, "hv1")
	e.queued(t, c, 2)
	notYet(t, got, "before a foreign client that came first")
	s, err := h.Refresh(soon(t))
	must(t, err)
	if len(s.RoleLock) != 2 || !s.RoleLock[0].Foreign || s.RoleLock[1].Foreign || s.RoleLock[0].Session != c.SessionID() {
		t.Errorf("queue %+v, want the foreign child of session %x, then ours", s.RoleLock, c.SessionID())
	}
	wantErr(t, h.Unlock(soon(t), cluster.KeyRoleLockChild, s.RoleLock[0]), cluster.ErrRefused)
	if exists, _, err := c.Exists(foreign); err != nil || !exists {
		t.Fatalf("the foreign child: %v %v, want it kept", exists, err)
	}
	must(t, c.Delete(foreign, -1))
	granted(t, got)
}

func lockSurvivesLostReply(t *testing.T, e *env) {
	d := &deafener{}
	h, c := e.live(t, "a", d.edit), e.bare(t)
	d.op.Store(opCreate)
	child := granted(t, e.lockAs(t, h, "hv1"))
	if d.op.Load() != 0 {
		t.Fatal("no reply was lost")
	}
	if names := e.queued(t, c, 1); names[0] != child.Name {
		t.Errorf("children %q, want %s alone: a lost reply must not leave an orphan", names, child.Name)
	}
}

func lockGivesUp(t *testing.T, e *env) {
	a, b, c := e.live(t, "a", nil), e.live(t, "b", nil), e.bare(t)
	held := granted(t, e.lockAs(t, a, "hv1"))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	from := time.Now()
	_, err := b.Lock(ctx, cluster.KeyRoleLockChild, cluster.LockOwner{Node: "hv2", Incarnation: "x.1"})
	wantErr(t, err, cluster.ErrLockTimeout)
	if took := time.Since(from); took > 10*time.Second {
		t.Errorf("gave up after %s, want about 300ms", took)
	}
	if names := e.queued(t, c, 1); names[0] != held.Name {
		t.Errorf("children %q, want the holder's alone", names)
	}
}

// TestRandomScriptsRunAlike runs the same random operations against both and
// compares every reply: data, errors, versions, counters, and the order (not
// the values) of all transaction ids.
func TestRandomScriptsRunAlike(t *testing.T) {
	servers := zkreal.Start(t, 3).Servers()
	for seed := range uint64(20) {
		var scripts [2][]string
		synctest.Test(t, func(t *testing.T) { scripts[0] = playScript(t, newFake(t), seed) })
		scripts[1] = playScript(t, newReal(t, servers, fmt.Sprintf("/script%d", seed)), seed)
		for i := range scripts[0] {
			if scripts[0][i] != scripts[1][i] {
				t.Errorf("seed %d, step %d:\n memory   %s\n ensemble %s", seed, i, scripts[0][i], scripts[1][i])
				break
			}
		}
	}
}

// script plays random operations and keeps what came back.
type script struct {
	e     *env
	c     *zk.Conn
	rng   *rand.Rand
	lines []string
	stats []*zk.Stat

	mu     sync.Mutex
	events []string // since the last step; they arrive before the reply that follows them
}

func playScript(t *testing.T, e *env, seed uint64) []string {
	s := &script{e: e, rng: rand.New(rand.NewPCG(seed, 1))}
	live := make(chan struct{}, 8)
	s.c = e.open(t, "script", time.Hour, nil, func(ev zk.Event) {
		if ev.State == zk.StateHasSession {
			live <- struct{}{}
		}
		if ev.Type != zk.EventSession {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.events = append(s.events, fmt.Sprintf("%s %s", ev.Type, ev.Path))
		}
	})
	<-live
	for range 200 {
		s.step()
	}
	rank := s.ranks()
	lines := make([]string, len(s.lines))
	for i, line := range s.lines {
		lines[i] = strings.ReplaceAll(line, e.root, "")
		if st := s.stats[i]; st != nil {
			lines[i] += fmt.Sprintf(" c%d m%d p%d v%d cv%d av%d eph%v len%d kids%d", rank[st.Czxid], rank[st.Mzxid],
				rank[st.Pzxid], st.Version, st.Cversion, st.Aversion, st.EphemeralOwner != 0, st.DataLength, st.NumChildren)
		}
	}
	return lines
}

func (s *script) ranks() map[int64]int {
	var zxids []int64
	for _, st := range s.stats {
		if st != nil {
			zxids = append(zxids, st.Czxid, st.Mzxid, st.Pzxid)
		}
	}
	slices.Sort(zxids)
	rank := map[int64]int{}
	for i, z := range slices.Compact(zxids) {
		rank[z] = i
	}
	return rank
}

func (s *script) path() string {
	p := s.e.root
	for range 1 + s.rng.IntN(3) {
		p += "/" + string(rune('a'+s.rng.IntN(3)))
	}
	return p
}

func (s *script) version() int32 { return int32(s.rng.IntN(4)) - 1 }

func (s *script) keep(st *zk.Stat, format string, args ...any) {
	if st != nil && st.Czxid == 0 {
		st = nil
	}
	s.mu.Lock()
	events := s.events
	s.events = nil
	s.mu.Unlock()
	s.lines = append(s.lines, fmt.Sprintf(format, args...)+fmt.Sprintf(" %q", events))
	s.stats = append(s.stats, st)
}

func (s *script) step() {
	p := s.path()
	switch s.rng.IntN(12) {
	case 9:
		ok, st, _, err := s.c.ExistsW(p)
		s.keep(st, "exists and watch %s: %v %v", p, ok, err)
	case 10:
		data, st, _, err := s.c.GetW(p)
		s.keep(st, "get and watch %s: %q %v", p, data, err)
	case 11:
		names, st, _, err := s.c.ChildrenW(p)
		sort.Strings(names)
		s.keep(st, "children and watch %s: %q %v", p, names, err)
	case 0, 1:
		flags := int32(s.rng.IntN(4))
		name, err := s.c.Create(p, []byte(p[len(p)-1:]), flags, openACL)
		s.keep(nil, "create %s %d: %s %v", p, flags, name, err)
	case 2:
		v := s.version()
		st, err := s.c.Set(p, []byte{byte('0' + v)}, v)
		s.keep(st, "set %s %d: %v", p, v, err)
	case 3:
		v := s.version()
		s.keep(nil, "delete %s %d: %v", p, v, s.c.Delete(p, v))
	case 4:
		ok, st, err := s.c.Exists(p)
		s.keep(st, "exists %s: %v %v", p, ok, err)
	case 5:
		data, st, err := s.c.Get(p)
		s.keep(st, "get %s: %q %v", p, data, err)
	case 6:
		names, st, err := s.c.Children(p)
		sort.Strings(names)
		s.keep(st, "children %s: %q %v", p, names, err)
	default:
		s.multi()
	}
}

func (s *script) multi() {
	var ops []any
	var text []string
	for range 1 + s.rng.IntN(4) {
		p, v := s.path(), s.version()
		switch s.rng.IntN(4) {
		case 0:
			ops = append(ops, &zk.CreateRequest{Path: p, Acl: openACL, Flags: int32(s.rng.IntN(4))})
		case 1:
			ops = append(ops, &zk.SetDataRequest{Path: p, Data: []byte("m"), Version: v})
		case 2:
			ops = append(ops, &zk.DeleteRequest{Path: p, Version: v})
		case 3:
			ops = append(ops, &zk.CheckVersionRequest{Path: p, Version: v})
		}
		text = append(text, fmt.Sprintf("%s %s %d", reflect.TypeOf(ops[len(ops)-1]).Elem().Name(), p, v))
	}
	results, err := s.c.Multi(ops...)
	for _, r := range results {
		text = append(text, fmt.Sprintf("%q %v", r.String, r.Error))
		if r.Stat != nil {
			text = append(text, fmt.Sprintf("v%d cv%d kids%d", r.Stat.Version, r.Stat.Cversion, r.Stat.NumChildren))
		}
	}
	s.keep(nil, "multi %s: %v", strings.Join(text, "; "), err)
}
