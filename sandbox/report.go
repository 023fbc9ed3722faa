package sandbox

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
)

// Report is what a demo found.
type Report struct {
	Name         string  `json:"name"`
	Coordinators int     `json:"coordinators"`
	Hypervisors  int     `json:"hypervisors"`
	Profile      string  `json:"profile"`
	Hooks        bool    `json:"hooks"`          // the primary runs a service that a switch has to stop
	NoiseMS      float64 `json:"noise_floor_ms"` // of silences, at rest before the first fault
	// EventNoiseMS is how late a kernel's or a service's event is stamped at worst.
	EventNoiseMS float64     `json:"event_noise_ms"`
	PeriodMS     float64     `json:"probe_period_ms"`
	Results      []Result    `json:"results"`
	Summary      []Summary   `json:"summary,omitempty"` // where faults were repeated
	Violations   []Violation `json:"violations"`
	Seconds      float64     `json:"seconds"`
	Error        string      `json:"error,omitempty"` // why the script ended early
}

// Err is nil if no invariant was broken and everything came about.
func (r Report) Err() error {
	var failed []string
	for _, res := range r.Results {
		if res.Error != "" {
			failed = append(failed, res.Fault)
		}
	}
	switch {
	case len(r.Violations) > 0:
		return fmt.Errorf("%d times an invariant was broken; the first: %s %s", len(r.Violations), r.Violations[0].Invariant, r.Violations[0].Text)
	case r.Error != "":
		return fmt.Errorf("the demo ended early: %s", r.Error)
	case len(failed) > 0:
		return fmt.Errorf("no invariant was broken, but not all came about after: %s", strings.Join(failed, ", "))
	}
	return nil
}

const belowResolution = "below resolution"

// below renders a duration of at most the noise floor as what it is.
func below(ms, noise float64) string {
	if ms <= noise {
		return belowResolution
	}
	return fmt.Sprintf("%.0f ms", ms)
}

func happened(ms float64) string {
	if ms < 0 {
		return "–"
	}
	return fmt.Sprintf("%.2f s", ms/1000)
}

// silence renders the longest silence; where the prober itself did not run for
// a part of it, it lies between two bounds.
func (a AddressResult) silence(noise float64) string {
	proven := a.SilenceMS - a.UnaskedMS
	s := below(proven, noise)
	if proven > noise && a.UnaskedMS >= 1 {
		s = fmt.Sprintf("%.0f–%.0f ms", proven, a.SilenceMS)
	}
	if a.StillSilent {
		s += ", still silent"
	}
	return s
}

// answeredTwice renders rounds that two nodes answered: none or a fact, whose
// length alone has bounds.
func answeredTwice(rounds int, proven, most float64) string {
	switch {
	case rounds == 0:
		return "never"
	case most >= proven+1:
		return fmt.Sprintf("%.0f–%.0f ms", proven, most)
	}
	return fmt.Sprintf("%.0f ms", proven)
}

// heldFor renders how long two kernels held an address.
func heldFor(ms, eventNoise float64) string {
	if ms == 0 {
		return "never"
	}
	return below(ms, eventNoise)
}

// twice is the worst of all addresses.
func (r Result) twice() (rounds int, proven, most, held float64) {
	for _, a := range r.Addresses {
		rounds += a.TwiceRounds
		proven, most, held = max(proven, a.TwiceMS), max(most, a.TwiceMostMS), max(held, a.HeldTwiceMS)
	}
	return rounds, proven, most, held
}

// silences renders the silence of each address, shortly.
func (r Result) silences() string {
	var parts []string
	quiet := 0
	for _, a := range r.Addresses {
		s := a.silence(r.ResolutionMS)
		if s == belowResolution {
			quiet++
			s = "below"
		}
		parts = append(parts, strings.TrimSuffix(s, " ms"))
	}
	if quiet == len(parts) {
		return belowResolution
	}
	if len(slices.Compact(slices.Clone(parts))) == 1 {
		return parts[0] + " ms each"
	}
	return strings.Join(parts, "/") + " ms"
}

// terminal is how many columns a line may have: what a console shows unbroken.
const terminal = 120

// Line is the result as one line for people, and one more for each thing that
// puts it in doubt or was wrong.
func (r Result) Line(eventNoise float64) string {
	if r.Skipped != "" {
		return fmt.Sprintf("%s: skipped, it %s", r.Text, r.Skipped)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s→%s, silence %s", r.Text, r.Before, r.After, r.silences())
	if rounds, proven, most, held := r.twice(); rounds == 0 && held == 0 {
		b.WriteString(", nothing twice")
	} else {
		fmt.Fprintf(&b, ", answered twice %s, held twice %s", answeredTwice(rounds, proven, most), heldFor(held, eventNoise))
	}
	if r.SuspectMS >= 0 {
		fmt.Fprintf(&b, ", suspect %s", happened(r.SuspectMS))
	}
	if r.OffMS >= 0 {
		fmt.Fprintf(&b, ", off %s", happened(r.OffMS))
	}
	if r.CleanMS >= 0 {
		fmt.Fprintf(&b, ", clean %s", happened(r.CleanMS))
	}
	if line := b.String(); utf8.RuneCountInString(line) > terminal {
		b.Reset()
		b.WriteString(r.Text + ":\n    " + strings.TrimPrefix(line, r.Text+": "))
	}
	for _, note := range slices.Concat(r.Notes, r.doubts()) {
		b.WriteString("\n    " + note)
	}
	if r.Error != "" {
		b.WriteString("\n    ! " + r.Error)
	}
	return b.String()
}

// stallTold is the shortest stall, in milliseconds, that is told.
const stallTold = 5

// doubts says where the measuring itself was blind.
func (r Result) doubts() []string {
	var out []string
	torn := 0
	for _, a := range r.Addresses {
		torn += a.TornRounds
	}
	if r.StallMS >= stallTold {
		out = append(out, fmt.Sprintf("the prober itself did not run for %.0f ms: a shorter silence or overlap may have gone unseen", r.StallMS))
	}
	if r.LateAnswers > 0 {
		out = append(out, fmt.Sprintf("%d answers came more than %v late", r.LateAnswers, settleRounds*probePeriod))
	}
	if r.LostAnswers > 0 {
		out = append(out, fmt.Sprintf("%d answers came so late that they count for nothing: an overlap may have gone unseen", r.LostAnswers))
	}
	if torn > 0 {
		out = append(out, fmt.Sprintf("%d rounds that two nodes answered were torn apart by the scheduler and prove nothing", torn))
	}
	return out
}

// Table prints the report for people: a row for each fault, or medians and
// worst where faults were repeated. It fits 120 columns.
func (r Report) Table(w io.Writer) {
	if len(r.Summary) > 0 {
		summaryTable(w, r.Summary, r.NoiseMS, r.EventNoiseMS)
	} else {
		r.resultTable(w)
	}
	worst := 0.0
	for _, res := range r.Results {
		worst = max(worst, res.ResolutionMS)
	}
	hooks := "with a service that a switch has to stop"
	if !r.Hooks {
		hooks = "without services"
	}
	fmt.Fprintf(w, "Asked every %.0f ms. Noise floor of silences %.1f ms, at worst %.1f ms before a fault;\nlengths of answered twice ± %.0f ms; held twice %.1f ms.\n",
		r.PeriodMS, r.NoiseMS, max(worst, r.NoiseMS), r.PeriodMS, r.EventNoiseMS)
	fmt.Fprintf(w, "Profile %s, %d coordinators, %d hypervisors, %s; %s in all.\n",
		r.Profile, r.Coordinators, r.Hypervisors, hooks, time.Duration(r.Seconds*float64(time.Second)).Round(time.Second))
	for _, v := range r.Violations {
		fmt.Fprintf(w, "BROKEN %s at %.3f s: %s\n", v.Invariant, float64(v.At)/1e9, v.Text)
	}
	if len(r.Violations) == 0 {
		fmt.Fprintln(w, "Invariants I1 to I10, as far as the history shows them: held.")
	}
}

// faultWidth is the first column's.
const faultWidth = 26

func wrapped(s string) string {
	var lines []string
	for line := range strings.Lines(text.WrapSoft(s, faultWidth)) {
		lines = append(lines, strings.TrimSpace(line))
	}
	return strings.Join(lines, "\n")
}

// newTable makes a table whose columns are at most so wide.
func newTable(w io.Writer, widths ...int) table.Writer {
	t := table.NewWriter()
	t.SetOutputMirror(w)
	t.SetStyle(table.StyleLight)
	t.Style().Format.Header = text.FormatDefault
	t.Style().Options.SeparateRows = false
	var columns []table.ColumnConfig
	for i, width := range widths {
		c := table.ColumnConfig{Number: i + 1, WidthMax: width, WidthMaxEnforcer: text.WrapSoft}
		if i == 0 {
			c.WidthMaxEnforcer = func(s string, _ int) string { return s } // wrapped, and breaks lines on purpose
		}
		columns = append(columns, c)
	}
	t.SetColumnConfigs(columns)
	return t
}

func (r Report) resultTable(w io.Writer) {
	t := newTable(w, faultWidth, 12, 12, 12, 8, 10, 7, 8)
	header := table.Row{"fault, role"}
	for _, a := range FloatingAddresses() {
		header = append(header, "silence "+a.Name)
	}
	t.AppendHeader(append(header, "answered twice", "held twice", "suspect", "verified off"))
	for _, res := range r.Results {
		row := table.Row{wrapped(res.Text) + fmt.Sprintf("\n%s → %s", res.Before, res.After)}
		if res.Skipped != "" {
			t.AppendRow(table.Row{wrapped(res.Text) + "\n" + wrapped("skipped, it "+res.Skipped)})
			continue
		}
		for _, a := range res.Addresses {
			row = append(row, a.silence(res.ResolutionMS))
		}
		rounds, proven, most, held := res.twice()
		t.AppendRow(append(row, answeredTwice(rounds, proven, most), heldFor(held, r.EventNoiseMS), happened(res.SuspectMS), happened(res.OffMS)))
	}
	t.Render()
}

// Summary is what repeated runs of one fault come to, in milliseconds; −1
// where it never happened.
type Summary struct {
	Fault         string  `json:"fault"`
	Text          string  `json:"text"`
	Runs          int     `json:"runs"`
	SilenceMedian float64 `json:"silence_median_ms"` // of each run's longest, over all addresses
	SilenceWorst  float64 `json:"silence_worst_ms"`
	TwiceRounds   int     `json:"answers_twice_rounds"`
	TwiceWorst    float64 `json:"answers_twice_worst_ms"`      // proven
	TwiceMost     float64 `json:"answers_twice_worst_most_ms"` // at most
	HeldWorst     float64 `json:"held_twice_worst_ms"`
	SuspectMedian float64 `json:"suspect_median_ms"`
	OffMedian     float64 `json:"verified_off_median_ms"`
	OffWorst      float64 `json:"verified_off_worst_ms"`
	// Fences is how many were begun in all runs; Keepalive is the longest time
	// between two keepalives of a node, of each run.
	Fences          int     `json:"fences_begun"`
	KeepaliveMedian float64 `json:"keepalive_longest_median_ms"`
	KeepaliveWorst  float64 `json:"keepalive_longest_worst_ms"`
}

// Line is what the runs come to where nobody was to be fenced, in one line for
// people, or two.
func (s Summary) Line() string {
	said := fmt.Sprintf("%d rounds, %d fences begun; a node's keepalives at most %s apart, in the median round %s",
		s.Runs, s.Fences, happened(s.KeepaliveWorst), happened(s.KeepaliveMedian))
	if line := s.Fault + ": " + said; utf8.RuneCountInString(line) <= terminal {
		return line
	}
	return s.Fault + ":\n    " + said
}

// Summarise groups the results by fault, in the order of first appearance.
func Summarise(results []Result) []Summary {
	var order []string
	runs := map[string][]Result{}
	for _, r := range results {
		if _, seen := runs[r.Fault]; !seen {
			order = append(order, r.Fault)
		}
		runs[r.Fault] = append(runs[r.Fault], r)
	}
	var out []Summary
	for _, name := range order {
		sum := Summary{Fault: name, Text: runs[name][0].Text, Runs: len(runs[name])}
		var silences, suspects, offs, keepalives []float64
		for _, r := range runs[name] {
			var longest float64
			for _, a := range r.Addresses {
				longest = max(longest, a.SilenceMS)
				sum.TwiceRounds += a.TwiceRounds
				sum.TwiceWorst, sum.TwiceMost = max(sum.TwiceWorst, a.TwiceMS), max(sum.TwiceMost, a.TwiceMostMS)
				sum.HeldWorst = max(sum.HeldWorst, a.HeldTwiceMS)
			}
			if r.Skipped == "" {
				silences = append(silences, longest)
			}
			sum.Fences += r.Fences
			if r.KeepaliveMS >= 0 {
				keepalives = append(keepalives, r.KeepaliveMS)
			}
			if r.SuspectMS >= 0 {
				suspects = append(suspects, r.SuspectMS)
			}
			if r.OffMS >= 0 {
				offs = append(offs, r.OffMS)
			}
		}
		sum.SilenceMedian, sum.SilenceWorst = medianWorst(silences)
		sum.SuspectMedian, _ = medianWorst(suspects)
		sum.OffMedian, sum.OffWorst = medianWorst(offs)
		sum.KeepaliveMedian, sum.KeepaliveWorst = medianWorst(keepalives)
		out = append(out, sum)
	}
	return out
}

// medianWorst returns −1, −1 for no values.
func medianWorst(values []float64) (median, worst float64) {
	if len(values) == 0 {
		return -1, -1
	}
	slices.Sort(values)
	middle := len(values) / 2
	median = values[middle]
	if len(values)%2 == 0 {
		median = (values[middle-1] + values[middle]) / 2
	}
	return median, values[len(values)-1]
}

func summaryTable(w io.Writer, sums []Summary, noise, eventNoise float64) {
	t := newTable(w, faultWidth, 4, 11, 11, 8, 10, 7, 7, 7)
	t.AppendHeader(table.Row{"fault", "runs", "silence median", "silence worst", "answered twice", "held twice", "suspect median", "off median", "off worst"})
	for _, s := range sums {
		t.AppendRow(table.Row{wrapped(s.Text), s.Runs, below(s.SilenceMedian, noise), below(s.SilenceWorst, noise),
			answeredTwice(s.TwiceRounds, s.TwiceWorst, s.TwiceMost), heldFor(s.HeldWorst, eventNoise), happened(s.SuspectMedian), happened(s.OffMedian), happened(s.OffWorst)})
	}
	t.Render()
	for _, s := range sums {
		fmt.Fprintln(w, s.Line())
	}
}
