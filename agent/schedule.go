package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/robfig/cron/v3"
	"go.uber.org/zap"

	"pvc.internal/cluster"
)

// Schedule runs jobs at the times of cron expressions, in UTC whatever the
// host's time zone, so that no job is skipped or doubled when clocks change.
// A job that still runs when its next time comes is not started again; one
// that panics is reported and runs at its next time.
type Schedule struct {
	log  *zap.Logger
	cron *cron.Cron

	mu      sync.Mutex
	ctx     context.Context // of the jobs, while Run runs
	running map[string]int
}

// scheduleLinger is how long Run waits for jobs after its context has ended.
const scheduleLinger = 5 * time.Second

// NewSchedule makes an empty schedule; it ticks while Run runs.
func NewSchedule(log *zap.Logger) *Schedule {
	s := &Schedule{log: log, running: map[string]int{}}
	logger := cronLogger{log}
	// In this order: a panic that passed the skipper would leave the job
	// marked as running for ever.
	s.cron = cron.New(cron.WithLocation(time.UTC), cron.WithLogger(logger),
		cron.WithChain(cron.SkipIfStillRunning(logger), cron.Recover(logger)))
	return s
}

// Add has job run at the times of the expression: five cron fields (minute,
// hour, day of month, month, day of week) or a descriptor such as "@hourly" or
// "@every 90s". The job's context ends when Run's does.
func (s *Schedule) Add(name, expression string, job func(ctx context.Context)) error {
	times, err := parseCron(expression)
	if err != nil {
		return fmt.Errorf("schedule %s: %w", name, err)
	}
	s.cron.Schedule(times, cron.FuncJob(func() { s.run(name, job) }))
	return nil
}

// CheckSchedule reports why an expression cannot be used, for use at load.
func CheckSchedule(expression string) error {
	_, err := parseCron(expression)
	return err
}

// Run ticks until ctx ends and then waits for the jobs that run, at most five
// seconds; the error names those that hang.
func (s *Schedule) Run(ctx context.Context) error {
	s.mu.Lock()
	s.ctx = ctx
	s.mu.Unlock()
	s.cron.Start()
	<-ctx.Done()
	select {
	case <-s.cron.Stop().Done():
		return nil
	case <-time.After(scheduleLinger):
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for name := range s.running {
		names = append(names, name)
	}
	return fmt.Errorf("stop schedule: %s still hang: %w", strings.Join(names, ", "), cluster.ErrDeadline)
}

// run is one start of a job.
func (s *Schedule) run(name string, job func(ctx context.Context)) {
	s.mu.Lock()
	ctx := s.ctx
	s.running[name]++
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.running[name]--; s.running[name] == 0 {
			delete(s.running, name)
		}
	}()
	if ctx.Err() == nil {
		job(ctx)
	}
}

var cronParser = cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor)

// parseCron reads an expression without time zone and refuses one that never
// comes; a panic of the library's becomes an error.
func parseCron(expression string) (times cron.Schedule, err error) {
	defer func() {
		if p := recover(); p != nil {
			times, err = nil, fmt.Errorf("%q is not a cron expression: %v", expression, p)
		}
	}()
	if strings.Contains(strings.ToUpper(expression), "TZ=") {
		return nil, fmt.Errorf("%q names a time zone: schedules are in UTC, give the time without one", expression)
	}
	times, err = cronParser.Parse(expression)
	if err != nil {
		return nil, fmt.Errorf("%q is not a cron expression: %w", expression, err)
	}
	if times.Next(time.Now().UTC()).IsZero() {
		return nil, fmt.Errorf("%q never comes: %w", expression, errNever)
	}
	return times, nil
}

var errNever = errors.New("there is no such date within five years")

// cronLogger passes what the library reports on. Its chatter about every start
// is dropped; a skipped start and a panic are kept.
type cronLogger struct{ log *zap.Logger }

// Info implements cron.Logger.
func (l cronLogger) Info(msg string, _ ...any) {
	if msg == "skip" {
		l.log.Warn("scheduled job still runs: start skipped")
	}
}

// Error implements cron.Logger.
func (l cronLogger) Error(err error, _ string, facts ...any) {
	l.log.Error("scheduled job panicked", zap.Error(err), zap.Any("facts", facts))
}
