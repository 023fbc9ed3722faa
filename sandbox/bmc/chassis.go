package bmc

import (
	"context"
	"sync"
	"time"

	"github.com/bougou/go-ipmi/pkg/hal"
	"github.com/bougou/go-ipmi/pkg/types"
)

// chassis is the hardware that the protocol's server sees: power only.
type chassis struct {
	power  Power
	faults *Faults

	pending sync.WaitGroup // delayed power changes; Serve waits for them
	once    sync.Once
	mu      sync.Mutex // orders pending.Add before shut
	closed  bool
	stop    chan struct{}
}

var (
	_ hal.HAL        = (*chassis)(nil)
	_ hal.ChassisHAL = (*chassis)(nil)
)

func (c *chassis) shut() {
	c.once.Do(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.closed = true
		close(c.stop)
	})
}

// PowerState implements hal.ChassisHAL.
func (c *chassis) PowerState(context.Context) (bool, error) { return c.power.Status() }

// SetPower implements hal.ChassisHAL; under Lying it acknowledges and does
// nothing, under Slow it acknowledges and acts later, under Bounce an off is
// followed by an on.
func (c *chassis) SetPower(_ context.Context, on bool) error {
	if on {
		return c.later(c.power.On)
	}
	return c.later(func() error {
		err := c.power.Off()
		if back := time.Duration(c.faults.bounce.Load()); err == nil && back > 0 {
			c.delay(back, c.power.On)
		}
		return err
	})
}

// PowerCycle implements hal.ChassisHAL.
func (c *chassis) PowerCycle(context.Context) error { return c.later(c.cycle) }

// ColdReset implements hal.ChassisHAL.
func (c *chassis) ColdReset(context.Context) error { return c.later(c.cycle) }

// WarmReset implements hal.ChassisHAL: the soft shutdown, which a machine
// without an operating system's help does not have.
func (c *chassis) WarmReset(context.Context) error {
	soft, ok := c.power.(interface{ Soft() error })
	if !ok {
		return hal.ErrNotSupported
	}
	return c.later(soft.Soft)
}

func (c *chassis) cycle() error {
	if err := c.power.Off(); err != nil {
		return err
	}
	return c.power.On()
}

func (c *chassis) later(act func() error) error {
	if c.faults.lying.Load() {
		return nil
	}
	delay := time.Duration(c.faults.slow.Load())
	if delay <= 0 {
		return act()
	}
	c.delay(delay, act)
	return nil
}

// delay has act done later, unless the controller has ended by then.
func (c *chassis) delay(delay time.Duration, act func() error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	c.pending.Go(func() {
		timer := time.NewTimer(delay)
		defer timer.Stop()
		select {
		case <-timer.C:
			_ = act() // acknowledged long ago: the status poll tells
		case <-c.stop:
		}
	})
}

// Chassis implements hal.HAL.
func (c *chassis) Chassis() hal.ChassisHAL { return c }

// Sensors implements hal.HAL: none.
func (c *chassis) Sensors() hal.SensorHAL { return nil }

// Storage implements hal.HAL: none.
func (c *chassis) Storage() hal.StorageHAL { return nil }

// Network implements hal.HAL: none.
func (c *chassis) Network() hal.NetworkHAL { return nil }

// GPIO implements hal.HAL: none.
func (c *chassis) GPIO() hal.GPIOHAL { return nil }

// I2C implements hal.HAL: none.
func (c *chassis) I2C() hal.I2CHAL { return nil }

// Console implements hal.HAL: none.
func (c *chassis) Console() hal.ConsoleHAL { return nil }

// Close implements hal.HAL.
func (c *chassis) Close() error { return nil }

// Identify implements hal.ChassisHAL; there is no light to switch.
func (c *chassis) Identify(context.Context, uint8) error { return nil }

// IntrusionState implements hal.ChassisHAL.
func (c *chassis) IntrusionState(context.Context) (bool, error) { return false, hal.ErrNotSupported }

// SetBootFlags implements hal.ChassisHAL.
func (c *chassis) SetBootFlags(context.Context, *types.BootOptionParam_BootFlags) error {
	return hal.ErrNotSupported
}

// GetBootFlags implements hal.ChassisHAL.
func (c *chassis) GetBootFlags(context.Context) (*types.BootOptionParam_BootFlags, error) {
	return nil, hal.ErrNotSupported
}

// SetBootInfoAcknowledge implements hal.ChassisHAL.
func (c *chassis) SetBootInfoAcknowledge(context.Context, *types.BootOptionParam_BootInfoAcknowledge) error {
	return nil
}

// GetBootInfoAcknowledge implements hal.ChassisHAL.
func (c *chassis) GetBootInfoAcknowledge(context.Context) (*types.BootOptionParam_BootInfoAcknowledge, error) {
	return nil, hal.ErrNotSupported
}
