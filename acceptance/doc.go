// Package acceptance holds tests of the whole as its users meet it: the built
// programs on real clusters (namespaces, a real ZooKeeper ensemble, simulated
// BMCs), looked at by a ZooKeeper client that shares no code with ours, by the
// command line, and over HTTP. It has no code of its own.
//
// The tests need root, Debian's zookeeper and python3-kazoo, and skip with a
// message where one is missing. One cluster of each size serves many subtests;
// a subtest leaves its cluster at rest, and everything a killed run left is
// removed by the next.
package acceptance
