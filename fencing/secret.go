package fencing

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"filippo.io/age"
	"filippo.io/age/armor"
)

// redacted is what every printed form of a Secret says.
const redacted = "[secret]"

// Secret is a text that no formatter, encoder or logger prints: only Reveal
// tells it. Its zero value is the empty secret.
type Secret struct {
	// A pointer, since fmt calls no method on an unexported field: of a
	// Secret within another type it prints an address, never the text.
	text *string
}

// NewSecret hides a text.
func NewSecret(text string) Secret { return Secret{text: &text} }

// Reveal returns the text, for the one place that sends it.
func (s Secret) Reveal() string {
	if s.text == nil {
		return ""
	}
	return *s.text
}

// Empty reports whether there is nothing to hide.
func (s Secret) Empty() bool { return s.Reveal() == "" }

// String implements fmt.Stringer without telling the text.
func (Secret) String() string { return redacted }

// GoString implements fmt.GoStringer without telling the text.
func (Secret) GoString() string { return redacted }

// Format implements fmt.Formatter without telling the text, whatever the verb.
func (Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// MarshalText implements encoding.TextMarshaler without telling the text; it
// serves JSON and YAML as well.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// Scrub replaces every occurrence of the secret in a text that somebody else
// wrote, a program's complaint for instance.
func (s Secret) Scrub(text string) string {
	if s.Empty() {
		return text
	}
	return strings.ReplaceAll(text, s.Reveal(), redacted)
}

// The bounds of what is sealed, in bytes.
const (
	maxPlaintext = 4 << 10
	maxSealed    = 64 << 10
	maxKeyFile   = 64 << 10
)

// NewKey makes the key that the coordinators share: the text of the key file,
// to be stored with mode 0600, and the recipient (age1…), which is public and
// with which anybody may Seal.
func NewKey() (keyFile Secret, recipient string, err error) {
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		return Secret{}, "", fmt.Errorf("make a key: %w", err)
	}
	recipient = identity.Recipient().String()
	return NewSecret("# public key: " + recipient + "\n" + identity.String() + "\n"), recipient, nil
}

// Recipient returns the public half (age1…) of the key in a file.
func Recipient(keyFile string) (string, error) {
	keys, err := readKeys(context.Background(), keyFile)
	if err != nil {
		return "", err
	}
	return keys[0].Recipient().String(), nil
}

// Seal encrypts a secret of at most 4096 bytes for the holder of the
// recipient's key, as one line of base64 that password_sealed takes.
func Seal(recipient string, plaintext Secret) (string, error) {
	to, err := age.ParseX25519Recipient(strings.TrimSpace(recipient))
	if err != nil {
		return "", fmt.Errorf("seal a secret: the recipient %q is no age1… public key: %w", recipient, err)
	}
	if n := len(plaintext.Reveal()); n < 1 || n > maxPlaintext {
		return "", fmt.Errorf("seal a secret: it has %d bytes; want 1–%d", n, maxPlaintext)
	}
	var sealed bytes.Buffer
	w, err := age.Encrypt(&sealed, to)
	if err == nil {
		_, err = io.WriteString(w, plaintext.Reveal())
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return "", fmt.Errorf("seal a secret: %w", err)
	}
	return base64.StdEncoding.EncodeToString(sealed.Bytes()), nil
}

// Open decrypts what Seal made, or age's armor, with the key in a file that
// only its owner may read. It takes at most 5 s, wherever that file lies.
func Open(keyFile, sealed string) (Secret, error) {
	return open(context.Background(), keyFile, sealed)
}

func open(ctx context.Context, keyFile, sealed string) (Secret, error) {
	keys, err := readKeys(ctx, keyFile)
	if err != nil {
		return Secret{}, fmt.Errorf("open a sealed secret: %w", err)
	}
	source, err := sealedReader(sealed)
	if err != nil {
		return Secret{}, fmt.Errorf("open a sealed secret: %w", err)
	}
	identities := make([]age.Identity, len(keys))
	for i, key := range keys {
		identities[i] = key
	}
	plain, err := age.Decrypt(source, identities...)
	if wrong := (*age.NoIdentityMatchError)(nil); errors.As(err, &wrong) {
		return Secret{}, fmt.Errorf("open a sealed secret: it was sealed for another key than the one in %s; seal it again for %s",
			keyFile, keys[0].Recipient())
	}
	if err != nil {
		return Secret{}, fmt.Errorf("open a sealed secret: it is damaged or cut short: %w", err)
	}
	text, err := io.ReadAll(io.LimitReader(plain, maxPlaintext+1))
	switch {
	case err != nil:
		return Secret{}, fmt.Errorf("open a sealed secret: it is damaged or cut short: %w", err)
	case len(text) > maxPlaintext:
		return Secret{}, fmt.Errorf("open a sealed secret: it has more than %d bytes", maxPlaintext)
	}
	return NewSecret(string(text)), nil
}

func sealedReader(sealed string) (io.Reader, error) {
	sealed = strings.TrimSpace(sealed)
	switch {
	case sealed == "":
		return nil, errors.New("it is empty")
	case len(sealed) > maxSealed:
		return nil, fmt.Errorf("it has %d bytes; at most %d make sense", len(sealed), maxSealed)
	case strings.HasPrefix(sealed, armor.Header):
		return armor.NewReader(strings.NewReader(sealed)), nil
	}
	raw, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(sealed), ""))
	if err != nil {
		return nil, fmt.Errorf("it is neither base64 nor begins with %q: %w", armor.Header, err)
	}
	return bytes.NewReader(raw), nil
}

// readKeys reads the X25519 keys of a file. A key that others may read is
// refused: what it protects would be everybody's. No error tells a line of it.
func readKeys(ctx context.Context, path string) ([]*age.X25519Identity, error) {
	if path == "" {
		return nil, errors.New("no key file is configured; set fencing.secrets.key_file")
	}
	file, err := secretFiles.read(ctx, path, maxKeyFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("the key file %s is missing; copy it from another coordinator, with mode 0600", path)
	case err != nil:
		return nil, fmt.Errorf("read the key file: %w", err)
	case file.mode.Perm()&0o077 != 0:
		return nil, fmt.Errorf("the key file %s has mode %#o, so that others than its owner may use it; chmod 600 it, and seal with a new key if anybody else had access",
			path, file.mode.Perm())
	}
	var keys []*age.X25519Identity
	for number, line := range strings.Split(string(file.data), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		key, err := age.ParseX25519Identity(line)
		if err != nil {
			return nil, fmt.Errorf("line %d of the key file %s is no AGE-SECRET-KEY-1… key", number+1, path)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("the key file %s holds no key", path)
	}
	return keys, nil
}

// Longest passwords, in bytes: of the ipmi protocol, and of everything else.
const maxOtherPassword = 255

func (t DeviceType) maxPassword() int {
	if t == TypeIPMI || t == "" {
		return maxPassword
	}
	return maxOtherPassword
}

// needsPassword reports whether the type cannot do without one; an agent may
// log in by a key, a program as it likes.
func (t DeviceType) needsPassword() bool { return t != TypeAgent && t != TypeExec }

// secret fetches the device's password: opened from password_sealed or
// password_secret, or the first line of password_file. It is read at each attempt, so that a changed
// one needs no restart, and by a share of the attempt, wherever the file lies.
func (d Device) secret(ctx context.Context) (Secret, error) {
	ctx, cancel := context.WithTimeout(ctx, askShare(d.withDefaults()))
	defer cancel()
	switch {
	case d.PasswordSecret != "":
		sealed, err := d.stored(ctx)
		if err != nil {
			return Secret{}, fmt.Errorf("password of device %q: %w", d.Name, err)
		}
		return d.opened(ctx, sealed, "the secret "+d.PasswordSecret)
	case d.PasswordSealed != "":
		return d.opened(ctx, d.PasswordSealed, "password_sealed")
	}
	if d.PasswordFile == "" && !d.Type.needsPassword() {
		return Secret{}, nil
	}
	file, err := secretFiles.read(ctx, d.PasswordFile, maxSealed)
	if err != nil {
		return Secret{}, fmt.Errorf("read the password of device %q: %w", d.Name, err)
	}
	line, _, _ := strings.Cut(string(file.data), "\n")
	read := NewSecret(strings.TrimRight(line, "\r"))
	return read, d.checkPassword(read, d.PasswordFile+", first line")
}

// stored fetches the sealed password that ZooKeeper holds.
func (d Device) stored(ctx context.Context) (string, error) {
	if d.lookup == nil {
		return "", fmt.Errorf("the secret %s is kept in ZooKeeper, which this program does not ask", d.PasswordSecret)
	}
	sealed, err := d.lookup(ctx, d.PasswordSecret)
	if err != nil {
		return "", fmt.Errorf("fetch the secret %s from ZooKeeper: %w", d.PasswordSecret, err)
	}
	return sealed, nil
}

// opened opens what was sealed, which from names.
func (d Device) opened(ctx context.Context, sealed, from string) (Secret, error) {
	plain, err := open(ctx, d.keyFile, sealed)
	if err != nil {
		return Secret{}, fmt.Errorf("password of device %q: %w", d.Name, err)
	}
	plain = NewSecret(strings.TrimRight(plain.Reveal(), "\r\n")) // of who sealed with echo
	return plain, d.checkPassword(plain, from)
}

func (d Device) checkPassword(password Secret, from string) error {
	text := password.Reveal()
	if most := d.Type.maxPassword(); len(text) < 1 || len(text) > most {
		return fmt.Errorf("password of device %q in %s: want 1–%d bytes, has %d", d.Name, from, most, len(text))
	}
	if strings.ContainsAny(text, "\n\r\x00") {
		return fmt.Errorf("password of device %q in %s: it has a line break or a zero byte", d.Name, from)
	}
	return nil
}
