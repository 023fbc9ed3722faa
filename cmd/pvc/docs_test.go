package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

// typed finds what a document tells people to type, in lines of code and
// within backquotes.
var typed = regexp.MustCompile("(?m)^    (?:\\$ |sudo )?((?:bin/)?pvc [^#\n]*)|`((?:bin/)?pvc [^`]*)`")

// Every command that people are told to type exists with those flags.
func TestDocumentsTypeCommandsThatExist(t *testing.T) {
	files, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(files) < 2 {
		t.Fatal(files, err)
	}
	app := newApp(strings.NewReader(""), &bytes.Buffer{}, &bytes.Buffer{})
	found := 0
	for _, file := range append(files, "../../README.md", "../../etc/pvcnoded.yaml", "../../etc/pvcapid.yaml") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range typed.FindAllStringSubmatch(string(text), -1) {
			line := strings.ReplaceAll(m[1]+m[2], "\n", " ")
			found++
			if wrong := misses(app, strings.Fields(line)[1:]); wrong != "" {
				t.Errorf("%s: `%s`: %s", file, line, wrong)
			}
		}
	}
	if found < 60 {
		t.Fatalf("found only %d commands", found)
	}
}

// misses says what of the words no command knows.
func misses(app *cli.App, words []string) string {
	commands, flags := app.Commands, slices.Clone(app.Flags)
	path := "pvc"
	for _, word := range words {
		word, _, _ = strings.Cut(strings.TrimRight(word, ".,;:)…"), "=")
		if strings.HasPrefix(word, "-") {
			name := strings.TrimLeft(word, "-")
			if !slices.ContainsFunc(flags, func(f cli.Flag) bool { return slices.Contains(f.Names(), name) }) {
				return path + " has no flag " + word
			}
			continue
		}
		i := slices.IndexFunc(commands, func(c *cli.Command) bool { return c.HasName(word) })
		if i >= 0 {
			path, commands, flags = path+" "+word, commands[i].Subcommands, append(flags, commands[i].Flags...)
		} else if len(commands) > 0 && regexp.MustCompile(`^[a-z]+$`).MatchString(word) {
			return "there is no " + path + " " + word
		}
	}
	return ""
}

// The test above would see a command or a flag that is no more.
func TestMissesSeesWhatIsWrong(t *testing.T) {
	app := newApp(strings.NewReader(""), &bytes.Buffer{}, &bytes.Buffer{})
	for line, right := range map[string]bool{
		"node primary hv2 --wait": true, "--api http://hv2:7370 node list": true, "history -o json": true, "doctor -c FILE": true,
		"node primary --force": false, "reboot hv1": false, "fence shoot hv2": false, "fence now hv2 --confirm": false, "cluster maintenance on --because x": false,
	} {
		if got := misses(app, strings.Fields(line)); (got == "") != right {
			t.Errorf("%s: %q", line, got)
		}
	}
}
