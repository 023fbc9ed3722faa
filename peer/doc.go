// Package peer carries small questions from node to node over mutual TLS 1.3,
// past ZooKeeper: is a node alive, may I go on without the store, does it grant
// me a lease.
//
// Who somebody is stands in the certificate alone, never in an address: one URI
// of the form
//
//	spiffe://<cluster>/node/<name>
//
// as the only URI among the subject's alternative names. A certificate of
// another authority, another cluster or another role than node is refused
// in the handshake, on both sides. Files are read again while the daemon runs
// (Identity), and every certificate error names the file, the name found and
// the cure.
//
// A question is POST /peer/v1/<kind> with a body of at most 64 KiB over
// HTTP/1.1, one at a time on a connection. It may reach its handler twice: a
// connection that was kept warm can be dead without a sign, so that a client
// which hears nothing on it asks once more on a fresh one. A handler must
// therefore take a repetition for what it is.
//
// No message carries a time of day: ages and remaining times are durations,
// and the asker anchors them at the instant at which it *sent* the question
// (I1, I3). Nothing here waits for a disk or takes a lock that the keepalive
// takes (I10).
package peer
