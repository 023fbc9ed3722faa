package sandbox

import "testing"

// A server counts as deaf from the death of its thread to its next start.
func TestADeafServerIsKnownByItsLog(t *testing.T) {
	const (
		starts = "274 [main] INFO org.apache.zookeeper.server.quorum.QuorumPeerConfig - Reading configuration from: /x/zoo.cfg\n"
		looks  = "6834 [QuorumPeer[myid=3]] WARN org.apache.zookeeper.server.quorum.QuorumPeer - PeerState set to LOOKING\n"
		dies   = "6837 [WorkerReceiver[myid=3]] ERROR org.apache.zookeeper.server.NIOServerCnxnFactory - Thread Thread[WorkerReceiver[myid=3],5,main] died\n"
	)
	for log, want := range map[string]bool{
		"": false, starts: false, starts + looks: false,
		starts + looks + dies: true, starts + dies + looks: true,
		starts + dies + starts: false, starts + dies + starts + looks: false, starts + dies + starts + dies: true,
	} {
		if deaf([]byte(log)) != want {
			t.Errorf("deaf %v, want %v:\n%s", !want, want, log)
		}
	}
}
