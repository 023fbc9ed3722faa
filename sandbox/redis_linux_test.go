package sandbox

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"pvc.internal/cluster"
)

// A Redis is spoken to by the password of its own workload, or without one.
func TestAWorkloadsOwnPasswordIsUsed(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "pass")
	if err := os.WriteFile(file, []byte("an operator's own\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		params map[string]string
		want   []string
	}{
		"none":             {nil, nil},
		"a password":       {map[string]string{"password_file": file}, []string{"default", "an operator's own"}},
		"a user":           {map[string]string{"password_file": file, "user": "app"}, []string{"app", "an operator's own"}},
		"a user, no word":  {map[string]string{"user": "app"}, []string{"app", "none"}},
		"the default user": {map[string]string{"user": "default"}, nil},
	} {
		got, err := redisAuth(cluster.Workload{Name: "no-such-workload-anywhere", Params: c.params})
		if err != nil || !slices.Equal(got, c.want) || (got == nil) != (c.want == nil) {
			t.Errorf("%s: %q, %v; want %q", name, got, err, c.want)
		}
	}
	if _, err := redisAuth(cluster.Workload{Name: "a", Params: map[string]string{"password_file": file + ".no"}}); err == nil {
		t.Error("a password that cannot be read is taken for none")
	}
}
