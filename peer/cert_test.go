package peer_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"pvc.internal/cluster"
	"pvc.internal/peer"
	"pvc.internal/peer/peertest"
)

// spoiled are the certificates that nobody may accept, and what the side that
// refuses says of them.
var spoiled = map[string]struct {
	foreign bool // signed by another authority of the same name
	edit    func(*x509.Certificate)
	says    []string
}{
	"expired": {edit: func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) },
		says: []string{"spiffe://demo/node/hv2", "expired on", "pvc pki renew hv2"}},
	"not valid yet": {edit: func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) },
		says: []string{"valid only from", "set the clocks"}},
	"another authority": {foreign: true, edit: func(*x509.Certificate) {},
		says: []string{"pvc authority of demo", "no authority of this node", "ca.pem"}},
	"another cluster": {edit: uri("spiffe://prod/node/hv2"),
		says: []string{`of cluster "prod"`, `this node of "demo"`}},
	"another role": {edit: uri("spiffe://demo/api/hv2"),
		says: []string{`role is "api"`, "pvc pki issue"}},
	"no name": {edit: func(c *x509.Certificate) { c.URIs = nil; c.DNSNames = []string{"hv2"} },
		says: []string{"0 URIs", "spiffe://"}},
	"two names": {edit: func(c *x509.Certificate) {
		u, _ := url.Parse("spiffe://demo/node/hv1")
		c.URIs = append(c.URIs, u)
	}, says: []string{"2 URIs"}},
	"the authority's own name": {edit: uri("spiffe://demo"), says: []string{`role is ""`}},
	"a query in the name":      {edit: uri("spiffe://demo/node/hv2?x=y"), says: []string{"not of the form"}},
	"another scheme":           {edit: uri("https://demo/node/hv2"), says: []string{"not of the form"}},
}

func uri(s string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		u, err := url.Parse(s)
		if err != nil {
			panic(err)
		}
		c.URIs = []*url.URL{u}
	}
}

// badCertificate signs hv2's certificate with its edit.
func badCertificate(t *testing.T, ca, other *peertest.Authority, foreign bool, edit func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	if foreign {
		ca = other
	}
	files := ca.Files(t, "hv2", time.Now(), edit)
	pair, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

// fake answers as hv2 with any certificate, whatever is wrong with it.
func (w *world) fake(pair tls.Certificate) {
	w.t.Helper()
	l, err := w.net.Listen("hv2", "hv2:7371")
	if err != nil {
		w.t.Fatal(err)
	}
	go func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			conn := tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAnyClientCert})
			_ = conn.HandshakeContext(context.Background())
			_ = conn.Close()
		}
	}()
	w.t.Cleanup(func() { l.Close() })
}

func wants(t *testing.T, text string, all []string) {
	t.Helper()
	for _, part := range all {
		if !strings.Contains(text, part) {
			t.Errorf("%q does not say %q", text, part)
		}
	}
}

// A bad certificate at the other end: the asker names name, fault and cure.
func TestAPeerWithABadCertificateIsNotBelieved(t *testing.T) {
	cases := map[string]struct {
		foreign bool
		edit    func(*x509.Certificate)
		says    []string
	}{
		"another node": {edit: uri("spiffe://demo/node/hv3"), says: []string{"hv2 was asked and hv3 answers", "peer.advertise"}},
		"server authentication missing": {edit: func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} },
			says: []string{"both ends"}},
	}
	for name, c := range spoiled {
		cases[name] = c
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				a := w.join("hv1")
				other := peertest.NewAuthority(t, "demo", time.Now())
				w.fake(badCertificate(t, w.ca, other, c.foreign, c.edit))
				e, _ := mustFail(t, a, &member{name: "hv2", addr: "hv2:7371"}, time.Second, peer.ErrUnauthenticated)
				wants(t, e.Error(), append(c.says, "/"))
				if e.Silence() {
					t.Error("a bad certificate counts as silence")
				}
				leave(a)
			})
		})
	}
}

// A bad certificate at this end: the server refuses, says why in its log, and
// the asker learns that it was its certificate.
func TestAnAskerWithABadCertificateIsRefused(t *testing.T) {
	cases := map[string]struct {
		foreign bool
		edit    func(*x509.Certificate)
		says    []string
	}{
		"client authentication missing": {edit: func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} },
			says: []string{"both ends"}},
	}
	for name, c := range spoiled {
		cases[name] = c
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			core, logs := observer.New(zapcore.WarnLevel)
			inBubble(t, func(t *testing.T, w *world) {
				a := w.join("hv1")
				other := peertest.NewAuthority(t, "demo", time.Now())
				l, err := w.net.Listen("x", "x:1")
				if err != nil {
					t.Fatal(err)
				}
				s := peer.NewServer(peer.ServerConfig{}, a.id, nil, zap.New(core))
				done := make(chan error, 1)
				go func() { done <- s.Serve(l) }()
				raw, err := w.net.Dial("hv2")(t.Context(), "tcp", "x:1")
				if err != nil {
					t.Fatal(err)
				}
				pair := badCertificate(t, w.ca, other, c.foreign, c.edit)
				conn := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}})
				if err := conn.HandshakeContext(t.Context()); err == nil {
					_, err = conn.Read(make([]byte, 1))
					if err == nil || !strings.Contains(err.Error(), "bad certificate") {
						t.Errorf("the asker read %v", err)
					}
				}
				conn.Close()
				synctest.Wait()
				if err := errors.Join(s.Shutdown(t.Context()), <-done); err != nil {
					t.Error(err)
				}
				leave(a)
			})
			var all strings.Builder
			for _, entry := range logs.All() {
				text, _ := zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()).EncodeEntry(entry.Entry, entry.Context)
				all.WriteString(strings.ReplaceAll(text.String(), `\"`, `"`))
			}
			wants(t, all.String(), c.says)
		})
	}
}

// Over real sockets the alert must arrive before the end of the connection.
func TestAnAskerLearnsThatItsCertificateWasRefused(t *testing.T) {
	ca := peertest.NewAuthority(t, "demo", time.Now())
	_, addr := loopback(t, ca, "hv2", peer.ServerConfig{Allow: func(n cluster.NodeID) error {
		return errors.New("removed")
	}})
	id, err := peer.LoadIdentity(ca.Files(t, "hv1", time.Now()), "demo", "hv1", nil)
	if err != nil {
		t.Fatal(err)
	}
	c := peer.NewClient(id, nil)
	defer c.Close()
	for range 20 {
		_, err := c.Ask(t.Context(), "hv2", addr, peer.KindProbe, nil)
		var e *peer.Error
		if !errors.As(err, &e) || !errors.Is(err, peer.ErrUnauthenticated) || e.Silence() {
			t.Fatal(err)
		}
	}
}

func TestStrangersWithoutTLSAreNoPeer(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		a := w.join("hv1")
		l, err := w.net.Listen("hv2", "hv2:7371")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for c, err := l.Accept(); err == nil; c, err = l.Accept() {
				_, _ = c.Write([]byte("SSH-2.0-OpenSSH_9.2\r\n"))
			}
		}()
		e, _ := mustFail(t, a, &member{name: "hv2", addr: "hv2:7371"}, time.Second, peer.ErrUnauthenticated)
		wants(t, e.Error(), []string{"no TLS"})
		l.Close()
		leave(a)
	})
}

// What the files of this node itself may have wrong.
func TestWrongFilesAreRefusedAtStart(t *testing.T) {
	now := time.Now()
	ca, other := peertest.NewAuthority(t, "demo", now), peertest.NewAuthority(t, "demo", now)
	good := ca.Files(t, "hv1", now)
	second := ca.Files(t, "hv1", now)
	empty := t.TempDir() + "/empty.pem"
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		files peer.Files
		says  []string
	}{
		"no cert given":   {peer.Files{CA: good.CA, Key: good.Key}, []string{"peer.tls.cert is missing", "pvc pki issue hv1"}},
		"no such file":    {peer.Files{CA: good.CA, Cert: good.Cert, Key: "/nowhere.key"}, []string{"/nowhere.key", "peer.tls.key"}},
		"another key":     {peer.Files{CA: good.CA, Cert: good.Cert, Key: second.Key}, []string{"do not belong together", good.Cert, second.Key}},
		"empty authority": {peer.Files{CA: empty, Cert: good.Cert, Key: good.Key}, []string{empty, "no PEM certificate"}},
		"another authority": {peer.Files{CA: other.Files(t, "hv1", now).CA, Cert: good.Cert, Key: good.Key},
			[]string{good.Cert, "no authority of this node"}},
		"another node":    {ca.Files(t, "hv2", now), []string{"spiffe://demo/node/hv2", "this node is spiffe://demo/node/hv1", "pvc pki issue hv1"}},
		"another cluster": {ca.Files(t, "hv1", now, uri("spiffe://prod/node/hv1")), []string{`"prod"`}},
		"one end only": {ca.Files(t, "hv1", now, func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }),
			[]string{"both ends"}},
	} {
		_, err := peer.LoadIdentity(c.files, "demo", "hv1", nil)
		if err == nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		wants(t, err.Error(), c.says)
	}
	expired := ca.Files(t, "hv1", now.Add(-time.Hour), func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(-time.Hour), now.Add(-time.Minute) })
	if _, err := peer.LoadIdentity(expired, "demo", "hv1", func() time.Time { return now }); err != nil {
		t.Errorf("a node with an expired certificate cannot start: %v", err)
	}
}

func TestExpiryIsAFaultAtThirtySevenAndOneDays(t *testing.T) {
	now := time.Now()
	ca := peertest.NewAuthority(t, "demo", now)
	files := ca.Files(t, "hv1", now)
	id, err := peer.LoadIdentity(files, "demo", "hv1", nil)
	if err != nil {
		t.Fatal(err)
	}
	end := id.Expiry(now).NotAfter
	const day = 24 * time.Hour
	for left, want := range map[time.Duration]int{31 * day: -1, 30 * day: 30, 8 * day: 30, 7 * day: 7, 25 * time.Hour: 7, day: 1, time.Second: 1, -time.Second: 0} {
		e := id.Expiry(end.Add(-left))
		if e.Days != want || (e.Text == "") != (want < 0) {
			t.Errorf("%v before the end: %+v", left, e)
		}
		if e.Text != "" {
			wants(t, e.Text, []string{files.Cert, "pvc pki renew hv1"})
		}
	}
	// The authority may end first.
	if e := id.Expiry(now.Add(3640 * day)); e.Days != 0 {
		t.Errorf("%+v", e)
	}
}

// Renewed files are used without a restart, on connections that are open, too;
// files that do not fit are not, and it is told.
func TestFilesAreReadAnew(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		dir := t.TempDir()
		files := w.ca.WriteFiles(t, dir, "hv1", time.Now())
		id, err := peer.LoadIdentity(files, "demo", "hv1", nil)
		if err != nil {
			t.Fatal(err)
		}
		a := &member{name: "hv1", addr: "hv1:7371", id: id, client: peer.NewClient(id, w.net.Dial("hv1"))}
		w.start(a)
		b := w.join("hv2")
		mustAsk(t, a, b, time.Second)
		mustAsk(t, b, a, time.Second)

		time.Sleep(390 * 24 * time.Hour) // a week before the end
		ctx, cancel := context.WithCancel(t.Context())
		watched := make(chan struct{})
		go func() { defer close(watched); id.Run(ctx, zap.NewNop()) }()
		if e := id.Expiry(time.Now()); e.Days != 7 {
			t.Errorf("%+v", e)
		}
		key, err := os.ReadFile(files.Key)
		if err != nil {
			t.Fatal(err)
		}
		w.ca.WriteFiles(t, dir, "hv1", time.Now())
		if err := os.WriteFile(files.Key, key, 0o600); err != nil { // half copied
			t.Fatal(err)
		}
		time.Sleep(61 * time.Second)
		wants(t, id.Expiry(time.Now()).Text, []string{"do not belong together", "not in use", files.Key})
		mustAsk(t, a, b, time.Second)

		w.ca.WriteFiles(t, dir, "hv1", time.Now())
		time.Sleep(61 * time.Second)
		if e := id.Expiry(time.Now()); e.Text != "" || e.Left < 396*24*time.Hour {
			t.Errorf("%+v", e)
		}
		cancel()
		<-watched
		fresh, err := peer.LoadIdentity(w.ca.Files(t, "hv2", time.Now()), "demo", "hv2", nil)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * 24 * time.Hour) // hv2's own certificate has expired meanwhile
		e, _ := mustFail(t, a, b, time.Second, peer.ErrUnauthenticated)
		wants(t, e.Error(), []string{"spiffe://demo/node/hv2", "expired on", "pvc pki renew hv2"})
		mustFail(t, b, a, time.Second, peer.ErrUnauthenticated)
		b.client.Close()
		b.client = peer.NewClient(fresh, w.net.Dial("hv2"))
		mustAsk(t, b, a, time.Second)
		leave(a, b)
	})
}

// Whoever is removed, or whose authority is, may not use an open connection.
func TestAnOpenConnectionIsLookedAtAgain(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		var removed atomic.Bool
		dir := t.TempDir()
		files := w.ca.WriteFiles(t, dir, "hv2", time.Now())
		id, err := peer.LoadIdentity(files, "demo", "hv2", nil)
		if err != nil {
			t.Fatal(err)
		}
		a, b := w.join("hv1"), &member{name: "hv2", addr: "hv2:7371", id: id, client: peer.NewClient(id, w.net.Dial("hv2"))}
		w.start(b, func(c *peer.ServerConfig) {
			c.Allow = func(n cluster.NodeID) error {
				if removed.Load() {
					return errors.New(string(n) + " was removed from the cluster")
				}
				return nil
			}
		})
		mustAsk(t, a, b, time.Second)
		removed.Store(true)
		e, _ := mustFail(t, a, b, time.Second, peer.ErrUnauthenticated)
		wants(t, e.Error(), []string{"was removed"})
		removed.Store(false)
		mustAsk(t, a, b, time.Second)

		other := peertest.NewAuthority(t, "demo", time.Now())
		other.WriteFiles(t, dir, "hv2", time.Now())
		if changed, err := id.Reload(); !changed || err != nil {
			t.Fatal(changed, err)
		}
		e, _ = mustFail(t, a, b, time.Second, peer.ErrUnauthenticated)
		wants(t, e.Error(), []string{"no authority of this node"})
		synctest.Wait()
		leave(a, b)
	})
}

// The asker, too: a warm connection outlives no change of its own files and no
// end of the other's certificate.
func TestAWarmConnectionIsLookedAtAgain(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		dir := t.TempDir()
		id, err := peer.LoadIdentity(w.ca.WriteFiles(t, dir, "hv1", time.Now()), "demo", "hv1", nil)
		if err != nil {
			t.Fatal(err)
		}
		a, b := &member{name: "hv1", addr: "hv1:7371", id: id, client: peer.NewClient(id, w.net.Dial("hv1"))}, w.join("hv2")
		w.start(a)
		mustAsk(t, a, b, time.Second)
		other := peertest.NewAuthority(t, "demo", time.Now())
		other.WriteFiles(t, dir, "hv1", time.Now())
		if changed, err := id.Reload(); !changed || err != nil {
			t.Fatal(changed, err)
		}
		e, _ := mustFail(t, a, b, time.Second, peer.ErrUnauthenticated)
		wants(t, e.Error(), []string{"spiffe://demo/node/hv2", "no authority of this node", dir})

		w.ca.WriteFiles(t, dir, "hv1", time.Now(), func(c *x509.Certificate) { c.NotAfter = time.Now().Add(500 * 24 * time.Hour) })
		if changed, err := id.Reload(); !changed || err != nil {
			t.Fatal(changed, err)
		}
		time.Sleep(397*24*time.Hour - time.Second)
		mustAsk(t, a, b, time.Second)
		time.Sleep(2 * time.Second)
		mustFail(t, a, b, time.Second, peer.ErrUnauthenticated)
		leave(a, b)
	})
}
