package fencing

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"
	"filippo.io/age/armor"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"pvc.internal/cluster"
)

// TestASecretIsPrintedByNobody tries every way that a value gets into a text.
func TestASecretIsPrintedByNobody(t *testing.T) {
	const word = "hunter2-hunter2"
	s := NewSecret(word)
	type exported struct{ Password Secret }
	type hidden struct{ password Secret }
	device := Device{Name: "d", Type: TypeIPMI}
	values := map[string]any{
		"itself": s, "pointer": &s, "exported": exported{s}, "hidden": hidden{s}, "hidden pointer": &hidden{s},
		"slice": []Secret{s}, "map": map[string]Secret{"a": s}, "key": map[Secret]int{s: 1}, "any": []any{s},
		"attempt": Attempt{Device: device, Password: word}, "attempt pointer": &Attempt{Device: device, Password: word},
		"redfish": newRedfish(device, s), "agent": agentDevice{device: device, password: s}, "exec": execDevice{device: device, password: s},
		"run": &redfishRun{conn: &redfishConn{password: s, token: s}}, "reply": redfishReply{token: s},
		"error": fmt.Errorf("it failed with %v: %w", s, errors.New("x")),
	}
	for name, value := range values {
		var told strings.Builder
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
			fmt.Fprintf(&told, verb+"\n", value)
		}
		fmt.Fprintln(&told, value)
		if name != "attempt" && name != "attempt pointer" { // whose JSON is the child's standard input
			data, _ := json.Marshal(value)
			told.Write(data)
			told.WriteString(logged(value))
		}
		if text := told.String(); strings.Contains(text, word) || strings.Contains(text, fmt.Sprintf("%x", word)) {
			t.Errorf("%s: %s", name, text)
		}
	}
	if s.Reveal() != word || s.Empty() || !(Secret{}).Empty() || (Secret{}).Reveal() != "" {
		t.Error("the secret is lost")
	}
	if got := s.Scrub("login " + word + " failed"); got != "login [secret] failed" || (Secret{}).Scrub("a") != "a" {
		t.Errorf("scrubbed: %q", got)
	}
}

// logged is what the loggers make of a value.
func logged(value any) string {
	var out bytes.Buffer
	for _, encoder := range []zapcore.Encoder{zapcore.NewJSONEncoder(zapcore.EncoderConfig{}), zapcore.NewConsoleEncoder(zapcore.EncoderConfig{})} {
		log := zap.New(zapcore.NewCore(encoder, zapcore.AddSync(&out), zapcore.DebugLevel))
		log.Info("x", zap.Any("a", value), zap.Reflect("b", value), zap.String("c", fmt.Sprint(value)))
		log.Sugar().Infow("x", "a", value)
		log.Sugar().Infof("%+v", value)
	}
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "a", value)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "a", value)
	return out.String()
}

// keyFile stores a fresh key and returns its file and recipient.
func keyFile(t *testing.T) (file, recipient string) {
	t.Helper()
	text, recipient, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "fence.key")
	if err := os.WriteFile(file, []byte(text.Reveal()), 0o600); err != nil {
		t.Fatal(err)
	}
	return file, recipient
}

func TestSealAndOpen(t *testing.T) {
	file, recipient := keyFile(t)
	if got, err := Recipient(file); got != recipient || err != nil {
		t.Errorf("recipient %q, %v", got, err)
	}
	for _, word := range []string{"x", "two words ", strings.Repeat("ä", 2000)} {
		sealed, err := Seal(recipient, NewSecret(word))
		if err != nil || strings.Contains(sealed, "\n") {
			t.Fatalf("seal: %v, %q", err, sealed)
		}
		again, _ := Seal(recipient, NewSecret(word))
		opened, err := Open(file, "\n "+sealed[:40]+"\n"+sealed[40:]+" \n")
		if err != nil || opened.Reveal() != word || again == sealed {
			t.Errorf("opened %d bytes: %v", len(opened.Reveal()), err)
		}
	}
	// What the age program makes with -a is taken as well.
	var armored bytes.Buffer
	to, _ := age.ParseX25519Recipient(recipient)
	a := armor.NewWriter(&armored)
	w, _ := age.Encrypt(a, to)
	_, _ = w.Write([]byte("armored"))
	_ = w.Close()
	_ = a.Close()
	if opened, err := Open(file, armored.String()); err != nil || opened.Reveal() != "armored" {
		t.Errorf("armored: %v", err)
	}
}

// TestOpenTellsWhatIsWrong, and neither the key nor what is sealed.
func TestOpenTellsWhatIsWrong(t *testing.T) {
	file, recipient := keyFile(t)
	sealed, err := Seal(recipient, NewSecret("the-plain-text"))
	if err != nil {
		t.Fatal(err)
	}
	_, stranger := keyFile(t)
	foreign, _ := Seal(stranger, NewSecret("x"))
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	key, _ := os.ReadFile(file)
	cut := sealed[:len(sealed)-24]
	for name, c := range map[string]struct{ file, sealed, want string }{
		"not configured": {"", sealed, "set fencing.secrets.key_file"},
		"missing":        {filepath.Join(dir, "no.key"), sealed, "is missing; copy it from another coordinator"},
		"unreadable":     {dir, sealed, "no regular file"},
		"for the world":  {write("world", string(key), 0o604), sealed, "mode 0604"},
		"for the group":  {write("group", string(key), 0o640), sealed, "chmod 600"},
		"no key":         {write("none", "# nothing\n\n", 0o600), sealed, "holds no key"},
		"not a key":      {write("odd", "the-wrong-text\n", 0o600), sealed, "line 1 of the key file"},
		"another key":    {file, foreign, "sealed for another key than the one in " + file + "; seal it again for " + recipient},
		"damaged":        {file, cut, "damaged or cut short"},
		"not base64":     {file, "the-wrong-text!", "neither base64 nor"},
		"empty":          {file, " \n", "it is empty"},
		"huge":           {file, strings.Repeat("A", maxSealed+1), "at most"},
		"not age":        {file, "aGVsbG8=", "damaged or cut short"},
	} {
		opened, err := Open(c.file, c.sealed)
		if err == nil || !strings.Contains(err.Error(), c.want) || !opened.Empty() {
			t.Errorf("%s: %v", name, err)
			continue
		}
		secretLine := strings.Split(string(key), "\n")[1]
		for _, told := range []string{"the-plain-text", secretLine, "the-wrong-text"} {
			if strings.Contains(err.Error(), told) {
				t.Errorf("%s: the error tells %s", name, told)
			}
		}
	}
	for _, bad := range []string{"", "age1xyz", "AGE-SECRET-KEY-1X"} {
		if _, err := Seal(bad, NewSecret("x")); err == nil {
			t.Errorf("sealed for %q", bad)
		}
	}
	if _, err := Seal(recipient, Secret{}); err == nil {
		t.Error("nothing was sealed")
	}
}

func TestASealedPasswordIsUsed(t *testing.T) {
	file, recipient := keyFile(t)
	sealed, err := Seal(recipient, NewSecret(testPassword+"\n"))
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{on: true}
	d := startBMC(t, m, nil)
	d.PasswordFile, d.PasswordSealed = "", sealed
	c := Config{Secrets: Secrets{KeyFile: file}, Nodes: map[string]NodeConfig{"b": {Levels: [][]Device{{d}}}}}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	c = c.WithDefaults()
	attempts, proven := childRunner(t).Off(t.Context(), live(7), c.Nodes["b"].Levels)
	if on, _, _ := m.state(); !proven || on {
		t.Errorf("%+v", attempts)
	}
	d.PasswordFile = "/x"
	if err := (Config{Nodes: map[string]NodeConfig{"b": {Levels: [][]Device{{d}}}}}).Validate(); err == nil || !strings.Contains(err.Error(), "keep one") {
		t.Errorf("both: %v", err)
	}
}

// The password that ZooKeeper keeps is fetched and opened at each attempt; one
// that cannot be fetched, or by a program without ZooKeeper, orders nothing.
func TestAPasswordOfTheStoreIsUsed(t *testing.T) {
	file, recipient := keyFile(t)
	sealed, err := Seal(recipient, NewSecret(testPassword))
	if err != nil {
		t.Fatal(err)
	}
	if !cluster.LooksSealed(sealed) || cluster.LooksSealed(testPassword) {
		t.Error("what is sealed is not told from what is not")
	}
	m := &machine{on: true}
	d := startBMC(t, m, nil)
	d.PasswordFile, d.PasswordSecret = "", "bmc"
	c := Config{Secrets: Secrets{KeyFile: file}, Nodes: map[string]NodeConfig{"b": {Levels: [][]Device{{d}}}}}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	c = c.WithDefaults()
	gone := func(context.Context, string) (string, error) { return "", errors.New("there is none of that name") }
	for want, config := range map[string]Config{"does not ask": c, "there is none of that name": c.WithSecrets(gone)} {
		attempts, proven := childRunner(t).Off(t.Context(), live(7), config.Nodes["b"].Levels)
		if on, _, _ := m.state(); proven || !on || !strings.Contains(attempts[0].Error, want) {
			t.Errorf("%q: %+v", want, attempts)
		}
	}
	kept := func(_ context.Context, name string) (string, error) {
		return map[string]string{"bmc": sealed}[name], nil
	}
	attempts, proven := childRunner(t).Off(t.Context(), live(7), c.WithSecrets(kept).Nodes["b"].Levels)
	if on, _, _ := m.state(); !proven || on {
		t.Errorf("%+v", attempts)
	}
	d.PasswordSecret = "a/b"
	if err := (Config{Nodes: map[string]NodeConfig{"b": {Levels: [][]Device{{d}}}}}).Validate(); err == nil || !strings.Contains(err.Error(), "does not name a secret") {
		t.Errorf("bad name: %v", err)
	}
}
