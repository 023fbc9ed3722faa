package acceptance

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
)

// reasons are why tests have failed, as far as a wait or a comparison of words
// has told. A failed test prints pages of its nodes' logs after its reason; all
// reasons stand again at the very end of the run.
var reasons failed

type failed struct {
	mu   sync.Mutex
	list []reason
}

type reason struct{ test, text string }

// longestReason bounds one, in bytes.
const longestReason = 1500

func (f *failed) note(t *testing.T, text string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.list = append(f.list, reason{t.Name(), text[:min(len(text), longestReason)]})
}

// of are the reasons of one test.
func (f *failed) of(test string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var b strings.Builder
	for _, r := range f.list {
		if r.test == test {
			fmt.Fprintln(&b, r.text)
		}
	}
	if b.Len() == 0 {
		return "it stands in the lines before the logs"
	}
	return b.String()
}

// print writes all of them.
func (f *failed) print(w io.Writer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.list {
		fmt.Fprintf(w, "FAILED %s: %s\n", r.test, r.text)
	}
}

// fails ends the test with a reason that is repeated at the end of the run.
func fails(t *testing.T, format string, args ...any) {
	t.Helper()
	text := fmt.Sprintf(format, args...)
	reasons.note(t, text)
	t.Fatal(text)
}
