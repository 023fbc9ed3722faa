package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// argKind is how an argument's text is checked.
type argKind string

const (
	argText     argKind = "string"
	argBool     argKind = "boolean"
	argInt      argKind = "integer"
	argRegexp   argKind = "regexp"
	argDuration argKind = "duration" // "5s" or bare seconds
)

// param declares one argument of a route. It may stand in the query, a form or
// a JSON body; the body wins.
type param struct {
	name     string
	kind     argKind
	required bool
	choices  []string
	complain string // what a bad or missing value is answered with; empty: made from the kind
	about    string // for the document
	min, max int    // of an argInt
}

// args are a request's arguments, checked against its route's table.
type args map[string]string

func (a args) text(name string) string { return a[name] }

func (a args) has(name string) bool { _, ok := a[name]; return ok }

func (a args) truth(name string) bool { v, _ := parseTruth(a[name]); return v }

func (a args) number(name string, otherwise int) int {
	if n, err := strconv.Atoi(a[name]); err == nil {
		return n
	}
	return otherwise
}

func (a args) wait(otherwise time.Duration) time.Duration {
	if d, err := parseDuration(a["wait"]); err == nil {
		return d
	}
	return otherwise
}

// parseArgs gathers the arguments and checks them all, so that one answer names
// everything that is wrong.
func parseArgs(rt route, r *http.Request) (args, *failure) {
	given, fail := gatherArgs(rt, r)
	if fail != nil {
		return nil, fail
	}
	wrong := map[string]string{}
	checked := args{}
	for _, p := range rt.params {
		value, present := given[p.name]
		delete(given, p.name)
		if !utf8.ValidString(value) {
			wrong[p.name] = "Must be text in UTF-8."
			continue
		}
		if !present || value == "" {
			if p.required {
				wrong[p.name] = p.complaint()
			}
			continue
		}
		if text := p.check(value); text != "" {
			wrong[p.name] = text
			continue
		}
		checked[p.name] = value
	}
	if !rt.lenient {
		for name := range given {
			wrong[cut(name)] = fmt.Sprintf("There is no such argument here; known: %s.", rt.paramNames())
		}
	}
	switch {
	case len(wrong) == 0:
		return checked, nil
	case rt.settings:
		return nil, settingsFailure(wrong)
	}
	return nil, badArguments(wrong)
}

func badArguments(wrong map[string]string) *failure {
	names := make([]string, 0, len(wrong))
	for name := range wrong {
		names = append(names, name)
	}
	sort.Strings(names)
	return &failure{status: http.StatusBadRequest, body: ArgumentErrors{wrong},
		text: "bad arguments: " + strings.Join(names, ", ")}
}

func (p param) complaint() string {
	switch {
	case p.complain != "":
		return p.complain
	case len(p.choices) > 0:
		return "Must be one of: " + strings.Join(p.choices, ", ") + "."
	}
	return fmt.Sprintf("A %s must be specified.", p.kind)
}

// check returns what is wrong with the value, "" if nothing is.
func (p param) check(value string) string {
	wrong := p.fault(value)
	if wrong != "" && p.complain != "" {
		return p.complain
	}
	return wrong
}

func (p param) fault(value string) string {
	if len(p.choices) > 0 && !slices.Contains(p.choices, value) {
		return p.complaint()
	}
	switch p.kind {
	case argBool:
		if _, err := parseTruth(value); err != nil {
			return "Must be true or false."
		}
	case argInt:
		if n, err := strconv.Atoi(value); err != nil || n < p.min || n > p.max {
			return fmt.Sprintf("Must be a whole number from %d to %d.", p.min, p.max)
		}
	case argRegexp:
		if _, err := regexp.Compile(value); err != nil {
			return "Not a regular expression: " + err.Error()
		}
	case argDuration:
		if d, err := parseDuration(value); err != nil || d < 0 || d > longestWait {
			return fmt.Sprintf("Must be a duration up to %s, like \"5s\" or bare seconds.", longestWait)
		}
	}
	return ""
}

func parseTruth(s string) (bool, error) {
	switch strings.ToLower(s) {
	case "true", "yes", "on", "1":
		return true, nil
	case "false", "no", "off", "0", "":
		return false, nil
	}
	return false, fmt.Errorf("%q is neither true nor false", s)
}

// parseDuration accepts "1.5s", bare seconds, and a truth value, where true
// stands for the longest that is sensible to wait.
func parseDuration(s string) (time.Duration, error) {
	if seconds, err := strconv.ParseFloat(s, 64); err == nil {
		return time.Duration(seconds * float64(time.Second)), nil
	}
	if yes, err := parseTruth(s); err == nil && s != "" {
		if yes {
			return 30 * time.Second, nil
		}
		return 0, nil
	}
	return time.ParseDuration(s)
}

// gatherArgs merges query, form and JSON body into one table of texts; the body
// wins over the query. An argument that stands twice in one place with two
// values is refused: which was meant cannot be told.
func gatherArgs(rt route, r *http.Request) (map[string]string, *failure) {
	given := map[string]string{}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, fmt.Sprintf("The query cannot be read: %.200v.", err))
	}
	if fail := rt.merge(given, query); fail != nil {
		return nil, fail
	}
	if r.Method == http.MethodGet || r.Method == http.MethodHead || r.Body == nil || r.Body == http.NoBody {
		return given, nil
	}
	media, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	switch media {
	case "application/json":
		return given, gatherJSON(r.Body, given)
	case "multipart/form-data":
		err = r.ParseMultipartForm(maxBodyBytes)
	default:
		err = r.ParseForm()
	}
	if err != nil {
		return nil, bodyFailure(err)
	}
	return given, rt.merge(given, r.PostForm)
}

// merge adds the values, of which each argument of the route may have one.
func (rt route) merge(given map[string]string, values url.Values) *failure {
	for name, each := range values {
		known := slices.ContainsFunc(rt.params, func(p param) bool { return p.name == name })
		if len(slices.Compact(slices.Clone(each))) > 1 && (known || !rt.lenient) {
			return rt.twice(name)
		}
		given[name] = each[0]
	}
	return nil
}

func (rt route) twice(name string) *failure {
	wrong := map[string]string{cut(name): "Is given more than once, with different values."}
	if rt.settings {
		return settingsFailure(wrong)
	}
	return badArguments(wrong)
}

// gatherJSON reads one object of plain values.
func gatherJSON(body io.Reader, given map[string]string) *failure {
	d := json.NewDecoder(body)
	d.UseNumber()
	switch start, err := d.Token(); {
	case errors.Is(err, io.EOF):
		return nil // an empty body asks for nothing
	case err != nil:
		return bodyFailure(err)
	case start == nil:
		return nil // null does, too
	case start != json.Delim('{'):
		return bodyFailure(errors.New("it is no object"))
	}
	seen := map[string]bool{}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return bodyFailure(err)
		}
		name, _ := key.(string)
		var value any
		if err := d.Decode(&value); err != nil {
			return bodyFailure(err)
		}
		if seen[name] {
			return badArgument(cut(name), "Is given more than once.")
		}
		seen[name] = true
		switch v := value.(type) {
		case string:
			given[name] = v
		case bool, json.Number:
			given[name] = fmt.Sprint(v)
		case nil:
		default:
			return badArgument(cut(name), "Must be a text, a number or a truth value.")
		}
	}
	if _, err := d.Token(); err != nil {
		return bodyFailure(err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return bodyFailure(errors.New("there is something after the object"))
	}
	return nil
}

func bodyFailure(err error) *failure {
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return refuse(http.StatusRequestEntityTooLarge, fmt.Sprintf("The body is larger than %d bytes.", maxBodyBytes))
	}
	return refuse(http.StatusBadRequest, "The body cannot be read as a form or a JSON object: "+err.Error())
}
