// Package zkhandler is the project's only door to ZooKeeper.
//
// It hides a client library whose calls know no context, whose reconnects may
// run one session's requests in the next, and whose watches may be lost, and
// offers four things instead: Commit (one Multi, classified as ok, conflict,
// not sent, unknown or refused), Subscribe (immutable snapshots of the
// coordination records, latest wins), Lock (an exclusive lock that foreign
// kazoo users respect) and Refresh (sync, then fresh reads).
//
// The rules that hold throughout:
//
//   - One zk.Conn is one session and dies with it. The dialer refuses for a
//     dead one, so that nothing queued in one session runs in the next.
//   - A connection counts as live only after a sync through the leader. What
//     was handed to an earlier connection and never left is dropped and
//     answered as not sent (I3: an old renewal is not executed minutes later).
//   - Each request has a deadline. One that is not answered by then closes the
//     socket, the same session goes on at the next server, and the outcome is
//     unknown.
//   - A watch is a hint to read one path again. Everything watched is re-read
//     on each new connection and every Config.Resync besides.
//   - Only schema.go knows a znode's path, only metrics.go knows Prometheus,
//     and no error of the client library leaves the package.
package zkhandler
