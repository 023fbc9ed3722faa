package role

import (
	"time"

	"pvc.internal/cluster"
)

// Mode is what the machine is doing; the diagram is in the package comment.
type Mode uint8

// The modes.
const (
	Idle Mode = iota
	Contending
	Candidate
	Taking
	Primary
	Relinquish
	Aborting
	Dropping
	Resuming
)

var modeNames = [...]string{"idle", "contending", "candidate", "taking", "primary", "relinquish", "aborting", "dropping", "resuming"}

// String names the mode.
func (m Mode) String() string {
	if int(m) < len(modeNames) {
		return modeNames[m]
	}
	return "invalid"
}

// Holding reports whether the lease is, or may be, this node's in this mode.
func (m Mode) Holding() bool {
	return m == Taking || m == Primary || m == Relinquish || m == Aborting
}

// Config is what the machine needs to know for good.
type Config struct {
	Node        cluster.NodeID
	Mode        cluster.Mode
	Incarnation cluster.Incarnation
	Priority    int
	Timing      cluster.Timing
	Addresses   []cluster.FloatingAddress
	Services    []cluster.ServiceSpec
	Yield       bool // on_start_failure: yield
	DeadProof   bool // require_dead_proof: addresses wait for the old holder's dead-proof
	// Failsafe: the lease names the coordinators, so that the role may be
	// extended by their promises.
	Failsafe bool
	// ID is this node's id, kept in its state folder (NodeRecord.ID): it tells two
	// hosts of one name apart. Empty: not known, and names alone count.
	ID    string
	NewID func(epoch cluster.Epoch) string
}

// hold is the lease as far as it is this node's.
type hold struct {
	sent      cluster.Instant // of the renewal that the deadline is anchored at
	epoch     cluster.Epoch
	version   int32 // znode version of my last known write
	n         uint64
	deadline  cluster.Instant // send of the last acknowledged renewal + L − G, or what promises have moved it to (I3)
	promised  cluster.Instant // send of the question whose promises have moved the deadline; Never: none
	next      cluster.Instant // when the next renewal is due
	retryAt   cluster.Instant // no lease write before this: the last one could not be sent
	write     ID              // lease write in flight; at most one, so versions are a chain
	purpose   purpose
	trOp      int    // index of the op on the transition in the write in flight, or 0
	wishOp    int    // and of that on primary_node
	riding    uint64 // keepalive that rides in the write in flight
	ride      []cluster.Op
	settle    ID   // refresh that settles an unknown or conflicting write
	unsettled bool // my version may be stale: read before the next write
	raised    bool // the guard has begun the role at this epoch
	resumed   bool // of an earlier start of this node: no promise stands against it
	handing   bool // a write of mine may still hand the role over
	// named are the coordinators that the newest lease write known to be in the
	// store names, naming those of the writes that may follow it. Neither is edited.
	named, naming Roll
	rising        cluster.Epoch // that a write of mine may have given the lease; 0: none
	ttl           time.Duration // a predecessor's longer ttl, kept until the guard has the shorter deadline
}

// top is the newest write of a record that was seen.
type top struct {
	mzxid   int64
	version int32
}

// takes are this node's takes whose end is not known: their Multi is under way,
// or its reply was lost and it may still be carried out.
type takes struct {
	sent bool
	lost bool
	on   int64 // Mzxid of the lease that the newest one rests on; 0: there was none
}

// told is a record of the history that is not repeated while it stays true.
type told struct {
	kind, text string
	at         cluster.Instant
}

// purpose says what a lease write in flight is for.
type purpose uint8

const (
	forRenewal  purpose = iota
	forAnchor           // D: the candidate's first own renewal
	forAck              // A acknowledged
	forStop             // B recorded
	forStart            // E recorded
	forHandOver         // C
	forAbort
	forDone // F
	forWish // primary_node answered by the holder
	forRelease
	forRouterState
	forLinger // shutdown in maintenance
	forEpoch  // the holder goes on under a larger epoch
)

// State is the machine's whole memory. It is a value: Step returns a new one
// and never edits what the old one points to.
type State struct {
	Mode       Mode
	Since      cluster.Instant // of the mode
	Refusals   []cluster.Refusal
	Problems   []string // of the latest pre-flight
	nextID     ID
	started    bool            // the first complete snapshot has been judged (Resume or not)
	registered cluster.Instant // first acknowledged registration
	session    int64
	gaveUp     cluster.Instant // no contention for L after this
	stopping   bool
	fit        bool // a pre-flight has passed
	fitKnown   bool

	hold hold

	// the procedure under way
	step        ID // the one effect awaited
	stage       stage
	lock        cluster.LockChild
	locked      bool
	transition  cluster.Transition // mine to write, as last written or read
	trVersion   int32              // its znode version
	trKnown     bool
	wishVer     int32 // primary_node's version after my own last write of it
	takeEpoch   cluster.Epoch
	takeSent    cluster.Instant
	sentFor     cluster.Epoch // the epoch of the tries that takeSent is the first of
	takes       takes
	naming      Roll // whom the take or resume under way names
	counted     bool // the newest lease that could be read counts this node, or nobody
	resumeTTL   time.Duration
	lastHolder  cluster.NodeID // the latest holder seen, also after it has released the lease
	warm        ID             // keepalive commit in flight, sent alone
	warmID      uint64
	broken      string             // name of the last lock child I broke
	stopBy      cluster.Instant    // shutdown: when waiting for a successor ends
	unproven    []cluster.Unproven // as in the lease this node took or resumed
	svcExited   string             // a service ended by itself, not yet answered
	fixAfter    cluster.Instant    // no correction of the routerstate before
	brokenAt    cluster.Instant
	keepaliveAt cluster.Instant // when the last keepalive was due
	guardFaults []string        // never edited
	abortWhy    string          // candidate: why A is being aborted
	penalty     bool            // the role was dropped because this host could not serve
	told        []told          // records of the history not to be repeated
	wishTop     top             // newest versions seen, to tell a record made anew
	trTop       top
	returning   bool            // Taking's stages bring back what an aborted hand-over took down
	why         string          // of the abort under way
	readyAt     cluster.Instant // candidate: last stamp sent; holder: last change seen
	readySent   cluster.Instant // candidate: send of the last acknowledged stamp of this hand-over, or Never
	readySeen   uint64
	trDue       bool            // E is still to be recorded
	raisedTo    cluster.Instant // the deadline that the last raise was sent with
	timer       cluster.Instant // the stage's deadline
	stageBegan  cluster.Instant
	probe       ID // conflict probe running beside the wait for expiry
	probed      bool
	dirty       bool // services or addresses have been taken down: bring them back after an abort
	retryAt     cluster.Instant
	wishSeen    cluster.Instant // holder: since when the wish names another
	wishMzxid   int64
	staleAt     cluster.Instant // candidate: since when the record's epoch is not the holder's
	maintenance bool            // it was on at the last step
	maintained  cluster.Instant // maintenance was last seen on, or first seen off again
	absentAt    cluster.Instant // since when the lease record is absent
	fixing      ID              // commit that corrects my routerstate
	left        bool            // shut down in maintenance: role and addresses stay for the next start
	endWhy      string
	endRelease  bool // release the lease once the effects are verified gone
	epochSeen   cluster.Epoch
	outgrown    cluster.Epoch // the largest that any node says it has seen
	svcRetry    cluster.Instant
	svcFailed   string
}

// stage is where the procedure of a mode stands.
type stage uint8

const (
	stageNone      stage = iota
	stageLock            // waiting for the role lock
	stageFresh           // waiting for a synced read
	stageTake            // take in flight
	stageRecord          // candidate: transition record in flight
	stagePreflight       // candidate: conflict probe and pre-flight
	stageStamp           // candidate: ready stamp in flight
	stageReady           // candidate: waiting for the hand-over
	stageAbortA          // candidate: abort of A in flight
	stageAnchor          // D: first own renewal in flight
	stageRaise           // D: guard begins and presents
	stageStart           // E
	stageSettle          // E: settle time
	stageDone            // F in flight
	stageAck             // holder A: acknowledgement in flight
	stageWaitReady       // holder A: waiting for ready and the delay
	stageMarkB           // holder: B being recorded
	stageStop            // holder B
	stageWithdraw        // holder C: addresses going
	stageHandOver        // holder C: Multi in flight
	stageAbort           // holder: abort Multi due or in flight
	stageEnd             // dropping: guard ends everything
	stageRelease         // dropping: release in flight
	stageResume          // resume in flight
	stageProof           // taken over, but waiting for the old holder\'s dead-proof
	stageLastStop        // shutdown without a candidate: services stop in order before the end
	stageLinger          // shutdown in maintenance: the guard takes the long deadline
	stagePromise         // the lease is this node's, but a promise of its own stands
)

// Holds returns the epoch held and the instant at which all effects end, if
// the lease is this node's.
func (s State) Holds() (cluster.Epoch, cluster.Instant, bool) {
	return s.hold.epoch, s.hold.deadline, s.Mode.Holding()
}

// Right is the held role as the failsafe sees it (protocol §4, store outage).
type Right struct {
	Epoch cluster.Epoch
	Sent  cluster.Instant // of the newest acknowledged write that carries the role
	// Handing: a write of this node may still hand the role over.
	Handing bool
	// Coordinators are all that could take the role should it not be renewed: those
	// that any write of this node's which may stand in the store names, and those
	// seen now. Empty: not known to the store, nobody can be asked.
	Coordinators []cluster.NodeID
	// IDs are the ids of the hosts that are meant by these names, as far as they
	// are known: the word of another one counts for nothing.
	IDs map[cluster.NodeID]string
}

// Right returns the held role; false where none is held, or where it is left to
// the guard.
func (s State) Right(snap *cluster.Snapshot) (Right, bool) {
	h := s.hold
	if !s.Mode.Holding() || s.left || s.stage == stageLinger || h.sent.IsZero() {
		return Right{}, false
	}
	r := Right{Epoch: h.epoch, Sent: h.sent, Handing: h.handing}
	if len(h.named.Nodes) > 0 {
		all := h.named.and(h.naming).and(Counted(snap))
		r.Coordinators, r.IDs = all.Nodes, all.IDs
	}
	return r, true
}

// Busy reports whether the role's effects are, or are about to be, here: the
// node's own right is in use. Not so once they are left to the guard.
func (s State) Busy() bool { return s.Mode.Holding() && !s.left && s.stage != stageLinger }

// TakeUnresolved reports whether a write of this node may still make it the
// holder: from the instant at which the take is asked for until its end is known.
func (s State) TakeUnresolved() bool { return s.takes.sent || s.takes.lost }

// GuardFaults are what the guard complained of when it was last asked.
func (s State) GuardFaults() []string { return s.guardFaults }

// ServiceFault is why a primary-only service does not run on this holder; it is
// being started again. Empty where all run, or none should.
func (s State) ServiceFault() string {
	if !s.Mode.Holding() {
		return ""
	}
	return s.svcFailed
}

// Ended reports, after a Stop event, that the daemon may end: nothing of the
// role is left here, or, in maintenance, the guard keeps it for the next start.
func (s State) Ended() bool {
	return s.stopping && (s.Mode == Idle && !s.locked || s.Mode == Primary && s.left)
}

// Leads reports whether this node is to look after the cluster: it is primary,
// or would be if the old holder were proven dead.
func (s State) Leads() bool {
	return s.Mode == Primary && !s.left || s.Mode == Taking && s.stage == stageProof
}

// RouterState is what the node's routerstate record should read.
func (s State) RouterState(m cluster.Mode) cluster.RouterState {
	if m == cluster.Hypervisor {
		return cluster.RouterClient
	}
	switch s.Mode {
	case Candidate:
		if s.stage == stageLock || s.stage == stageFresh || s.stage == stageRecord {
			return cluster.RouterSecondary
		}
		return cluster.RouterTakeover
	case Taking:
		return cluster.RouterTakeover
	case Primary:
		return cluster.RouterPrimary
	case Relinquish, Aborting:
		return cluster.RouterRelinquish
	}
	return cluster.RouterSecondary
}

const (
	lockWait        = 8 * time.Second  // a wished-for node that has not taken the lock by then is given up (protocol §4)
	lockBreak       = 30 * time.Second // a lock child of ours that heads the queue this long may be broken
	renewRetry      = 100 * time.Millisecond
	rankDelay       = 50 * time.Millisecond
	leaseAbsentWait = 62 * time.Second
	serviceRetry    = 5 * time.Second
	toldFor         = 10 * time.Minute       // a history record of the same words is not repeated before
	lingerTTL       = 62 * time.Second       // of the lease, when the daemon is stopped in maintenance
	lingerFor       = 60 * time.Second       // of guard, gate and addresses, from that write's send
	preflightWait   = 300 * time.Millisecond // conflict probe of a planned switch; nobody is silent meanwhile
)
