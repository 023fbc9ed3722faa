package settings

import (
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"pvc.internal/cluster"
)

// Inspection is a settings file as it was understood: every value in effect,
// and where it comes from.
type Inspection struct {
	Program  string // pvcnoded or pvcapid
	File     string
	Settings []Setting
	Warnings []string

	rows    []row
	timing  cluster.Timing
	options cluster.TimingOptions
}

// Setting is one value in effect.
type Setting struct {
	Key    string // dotted, elements of lists numbered from 0
	Value  string // as YAML; what may be a secret is not in it
	Origin string // default, a profile, the file's line, or an environment variable

	raw any // the value itself, to be compared only
}

// row is a line of the settings as YAML.
type row struct {
	text   string // with its indentation
	origin string // "" for what only holds others
}

func inspect(program string, doc *document, file any, t cluster.Timing, o cluster.TimingOptions, warnings []string) Inspection {
	i := Inspection{Program: program, File: doc.path, Warnings: warnings, timing: t, options: o}
	w := inspector{doc: doc, into: &i}
	w.fields(reflect.ValueOf(file).Elem(), "", "", "")
	return i
}

// inspector walks the decoded file.
type inspector struct {
	doc     *document
	into    *Inspection
	profile string // of the timing
	sparse  bool   // within an element of a list: only what is set is shown
}

// fields shows a structure's keys, the first of them behind first, the others
// behind lead.
func (w *inspector) fields(v reflect.Value, key, first, lead string) {
	for i := range v.NumField() {
		name, options, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ",")
		switch {
		case options == "squash":
			w.fields(v.Field(i), key, first, lead)
		case name != "" && name != "-":
			if w.sparse && v.Field(i).IsZero() && w.doc.origin(join(key, name)) == "" {
				continue
			}
			w.field(v.Field(i), name, join(key, name), first, lead)
			first = lead
		}
	}
}

// field shows one key with what it holds.
func (w *inspector) field(v reflect.Value, name, key, first, lead string) {
	if v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	if text, ok := w.scalar(v, key); ok {
		w.show(first+name+": "+text, Setting{Key: key, Value: text, raw: v.Interface()})
		return
	}
	w.into.rows = append(w.into.rows, row{text: first + name + ":"})
	w.inner(v, key, lead+"  ", lead+"  ")
}

// inner shows what holds others, without a name of its own.
func (w *inspector) inner(v reflect.Value, key, first, lead string) {
	switch v.Kind() {
	case reflect.Struct:
		w.fields(v, key, first, lead)
	case reflect.Map:
		names := v.MapKeys()
		slices.SortFunc(names, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
		sparse := w.sparse
		w.sparse = true
		for _, name := range names {
			w.field(v.MapIndex(name), name.String(), join(key, name.String()), first, lead)
			first = lead
		}
		w.sparse = sparse
	case reflect.Slice:
		sparse := w.sparse
		w.sparse = true
		for i := range v.Len() {
			w.inner(v.Index(i), fmt.Sprintf("%s[%d]", key, i), first+"- ", lead+"  ")
			first = lead
		}
		w.sparse = sparse
	}
}

// scalar returns a value that fits into one line.
func (w *inspector) scalar(v reflect.Value, key string) (string, bool) {
	switch {
	case v.Type() == reflect.TypeFor[time.Duration]():
		return v.Interface().(time.Duration).String(), true
	case v.Kind() == reflect.Struct:
		return "", false
	case v.Kind() == reflect.Map:
		return "{}", v.Len() == 0
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.String:
		return flow(hideWords(v.Interface().([]string))), true
	case v.Kind() == reflect.Slice:
		return "[]", v.Len() == 0
	case v.Kind() == reflect.String:
		return flow(hide(key, v.String())), true
	}
	return fmt.Sprint(v.Interface()), true
}

// flow returns a value as YAML in one line.
func flow(value any) string {
	var n yaml.Node
	if err := n.Encode(value); err != nil {
		return fmt.Sprintf("%q", fmt.Sprint(value))
	}
	n.Style = yaml.FlowStyle
	if n.Kind == yaml.ScalarNode {
		n.Style = 0
		if strings.ContainsAny(n.Value, "\n\r") {
			n.Style = yaml.DoubleQuotedStyle
		}
	}
	for _, element := range n.Content {
		if strings.ContainsAny(element.Value, "\n\r") {
			element.Style = yaml.DoubleQuotedStyle
		}
	}
	text, err := yaml.Marshal(&n)
	if err != nil {
		return fmt.Sprintf("%q", fmt.Sprint(value))
	}
	return strings.Join(strings.Fields(string(text)), " ")
}

const hidden = "(not shown)"

// hide returns a value that may be shown: of what could be a secret only that
// it is there. References, which end in _file, are no secrets.
func hide(key, value string) string {
	leaf := key[strings.LastIndex(key, ".")+1:]
	switch {
	case value == "":
		return value
	case leaf == "password_sealed":
		return hidden
	case strings.Contains(key, ".options.") && secretWord.MatchString(leaf):
		return hidden
	}
	return value
}

// hideWords is hide for a command: an argument that follows a word like
// --password, or holds such a word with its value, is not shown.
func hideWords(words []string) []string {
	shown := make([]string, len(words))
	for i, word := range words {
		name, _, assigned := strings.Cut(word, "=")
		switch {
		case assigned && secretWord.MatchString(name):
			shown[i] = name + "=" + hidden
		case i > 0 && strings.HasPrefix(words[i-1], "-") && !strings.Contains(words[i-1], "=") && secretWord.MatchString(words[i-1]):
			shown[i] = hidden
		default:
			shown[i] = word
		}
	}
	return shown
}

func (w *inspector) show(text string, s Setting) {
	key := s.Key
	if key == "timing.profile" {
		w.profile = s.Value
	}
	origin := w.doc.origin(key)
	switch {
	case origin != "":
	case key == "node.name":
		origin = "the host's name"
	case key == "timing.collector_deadline":
		origin = "0.8 × keepalive_interval"
	case strings.HasPrefix(key, "timing.") && key != "timing.profile":
		origin = "profile " + w.profile
	default:
		origin = "default"
	}
	s.Origin = origin
	w.into.Settings = append(w.into.Settings, s)
	w.into.rows = append(w.into.rows, row{text, origin})
}

// originColumn is where the origins stand, if the value leaves room.
const originColumn = 44

// Write prints the settings as YAML, each with where it comes from, the times
// that follow from them, and the warnings. Where nothing is hidden the whole is
// itself a settings file that means the same.
func (i Inspection) Write(to io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "# %s: the settings of %s that are in effect, and where each comes from\n", i.File, i.Program)
	for _, r := range i.rows {
		if r.origin == "" {
			fmt.Fprintln(&b, r.text)
			continue
		}
		fmt.Fprintf(&b, "%-*s # %s\n", originColumn, r.text, r.origin)
	}
	fmt.Fprintf(&b, "#\n# worst cases that follow, where one node loses power and all else works:\n")
	for _, c := range worstCases(i.timing, i.options) {
		fmt.Fprintf(&b, "# %9.2f s  %s\n", c.time.Seconds(), c.about)
	}
	for _, warning := range i.Warnings {
		fmt.Fprintf(&b, "# warning: %s\n", strings.ReplaceAll(warning, "\n", "; "))
	}
	_, err := io.WriteString(to, b.String())
	return err
}

type worstCase struct {
	time  time.Duration
	about string
}

// worstCases are what `pvc timing` tells of a running cluster.
func worstCases(t cluster.Timing, o cluster.TimingOptions) []worstCase {
	w := t.Worst(o)
	return []worstCase{
		{w.Detect, "until the node is dead to the others"},
		{w.HolderStops, "until a cut-off primary has ended all effects, after its last acknowledged renewal"},
		{w.TakeOver, "until a new primary answers for the addresses"},
		{w.TakeOverMedian, "the same, in the middle of many"},
		{w.TakeOverLeader, "the same, where the lost node carried ZooKeeper's leader"},
		{w.SelfStop, "until a cut-off node has stopped its protected work"},
		{w.FenceClaimed, "until a fence is claimed"},
		{w.Fence, "until the node is verified off by its device"},
		{w.WatchdogProof, "until its armed watchdog is proof enough"},
	}
}

// Differ returns the keys whose values differ between two readings, sorted.
func Differ(before, after Inspection) []string {
	values := map[string]any{}
	for _, s := range before.Settings {
		values[s.Key] = s.raw
	}
	var keys []string
	for _, s := range after.Settings {
		if old, ok := values[s.Key]; !ok || !reflect.DeepEqual(old, s.raw) {
			keys = append(keys, s.Key)
		}
		delete(values, s.Key)
	}
	for key := range values {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}
