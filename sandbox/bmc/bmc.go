// Package bmc is a baseboard management controller for tests and the sandbox:
// it speaks IPMI 2.0 (RMCP+, lanplus) on a UDP socket and turns power commands
// into calls of a Power, which for a sandbox node kills or starts the node's
// namespace. Its faults are switched while it runs.
package bmc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/bougou/go-ipmi/pkg/bmc"
	"github.com/bougou/go-ipmi/pkg/server"
	"github.com/bougou/go-ipmi/pkg/transport/udp"
	"github.com/bougou/go-ipmi/pkg/types"
)

// userSlot is the account's IPMI user id; slot 1 is the anonymous user.
const userSlot = 2

// lanChannel is the channel number of the only LAN interface.
const lanChannel = 1

// Power is the machine behind the controller. Calls may come from several
// goroutines at once.
type Power interface {
	On() error
	Off() error
	// Status reports whether the machine has power.
	Status() (bool, error)
}

// Config describes one controller.
type Config struct {
	Listen   string // "ip:port", UDP; port 0 picks a free one
	User     string // 1–16 bytes
	Password string // 1–20 bytes
	Power    Power
	Faults   *Faults // may be nil; switched while the controller runs
}

// Validate reports what stands against serving with this configuration.
func (c Config) Validate() error {
	if len(c.User) < 1 || len(c.User) > bmc.MaxUserNameLen {
		return fmt.Errorf("BMC user %q: want 1–%d bytes", c.User, bmc.MaxUserNameLen)
	}
	if len(c.Password) < 1 || len(c.Password) > bmc.MaxPasswordLen {
		return fmt.Errorf("BMC password: want 1–%d bytes, has %d", bmc.MaxPasswordLen, len(c.Password))
	}
	if c.Power == nil {
		return errors.New("BMC has no Power to switch")
	}
	return nil
}

// Server is a bound controller. The socket belongs to the network namespace
// of the thread that called Listen and stays there whatever thread serves it.
type Server struct {
	conn    *udp.Conn
	faulty  *faultyConn
	chassis *chassis
	inner   *server.Server
}

// Listen binds the controller's socket in the calling thread's network
// namespace. Serve must be called after it, or Close.
func Listen(cfg Config) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	faults := cfg.Faults
	if faults == nil {
		faults = &Faults{}
	}
	conn, err := udp.Listen(cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("bind the BMC's socket: %w", err)
	}
	machine := &chassis{power: cfg.Power, faults: faults, stop: make(chan struct{})}
	controller := bmc.New(deviceInfo(), [16]byte{'p', 'v', 'c', '-', 'b', 'm', 'c'}, machine)
	account, err := controller.Users.Add(userSlot, cfg.User)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("add BMC user: %w", err)
	}
	account.SetPassword([]byte(cfg.Password))
	account.Enabled = true
	account.ChannelAccess[lanChannel] = bmc.UserChannelAccess{
		MaxPrivilege: bmc.PrivilegeLevelAdministrator, Enabled: true,
	}
	controller.SetCipherSuites([]types.CipherSuiteID{types.CipherSuiteID3, types.CipherSuiteID17})
	faults.bind(controller, cfg.Password)
	faulty := &faultyConn{Conn: conn, faults: faults, stop: machine.stop}
	return &Server{conn: conn, faulty: faulty, chassis: machine, inner: server.NewServer(controller, faulty)}, nil
}

func deviceInfo() bmc.DeviceInfo {
	return bmc.DeviceInfo{DeviceID: 32, DeviceRevision: 1, FirmwareMajor: 1, IPMIVersion: 0x20, ManufacturerID: 0x157, ProductID: 1, AdditionalDeviceSupport: 0x39}
}

// Addr is the address the socket is bound to.
func (s *Server) Addr() *net.UDPAddr { return s.conn.LocalAddr().(*net.UDPAddr) }

// Serve answers until ctx ends; it returns nil then. Delayed power changes
// that have not happened by then never happen.
func (s *Server) Serve(ctx context.Context) error {
	var wait sync.WaitGroup
	wait.Go(func() {
		<-ctx.Done()
		s.Close()
	})
	err := s.inner.Serve(ctx)
	s.Close()
	wait.Wait()
	s.chassis.pending.Wait()
	if ctx.Err() != nil {
		return nil //nolint:nilerr // closed because it was to end
	}
	if err != nil {
		return fmt.Errorf("serve BMC on %s: %w", s.conn.LocalAddr(), err)
	}
	return nil
}

// Close frees the socket; a running Serve waits for its context all the same.
func (s *Server) Close() {
	s.chassis.shut()
	_ = s.inner.Close()
}

// Serve binds in the calling thread's network namespace and answers until ctx
// ends.
func Serve(ctx context.Context, cfg Config) error {
	s, err := Listen(cfg)
	if err != nil {
		return err
	}
	return s.Serve(ctx)
}
