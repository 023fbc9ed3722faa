package failsafe

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"pvc.internal/agent/detector/golden"
	"pvc.internal/cluster"
)

// script drives one asker (node a) and one giver (node b) on one clock.
type script struct {
	t     *testing.T
	now   cluster.Instant
	asker AskerConfig
	ask   AskerState
	in    AskerInput
	last  *Question
	wake  cluster.Instant
	giver GiverConfig
	give  GiverState
	gin   GiverInput
}

const began = cluster.Instant(1000 * time.Second)

func newScript(t *testing.T) *script {
	members := Members{Version: 1, Nodes: []cluster.NodeID{"a", "b", "c"}}
	return &script{
		t: t, now: began,
		asker: AskerConfig{Node: "a", Incarnation: "a.1", Right: RightRole, Timing: cluster.ProfileLAN()},
		in:    AskerInput{InUse: true, Sent: began, Epoch: 5, TTL: 2800 * time.Millisecond, Members: members},
		giver: GiverConfig{Node: "b", Timing: cluster.ProfileLAN(), Started: began.Add(-time.Minute)},
		gin:   GiverInput{Holder: "a", Epoch: 5, Members: members},
	}
}

func (s *script) at(i cluster.Instant) string {
	if i.IsZero() {
		return "never"
	}
	return fmt.Sprintf("%.2fs", i.Sub(began).Seconds())
}

func (s *script) seconds(text string) time.Duration {
	d, err := time.ParseDuration(text)
	if err != nil {
		s.t.Fatal(err)
	}
	return d
}

// run takes one command:
//
//	to 2s              lets time pass, stepping the asker whenever it asked to be woken
//	answer b 2.8s [ID] b promises, from the host ID; "answer b CODE" refuses; "old b 2.8s" answers the question before
//	sent 1.9s          a write sent then is acknowledged
//	work, role         begins anew with that right
//	set KEY=VALUE …    of either machine's input
//	asks [KEY=VALUE]   the giver is asked for the asker's right
//	take, fence NODE   whether the giver may
func (s *script) run(line string) string {
	words := strings.Fields(line)
	switch words[0] {
	case "to":
		return s.to(began.Add(s.seconds(words[1])))
	case "answer", "old":
		return s.answer(words[0] == "old", words[1], words[2], strings.Join(words[3:], ""))
	case "sent":
		s.in.Sent = began.Add(s.seconds(words[1]))
		return s.step(nil)
	case "work":
		s.asker.Right, s.in.Epoch, s.in.TTL = RightWork, 0, 0
	case "set":
		for _, w := range words[1:] {
			s.set(w)
		}
	case "asks":
		for _, w := range words[1:] {
			s.set(w)
		}
		return s.asks()
	case "restart":
		s.give, s.giver.Started = GiverState{}, s.now
	case "see":
		s.give, _ = StepGiver(s.giver, s.give, s.givers(nil))
	case "take":
		return s.leave(MayTake(s.giver, s.give, s.now))
	case "fence":
		return s.leave(MayFence(s.giver, s.give, cluster.NodeID(words[1]), s.now))
	default:
		s.t.Fatalf("unknown command %q", line)
	}
	return ""
}

func (s *script) leave(r cluster.Refusal) string {
	if r.Code == "" {
		return fmt.Sprintf("%8s it may\n", s.at(s.now))
	}
	return fmt.Sprintf("%8s %s: %s\n", s.at(s.now), r.Code, r.Detail)
}

func (s *script) set(setting string) {
	key, value, _ := strings.Cut(setting, "=")
	number, _ := strconv.ParseUint(value, 10, 64)
	switch key {
	case "inuse":
		s.in.InUse = value == "true"
	case "unresolved":
		s.in.Unresolved = value == "true"
	case "epoch":
		s.in.Epoch = cluster.Epoch(number)
	case "members":
		s.in.Members = Members{Version: s.in.Members.Version + 1}
		s.in.Members.Nodes = names(value)
	case "ids":
		s.in.Members.IDs = map[cluster.NodeID]string{}
		for pair := range strings.SplitSeq(value, ",") {
			name, id, _ := strings.Cut(pair, ":")
			s.in.Members.IDs[cluster.NodeID(name)] = id
		}
	case "b.id":
		s.giver.ID = value
	case "b.members":
		s.gin.Members = Members{Version: s.in.Members.Version, Nodes: names(value)}
	case "b.holder":
		s.gin.Holder = cluster.NodeID(value)
	case "b.epoch":
		s.gin.Epoch = cluster.Epoch(number)
	case "b.givenup":
		s.gin.GivenUp = cluster.Epoch(number)
	case "b.take":
		s.gin.TakeUnresolved = value == "true"
	case "b.connected":
		s.gin.Connected = value == "true"
	case "b.acked":
		s.gin.Acked = began.Add(s.seconds(value))
	case "b.pending":
		s.gin.Pending = cluster.Never
		if value != "none" {
			s.gin.Pending = began.Add(s.seconds(value))
		}
	case "b.fences":
		s.gin.Fences = []cluster.NodeID{cluster.NodeID(value)}
	default:
		s.t.Fatalf("unknown setting %q", setting)
	}
}

func names(list string) (nodes []cluster.NodeID) {
	for name := range strings.SplitSeq(list, ",") {
		if name != "" {
			nodes = append(nodes, cluster.NodeID(name))
		}
	}
	return nodes
}

func (s *script) to(end cluster.Instant) string {
	var out strings.Builder
	for {
		out.WriteString(s.step(nil))
		if s.wake.IsZero() || s.wake.After(end) || !s.wake.After(s.now) {
			break
		}
		s.now = s.wake
	}
	if end.After(s.now) {
		s.now = end
		out.WriteString(s.step(nil))
	}
	return out.String()
}

func (s *script) answer(old bool, from, what, host string) string {
	a := Answer{From: cluster.NodeID(from), Host: host}
	if s.last != nil {
		a.ID = s.last.ID
	}
	if old {
		a.ID.N--
	}
	if d, err := time.ParseDuration(what); err == nil {
		a.Promise = d
	} else {
		a.Code, a.Detail = cluster.RefusalCode(what), "it says so"
	}
	return s.step(&a)
}

func (s *script) step(a *Answer) string {
	in := s.in
	in.Now, in.Answer = s.now, a
	next, out := StepAsker(s.asker, s.ask, in)
	s.ask, s.wake = next, out.Wake
	var text strings.Builder
	if !out.Extend.IsZero() {
		fmt.Fprintf(&text, "%8s goes on until %s, by a question sent at %s\n", s.at(s.now), s.at(out.Extend), s.at(out.ExtendSent))
	}
	if out.End != "" {
		fmt.Fprintf(&text, "%8s end: %s\n", s.at(s.now), out.End)
	}
	if out.Ask != nil {
		s.last = out.Ask
		fmt.Fprintf(&text, "%8s asks %v for the %s (%d), ends at %s\n", s.at(s.now), out.To, out.Ask.ID.Right, out.Ask.ID.N, s.at(s.ask.Until))
	}
	return text.String()
}

func (s *script) givers(q *Question) GiverInput {
	in := s.gin
	in.Now, in.Question = s.now, q
	return in
}

func (s *script) asks() string {
	q := Question{ID: QuestionID{Incarnation: "a.1", Right: s.asker.Right, N: 1}, From: "a", Epoch: s.in.Epoch, TTL: s.in.TTL, Members: s.in.Members}
	if q.TTL == 0 {
		q.TTL = s.asker.Timing.RoleTTL
	}
	next, out := StepGiver(s.giver, s.give, s.givers(&q))
	s.give = next
	text := fmt.Sprintf("%8s b promises %s", s.at(s.now), out.Answer.Promise)
	if out.Answer.Code != "" {
		text = fmt.Sprintf("%8s b refuses, %s: %s", s.at(s.now), out.Answer.Code, out.Answer.Detail)
	}
	if out.TryWrite {
		text += "; tries a write"
	}
	return text + "\n"
}

func TestScripts(t *testing.T) {
	golden.Run(t, func(t *testing.T) func(string) string { return newScript(t).run })
}

// A step edits nothing that it was given: the same state twice gives the same.
func TestStepsEditNothingTheyWereGiven(t *testing.T) {
	s := newScript(t)
	s.run("to 1.3s")
	before := s.ask
	in := s.in
	in.Now = s.now
	in.Answer = &Answer{ID: s.last.ID, From: "b", Promise: time.Second}
	one, _ := StepAsker(s.asker, before, in)
	in.Answer = &Answer{ID: s.last.ID, From: "c", Promise: time.Second}
	two, _ := StepAsker(s.asker, before, in)
	if len(before.promises) != 0 || one.promises[0].From != "b" || two.promises[0].From != "c" {
		t.Errorf("the asker's state was edited: %v, %v, %v", before.promises, one.promises, two.promises)
	}
	q := Question{ID: QuestionID{Right: RightWork}, From: "a", TTL: time.Second, Members: s.in.Members}
	first, _ := StepGiver(s.giver, GiverState{}, s.givers(&q))
	kept := reflect.ValueOf(first.work).Len()
	q.From = "c"
	if _, out := StepGiver(s.giver, first, s.givers(&q)); out.Answer.Promise == 0 || len(first.work) != kept {
		t.Errorf("the giver's state was edited, or it refused: %+v, %v", out.Answer, first.work)
	}
	s.now = s.now.Add(time.Hour)
	later, _ := StepGiver(s.giver, first, s.givers(nil))
	if len(first.work) != kept {
		t.Error("the giver's state was edited")
	}
	if got, want := Promised(s.giver, later, "a"), first.work["a"]; got != want {
		t.Errorf("an hour after its end the last promise to a counts until %v, want %v: a watchdog's bound counts from it (I4)", got, want)
	}
}
