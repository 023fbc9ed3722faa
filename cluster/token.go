package cluster

import (
	"errors"
	"fmt"
)

// ErrNoToken says that an effect was asked for without a live activity.
var ErrNoToken = errors.New("no activity stands behind this order")

// Token is the right to an effect: it names the activity that the effect belongs
// to and tells whether that still runs. Whatever takes power, promotes, starts,
// stops, moves an address or writes a chain takes a Token and asks Check at the
// last instant before the effect. Only agent/activity makes live ones
// (arch_test.go); the zero Token is of nothing and never live.
type Token struct {
	wire TokenWire
	live func() error
}

// MintToken makes a token. Only agent/activity may call it; live returns nil
// while the effect is allowed, else why it is not, at once and without waiting.
func MintToken(wire TokenWire, live func() error) Token { return Token{wire: wire, live: live} }

// Check returns nil while the activity behind the token runs and its conditions
// hold; else the error says what is over, and the effect must not happen.
func (t Token) Check() error {
	if t.live == nil {
		return ErrNoToken
	}
	if err := t.live(); err != nil {
		return fmt.Errorf("%w: activity %s: %w", ErrNoToken, t.wire.Activity, err)
	}
	return nil
}

// Live reports whether Check returns nil.
func (t Token) Live() bool { return t.Check() == nil }

// Lease is the lease under which the activity runs.
func (t Token) Lease() NodeLeaseID { return t.wire.Lease }

// Epoch is the lease's: receivers refuse one that is smaller than they have seen (I2).
func (t Token) Epoch() Epoch { return t.wire.Lease.Epoch }

// Activity names the activity that the effect belongs to.
func (t Token) Activity() ActivityID { return t.wire.Activity }

// Wire is the form in which one command to another node carries the token. The
// request names that command, so that a second copy of it does nothing. It
// fails as Check does: a dead activity sends no commands.
func (t Token) Wire(request string) (TokenWire, error) {
	if err := t.Check(); err != nil {
		return TokenWire{}, err
	}
	w := t.wire
	w.Request = request
	return w, w.Valid()
}

// String names the activity and the lease.
func (t Token) String() string { return fmt.Sprintf("%s of %s", t.wire.Activity, t.wire.Lease) }

// TokenWire is a token on its way to another node, which makes a token of its own
// of it if the lease is the one that it serves (agent/activity).
type TokenWire struct {
	V        int         `json:"v"`
	Lease    NodeLeaseID `json:"lease"`
	Activity ActivityID  `json:"activity"`
	Root     ActivityID  `json:"root"`             // whose the domain is
	Unsafe   bool        `json:"unsafe,omitempty"` // children inherit it
	Request  string      `json:"request"`          // names the command, random
}

// tokenWireVersion is the version that this program writes and reads.
const tokenWireVersion = 1

// maxTokenWord bounds each name on the wire, in bytes.
const maxTokenWord = 256

// NewTokenWire returns the wire form of an activity, without a request.
func NewTokenWire(lease NodeLeaseID, activity, root ActivityID, unsafe bool) TokenWire {
	return TokenWire{V: tokenWireVersion, Lease: lease, Activity: activity, Root: root, Unsafe: unsafe}
}

// Valid reports what is wrong with a token that came from another node.
func (w TokenWire) Valid() error {
	if w.V != tokenWireVersion {
		return fmt.Errorf("the token is of version %d, this program knows %d: bring all nodes to one version", w.V, tokenWireVersion)
	}
	for name, word := range map[string]string{"activity": string(w.Activity), "root": string(w.Root), "request": w.Request,
		"holder": string(w.Lease.Holder), "start": w.Lease.Start} {
		if word == "" || len(word) > maxTokenWord {
			return fmt.Errorf("the token's %s has %d bytes, not 1–%d", name, len(word), maxTokenWord)
		}
	}
	if w.Lease.Epoch == 0 || w.Lease.Epoch > MaxEpoch {
		return fmt.Errorf("the token's epoch %d is not 1–%d", w.Lease.Epoch, MaxEpoch)
	}
	return nil
}
