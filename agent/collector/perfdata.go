package collector

import (
	"math"
	"strconv"
	"strings"
)

// Perf is one figure of a plugin's performance data; the texts are as the
// plugin printed them, "" where it gave none.
type Perf struct {
	Value float64 `json:"value"`
	Unit  string  `json:"unit,omitempty"`
	Warn  string  `json:"warn,omitempty"`
	Crit  string  `json:"crit,omitempty"`
	Min   string  `json:"min,omitempty"`
	Max   string  `json:"max,omitempty"`
}

// maxPerf bounds how many figures of one plugin are kept.
const maxPerf = 200

// splitOutput divides a plugin's output into its first line's text and all of
// its performance data: what follows "|" in the first line, and what follows
// the first "|" of the lines after it.
func splitOutput(out string) (text, perf string) {
	first, rest, _ := strings.Cut(out, "\n")
	text, perf, _ = strings.Cut(first, "|")
	if _, more, found := strings.Cut(rest, "|"); found {
		perf += " " + more
	}
	return text, perf
}

// parsePerf reads "label=value[unit];warn;crit;min;max" items; a label with
// blanks stands in single quotes, doubled to mean one. What does not parse is
// left out.
func parsePerf(s string) map[string]Perf {
	all := map[string]Perf{}
	for len(all) < maxPerf {
		s = strings.TrimLeft(s, " \t\r\n")
		if s == "" {
			break
		}
		var label, item string
		var ok bool
		if label, s, ok = cutLabel(s); !ok {
			break
		}
		item, s = s, ""
		if end := strings.IndexAny(item, " \t\r\n"); end >= 0 {
			item, s = item[:end], item[end:]
		}
		if p, ok := parseFigure(item); ok && label != "" {
			all[strings.ToValidUTF8(label, "�")] = p
		}
	}
	return all
}

// cutLabel takes "label=" off the front; a word without "=" is skipped over as
// a label without a figure.
func cutLabel(s string) (label, rest string, ok bool) {
	if s[0] != '\'' {
		end := strings.IndexAny(s, "= \t\r\n")
		if end < 0 {
			return "", "", false
		}
		if s[end] != '=' {
			return "", s[end:], true
		}
		return s[:end], s[end+1:], true
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		if s[i] != '\'' {
			b.WriteByte(s[i])
			continue
		}
		if i+1 < len(s) && s[i+1] == '\'' {
			b.WriteByte('\'')
			i++
			continue
		}
		if i+1 < len(s) && s[i+1] == '=' {
			return b.String(), s[i+2:], true
		}
		return "", s[i+1:], true
	}
	return "", "", false
}

// parseFigure reads "value[unit];warn;crit;min;max"; ok is false where the
// value is no number ("U": the plugin could not tell).
func parseFigure(item string) (Perf, bool) {
	fields := strings.Split(item, ";")
	number := strings.TrimRightFunc(fields[0], func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	v, err := strconv.ParseFloat(number, 64)
	if err != nil || math.IsInf(v, 0) || math.IsNaN(v) {
		return Perf{}, false
	}
	p := Perf{Value: v, Unit: clip(fields[0][len(number):])}
	for i, to := range []*string{&p.Warn, &p.Crit, &p.Min, &p.Max} {
		if i+1 < len(fields) {
			*to = clip(fields[i+1])
		}
	}
	return p, true
}
