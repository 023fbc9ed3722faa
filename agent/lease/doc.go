// Package lease decides who may work with a node (protocol §7): a node promises
// to serve one leader, and only it, for a time. A Granter runs on every node, a
// Holder for each node on the primary, and the Ledger tells which quorums the
// held leases make. All three are pure: time is an argument, what they ask for
// is returned. File alone (disk.go) touches a disk.
//
// Why two leaders' work never overlaps on a node: let a question be sent at s on
// the leader's clock and arrive at a ≥ s. The node serves that leader until
// a + period on its own clock at least, and nobody else before the work that was
// started under the lease is dead. The leader believes in the lease until
// s + what is left − grace on its own clock. If its clock is slower than the
// node's by the part d, it stops first as long as d·period ≤ grace. Where a
// question was slow on its way the leader counts from an earlier one instead, by
// the time that the node measured between the two, at most one period, so that
// 2·d·period ≤ grace is what must hold. Clocks that are both wrong by 5 % have
// d = 1 − 0.95/1.05 = 0.095, and each profile's grace is a fifth of its period.
package lease
