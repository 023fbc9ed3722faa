package fencing

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// RedfishAuth is how a redfish device logs in.
type RedfishAuth string

// The ways to log in. Without one it is a session, or basic where the
// controller has no session service.
const (
	RedfishSession RedfishAuth = "session" // a token, given back at the end
	RedfishBasic   RedfishAuth = "basic"
)

// Where a controller keeps things unless its root says otherwise.
const (
	redfishRoot     = "/redfish/v1/"
	redfishSystems  = "/redfish/v1/Systems"
	redfishSessions = "/redfish/v1/SessionService/Sessions"
	redfishReset    = "/Actions/ComputerSystem.Reset" // below the system
)

// The resets that are ordered. PushPowerButton is none of them: what a pressed
// button does is the operating system's to say.
const (
	resetOff = "ForceOff"
	resetOn  = "On"
)

func (d Device) validateRedfish() error {
	trust := 0
	for _, given := range []bool{d.CAFile != "", d.Fingerprint != "", d.Insecure} {
		if given {
			trust++
		}
	}
	switch {
	case d.User == "":
		return errors.New("user is missing")
	case !slices.Contains([]RedfishAuth{"", RedfishSession, RedfishBasic}, d.Auth):
		return fmt.Errorf("auth %q is not one of %s, %s", d.Auth, RedfishSession, RedfishBasic)
	case trust > 1:
		return errors.New("give one of ca_file, fingerprint, insecure")
	case strings.Contains(d.Address, "://"):
		return fmt.Errorf("address %q: give host or host:port; it is always HTTPS", d.Address)
	}
	if d.Fingerprint != "" {
		if _, err := parseFingerprint(d.Fingerprint); err != nil {
			return err
		}
	}
	return d.validateAddress()
}

// redfishDevice is a controller that speaks Redfish. Like the ipmi device it
// reads off before anything counts: an order that was acknowledged, or a task
// that is said to be done, is no proof.
type redfishDevice struct {
	device   Device
	password Secret
	dial     dialer
}

func newRedfish(d Device, password Secret) redfishDevice {
	return redfishDevice{device: d, password: password, dial: new(net.Dialer).DialContext}
}

// redfishSystem is what is read of a computer system. A power state that is
// missing, or neither On nor Off, is unknown.
type redfishSystem struct {
	PowerState *string `json:"PowerState"`
	Actions    struct {
		Reset struct {
			Target  string    `json:"target"`
			Allowed *[]string `json:"ResetType@Redfish.AllowableValues"`
			Info    string    `json:"@Redfish.ActionInfo"`
		} `json:"#ComputerSystem.Reset"`
	} `json:"Actions"`
}

type redfishLink struct {
	ID string `json:"@odata.id"`
}

// off takes power and polls until it reads off. Already off is a success.
// Whatever fails is tried again at the next poll, except a refused login: an
// account that is locked by repetition would be of no use to anybody. The order
// is given again, too, where a read has failed since: a controller that was
// restarted may have forgotten what it had acknowledged. That is harmless (see
// offThenRead), and each order follows a read that does not say off.
func (d redfishDevice) off(ctx context.Context) (string, error) {
	s := redfishRun{redfishDevice: d}
	defer func() { s.close() }()
	last, ordered := ResultUnknown, false
	var orderErr, readErr, taskErr error
	for {
		system, err := s.system(ctx)
		result, stateErr := system.power(d.device, err)
		switch {
		case result == ResultOff:
			return ResultOff, nil
		case ctx.Err() != nil && (readErr != nil || last != ResultUnknown):
			// The read that the deadline cut off is no news.
		case result == ResultOn:
			last, readErr = ResultFailed, nil
		default:
			last, readErr = ResultUnknown, stateErr
		}
		if err != nil && s.denied > deniedMost {
			return ResultUnknown, err
		}
		ordered = ordered && err == nil
		if err != nil && faultOf(err) == FaultUnreachable && s.arrived() && ctx.Err() == nil {
			// It hangs in the read alone, perhaps: that must not keep the power on.
			orderErr = s.order(ctx, strings.TrimSuffix(s.path, "/")+redfishReset, resetOff)
			ordered = orderErr == nil
		}
		if err == nil && !ordered {
			// Also where the state is unknown: the order is the same.
			orderErr = s.reset(ctx, system, resetOff)
			ordered = orderErr == nil
		} else if err == nil {
			taskErr = errors.Join(taskErr, s.watch(ctx))
		}
		if !sleep(ctx, d.device.Poll) {
			return last, notOff(d.device, last, errors.Join(orderErr, taskErr, readErr))
		}
	}
}

// deniedMost is how many refused logins an attempt survives. The first may be
// a controller that was restarted and does not know its accounts yet.
const deniedMost = 1

// status reads the power state once.
func (d redfishDevice) status(ctx context.Context) (string, error) {
	s := redfishRun{redfishDevice: d}
	defer func() { s.close() }()
	system, err := s.system(ctx)
	return system.power(d.device, err)
}

// on orders power on; the node's start is not waited for.
func (d redfishDevice) on(ctx context.Context) (string, error) {
	s := redfishRun{redfishDevice: d}
	defer func() { s.close() }()
	system, err := s.system(ctx)
	if err == nil {
		if result, _ := system.power(d.device, nil); result == ResultOn {
			return ResultOn, nil // some refuse the order then
		}
		err = s.reset(ctx, system, resetOn)
	}
	if err != nil {
		return ResultUnknown, err
	}
	return ResultOn, nil
}

// check holds the settings against what the controller offers.
func (d redfishDevice) check(ctx context.Context) ([]string, error) {
	s := redfishRun{redfishDevice: d}
	defer func() { s.close() }()
	system, err := s.system(ctx)
	if err != nil {
		return nil, err
	}
	for _, kind := range []string{resetOff, resetOn} {
		if err := s.allowed(ctx, system, kind); err != nil {
			return nil, faulty(FaultMisconfigured, err)
		}
	}
	var notes []string
	if d.device.Insecure {
		notes = append(notes, "insecure: any certificate is taken, so that whoever answers at the address learns the password; set fingerprint or ca_file")
	}
	return notes, nil
}

// power reads the state out of a system. Only the very words count.
func (s redfishSystem) power(d Device, err error) (string, error) {
	switch {
	case err != nil:
		return ResultUnknown, err
	case s.PowerState == nil:
		return ResultUnknown, faulty(FaultUnclear, fmt.Errorf("device %q tells no power state", d.Name))
	case *s.PowerState == "Off":
		return ResultOff, nil
	case *s.PowerState == "On":
		return ResultOn, nil
	}
	return ResultUnknown, faulty(FaultUnclear, fmt.Errorf("device %q: power state %q is neither On nor Off", d.Name, clip(*s.PowerState)))
}

// redfishRun is one attempt's dealings with a controller: where it has got to,
// so that each poll goes on from there.
type redfishRun struct {
	redfishDevice
	conn     *redfishConn
	systems  string // the collection
	sessions string
	path     string // of the system
	monitor  string // of the order's task
	denied   int
}

// system reads the computer system, after whatever has to come first.
func (s *redfishRun) system(ctx context.Context) (redfishSystem, error) {
	var system redfishSystem
	if err := s.arrive(ctx); err != nil {
		return system, err
	}
	reply, err := s.conn.do(ctx, http.MethodGet, s.path, nil)
	if err == nil && reply.status == http.StatusUnauthorized {
		// The session is forgotten: the controller was restarted, or it timed out.
		s.denied++
		s.conn.token, s.conn.session = Secret{}, ""
	}
	if err = s.into(reply, err, "read system "+s.path, &system); err == nil {
		s.denied = 0
	}
	return system, err
}

// arrive connects, logs in and finds the system, as far as that is yet to do.
func (s *redfishRun) arrive(ctx context.Context) error {
	if s.conn == nil {
		conn, err := newRedfishConn(s.device, s.password, s.dial)
		if err != nil {
			return err
		}
		s.conn = conn
	}
	if s.systems == "" {
		if err := s.root(ctx); err != nil {
			return err
		}
	}
	if s.conn.token.Empty() && !s.conn.basic {
		if err := s.login(ctx); err != nil {
			return err
		}
	}
	if s.path == "" {
		return s.find(ctx)
	}
	return nil
}

// root reads where things are. It needs no login by the standard.
func (s *redfishRun) root(ctx context.Context) error {
	var root struct {
		Systems redfishLink `json:"Systems"`
		Links   struct {
			Sessions redfishLink `json:"Sessions"`
		} `json:"Links"`
	}
	reply, err := s.conn.do(ctx, http.MethodGet, redfishRoot, nil)
	if err := s.into(reply, err, "read the service root", &root); err != nil {
		return err
	}
	s.systems, s.sessions = s.conn.local(root.Systems.ID), s.conn.local(root.Links.Sessions.ID)
	if s.systems == "" {
		s.systems = redfishSystems
	}
	if s.sessions == "" {
		s.sessions = redfishSessions
	}
	return nil
}

func (s *redfishRun) login(ctx context.Context) error {
	reply, err := s.conn.do(ctx, http.MethodPost, s.sessions, map[string]string{"UserName": s.device.User, "Password": s.password.Reveal()})
	if err == nil && s.device.Auth == "" && slices.Contains([]int{http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotImplemented}, reply.status) {
		s.conn.basic = true // it has no sessions
		return nil
	}
	if err == nil && (reply.status == http.StatusUnauthorized || reply.status == http.StatusForbidden) {
		s.denied++
	}
	if err := s.into(reply, err, "log in", nil); err != nil {
		return err
	}
	if reply.token.Empty() {
		return fmt.Errorf("log in at device %q: it gave no token; try auth: basic", s.device.Name)
	}
	s.conn.token, s.conn.session = reply.token, reply.location
	if s.conn.session == "" {
		var made redfishLink
		if reply.decode(&made) == nil {
			s.conn.session = s.conn.local(made.ID)
		}
	}
	return nil
}

// find names the system: the one in the settings, or the only one there is. To
// choose among several would be to guess whose power is cut (I5).
func (s *redfishRun) find(ctx context.Context) error {
	if id := s.device.System; id != "" {
		s.path = strings.TrimSuffix(s.systems, "/") + "/" + url.PathEscape(id)
		if strings.HasPrefix(id, "/") {
			if s.path = s.conn.local(id); s.path == "" {
				return faulty(FaultMisconfigured, fmt.Errorf("device %q: system %q is no path of this controller", s.device.Name, id))
			}
		}
		return nil
	}
	var list struct {
		Members []redfishLink `json:"Members"`
		Count   int           `json:"Members@odata.count"`
	}
	reply, err := s.conn.do(ctx, http.MethodGet, s.systems, nil)
	if err == nil && reply.status == http.StatusUnauthorized {
		s.denied++
	}
	if err := s.into(reply, err, "list the systems", &list); err != nil {
		return err
	}
	if len(list.Members) == 1 && list.Count <= 1 {
		if s.path = s.conn.local(list.Members[0].ID); s.path != "" {
			return nil
		}
	}
	names := make([]string, 0, len(list.Members))
	for _, m := range list.Members {
		names = append(names, m.ID)
	}
	return faulty(FaultMisconfigured, fmt.Errorf("device %q has %d systems (%s); name one with system", s.device.Name, max(len(names), list.Count), clip(strings.Join(names, ", "))))
}

// reset orders a kind of reset that the controller says it knows.
func (s *redfishRun) reset(ctx context.Context, system redfishSystem, kind string) error {
	if err := s.allowed(ctx, system, kind); err != nil {
		return err
	}
	return s.order(ctx, s.conn.local(system.Actions.Reset.Target), kind)
}

// arrived reports whether the run has logged in and knows its system.
func (s *redfishRun) arrived() bool {
	return s.conn != nil && s.path != "" && (s.conn.basic || !s.conn.token.Empty())
}

// order posts a reset to its target.
func (s *redfishRun) order(ctx context.Context, target, kind string) error {
	reply, err := s.conn.do(ctx, http.MethodPost, target, map[string]string{"ResetType": kind})
	if err := s.into(reply, err, "order "+kind, nil); err != nil {
		return err
	}
	if reply.status == http.StatusAccepted {
		s.monitor = reply.location
	}
	return nil
}

// allowed reports why a kind of reset cannot be ordered. The list stands in the
// system or in what its action info names; it is optional in the standard, and
// where there is none the kind is tried.
func (s *redfishRun) allowed(ctx context.Context, system redfishSystem, kind string) error {
	action := system.Actions.Reset
	if s.conn.local(action.Target) == "" {
		return fmt.Errorf("device %q: system %s has no reset action", s.device.Name, s.path)
	}
	list := action.Allowed
	if info := s.conn.local(action.Info); list == nil && info != "" {
		var more struct {
			Parameters []struct {
				Name    string    `json:"Name"`
				Allowed *[]string `json:"AllowableValues"`
			} `json:"Parameters"`
		}
		reply, err := s.conn.do(ctx, http.MethodGet, info, nil)
		if err := s.into(reply, err, "read the reset action's info", &more); err != nil {
			return err
		}
		for _, p := range more.Parameters {
			if p.Name == "ResetType" {
				list = p.Allowed
			}
		}
	}
	if list != nil && !slices.Contains(*list, kind) {
		return fmt.Errorf("device %q: system %s offers no reset of type %s, only %s", s.device.Name, s.path, kind, clip(strings.Join(*list, ", ")))
	}
	return nil
}

// watch reads the order's task, for what went wrong with it. That it is done
// proves nothing and only ends the reading.
func (s *redfishRun) watch(ctx context.Context) error {
	if s.monitor == "" {
		return nil
	}
	reply, err := s.conn.do(ctx, http.MethodGet, s.monitor, nil)
	if err != nil {
		return nil //nolint:nilerr // the power state is what counts
	}
	var task struct {
		State  string `json:"TaskState"`
		Status string `json:"TaskStatus"`
	}
	_ = json.Unmarshal(reply.body, &task)
	if reply.status == http.StatusAccepted && !slices.Contains(taskEnds, task.State) {
		return nil
	}
	if slices.Contains([]string{"New", "Starting", "Running", "Pending", "Suspended", "Service"}, task.State) {
		return nil
	}
	at := s.monitor
	s.monitor = ""
	if refused := reply.refusal(); refused != nil {
		return fmt.Errorf("the task %s at device %q failed: %w", at, s.device.Name, refused)
	}
	if task.State != "" && task.State != "Completed" || task.Status == "Critical" {
		return fmt.Errorf("the task %s at device %q ended as %s %s%s", at, s.device.Name, task.State, task.Status, reply.words())
	}
	return nil
}

var taskEnds = []string{"Completed", "Exception", "Killed", "Cancelled", "Interrupted"}

// into turns an exchange into an error or, for a body that is wanted, its value.
func (s *redfishRun) into(reply redfishReply, err error, what string, value any) error {
	if err == nil {
		err = reply.refusal()
	}
	if err == nil && value != nil {
		err = reply.decode(value)
	}
	if err != nil {
		return fmt.Errorf("%s at device %q: %w", what, s.device.Name, err)
	}
	return nil
}

// close gives the session back, whose number is limited, and all connections.
func (s *redfishRun) close() {
	if s.conn == nil {
		return
	}
	if s.conn.session != "" && !s.conn.token.Empty() {
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		_, _ = s.conn.do(ctx, http.MethodDelete, s.conn.session, nil)
	}
	s.conn.client.CloseIdleConnections()
}
