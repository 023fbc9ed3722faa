// Package pvc is empty: it holds the tests of the tree as a whole. Start
// reading in cluster, which has the vocabulary, and in DESIGN.md.
package pvc
