package driver

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"pvc.internal/cluster"
)

// Bounds of what an OCF agent says of itself.
const (
	maxMetadata       = 256 << 10 // bytes; the longest of Debian's has 13 KiB
	maxMetadataItems  = 512       // parameters, and actions
	defaultOCFTimeout = 20 * time.Second
	leastOCFTimeout   = time.Second
	longestOCFTimeout = 30 * time.Minute
)

// ocfMetadata is what an agent says of itself: which parameters it takes, and
// which actions it knows.
type ocfMetadata struct {
	name       string
	parameters map[string]ocfParameter
	actions    map[string]ocfAction // of several monitors the one for any role
}

// ocfParameter is one parameter of an agent.
type ocfParameter struct {
	required   bool // and has no default
	unique     bool // no two workloads may have the same value
	deprecated bool
	kind       string // string, integer, boolean, or a word that is taken as string
}

// ocfAction is one action of an agent.
type ocfAction struct{ timeout time.Duration }

// announces reports whether the agent knows all of these actions.
func (m *ocfMetadata) announces(actions ...string) bool {
	return !slices.ContainsFunc(actions, func(a string) bool { _, ok := m.actions[a]; return !ok })
}

// metadataXML is the part of an agent's XML that is read; all else is passed over.
type metadataXML struct {
	XMLName    xml.Name `xml:"resource-agent"`
	Name       string   `xml:"name,attr"`
	Parameters []struct {
		Name     string `xml:"name,attr"`
		Unique   string `xml:"unique,attr"`
		Required string `xml:"required,attr"`
		Content  struct {
			Type    string  `xml:"type,attr"`
			Default *string `xml:"default,attr"`
		} `xml:"content"`
		Deprecated *struct{} `xml:"deprecated"`
	} `xml:"parameters>parameter"`
	Actions []struct {
		Name    string `xml:"name,attr"`
		Timeout string `xml:"timeout,attr"`
		Role    string `xml:"role,attr"`
	} `xml:"actions>action"`
}

// parseMetadata reads what an agent's meta-data action has printed.
func parseMetadata(raw []byte) (*ocfMetadata, error) {
	if len(raw) > maxMetadata {
		return nil, fmt.Errorf("it has more than %d bytes: %w", maxMetadata, cluster.ErrTooLarge)
	}
	begin := bytes.IndexByte(raw, '<') // some say something before
	if begin < 0 {
		return nil, errors.New("there is no XML in it")
	}
	d := xml.NewDecoder(bytes.NewReader(raw[begin:]))
	d.CharsetReader = oneByteCharset
	var x metadataXML
	if err := d.Decode(&x); err != nil {
		return nil, fmt.Errorf("read its XML: %w", err)
	}
	if len(x.Parameters) > maxMetadataItems || len(x.Actions) > maxMetadataItems {
		return nil, fmt.Errorf("it has %d parameters and %d actions, more than %d: %w", len(x.Parameters), len(x.Actions), maxMetadataItems, cluster.ErrTooLarge)
	}
	m := &ocfMetadata{name: x.Name, parameters: map[string]ocfParameter{}, actions: map[string]ocfAction{}}
	for _, p := range x.Parameters {
		if p.Name == "" {
			return nil, errors.New("a parameter in it has no name")
		}
		m.parameters[p.Name] = ocfParameter{required: ocfTrue(p.Required) && (p.Content.Default == nil || *p.Content.Default == ""),
			unique: ocfTrue(p.Unique), deprecated: p.Deprecated != nil, kind: p.Content.Type}
	}
	for _, a := range x.Actions {
		if _, known := m.actions[a.Name]; known && a.Role != "" || a.Name == "" {
			continue
		}
		m.actions[a.Name] = ocfAction{timeout: ocfDuration(a.Timeout)}
	}
	if !m.announces("start", "stop", "monitor") {
		return nil, errors.New("it does not announce each of start, stop and monitor, without which nothing can be run")
	}
	return m, nil
}

// oneByteCharset reads the charsets other than UTF-8 that agents are written in.
func oneByteCharset(charset string, in io.Reader) (io.Reader, error) {
	switch strings.ToLower(charset) {
	case "us-ascii", "ascii", "iso-8859-1", "latin1", "iso-8859-15":
	default:
		return nil, fmt.Errorf("its charset %q is not known", charset)
	}
	raw, err := io.ReadAll(io.LimitReader(in, maxMetadata))
	if err != nil {
		return nil, err
	}
	text := make([]rune, len(raw))
	for i, b := range raw {
		text[i] = rune(b)
	}
	return strings.NewReader(string(text)), nil
}

// ocfTrue reads a boolean as OCF agents do.
func ocfTrue(word string) bool {
	switch strings.ToLower(word) {
	case "1", "yes", "true", "on", "ja", "y":
		return true
	}
	return false
}

// ocfFalse is the other half: what is neither is no boolean.
func ocfFalse(word string) bool {
	switch strings.ToLower(word) {
	case "0", "no", "false", "off", "nein", "n":
		return true
	}
	return false
}

// ocfUnits are the units of a time as agents write them; without one it is in
// seconds.
var ocfUnits = map[string]time.Duration{"": time.Second, "s": time.Second, "sec": time.Second, "ms": time.Millisecond, "msec": time.Millisecond,
	"us": time.Microsecond, "usec": time.Microsecond, "m": time.Minute, "min": time.Minute, "h": time.Hour, "hr": time.Hour}

// parseOCFDuration reads "20s", "20", "1min".
func parseOCFDuration(text string) (time.Duration, error) {
	text = strings.ToLower(strings.TrimSpace(text))
	digits := strings.IndexFunc(text, func(r rune) bool { return r < '0' || r > '9' })
	if digits < 0 {
		digits = len(text)
	}
	unit, known := ocfUnits[strings.TrimSpace(text[digits:])]
	n, err := strconv.ParseUint(text[:digits], 10, 32)
	if err != nil || !known {
		return 0, fmt.Errorf("%q is no time: write \"20s\", or \"2min\"", text)
	}
	return time.Duration(n) * unit, nil
}

// ocfDuration is the timeout that metadata announce, within bounds; the default
// where they announce none that can be read.
func ocfDuration(text string) time.Duration {
	d, err := parseOCFDuration(text)
	if err != nil || d == 0 {
		return defaultOCFTimeout
	}
	return boundedOCF(d)
}

func boundedOCF(d time.Duration) time.Duration {
	return min(max(d, leastOCFTimeout), longestOCFTimeout)
}
