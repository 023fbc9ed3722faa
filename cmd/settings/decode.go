package settings

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/go-viper/mapstructure/v2"
	"github.com/spf13/viper"
	"go.yaml.in/yaml/v3"
)

// decode reads the file into into, which holds the defaults. timing is the
// part of into whose defaults the file itself names; fencing, if any, is the
// part whose map keys are names and so keep their case.
func decode(path string, into any, timing *timingFile, fencing *Fencing) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read settings: %w", err)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(content, &doc); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := checkKeys(path, &doc, reflect.TypeOf(into).Elem()); err != nil {
		return err
	}
	// Keys hold dots (host names), so that the delimiter is another.
	v := viper.NewWithOptions(viper.KeyDelimiter("::"))
	v.SetConfigFile(path)
	v.SetConfigType("yaml")
	if err := v.ReadConfig(strings.NewReader(string(content))); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := timing.start(v.GetString("timing::profile")); err != nil {
		return fmt.Errorf("%s: timing.profile: %w", path, err)
	}
	if err := v.UnmarshalExact(into, strict); err != nil {
		return decodeError(path, err)
	}
	timing.finish(v.IsSet("timing::collector_deadline"))
	if fencing == nil {
		return nil
	}
	return keepCase(path, content, fencing)
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
// one error a problem with the file's name.
func decodeError(path string, err error) error {
	var all []error
	for _, line := range strings.Split(err.Error(), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "decoding failed due to") {
			continue
		}
		line = quotedField.ReplaceAllString(line, "$1: ")
		all = append(all, fmt.Errorf("%s: %s", path, line))
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
