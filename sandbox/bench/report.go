package bench

import (
	"fmt"
	"io"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"

	"pvc.internal/sandbox"
)

// Machine is what the figures were taken on.
type Machine struct {
	Processor  string  `json:"processor"`
	Processors int     `json:"processors"`
	MemoryMiB  int     `json:"memory_mib"`
	Kernel     string  `json:"kernel"`
	Go         string  `json:"go"`
	LoadBefore float64 `json:"load_before"` // the one-minute average
	LoadAfter  float64 `json:"load_after"`
}

// Report is all that was measured.
type Report struct {
	Machine    Machine             `json:"machine"`
	NoiseMS    float64             `json:"noise_floor_ms"` // worst of all clusters at rest
	Quick      bool                `json:"quick,omitempty"`
	Runs       int                 `json:"runs"`
	Figures    []Figure            `json:"figures"`
	Violations []sandbox.Violation `json:"violations"`
	Failed     []string            `json:"failed,omitempty"` // parts that could not be carried out, and why
	Seconds    float64             `json:"seconds"`
}

// Missed counts the figures that miss their target.
func (r Report) Missed() int {
	n := 0
	for _, f := range r.Figures {
		if f.Verdict == Missed {
			n++
		}
	}
	return n
}

// Err is nil if every part was carried out and no invariant was broken. A
// missed target is no error: it is a figure.
func (r Report) Err() error {
	switch {
	case len(r.Violations) > 0:
		v := r.Violations[0]
		return fmt.Errorf("%d times an invariant was broken; the first: %s %s", len(r.Violations), v.Invariant, v.Text)
	case len(r.Failed) > 0:
		return fmt.Errorf("not every part could be carried out: %s", strings.Join(r.Failed, "; "))
	}
	return nil
}

// Table prints the report for people.
func (r Report) Table(w io.Writer) {
	t := table.NewWriter()
	t.SetOutputMirror(w)
	t.SetStyle(table.StyleLight)
	t.AppendHeader(table.Row{"part", "figure", "runs", "median", "worst", "target", ""})
	last := ""
	for _, f := range r.Figures {
		name := f.Part
		if name == last {
			name = ""
		} else if last != "" {
			t.AppendSeparator()
		}
		last = f.Part
		what := f.What
		if f.Note != "" {
			what += " (" + f.Note + ")"
		}
		row := table.Row{name, what, f.Runs, "", "", f.Target, string(f.Verdict)}
		if f.Runs > 0 {
			row[3], row[4] = quantity(f.Median, f.Unit), quantity(f.Worst, f.Unit)
		}
		t.AppendRow(row)
	}
	t.Render()
	m := r.Machine
	fmt.Fprintf(w, "On %d × %s, %d MiB, Linux %s, %s; load %.1f before, %.1f after. Noise floor %.1f ms: what is shorter is below resolution. %.0f s in all.\n",
		m.Processors, m.Processor, m.MemoryMiB, m.Kernel, m.Go, m.LoadBefore, m.LoadAfter, r.NoiseMS, r.Seconds)
	if r.Quick {
		fmt.Fprintln(w, "Quick: the long parts had fewer runs than the full bench gives them.")
	}
	for _, v := range r.Violations {
		fmt.Fprintf(w, "BROKEN %s at %.3f s: %s\n", v.Invariant, float64(v.At)/1e9, v.Text)
	}
	for _, f := range r.Failed {
		fmt.Fprintln(w, "FAILED", f)
	}
	fmt.Fprintf(w, "%d figures, %d miss their target.\n", len(r.Figures), r.Missed())
}
