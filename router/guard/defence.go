package guard

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
)

// Defence of held addresses against a stranger who claims one (in the manner of
// RFC 5227 §2.4, but never giving the address up: the lease says whose it is,
// not the stranger's persistence).
const (
	// defenceRounds announcements, defenceSpacing apart, are one defence.
	defenceRounds  = 3
	defenceSpacing = 10 * time.Millisecond
	// defenceEach is the least time between two defences of one address.
	defenceEach = 100 * time.Millisecond
	// defenceBudget is how many defences, of all addresses, one second may see:
	// a stranger must not make this host flood the network.
	defenceBudget = 50
	// defenceTail is how long after Present a claim may be the previous
	// holder's last word. It is answered, and no fault.
	defenceTail = time.Second
	// conflictOver is how long after its last claim a conflict is a fault.
	conflictOver = 30 * time.Second
	// strangerEach is the least time between two tellings of one address's
	// conflict, should strangers take turns.
	strangerEach = time.Second
	// listenAgain is how long after a failure an interface is listened on again.
	listenAgain = time.Second
)

// defender listens for claims of the held addresses, and has them announced
// anew. Its listeners answer by themselves; run, their owner, starts and ends
// them and tells the faults. The end of a role waits for no listener's end, only for a
// frame under way (quiet): hold only notes what is held, and each frame is preceded by
// may.
type defender struct {
	log  *zap.Logger
	said map[string]bool       // interfaces not listened on, told already; run's
	may  func(netip.Addr) bool // asked right before each frame (I3), and before a claim counts
	tell func(subject, text string)
	push func(cluster.GuardEvent)
	kick chan struct{} // something of the following has changed

	// sending is held from asking may to the frame's way into the kernel: who has taken
	// it since may says no knows that no frame follows (quiet).
	sending sync.Mutex

	mu        sync.Mutex // never held over anything that can block
	held      map[cluster.FloatingAddress]time.Time
	changed   bool // held is another than the listeners'
	conflicts map[cluster.FloatingAddress]*conflict
	second    time.Time // begin of the second that spent counts
	spent     int
}

// conflict is a stranger's claim of one address.
type conflict struct {
	stranger string // hardware address
	last     time.Time
	told     string // stranger whom the fault names; "" for none yet
	toldAt   time.Time
}

func newDefender(log *zap.Logger, may func(netip.Addr) bool, tell func(string, string), push func(cluster.GuardEvent)) *defender {
	return &defender{log: log, said: map[string]bool{}, may: may, tell: tell, push: push, kick: make(chan struct{}, 1),
		held: map[cluster.FloatingAddress]time.Time{}, conflicts: map[cluster.FloatingAddress]*conflict{}}
}

// hold says which addresses are to be defended from now on. It never waits.
func (d *defender) hold(addrs []cluster.FloatingAddress) {
	d.mu.Lock()
	now := time.Now()
	next := make(map[cluster.FloatingAddress]time.Time, len(addrs))
	for _, a := range addrs {
		since, known := d.held[a]
		if !known {
			since, d.changed = now, true
		}
		next[a] = since
	}
	d.changed = d.changed || len(next) != len(d.held)
	d.held = next
	changed := d.changed
	d.mu.Unlock()
	if changed {
		d.wake()
	}
}

// quiet waits for a frame that is on its way into the kernel, sendTimeout at most for
// each. Of what was let go of before nothing is sent after it.
func (d *defender) quiet() {
	d.sending.Lock()
	defer d.sending.Unlock()
}

func (d *defender) wake() {
	select {
	case d.kick <- struct{}{}:
	default:
	}
}

// run owns the listeners and the faults until ctx ends. It sleeps while nothing
// is claimed.
func (d *defender) run(ctx context.Context) {
	var l listeners
	var again time.Time // not before: a broken interface fails again and again
	defer func() { l.end() }()
	for {
		now := time.Now()
		if held, changed := d.takeHeld(); changed || l.failed() && !now.Before(again) {
			l.end()
			l = d.listen(held)
			again = now.Add(listenAgain)
		}
		wait := d.tellConflicts(now)
		if l.failed() {
			wait = min(wait, max(time.Until(again), time.Millisecond))
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-d.kick:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// takeHeld returns what is held, and whether that is news to run.
func (d *defender) takeHeld() (held []cluster.FloatingAddress, changed bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	changed, d.changed = d.changed, false
	for a := range d.held {
		held = append(held, a)
	}
	return held, changed
}

// claimed notes a stranger's claim and reports whether it is to be answered.
func (d *defender) claimed(a cluster.FloatingAddress, stranger string, now time.Time) bool {
	if !d.may(a.Prefix.Addr()) { // not ours (any more): then it is no conflict either
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	since, held := d.held[a]
	if !held {
		return false
	}
	if now.Sub(since) < defenceTail {
		return true
	}
	c := d.conflicts[a]
	if c == nil {
		c = &conflict{}
		d.conflicts[a] = c
	}
	c.stranger, c.last = stranger, now
	if c.told != stranger {
		d.wake()
	}
	return true
}

// spend takes one defence of the second's budget; if there is none left, it
// returns how long that lasts.
func (d *defender) spend(now time.Time) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	if now.Sub(d.second) >= time.Second {
		d.second, d.spent = now, 0
	}
	if d.spent >= defenceBudget {
		return d.second.Add(time.Second).Sub(now)
	}
	d.spent++
	return 0
}

// tellConflicts raises and clears faults, and returns when to look again. Only
// run calls it, so that a fault is never cleared after the claim that renews it.
func (d *defender) tellConflicts(now time.Time) time.Duration {
	type news struct {
		address  cluster.FloatingAddress
		stranger string // "" for over
	}
	var list []news
	wait := time.Hour
	d.mu.Lock()
	for a, c := range d.conflicts {
		switch left, soon := c.last.Add(conflictOver).Sub(now), c.toldAt.Add(strangerEach).Sub(now); {
		case left <= 0:
			delete(d.conflicts, a)
			list = append(list, news{address: a})
		case c.told == c.stranger:
			wait = min(wait, left)
		case c.told != "" && soon > 0:
			wait = min(wait, soon)
		default:
			c.told, c.toldAt = c.stranger, now
			wait = min(wait, left)
			list = append(list, news{address: a, stranger: c.stranger})
		}
	}
	d.mu.Unlock()
	for _, n := range list {
		d.say(n.address, n.stranger)
	}
	return wait
}

// say raises an address's fault, or clears it where there is no stranger.
func (d *defender) say(a cluster.FloatingAddress, stranger string) {
	subject := fmt.Sprintf("conflict of %s on %s", a.Prefix.Addr(), a.Interface)
	if stranger == "" {
		d.tell(subject, "")
		return
	}
	text := fmt.Sprintf("address %s on interface %s is claimed by a stranger, hardware address %s; this host holds it, and corrects the neighbours each time, but connections suffer: find that machine and remove the address there",
		a.Prefix.Addr(), a.Interface, stranger)
	d.tell(subject, text)
	d.push(cluster.GuardEvent{Kind: "address_conflict", Owner: cluster.OwnerPrimary, Name: a.Name, Text: text})
}

// turn is the schedule of one address's defences; its listener's.
type turn struct {
	address cluster.FloatingAddress
	begun   time.Time // of the latest defence
	sent    int       // of its rounds
	owed    time.Time // when the next one begins, for a claim since its last round; zero for none
}

// claim asks for an announcement: one of the rounds to come, a defence now, or
// one as soon as the limit lets it, since the last claim is what neighbours keep.
func (t *turn) claim(now time.Time) {
	if t.owed.IsZero() && (t.sent == 0 || t.sent >= defenceRounds) {
		t.owed = now
		if earliest := t.begun.Add(defenceEach); earliest.After(now) {
			t.owed = earliest
		}
	}
}

// due is when the next round is to be sent; zero for never.
func (t *turn) due() time.Time {
	if 0 < t.sent && t.sent < defenceRounds {
		return t.begun.Add(time.Duration(t.sent) * defenceSpacing)
	}
	return t.owed
}

// take reports whether a round is to be sent now, and moves on. spend is asked
// before a further defence.
func (t *turn) take(now time.Time, spend func(time.Time) time.Duration) bool {
	due := t.due()
	if due.IsZero() || due.After(now) {
		return false
	}
	if 0 < t.sent && t.sent < defenceRounds {
		t.sent++
		return true
	}
	if wait := spend(now); wait > 0 {
		t.owed = now.Add(wait)
		return false
	}
	t.begun, t.sent, t.owed = now, 1, time.Time{}
	return true
}
