package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/urfave/cli/v2"
	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"
)

// The output formats.
const (
	formatTable = "table"
	formatJSON  = "json"
	formatYAML  = "yaml"
)

func format(c *cli.Context) (string, error) {
	switch f := c.String("output"); f {
	case formatTable, formatJSON, formatYAML:
		return f, nil
	default:
		return "", usagef("--output %q is unknown: use table, json or yaml", f)
	}
}

// show prints the value as the user asked, or calls people to print it as a
// table.
func (t *terminal) show(c *cli.Context, value any, people func()) error {
	f, err := format(c)
	if err != nil {
		return err
	}
	switch f {
	case formatJSON:
		return writeJSON(t.out, value)
	case formatYAML:
		return writeYAML(t.out, value)
	}
	people()
	return nil
}

func writeJSON(w io.Writer, value any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(value)
}

// writeYAML has the names and the order of the JSON: it is read as the YAML
// that JSON is, and printed in block style.
func writeYAML(w io.Writer, value any) error {
	raw, err := json.Marshal(value)
	if err != nil {
		return err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(raw, &doc); err != nil {
		return fmt.Errorf("make YAML of the answer: %w", err)
	}
	blockStyle(&doc)
	e := yaml.NewEncoder(w)
	e.SetIndent(2)
	defer e.Close()
	return e.Encode(&doc)
}

func blockStyle(n *yaml.Node) {
	n.Style &^= yaml.FlowStyle
	if n.Kind == yaml.ScalarNode && n.Tag == "!!str" {
		n.Style = 0 // the encoder quotes what needs it
	}
	for _, child := range n.Content {
		blockStyle(child)
	}
}

// isTerminal reports whether w is one; only then is there colour or redrawing.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// painter colours words for people, or leaves them as they are.
type painter bool

func (t *terminal) painter() painter {
	return painter((t.screen || isTerminal(t.out)) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb")
}

func (p painter) paint(colour text.Color, word string) string {
	if !p || word == "" {
		return word
	}
	return "\x1b[" + fmt.Sprint(int(colour)) + "m" + word + "\x1b[0m"
}

// state colours a state's word by what it means.
func (p painter) state(word string) string {
	switch word {
	case "run", "primary", "ready", "Optimal", "done", "verified_off":
		return p.paint(text.FgGreen, word)
	case "dead", "fenced", "failed", "aborted":
		return p.paint(text.FgRed, word)
	case "takeover", "relinquish", "init", "shutdown", "stopping", "stop", "Degraded", "Maintenance", "flush", "unflush", "running":
		return p.paint(text.FgYellow, word)
	}
	return word
}

// grid is a table in the project's one style.
func (t *terminal) grid(header ...any) table.Writer {
	w := table.NewWriter()
	w.SetOutputMirror(t.out)
	w.SetStyle(table.StyleLight)
	w.SuppressTrailingSpaces()
	w.Style().Options = table.OptionsNoBordersAndSeparators
	w.Style().Format.Header = text.FormatUpper
	w.Style().Box.PaddingLeft, w.Style().Box.PaddingRight = "", "  "
	if len(header) > 0 {
		w.AppendHeader(header)
	}
	return w
}

func (t *terminal) say(f string, more ...any) { fmt.Fprintf(t.out, f+"\n", more...) }
