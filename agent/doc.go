// Package agent is the shell of a node's daemon: a few owned goroutines that
// feed the pure cores (role, detector, failover) with snapshots and events and
// carry their effects out. It declares what it needs of ZooKeeper, of the
// guard and of the fencer as small interfaces (deps.go) and imports none of
// the adapters.
//
// Goroutines and who waits for them: Run starts decide (owns the role's
// state), keepalive, registrar, nodewatch and warm pre-flight, and returns
// only after all of them have ended. Effects run in goroutines of the executor,
// each under a deadline, and the executor waits for them.
package agent
