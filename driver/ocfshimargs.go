package driver

import (
	"fmt"
	"strings"
)

// shimArgs are the arguments of one call of a shim.
type shimArgs struct {
	action      string // query where none is named
	value       map[string]string
	quiet       bool
	promotion   bool
	xml, oldXML bool
}

// shimOption is one option of Pacemaker's commands.
type shimOption struct {
	key   string // shimArgs.value
	act   string // shimArgs.action
	takes bool   // a value
	maybe bool   // a value, if the next word is none of the options
}

// What the options of the commands mean; the long ones in all alike.
var (
	longOptions = map[string]shimOption{
		"name": {key: "name", takes: true}, "attr-name": {key: "name", takes: true}, "node": {key: "node", takes: true}, "uname": {key: "node", takes: true},
		"lifetime": {key: "lifetime", takes: true}, "type": {key: "type", takes: true}, "scope": {key: "scope", takes: true},
		"update": {key: "update", act: "update", takes: true}, "attr-value": {key: "update", act: "update", takes: true},
		"delete": {act: "delete"}, "delete-attr": {act: "delete"}, "query": {act: "query"}, "get-value": {act: "query"},
		"quiet": {key: "quiet"}, "default": {key: "default", takes: true}, "set-name": {takes: true}, "promotion": {key: "promotion", maybe: true},
		"resource": {key: "resource", takes: true}, "delay": {takes: true}, "private": {}, "all": {}, "xpath": {key: "xpath", takes: true},
		"list": {act: "list"}, "partition": {act: "partition"}, "quorum": {act: "quorum"}, "cluster-id": {act: "id"},
		"one-shot": {}, "as-xml": {key: "oldxml"}, "output-as": {key: "output", takes: true}, "output-to": {takes: true},
		"group-by-node": {}, "inactive": {}, "show-node-attributes": {}, "include": {takes: true}, "locate": {act: "locate"},
		"local": {}, "no-bcast": {}, "verbose": {}, "wait": {}, "sync-call": {}, "force": {},
	}
	attributeOptions = map[string]shimOption{
		"n": longOptions["name"], "N": longOptions["node"], "U": longOptions["node"], "l": longOptions["lifetime"], "t": longOptions["type"],
		"v": longOptions["update"], "D": {act: "delete"}, "G": {act: "query"}, "q": longOptions["quiet"], "Q": longOptions["quiet"],
		"d": longOptions["default"], "s": {takes: true}, "p": longOptions["promotion"], "r": longOptions["resource"], "z": {}, "V": {}, "i": {takes: true}, "P": {takes: true},
	}
	shortOptions = map[string]map[string]shimOption{
		"crm_attribute": attributeOptions,
		"crm_master":    attributeOptions,
		"attrd_updater": {"n": longOptions["name"], "N": longOptions["node"], "v": longOptions["update"], "U": longOptions["update"], "B": longOptions["update"],
			"D": {act: "delete"}, "Q": {act: "query"}, "q": longOptions["quiet"], "p": {}, "d": {takes: true}, "s": {takes: true}, "S": {takes: true}, "A": {}, "V": {}},
		"crm_node": {"n": {act: "name"}, "l": {act: "list"}, "p": {act: "partition"}, "q": {act: "quorum"}, "i": {act: "id"}, "C": {}, "V": {}},
		"crm_mon":  {"1": {}, "X": {key: "oldxml"}, "n": {}, "r": {}, "A": {}, "f": {}, "o": {}, "N": {}, "R": {}, "V": {}},
		"cibadmin": {"Q": {act: "query"}, "A": longOptions["xpath"], "o": longOptions["scope"], "l": {}, "V": {}},
		"crm_resource": {"W": {act: "locate"}, "r": longOptions["resource"], "q": longOptions["quiet"], "Q": longOptions["quiet"], "N": longOptions["node"],
			"V": {}},
	}
)

// parseShim reads the arguments of a command. What it does not know is refused: an
// agent that means something else than it gets is worse off than one that is told.
func parseShim(name string, words []string) (shimArgs, error) {
	a := shimArgs{action: "query", value: map[string]string{}}
	if name == "crm_node" || name == "crm_resource" || name == "cibadmin" {
		a.action = ""
	}
	for i := 0; i < len(words); {
		used, err := a.option(name, words[i:])
		if err != nil {
			return a, err
		}
		i += used
	}
	_, a.quiet = a.value["quiet"]
	_, a.oldXML = a.value["oldxml"]
	_, a.promotion = a.value["promotion"]
	a.xml = a.oldXML || a.value["output"] == "xml"
	return a, nil
}

// option reads the option that words begin with, and returns how many of them it
// has used.
func (a *shimArgs) option(name string, words []string) (used int, err error) {
	word := words[0]
	if long, ok := strings.CutPrefix(word, "--"); ok && long != "" {
		key, value, given := strings.Cut(long, "=")
		o, known := longOptions[key]
		if name == "crm_node" && key == "name" {
			o = shimOption{act: "name"}
		}
		if !known {
			return 0, fmt.Errorf("option --%s is not known here", key)
		}
		return a.take(o, "--"+key, value, given, words[1:])
	}
	if len(word) < 2 || word[0] != '-' {
		return 0, fmt.Errorf("%q is no option", word)
	}
	for at := 1; at < len(word); at++ {
		o, known := shortOptions[name][word[at:at+1]]
		switch {
		case !known:
			return 0, fmt.Errorf("option -%s is not known here", word[at:at+1])
		case o.takes && at+1 < len(word): // -v5
			return a.take(o, word, word[at+1:], true, nil)
		case o.takes || o.maybe:
			return a.take(o, word, "", false, words[1:])
		}
		if _, err := a.take(o, word, "", false, nil); err != nil {
			return 0, err
		}
	}
	return 1, nil
}

// take enters one option with its value, given or to be found in what follows.
func (a *shimArgs) take(o shimOption, word, value string, given bool, rest []string) (used int, err error) {
	used = 1
	if !given && len(rest) > 0 && (o.takes || o.maybe && !strings.HasPrefix(rest[0], "-")) {
		value, given, used = rest[0], true, 2
	}
	if o.takes && !given {
		return 0, fmt.Errorf("option %s needs a value", word)
	}
	if o.act != "" {
		a.action = o.act
	}
	if o.key != "" {
		a.value[o.key] = value
	}
	return used, nil
}
