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
