package bench

import (
	"fmt"
	"slices"
	"strings"
)

// Verdict is how a figure stands to its target.
type Verdict string

// The verdicts. A figure without a target has none.
const (
	Met    Verdict = "met"
	Missed Verdict = "MISSED"
)

// Figure is one measured quantity over its runs.
type Figure struct {
	Part    string    `json:"part"`
	What    string    `json:"what"`
	Unit    string    `json:"unit,omitempty"` // ms, MiB, %, keys; empty for other counts
	Runs    int       `json:"runs"`
	Median  float64   `json:"median"`
	Worst   float64   `json:"worst"`
	Target  string    `json:"target,omitempty"`
	Verdict Verdict   `json:"verdict,omitempty"`
	Note    string    `json:"note,omitempty"`
	Values  []float64 `json:"values,omitempty"` // by run
}

// limit is a bound of a figure's worst value, its median, or both.
type limit struct {
	worst, median       float64
	hasWorst, hasMedian bool
	more                bool // the worst is the least
}

func atLeast(worst float64) limit { return limit{worst: worst, hasWorst: true, more: true} }

func atMost(worst float64) limit { return limit{worst: worst, hasWorst: true} }

func (l limit) medianAtMost(median float64) limit {
	l.median, l.hasMedian = median, true
	return l
}

// none is no target.
var none = limit{}

// figure summarises the values; no values at all miss every target.
func figure(what, unit string, values []float64, target limit) Figure {
	f := Figure{What: what, Unit: unit, Runs: len(values), Values: slices.Clone(values), Target: target.describe(unit)}
	if len(values) == 0 {
		if f.Target != "" {
			f.Verdict = Missed
			f.Note = "nothing was measured"
		}
		return f
	}
	f.Median, f.Worst = median(values), slices.Max(values)
	if target.more {
		f.Worst = slices.Min(values)
	}
	if f.Target != "" {
		f.Verdict = Met
		if target.hasWorst && (f.Worst > target.worst) != target.more && f.Worst != target.worst || target.hasMedian && f.Median > target.median {
			f.Verdict = Missed
		}
	}
	return f
}

func (l limit) describe(unit string) string {
	var parts []string
	if l.hasWorst {
		switch {
		case l.more:
			parts = append(parts, "worst ≥ "+quantity(l.worst, unit))
		case l.worst == 0:
			parts = append(parts, "0")
		default:
			parts = append(parts, "worst ≤ "+quantity(l.worst, unit))
		}
	}
	if l.hasMedian {
		parts = append(parts, "median ≤ "+quantity(l.median, unit))
	}
	return strings.Join(parts, ", ")
}

// quantity renders a value for people.
func quantity(v float64, unit string) string {
	switch {
	case unit == "ms" && v >= 1000:
		return fmt.Sprintf("%.2f s", v/1000)
	case unit == "ms" && v < 10 && v != float64(int(v)):
		return fmt.Sprintf("%.1f ms", v)
	case unit == "ms":
		return fmt.Sprintf("%.0f ms", v)
	case unit == "keys":
		return fmt.Sprintf("%.0f", v)
	case unit == "":
		return fmt.Sprintf("%.4g", v)
	case unit == "%":
		return fmt.Sprintf("%.2f %%", v)
	}
	return fmt.Sprintf("%.1f %s", v, unit)
}

// median returns 0 for no values.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 0 {
		return (sorted[middle-1] + sorted[middle]) / 2
	}
	return sorted[middle]
}
