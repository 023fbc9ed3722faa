package proc

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestABoundChildDiesWithItsParent has this binary, run anew, start a child, and
// kills it.
func TestABoundChildDiesWithItsParent(t *testing.T) {
	if file := os.Getenv("BOUND_CHILD_OF"); file != "" {
		p, err := StartBound(sh(Command{}, `echo $$ > `+file+`; exec sleep 1000`))
		if err != nil {
			t.Fatal(err)
		}
		<-p.Done()
		return
	}
	file := filepath.Join(t.TempDir(), "pid")
	parent := start(t, Command{Argv: []string{os.Args[0], "-test.run=^TestABoundChildDiesWithItsParent$"}, Env: map[string]string{"BOUND_CHILD_OF": file}})
	child := pidIn(t, file)
	if group := groupOf(child); group != "" && isOurs(group) && !strings.HasPrefix(filepath.Base(group), runPrefix) {
		t.Errorf("its group %s is not one that a later start sweeps", group)
	}
	if err := unix.Kill(parent.Pid(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the child is gone", func() bool { return !running(child) })
}
