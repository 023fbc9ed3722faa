package placement

import (
	"fmt"
	"slices"
	"strings"

	"pvc.internal/cluster"
)

// nominal is what a workload that names no memory counts for where nodes are
// compared, in MiB: otherwise many of them would all go to one node.
const nominal = 512

// Book counts what nodes have left while workloads are being placed, so that each
// one that is placed is seen by the next. One goroutine at a time uses it.
type Book struct {
	selector string
	nodes    []*account // by name
}

// account is one node's.
type account struct {
	Node
	prov    int64 // MiB of all workloads that the records, or this book, have there
	weighed int64 // the same for comparing, with nominal sizes
	pending int64 // of those that do not run yet as far as the records say: the node's figures know nothing of them
	counted int64 // the same for comparing
	vcpus   int
	extra   int // vcpus of pending ones
	count   int
}

// NewBook makes one of what nodes say of themselves and of what the records have on
// them. selector is the cluster's; a workload's own goes before it. It keeps none of
// its arguments.
func NewBook(nodes []Node, workloads []cluster.Workload, selector string) *Book {
	b := &Book{selector: selector}
	for _, n := range nodes {
		b.nodes = append(b.nodes, &account{Node: n})
	}
	slices.SortFunc(b.nodes, func(x, y *account) int { return compare(x.Name, y.Name) })
	for _, w := range workloads {
		for _, n := range Places(w) {
			if a := b.of(n); a != nil {
				a.add(w, !settled(w))
			}
		}
	}
	return b
}

// Places are the nodes where a workload has, or is about to have, a copy.
func Places(w cluster.Workload) []cluster.NodeID {
	places := w.Members()
	if w.Next != nil {
		for _, n := range w.Next.Chain {
			if n != cluster.NoCopy && !slices.Contains(places, n) {
				places = append(places, n)
			}
		}
	}
	return places
}

// settled reports whether a node's own figures know of the workload.
func settled(w cluster.Workload) bool {
	return w.State == cluster.WorkloadRunning || !w.Wanted
}

func (b *Book) of(n cluster.NodeID) *account {
	for _, a := range b.nodes {
		if a.Name == n {
			return a
		}
	}
	return nil
}

func (a *account) add(w cluster.Workload, pending bool) {
	a.count++
	a.vcpus += w.VCPUs
	a.prov += w.MemoryMiB
	a.weighed += weight(w)
	if !pending {
		return
	}
	a.pending += w.MemoryMiB
	a.counted += weight(w)
	a.extra += max(1, w.VCPUs)
}

// giveBack undoes a Take.
func (b *Book) giveBack(w cluster.Workload, n cluster.NodeID) {
	a := b.of(n)
	if a == nil {
		return
	}
	a.count--
	a.vcpus -= w.VCPUs
	a.prov -= w.MemoryMiB
	a.weighed -= weight(w)
	a.pending -= w.MemoryMiB
	a.counted -= weight(w)
	a.extra -= max(1, w.VCPUs)
}

func weight(w cluster.Workload) int64 {
	if w.MemoryMiB == 0 {
		return nominal
	}
	return w.MemoryMiB
}

// left is how much memory may still be placed there.
func (a *account) left() int64 {
	return min(a.Facts.MemTotal-max(a.prov, a.Facts.MemProv), a.Facts.MemFree-a.pending)
}

// against says why the node cannot take the workload; empty: it can.
func (a *account) against(w cluster.Workload, except []cluster.NodeID) string {
	switch {
	case a.Bar != "":
		return a.Bar
	case len(w.Nodes) > 0 && !slices.Contains(w.Nodes, a.Name):
		return "not in its list of nodes"
	case slices.Contains(except, a.Name):
		return "it is there already, or has failed there"
	case w.VCPUs > 0 && a.Facts.CPUs > 0 && w.VCPUs > a.Facts.CPUs:
		return fmt.Sprintf("it has %d CPUs, %d are needed", a.Facts.CPUs, w.VCPUs)
	case w.MemoryMiB > 0 && a.Facts.Known && w.MemoryMiB > a.left():
		return fmt.Sprintf("%d MiB are left, %d are needed", max(0, a.left()), w.MemoryMiB)
	}
	return ""
}

// Against says why the node cannot take the workload now; empty: it can.
func (b *Book) Against(w cluster.Workload, n cluster.NodeID) string {
	a := b.of(n)
	if a == nil {
		return "no such node"
	}
	return a.against(w, nil)
}

// before reports whether x is to be preferred to y by the selector.
func before(selector string, x, y *account) bool {
	if x.Facts.Known != y.Facts.Known {
		return x.Facts.Known
	}
	var order int
	switch selector {
	case "memprov":
		order = compare(y.Facts.MemTotal-max(y.weighed, y.Facts.MemProv), x.Facts.MemTotal-max(x.weighed, x.Facts.MemProv))
	case "load":
		order = compare(x.Facts.Load+float64(x.extra), y.Facts.Load+float64(y.extra))
	case "vcpus":
		order = compare(max(x.vcpus, x.Facts.VCPUs), max(y.vcpus, y.Facts.VCPUs))
	case "vms":
		order = compare(max(x.count, x.Facts.Count), max(y.count, y.Facts.Count))
	default: // mem
		order = compare(y.Facts.MemFree-y.counted, x.Facts.MemFree-x.counted)
	}
	if order == 0 {
		order = compare(x.count, y.count)
	}
	if order == 0 {
		order = compare(x.Name, y.Name)
	}
	return order < 0
}

// Place picks the node for the workload and counts it there. Without one it says of
// each node why not. except are nodes that it is not to go to.
func (b *Book) Place(w cluster.Workload, except ...cluster.NodeID) (cluster.NodeID, string) {
	selector := w.Selector
	if selector == "" {
		selector = b.selector
	}
	var best *account
	var why []string
	for _, a := range b.nodes {
		if no := a.against(w, except); no != "" {
			why = append(why, fmt.Sprintf("%s: %s", a.Name, no))
			continue
		}
		if best == nil || before(selector, a, best) {
			best = a
		}
	}
	if best == nil {
		return cluster.NoCopy, nowhere(why)
	}
	best.add(w, true)
	return best.Name, ""
}

// Take counts the workload on a node that was chosen otherwise.
func (b *Book) Take(w cluster.Workload, n cluster.NodeID) {
	if a := b.of(n); a != nil {
		a.add(w, true)
	}
}

// shownNodes bounds how many nodes a reason names.
const shownNodes = 12

func nowhere(why []string) string {
	if len(why) == 0 {
		return "no node can take it: there is none"
	}
	more := ""
	if len(why) > shownNodes {
		more = fmt.Sprintf("; and %d more", len(why)-shownNodes)
		why = why[:shownNodes]
	}
	return "no node can take it (" + strings.Join(why, "; ") + more + ")"
}

// Sorted are the workloads in the order in which they are cared for: by priority,
// larger first, then by name. The list itself is not edited.
func Sorted(list []cluster.Workload) []cluster.Workload {
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b cluster.Workload) int {
		if a.Priority != b.Priority {
			return b.Priority - a.Priority
		}
		return strings.Compare(a.Name, b.Name)
	})
	return list
}
