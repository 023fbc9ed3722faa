package zkhandler

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-zookeeper/zk"
	"go.uber.org/zap"

	"pvc.internal/cluster"
)

const lockInfix = "__lock__"

// lockName matches the lock children of kazoo (ours, too), of Curator and of
// the Go library; all end in the ten digits that ZooKeeper appended.
var lockName = regexp.MustCompile(`(__|-)r?lock(__|-)-?[0-9]{10}$`)

// lockSequence returns the place of a child in the queue: the last ten digits,
// whatever stands before them. ok is false for what is no lock child, such as
// sync_lock.
func lockSequence(name string) (seq int64, ok bool) {
	if !lockName.MatchString(name) {
		return 0, false
	}
	seq, err := strconv.ParseInt(name[len(name)-10:], 10, 64)
	return seq, err == nil
}

func lockChild(name string, d datum) cluster.LockChild {
	seq, _ := lockSequence(name)
	owner, ours := decodeLockOwner(d.data)
	return cluster.LockChild{Name: name, Seq: seq, Session: d.stat.EphemeralOwner, Foreign: !ours, Owner: owner}
}

func compareLockChildren(a, b cluster.LockChild) int {
	return cmp.Or(cmp.Compare(a.Seq, b.Seq), strings.Compare(a.Name, b.Name))
}

// contender is one attempt to take a lock.
type contender struct {
	h       *Handler
	dir     string
	guid    string // 32 hex digits: finds the child again after a lost reply
	data    []byte
	owner   cluster.LockOwner
	session int64
	name    string // of the child, once known
}

// Lock enqueues a child under the lock of this kind (KeyRoleLockChild or
// KeyFenceLockChild) and returns once it heads the queue and is verified to be
// this session's. Children of foreign clients are waited for; a child that a
// dead session of this very incarnation has left is removed. When ctx ends
// first, it removes its child and returns cluster.ErrLockTimeout; when the
// session is lost meanwhile, cluster.ErrNotLive. The lock gives order only:
// whoever relies on it checks the child in its transaction.
func (h *Handler) Lock(ctx context.Context, kind cluster.KeyKind, owner cluster.LockOwner) (cluster.LockChild, error) {
	dir, err := h.schema.lockDir(kind)
	if err != nil {
		return cluster.LockChild{}, err
	}
	data, err := encode(kind, owner)
	if err != nil {
		return cluster.LockChild{}, fmt.Errorf("lock %s: %w", dir, err)
	}
	var guid [16]byte
	rand.Read(guid[:])
	c := &contender{h: h, dir: dir, guid: hex.EncodeToString(guid[:]), data: data, owner: owner}
	child, err := c.contend(ctx)
	if err == nil {
		return child, nil
	}
	c.withdraw()
	if ctx.Err() != nil {
		err = fmt.Errorf("%w: %w", cluster.ErrLockTimeout, err)
	}
	return cluster.LockChild{}, fmt.Errorf("lock %s: %w", dir, err)
}

func (c *contender) contend(ctx context.Context) (cluster.LockChild, error) {
	if err := c.enqueue(ctx); err != nil {
		return cluster.LockChild{}, err
	}
	for {
		before, err := c.predecessor(ctx)
		switch {
		case err == nil && before == "":
			child, err := c.verify(ctx)
			if again, err := c.retry(ctx, err); !again {
				return child, err
			}
		case err == nil:
			if err := c.await(ctx, before); err != nil {
				return cluster.LockChild{}, err
			}
		default:
			if again, err := c.retry(ctx, err); !again {
				return cluster.LockChild{}, err
			}
		}
	}
}

// retry waits for the link if that is what failed; again is false for success
// and for errors that waiting cannot cure.
func (c *contender) retry(ctx context.Context, err error) (again bool, _ error) {
	switch fateOf(err) {
	case fateNotSent, fateUnknown:
	default:
		return false, err
	}
	if ctx.Err() != nil { // a live session would answer each further try with the same at once
		return false, err
	}
	if waitErr := c.h.awaitLive(ctx); waitErr != nil {
		return false, fmt.Errorf("%w (last: %w)", waitErr, err)
	}
	if c.session != 0 && c.h.State().Session != c.session {
		return false, fmt.Errorf("%w: the session was lost, and the place in the queue with it", cluster.ErrNotLive)
	}
	return true, nil
}

// awaitLive returns once requests are taken; ctx's error if it ends first.
func (h *Handler) awaitLive(ctx context.Context) error {
	for {
		woken, stop := h.watches.wait("")
		s, err := h.liveSession()
		if err == nil {
			err = s.usable()
		}
		if err == nil {
			stop()
			return nil
		}
		select {
		case <-woken:
		case <-ctx.Done():
			stop()
			return fmt.Errorf("%w: %w", err, ctx.Err())
		}
	}
}

// enqueue creates the child. After a lost reply it looks for the GUID first.
func (c *contender) enqueue(ctx context.Context) error {
	for {
		c.session = c.h.State().Session
		name, _, err := request(ctx, c.h, func(conn *zk.Conn) (string, error) {
			return conn.Create(c.dir+"/"+c.guid+lockInfix, c.data, zk.FlagEphemeralSequential, c.h.acl)
		})
		if err == nil {
			c.name = path.Base(name)
			return nil
		}
		lost := fateOf(err) == fateUnknown
		if again, err := c.retry(ctx, err); !again {
			return err
		}
		for lost {
			err := c.find(ctx)
			if err == nil {
				break
			}
			if again, err := c.retry(ctx, err); !again {
				return err
			}
		}
		if c.name != "" {
			return nil
		}
	}
}

// find looks for our child by its GUID, after a sync: what this session sent
// before has then happened or never will.
func (c *contender) find(ctx context.Context) error {
	if err := c.h.sync(ctx); err != nil {
		return err
	}
	names, err := c.h.children(ctx, c.dir)
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(names, func(n string) bool { return strings.HasPrefix(n, c.guid) }); i >= 0 {
		c.name = names[i]
	}
	return nil
}

// predecessor returns the child directly before ours, "" if ours is the head.
func (c *contender) predecessor(ctx context.Context) (string, error) {
	names, err := c.h.children(ctx, c.dir)
	if err != nil {
		return "", err
	}
	var queue []cluster.LockChild
	for _, name := range names {
		if seq, ok := lockSequence(name); ok {
			queue = append(queue, cluster.LockChild{Name: name, Seq: seq})
		}
	}
	slices.SortFunc(queue, compareLockChildren)
	at := slices.IndexFunc(queue, func(l cluster.LockChild) bool { return l.Name == c.name })
	if at < 0 {
		return "", failf(fateConflict, "%w: our place in the queue, %s, was removed", cluster.ErrNotLive, c.name)
	}
	for at > 0 {
		before := queue[at-1].Name
		cleared, err := c.clearOwn(ctx, before)
		if err != nil || !cleared {
			return before, err
		}
		at--
	}
	return "", nil
}

// clearOwn removes a predecessor that an earlier, lost session of this very
// incarnation left behind, so that we never wait for ourselves.
func (c *contender) clearOwn(ctx context.Context, name string) (cleared bool, err error) {
	d, err := c.h.get(ctx, c.dir+"/"+name)
	if errors.Is(err, cluster.ErrNotFound) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	child := lockChild(name, d)
	if child.Foreign || child.Owner != c.stamped() || child.Session == c.session {
		return false, nil
	}
	err = c.h.remove(ctx, c.dir+"/"+name)
	if err == nil {
		c.h.metrics.lockCleared()
		c.h.log.Info("removed a lock child of a lost session of ours", zap.String("child", name))
	}
	return err == nil, err
}

func (c *contender) stamped() cluster.LockOwner {
	owner := c.owner
	owner.Version = stamp(owner.Version)
	return owner
}

// verify reads our child: it is ours only if this session is its owner.
func (c *contender) verify(ctx context.Context) (cluster.LockChild, error) {
	d, err := c.h.get(ctx, c.dir+"/"+c.name)
	if errors.Is(err, cluster.ErrNotFound) {
		return cluster.LockChild{}, failf(fateConflict, "%w: our place in the queue, %s, was removed", cluster.ErrNotLive, c.name)
	}
	if err != nil {
		return cluster.LockChild{}, err
	}
	child := lockChild(c.name, d)
	child.SeenAt = c.h.clock.Now()
	if live := c.h.State().Session; child.Session != live {
		return cluster.LockChild{}, failf(fateConflict, "%w: %s belongs to session %#x, ours is %#x", cluster.ErrNotLive, c.name, uint64(child.Session), uint64(live))
	}
	return child, nil
}

// await waits for a change of the predecessor. The watch is a hint, so it
// looks again every second besides.
func (c *contender) await(ctx context.Context, before string) error {
	at := c.dir + "/" + before
	changed, stop := c.h.watches.wait(at)
	defer stop()
	key := watchKey{at, watchData}
	if c.h.watches.arm(key) {
		exists, _, err := request(ctx, c.h, func(conn *zk.Conn) (bool, error) {
			exists, _, _, err := conn.ExistsW(at)
			return exists, err
		})
		if err != nil {
			c.h.watches.disarm(key)
			_, err = c.retry(ctx, err)
			return err
		}
		if !exists {
			return nil
		}
	}
	timer := time.NewTimer(time.Second)
	defer timer.Stop()
	select {
	case <-changed:
	case <-timer.C:
	case <-ctx.Done():
		return fmt.Errorf("waiting behind %s: %w", before, ctx.Err())
	}
	return nil
}

// withdraw removes our child, now or, if the link is down, when it is back.
func (c *contender) withdraw() {
	if c.session == 0 {
		return
	}
	o := orphan{session: c.session, dir: c.dir, guid: c.guid}
	ctx, cancel := context.WithTimeout(context.Background(), c.h.config.RequestTimeout)
	defer cancel()
	if c.h.State().Session != c.session {
		return // an ephemeral of a lost session goes by itself
	}
	if err := c.h.clearOrphan(ctx, o); err != nil {
		c.h.orphans.add(o)
	}
}

// Unlock deletes the child; one that is gone already is no error. It serves to
// break another node's child of ours, too; one of a foreign client is refused.
// A lost reply is asked again until ctx ends; should it end first, an own child
// is still removed as soon as the link allows.
func (h *Handler) Unlock(ctx context.Context, kind cluster.KeyKind, child cluster.LockChild) error {
	dir, err := h.schema.lockDir(kind)
	if err != nil {
		return err
	}
	if child.Foreign {
		return fmt.Errorf("unlock %s: %w: %s belongs to a foreign client and is waited for, never removed", dir, cluster.ErrRefused, child.Name)
	}
	if _, ok := lockSequence(child.Name); !ok {
		return fmt.Errorf("unlock %s: %w: %q is not a lock child", dir, cluster.ErrRefused, child.Name)
	}
	for {
		err := h.remove(ctx, dir+"/"+child.Name)
		if f := fateOf(err); f != fateNotSent && f != fateUnknown {
			return err
		}
		if waitErr := h.awaitLive(ctx); waitErr != nil || ctx.Err() != nil {
			if len(child.Name) > 32 && child.Session == h.State().Session {
				h.orphans.add(orphan{session: child.Session, dir: dir, guid: child.Name[:32]})
			}
			return err
		}
	}
}

// remove deletes a znode of any version; one that is gone is no error.
func (h *Handler) remove(ctx context.Context, path string) error {
	_, sent, err := request(ctx, h, func(c *zk.Conn) (struct{}, error) { return struct{}{}, c.Delete(path, -1) })
	if err == nil {
		sent.session.wrote(sent.at)
	}
	if errors.Is(err, cluster.ErrNotFound) {
		return nil
	}
	return wrapPath(err, "delete", path)
}

// orphan is a child that may have been left in a lock's queue.
type orphan struct {
	session int64
	dir     string
	guid    string
}

// orphans are removed in the background as soon as their session is live again.
type orphans struct {
	wake chan struct{}
	mu   sync.Mutex
	list []orphan
}

func (o *orphans) add(x orphan) {
	o.mu.Lock()
	o.list = append(o.list, x)
	o.mu.Unlock()
	notify(o.wake)
}

func (o *orphans) take() []orphan {
	o.mu.Lock()
	defer o.mu.Unlock()
	list := o.list
	o.list = nil
	return list
}

// sweepOrphans runs until ctx ends.
func (h *Handler) sweepOrphans(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.orphans.wake:
		}
		for _, o := range h.orphans.take() {
			if h.State().Session != o.session {
				continue
			}
			if err := h.clearOrphan(ctx, o); err != nil && ctx.Err() == nil {
				h.orphans.mu.Lock() // without waking: the next connection does
				h.orphans.list = append(h.orphans.list, o)
				h.orphans.mu.Unlock()
			}
		}
	}
}

func (h *Handler) clearOrphan(ctx context.Context, o orphan) error {
	if err := h.sync(ctx); err != nil {
		return err
	}
	names, err := h.children(ctx, o.dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasPrefix(name, o.guid) {
			if err := h.remove(ctx, o.dir+"/"+name); err != nil {
				return err
			}
		}
	}
	return nil
}
