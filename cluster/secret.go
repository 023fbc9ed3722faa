package cluster

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
)

// SealedSecret is the password of fence devices as ZooKeeper holds it: sealed,
// so that whoever reads the tree learns nothing. The key that opens it is a file
// of the coordinators.
type SealedSecret struct {
	Version int    `json:"v"`
	Sealed  string `json:"sealed"` // age, as one line of base64
	By      string `json:"by"`     // who has set it
	UnixMS  int64  `json:"unix_ms"`
}

// secretName is what names a secret: it is a znode's name, and part of a path
// of the API.
var secretName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?$`)

// CheckSecretName returns an error that says what a secret's name looks like.
func CheckSecretName(name string) error {
	if secretName.MatchString(name) {
		return nil
	}
	return fmt.Errorf("%q does not name a secret: want 1–64 letters, digits, '.', '_' or '-', the first and the last a letter or digit", name)
}

// sealedIntro begins every age file (age-encryption.org/v1).
const sealedIntro = "age-encryption.org/v1\n"

// LooksSealed reports whether the text is an age file as one line of base64, or
// in age's armor; only the key tells whether it can be opened.
func LooksSealed(text string) bool {
	text = strings.TrimSpace(text)
	if strings.HasPrefix(text, "-----BEGIN AGE ENCRYPTED FILE-----") {
		return true
	}
	data, err := base64.StdEncoding.DecodeString(text)
	return err == nil && strings.HasPrefix(string(data), sealedIntro)
}

// DecodeSecret reads the record's text. An emptied one, or one without a sealed
// text, is an error.
func DecodeSecret(text string) (SealedSecret, error) {
	var s SealedSecret
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return s, fmt.Errorf("the record cannot be read: %w", err)
	}
	if s.Version != 1 || s.Sealed == "" {
		return s, fmt.Errorf("the record has version %d and %d bytes of sealed text; this program knows version 1", s.Version, len(s.Sealed))
	}
	return s, nil
}
