package driver

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"pvc.internal/cluster"
)

// The exit statuses of OCF agents.
const (
	ocfSuccess            = 0
	ocfGeneric            = 1
	ocfUnimplemented      = 3
	ocfNotInstalled       = 5
	ocfNotRunning         = 7
	ocfRunningPromoted    = 8
	ocfFailedPromoted     = 9
	ocfDegraded           = 190 // runs, but not as well as it should
	ocfDegradedPromoted   = 191
	ocfExitReason         = "ocf-exit-reason:"
	ocfLoggedError        = "ERROR: " // in a line of the agent's log
	longestOCFReason      = 400       // characters of it that are told
	longestReasonCollated = 3         // reasons that are told
)

// ocfMeanings says what an exit status means, and what to do.
var ocfMeanings = map[int]string{
	ocfGeneric:          "it failed",
	2:                   "the parameters are not what it takes: correct them",
	ocfUnimplemented:    "it does not know this action",
	4:                   "it lacks the rights it needs",
	ocfNotInstalled:     "what it runs is not installed on this node",
	6:                   "it is configured wrongly, which would be so on every node: correct the parameters",
	ocfNotRunning:       "it does not run",
	ocfRunningPromoted:  "it runs promoted",
	ocfFailedPromoted:   "it has failed while promoted",
	ocfDegraded:         "it runs, but not as well as it should",
	ocfDegradedPromoted: "it runs promoted, but not as well as it should",
}

// ocfFault is how an action ended that did not end as it should.
type ocfFault struct {
	code   int
	signal string
	reason string // the agent's own words
}

func (f ocfFault) Error() string { return f.String() }

func (f ocfFault) String() string {
	var text string
	switch meaning := ocfMeanings[f.code]; {
	case f.signal != "":
		text = "it was killed by " + f.signal
	case f.code == ocfSuccess:
		text = "exit status 0"
	case meaning == "":
		text = fmt.Sprintf("exit status %d, which OCF does not know", f.code)
	default:
		text = fmt.Sprintf("exit status %d (%s)", f.code, meaning)
	}
	if f.reason != "" {
		text += fmt.Sprintf(", and it says: %q", f.reason)
	}
	return text
}

// exitReason finds what an agent says of its failure in its standard error, with the
// last error that it has logged, which often names the parameter; else its last line.
func exitReason(stderr []byte) string {
	var reasons []string
	last, logged := "", ""
	for line := range bytes.Lines(stderr) {
		text := printable(line)
		if _, said, ok := strings.Cut(text, ocfExitReason); ok {
			if said = strings.TrimSpace(said); !slices.Contains(reasons, said) {
				reasons = append(reasons, said)
			}
			continue
		}
		if _, said, ok := strings.Cut(text, ocfLoggedError); ok {
			logged = strings.TrimSpace(said)
		}
		if text != "" {
			last = text
		}
	}
	if len(reasons) == 0 {
		return last
	}
	reasons = reasons[max(0, len(reasons)-longestReasonCollated):]
	if logged != "" && !slices.ContainsFunc(reasons, func(said string) bool { return strings.Contains(said, logged) || strings.Contains(logged, said) }) {
		reasons = append(reasons, logged)
	}
	return strings.Join(reasons, "; ")
}

// ocfStartFault is how the guard tells of an action of a service that has failed,
// in the words that the driver has for it.
type ocfStartFault struct {
	fault ocfFault
	err   error // the guard's
}

func (f ocfStartFault) Error() string { return f.fault.String() }
func (f ocfStartFault) Unwrap() error { return f.err }

// exitStatus is an exit status in the guard's words, and what the program has said.
var exitStatus = regexp.MustCompile(`(?s)exit status ([0-9]+)(?: \([^)]*\))?:(.*)`)

// ofGuard reads an agent's exit status off the guard's error, if there is one.
func ofGuard(err error) error {
	match := exitStatus.FindStringSubmatch(err.Error())
	if match == nil {
		return err
	}
	code, convErr := strconv.Atoi(match[1])
	if convErr != nil || code == ocfSuccess {
		return err
	}
	return ocfStartFault{fault: ocfFault{code: code, reason: exitReason([]byte(match[2]))}, err: err}
}

// printable makes a line fit for a message: bounded, without control characters.
func printable(line []byte) string {
	text := strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\ufffd' {
			return ' '
		}
		return r
	}, string(line)))
	if runes := []rune(text); len(runes) > longestOCFReason {
		text = string(runes[:longestOCFReason]) + "…"
	}
	return text
}

// ocfState is what a monitor's exit status says of the copy. known is false where
// it says nothing of it.
func ocfState(kind cluster.WorkloadKind, code int) (state cluster.CopyState, known bool) {
	switch code {
	case ocfSuccess, ocfDegraded:
		if kind == cluster.WorkloadMovable {
			return cluster.CopyActive, true
		}
		return cluster.CopyReplica, true
	case ocfRunningPromoted, ocfDegradedPromoted:
		return cluster.CopyActive, true
	case ocfNotRunning, ocfNotInstalled: // what is not installed does not run
		return cluster.CopyMissing, true
	case ocfGeneric, ocfFailedPromoted:
		return cluster.CopyDead, true
	}
	return "", false
}
