package guard

import (
	"fmt"
	"slices"

	"github.com/google/nftables"
)

// GateLeft reports whether the kernel has the gate's tables, whoever made them:
// where no guard keeps them, packets for the addresses in them are dropped. For
// whoever looks for what was left behind; it changes nothing.
func GateLeft() (table string, there bool, err error) {
	table = Config{}.withDefaults().Table
	conn, err := nftables.New()
	if err != nil {
		return table, false, fmt.Errorf("ask for nftables: %w", err)
	}
	tables, err := conn.ListTables()
	if err != nil {
		return table, false, fmt.Errorf("list nftables' tables: %w", err)
	}
	return table, slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == table }), nil
}
