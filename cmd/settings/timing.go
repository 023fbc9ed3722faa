package settings

import (
	"time"

	"pvc.internal/cluster"
)

// timingFile is a profile by name and whatever overrides it.
type timingFile struct {
	Profile    string `yaml:"profile"`
	timingKeys `yaml:",squash"`
}

// timingKeys are cluster.Timing's fields with their keys; the conversion in
// timing stops compiling when the two part.
type timingKeys struct {
	KeepaliveInterval time.Duration `yaml:"keepalive_interval"`
	CollectorDeadline time.Duration `yaml:"collector_deadline"`
	RenewInterval     time.Duration `yaml:"renew_interval"`
	RoleTTL           time.Duration `yaml:"role_ttl"`
	Grace             time.Duration `yaml:"grace"`
	TakerMargin       time.Duration `yaml:"taker_margin"`
	WriteGap          time.Duration `yaml:"write_gap"`
	SessionTimeout    time.Duration `yaml:"session_timeout"`
	LockTimeout       time.Duration `yaml:"lock_timeout"`
	TransitionDelay   time.Duration `yaml:"transition_delay"`
	Settle            time.Duration `yaml:"settle"`
	FenceIntervals    int           `yaml:"fence_intervals"`
	SuicideIntervals  int           `yaml:"suicide_intervals"`
	Watchdog          time.Duration `yaml:"watchdog"`
	BootTimeout       time.Duration `yaml:"boot_timeout"`
	NodeLeasePeriod   time.Duration `yaml:"node_lease_period"`
	NodeLeaseRenew    time.Duration `yaml:"node_lease_renew"`
	NodeLeaseGrace    time.Duration `yaml:"node_lease_grace"`
}

func (t timingFile) timing() cluster.Timing { return cluster.Timing(t.timingKeys) }

// start sets the keys to the profile's values, over which the file's are decoded.
func (t *timingFile) start(profile string) error {
	timing, err := cluster.Profile(profile)
	if err != nil {
		return err
	}
	timing.CollectorDeadline = 0 // follows keepalive_interval unless set
	t.timingKeys = timingKeys(timing)
	t.Profile = cluster.TimingLAN
	return nil
}

// finish derives what the file left to follow from other keys.
func (t *timingFile) finish(collectorSet bool) {
	if !collectorSet {
		t.CollectorDeadline = t.KeepaliveInterval * 8 / 10
	}
}
