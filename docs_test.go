package pvc_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func text(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// Whoever is refused must find the code in the guide, and none that is no more.
func TestGuideExplainsEveryRefusal(t *testing.T) {
	guide := text(t, "docs/operator-guide.md")
	codes := map[string]bool{}
	files, err := filepath.Glob("cluster/*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		for _, m := range regexp.MustCompile(`RefusalCode\s+= "([a-z_]+)"`).FindAllStringSubmatch(text(t, file), -1) {
			codes[m[1]] = true
			if !strings.Contains(guide, "\n| `"+m[1]+"` |") {
				t.Errorf("docs/operator-guide.md does not explain %s", m[1])
			}
		}
	}
	if len(codes) < 30 {
		t.Fatalf("found only %d codes in cluster/*.go", len(codes))
	}
	_, table, _ := strings.Cut(guide, "\n## Refusals\n")
	table, _, _ = strings.Cut(table, "\n## ")
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\|").FindAllStringSubmatch(table, -1) {
		if !codes[m[1]] {
			t.Errorf("docs/operator-guide.md explains %s, which is no code any more", m[1])
		}
	}
}

// section is the guide's text below a heading, to the next of its kind.
func section(t *testing.T, heading string) string {
	t.Helper()
	_, rest, found := strings.Cut(text(t, "docs/operator-guide.md"), "\n## "+heading+"\n")
	if !found {
		t.Fatalf("docs/operator-guide.md has no section %q", heading)
	}
	rest, _, _ = strings.Cut(rest, "\n## ")
	return rest
}

// told collects what the expressions capture in the files that are no tests.
func told(t *testing.T, globs []string, expressions ...string) map[string]bool {
	t.Helper()
	words := map[string]bool{}
	for _, glob := range globs {
		files, err := filepath.Glob(glob)
		if err != nil || len(files) == 0 {
			t.Fatal(glob, err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			for _, e := range expressions {
				for _, m := range regexp.MustCompile(e).FindAllStringSubmatch(text(t, file), -1) {
					words[m[1]] = true
				}
			}
		}
	}
	return words
}

// What is written into the history, costs health or is complained of by a guard
// stands in the guide, so that whoever reads it there can look it up.
func TestGuideExplainsWhatIsTold(t *testing.T) {
	for heading, c := range map[string]struct {
		words map[string]bool
		least int
		mark  string // around the word in the guide
	}{
		"History": {told(t, []string{"agent/*.go", "agent/role/*.go", "api/*.go", "fencing/*.go", "cluster/*.go", "zkhandler/*.go"},
			`\bnote\(true, "([a-z_]+)"`, `\bnoteOnce\("([a-z_]+)"`, `Record: true, Kind: "([a-z_]+)"`, `cluster\.Event\{[^}]*?Kind: "([a-z_]+)"`,
			`\.event\(r, "([a-z_]+)"`, `\b[eE]vent[A-Z]\w*\s+= "([a-z_]+)"`), 24, "`%s`"},
		"Health": {told(t, []string{"api/status.go"}, `\badd\((?:fmt\.Sprintf\()?"([A-Z_]+?)_?(?:"|%)`), 11, "`%s"},
	} {
		if len(c.words) < c.least {
			t.Errorf("found only %d of what belongs under %q: %v", len(c.words), heading, c.words)
		}
		for word := range c.words {
			if !strings.Contains(section(t, heading), strings.ReplaceAll(c.mark, "%s", word)) {
				t.Errorf("docs/operator-guide.md does not explain %s under %q", word, heading)
			}
		}
	}
	for subject := range told(t, []string{"router/guard/*.go"}, `\bfault\("([a-z ]+)"`, `subject := (?:fmt\.Sprintf\()?"([a-z]+ of )`) {
		if !strings.Contains(section(t, "Health"), "\n| `"+subject) {
			t.Errorf("docs/operator-guide.md does not explain the guard's fault %q", subject)
		}
	}
}

// The documents point at files that are there.
func TestDocumentsPointAtFiles(t *testing.T) {
	for _, doc := range []string{"README.md", "DESIGN.md"} {
		for _, m := range regexp.MustCompile(`\]\(([^):#]+)\)`).FindAllStringSubmatch(text(t, doc), -1) {
			if _, err := os.Stat(m[1]); err != nil {
				t.Errorf("%s: %v", doc, err)
			}
		}
	}
}
