package doctor

import (
	"slices"
	"strings"
	"time"

	"pvc.internal/cluster"
)

// The bounds beyond which a server is worth a word.
const (
	slowFsync    = 20 * time.Millisecond // on average, since the server started
	longestFsync = time.Second           // a single one: everybody's writes waited for it
	fewClients   = 10                    // a node's daemons, their reconnects and a command line, from one address
)

// electionGap is what a new leader takes at most, once the old one is given up.
const electionGap = time.Second

// Server is what one ZooKeeper server tells of itself.
type Server struct {
	Address  string
	Trouble  string   // why it could not be asked; empty: it answered
	Idle     bool     // it answers and serves nobody: it has no majority
	Refused  []string // four-letter words that its whitelist lacks
	Version  string   // empty: not told
	Mode     string   // leader, follower, observer, standalone; empty: not told
	Tick     time.Duration
	Sync     int // syncLimit in ticks; 0: not told, or alone
	Clients  int // maxClientCnxns; 0: no limit; −1: not told
	Members  int // voting members of its ensemble; 0: not told, or alone
	Fsync    bool
	FsyncAvg time.Duration
	FsyncMax time.Duration
}

func (s Server) answered() bool { return s.Trouble == "" }

// Store judges the servers. granted is the session time-out that one of them
// granted, 0 if not known; o are the options with which the settings were
// judged, whose own relations are not told again.
func Store(servers []Server, granted time.Duration, t cluster.Timing, o cluster.TimingOptions) []Finding {
	l := &list{check: CheckStore}
	for _, s := range servers {
		before := len(l.findings)
		l.server(s, len(servers))
		l.serverTiming(s, granted, t, o)
		if s.answered() && len(l.findings) == before {
			l.ok(s.Address, "%s, version %s%s", orUnknown(s.Mode), orUnknown(s.Version), s.fsyncWords())
		}
	}
	l.versions(servers)
	l.quorum(servers)
	return l.findings
}

// versions says where servers run different ones: an upgrade that stopped halfway.
func (l *list) versions(servers []Server) {
	var told []string
	differ := false
	first := ""
	for _, s := range servers {
		if s.Version == "" {
			continue
		}
		if first == "" {
			first = s.Version
		}
		differ = differ || s.Version != first
		told = append(told, s.Address+" "+s.Version)
	}
	if differ {
		l.warn("versions", "finish the upgrade: one server at a time, the leader last", "the servers run different versions: %s", strings.Join(told, ", "))
	}
}

func orUnknown(s string) string {
	if s == "" {
		return "not told"
	}
	return s
}

func (s Server) fsyncWords() string {
	if !s.Fsync {
		return ""
	}
	return ", fsync " + s.FsyncAvg.Round(100*time.Microsecond).String() + " on average, " + s.FsyncMax.String() + " at most since its start"
}

// server judges one by itself.
func (l *list) server(s Server, listed int) {
	if !s.answered() {
		l.problem(s.Address, "on that machine: `systemctl status zookeeper`, `df -h` (a full disk stops it), and the network between; zookeeper.servers if the address is wrong",
			"does not answer: %s", s.Trouble)
		return
	}
	if s.Idle {
		l.problem(s.Address, "bring a majority of the servers up; `journalctl -u zookeeper` on each says what it waits for", "runs and serves nobody: it finds no majority of its ensemble")
	}
	if len(s.Refused) > 0 {
		l.unchecked(s.Address, "add 4lw.commands.whitelist=srvr,mntr,conf,ruok to zoo.cfg of every server and restart them one by one",
			"does not allow %s, so that %s not known", strings.Join(s.Refused, ", "), s.hidden())
	}
	if s.Members > 0 && s.Members != listed {
		l.warn(s.Address, "list every server of the ensemble in zookeeper.servers, this node's own first, and no other",
			"its ensemble has %d voting servers, and zookeeper.servers here lists %d", s.Members, listed)
	}
	if s.Clients > 0 && s.Clients < fewClients {
		l.warn(s.Address, "raise maxClientCnxns in zoo.cfg (60 is ZooKeeper's default)",
			"takes %d connections from one address (maxClientCnxns), and a reconnecting daemon must not be refused: at least %d are wanted", s.Clients, fewClients)
	}
	switch {
	case !s.Fsync:
	case s.FsyncMax >= longestFsync:
		l.warn(s.Address, "put ZooKeeper's log (dataLogDir) on a disk of its own", "an fsync of its log has taken %v (%v on average) since it started: every write waits for it", s.FsyncMax, s.FsyncAvg)
	case s.FsyncAvg >= slowFsync:
		l.warn(s.Address, "put ZooKeeper's log (dataLogDir) on a disk of its own", "an fsync of its log takes %v on average, more than %v: every write waits for it", s.FsyncAvg, slowFsync)
	}
}

// hidden names what the refused words would have told.
func (s Server) hidden() string {
	told := map[string]string{"srvr": "version and mode", "conf": "tickTime, syncLimit and maxClientCnxns", "mntr": "fsync times"}
	var words []string
	for _, w := range s.Refused {
		words = append(words, told[w])
	}
	return strings.Join(words, ", ") + " are"
}

// serverTiming adds the relations that this server's own settings break; those
// that the settings break without it have been told.
func (l *list) serverTiming(s Server, granted time.Duration, t cluster.Timing, o cluster.TimingOptions) {
	if s.Tick == 0 {
		return
	}
	if gap := time.Duration(s.Sync)*s.Tick + electionGap; s.Sync > 0 && gap > t.WriteGap {
		l.warn(s.Address, "set timing.write_gap to "+gap.String()+" on every node, or lower syncLimit or tickTime in zoo.cfg; the relations between the intervals are checked at start",
			"syncLimit × tickTime + 1 s = %v without commits are to be expected when the machine of ZooKeeper's leader is lost, and write_gap is %v: what rests on it may end too early", gap, t.WriteGap)
	}
	known, knownBroken := relations(t, o)
	o.ServerTick, o.SyncLimit, o.GrantedSession = s.Tick, s.Sync, granted
	warnings, broken := relations(t, o)
	for _, b := range broken {
		if !slices.Contains(knownBroken, b) {
			l.problem(s.Address, "", "%s", b)
		}
	}
	for _, w := range warnings {
		if !slices.Contains(known, w) {
			l.warn(s.Address, "", "%s", w)
		}
	}
}

// relations are the relations between the intervals that do not hold; each text
// has both numbers and what to change.
func relations(t cluster.Timing, o cluster.TimingOptions) (warnings, broken []string) {
	warnings, err := t.Validate(o)
	if err != nil {
		broken = strings.Split(err.Error(), "\n")
	}
	return warnings, broken
}

// quorum judges the servers together.
func (l *list) quorum(servers []Server) {
	var up, leaders, alone []string
	told := 0
	for _, s := range servers {
		if !s.answered() {
			continue
		}
		up = append(up, s.Address)
		if s.Mode != "" {
			told++
		}
		switch s.Mode {
		case "leader":
			leaders = append(leaders, s.Address)
		case "standalone":
			alone = append(alone, s.Address)
		}
	}
	switch need := len(servers)/2 + 1; {
	case len(servers) == 0:
	case len(alone) > 0 && len(servers) > 1:
		l.problem("quorum", "write the same server.N lines into zoo.cfg of every server, and a myid of its own into each; stop the daemons before you do: only one of the trees can be kept",
			"%s stand alone (standalone) and are no ensemble: each would have a primary of its own", strings.Join(alone, ", "))
	case len(up) < need:
		l.problem("quorum", "bring the servers back; nobody can become primary meanwhile, and nothing is fenced", "%d of %d servers answer, and a majority is %d", len(up), len(servers), need)
	case len(leaders) > 1:
		l.problem("quorum", "run this again: the older leader gives up within syncLimit × tickTime; if both stay, their server.N lines differ", "%s both lead", strings.Join(leaders, " and "))
	case told == 0:
		l.unchecked("quorum", "", "%d of %d servers answer; which of them leads is not told", len(up), len(servers))
	case len(leaders) == 0 && len(alone) == 0:
		l.problem("quorum", "`journalctl -u zookeeper` on each says what the election waits for", "%d of %d servers answer and none of them leads", len(up), len(servers))
	case len(up) == need && len(servers) > 1:
		l.warn("quorum", "bring the missing servers back; have three or five", "%d of %d servers answer: the loss of one more leaves no majority, and nobody can write", len(up), len(servers))
	default:
		l.ok("quorum", "%d of %d servers answer, %s leads", len(up), len(servers), strings.Join(append(leaders, alone...), " "))
	}
}

// Access are the facts about who may write to the tree.
type Access struct {
	Identity string // how this node makes itself known: digest or certificate; empty: not at all
	Tree     string // why the tree's own permissions are not known; empty: they are
	Open     bool   // everybody may write to the tree as it is
}

// Accesses judges who may write.
func Accesses(a Access) []Finding {
	l := &list{check: CheckAccess}
	switch {
	case a.Identity == "":
		l.warn("tree", "set zookeeper.auth on every node before `pvc cluster init`, or keep ZooKeeper's port on a network of its own",
			"there is no zookeeper.auth and no client certificate: whoever reaches ZooKeeper can move the primary")
	case a.Tree != "":
		l.unchecked("tree", "", "whether others may write to the tree is not known: %s", a.Tree)
	case a.Open:
		l.problem("tree", "in ZooKeeper's own client: `addauth digest USER:PASSWORD`, then `setAcl -R PATH auth::cdrwa` for /config, /nodes, /agent, /faults and /logs below zookeeper.root",
			"zookeeper.auth is set, and yet everybody may write to the tree: it was made without")
	default:
		l.ok("tree", "only who has the %s may write", a.Identity)
	}
	return l.findings
}
