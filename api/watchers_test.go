package api

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// crowd makes a cluster of so many nodes, each with its figures.
func (w *world) crowd(nodes int) {
	w.edit(func(s *cluster.Snapshot) {
		now := w.clock.Now()
		s.Nodes = map[cluster.NodeID]cluster.NodeView{}
		for i := range nodes {
			name := cluster.NodeID(fmt.Sprintf("hv%d", i+1))
			n := cluster.NodeView{Name: name, Mode: present(cluster.Coordinator), Keepalive: seen(int64(1), now), Daemon: present(cluster.DaemonRun),
				Router: present(cluster.RouterSecondary), Domain: present(cluster.DomainReady), Record: present(cluster.NodeRecord{Version: 1, Incarnation: "b.1"}),
				Alive: present(cluster.Alive{Version: 1, Incarnation: "b.1"})}
			s.Nodes[name] = n
			w.store.leaves[name] = w.store.leaves["hv1"]
		}
	})
}

// A client that does not read is dropped; those that read are not held up by it.
func TestSlowWatcherIsDropped(t *testing.T) {
	w := newWorld(t, onAnyPort)
	w.server.sendWithin = 2 * time.Second // more than a loaded machine keeps the other from reading
	w.crowd(500)                          // an event is larger than what the kernel takes for a client
	_, stop := w.serve()
	defer func() { _ = stop() }()
	address := w.server.Addrs()[0].String()
	slow, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	_ = slow.(*net.TCPConn).SetReadBuffer(4096)
	fmt.Fprintf(slow, "GET /api/v1/watch HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n")
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	request, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/api/v1/watch", nil)
	request.Header.Set("Accept", "text/event-stream")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	events := bufio.NewReader(response.Body)
	next := func() string {
		for {
			line, err := events.ReadString('\n')
			if err != nil {
				t.Fatal("the reading watcher was dropped: ", err)
			}
			if id, is := strings.CutPrefix(line, "id: "); is {
				return id
			}
		}
	}
	for before, dropped := next(), false; !dropped; { // each change is one event more for both
		w.node("hv2", func(n *cluster.NodeView) {
			n.Record.Value.Priority++ // whatever changes the view
		})
		if id := next(); id == before {
			t.Fatal("the same event again")
		}
		if ctx.Err() != nil {
			t.Fatal("the client that does not read is still there")
		}
		time.Sleep(10 * time.Millisecond) // it is waited for, not worked for
		dropped = w.server.watching() == 1
	}
}

// A change is encoded once, whoever watches.
func TestEventsAreShared(t *testing.T) {
	w := newWorld(t)
	st := w.server.view.current(w.clock.Now())
	a, err := w.server.clusterEvent(st)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := w.server.clusterEvent(st)
	if &a.event[0] != &b.event[0] || !strings.HasPrefix(string(a.event), "event: cluster\nid: "+st.version+"\ndata: {") || !strings.HasSuffix(string(a.body), "}\n") {
		t.Errorf("not shared, or not the event: %.80s", a.event)
	}
	w.clock.advance(beatEvery) // its ages are too old for one who comes now
	if c, _ := w.server.clusterEvent(w.server.view.current(w.clock.Now())); &a.event[0] == &c.event[0] || c.version != a.version {
		t.Error("old ages were sent")
	}
	w.node("hv2", func(n *cluster.NodeView) { n.Daemon = present(cluster.DaemonStop) })
	d, _ := w.server.clusterEvent(w.server.view.current(w.clock.Now()))
	if d.version == a.version || !strings.Contains(string(d.event), `"stop"`) {
		t.Errorf("the change is not in it: %.80s", d.event)
	}
	x, _ := w.server.agesEvent()
	if y, _ := w.server.agesEvent(); &x[0] != &y[0] {
		t.Error("ages are encoded for each")
	}
}
