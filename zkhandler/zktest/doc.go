// Package zktest is a ZooKeeper ensemble in memory for tests. It speaks the
// real wire protocol over net.Pipe, so that a client exercises its own
// encoding, its reconnects and its watches, and it lives on the time package
// alone: inside a testing/synctest bubble hours of cluster life pass in
// milliseconds, and no goroutine is left after Server.Close.
//
// It behaves as ZooKeeper 3.8 does wherever a client can tell: sessions with
// negotiated timeouts and tick-rounded expiry, per-session order (a request
// behind a pending write waits, a ping too), sequence numbers that count
// creates, results of a failed Multi op by op, one-shot watches and their
// re-registration, digest ACLs, the 1 MiB frame limit.
//
// What a test can plant: a client's network (Partition, OneWay, Delay, Drop),
// a lost request or reply (DropRequest, DropReply, LateCommit), a session's
// end (Expire), a store nobody can write to (Stall) or reach (Outage), a
// server that is down, hung, behind its leader or cut off from it (ServerDown,
// ServerHang, LagFollower, CutFollower). History tells afterwards what was committed, in
// which order, by whom.
package zktest
