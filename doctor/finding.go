package doctor

import (
	"fmt"
	"slices"
)

// Verdict says how a check has ended.
type Verdict string

// The verdicts, from best to worst but for Unchecked, which says nothing.
const (
	OK        Verdict = "ok"
	Unchecked Verdict = "unchecked" // it could not be made; Text says why
	Warning   Verdict = "warning"   // it works, and something is weaker than it should be
	Problem   Verdict = "problem"   // it is wrong: something does not work, or will not when it is needed
)

// The names of the checks.
const (
	CheckSettings  = "settings"
	CheckTiming    = "timing"
	CheckStore     = "zookeeper"
	CheckAccess    = "access"
	CheckCluster   = "cluster"
	CheckClocks    = "clocks"
	CheckFencing   = "fencing"
	CheckSecrets   = "secrets"
	CheckCerts     = "certificates"
	CheckWatchdog  = "watchdog"
	CheckUnits     = "units"
	CheckLeftovers = "leftovers"
)

// Finding is what one check has found about one thing.
type Finding struct {
	Check   string  `json:"check"`
	Subject string  `json:"subject"` // a node, server, device, file or unit; empty: the whole
	Verdict Verdict `json:"verdict"`
	Text    string  `json:"text"`
	Cure    string  `json:"cure,omitempty"` // what to do; empty where Verdict is OK
}

// Report is everything that was found.
type Report struct {
	Node      string    `json:"node"`    // that was looked at; empty: only the cluster's records were
	Cluster   string    `json:"cluster"` // its name; empty: not known
	Problems  int       `json:"problems"`
	Warnings  int       `json:"warnings"`
	Unchecked int       `json:"unchecked"`
	Passed    int       `json:"passed"`
	Findings  []Finding `json:"findings"` // worst last
}

// severity orders the findings; the worst come last, next to the prompt.
var severity = []Verdict{OK, Unchecked, Warning, Problem}

// NewReport orders the findings, the worst last and otherwise as given, and
// counts them.
func NewReport(node, clusterName string, findings []Finding) Report {
	r := Report{Node: node, Cluster: clusterName, Findings: slices.Clone(findings)}
	if r.Findings == nil {
		r.Findings = []Finding{}
	}
	slices.SortStableFunc(r.Findings, func(a, b Finding) int {
		return slices.Index(severity, a.Verdict) - slices.Index(severity, b.Verdict)
	})
	for _, f := range r.Findings {
		switch f.Verdict {
		case OK:
			r.Passed++
		case Warning:
			r.Warnings++
		case Problem:
			r.Problems++
		default:
			r.Unchecked++
		}
	}
	return r
}

// Summary counts in words.
func (r Report) Summary() string {
	return fmt.Sprintf("%s, %s, %d not checked, %d passed", many(r.Problems, "problem"), many(r.Warnings, "warning"), r.Unchecked, r.Passed)
}

func many(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// NotMade is the finding of a check that could not be made.
func NotMade(check, subject, why string, more ...any) Finding {
	return Finding{Check: check, Subject: subject, Verdict: Unchecked, Text: fmt.Sprintf(why, more...)}
}

// list gathers the findings of one check.
type list struct {
	check    string
	findings []Finding
}

func (l *list) add(v Verdict, subject, cure, text string, more ...any) {
	l.findings = append(l.findings, Finding{Check: l.check, Subject: subject, Verdict: v, Text: fmt.Sprintf(text, more...), Cure: cure})
}

func (l *list) ok(subject, text string, more ...any) { l.add(OK, subject, "", text, more...) }

func (l *list) problem(subject, cure, text string, more ...any) {
	l.add(Problem, subject, cure, text, more...)
}

func (l *list) warn(subject, cure, text string, more ...any) {
	l.add(Warning, subject, cure, text, more...)
}

func (l *list) unchecked(subject, cure, text string, more ...any) {
	l.add(Unchecked, subject, cure, text, more...)
}

// bad reports whether anything but a pass was found.
func (l *list) bad() bool {
	return slices.ContainsFunc(l.findings, func(f Finding) bool { return f.Verdict != OK })
}
