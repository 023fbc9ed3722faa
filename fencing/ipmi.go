package fencing

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/bougou/go-ipmi/pkg/client"
	"github.com/bougou/go-ipmi/pkg/command/chassis"
	"github.com/bougou/go-ipmi/pkg/types"
)

// How patient the ipmi device is with one exchange. A controller that does not
// answer at all costs exchangeTimeout × (1 + exchangeRetries), not the
// attempt's total.
const (
	exchangeTimeout = time.Second
	exchangeRetries = 2
	closeTimeout    = 500 * time.Millisecond
)

// ipmiDevice is a baseboard management controller over lanplus.
type ipmiDevice struct {
	device   Device
	password string
}

// off takes power and polls until it reads off. Already off is a success; an
// acknowledged order is none; a lost reply to the order is settled by the
// polls like any other.
//
// The order is given again where it was not acknowledged, and where the session
// was lost since: a controller that was restarted may have forgotten what it had
// acknowledged. That is harmless (see offThenRead), and each order follows a read
// that does not say off.
func (d ipmiDevice) off(ctx context.Context) (string, error) {
	session, err := d.open(ctx)
	if err != nil {
		return ResultUnknown, err
	}
	defer func() { session.close() }()
	last, ordered, denied := ResultUnknown, false, 0
	var orderErr, readErr error
	for {
		read := d.read(ctx, session)
		session = read.session
		switch {
		case read.err == nil && !read.on:
			return ResultOff, nil
		case ctx.Err() != nil && (readErr != nil || last != ResultUnknown):
			// The read that the deadline cut off is no news.
		case read.err == nil:
			last, readErr = ResultFailed, nil
		default:
			last, readErr = ResultUnknown, read.err
		}
		if denied++; read.opened == nil || faultOf(read.opened) != FaultDenied {
			denied = 0
		}
		if denied > deniedMost {
			return ResultUnknown, errors.Join(read.opened, orderErr)
		}
		ordered = ordered && !read.fresh
		if !ordered && (read.err == nil || read.fresh) && ctx.Err() == nil {
			// Also where the state is unknown: the order is the same.
			orderErr = session.order(ctx, chassis.ChassisControlPowerDown)
			if ordered = orderErr == nil; ordered {
				continue // most controllers read off at once
			}
		}
		if !sleep(ctx, d.device.Poll) {
			return last, d.offFailure(last, orderErr, readErr)
		}
	}
}

// ipmiRead is how a read of the power state went.
type ipmiRead struct {
	session *ipmiSession // to go on with
	fresh   bool         // it was opened for this read: the earlier one is lost
	on      bool
	err     error
	opened  error // why none could be opened
}

// read reads the power state, by a new session where the old one does not answer
// any more: a controller that was restarted has forgotten it. The dead one is
// returned where none can be opened, and its next read fails again.
func (d ipmiDevice) read(ctx context.Context, session *ipmiSession) ipmiRead {
	r := ipmiRead{session: session}
	if r.on, r.err = session.powered(ctx); r.err == nil || ctx.Err() != nil {
		return r
	}
	fresh, err := d.open(ctx)
	if err != nil {
		r.opened = err
		return r
	}
	session.close()
	r.session, r.fresh = fresh, true
	r.on, r.err = fresh.powered(ctx)
	return r
}

func (d ipmiDevice) offFailure(last string, orderErr, pollErr error) error {
	detail := errors.Join(orderErr, pollErr)
	if last == ResultFailed {
		err := fmt.Errorf("device %q at %s still reads on %s after it was told to power off", d.device.Name, d.device.Address, d.device.Timeout)
		return errors.Join(err, detail)
	}
	err := fmt.Errorf("device %q at %s: power state not readable within %s", d.device.Name, d.device.Address, d.device.Timeout)
	return errors.Join(err, detail)
}

// status reads the power state once.
func (d ipmiDevice) status(ctx context.Context) (string, error) {
	session, err := d.open(ctx)
	if err != nil {
		return ResultUnknown, err
	}
	defer session.close()
	on, err := session.powered(ctx)
	if err != nil {
		return ResultUnknown, err
	}
	if on {
		return ResultOn, nil
	}
	return ResultOff, nil
}

// on orders power on; the node's start is not waited for.
func (d ipmiDevice) on(ctx context.Context) (string, error) {
	session, err := d.open(ctx)
	if err != nil {
		return ResultUnknown, err
	}
	defer session.close()
	if err := session.order(ctx, chassis.ChassisControlPowerUp); err != nil {
		return ResultUnknown, err
	}
	return ResultOn, nil
}

// ipmiSession is an authenticated session, or nil once it is lost.
type ipmiSession struct {
	device Device
	client *client.Client
}

func (d ipmiDevice) open(ctx context.Context) (*ipmiSession, error) {
	host, port, err := splitAddress(d.device.Address)
	if err != nil {
		return nil, err
	}
	c, err := client.NewClient(host, port, d.device.User, d.password)
	if err != nil {
		return nil, fmt.Errorf("set up device %q: %w", d.device.Name, err)
	}
	// Naming the suite spares its discovery: 3 ms against 5 s with
	// controllers that do not answer that question.
	c = c.WithInterface(client.InterfaceLanplus).
		WithCipherSuiteID(types.CipherSuiteID(d.device.CipherSuite)).
		WithTimeout(exchangeTimeout).WithRetry(exchangeRetries)
	if err := c.Connect(ctx); err != nil {
		// No session to close, only the socket: an ended context makes the
		// client skip the closing request.
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		_ = c.Close(ended)
		return nil, fmt.Errorf("connect to device %q at %s: %w", d.device.Name, d.device.Address, err)
	}
	return &ipmiSession{device: d.device, client: c}, nil
}

func (s *ipmiSession) powered(ctx context.Context) (bool, error) {
	status, err := s.client.GetChassisStatus(ctx)
	if err != nil {
		return false, fmt.Errorf("read the power state of device %q: %w", s.device.Name, err)
	}
	return status.PowerIsOn, nil
}

func (s *ipmiSession) order(ctx context.Context, control chassis.ChassisControl) error {
	if _, err := s.client.ChassisControl(ctx, control); err != nil {
		return fmt.Errorf("order chassis control %d at device %q: %w", control, s.device.Name, err)
	}
	return nil
}

func (s *ipmiSession) close() {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	_ = s.client.Close(ctx) // the controller times the session out by itself
}

func splitAddress(address string) (string, int, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, fmt.Errorf("address %q is not host:port: %w", address, err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return "", 0, fmt.Errorf("port of address %q: %w", address, err)
	}
	// The client joins host and port with a colon; a bare IPv6 address would
	// be cut at the wrong one.
	if ip := net.ParseIP(host); ip != nil && ip.To4() == nil {
		host = "[" + host + "]"
	}
	return host, n, nil
}

// sleep waits for d and reports whether ctx still lives.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
