package api

import (
	"net/http"
	"reflect"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

// getOpenAPI answers with the document made from the table of routes, so that
// no path, argument or answer can be in one and not in the other.
func (s *Server) getOpenAPI(*request) (answer, error) {
	e, err := s.document()
	if err != nil {
		return answer{}, err
	}
	return ok(e)
}

// makeDocument encodes the document once.
func (s *Server) makeDocument() (*encoded, error) { return encode(document(s.routes, s.cfg)) }

func document(routes []route, c Config) *huma.OpenAPI {
	schemas := huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer)
	doc := &huma.OpenAPI{
		OpenAPI:    "3.1.0",
		Info:       &huma.Info{Title: "pvcapid", Version: "1.0", Description: "State and control of the cluster " + c.ClusterName + "."},
		Components: &huma.Components{Schemas: schemas, SecuritySchemes: map[string]*huma.SecurityScheme{"key": {Type: "apiKey", In: "header", Name: "X-Api-Key"}}},
		Paths:      map[string]*huma.PathItem{},
	}
	for _, rt := range routes {
		path := rt.documented()
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

// documented is the path as the document names it.
func (rt route) documented() string { return strings.TrimSuffix(rt.fullPath(), "{$}") }

func operation(rt route, path string, schemas huma.Registry) *huma.Operation {
	op := &huma.Operation{
		OperationID: strings.ToLower(rt.method) + "-" + strings.Trim(strings.NewReplacer("/", "-", "{", "", "}", "").Replace(path), "-"),
		Summary:     rt.summary, Responses: map[string]*huma.Response{},
	}
	if !rt.open {
		op.Security = []map[string][]string{{"key": {}}}
	}
	for _, name := range rt.names() {
		op.Parameters = append(op.Parameters, &huma.Param{Name: name, In: "path", Required: true, Schema: &huma.Schema{Type: "string"}})
	}
	for _, p := range rt.params { // where there is a body, it may stand there instead
		op.Parameters = append(op.Parameters, &huma.Param{Name: p.name, In: "query", Description: p.about, Required: p.required && rt.method == get, Schema: p.schema()})
	}
	if rt.method != get && len(rt.params) > 0 {
		op.RequestBody = rt.body()
	}
	rt.responses(op, schemas)
	return op
}

// body describes the arguments as a form and as a JSON object.
func (rt route) body() *huma.RequestBody {
	all := &huma.Schema{Type: huma.TypeObject, Properties: map[string]*huma.Schema{}}
	for _, p := range rt.params {
		all.Properties[p.name] = p.schema()
		all.Properties[p.name].Description = p.about
	}
	return &huma.RequestBody{Description: "The arguments, which may stand in the query instead", Content: map[string]*huma.MediaType{
		"application/x-www-form-urlencoded": {Schema: all}, "application/json": {Schema: all}}}
}

// responses lists every status that the route answers with.
func (rt route) responses(op *huma.Operation, schemas huma.Registry) {
	if rt.reply == nil {
		op.Responses["200"] = &huma.Response{Description: "Done", Content: map[string]*huma.MediaType{rt.media: {Schema: &huma.Schema{Type: "string"}}}}
	} else {
		op.Responses["200"] = response("Done", rt.reply, schemas)
	}
	for _, also := range rt.also {
		op.Responses[strconv.Itoa(also.status)] = response(also.about, also.reply, schemas)
	}
	tell := func(status int, about string, reply any) {
		if key := strconv.Itoa(status); op.Responses[key] == nil {
			op.Responses[key] = response(about, reply, schemas)
		}
	}
	tell(http.StatusUnauthorized, "No key, or one that is not known", Message{})
	tell(http.StatusForbidden, "The key's role, or where the request comes from, does not allow it", Message{})
	tell(http.StatusTooManyRequests, "Too many failed keys from there", Message{})
	if rt.reply == nil {
		return
	}
	bad := either{ArgumentErrors{}, Message{}}
	if rt.settings {
		bad = append(bad, SettingsErrors{})
	}
	tell(http.StatusBadRequest, "A bad argument, by name; or a refusal, as a text", bad)
	if len(rt.names()) > 0 || rt.method == get {
		tell(http.StatusNotFound, "There is none of that name", Message{})
	}
	if rt.method != get {
		tell(http.StatusConflict, "Somebody else has changed it at the same moment", Message{})
		tell(http.StatusRequestEntityTooLarge, "The body is too large", Message{})
		tell(http.StatusGatewayTimeout, "What became of it cannot be told now", Message{})
	}
	tell(http.StatusServiceUnavailable, "The store is away", Away{})
}

func response(about string, reply any, schemas huma.Registry) *huma.Response {
	if reply == nil {
		return &huma.Response{Description: about}
	}
	schema := &huma.Schema{}
	if all, is := reply.(either); is {
		for _, one := range all {
			schema.OneOf = append(schema.OneOf, schemaOf(schemas, reflect.TypeOf(one)))
		}
	} else {
		schema = schemaOf(schemas, reflect.TypeOf(reply))
	}
	return &huma.Response{Description: about, Content: map[string]*huma.MediaType{"application/json": {Schema: schema}}}
}

// schemaOf is the schema of a type, in which what is a pointer to an object may
// be null, as it is encoded.
func schemaOf(schemas huma.Registry, t reflect.Type) *huma.Schema {
	s := schemas.Schema(t, true, t.Name())
	allowNull(schemas, t, map[reflect.Type]bool{})
	return s
}

func allowNull(schemas huma.Registry, t reflect.Type, seen map[reflect.Type]bool) {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map, reflect.Array:
		allowNull(schemas, t.Elem(), seen)
		return
	case reflect.Struct:
	default:
		return
	}
	if seen[t] || t.Name() == "" {
		return
	}
	seen[t] = true
	of := schemas.Schema(t, true, t.Name())
	if of.Ref != "" {
		of = schemas.SchemaFromRef(of.Ref)
	}
	for field := range t.Fields() {
		allowNull(schemas, field.Type, seen)
		name, options, _ := strings.Cut(field.Tag.Get("json"), ",")
		p := of.Properties[name]
		if p != nil && field.Type.Kind() == reflect.Map && !strings.Contains(options, "omitempty") {
			p.Nullable = true
		}
		if field.Type.Kind() == reflect.Pointer && !strings.Contains(options, "omitempty") && p != nil && p.Ref != "" {
			of.Properties[name] = &huma.Schema{AnyOf: []*huma.Schema{{Ref: p.Ref}, {Type: "null"}}}
		}
	}
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
