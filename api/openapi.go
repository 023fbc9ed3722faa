package api

import (
	"encoding/json"
	"reflect"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

// getOpenAPI answers with the document made from the table of routes, so that
// no path, argument or answer can be in one and not in the other.
func (s *Server) getOpenAPI(*request) (answer, error) {
	raw, err := json.Marshal(document(s.routes, s.cfg))
	if err != nil {
		return answer{}, err
	}
	return ok(json.RawMessage(raw))
}

func document(routes []route, c Config) *huma.OpenAPI {
	schemas := huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer)
	doc := &huma.OpenAPI{
		OpenAPI:    "3.1.0",
		Info:       &huma.Info{Title: "pvcapid", Version: "1.0", Description: "State and control of the cluster " + c.ClusterName + "."},
		Components: &huma.Components{Schemas: schemas, SecuritySchemes: map[string]*huma.SecurityScheme{"key": {Type: "apiKey", In: "header", Name: "X-Api-Key"}}},
		Paths:      map[string]*huma.PathItem{},
	}
	for _, rt := range routes {
		path := strings.TrimSuffix(rt.fullPath(), "{$}")
		if doc.Paths[path] == nil {
			doc.Paths[path] = &huma.PathItem{}
		}
		op := operation(rt, path, schemas)
		switch rt.method {
		case post:
			doc.Paths[path].Post = op
		case put:
			doc.Paths[path].Put = op
		case del:
			doc.Paths[path].Delete = op
		default:
			doc.Paths[path].Get = op
		}
	}
	return doc
}

func operation(rt route, path string, schemas huma.Registry) *huma.Operation {
	op := &huma.Operation{
		OperationID: strings.ToLower(rt.method) + "-" + strings.Trim(strings.NewReplacer("/", "-", "{", "", "}", "").Replace(path), "-"),
		Summary:     rt.summary, Responses: map[string]*huma.Response{},
	}
	if !rt.open {
		op.Security = []map[string][]string{{"key": {}}}
	}
	for _, segment := range strings.Split(path, "/") {
		if strings.HasPrefix(segment, "{") {
			op.Parameters = append(op.Parameters, &huma.Param{Name: strings.Trim(segment, "{}"), In: "path", Required: true, Schema: &huma.Schema{Type: "string"}})
		}
	}
	for _, p := range rt.params {
		op.Parameters = append(op.Parameters, &huma.Param{Name: p.name, In: "query", Description: p.about, Required: p.required, Schema: p.schema()})
	}
	op.Responses["200"] = response("Done", rt.reply, schemas)
	switch {
	case rt.settings:
		op.Responses["400"] = response("Wrong settings, by name", SettingsErrors{}, schemas)
	case len(rt.params) > 0:
		op.Responses["400"] = response("A bad argument, by name; or a refusal, as a text", ArgumentErrors{}, schemas)
	}
	op.Responses["503"] = response("The store is away", Away{}, schemas)
	return op
}

func response(about string, reply any, schemas huma.Registry) *huma.Response {
	schema := huma.SchemaFromType(schemas, reflect.TypeOf(reply))
	return &huma.Response{Description: about, Content: map[string]*huma.MediaType{"application/json": {Schema: schema}}}
}

func (p param) schema() *huma.Schema {
	s := &huma.Schema{Type: "string"}
	switch p.kind {
	case argBool:
		s.Type = "boolean"
	case argInt:
		low, high := float64(p.min), float64(p.max)
		s.Type, s.Minimum, s.Maximum = "integer", &low, &high
	}
	for _, c := range p.choices {
		s.Enum = append(s.Enum, c)
	}
	return s
}
