package driver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"pvc.internal/cluster"
)

// Order carries out one order. What it does to a process is one transaction of it,
// over a connection that belongs to the very process that was looked at before.
func (d *Redis) Order(ctx context.Context, t cluster.Token, o cluster.CopyOrder) (cluster.CopyReport, error) {
	c, err := d.copyOf(o.Workload)
	if err != nil {
		return cluster.CopyReport{}, err
	}
	switch o.Op {
	case cluster.CopyStart:
		err = c.start(ctx, t)
	case cluster.CopyFollow:
		err = c.follow(ctx, t, o)
	case cluster.CopyPromote:
		err = c.promote(ctx, t, o)
	case cluster.CopyAdmit:
		err = c.admit(ctx, t, o)
	case cluster.CopyDemote:
		err = c.demote(ctx, t)
	case cluster.CopyStop, cluster.CopyDestroy:
		err = c.stop(ctx, t, o.Op == cluster.CopyDestroy)
	case cluster.CopyNotify: // nobody listens
	default:
		err = fmt.Errorf("the redis driver knows no order %q", o.Op)
	}
	if err != nil {
		err = fmt.Errorf("%s workload %s on %s: %w", o.Op, c.w.Name, d.c.Node, err)
	}
	r, unknown := d.Probe(ctx, o.Workload)
	if err == nil && unknown != nil {
		err = fmt.Errorf("%s workload %s: ordered, but what the copy is now is not known: %w", o.Op, c.w.Name, unknown)
	}
	return r, err
}

// start brings the process up, detached, and waits until it answers.
func (c *redisCopy) start(ctx context.Context, t cluster.Token) error {
	_, _, err := c.up(ctx, t)
	return err
}

// up starts the process where none runs, and looks at it.
func (c *redisCopy) up(ctx context.Context, t cluster.Token) (*redisSession, redisFacts, error) {
	running, _, err := c.service(ctx)
	if err == nil && c.foreign() != "" {
		running, err = false, c.stop(ctx, t, true)
	}
	if err != nil {
		return nil, redisFacts{}, err
	}
	if !running {
		if err := errors.Join(t.Check(), c.d.installed(ctx)); err != nil {
			return nil, redisFacts{}, err
		}
		if err := c.prepare(); err != nil {
			return nil, redisFacts{}, fmt.Errorf("write the copy's folder %s: %w", c.folder, err)
		}
		if err := c.d.c.Guard.StartCopy(ctx, t, c.spec()); err != nil {
			return nil, redisFacts{}, err
		}
	}
	return c.upSoon(ctx)
}

// upSoon waits until a process answers that was started, or gives it up.
func (c *redisCopy) upSoon(ctx context.Context) (s *redisSession, f redisFacts, err error) {
	ctx, cancel := context.WithTimeout(ctx, redisStartLimit)
	defer cancel()
	for began := time.Now(); ; {
		if s, f, err = c.seen(ctx); err == nil {
			return s, f, nil
		}
		running, trouble, again := c.service(context.WithoutCancel(ctx))
		down := again == nil && !running
		switch {
		case down && (c.p.restart == 0 || time.Since(began) > redisStartLimit/4):
			return nil, f, fmt.Errorf("redis-server does not stay up (%s); its last words stand in the guard's log; is port %d taken? %w", trouble, c.p.port, errors.Join(c.closedAbove(), err))
		case ctx.Err() != nil || time.Since(began) > redisStartLimit:
			return nil, f, err
		}
	}
}

// spec is the process as the guard runs it.
func (c *redisCopy) spec() cluster.ServiceSpec {
	stop := 5 * time.Second
	if c.p.persistent() {
		stop = time.Minute // it saves
	}
	return cluster.ServiceSpec{Name: ServiceName(c.w.Name), Kind: cluster.ServiceHook, User: c.d.c.User, Restart: c.p.restart, StopTimeout: stop,
		Command: []string{c.d.c.Program, filepath.Join(c.folder, redisConf)}}
}

// expected refuses where the process is not the one, or not what, the leader has
// seen. It is asked of the same look, and the same connection, as the effect.
func (c *redisCopy) expected(o cluster.CopyOrder, f redisFacts) error {
	if o.Expect == nil {
		return nil
	}
	if why := o.Expect.Against(c.report(f)); why != "" {
		return errors.New(why + "; nothing was done")
	}
	return nil
}

// follow has the copy follow the source. Where it does so already only the secret
// is new. What it has stays until the first resynchronisation is complete.
func (c *redisCopy) follow(ctx context.Context, t cluster.Token, o cluster.CopyOrder) error {
	if o.Source == nil || net.ParseIP(o.Source.Host) == nil || o.Secret == "" {
		return errors.New("the order names no source with an address, or no secret")
	}
	if o.Source.Node == c.d.c.Node {
		return errors.New("a copy cannot follow itself")
	}
	s, f, err := c.up(ctx, t)
	if err != nil {
		return err
	}
	if err := c.expected(o, f); err != nil {
		return err
	}
	raw, err := json.Marshal(redisFollowed{o.Source.Host, o.Source.Node})
	if err == nil {
		err = c.write(redisSource, raw)
	}
	if err != nil {
		return fmt.Errorf("note whom it follows: %w", err)
	}
	steps := append(c.closeGate(f), []any{"config", "set", "masteruser", redisFollower, "masterauth", o.Secret})
	steps = append(steps, f.mark(c.w.Ephemeral)...)
	if port := strconv.Itoa(c.p.port); !f.follows || f.host != o.Source.Host || f.port != port {
		steps = append(steps, []any{"replicaof", o.Source.Host, port})
	}
	if err := c.effect(ctx, t, s, steps); err != nil {
		return err
	}
	return c.settle(ctx)
}

// settle waits for the link a little, so that the order's report is seldom of a
// moment later already untrue. A link that takes longer is the next pass's.
func (c *redisCopy) settle(ctx context.Context) error {
	for end := time.Now().Add(redisSettle); time.Now().Before(end) && ctx.Err() == nil; {
		_, f, err := c.seen(ctx)
		if err != nil || c.report(f).State == cluster.CopyReplica {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(redisPoll):
		}
	}
	return nil
}

// promote activates the copy: it follows nobody, and clients and followers have
// users from now on. A process that loads is waited for.
func (c *redisCopy) promote(ctx context.Context, t cluster.Token, o cluster.CopyOrder) error {
	if o.Secret == "" {
		return errors.New("the order has no secret for followers")
	}
	password, err := c.p.password()
	if err != nil {
		return err
	}
	s, f, err := c.up(ctx, t)
	for err == nil && f.loading { // a file that is complete, and what it holds then is whole
		select {
		case <-ctx.Done():
			return fmt.Errorf("it is still loading: %w", context.Cause(ctx))
		case <-time.After(10 * redisPoll):
		}
		s, f, err = c.seen(ctx)
	}
	if err != nil {
		return err
	}
	if err := c.expected(o, f); err != nil {
		return err
	}
	if f.follows && !f.holds(c.w.Ephemeral) && (o.Expect == nil || o.Expect.State != cluster.CopyMissing) {
		return errors.New("it has nothing but a first resynchronisation that is not complete; nothing was done")
	}
	steps := c.closeGate(f, redisFollower, c.p.user) // who is served already goes on being served
	if f.follows {
		steps = append(steps, []any{"replicaof", "no", "one"}, []any{"config", "set", "masteruser", "", "masterauth", ""})
	}
	if password == withoutPassword && c.p.user == "default" {
		// Redis by itself lets nobody from elsewhere in then. It is of this process, like the user.
		steps = append(steps, []any{"config", "set", "protected-mode", "no"})
	}
	steps = append(steps, marked(redisHolds), followers(o.Secret), append([]any{"acl", "setuser", c.p.user, "reset", "on", password, "allkeys", "allchannels"}, clientRights...))
	return c.effect(ctx, t, s, steps)
}

// clientRights are what clients may do: all but what administers. They can neither
// open the gate, nor have the copy follow another, nor follow it.
var clientRights = []any{"+@all", "-@admin", "-@dangerous", "+info", "+keys", "+flushall", "+flushdb", "+sort", "+sort_ro", "+role", "+restore", "+swapdb",
	"-psync", "-sync", "-replconf", "-replicaof", "-slaveof", "-failover", "-acl", "+acl|whoami"}

// followers is the step by which followers come in with this secret and no other.
func followers(secret string) []any {
	return []any{"acl", "setuser", redisFollower, "reset", "on", hashed(secret), "+psync", "+replconf", "+ping"}
}

// marked is the step that makes a mark: a user that may do nothing.
func marked(name string) []any { return []any{"acl", "setuser", name, "reset", "off"} }

// closeGate are the steps that take all users away but the driver's, the clients'
// connections with them, and those that are to be kept. What else is there, as an
// earlier parameter's user, goes too.
func (c *redisCopy) closeGate(f redisFacts, keep ...string) (steps [][]any) {
	for name, on := range f.users {
		switch {
		case name == redisAdmin || name == redisHolds || strings.HasPrefix(name, redisBlank):
			continue
		case slices.Contains(keep, name):
			continue
		case name == "default" && on:
			steps = append(steps, []any{"acl", "setuser", name, "reset", "off"}, []any{"client", "kill", "user", name})
		case name != "default":
			steps = append(steps, []any{"acl", "deluser", name})
		}
	}
	return steps
}

// admit lets followers in with this secret, and with no other any more. Those that
// are connected stay.
func (c *redisCopy) admit(ctx context.Context, t cluster.Token, o cluster.CopyOrder) error {
	if o.Secret == "" || c.foreign() != "" {
		return errors.New("the order has no secret, or the copy is of an earlier workload of this name")
	}
	s, f, err := c.alive(ctx)
	if err == nil {
		err = c.expected(o, f)
	}
	if err != nil {
		return err
	}
	if state := c.report(f).State; state != cluster.CopyActive {
		return fmt.Errorf("the copy is %s, not active: nobody may follow it", state)
	}
	return c.effect(ctx, t, s, [][]any{followers(o.Secret)})
}

// demote ends all clients. Followers stay connected, so that they get the last of
// what was written; a copy that does not serve is left as it is.
func (c *redisCopy) demote(ctx context.Context, t cluster.Token) error {
	running, _, err := c.service(ctx)
	if err != nil || !running {
		return err // what does not run serves nobody
	}
	s, f, err := c.alive(ctx)
	if err != nil {
		return err
	}
	steps := c.closeGate(f, redisFollower)
	if len(steps) == 0 {
		return nil
	}
	return c.effect(ctx, t, s, steps)
}

// alive looks at a process that must run.
func (c *redisCopy) alive(ctx context.Context) (*redisSession, redisFacts, error) {
	running, trouble, err := c.service(ctx)
	if err == nil && !running {
		err = fmt.Errorf("its redis-server does not run %s", trouble)
	}
	if err != nil {
		return nil, redisFacts{}, err
	}
	return c.seen(ctx)
}

// effect does the steps as one transaction of the process that was looked at, if
// the activity still stands. Where the answer is lost the next look tells.
func (c *redisCopy) effect(ctx context.Context, t cluster.Token, s *redisSession, steps [][]any) error {
	if err := t.Check(); err != nil {
		return err
	}
	if _, err := s.together(ctx, steps...); err != nil {
		c.d.drop(c.folder, s)
		return fmt.Errorf("the process has not taken it, or its answer is lost: %w", err)
	}
	return nil
}

// stop ends the process; what is on disk stays unless it is to be destroyed. A folder
// with no data in it goes: a start makes it anew, and nobody may come by here again.
func (c *redisCopy) stop(ctx context.Context, t cluster.Token, destroy bool) error {
	if err := t.Check(); err != nil {
		return err
	}
	if err := c.d.c.Guard.StopCopy(ctx, t, ServiceName(c.w.Name)); err != nil {
		return err
	}
	if !destroy {
		_ = removeEmptyCopy(c.folder)
		return nil
	}
	if err := t.Check(); err != nil {
		return fmt.Errorf("it is stopped, its data is still there: %w", err)
	}
	if err := os.RemoveAll(c.folder); err != nil {
		return fmt.Errorf("it is stopped; remove its data: %w", err)
	}
	return nil
}

// removeEmptyCopy removes a copy's folder that has no data in it, and nothing else that
// was not made here, and reports whether it did. Nothing of the copy may run.
func removeEmptyCopy(folder string) bool {
	if _, err := os.Stat(filepath.Join(folder, redisOf)); err != nil { // it is none, or of an earlier program
		return false
	}
	ours := []string{redisOf, redisConf, redisSecret, redisSource}
	all, err := os.ReadDir(folder)
	if err != nil || slices.ContainsFunc(all, func(e os.DirEntry) bool {
		return (e.Name() != redisData || !e.IsDir()) && !slices.Contains(ours, strings.TrimSuffix(e.Name(), ".new")) // keys, notes, a link to where the data is to be
	}) {
		return false
	}
	entries, err := os.ReadDir(filepath.Join(folder, redisData))
	if err != nil && !errors.Is(err, os.ErrNotExist) || slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.Name() != redisSocket }) {
		return false
	}
	return os.RemoveAll(folder) == nil
}

// SweepEmpty removes the folders of copies that have no data in them and of which the
// guard holds nothing: of workloads that were taken from this node while it was away.
// It is called before any order can be carried out here. The error means that it is
// not known what the guard holds; nothing was removed then.
func (d *Redis) SweepEmpty(ctx context.Context) (removed []string, err error) {
	entries, err := os.ReadDir(d.c.Dir)
	if len(entries) == 0 {
		if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
		return nil, err
	}
	state, err := d.c.Guard.State(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask the guard what copies are here: %w", err)
	}
	held := map[string]bool{}
	for _, s := range state.Services {
		if name, is := WorkloadOf(s.Name); is {
			held[name] = true
		}
	}
	for _, e := range entries {
		if e.IsDir() && !held[e.Name()] && removeEmptyCopy(filepath.Join(d.c.Dir, e.Name())) {
			removed = append(removed, e.Name())
		}
	}
	return removed, nil
}
