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
	booting uint64 // the boot that is under way; 0: none
	boots   uint64 // begun so far
	stop    chan struct{}

	// switching makes a boot's end and a cut exclude each other: what was cut
	// does not run a moment later. It is taken before mu.
	switching sync.Mutex
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

// PowerState implements hal.ChassisHAL: a machine that boots has power.
func (c *chassis) PowerState(context.Context) (bool, error) {
	if !c.isBooting(0) {
		return true, nil
	}
	return c.power.Status()
}

// SetPower implements hal.ChassisHAL; under Lying it acknowledges and does
// nothing, under Slow it acknowledges and acts later, under Bounce an off is
// followed by an on.
func (c *chassis) SetPower(_ context.Context, on bool) error {
	if on {
		return c.later(c.on)
	}
	return c.later(func() error {
		err := c.off()
		if back := time.Duration(c.faults.bounce.Load()); err == nil && back > 0 {
			c.delay(back, c.on)
		}
		return err
	})
}

// on gives power; under Boot the machine runs only once it has booted.
func (c *chassis) on() error {
	if c.faults.boot.Load() <= 0 {
		return c.power.On()
	}
	if is, err := c.power.Status(); err == nil && is {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.booting != 0 {
		return nil
	}
	c.boots++
	mine := c.boots
	c.booting = mine
	c.pending.Go(func() { c.boot(mine, time.Now()) })
	return nil
}

// bootTick is how often a boot looks whether it is over.
const bootTick = 20 * time.Millisecond

// boot lets the machine run once its time is over, or Boot was taken back, unless
// its power has been cut since, or the controller has ended.
func (c *chassis) boot(mine uint64, began time.Time) {
	tick := time.NewTicker(bootTick)
	defer tick.Stop()
	for time.Since(began) < time.Duration(c.faults.boot.Load()) {
		select {
		case <-tick.C:
		case <-c.stop:
			return
		}
	}
	c.switching.Lock()
	defer c.switching.Unlock()
	if !c.isBooting(mine) {
		return
	}
	_ = c.power.On() // acknowledged long ago: the status poll tells
	c.endBoot()
}

// isBooting reports whether that boot is the one that is under way.
func (c *chassis) isBooting(boot uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.booting == boot
}

func (c *chassis) endBoot() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.booting = 0
}

// off cuts power, of a machine that boots, too.
func (c *chassis) off() error {
	c.switching.Lock()
	defer c.switching.Unlock()
	c.endBoot()
	return c.power.Off()
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
	if err := c.off(); err != nil {
		return err
	}
	return c.on()
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
