// Package golden runs the scripts that pin the decisions of the pure cores: a
// block of commands, a line of dashes, and what they must print. With -update
// the expectations are rewritten from what they do print, to be read in review.
package golden

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the expectations of the golden scripts")

const separator = "----"

// Run runs every testdata/*.txt of the calling package. For each file begin
// makes a fresh interpreter, which takes one command line and returns what it
// prints, lines without indentation or nothing. Empty lines end a block; lines
// that begin with "#" are comments.
func Run(t *testing.T, begin func(t *testing.T) func(line string) string) {
	t.Helper()
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts in testdata: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := rewrite(string(data), begin(t))
			if got == string(data) {
				return
			}
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			t.Error(difference(file, string(data), got))
		})
	}
}

// rewrite returns the script with the expectations that the interpreter earns.
func rewrite(script string, run func(string) string) string {
	var out strings.Builder
	for block := range strings.SplitSeq(strings.TrimRight(script, "\n"), "\n\n") {
		if out.Len() > 0 {
			out.WriteString("\n")
		}
		var printed strings.Builder
		commands := false
		for line := range strings.SplitSeq(block, "\n") {
			if line == separator {
				break
			}
			out.WriteString(line + "\n")
			if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
				continue
			}
			commands = true
			printed.WriteString(run(line))
		}
		if commands {
			out.WriteString(separator + "\n")
			out.WriteString(printed.String())
		}
	}
	return out.String()
}

func difference(file, want, got string) string {
	wants, gots := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range max(len(wants), len(gots)) {
		w, g := lineAt(wants, i), lineAt(gots, i)
		if w != g {
			return file + " differs first where it reads\n\t" + w + "\nand the decision is\n\t" + g + "\nin full:\n" + got
		}
	}
	return ""
}

func lineAt(lines []string, i int) string {
	if i < len(lines) {
		return lines[i]
	}
	return "(end)"
}
