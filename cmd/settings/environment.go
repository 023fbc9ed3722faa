package settings

import (
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// What the names of environment variables begin with, by program. The rest is
// the key in capitals, its parts joined by underscores: timing.profile is
// PVCNODED_TIMING_PROFILE.
const (
	nodePrefix = "PVCNODED_"
	apiPrefix  = "PVCAPID_"
)

// override is a key that an environment variable can set.
type override struct {
	key  string
	kind reflect.Type // what it is decoded into
}

// overrides returns, by variable, every key that stands for one value or for a
// list of words; structured are the variables of what holds more than that.
func overrides(prefix string, t reflect.Type) (settable map[string]override, structured []string) {
	settable = map[string]override{}
	var visit func(t reflect.Type, at string)
	visit = func(t reflect.Type, at string) {
		for key, kind := range fieldsOf(t) {
			key := join(at, key)
			if kind.Kind() == reflect.Pointer {
				kind = kind.Elem()
			}
			variable := prefix + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
			switch {
			case kind.Kind() == reflect.Struct:
				visit(kind, key)
			case kind.Kind() == reflect.Map, kind.Kind() == reflect.Slice && kind.Elem().Kind() != reflect.String:
				structured = append(structured, variable)
			default:
				settable[variable] = override{key, kind}
			}
		}
	}
	visit(t, "")
	slices.Sort(structured)
	return settable, structured
}

// overlay lays the environment over the file: a variable wins. One that begins
// with the prefix and means nothing is refused, as an unknown key is.
func (d *document) overlay(prefix string, t reflect.Type, environ []string) error {
	settable, structured := overrides(prefix, t)
	var refused []error
	for _, entry := range environ {
		variable, value, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(variable, prefix) {
			continue
		}
		if err := d.overlayOne(variable, value, settable, structured); err != nil {
			refused = append(refused, err)
		}
	}
	return errors.Join(refused...)
}

func (d *document) overlayOne(variable, value string, settable map[string]override, structured []string) error {
	o, ok := settable[variable]
	if !ok {
		return unknownVariable(variable, settable, structured)
	}
	node, err := fromText(value, o.kind)
	if err != nil {
		return fmt.Errorf("environment variable %s: %w", variable, err)
	}
	if !d.set(o.key, node) {
		return fmt.Errorf("environment variable %s: %s cannot be laid over what stands in %s, which are no keys with their values", variable, o.key, d.where(o.key))
	}
	d.variables[o.key] = variable
	for key := range d.lines { // of the list that stood there
		if strings.HasPrefix(key, o.key+"[") {
			delete(d.lines, key)
		}
	}
	return nil
}

// fromText reads a variable's text as the key's type wants it. A list's words
// are separated by commas.
func fromText(text string, kind reflect.Type) (*yaml.Node, error) {
	scalar := func(tag, value string) *yaml.Node {
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: tag, Value: value}
	}
	switch {
	case kind == reflect.TypeFor[time.Duration]():
		if _, err := toDuration(text); err != nil {
			return nil, err
		}
		return scalar("!!str", text), nil
	case kind.Kind() == reflect.Int:
		if _, err := strconv.Atoi(text); err != nil {
			return nil, fmt.Errorf("%q is not a whole number", text)
		}
		return scalar("!!int", text), nil
	case kind.Kind() == reflect.Bool:
		if text != "true" && text != "false" {
			return nil, fmt.Errorf("%q is neither true nor false", text)
		}
		return scalar("!!bool", text), nil
	case kind.Kind() == reflect.Slice:
		list := &yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle}
		for _, word := range strings.Split(text, ",") {
			if word = strings.TrimSpace(word); word != "" {
				list.Content = append(list.Content, scalar("!!str", word))
			}
		}
		return list, nil
	}
	return scalar("!!str", text), nil
}

var secretWord = regexp.MustCompile(`(?i)pass|secret|token|credential`)

// unknownVariable names what was perhaps meant; never the value, which may be a
// secret that somebody hoped to hand over so.
func unknownVariable(variable string, settable map[string]override, structured []string) error {
	for _, s := range structured {
		if variable == s || strings.HasPrefix(variable, s+"_") {
			return fmt.Errorf("environment variable %s: what it stands for is a list of structures, which can be set in the file only", variable)
		}
	}
	known := make([]string, 0, len(settable))
	for name := range settable {
		known = append(known, name)
	}
	slices.Sort(known)
	best, _ := nearest(variable, known)
	if secretWord.MatchString(variable) {
		return fmt.Errorf("environment variable %s is unknown: no variable carries a secret; name the file that it stands in instead; the nearest that there is is %s", variable, best)
	}
	return fmt.Errorf("environment variable %s is unknown: did you mean %s?", variable, best)
}
