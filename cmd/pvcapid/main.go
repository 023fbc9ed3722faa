// Command pvcapid answers for the cluster over HTTP. It keeps nothing: it may
// run on every coordinator, and be restarted at any time.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"go.uber.org/zap"

	"pvc.internal/api"
	"pvc.internal/cluster"
	"pvc.internal/cmd/settings"
	"pvc.internal/driver"
	"pvc.internal/proc"
	"pvc.internal/zkhandler"
)

// version is set by the linker.
var version = "unknown"

// The exit statuses. The unit does not restart after exitSettings: the next
// start would read the same file.
const (
	exitOK       = 0
	exitFailed   = 1
	exitUsage    = 2
	exitSettings = 78 // EX_CONFIG
)

const defaultConfig = "/etc/pvc/pvcapid.yaml"

// The adapter fits what the api consumes.
var (
	_ api.Store       = (*zkhandler.Handler)(nil)
	_ api.Details     = (*zkhandler.Handler)(nil)
	_ api.Initializer = (*zkhandler.Handler)(nil)
	_ api.Texts       = (*zkhandler.Handler)(nil)
	_ api.Faults      = faults{}
)

// faults fits the handler's faults to the api's.
type faults struct{ handler *zkhandler.Handler }

// ReadFaults returns all faults, ordered by id.
func (f faults) ReadFaults(ctx context.Context) ([]api.FaultRecord, error) {
	read, err := f.handler.ReadFaults(ctx)
	records := make([]api.FaultRecord, len(read))
	for i, r := range read {
		records[i] = api.FaultRecord(r)
	}
	return records, err
}

func main() {
	// A log that nobody reads any more must not end a daemon. SIGHUP, which a
	// terminal that goes away sends, too, has a daemon read its settings again.
	signal.Ignore(syscall.SIGPIPE, syscall.SIGHUP)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is the whole program but the process around it; it returns the status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("pvcapid", flag.ContinueOnError)
	flags.SetOutput(stderr)
	path := flags.String("c", defaultConfig, "settings `FILE`")
	flags.StringVar(path, "config", defaultConfig, "settings `FILE`")
	check := flags.Bool("check", false, "load the settings, say what is wrong with them, and end")
	showVersion := flags.Bool("version", false, "print the version and end")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		return exitUsage
	case flags.NArg() > 0:
		fmt.Fprintf(stderr, "pvcapid: %q is not understood: it takes flags only\n", flags.Arg(0))
		return exitUsage
	case *showVersion:
		fmt.Fprintln(stdout, version)
		return exitOK
	}
	if *check {
		return checkFile(*path, stdout, stderr)
	}
	return serveFile(ctx, *path, stderr)
}

// checkFile prints the settings in effect and where each comes from.
func checkFile(path string, stdout, stderr io.Writer) int {
	s, inspection, err := settings.InspectAPI(path, os.Environ())
	if err == nil {
		_, err = assemble(s, zap.NewNop())
	}
	if err != nil {
		fmt.Fprintln(stderr, "pvcapid:", err)
		return exitSettings
	}
	if err := inspection.Write(stdout); err != nil {
		fmt.Fprintln(stderr, "pvcapid: print the settings:", err)
		return exitFailed
	}
	fmt.Fprintf(stdout, "# %s: good: cluster %s, timing %s, listening on %v\n", path, s.Cluster.Name, s.Profile, s.API.Listen)
	return exitOK
}

func serveFile(ctx context.Context, path string, stderr io.Writer) int {
	reload := settings.CatchReloads()
	fail := func(code int, err error) int {
		fmt.Fprintln(stderr, "pvcapid:", err)
		return code
	}
	s, inspection, err := settings.InspectAPI(path, os.Environ())
	if err != nil {
		return fail(exitSettings, err)
	}
	log, level, err := settings.NewLogger(s.Log)
	if err != nil {
		return fail(exitSettings, err)
	}
	defer func() { _ = log.Sync() }() // EINVAL on a terminal says nothing
	for _, warning := range s.Warnings {
		log.Warn("setting", zap.String("warning", warning))
	}
	d, err := assemble(s, log)
	if err != nil {
		return fail(exitSettings, err)
	}
	d.reload = reload
	reload.Use(settings.Reload{InForce: inspection, Log: log.Named("settings"), Adoptable: adoptable, Read: d.readAgain(s, level)})
	if err := d.run(ctx); err != nil {
		log.Error("ended", zap.Error(err))
		return exitFailed
	}
	return exitOK
}

// parts are the assembled daemon.
type parts struct {
	handler *zkhandler.Handler
	server  *api.Server
	log     *zap.Logger
	reload  *settings.Reloader // nil: the settings are not read again
}

func assemble(s settings.API, log *zap.Logger) (*parts, error) {
	config, err := zooKeeperConfig(s.ZooKeeper, s.Timing)
	if err != nil {
		return nil, err
	}
	return assembleOver(config, s, log)
}

// assembleOver makes the daemon over ZooKeeper as config reaches it.
func assembleOver(config zkhandler.Config, s settings.API, log *zap.Logger) (*parts, error) {
	clock, registry := proc.BootClock{}, api.NewRegistry()
	handler, err := zkhandler.New(config, clock, log.Named("zk"), registry)
	if err != nil {
		return nil, err
	}
	server, err := api.New(apiConfig(s), api.Deps{Store: handler, Details: handler, Initializer: handler, Texts: handler, Secrets: handler, Faults: faults{handler}, Clock: clock,
		Check: driver.NewChecker(s.Node.Name, "").Check}, log, registry)
	if err != nil {
		return nil, err
	}
	return &parts{handler: handler, server: server, log: log}, nil
}

func apiConfig(s settings.API) api.Config {
	l := s.API
	return api.Config{
		Listen: l.Listen, Auth: l.Auth, KeysFile: l.KeysFile, ProtectAll: l.ProtectAll,
		TLS:  api.TLSFiles{Cert: l.TLS.Cert, Key: l.TLS.Key, ClientCA: l.TLS.ClientCA},
		Node: s.Node.Name, ClusterName: s.Cluster.Name, Version: version, Timing: s.Timing, Profile: s.Profile,
	}
}

func zooKeeperConfig(z settings.ZooKeeper, t cluster.Timing) (zkhandler.Config, error) {
	auth, err := zkhandler.ReadDigest(z.Auth.User, z.Auth.PasswordFile)
	if err != nil {
		return zkhandler.Config{}, err
	}
	reader, err := zkhandler.ReadDigest(z.Reader.User, z.Reader.PasswordFile)
	if err != nil {
		return zkhandler.Config{}, err
	}
	c := zkhandler.Config{Calm: 25 * time.Millisecond, Servers: z.Servers, Root: z.Root, SessionTimeout: t.SessionTimeout,
		RequestTimeout: t.RequestTimeout(), Auth: auth, Reader: reader, WatchNodes: true}
	if z.TLS.Set() {
		c.TLS = &zkhandler.TLSFiles{CA: z.TLS.CA, Cert: z.TLS.Cert, Key: z.TLS.Key, ServerName: z.TLS.ServerName}
	}
	return c, nil
}

// sessionEndTimeout bounds the wait for ZooKeeper to take leave of us.
const sessionEndTimeout = 5 * time.Second

// run serves until ctx ends. Running requests end before the session does.
func (p *parts) run(ctx context.Context) error {
	sessionCtx, endSession := context.WithCancel(context.WithoutCancel(ctx))
	defer endSession()
	serveCtx, endServing := context.WithCancelCause(ctx)
	defer endServing(nil)
	session := make(chan struct{})
	go func() {
		defer close(session)
		if err := p.handler.Run(sessionCtx); err != nil {
			endServing(fmt.Errorf("the ZooKeeper session ended for good: %w", err))
		}
	}()
	told := make(chan struct{})
	go func() {
		defer close(told)
		p.notifyReady(serveCtx)
	}()
	err := p.server.Run(serveCtx)
	endServing(err)
	<-told // a reload that is under way ends first: STOPPING is the last word
	p.notify(daemon.SdNotifyStopping)
	endSession()
	select {
	case <-session:
	case <-time.After(sessionEndTimeout):
		p.log.Warn("the ZooKeeper session did not close in time", zap.Duration("after", sessionEndTimeout))
	}
	return err
}

// notifyReady tells systemd once every address listens; ZooKeeper may still be
// away, which is answered, not waited for. From then on reloads are served: before
// that systemd would take the end of one for the start's.
func (p *parts) notifyReady(ctx context.Context) {
	select {
	case <-p.server.Ready():
	case <-ctx.Done():
		return
	}
	p.notify(daemon.SdNotifyReady + "\nSTATUS=" + p.listening())
	if p.reload == nil {
		return
	}
	p.reload.Notify(func() {
		p.notify(daemon.SdNotifyReloading + "\n" + daemon.SdNotifyMonotonicUsec())
	}, func(status string) {
		if status == "" {
			status = p.listening()
		}
		p.notify(daemon.SdNotifyReady + "\nSTATUS=" + strings.Join(strings.Fields(status), " "))
	})
	stop := p.reload.Serve(ctx)
	<-ctx.Done()
	stop()
}

func (p *parts) listening() string {
	var on []string
	for _, a := range p.server.Addrs() {
		on = append(on, net.Addr.String(a))
	}
	return fmt.Sprintf("listening on %v", on)
}

// adoptable are the keys that a running pvcapid adopts; of keys and certificates
// the content of the files, too.
var adoptable = []string{"log.level", "api.keys_file", "api.tls", "api.protect_all"}

// readAgain is what a reload does. What the server was started with and cannot
// change stays as it is in what the server is told.
func (p *parts) readAgain(started settings.API, level zap.AtomicLevel) settings.ReadAgain {
	return func(path string) (settings.Inspection, func() error, error) {
		s, inspection, err := settings.InspectAPI(path, os.Environ())
		if err != nil {
			return inspection, nil, err
		}
		next := started
		next.API.KeysFile, next.API.TLS, next.API.ProtectAll = s.API.KeysFile, s.API.TLS, s.API.ProtectAll
		return inspection, func() error {
			if err := p.server.Reload(apiConfig(next)); err != nil {
				return err
			}
			return level.UnmarshalText([]byte(s.Log.Level))
		}, nil
	}
}

func (p *parts) notify(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		p.log.Warn("telling systemd failed", zap.Error(err))
	}
}
