package fencing

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"pvc.internal/agent/detector/golden"
	"pvc.internal/cluster"
)

// TestMachineScripts runs testdata/*.txt: what happens to a fence record, told
// like a log. Commands:
//
//	record STAGE [try=N] [epoch=N] [order=ID] [held]   a record as it is found
//	epoch N                                            another primary carries it on
//	EVENT [id=ID] [try=N] [epoch=N] [order=ID] [proof=P] [policy=P] [DEVICE=RESULT …]
//	ended                                              whether anything follows by itself
func TestMachineScripts(t *testing.T) {
	golden.Run(t, func(t *testing.T) func(string) string {
		m := &machineScript{t: t}
		return m.run
	})
}

type machineScript struct {
	t      *testing.T
	record cluster.FenceRecord
}

func (m *machineScript) run(line string) string {
	words := strings.Fields(line)
	switch words[0] {
	case "record":
		m.record = cluster.FenceRecord{ID: "f", Node: "b", Stage: cluster.FenceStage(words[1]), Epoch: 1}
		for _, word := range words[2:] {
			key, value, _ := strings.Cut(word, "=")
			switch n, _ := strconv.Atoi(value); key {
			case "try":
				m.record.Tries = n
			case "epoch":
				m.record.Epoch = cluster.Epoch(n)
			case "order":
				m.record.Order = value
			case "held":
				m.record.Held = true
			}
		}
		return ""
	case "epoch":
		n, _ := strconv.Atoi(words[1])
		m.record.Epoch = cluster.Epoch(n)
		return ""
	case "ended":
		return fmt.Sprintf("   ended: %v\n", m.record.Ended())
	}
	return m.event(words)
}

func (m *machineScript) event(words []string) string {
	e := Event{ID: m.record.ID, Try: m.record.Tries, Epoch: m.record.Epoch}
	for k := EventProceed; k <= EventHeld; k++ {
		if k.String() == words[0] {
			e.Kind = k
		}
	}
	if e.Kind == 0 {
		m.t.Fatalf("no event is called %q", words[0])
	}
	for _, word := range words[1:] {
		key, value, _ := strings.Cut(word, "=")
		n, _ := strconv.Atoi(value)
		switch key {
		case "id":
			e.ID = value
		case "try":
			e.Try = n
		case "epoch":
			e.Epoch = cluster.Epoch(n)
		case "order":
			e.Order = value
		case "proof":
			e.Proof = value
		case "policy":
			e.Policy = Policy(value)
		default:
			e.Attempts = append(e.Attempts, cluster.FenceAttempt{Device: key, Result: value})
		}
	}
	from := m.record.Stage
	next, err := Next(m.record, e)
	switch {
	case errors.Is(err, ErrStale):
		return fmt.Sprintf("   %s: dropped, it belongs to an older fence\n", words[0])
	case err != nil:
		return fmt.Sprintf("   %s: not possible in %s\n", words[0], from)
	}
	m.record = next
	return "   " + m.show(from) + "\n"
}

func (m *machineScript) show(from cluster.FenceStage) string {
	r := m.record
	text := fmt.Sprintf("%s -> %s, try %d", from, r.Stage, r.Tries)
	if r.Held {
		text += ", held"
	}
	for _, field := range []struct{ name, value string }{{"proof", r.Proof}, {"policy", r.Policy}, {"order", r.Order}} {
		if field.value != "" {
			text += ", " + field.name + " " + field.value
		}
	}
	if len(r.Attempts) > 0 {
		newest := r.Attempts[len(r.Attempts)-1]
		text += fmt.Sprintf(", %d attempts to %s %s", len(r.Attempts), newest.Device, newest.Result)
	}
	return text
}
