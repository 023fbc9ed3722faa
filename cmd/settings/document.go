package settings

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"go.yaml.in/yaml/v3"
)

// longestFile bounds what is read as settings: no file of ours comes near it.
const longestFile = 1 << 20

// document is a settings file on its way to the decoder: its keys with their
// lines, and what the environment and the translation of PVC's keys made of it.
type document struct {
	path      string
	content   []byte
	root      *yaml.Node        // the mapping of the whole file
	changed   bool              // root is not what content says any more
	lines     map[string]int    // of each key and element, dotted
	variables map[string]string // by key: the environment variable it is from
	was       map[string]string // by key: PVC's own key it is from
	warnings  []string
}

// readDocument reads and parses a file; the type is what it is to be decoded
// into, by which a file of PVC's own daemons is told apart and translated.
func readDocument(path string, rules *pvcRules) (*document, error) {
	content, err := readSettings(path)
	if err != nil {
		return nil, err
	}
	d := &document{path: path, content: content, lines: map[string]int{}, variables: map[string]string{}, was: map[string]string{}}
	if d.root, err = parse(content); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if rules != nil && isPVCs(d.root) {
		d.translate(rules)
	}
	d.index(d.root, "")
	return d, nil
}

// parse returns the file's mapping. It refuses whatever YAML allows and no
// settings file means: a key that stands twice, a second document.
func parse(content []byte) (*yaml.Node, error) {
	var plain any // keys that stand twice, and aliases that grow without bound, are errors here
	if err := yaml.Unmarshal(content, &plain); err != nil {
		return nil, err
	}
	decoder := yaml.NewDecoder(bytes.NewReader(content))
	var doc, second yaml.Node
	switch err := decoder.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return &yaml.Node{Kind: yaml.MappingNode}, nil
	case err != nil:
		return nil, err
	}
	if err := decoder.Decode(&second); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("line %d: a second document begins here, which nothing would read: have one only", max(1, second.Line))
	}
	root := doc.Content[0]
	switch {
	case root.Kind == yaml.MappingNode:
		return root, nil
	case root.Tag == "!!null":
		return &yaml.Node{Kind: yaml.MappingNode}, nil
	}
	return nil, fmt.Errorf("line %d: the file must consist of keys with their values, as `node: {name: hv1}`", root.Line)
}

// readSettings reads a file, and says of one that cannot be read what a person
// has to do about it.
func readSettings(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read settings: %w%s", err, unreadable(path, err))
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, longestFile+1))
	switch {
	case errors.Is(err, syscall.EISDIR):
		return nil, fmt.Errorf("read settings: %s is a folder: name the file in it", path)
	case err != nil:
		return nil, fmt.Errorf("read settings: %w", err)
	case len(content) > longestFile:
		return nil, fmt.Errorf("read settings: %s is longer than %d bytes, which no settings file is: is it the right one?", path, longestFile)
	}
	return content, nil
}

// unreadable is what to do about a file that cannot be opened.
func unreadable(path string, err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return ": the package brings one, with every key explained; name the one that you mean with -c"
	case errors.Is(err, fs.ErrPermission):
		owner := ""
		if info, err := os.Stat(path); err == nil {
			owner = fmt.Sprintf(" (it has mode %#o", info.Mode().Perm())
			if s, ok := info.Sys().(*syscall.Stat_t); ok {
				owner += fmt.Sprintf(" and belongs to user %d, group %d", s.Uid, s.Gid)
			}
			owner += ")"
		}
		return fmt.Sprintf(": this process runs as user %d, group %d, who may not read it%s: run it as root, or give the file that group and mode 0640", os.Geteuid(), os.Getegid(), owner)
	}
	return ""
}

// index notes the line of every key.
func (d *document) index(n *yaml.Node, at string) {
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := join(at, n.Content[i].Value)
			d.lines[key] = n.Content[i].Line
			d.index(n.Content[i+1], key)
		}
	case yaml.SequenceNode:
		for i, element := range n.Content {
			key := fmt.Sprintf("%s[%d]", at, i)
			d.lines[key] = element.Line
			d.index(element, key)
		}
	}
}

// where says in which place a key, or what it is part of, was written.
func (d *document) where(key string) string {
	for k := key; k != ""; k = k[:max(0, strings.LastIndexAny(k, ".["))] {
		if variable := d.variables[k]; variable != "" {
			return "environment variable " + variable
		}
		if line := d.lines[k]; line > 0 {
			at := fmt.Sprintf("%s:%d", d.path, line)
			if was := d.was[k]; was != "" {
				at += " (" + was + ")"
			}
			return at
		}
	}
	return d.path
}

// origin says where the value of a key comes from; "" means from nowhere: it is
// the default.
func (d *document) origin(key string) string {
	switch line := d.lines[key]; {
	case d.variables[key] != "":
		return d.variables[key]
	case d.was[key] != "" && line > 0:
		return fmt.Sprintf("line %d, %s", line, d.was[key])
	case d.was[key] != "":
		return d.was[key]
	case line > 0:
		return fmt.Sprintf("line %d", line)
	}
	return ""
}

// set lays a value over the document. False: something in its way is no mapping.
func (d *document) set(key string, value *yaml.Node) bool {
	at := d.root
	steps := strings.Split(key, ".")
	for _, step := range steps[:len(steps)-1] {
		next := child(at, step)
		if next == nil {
			next = put(at, step, &yaml.Node{Kind: yaml.MappingNode})
		}
		if next.Kind == yaml.AliasNode { // others that name it shall not change with it
			next = put(at, step, &yaml.Node{Kind: yaml.MappingNode, Content: append([]*yaml.Node(nil), next.Alias.Content...)})
		}
		if next.Tag == "!!null" {
			*next = yaml.Node{Kind: yaml.MappingNode}
		}
		if next.Kind != yaml.MappingNode {
			return false
		}
		at = next
	}
	put(at, steps[len(steps)-1], value)
	d.changed = true
	return true
}

// child returns the value of a key, nil where it is not there.
func child(n *yaml.Node, key string) *yaml.Node {
	if n == nil {
		return nil
	}
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

// put sets a key of a mapping and returns the value.
func put(n *yaml.Node, key string, value *yaml.Node) *yaml.Node {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			n.Content[i+1] = value
			return value
		}
	}
	n.Content = append(n.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: key, Line: value.Line}, value)
	return value
}

// text returns the document as it is to be decoded.
func (d *document) text() ([]byte, error) {
	if !d.changed {
		return d.content, nil
	}
	return yaml.Marshal(d.root)
}
