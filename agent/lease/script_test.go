package lease

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"pvc.internal/agent/detector/golden"
	"pvc.internal/cluster"
)

// script drives one granter (node n) and one holder on one clock.
type script struct {
	t       *testing.T
	now     cluster.Instant
	c       GranterConfig
	g       Granter
	timer   cluster.Instant
	disk    Found
	mode    string // of the disk: ok, full or slow
	writes  []Effect
	numbers map[string]uint64
	tickets map[uint64]string
	ticket  uint64
	hc      HolderConfig
	h       Holder
	in      HolderInput
	asked   uint64
	wake    cluster.Instant
}

const began = cluster.Instant(1000 * time.Second)

func newScript(t *testing.T) *script {
	return &script{
		t: t, now: began, mode: "ok", numbers: map[string]uint64{}, tickets: map[uint64]string{},
		c:  NewGranterConfig("n", "life", cluster.ProfileLAN()),
		hc: NewHolderConfig(cluster.NodeLeaseID{Holder: "a", Start: "s1", Epoch: 5}, "n", cluster.ProfileLAN()),
		in: HolderInput{Wanted: true, Majority: true},
	}
}

func (s *script) at(i cluster.Instant) string {
	switch i {
	case cluster.Never:
		return "never"
	case cluster.Forever:
		return "for ever"
	}
	return fmt.Sprintf("%.3fs", i.Sub(began).Seconds())
}

func (s *script) line(format string, args ...any) string {
	return fmt.Sprintf("%9s ", s.at(s.now)) + fmt.Sprintf(format, args...) + "\n"
}

func (s *script) duration(text string) time.Duration {
	d, err := time.ParseDuration(text)
	if err != nil {
		s.t.Fatal(err)
	}
	return d
}

// id reads holder.start.epoch.
func (s *script) id(text string) cluster.NodeLeaseID {
	parts := strings.Split(text, ".")
	if len(parts) != 3 {
		s.t.Fatalf("%q is no lease", text)
	}
	epoch, _ := strconv.Atoi(parts[2])
	return cluster.NodeLeaseID{Holder: cluster.NodeID(parts[0]), Start: parts[1], Epoch: cluster.Epoch(epoch)}
}

func short(id cluster.NodeLeaseID) string {
	if id.IsZero() {
		return "somebody"
	}
	return fmt.Sprintf("%s.%s.%d", id.Holder, id.Start, id.Epoch)
}

// run takes one command:
//
//	to 2s                     lets time pass; timers fire
//	profile pvc               the intervals of both
//	period 15s                the granter's, before it starts
//	start                     the granter begins with what the disk says
//	rot                       the disk cannot be read any more
//	crash, stop, leave        what happens to the granter
//	gone [SEQ]                the work is dead
//	grant|extend|abolish ID [#N] [from=NODE] [stranger]
//	disk ok|full|slow         what becomes of writes; "disk answers" settles slow ones
//	check ID, view
//	hold                      the holder begins
//	yes LEFT [CHAIN HELD], no CODE [LEFT], silence, invite
//	old yes LEFT              an answer to the question before
//	set wanted|majority|dead=true|false
//	holder                    shows it
func (s *script) run(line string) string {
	words := strings.Fields(line)
	switch words[0] {
	case "to":
		return s.to(began.Add(s.duration(words[1])))
	case "profile":
		timing, err := cluster.Profile(words[1])
		if err != nil {
			s.t.Fatal(err)
		}
		s.c, s.hc = NewGranterConfig("n", "life", timing), NewHolderConfig(s.hc.ID, "n", timing)
	case "period":
		s.c.Period = s.duration(words[1])
	case "disk":
		return s.setDisk(words[1])
	case "rot":
		s.disk = Found{Kind: FoundUnreadable, Detail: "rotten"}
	case "crash":
		s.timer, s.writes = cluster.Never, nil
	case "start":
		s.g = NewGranter(s.c)
		return s.step(Input{Kind: InputStart, Found: s.disk})
	case "stop":
		return s.step(Input{Kind: InputStop})
	case "leave":
		return s.step(Input{Kind: InputLeave})
	case "gone":
		seq := s.g.revoke
		if len(words) > 1 {
			n, _ := strconv.Atoi(words[1])
			seq = uint64(n)
		}
		return s.step(Input{Kind: InputWorkGone, Seq: seq})
	case "written": // an answer of the disk to a write of that number
		n, _ := strconv.Atoi(words[1])
		return s.step(Input{Kind: InputPersisted, Seq: uint64(n)})
	case "grant", "extend", "abolish":
		return s.ask(cluster.NodeLeaseOp(words[0]), words[1], words[2:])
	case "check":
		if r := s.g.Check(s.id(words[1]), s.now); r.Code != "" {
			return s.line("%s: %s", r.Code, r.Detail)
		}
		return s.line("it may")
	case "view":
		v := s.g.View(s.now)
		return s.line("%s for %s, %s left; epoch %d; %s waits; %+v", v.State, short(v.Holder), v.Left, v.Epoch, short(v.Waiting), v.Counters)
	default:
		return s.holding(words)
	}
	return ""
}

func (s *script) ask(op cluster.NodeLeaseOp, id string, words []string) string {
	s.numbers[id]++
	in := Input{Kind: InputRequest, Member: true, Request: cluster.NodeLeaseRequest{Op: op, ID: s.id(id), N: s.numbers[id]}}
	in.From = in.Request.ID.Holder
	for _, w := range words {
		switch {
		case strings.HasPrefix(w, "#"):
			in.Request.N, _ = strconv.ParseUint(w[1:], 10, 64)
		case strings.HasPrefix(w, "from="):
			in.From = cluster.NodeID(w[5:])
		case w == "stranger":
			in.Member = false
		}
	}
	s.ticket++
	in.Ticket = s.ticket
	s.tickets[s.ticket] = fmt.Sprintf("%s#%d", id, in.Request.N)
	return s.step(in)
}

// step prints the effects in order, and then lets the disk answer.
func (s *script) step(in Input) string {
	next, effects := s.g.Step(in, s.now)
	s.g = next
	var out strings.Builder
	for _, e := range effects {
		out.WriteString(s.effect(e))
	}
	if s.mode != "slow" {
		out.WriteString(s.settle())
	}
	return out.String()
}

func (s *script) effect(e Effect) string {
	switch e.Kind {
	case EffectServe:
		return s.line("serve %s until %s", short(e.Lease), s.at(e.Until))
	case EffectRevoke:
		return s.line("kill the work of %s (%d): %s", short(e.Lease), e.Seq, e.Detail)
	case EffectArm:
		s.timer = e.Until
		return s.line("arm %s", s.at(e.Until))
	case EffectPersist:
		s.writes = append(s.writes, e)
		text := fmt.Sprintf("nobody, epoch %d of %s", e.Record.Epoch, e.Record.EpochOf)
		if e.Record.Held {
			text = fmt.Sprintf("%s, epoch %d of %s, %s", short(e.Record.Holder), e.Record.Epoch, e.Record.EpochOf, e.Record.Period)
		}
		if e.Record.Clean {
			text += fmt.Sprintf(", %s left", e.Record.Left)
		}
		return s.line("persist %d: %s", e.Seq, text)
	case EffectRemove:
		s.writes = append(s.writes, e)
		return s.line("persist %d: remove the file", e.Seq)
	case EffectReply:
		who := s.tickets[e.Ticket]
		if who == "" {
			s.t.Fatalf("ticket %d is answered twice", e.Ticket)
		}
		delete(s.tickets, e.Ticket)
		if e.Answer.Code == "" {
			return s.line("reply to %s: yes, %s left (%s %s)", who, e.Answer.Left, e.Answer.Chain, e.Answer.Held)
		}
		return s.line("reply to %s: %s, %s left: %s", who, e.Answer.Code, e.Answer.Left, e.Answer.Detail)
	case EffectInvite:
		return s.line("invite %s", short(e.To))
	case EffectIllegal:
		return s.line("illegal: %s", e.Detail)
	}
	return s.line("unknown effect %d", e.Kind)
}

func (s *script) setDisk(word string) string {
	if word == "answers" {
		return s.settle()
	}
	s.mode = word
	return ""
}

// settle answers what waits for the disk.
func (s *script) settle() string {
	var out strings.Builder
	for len(s.writes) > 0 {
		e := s.writes[0]
		s.writes = s.writes[1:]
		in := Input{Kind: InputPersisted, Seq: e.Seq}
		switch {
		case s.mode == "full":
			in.Failed = "no space left on device"
		case e.Kind == EffectRemove:
			s.disk = Found{}
		default:
			s.disk = Found{Kind: FoundRecord, Record: e.Record}
		}
		out.WriteString(s.step(in))
	}
	return out.String()
}

func (s *script) to(end cluster.Instant) string {
	var out strings.Builder
	for {
		next := cluster.Earliest(s.timer, s.wake)
		if next.IsZero() || next.After(end) {
			break
		}
		s.now = max(s.now, next)
		if next == s.timer {
			s.timer = cluster.Never
			out.WriteString(s.step(Input{Kind: InputTimer}))
			continue
		}
		out.WriteString(s.hold(HolderInput{}))
	}
	s.now = end
	return out.String()
}

func (s *script) holding(words []string) string {
	switch words[0] {
	case "hold":
		s.h = NewHolder(s.hc)
		return s.hold(HolderInput{})
	case "yes", "no":
		return s.answer(words, s.asked)
	case "old":
		return s.answer(words[1:], s.asked-1)
	case "silence":
		return s.hold(HolderInput{Kind: HolderNoAnswer, N: s.asked, Why: "no route to host"})
	case "invite":
		return s.hold(HolderInput{Kind: HolderInvited})
	case "set":
		key, value, _ := strings.Cut(words[1], "=")
		*map[string]*bool{"wanted": &s.in.Wanted, "majority": &s.in.Majority, "dead": &s.in.Dead}[key] = value == "true"
		return s.hold(HolderInput{})
	case "holder":
		v := s.h.View(s.now)
		return s.line("%s, held %t, %s left, next in %s; %+v", v.Mode, v.Held, v.Left, v.Next, v.Counters)
	}
	s.t.Fatalf("unknown command %q", words[0])
	return ""
}

func (s *script) answer(words []string, n uint64) string {
	a := cluster.NodeLeaseAnswer{N: n}
	rest := words[1:]
	if words[0] == "no" {
		a.Code, rest = cluster.RefusalCode(words[1]), words[2:]
	}
	if len(rest) > 0 {
		a.Left = s.duration(rest[0])
	}
	if len(rest) > 2 {
		a.Chain, a.Held = rest[1], s.duration(rest[2])
	}
	return s.hold(HolderInput{Kind: HolderAnswer, Answer: a})
}

func (s *script) hold(in HolderInput) string {
	in.Wanted, in.Majority, in.Dead = s.in.Wanted, s.in.Majority, s.in.Dead
	var out HolderOutput
	s.h, out = s.h.Step(in, s.now)
	s.wake = out.Wake
	var text strings.Builder
	if out.Lost != nil {
		text.WriteString(s.line("lost, %s: %s", out.Lost.Code, out.Lost.Detail))
	}
	if out.Held {
		text.WriteString(s.line("held since %s until %s", s.at(out.Since), s.at(out.Until)))
	}
	if out.Ask != nil {
		s.asked = out.Ask.N
		text.WriteString(s.line("ask %s #%d", out.Ask.Op, out.Ask.N))
	}
	return text.String()
}

func TestScripts(t *testing.T) {
	golden.Run(t, func(t *testing.T) func(string) string { return newScript(t).run })
}
