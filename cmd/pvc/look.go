package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"pvc.internal/api"
	"pvc.internal/cluster"
)

// watchFlag has a command go on with what it shows.
func watchFlag() cli.Flag {
	return &cli.BoolFlag{Name: "watch", Usage: "go on: redraw on change; into a pipe a line for each change, with -o json an object a line"}
}

// watchLook is how often a command with --watch looks; tests are less patient.
var watchLook = 500 * time.Millisecond

// look shows what a pvcapid answers, once or, with --watch, again and again.
// people prints it as tables to the terminal that it is given.
func look[T any](t *terminal, c *cli.Context, fetch func(context.Context, *api.Client) (T, error), people func(*terminal, T)) error {
	ask, err := client(c)
	if err != nil {
		return err
	}
	v, err := fetch(c.Context, ask)
	if err != nil {
		return err
	}
	if !c.Bool("watch") {
		return t.show(c, v, func() { people(t, v) })
	}
	shape, err := format(c)
	if err != nil {
		return err
	}
	w := &lookout{t: t, shape: shape, redraw: isTerminal(t.out) || t.screen, head: time.Now}
	for {
		if err := w.see(v, func(on *terminal) { people(on, v) }); err != nil {
			return err
		}
		if v, err = again(c.Context, ask, fetch, w); err != nil {
			return err
		}
	}
}

// again looks until it is answered. Only what will not pass by itself ends it.
func again[T any](ctx context.Context, ask *api.Client, fetch func(context.Context, *api.Client) (T, error), w *lookout) (T, error) {
	pause := time.NewTicker(watchLook)
	defer pause.Stop()
	for {
		var none T
		select {
		case <-pause.C:
		case <-ctx.Done():
			return none, ctx.Err()
		}
		v, err := fetch(ctx, ask)
		switch {
		case err == nil:
			w.lost = nil
			return v, nil
		case ctx.Err() != nil:
			return none, ctx.Err()
		case errors.Is(err, api.ErrUnreachable), errors.Is(err, cluster.ErrDeadline):
			if err := w.away(err); err != nil {
				return none, err
			}
		default:
			return none, err
		}
	}
}

// lookout prints what has changed between two looks.
type lookout struct {
	t      *terminal
	shape  string
	redraw bool
	head   func() time.Time
	seen   bool
	last   any    // as JSON has it
	drawn  string // the present screen
	lost   error
}

// see takes a look in; its error is that of the output.
func (w *lookout) see(value any, people func(*terminal)) error {
	raw, err := json.Marshal(value)
	if err != nil {
		return err
	}
	var now any
	if err := json.Unmarshal(raw, &now); err != nil {
		return err
	}
	lines := changes("", w.last, now)
	first := !w.seen
	w.last, w.seen = now, true
	switch {
	case !first && len(lines) == 0 && w.drawn == "":
		return nil
	case w.shape == formatJSON && (first || len(lines) > 0):
		_, err = fmt.Fprintf(w.t.out, "%s\n", raw)
	case w.shape == formatYAML && (first || len(lines) > 0):
		if _, err = fmt.Fprintln(w.t.out, "---"); err == nil {
			err = writeYAML(w.t.out, value)
		}
	case w.shape != formatTable:
	case w.redraw:
		return w.draw(people)
	case first:
		people(w.t)
	default:
		for _, line := range lines {
			if _, err = fmt.Fprintf(w.t.out, "%s  %s\n", w.head().Format("15:04:05.000"), line); err != nil {
				return err
			}
		}
	}
	return err
}

// draw shows the present where it differs from what is on the screen.
func (w *lookout) draw(people func(*terminal)) error {
	var page bytes.Buffer
	people(&terminal{out: &page, err: w.t.err, screen: true})
	if page.String() == w.drawn {
		return nil
	}
	w.drawn = page.String()
	_, err := fmt.Fprintf(w.t.out, "\x1b[H\x1b[2J%s\n%s", w.head().Format("15:04:05"), w.drawn)
	return err
}

// away tells, once, that nobody answers.
func (w *lookout) away(why error) error {
	if w.lost != nil {
		return nil //nolint:nilerr // told already
	}
	w.lost = why
	if w.shape != formatTable {
		_, err := fmt.Fprintf(w.t.err, "pvc: connection lost: %s\n", why)
		return err
	}
	w.drawn += " " // so that the next page is drawn
	_, err := fmt.Fprintf(w.t.out, "%s  connection lost, what was told is old: %s\n", w.head().Format("15:04:05.000"), why)
	return err
}

// passing are texts that change with every look and tell of no change: how long
// ago something was.
var passing = regexp.MustCompile(`[0-9][0-9.]* ?(ms|s|m|h)( ago)?\b`)

// measured are names of numbers that change with every look.
var measured = regexp.MustCompile(`(^|_)(age|seconds|left|rtt)$|_age_|^ages$`)

// changes says in a line each how two values of JSON differ.
func changes(at string, before, now any) []string {
	switch now := now.(type) {
	case map[string]any:
		was, _ := before.(map[string]any)
		keys := map[string]bool{}
		for k := range was {
			keys[k] = true
		}
		for k := range now {
			keys[k] = true
		}
		var lines []string
		for _, k := range sortedKeys(keys) {
			if !measured.MatchString(k) {
				lines = append(lines, changes(strings.TrimPrefix(at+" "+k, " "), was[k], now[k])...)
			}
		}
		return lines
	case []any:
		was, _ := before.([]any)
		return listChanges(at, was, now)
	}
	from, to := word(before), word(now)
	if before == nil && (now == false || now == 0.0) { // of what is new only what it says
		return nil
	}
	if passing.ReplaceAllString(from, "") == passing.ReplaceAllString(to, "") {
		return nil
	}
	return []string{fmt.Sprintf("%s: %s → %s", at, from, to)}
}

// listChanges compares what has a name by it, and says of the rest what is new.
func listChanges(at string, before, now []any) []string {
	var lines []string
	was := map[string]any{}
	for _, e := range before {
		was[nameOf(e)] = e
	}
	for _, e := range now {
		name := nameOf(e)
		old, there := was[name]
		delete(was, name)
		record, isRecord := e.(map[string]any)
		text, told := record["text"].(string)
		switch {
		case isRecord && told && !there:
			lines = append(lines, text)
		case isRecord:
			lines = append(lines, changes(strings.TrimPrefix(at+" "+name, " "), old, e)...)
		case !there:
			lines = append(lines, fmt.Sprintf("%s: %s", at, word(e)))
		}
	}
	for _, name := range sortedKeys(was) {
		if record, ok := was[name].(map[string]any); !ok || record["text"] == nil {
			lines = append(lines, strings.TrimPrefix(fmt.Sprintf("%s %s: gone", at, passing.ReplaceAllString(name, "…")), " "))
		}
	}
	slices.Sort(lines)
	return lines
}

// nameOf is by what an element of a list is known again: its name, or all of it.
func nameOf(e any) string {
	record, ok := e.(map[string]any)
	if !ok {
		return passing.ReplaceAllString(word(e), "")
	}
	if record["text"] == nil {
		keys := []string{"name", "id", "node"}
		if record["workload"] != nil { // a copy, whose id is its workload's
			keys = []string{"node"}
		}
		for _, key := range keys {
			if name, ok := record[key].(string); ok && name != "" {
				return name
			}
		}
	}
	return word(e)
}

// word renders a value in a line.
func word(v any) string {
	switch v := v.(type) {
	case nil:
		return "–"
	case string:
		if v == "" {
			return "–"
		}
		return v
	}
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(raw)
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
