package router

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"pvc.internal/cluster"
	"pvc.internal/proc"
)

// TestTheQuestionForAnEnd names this very process, has no deadline of its own that
// a guard could find passed, and is refused by a guard that does not know it.
func TestTheQuestionForAnEnd(t *testing.T) {
	c, path := newTestClient(t)
	asked := make(chan Message, 1)
	defer fakeGuard(t, path, func(conn net.Conn, r *bufio.Reader) {
		say(conn, Message{Hello: &Hello{Version: ProtocolVersion}})
		for {
			m, err := ReadMessage(r)
			if err != nil {
				return
			}
			asked <- m
			say(conn, Message{ID: m.ID, Error: ToWire(errors.Join(errors.New(`guard request "end_caller" is unknown`), cluster.ErrRefused))})
		}
	})()
	before := proc.BootClock{}.Now()
	if err := c.EndCaller(soon(t), time.Second); !errors.Is(err, cluster.ErrRefused) {
		t.Errorf("a guard of an earlier program: %v", err)
	}
	m := <-asked
	var p EndCallerParams
	if err := json.Unmarshal(m.Params, &p); err != nil {
		t.Fatal(err)
	}
	start, err := proc.StartTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if m.Method != MethodEndCaller || m.Expires != cluster.Never || p.Start != start || p.At.Before(before.Add(time.Second)) {
		t.Errorf("asked %+v, %+v", m, p)
	}
}

// TestAGuardThatDoesNotAnswerHoldsNobodyUp: the question stands all the same.
func TestAGuardThatDoesNotAnswerHoldsNobodyUp(t *testing.T) {
	c, path := newTestClient(t)
	asked := make(chan Message, 4)
	defer fakeGuard(t, path, func(conn net.Conn, r *bufio.Reader) {
		say(conn, Message{Hello: &Hello{Version: ProtocolVersion}})
		for {
			m, err := ReadMessage(r)
			if err != nil {
				return
			}
			asked <- m
		}
	})()
	ctx, cancel := context.WithTimeoutCause(t.Context(), 200*time.Millisecond, cluster.ErrDeadline)
	defer cancel()
	if err := c.EndCaller(ctx, time.Second); !errors.Is(err, cluster.ErrDeadline) {
		t.Errorf("%v", err)
	}
	if m := <-asked; m.Method != MethodEndCaller {
		t.Errorf("asked %+v", m)
	}
}
