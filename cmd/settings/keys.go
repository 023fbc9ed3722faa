package settings

import (
	"errors"
	"fmt"
	"reflect"
	"sort"
	"strings"

	"go.yaml.in/yaml/v3"
)

// checkKeys refuses every key of the file's mapping that its type does not have,
// with the line it stands in and the nearest key that there is.
func checkKeys(path string, root *yaml.Node, t reflect.Type) error {
	w := keyWalk{path: path}
	collectPaths(t, "", &w.known)
	w.visit(root, t, "")
	return errors.Join(w.unknown...)
}

// keyWalk visits a document beside the type it is to be decoded into.
type keyWalk struct {
	path    string
	known   []string // every key of the file, dotted
	unknown []error
}

func (w *keyWalk) visit(n *yaml.Node, t reflect.Type, at string) {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	switch {
	case t.Kind() == reflect.Struct && n.Kind == yaml.MappingNode:
		w.visitStruct(n, fieldsOf(t), at)
	case t.Kind() == reflect.Map && n.Kind == yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			w.visit(n.Content[i+1], t.Elem(), join(at, n.Content[i].Value))
		}
	case t.Kind() == reflect.Slice && n.Kind == yaml.SequenceNode:
		for i, element := range n.Content {
			w.visit(element, t.Elem(), fmt.Sprintf("%s[%d]", at, i))
		}
	}
}

func (w *keyWalk) visitStruct(n *yaml.Node, fields map[string]reflect.Type, at string) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if t, ok := fields[key.Value]; ok {
			w.visit(value, t, join(at, key.Value))
			continue
		}
		w.unknown = append(w.unknown, fmt.Errorf("%s:%d: %s is unknown%s",
			w.path, key.Line, join(at, key.Value), w.suggest(key.Value, fields)))
	}
}

// suggest names the nearest sibling, or a key of this very name elsewhere.
func (w *keyWalk) suggest(key string, fields map[string]reflect.Type) string {
	siblings := make([]string, 0, len(fields))
	for name := range fields {
		siblings = append(siblings, name)
	}
	sort.Strings(siblings)
	best, distance := nearest(key, siblings)
	if distance <= max(1, len(key)/2) {
		return fmt.Sprintf(": did you mean %q?", best)
	}
	for _, known := range w.known {
		if known == key || strings.HasSuffix(known, "."+key) {
			return fmt.Sprintf(": it belongs at %q", known)
		}
	}
	return fmt.Sprintf(": the nearest key here is %q; all are %s", best, strings.Join(siblings, ", "))
}

// fieldsOf returns a struct's keys with their types, squashed structs opened.
func fieldsOf(t reflect.Type) map[string]reflect.Type {
	fields := map[string]reflect.Type{}
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if options == "squash" {
			for inner, innerType := range fieldsOf(f.Type) {
				fields[inner] = innerType
			}
		} else if name != "" && name != "-" {
			fields[name] = f.Type
		}
	}
	return fields
}

func collectPaths(t reflect.Type, at string, into *[]string) {
	if t.Kind() != reflect.Struct {
		return
	}
	fields := fieldsOf(t)
	names := make([]string, 0, len(fields))
	for name := range fields {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		*into = append(*into, join(at, name))
		collectPaths(fields[name], join(at, name), into)
	}
}

func join(at, key string) string {
	if at == "" {
		return key
	}
	return at + "." + key
}

// nearest returns the candidate with the smallest edit distance to word.
func nearest(word string, candidates []string) (best string, distance int) {
	distance = len(word) + 1000
	for _, c := range candidates {
		if d := levenshtein(word, c); d < distance {
			best, distance = c, d
		}
	}
	return best, distance
}

// levenshtein counts the single-byte insertions, deletions and substitutions
// from a to b.
func levenshtein(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			diagonal, row[j] = row[j], min(row[j]+1, row[j-1]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
