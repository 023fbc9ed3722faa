// Package doctor judges facts about a node and its cluster: what is wrong and
// how to mend it. It is pure: others gather the facts (cmd/pvc on a node, api
// from the records), each function here turns some of them into findings. A
// fact that could not be had is a finding of its own, Unchecked, and never passes.
package doctor
