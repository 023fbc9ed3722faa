package zkhandler_test

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pvc.internal/cluster"
	"pvc.internal/zkhandler"
	"pvc.internal/zkhandler/zktest"
)

// words answers the four-letter words of servers by their address; one that
// stands in none is silent.
func words(answers map[string]map[string]string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, address string) (net.Conn, error) {
		known, there := answers[address]
		if !there {
			return nil, errors.New("connection refused")
		}
		near, far := net.Pipe()
		go func() {
			defer far.Close()
			word := make([]byte, 4)
			if _, err := io.ReadFull(far, word); err != nil {
				return
			}
			answer, told := known[string(word)]
			if !told { // until the other side has had enough
				_, _ = far.Read(word)
				return
			}
			_, _ = io.WriteString(far, answer)
		}()
		return near, nil
	}
}

func TestAskServers(t *testing.T) {
	refused := func(word string) string { return word + " is not executed because it is not in the whitelist.\n" }
	idle := "This ZooKeeper instance is not currently serving requests\n"
	answers := map[string]map[string]string{
		"whole:2181": {
			"srvr": "Zookeeper version: 3.8.0-${mvngit.commit.id}, built on 2024-12-29 17:54 UTC\nLatency min/avg/max: 0/4.9/149\nMode: follower\nNode count: 118\n",
			"conf": "tickTime=200\nmaxClientCnxns=60\nsyncLimit=4\nmembership: \nserver.1=a:2888:3888:participant\nserver.2=b:2888:3888:participant\nserver.3=c:2888:3888:observer\nversion=0",
			"mntr": "zk_version\t3.8.0\nzk_avg_fsynctime\t4.065\nzk_max_fsynctime\t47\n",
		},
		"shy:2181":    {"srvr": "Zookeeper version: 3.4.13, built on x\nMode: leader\n", "conf": refused("conf"), "mntr": refused("mntr")},
		"idle:2181":   {"srvr": idle, "conf": "tickTime=200\nmaxClientCnxns=0\n", "mntr": idle},
		"hangs:2181":  {},
		"other:2181":  {"srvr": "SSH-2.0-x\r\n", "conf": "SSH-2.0-x\r\n", "mntr": "SSH-2.0-x\r\n"},
		"liar:2181":   {"srvr": "Mode: leader\n", "conf": "tickTime=-5\nmaxClientCnxns=-7\n", "mntr": "zk_avg_fsynctime\tNaN\nzk_max_fsynctime\t1e300\n"},
		"unused:2181": {},
	}
	synctest.Test(t, func(t *testing.T) {
		c := zkhandler.Config{Servers: []string{"whole", "shy", "idle", "hangs", "away", "other", "liar"}, Dial: words(answers)}
		began := time.Now()
		reports, err := c.AskServers(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("it took %v", took)
		}
		whole := reports[0]
		if whole.Err != nil || whole.Version != "3.8.0" || whole.Mode != "follower" || whole.Tick != 200*time.Millisecond || whole.Sync != 4 ||
			whole.Clients != 60 || whole.Members != 2 || !whole.Fsync || whole.FsyncAvg != 4065*time.Microsecond || whole.FsyncMax != 47*time.Millisecond {
			t.Errorf("%+v", whole)
		}
		if shy := reports[1]; shy.Err != nil || !slices.Equal(shy.Refused, []string{"conf", "mntr"}) || shy.Mode != "leader" || shy.Version != "3.4.13" || shy.Clients != -1 || shy.Fsync {
			t.Errorf("%+v", shy)
		}
		if idle := reports[2]; idle.Err != nil || !idle.Idle || idle.Mode != "" || idle.Clients != 0 {
			t.Errorf("%+v", idle)
		}
		for _, r := range reports[3:5] {
			if r.Err == nil || r.Mode != "" {
				t.Errorf("%+v", r)
			}
		}
		if r := reports[5]; r.Mode != "" || r.Version != "" || r.Tick != 0 || r.Fsync {
			t.Errorf("%+v", r)
		}
		if r := reports[6]; r.Tick != 0 || r.Clients != -1 || r.Fsync || r.FsyncMax != 0 {
			t.Errorf("%+v", r)
		}
	})
	if _, err := (zkhandler.Config{Servers: []string{"a/b"}}).AskServers(t.Context()); err == nil {
		t.Error("servers that cannot be were asked")
	}
}

// A tree keeps the permissions that it was made with, whatever the settings
// say later.
func TestOpenToAll(t *testing.T) {
	inFake(t, zktest.Options{}, func(t *testing.T, e *env) {
		own := func(c *zkhandler.Config) { c.Auth = &zkhandler.Digest{User: "pvc", Password: "secret"} }
		early := e.joined(t, "early", own)
		if _, err := early.OpenToAll(t.Context()); !errors.Is(err, cluster.ErrNotFound) {
			t.Errorf("without a tree: %v", err)
		}
		if err := e.joined(t, "maker", nil).Initialize(t.Context(), "demo", false); err != nil {
			t.Fatal(err)
		}
		if open, err := early.OpenToAll(t.Context()); err != nil || !open {
			t.Errorf("a tree made without an identity: open %v, %v", open, err)
		}
	})
	inFake(t, zktest.Options{}, func(t *testing.T, e *env) {
		own := func(c *zkhandler.Config) { c.Auth = &zkhandler.Digest{User: "pvc", Password: "secret"} }
		h := e.joined(t, "maker", own)
		if err := h.Initialize(t.Context(), "demo", false); err != nil {
			t.Fatal(err)
		}
		if open, err := h.OpenToAll(t.Context()); err != nil || open {
			t.Errorf("a tree of one's own: open %v, %v", open, err)
		}
	})
}
