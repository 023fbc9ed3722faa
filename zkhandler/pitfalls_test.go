package zkhandler_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"runtime/debug"
	"slices"
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
	"pvc.internal/zkhandler/zktest"
)

// These tests hold zkhandler to ten failures of the client library that would
// break the cluster. Where that is possible each plants the fault twice: under
// the bare library, to show that it is real and that the test would see it, and
// under zkhandler.

// inFake runs the test in a bubble over an ensemble in memory.
func inFake(t *testing.T, opts zktest.Options, run func(t *testing.T, e *env)) {
	synctest.Test(t, func(t *testing.T) {
		if opts.TickTime == 0 {
			opts.TickTime = realTick
		}
		srv := zktest.New(opts)
		t.Cleanup(srv.Close)
		srv.Set("/case", nil)
		run(t, &env{servers: srv.Servers(), tick: opts.TickTime, fake: srv, root: "/case"})
	})
}

// testClock reads the time package, which is virtual in a bubble.
type testClock struct{}

func (testClock) Now() cluster.Instant { return cluster.Instant(time.Now().UnixNano()) }

// start runs a Handler over the case's root until stop, or the test's end.
func (e *env) start(t *testing.T, client string, edit func(*zkhandler.Config)) (h *zkhandler.Handler, stop func()) {
	t.Helper()
	config := zkhandler.Config{Servers: e.servers, Root: e.root, SessionTimeout: 3 * time.Second,
		Dial: e.dialer(client), WatchNodes: true}
	if e.fake == nil { // real servers on a busy machine
		config.SessionTimeout, config.RequestTimeout = 12*time.Second, 4*time.Second
	}
	if edit != nil {
		edit(&config)
	}
	h, err := zkhandler.New(config, testClock{}, zap.NewNop(), nil)
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := h.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	}()
	stop = func() {
		cancel()
		<-ended
	}
	t.Cleanup(stop)
	return h, stop
}

// joined is a handler with a session; whether there is a tree is open.
func (e *env) joined(t *testing.T, client string, edit func(*zkhandler.Config)) *zkhandler.Handler {
	t.Helper()
	h, _ := e.start(t, client, edit)
	e.untilLive(t, h)
	return h
}

// live is a handler that has a session and a tree.
func (e *env) live(t *testing.T, client string, edit func(*zkhandler.Config)) *zkhandler.Handler {
	t.Helper()
	h := e.joined(t, client, edit)
	ctx := soon(t)
	if _, initialised, err := h.CheckTree(ctx); err != nil || !initialised {
		must(t, h.Initialize(ctx, "test", false))
	}
	return h
}

func (e *env) untilLive(t *testing.T, h *zkhandler.Handler) {
	t.Helper()
	eventually(t, 20*time.Second, "the session is live", func() bool { return h.State().Phase == zkhandler.Live })
}

func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// selector is a text record that every tree has, for writes that are about
// the writing.
var selector = cluster.Key{Kind: cluster.KeySelector}

func write(value string) cluster.Txn {
	return cluster.Txn{Purpose: "test", Ops: []cluster.Op{cluster.Set(selector, cluster.AnyVersion, value)}}
}

func register(node cluster.NodeID) cluster.Txn {
	return cluster.Txn{Purpose: "test", Ops: []cluster.Op{{Kind: cluster.OpCreateEphemeral,
		Key:   cluster.Key{Kind: cluster.KeyAlive, Node: node},
		Value: cluster.Alive{Version: 1, Incarnation: "boot.1", BootID: "boot", Host: string(node)}}}}
}

func wantOutcome(t *testing.T, r cluster.TxnResult, want cluster.Outcome) {
	t.Helper()
	if r.Outcome != want {
		t.Fatalf("outcome %s (%v), want %s", r.Outcome, r.Err, want)
	}
}

// snag makes the connections of one client stick in the write of a chosen
// request: the frame goes out, but the write returns, with an error, only when
// the test lets it, and closes the connection.
type snag struct {
	op      atomic.Int32 // operation to stick in; 0 none
	stuck   chan struct{}
	release chan struct{}
}

func newSnag() *snag { return &snag{stuck: make(chan struct{}), release: make(chan struct{})} }

func (s *snag) wrap(c net.Conn) net.Conn { return &snagged{Conn: c, snag: s} }

func (s *snag) dial(dial func(context.Context, string, string) (net.Conn, error)) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return s.wrap(c), nil
	}
}

type snagged struct {
	net.Conn
	*snag
}

const (
	opCreate = 1
	opMulti  = 14
	opAuth   = 100
)

func (c *snagged) Write(p []byte) (int, error) {
	hit := false
	if len(p) >= 12 {
		op := int32(binary.BigEndian.Uint32(p[8:]))
		hit = op != 0 && c.op.CompareAndSwap(op, 0)
	}
	n, err := c.Conn.Write(p)
	if hit {
		close(c.stuck)
		<-c.release
		c.Close()
		time.Sleep(time.Millisecond) // virtual: the library's reader ends first, so that its queue is kept
		return n, net.ErrClosed
	}
	return n, err
}

// 1

func TestAnswersOfACutOffFollowerAreNotTakenForLife(t *testing.T) {
	opts := zktest.Options{TickTime: 500 * time.Millisecond, SyncLimit: 12}
	inFake(t, opts, func(t *testing.T, e *env) {
		follower := e.servers[2]
		only := &env{servers: []string{follower}, tick: e.tick, fake: e.fake, root: e.root}
		bare := only.connect(t, "bare", 3*time.Second, nil)
		_, err := bare.Create("/case/mine", nil, zk.FlagEphemeral, openACL)
		must(t, err)
		h := only.live(t, "ours", nil)
		wantOutcome(t, h.Commit(t.Context(), register("hv1")), cluster.OutcomeOK)

		e.fake.CutFollower(follower)
		eventually(t, 5*time.Second, "the leader expires both sessions", func() bool {
			if _, err := h.ReadText(t.Context(), selector); err != nil {
				t.Fatalf("the fault was not planted: a read through the cut-off follower failed: %v", err)
			}
			return len(e.fake.Sessions("bare")) == 0 && len(e.fake.Sessions("ours")) == 0
		})
		if mine, _, err := bare.Exists("/case/mine"); err != nil || !mine {
			t.Fatalf("contrast: the bare library reads its own ephemeral as %v, %v; it should be deceived", mine, err)
		}
		state := h.State()
		if sure := state.LastWrite.Add(state.Granted); state.LastWrite.IsZero() || sure.After(testClock{}.Now()) {
			t.Errorf("last acknowledged write at %d promises a session that has ended: reads have counted as life", state.LastWrite)
		}
		if r := h.Commit(t.Context(), write("load")); r.Outcome == cluster.OutcomeOK {
			t.Errorf("a write through a cut-off follower came back as %s", r.Outcome)
		}
		time.Sleep(time.Millisecond)
		if phase := h.State().Phase; phase == zkhandler.Live {
			t.Errorf("%s by a server that did not answer a write", phase)
		}
	})
}

// 2

func TestLockIsNeverHeldByTwoAfterASessionEndedWhileQueueing(t *testing.T) {
	t.Run("library", func(t *testing.T) {
		inFake(t, zktest.Options{}, func(t *testing.T, e *env) {
			s := newSnag()
			a := e.connect(t, "a", 2*time.Second, s.wrap)
			b := e.connect(t, "b", 2*time.Second, nil)
			_, err := a.Create("/case/lock", nil, 0, openACL)
			must(t, err)
			s.op.Store(opCreate)
			got := make(chan error, 1)
			go func() { got <- zk.NewLock(a, "/case/lock", openACL).Lock() }()
			e.loseSessionAtSnag(t, s, func() { must(t, zk.NewLock(b, "/case/lock", openACL).Lock()) })
			select {
			case err := <-got:
				if err != nil || len(e.fake.Children("/case/lock")) != 1 {
					t.Fatalf("contrast: the library's lock said %v with children %q; it should grant it twice", err, e.fake.Children("/case/lock"))
				}
			case <-time.After(time.Minute):
				t.Fatal("contrast: the library's second lock waits; it should be granted")
			}
		})
	})
	t.Run("zkhandler", func(t *testing.T) {
		inFake(t, zktest.Options{}, func(t *testing.T, e *env) {
			s := newSnag()
			a := e.live(t, "a", func(c *zkhandler.Config) { c.Dial = s.dial(c.Dial) })
			b := e.live(t, "b", nil)
			s.op.Store(opCreate)
			var held sync.Mutex // stands for what the lock protects
			got := make(chan error, 1)
			go func() {
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				defer cancel()
				_, err := a.Lock(ctx, cluster.KeyRoleLockChild, cluster.LockOwner{Version: 1, Node: "a", Incarnation: "x.1"})
				if err == nil && !held.TryLock() {
					err = errors.New("granted while the other holds it")
				}
				got <- err
			}()
			var child cluster.LockChild
			e.loseSessionAtSnag(t, s, func() {
				var err error
				child, err = b.Lock(soon(t), cluster.KeyRoleLockChild, cluster.LockOwner{Version: 1, Node: "b", Incarnation: "y.1"})
				must(t, err)
				held.Lock()
			})
			time.Sleep(5 * time.Second)
			select {
			case err := <-got:
				if err == nil || strings.Contains(err.Error(), "granted") {
					t.Fatalf("Lock returned %v while the other holds it", err)
				}
			default: // still in the queue, in a new session: right as well
				held.Unlock()
				must(t, b.Unlock(soon(t), cluster.KeyRoleLockChild, child))
				must(t, <-got)
			}
		})
	})
}

// loseSessionAtSnag waits until client "a" is stuck, ends its session while it
// is cut off, lets the other act, and brings "a" back.
func (e *env) loseSessionAtSnag(t *testing.T, s *snag, act func()) {
	t.Helper()
	<-s.stuck
	synctest.Wait()
	e.fake.Partition("a")
	close(s.release)
	synctest.Wait()
	e.fake.Expire("a")
	act()
	e.fake.Heal("a")
}

// 3

func TestRequestsQueuedInAnOutageNeverRunInALaterSession(t *testing.T) {
	t.Run("library", func(t *testing.T) {
		inFake(t, zktest.Options{}, func(t *testing.T, e *env) {
			s := newSnag()
			a := e.connect(t, "a", 2*time.Second, s.wrap)
			old := a.SessionID()
			s.op.Store(opCreate)
			go a.Create("/case/first", nil, 0, openACL)
			done := make(chan error, 1)
			e.loseSessionAtSnag(t, s, func() {
				go func() {
					_, err := a.Create("/case/mine", nil, zk.FlagEphemeral, openACL)
					done <- err
				}()
				synctest.Wait()
			})
			must(t, <-done)
			if stat, ok := e.fake.Stat("/case/mine"); !ok || stat.EphemeralOwner == old {
				t.Fatal("contrast: the library should have run the old session's request in the new one")
			}
		})
	})
	t.Run("zkhandler", func(t *testing.T) {
		inFake(t, zktest.Options{}, func(t *testing.T, e *env) {
			s := newSnag()
			a := e.live(t, "a", func(c *zkhandler.Config) { c.Dial = s.dial(c.Dial) })
			s.op.Store(opMulti)
			first := make(chan cluster.TxnResult, 1)
			go func() { first <- a.Commit(context.Background(), write("load")) }()
			<-s.stuck
			// Ten, because the library may throw away each of those that wait.
			queued := make(chan cluster.TxnResult, 10)
			for i := range cap(queued) {
				go func() { queued <- a.Commit(context.Background(), register(cluster.NodeID(fmt.Sprint("hv", i)))) }()
			}
			e.loseSessionAtSnag(t, s, func() {})
			<-first
			for range cap(queued) {
				if r := <-queued; r.Outcome != cluster.OutcomeUnknown && r.Outcome != cluster.OutcomeNotSent {
					t.Errorf("outcome %s (%v), want unknown or not sent", r.Outcome, r.Err)
				}
			}
			e.untilLive(t, a)
			time.Sleep(time.Minute)
			if names := e.fake.Children("/case/agent/alive"); len(names) != 0 {
				t.Errorf("the old session's request made %q in a later one", names)
			}
			wantOutcome(t, a.Commit(t.Context(), register("hv1")), cluster.OutcomeOK)
		})
	})
}

// TestRequestsLeftBehindAreNotSentByALaterConnection: the library sends what
// its queue kept over a disconnect when the same session is back, long after
// the caller has been told that the outcome is unknown. An old renewal of a
// lease would then be carried out behind its holder's back.
func TestRequestsLeftBehindAreNotSentByALaterConnection(t *testing.T) {
	outage := func(e *env, s *snag) {
		<-s.stuck
		synctest.Wait()
		e.fake.Partition("a")
		close(s.release)
		time.Sleep(1500 * time.Millisecond)
		e.fake.Heal("a")
	}
	t.Run("library", func(t *testing.T) {
		inFake(t, zktest.Options{}, func(t *testing.T, e *env) {
			s := newSnag()
			a := e.connect(t, "a", 4*time.Second, s.wrap)
			session := a.SessionID()
			s.op.Store(opCreate)
			go a.Create("/case/first", nil, 0, openACL)
			go func() {
				<-s.stuck
				a.Create("/case/late", nil, 0, openACL)
			}()
			outage(e, s)
			eventually(t, 5*time.Second, "contrast: the library sends what was left behind", func() bool {
				_, ok := e.fake.Get("/case/late")
				return ok && a.SessionID() == session
			})
		})
	})
	t.Run("zkhandler", func(t *testing.T) {
		inFake(t, zktest.Options{}, func(t *testing.T, e *env) {
			s := newSnag()
			a := e.live(t, "a", func(c *zkhandler.Config) {
				c.SessionTimeout = 4 * time.Second
				c.Dial = s.dial(c.Dial)
			})
			session := a.State().Session
			s.op.Store(opMulti)
			go a.Commit(context.Background(), write("load"))
			queued := make(chan cluster.TxnResult, 10)
			for i := range cap(queued) {
				go func() {
					<-s.stuck
					queued <- a.Commit(context.Background(), register(cluster.NodeID(fmt.Sprint("hv", i))))
				}()
			}
			outage(e, s)
			for range cap(queued) {
				wantNotOK(t, <-queued)
			}
			e.untilLive(t, a)
			time.Sleep(10 * time.Second)
			if names := e.fake.Children("/case/agent/alive"); len(names) != 0 || a.State().Session != session {
				t.Errorf("carried out after the outcome was given: %q (session %x, was %x)", names, a.State().Session, session)
			}
		})
	})
}

func wantNotOK(t *testing.T, r cluster.TxnResult) {
	t.Helper()
	if r.Outcome == cluster.OutcomeOK || r.Outcome == cluster.OutcomeConflict {
		t.Errorf("outcome %s (%v) for a request that never left", r.Outcome, r.Err)
	}
}

// TestRequestsWaitNowhereWhileDisconnected: what is asked for in an outage is
// refused at once, and does not happen when the outage ends.
func TestRequestsWaitNowhereWhileDisconnected(t *testing.T) {
	inFake(t, zktest.Options{}, func(t *testing.T, e *env) {
		a := e.live(t, "a", nil)
		e.fake.Outage()
		eventually(t, time.Second, "suspended", func() bool { return a.State().Phase == zkhandler.Suspended })
		from := time.Now()
		wantOutcome(t, a.Commit(t.Context(), register("hv1")), cluster.OutcomeNotSent)
		if took := time.Since(from); took > 0 {
			t.Errorf("the refusal took %s, want none", took)
		}
		e.fake.Resume()
		e.untilLive(t, a)
		time.Sleep(time.Minute)
		if names := e.fake.Children("/case/agent/alive"); len(names) != 0 {
			t.Errorf("a refused request was carried out: %q", names)
		}
	})
}

// 4

// No contrast here: the library's loop would be blocked for ever, and a bubble
// does not end before its last goroutine.
func TestWriteErrorWhileResendingCredentialsDoesNotWedgeTheClient(t *testing.T) {
	inFake(t, zktest.Options{}, func(t *testing.T, e *env) {
		s := newSnag()
		close(s.release)
		a := e.live(t, "a", func(c *zkhandler.Config) {
			c.Auth = &zkhandler.Digest{User: "pvc", Password: "secret"}
			c.Dial = s.dial(c.Dial)
		})
		wantOutcome(t, a.Commit(t.Context(), write("load")), cluster.OutcomeOK)
		session := a.State().Session
		s.op.Store(opAuth)
		e.fake.Drop("a")
		<-s.stuck
		time.Sleep(2 * time.Second)
		if state := a.State(); state.Phase != zkhandler.Live || state.Session != session {
			t.Fatalf("%s, session %x two seconds after the failed write; want live in %x", state.Phase, state.Session, session)
		}
		wantOutcome(t, a.Commit(t.Context(), write("vms")), cluster.OutcomeOK)
	})
}

// 5

func TestChangeBetweenTwoDisconnectsIsStillSeen(t *testing.T) {
	const leader = "/case/config/primary_node"
	lostRearm := func(e *env) *zktest.Rule {
		return e.fake.DropRequest("a", func(op zktest.OpInfo) bool { return op.Op == "setWatches" })
	}
	t.Run("library", func(t *testing.T) {
		if underRaceDetector() {
			t.Skip("the library reads its last zxid without a lock here, which the race detector reports")
		}
		inFake(t, zktest.Options{}, func(t *testing.T, e *env) {
			e.fake.Set(leader, []byte("hv1"))
			a := e.connect(t, "a", 4*time.Second, nil)
			session := a.SessionID()
			_, _, changed, err := a.GetW(leader)
			must(t, err)
			rule := lostRearm(e)
			e.fake.Partition("a")
			e.fake.Drop("a")
			synctest.Wait()
			go a.Get("/case") // is sent before the watches, and its reply hides the change
			synctest.Wait()
			e.fake.Set(leader, []byte("hv2"))
			e.fake.Heal("a")
			select {
			case ev := <-changed:
				t.Fatalf("contrast: the library should have lost the watch, it delivered %v", ev)
			case <-time.After(time.Minute):
			}
			if rule.Hits() != 1 || a.SessionID() != session {
				t.Fatalf("the fault was not planted: %d hits, session %x after %x", rule.Hits(), a.SessionID(), session)
			}
		})
	})
	t.Run("zkhandler", func(t *testing.T) {
		inFake(t, zktest.Options{}, func(t *testing.T, e *env) {
			a := e.live(t, "a", func(c *zkhandler.Config) { c.Resync = time.Hour })
			snapshots, cancel := a.Subscribe()
			defer cancel()
			primary(t, snapshots, cluster.NoNode)
			session := a.State().Session
			rule := lostRearm(e)
			e.fake.Drop("a")
			e.fake.Set(leader, []byte("hv2"))
			primary(t, snapshots, "hv2")
			time.Sleep(time.Second)
			e.fake.Set(leader, []byte("hv3")) // and the watch is armed again
			primary(t, snapshots, "hv3")
			if got := a.State().Session; rule.Hits() > 1 || got != session {
				t.Errorf("%d hits, session %x, want %x still", rule.Hits(), got, session)
			}
		})
	})
}

func underRaceDetector() bool {
	info, _ := debug.ReadBuildInfo()
	return info != nil && slices.ContainsFunc(info.Settings, func(s debug.BuildSetting) bool {
		return s.Key == "-race" && s.Value == "true"
	})
}

// primary waits for a live snapshot in which this node shall be primary.
func primary(t *testing.T, snapshots <-chan *cluster.Snapshot, want string) {
	t.Helper()
	last := "nothing"
	limit := time.After(5 * time.Second)
	for {
		select {
		case s := <-snapshots:
			if last = s.PrimaryNode.Value; s.Live && s.Complete && last == want {
				return
			}
		case <-limit:
			t.Fatalf("no snapshot says %q within 5s, the last said %q", want, last)
		}
	}
}

// 6

func TestHungServerDoesNotBurnTheSession(t *testing.T) {
	hang := func(e *env) { // all but the last, as seen from the ones tried first
		e.fake.ServerHang(e.servers[0])
		e.fake.ServerHang(e.servers[1])
		e.fake.Drop("a")
	}
	t.Run("library", func(t *testing.T) {
		inFake(t, zktest.Options{}, func(t *testing.T, e *env) {
			a := e.connect(t, "a", 3*time.Second, nil)
			session := a.SessionID()
			hang(e)
			time.Sleep(30 * time.Second)
			if a.SessionID() == session {
				t.Fatal("contrast: the library should have lost its session in the handshake with a hung server")
			}
		})
	})
	t.Run("zkhandler", func(t *testing.T) {
		inFake(t, zktest.Options{}, func(t *testing.T, e *env) {
			a := e.live(t, "a", nil)
			session := a.State().Session
			hang(e)
			time.Sleep(3 * time.Second)
			if state := a.State(); state.Phase != zkhandler.Live || state.Session != session || state.Server != e.servers[2] {
				t.Errorf("%s in session %x at %s after 3s, want live in %x at %s",
					state.Phase, state.Session, state.Server, session, e.servers[2])
			}
		})
	})
}

// TestServerSilentAfterFourBytesIsLeft: the library lifts its deadline once it
// has the length of the handshake's answer.
func TestServerSilentAfterFourBytesIsLeft(t *testing.T) {
	inFake(t, zktest.Options{}, func(t *testing.T, e *env) {
		a, _ := e.start(t, "a", func(c *zkhandler.Config) {
			dial := c.Dial
			c.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
				if addr != e.servers[0] {
					return dial(ctx, network, addr)
				}
				near, far := net.Pipe()
				go func() {
					defer far.Close()
					far.Read(make([]byte, 256))
					far.Write([]byte{0, 0, 0, 36})
					far.Read(make([]byte, 1)) // until the client gives up
				}()
				return near, nil
			}
		})
		time.Sleep(3 * time.Second)
		if state := a.State(); state.Phase != zkhandler.Live {
			t.Errorf("%s after 3s, want live at another server", state.Phase)
		}
	})
}

// 7

func TestPartitionedClientEndsItsSessionByItsOwnClock(t *testing.T) {
	inFake(t, zktest.Options{TickTime: 500 * time.Millisecond}, func(t *testing.T, e *env) {
		var told atomic.Bool
		bare := e.open(t, "a", 3*time.Second, nil, func(ev zk.Event) {
			if ev.State == zk.StateExpired {
				told.Store(true)
			}
		})
		_, err := bare.Create("/case/mine", nil, zk.FlagEphemeral, openACL)
		must(t, err)
		a := e.live(t, "a", nil)
		wantOutcome(t, a.Commit(t.Context(), register("hv1")), cluster.OutcomeOK)
		last := a.State().LastWrite
		e.fake.Partition("a")
		eventually(t, 10*time.Second, "the handler takes its session for lost", func() bool {
			return a.State().Phase == zkhandler.Lost
		})
		if sure := a.State().Since.Sub(last); sure > 3*time.Second+50*time.Millisecond {
			t.Errorf("lost %s after the last acknowledged write, want within the session's 3s", sure)
		}
		time.Sleep(time.Minute)
		if told.Load() {
			t.Error("contrast: the library should not have learnt of the expiry without a server")
		}
		e.fake.Heal("a")
		e.untilLive(t, a)
	})
}

// 8

func TestSessionEventsAreNotLostBehindNodeEvents(t *testing.T) {
	inFake(t, zktest.Options{}, func(t *testing.T, e *env) {
		events := e.floodedLibrary(t)
		a := e.live(t, "a", nil)
		snapshots, cancel := a.Subscribe() // nobody takes from it meanwhile
		defer cancel()
		for range 20 {
			e.fake.Set("/case/config/primary_node", []byte("hv1"))
			synctest.Wait()
		}
		e.fake.Partition("a")
		e.fake.Drop("a")
		synctest.Wait()
		for range cap(events) {
			if ev := <-events; ev.Type == zk.EventSession {
				t.Fatalf("contrast: the library should have dropped its session events, it delivered %v", ev)
			}
		}
		if phase := a.State().Phase; phase != zkhandler.Suspended {
			t.Errorf("%s right after the disconnect, want suspended", phase)
		}
		if s := <-snapshots; s.Live {
			t.Error("the latest snapshot says live after the disconnect")
		}
	})
}

// floodedLibrary is a bare client whose event channel nobody has read since
// its session began, full of node events.
func (e *env) floodedLibrary(t *testing.T) <-chan zk.Event {
	dial := e.dialer("a")
	conn, events, err := zk.Connect(e.servers, 3*time.Second, zk.WithLogger(quiet{}),
		zk.WithHostProvider(&fixedHosts{servers: e.servers}),
		zk.WithDialer(func(network, addr string, limit time.Duration) (net.Conn, error) {
			return dial(context.Background(), network, addr)
		}))
	must(t, err)
	t.Cleanup(func() {
		e.fake.Heal("a")
		conn.Close()
		for range events {
		}
	})
	for ev := range events {
		if ev.State == zk.StateHasSession {
			break
		}
	}
	e.fake.Set("/case/flood", nil)
	for range 20 {
		_, _, _, err := conn.GetW("/case/flood")
		must(t, err)
		e.fake.Set("/case/flood", nil)
		synctest.Wait()
	}
	return events
}

// 9

// No contrast here: where a Multi's encoding meets the end of the library's
// buffer inside a flag, the library brings the whole process down.
func TestRequestsOfAnySizeNeverReachTheLibrarysBufferEnd(t *testing.T) {
	inFake(t, zktest.Options{}, func(t *testing.T, e *env) {
		a := e.live(t, "a", nil)
		connections := e.fake.Connections("a")
		sizes := []int{1, 300 << 10, 500 << 10, 511 << 10}
		for near := 512<<10 - 300; near < 512<<10+40; near += 7 {
			sizes = append(sizes, near)
		}
		for _, buffer := range []int{576 << 10, 1 << 20, 1536 << 10} {
			for near := buffer - 100; near < buffer+8; near++ {
				sizes = append(sizes, near)
			}
		}
		for _, size := range append(sizes, 4<<20) {
			r := a.Commit(t.Context(), write(strings.Repeat("x", size)))
			switch {
			case size <= 500<<10:
				wantOutcome(t, r, cluster.OutcomeOK)
			case size > 512<<10:
				wantOutcome(t, r, cluster.OutcomeRefused)
				if !errors.Is(r.Err, cluster.ErrTooLarge) {
					t.Fatalf("%d bytes: %v, want %v", size, r.Err, cluster.ErrTooLarge)
				}
			case r.Outcome != cluster.OutcomeOK && r.Outcome != cluster.OutcomeRefused:
				t.Fatalf("%d bytes: %s (%v)", size, r.Outcome, r.Err)
			}
		}
		if state := a.State(); state.Phase != zkhandler.Live || e.fake.Connections("a") != connections {
			t.Errorf("%s: a request was large enough to cost the connection", state.Phase)
		}
	})
}

// TestLockSurvivesAChildThatCrashesTheLibrary: a child "_c_x" is a slice out
// of range in the library's own recipe when a create's reply is lost.
func TestLockSurvivesAChildThatCrashesTheLibrary(t *testing.T) {
	inFake(t, zktest.Options{}, func(t *testing.T, e *env) {
		a := e.live(t, "a", nil)
		e.fake.Set("/case/config/primary_node/_c_x", nil)
		rule := e.fake.DropReply("a", func(op zktest.OpInfo) bool {
			return op.Op == "create" && op.TouchesBelow("/case/config/primary_node/")
		})
		child, err := a.Lock(soon(t), cluster.KeyRoleLockChild, cluster.LockOwner{Version: 1, Node: "a", Incarnation: "x.1"})
		must(t, err)
		if rule.Hits() != 1 {
			t.Fatalf("the reply was not lost: %d hits", rule.Hits())
		}
		names := e.fake.Children("/case/config/primary_node")
		ours := slices.DeleteFunc(names, func(n string) bool { return !strings.Contains(n, "__lock__") })
		if len(ours) != 1 || ours[0] != child.Name {
			t.Errorf("lock children %q, want %s alone: a lost reply must not leave an orphan", ours, child.Name)
		}
	})
}

// 10

func TestAppliedMultiWithAnUnreadableReplyIsUnknown(t *testing.T) {
	onBoth(t, []conformanceCase{{"ContrastWithTheLibrary", func(t *testing.T, e *env) {
		bare := e.connect(t, "bare", 3*time.Second, nil)
		_, err := bare.Multi(&zk.CreateRequest{Path: e.root + "/box", Acl: openACL, Flags: 4})
		if !errors.Is(err, zk.ErrAPIError) {
			t.Fatalf("contrast: the library should fail to decode the reply to a container create, got %v", err)
		}
		if ok, _, err := bare.Exists(e.root + "/box"); err != nil || !ok {
			t.Fatalf("contrast: the container should exist nevertheless: %v %v", ok, err)
		}
	}}})
	t.Run("zkhandler", func(t *testing.T) {
		inFake(t, zktest.Options{}, func(t *testing.T, e *env) {
			g := &garbler{}
			a := e.live(t, "a", func(c *zkhandler.Config) {
				dial := c.Dial
				c.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
					conn, err := dial(ctx, network, addr)
					if err != nil {
						return nil, err
					}
					return &garbled{Conn: conn, garbler: g}, nil
				}
			})
			g.armed.Store(true)
			wantOutcome(t, a.Commit(t.Context(), register("hv1")), cluster.OutcomeUnknown)
			if g.armed.Load() || len(e.fake.Children("/case/agent/alive")) != 1 {
				t.Fatal("the fault was not planted: no garbled reply to a create that happened")
			}
			e.untilLive(t, a)
			wantOutcome(t, a.Commit(t.Context(), write("load")), cluster.OutcomeOK)
		})
	})
}

// garbler replaces the operation type in the next reply to a multi with 19,
// which the library does not know.
type garbler struct {
	armed atomic.Bool
	xid   atomic.Int32
}

type garbled struct {
	net.Conn
	*garbler
}

func (c *garbled) Write(p []byte) (int, error) {
	if len(p) > 12 && binary.BigEndian.Uint32(p[8:]) == opMulti && c.armed.Load() {
		c.xid.Store(int32(binary.BigEndian.Uint32(p[4:])))
	}
	return c.Conn.Write(p)
}

func (c *garbled) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	// The pipe hands out at most a frame a read: 4 bytes of length, then 16 of
	// header, then the first operation's type.
	for at := range max(0, n-24) {
		xid := c.xid.Load()
		if xid != 0 && int32(binary.BigEndian.Uint32(p[at+4:])) == xid && binary.BigEndian.Uint32(p[at+20:]) == opCreate {
			p[at+23] = 19
			c.xid.Store(0)
			c.armed.Store(false)
		}
	}
	return n, err
}

// TestRefreshReadsPastALaggingFollower: a decision that follows a takeover
// must not rest on what a follower has not heard yet.
func TestRefreshReadsPastALaggingFollower(t *testing.T) {
	inFake(t, zktest.Options{}, func(t *testing.T, e *env) {
		a := e.live(t, "a", nil)
		e.fake.LagFollower(a.State().Server)
		e.fake.Set("/case/config/primary_node", []byte("hv2"))
		if got, err := a.ReadText(t.Context(), cluster.Key{Kind: cluster.KeyPrimaryNode}); err != nil || got.Value != cluster.NoNode {
			t.Fatalf("the fault was not planted: a plain read says %q, %v", got.Value, err)
		}
		s, err := a.Refresh(t.Context())
		must(t, err)
		if s.PrimaryNode.Value != "hv2" {
			t.Errorf("the refreshed view says %q, want what the leader has", s.PrimaryNode.Value)
		}
	})
}

// TestOutcomesAreTrueUnderRandomFaults lets three clients write for minutes
// under every fault there is, and then compares what each was told with what
// the ensemble has committed: ok is there once, unknown at most once, and
// everything else never.
func TestOutcomesAreTrueUnderRandomFaults(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			inFake(t, zktest.Options{}, func(t *testing.T, e *env) { outcomesAreTrue(t, e, seed) })
		})
	}
}

func outcomesAreTrue(t *testing.T, e *env, seed uint64) {
	clients := []string{"a", "b", "c"}
	told := map[string]cluster.Outcome{}
	var mu sync.Mutex
	var writers sync.WaitGroup
	stop := make(chan struct{})
	for _, name := range clients {
		h := e.live(t, name, nil)
		writers.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				case <-time.After(100 * time.Millisecond):
				}
				value := fmt.Sprintf("%s%d", name, i)
				r := h.Commit(context.Background(), write(value))
				mu.Lock()
				told[value] = r.Outcome
				mu.Unlock()
			}
		})
	}
	rng := rand.New(rand.NewPCG(seed, 2))
	for range 150 {
		time.Sleep(time.Duration(rng.IntN(2000)) * time.Millisecond)
		e.randomFault(rng, clients[rng.IntN(len(clients))])
	}
	e.healAll(clients)
	time.Sleep(20 * time.Second)
	close(stop)
	writers.Wait()
	e.compare(t, told)
}

func (e *env) randomFault(rng *rand.Rand, client string) {
	server := e.servers[rng.IntN(len(e.servers))]
	wrote := func(op zktest.OpInfo) bool { return op.Op == "multi" }
	switch rng.IntN(13) {
	case 0:
		e.fake.Partition(client)
	case 1:
		e.fake.OneWay(client, zktest.ToClient)
	case 2:
		e.fake.OneWay(client, zktest.ToServer)
	case 3:
		e.fake.Drop(client)
	case 4:
		e.fake.Expire(client)
	case 5:
		e.fake.DropReply(client, wrote)
	case 6:
		e.fake.DropRequest(client, wrote)
	case 7:
		e.fake.LateCommit(client, wrote, time.Duration(rng.IntN(5000))*time.Millisecond)
	case 8:
		e.fake.Delay(client, time.Duration(rng.IntN(500))*time.Millisecond)
	case 9:
		e.fake.Stall()
	case 10:
		e.fake.CutFollower(server)
	case 11:
		e.fake.ServerHang(server)
	case 12:
		e.fake.ServerDown(server)
	}
	if rng.IntN(3) == 0 {
		e.healAll([]string{"a", "b", "c"})
	}
}

func (e *env) healAll(clients []string) {
	for _, name := range clients {
		e.fake.Heal(name)
	}
	for _, server := range e.servers {
		e.fake.ServerUp(server)
	}
	e.fake.Resume()
}

func (e *env) compare(t *testing.T, told map[string]cluster.Outcome) {
	t.Helper()
	committed := map[string]int{}
	for _, h := range e.fake.History() {
		committed[string(h.Data)]++
	}
	count := map[cluster.Outcome]int{}
	for value, outcome := range told {
		count[outcome]++
		n := committed[value]
		switch {
		case outcome == cluster.OutcomeOK && n == 1:
		case outcome == cluster.OutcomeUnknown && n <= 1:
		case outcome == cluster.OutcomeNotSent && n == 0:
		default:
			t.Errorf("%s was told as %s and committed %d times", value, outcome, n)
		}
	}
	t.Logf("outcomes: %v", count)
	if count[cluster.OutcomeOK] == 0 || count[cluster.OutcomeUnknown] == 0 || count[cluster.OutcomeNotSent] == 0 {
		t.Errorf("outcomes %v: some kind never came up, the faults prove nothing", count)
	}
}
