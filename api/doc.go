// Package api serves the cluster over HTTP: PVC's paths with PVC's shapes, and
// our own beside them, from one table of routes (routes.go) that the OpenAPI
// document is generated from as well.
//
// The server keeps nothing of its own. Reads are answered from the latest
// snapshot of the store; a change is an intent written by compare-and-set, in
// one transaction with its entry in the cluster's history, and is carried out
// by the agents. A store that is away is a 503 that says since when, with the
// last answer marked stale where there is one; no request waits longer than its
// deadline.
//
// The same package holds the client that the command line uses, so that both
// ends share one set of types.
package api
