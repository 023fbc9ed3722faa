package sandbox

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// TestPromisesAreTakenFromTheLogOnce also where a line is being written, the
// daemon is killed in the middle of one, and other lines stand around.
func TestPromisesAreTakenFromTheLogOnce(t *testing.T) {
	start := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	boot := func(at time.Time) cluster.Instant { return ms(1000).Add(at.Sub(start)) }
	line := func(ms, rest string) string {
		return `{"level":"debug","time":"2030-01-02T03:04:05.` + ms + `Z",` + rest + "}\n"
	}
	asked := func(right, promised string) string {
		return `"msg":"asked in an outage","node":"hv2","peer":"hv1","right":"` + right + `","promised":"` + promised + `","code":"","detail":""`
	}
	promise := func(at int) Entry {
		return Entry{At: ms(at), Kind: KindPromise, Node: "hv2", By: "hv1", TTLMillis: 2800}
	}
	l := &promiseLog{node: "hv2", path: filepath.Join(t.TempDir(), "pvcnoded.log")}
	half := line("300", asked("role", "2.8s"))
	for _, step := range []struct {
		written string
		want    []Entry
	}{
		{"", nil},
		{line("100", asked("role", "2.8s")) + line("110", asked("work", "2.8s")) + line("120", asked("role", "0s")), []Entry{promise(1100)}},
		{line("200", `"msg":"commit","node":"hv2"`), nil},
		{half[:40], nil},
		{half[40:], []Entry{promise(1300)}},
		{half[:40] + "\n" + "panic: asked in an outage\n" + line("400", asked("role", "2.8s")), []Entry{promise(1400)}},
	} {
		f, err := os.OpenFile(l.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(step.written); err != nil {
			t.Fatal(err)
		}
		f.Close()
		got, err := l.fresh(boot)
		if err != nil || !reflect.DeepEqual(got, step.want) {
			t.Errorf("after %q: %+v (%v), want %+v", step.written, got, err, step.want)
		}
	}
}

func TestALogThatIsNotThereHoldsNoPromise(t *testing.T) {
	l := &promiseLog{node: "hv2", path: filepath.Join(t.TempDir(), "none")}
	if got, err := l.fresh(func(time.Time) cluster.Instant { return 0 }); got != nil || err != nil {
		t.Errorf("%v, %v", got, err)
	}
}
