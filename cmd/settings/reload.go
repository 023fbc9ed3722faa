package settings

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"

	"go.uber.org/zap"
)

// Reloader reads the settings again when its process is asked to: by SIGHUP,
// which is what `systemctl reload` sends. What can be adopted by a running
// program is; the rest stays as it was, and is told by name: in the log once, in
// the unit's status, and by Faults until a restart. A file that is refused
// changes nothing, and is told likewise: the next start would read it, too.
//
// A signal may come at any time and any number of times. Early ones wait until
// Serve begins, several that come together are one, and a terminal that goes away
// costs a look at the file.
type Reloader struct {
	signals chan os.Signal

	program   string
	path      string
	log       *zap.Logger
	read      ReadAgain
	adoptable []string
	begin     func()
	end       func(status string)

	mu      sync.Mutex
	inForce Inspection
	pending []string // keys that were changed in the file and wait for a restart
	refused string   // why the file as it stands now is refused
}

// ReadAgain reads the file again. adopt, called once where the file is sound,
// changes to its values whatever of the adoptable keys it can, all or nothing.
type ReadAgain func(path string) (read Inspection, adopt func() error, err error)

// Reload is what a Reloader works with.
type Reload struct {
	InForce   Inspection // what the program was started with
	Log       *zap.Logger
	Read      ReadAgain
	Adoptable []string // keys that a running program adopts, exactly or as the section they stand in
}

// CatchReloads is called before the settings are read for the first time: from
// then on no signal is lost, and none ends the process.
func CatchReloads() *Reloader {
	r := &Reloader{signals: make(chan os.Signal, 1)}
	signal.Notify(r.signals, syscall.SIGHUP)
	return r
}

// Use says what to do on a signal; before Serve.
func (r *Reloader) Use(w Reload) {
	r.program, r.path, r.log, r.read, r.adoptable, r.inForce = w.InForce.Program, w.InForce.File, w.Log, w.Read, w.Adoptable, w.InForce
}

// Notify has the service manager told of the beginning and of the end of each
// reload, there with a line of text, empty where there is nothing to say; before
// Serve.
func (r *Reloader) Notify(begin func(), end func(status string)) { r.begin, r.end = begin, end }

// Serve begins to obey signals, until ctx ends or stop is called, which also waits
// until the last one is served.
func (r *Reloader) Serve(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-ctx.Done():
				return
			case <-r.signals:
				r.Reload()
			}
		}
	}()
	return func() { cancel(); <-done }
}

// Reload reads the file once and adopts what can be.
func (r *Reloader) Reload() {
	if r.begin != nil {
		r.begin()
	}
	status := r.reload()
	if r.end != nil {
		r.end(status)
	}
}

func (r *Reloader) reload() (status string) {
	fresh, adopt, err := r.read(r.path)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		return r.refuse(err)
	}
	var adopted, pending []string
	for _, key := range Differ(r.inForce, fresh) {
		if r.adopts(key) {
			adopted = append(adopted, key)
			continue
		}
		pending = append(pending, key)
	}
	if err := adopt(); err != nil {
		return r.refuse(err)
	}
	r.refused, r.pending, r.inForce = "", pending, r.inForce.with(adopted, fresh)
	if len(pending) == 0 {
		r.log.Info("settings reloaded", zap.Strings("adopted", adopted))
		return ""
	}
	r.log.Warn("settings reloaded; some of what was changed needs a restart and stays as it was",
		zap.Strings("adopted", adopted), zap.Strings("restart_needed", pending))
	return "restart needed: " + strings.Join(pending, ", ")
}

func (r *Reloader) refuse(err error) (status string) {
	r.refused, _, _ = strings.Cut(err.Error(), "\n")
	r.log.Error("the settings were not reloaded: they are refused, and all stays as it was", zap.Error(err))
	return "settings refused, all stays as it was: " + r.refused
}

func (r *Reloader) adopts(key string) bool {
	return slices.ContainsFunc(r.adoptable, func(a string) bool { return key == a || strings.HasPrefix(key, a+".") })
}

// Faults are what the last reload has left behind, each with its cure.
func (r *Reloader) Faults() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []string
	if r.refused != "" {
		all = append(all, fmt.Sprintf("the settings of %s are refused, and its next start would fail: %s", r.program, r.refused))
	}
	if len(r.pending) > 0 {
		all = append(all, fmt.Sprintf("restart needed: %s changed in %s: `systemctl restart %s`", strings.Join(r.pending, ", "), r.path, r.program))
	}
	return all
}

// with returns a copy in which the settings of these keys are those of another
// reading.
func (i Inspection) with(keys []string, of Inspection) Inspection {
	all := slices.DeleteFunc(slices.Clone(i.Settings), func(s Setting) bool { return slices.Contains(keys, s.Key) })
	for _, s := range of.Settings {
		if slices.Contains(keys, s.Key) {
			all = append(all, s)
		}
	}
	i.Settings = all
	return i
}
