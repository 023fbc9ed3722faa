package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"
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
	given, fail := gatherArgs(r)
	if fail != nil {
		return nil, fail
	}
	wrong := map[string]string{}
	checked := args{}
	for _, p := range rt.params {
		value, present := given[p.name]
		delete(given, p.name)
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
			wrong[name] = fmt.Sprintf("There is no such argument here; known: %s.", rt.paramNames())
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

// gatherArgs merges query, form and JSON body into one table of texts.
func gatherArgs(r *http.Request) (map[string]string, *failure) {
	given := map[string]string{}
	query := r.URL.Query()
	for name := range query {
		given[name] = query.Get(name)
	}
	if r.Method == http.MethodGet || r.Method == http.MethodHead || r.Body == nil || r.Body == http.NoBody {
		return given, nil
	}
	media, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	switch media {
	case "application/json":
		return given, gatherJSON(r.Body, given)
	case "multipart/form-data":
		if err := r.ParseMultipartForm(maxBodyBytes); err != nil {
			return nil, bodyFailure(err)
		}
	default:
		if err := r.ParseForm(); err != nil {
			return nil, bodyFailure(err)
		}
	}
	for name := range r.PostForm {
		given[name] = r.PostForm.Get(name)
	}
	return given, nil
}

func gatherJSON(body io.Reader, given map[string]string) *failure {
	var object map[string]any
	d := json.NewDecoder(body)
	d.UseNumber()
	switch err := d.Decode(&object); {
	case errors.Is(err, io.EOF):
		return nil // an empty body asks for nothing
	case err != nil:
		return bodyFailure(err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return bodyFailure(errors.New("there is something after the object"))
	}
	for name, value := range object {
		switch v := value.(type) {
		case string:
			given[name] = v
		case bool, json.Number:
			given[name] = fmt.Sprint(v)
		case nil:
		default:
			return badArgument(name, "Must be a text, a number or a truth value.")
		}
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
