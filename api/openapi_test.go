package api

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/danielgtaylor/huma/v2"
)

// pathOf fills in the values of a documented path.
var pathOf = strings.NewReplacer("{node}", "hv1", "{what}", "hv1", "{fault}", "disk", "{name}", "bmc", "{activity}", "a1", "{task}", "t1", "{workload}", "cache")

// operations are those of a path's item, by method.
func operations(item *huma.PathItem) map[string]*huma.Operation {
	all := map[string]*huma.Operation{get: item.Get, post: item.Post, put: item.Put, del: item.Delete,
		"PATCH": item.Patch, "HEAD": item.Head, "OPTIONS": item.Options, "TRACE": item.Trace}
	maps.DeleteFunc(all, func(_ string, op *huma.Operation) bool { return op == nil })
	return all
}

// Every path and method of the document is answered by its handler, and every
// method that it does not name is refused, naming those that it does: so that
// what is answered and what is documented are the same, both ways.
func TestDocumentAndRoutesAreTheSame(t *testing.T) {
	w := newWorld(t)
	doc := document(w.server.routes, w.server.cfg)
	for path, item := range doc.Paths {
		at := pathOf.Replace(path)
		if strings.Contains(at, "{") {
			t.Fatalf("%s: the test has no value for its name", path)
		}
		if strings.HasSuffix(at, "/watch") {
			at += "?wait=0&since=x"
		}
		var documented []string
		for method := range operations(item) {
			documented = append(documented, method)
			if method == get {
				documented = append(documented, http.MethodHead)
			}
			if status, body := w.do(method, at, "", ""); status == 405 || status >= 500 || strings.Contains(body, "There is nothing at") {
				t.Errorf("%s %s is documented and not answered: %d %s", method, path, status, body)
			}
		}
		slices.Sort(documented)
		for _, method := range []string{get, post, put, del, "PATCH", "OPTIONS", "BREW"} {
			if slices.Contains(documented, method) {
				continue
			}
			status, body := w.do(method, at, "", "")
			if want := "possible: " + strings.Join(documented, ", ") + "."; status != 405 || !strings.Contains(body, want) {
				t.Errorf("%s %s is not documented, and answered: %d %s, want %q", method, path, status, body, want)
			}
		}
	}
	routed := map[string]bool{}
	for _, rt := range w.server.routes {
		routed[rt.method+" "+rt.documented()] = true
		if rt.summary == "" {
			t.Errorf("%s %s has no summary", rt.method, rt.path)
		}
		if op := operations(doc.Paths[rt.documented()])[rt.method]; op == nil {
			t.Errorf("%s %s is not documented", rt.method, rt.path)
		} else {
			sameArguments(t, rt, op)
		}
	}
	for path, item := range doc.Paths {
		for method := range operations(item) {
			if !routed[method+" "+path] {
				t.Errorf("%s %s has no route", method, path)
			}
		}
	}
}

// sameArguments compares what a route takes with what its operation says.
func sameArguments(t *testing.T, rt route, op *huma.Operation) {
	var taken, said, inBody []string
	for _, name := range rt.names() {
		taken = append(taken, "path "+name+" true string []")
	}
	for _, p := range rt.params {
		kind := map[argKind]string{argBool: "boolean", argInt: "integer"}[p.kind]
		if kind == "" {
			kind = "string"
		}
		taken = append(taken, fmt.Sprintf("query %s %t %s %v", p.name, p.required && rt.method == get, kind, p.choices))
	}
	for _, p := range op.Parameters {
		said = append(said, fmt.Sprintf("%s %s %t %s %v", p.In, p.Name, p.Required, p.Schema.Type, p.Schema.Enum))
	}
	if !slices.Equal(taken, said) {
		t.Errorf("%s %s takes %q and says %q", rt.method, rt.path, taken, said)
	}
	if op.RequestBody == nil {
		if rt.method != get && len(rt.params) > 0 {
			t.Errorf("%s %s says nothing of its body", rt.method, rt.path)
		}
		return
	}
	for _, media := range []string{"application/json", "application/x-www-form-urlencoded"} {
		for name, s := range op.RequestBody.Content[media].Schema.Properties {
			inBody = append(inBody, name+" "+s.Type)
		}
	}
	slices.Sort(inBody)
	var want []string
	for _, p := range rt.params {
		want = append(want, p.name+" "+p.schema().Type, p.name+" "+p.schema().Type)
	}
	slices.Sort(want)
	if !slices.Equal(inBody, want) {
		t.Errorf("%s %s: body %q, want %q", rt.method, rt.path, inBody, want)
	}
}

// What is answered is what the document says is answered: status and shape, of
// every golden case and of our own paths.
func TestAnswersAreAsDocumented(t *testing.T) {
	cases := goldenCases()
	for _, path := range []string{"/cluster", "/watch?wait=0", "/transition", "/history", "/timing", "/maintenance", "/settings/autoFailover", "/fences", "/fence/hv3",
		"/leases", "/members", "/activities", "/activities/failover-1", "/activities/none", "/secrets", "/explain/primary", "/explain/hv3", "/explain/nobody", "/explain/cache", "/explain/web", "/explain/junk", "/workloads", "/workloads?node=hv1&kind=replicated", "/workloads?state=asleep", "/workloads/cache", "/workloads/junk", "/workloads/none", "/settings/autoReprovision", "/rebalance", "/doctor", "/cluster?x=1", "/history?limit=0"} {
		cases = append(cases, goldenCase{path, withTasks, get, path, ""}, goldenCase{path, withWorkloads, get, path, ""}, goldenCase{path + " of nothing", func(*world) {}, get, path, ""}, goldenCase{path + " away", (*world).away, get, path, ""})
	}
	for _, c := range []struct{ method, path, form string }{
		{post, "/switch", "to=hv2"}, {post, "/switch", "to=hv3"}, {post, "/switch", "to=hv2&dry_run=1"}, {post, "/switch", "at=noon"}, {post, "/switch", "to=hv3&dry_run=1"},
		{post, "/maintenance", "state=on&reason=x&expires=2h"}, {post, "/maintenance", "state=on&wait=0.01"}, {post, "/maintenance", "state=on&expires=never"},
		{post, "/settings/autoFailover", "enabled=true&maxCount=2"}, {post, "/settings/autoFailover", "maxCount=0"}, {post, "/settings/autoFailover", "maxCount=2&just_validate=1"}, {post, "/settings/autoFailover/resetCount", ""},
		{post, "/fence/hv2", "action=test"}, {post, "/fence/hv2", "action=confirm"}, {post, "/fence/hv2", "action=confirm&reason=seen"}, {post, "/fence/nobody", "action=fence"},
		{put, "/node/hv2", "mode=hypervisor"}, {del, "/node/hv2", ""}, {del, "/members/order?node=hv2", ""}, {put, "/node/a%20b", ""},
		{post, "/activities/failover-1/stop", "reason=x"}, {post, "/activities/none/stop", ""}, {post, "/secret/bmc", "sealed=x"}, {del, "/secret/bmc", ""},
		{post, "/settings/autoReprovision", "enabled=true&maxNodes=2"}, {post, "/settings/autoReprovision", "enabled=true"}, {post, "/settings/autoReprovision", "enabled=false&just_validate=1"}, {post, "/settings/autoReprovision/resetCount", "wait=0.01"},
		{post, "/workloads", "name=web2&driver=exec&params={\"command\":\"/bin/true\"}"}, {post, "/workloads", "name=cache&driver=redis"}, {post, "/workloads", "driver=redis"}, {post, "/workloads", "name=late&driver=redis&wait=0.01"},
		{put, "/workloads/cache", "priority=7"}, {put, "/workloads/cache", ""}, {del, "/workloads/cache", ""}, {del, "/workloads/cache?destroy=1&wait=0.01", ""}, {del, "/workloads/junk", ""},
		{post, "/workloads/web/move", "node=hv1"}, {post, "/workloads/cache/promote", "node=hv2&wait=0.01"}, {post, "/workloads/web/promote", "node=hv1"}, {post, "/workloads/web/start", ""}, {post, "/workloads/web/stop", ""}, {post, "/workloads/none/probe", ""},
		{post, "/rebalance", ""}, {post, "/rebalance", "wait=0.01"}, {post, "/rebalance/stop", ""},
	} {
		before := func(*world) {}
		if strings.Contains(c.path, "failover-1") {
			before = withTasks
		}
		if strings.Contains(c.path, "/workloads") || strings.Contains(c.path, "/rebalance") || strings.Contains(c.path, "utoReprovision") {
			before = withWorkloads
		}
		cases = append(cases, goldenCase{c.method + c.path, before, c.method, c.path, c.form})
		cases = append(cases, goldenCase{c.method + c.path + " away", (*world).away, c.method, c.path, c.form})
	}
	w := newWorld(t)
	doc := document(w.server.routes, w.server.cfg)
	mux := http.NewServeMux()
	documented := map[string]string{}
	for _, rt := range w.server.routes {
		for _, p := range rt.patterns() {
			mux.HandleFunc(rt.method+" "+p, func(http.ResponseWriter, *http.Request) {})
			documented[rt.method+" "+p] = rt.documented()
		}
	}
	for _, c := range cases {
		r, err := http.NewRequest(c.method, Prefix+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, pattern := mux.Handler(r)
		path, found := documented[pattern]
		if !found {
			continue // nothing is there, or not by that method
		}
		g := c.ask(t)
		if fault := undocumented(doc, operations(doc.Paths[path])[c.method], g); fault != "" {
			t.Errorf("%s (%s): %d %s\n%s", g.Request, g.Body, g.Status, g.Answer, fault)
		}
	}
}

// undocumented says what of an answer the document does not tell.
func undocumented(doc *huma.OpenAPI, op *huma.Operation, g golden) string {
	response := op.Responses[strconv.Itoa(g.Status)]
	switch {
	case response == nil:
		return "the status is not documented"
	case len(response.Content) == 0:
		if string(g.Answer) != "null" {
			return "no body is documented"
		}
		return ""
	}
	schema := response.Content["application/json"].Schema
	schema.PrecomputeMessages()
	var body any
	if err := json.Unmarshal(g.Answer, &body); err != nil {
		return err.Error()
	}
	result := &huma.ValidateResult{}
	huma.Validate(doc.Components.Schemas, schema, huma.NewPathBuffer(nil, 0), huma.ModeReadFromServer, body, result)
	var faults []string
	for _, err := range result.Errors {
		faults = append(faults, err.Error())
	}
	return strings.Join(faults, "\n")
}

// The document, as it is sent, is one that generators of clients can read: what
// OpenAPI 3.1 demands of each object that occurs.
func TestDocumentIsValid(t *testing.T) {
	_, body := newWorld(t).get("/openapi.json")
	doc := decode[map[string]any](t, body)
	v := &documentCheck{t: t, doc: doc, ids: map[string]bool{}}
	if version, _ := doc["openapi"].(string); !regexp.MustCompile(`^3\.1\.\d+$`).MatchString(version) {
		t.Errorf("openapi: %v", doc["openapi"])
	}
	info := v.object(doc["info"], "info")
	for _, field := range []string{"title", "version"} {
		if s, _ := info[field].(string); s == "" {
			t.Errorf("info.%s is missing", field)
		}
	}
	v.only(doc, "the document", "openapi", "info", "paths", "components", "servers", "tags", "security", "jsonSchemaDialect", "webhooks", "externalDocs")
	for path, item := range v.object(doc["paths"], "paths") {
		v.path(path, v.object(item, path))
	}
	components := v.object(doc["components"], "components")
	for name, s := range v.object(components["schemas"], "schemas") {
		if !regexp.MustCompile(`^[a-zA-Z0-9._-]+$`).MatchString(name) {
			t.Errorf("schema %q has no name that may be", name)
		}
		v.schema(s, name)
	}
	for name, s := range v.object(components["securitySchemes"], "securitySchemes") {
		scheme := v.object(s, name)
		if scheme["type"] != "apiKey" || scheme["in"] != "header" || scheme["name"] != "X-Api-Key" {
			t.Errorf("security scheme %s: %v", name, scheme)
		}
	}
}

type documentCheck struct {
	t   *testing.T
	doc map[string]any
	ids map[string]bool
}

func (v *documentCheck) object(x any, at string) map[string]any {
	m, ok := x.(map[string]any)
	if !ok {
		v.t.Errorf("%s is no object: %v", at, x)
	}
	return m
}

func (v *documentCheck) only(m map[string]any, at string, known ...string) {
	for key := range m {
		if !slices.Contains(known, key) && !strings.HasPrefix(key, "x-") {
			v.t.Errorf("%s has an unknown field %q", at, key)
		}
	}
}

func (v *documentCheck) path(path string, item map[string]any) {
	if !strings.HasPrefix(path, "/") {
		v.t.Errorf("%s does not begin with a slash", path)
	}
	v.only(item, path, "get", "put", "post", "delete")
	for method, o := range item {
		at := method + " " + path
		op := v.object(o, at)
		v.only(op, at, "operationId", "summary", "description", "parameters", "requestBody", "responses", "security", "tags", "deprecated")
		id, _ := op["operationId"].(string)
		if id == "" || v.ids[id] {
			v.t.Errorf("%s: operationId %q is missing or stands twice", at, id)
		}
		v.ids[id] = true
		v.parameters(path, at, op["parameters"])
		if b := op["requestBody"]; b != nil {
			body := v.object(b, at)
			v.only(body, at+" body", "description", "content", "required")
			v.content(body["content"], at+" body")
		}
		responses := v.object(op["responses"], at)
		if len(responses) == 0 {
			v.t.Errorf("%s has no response", at)
		}
		for status, r := range responses {
			response := v.object(r, at)
			v.only(response, at+" "+status, "description", "content", "headers", "links")
			if s, _ := response["description"].(string); s == "" || !regexp.MustCompile(`^[1-5][0-9][0-9]$`).MatchString(status) {
				v.t.Errorf("%s: response %s has no description, or no status", at, status)
			}
			if response["content"] != nil {
				v.content(response["content"], at+" "+status)
			}
		}
	}
}

// parameters checks that a path's names and no others are required path
// parameters, and that no two are the same.
func (v *documentCheck) parameters(path, at string, list any) {
	var inPath []string
	seen := map[string]bool{}
	params, _ := list.([]any)
	for _, x := range params {
		p := v.object(x, at)
		v.only(p, at+" parameter", "name", "in", "description", "required", "schema", "explode", "style", "deprecated", "example")
		name, _ := p["name"].(string)
		in, _ := p["in"].(string)
		if name == "" || in != "path" && in != "query" || seen[in+name] {
			v.t.Errorf("%s: parameter %v", at, p)
		}
		seen[in+name] = true
		if in == "path" {
			inPath = append(inPath, "{"+name+"}")
			if p["required"] != true {
				v.t.Errorf("%s: path parameter %s is not required", at, name)
			}
		}
		v.schema(p["schema"], at+" "+name)
	}
	if names := regexp.MustCompile(`\{[^}]*\}`).FindAllString(path, -1); !slices.Equal(names, inPath) {
		v.t.Errorf("%s: names %v, path parameters %v", at, names, inPath)
	}
}

func (v *documentCheck) content(x any, at string) {
	for media, m := range v.object(x, at) {
		if !strings.Contains(media, "/") {
			v.t.Errorf("%s: media type %q", at, media)
		}
		v.schema(v.object(m, at)["schema"], at+" "+media)
	}
}

// schema checks a JSON Schema of 2020-12 as far as we use it.
func (v *documentCheck) schema(x any, at string) {
	s := v.object(x, at)
	if ref, ok := s["$ref"].(string); ok {
		name, is := strings.CutPrefix(ref, "#/components/schemas/")
		if _, there := v.object(v.object(v.doc["components"], at)["schemas"], at)[name]; !is || !there {
			v.t.Errorf("%s: %s leads nowhere", at, ref)
		}
		return
	}
	v.only(s, at, "type", "properties", "items", "required", "additionalProperties", "description", "enum", "minimum", "maximum", "format", "oneOf", "anyOf", "contentEncoding", "examples", "default", "minItems", "maxItems", "minLength")
	types := []any{s["type"]}
	if list, ok := s["type"].([]any); ok {
		types = list
	}
	for _, kind := range types {
		if kind != nil && !slices.Contains([]any{"string", "number", "integer", "boolean", "array", "object", "null"}, kind) {
			v.t.Errorf("%s: type %v", at, kind)
		}
	}
	properties, _ := s["properties"].(map[string]any)
	for name, p := range properties {
		v.schema(p, at+"."+name)
	}
	required, _ := s["required"].([]any)
	for _, name := range required {
		if _, there := properties[fmt.Sprint(name)]; !there {
			v.t.Errorf("%s: %v is required and not described", at, name)
		}
	}
	if s["items"] != nil {
		v.schema(s["items"], at+"[]")
	}
	for _, key := range []string{"oneOf", "anyOf"} {
		all, _ := s[key].([]any)
		for _, one := range all {
			v.schema(one, at+" "+key)
		}
	}
	if more, is := s["additionalProperties"].(map[string]any); is {
		v.schema(more, at+".*")
	}
}
