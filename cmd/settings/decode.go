package settings

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/go-viper/mapstructure/v2"
	"github.com/spf13/viper"
	"go.yaml.in/yaml/v3"
)

// target is what a file is decoded into: into holds the defaults; timing is the
// part of it whose defaults the file itself names; fencing, if any, is the part
// whose map keys are names and so keep their case.
type target struct {
	into    any
	timing  *timingFile
	fencing *Fencing
	prefix  string    // of the environment variables that are laid over the file
	pvc     *pvcRules // how a file of PVC's own daemons is read
}

// decode reads the file and the environment over it.
func decode(path string, environ []string, t target) (*document, error) {
	doc, err := readDocument(path, t.pvc)
	if err != nil {
		return nil, err
	}
	kind := reflect.TypeOf(t.into).Elem()
	if err := errors.Join(checkKeys(path, doc.root, kind), doc.overlay(t.prefix, kind, environ)); err != nil {
		return nil, err
	}
	content, err := doc.text()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	// Keys hold dots (host names), so that the delimiter is another. The
	// environment is in content already: viper's own way of reading it takes
	// text for any type.
	v := viper.NewWithOptions(viper.KeyDelimiter("::"))
	v.SetConfigType("yaml")
	if err := v.ReadConfig(bytes.NewReader(content)); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if err := t.timing.start(v.GetString("timing::profile")); err != nil {
		return nil, fmt.Errorf("%s: timing.profile: %w", doc.where("timing.profile"), err)
	}
	if err := v.UnmarshalExact(t.into, strict); err != nil {
		return nil, decodeError(doc, err)
	}
	t.timing.finish(v.IsSet("timing::collector_deadline"))
	if t.fencing == nil {
		return doc, nil
	}
	return doc, keepCase(path, content, t.fencing)
}

// strict makes a wrong type an error instead of a guess.
func strict(c *mapstructure.DecoderConfig) {
	c.TagName = "yaml"
	c.WeaklyTypedInput = false
	c.DecodeHook = mapstructure.DecodeHookFuncType(typed)
}

// typed refuses values of another type than the key's, in words, and turns
// "500ms" and bare numbers, which are seconds, into durations.
func typed(from, to reflect.Type, value any) (any, error) {
	if to == reflect.TypeFor[time.Duration]() {
		return toDuration(value)
	}
	switch kind := to.Kind(); {
	case value == nil || from == to:
	case kind == reflect.String && from.Kind() != reflect.String:
		return nil, fmt.Errorf("%v must be text: put it in quotes", value)
	case kind == reflect.Int && from.Kind() != reflect.Int:
		return nil, fmt.Errorf("%v is not a whole number", value)
	case kind == reflect.Bool && from.Kind() != reflect.Bool:
		return nil, fmt.Errorf("%v is neither true nor false", value)
	case kind == reflect.Slice && from.Kind() != reflect.Slice:
		return nil, fmt.Errorf("%v must be a list: put it in [ ] or in lines that begin with -", value)
	case (kind == reflect.Struct || kind == reflect.Map) && from.Kind() != reflect.Map:
		return nil, fmt.Errorf("%v must be keys with their values", value)
	}
	return value, nil
}

func toDuration(value any) (any, error) {
	switch x := value.(type) {
	case time.Duration:
		return x, nil
	case int:
		return seconds(float64(x))
	case float64:
		return seconds(x)
	case string:
		if n, err := strconv.ParseFloat(x, 64); err == nil {
			return seconds(n)
		}
		if d, err := time.ParseDuration(x); err == nil {
			return d, nil
		}
	}
	return nil, fmt.Errorf("%v is not a duration: write 500ms, 5s, 1m30s, or a number of seconds", value)
}

func seconds(n float64) (any, error) {
	if n != n || n > 1e9 || n < -1e9 {
		return nil, fmt.Errorf("%v is not a number of seconds that makes sense", n)
	}
	return time.Duration(n * float64(time.Second)), nil
}

var quotedField = regexp.MustCompile(`^'([^']*)' `)

// decodeError turns mapstructure's report, a header and a line a problem, into
// one error a problem with the place it stands in.
func decodeError(doc *document, err error) error {
	var all []error
	for _, line := range strings.Split(err.Error(), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "decoding failed due to") {
			continue
		}
		line = quotedField.ReplaceAllString(line, "$1: ")
		key, _, _ := strings.Cut(line, ": ")
		all = append(all, fmt.Errorf("%s: %s", doc.where(key), line))
	}
	return errors.Join(all...)
}

// keepCase gives the fenced nodes their names back: viper lower-cases keys.
func keepCase(path string, content []byte, fencing *Fencing) error {
	var written struct {
		Fencing struct {
			Nodes map[string]any `yaml:"nodes"`
		} `yaml:"fencing"`
	}
	if err := yaml.Unmarshal(content, &written); err != nil {
		return fmt.Errorf("%s: fencing: %w", path, err)
	}
	kept := make(map[string]FenceNode, len(fencing.Nodes))
	for name := range written.Fencing.Nodes {
		kept[name] = fencing.Nodes[strings.ToLower(name)]
	}
	if len(kept) != len(fencing.Nodes) {
		return fmt.Errorf("%s: fencing.nodes: two names differ only in upper and lower case", path)
	}
	fencing.Nodes = kept
	return nil
}
