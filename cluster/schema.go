package cluster

import (
	"encoding/json"
	"fmt"
	"strings"
)

// FirstSchema is the schema of the first tree, and of programs that tell none.
const FirstSchema = 1

// FactsSchema is the schema from which on what a node publishes stands in one
// record, Facts, beside the leaves.
const FactsSchema = 2

// EventMigrated is the history's word that the tree's schema was raised, written
// in the very Multi that raised it. Its fields are "from" and "to".
const EventMigrated = "migrated"

// SchemaPlan is what may become of the tree's schema now.
type SchemaPlan struct {
	From int    // the tree's, 0 if it cannot be read
	To   int    // what it is to become next; 0: nothing is to be done
	What string // what that step does, in words
	// Waits says of each node that stands against it why, in the order of their
	// names; where it is not empty nothing may be done yet.
	Waits []string
}

// MigrationBatch is a part of a migration that is written in one Multi.
type MigrationBatch struct {
	Ops []Op
	// Last: with these operations, which set the schema, it is done.
	Last bool
}

// SchemaTooNew is the error of a program that meets a tree of a later one.
func SchemaTooNew(tree, known int) error {
	return fmt.Errorf("%w: the tree has schema %d, this program knows %d, since a later version has migrated the cluster; update this node to that version. To go back to this one, stop every node and restore a backup from before the migration (`pvc cluster restore`)",
		ErrSchemaNewer, tree, known)
}

// Facts are all values that a node publishes of itself, in one record.
type Facts struct {
	Version     int         `json:"v"`
	Incarnation Incarnation `json:"incarnation"` // of the start that published them
	// Leaves are the values by their path below /nodes/<node>, but for those that
	// nodes are coordinated by, which every observer follows anyway.
	Leaves map[string]string `json:"leaves"`
}

// Encode makes the record's text; the same facts always make the same text.
func (f Facts) Encode() (string, error) {
	f.Version = 1
	raw, err := json.Marshal(f)
	if err != nil {
		return "", fmt.Errorf("encode facts: %w", err)
	}
	return string(raw), nil
}

// DecodeFacts reads the record's text. An emptied one is none: ok is false.
func DecodeFacts(text string) (f Facts, ok bool, err error) {
	if strings.TrimSpace(text) == "" {
		return Facts{}, false, nil
	}
	if err := json.Unmarshal([]byte(text), &f); err != nil {
		return Facts{}, false, fmt.Errorf("the facts cannot be read: %w", err)
	}
	if f.Version < 1 || f.Incarnation == "" || f.Leaves == nil {
		return Facts{}, false, fmt.Errorf("the facts have version %d, start %q and %d values: not a node's", f.Version, f.Incarnation, len(f.Leaves))
	}
	return f, true, nil
}
