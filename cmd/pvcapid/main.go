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
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"go.uber.org/zap"

	"pvc.internal/api"
	"pvc.internal/cluster"
	"pvc.internal/cmd/settings"
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
	// A log that nobody reads any more must not end a daemon.
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
	return serveFile(ctx, *path, *check, stderr)
}

func serveFile(ctx context.Context, path string, checkOnly bool, stderr io.Writer) int {
	fail := func(code int, err error) int {
		fmt.Fprintln(stderr, "pvcapid:", err)
		return code
	}
	s, err := settings.LoadAPI(path)
	if err != nil {
		return fail(exitSettings, err)
	}
	log, err := settings.NewLogger(s.Log)
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
	if checkOnly {
		return exitOK
	}
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
	server, err := api.New(apiConfig(s), api.Deps{Store: handler, Details: handler, Initializer: handler, Texts: handler, Secrets: handler, Faults: faults{handler}, Clock: clock}, log.Named("api"), registry)
	if err != nil {
		return nil, err
	}
	return &parts{handler, server, log}, nil
}

func apiConfig(s settings.API) api.Config {
	l := s.API
	return api.Config{
		Listen: l.Listen, Auth: l.Auth, KeysFile: l.KeysFile, ProtectAll: l.ProtectAll,
		TLS:  api.TLSFiles{Cert: l.TLS.Cert, Key: l.TLS.Key, ClientCA: l.TLS.ClientCA},
		Node: s.Node.Name, ClusterName: s.Cluster.Name, Version: version, Timing: s.Timing,
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
	go p.notifyReady(serveCtx)
	err := p.server.Run(serveCtx)
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
// away, which is answered, not waited for.
func (p *parts) notifyReady(ctx context.Context) {
	select {
	case <-p.server.Ready():
	case <-ctx.Done():
		return
	}
	var on []string
	for _, a := range p.server.Addrs() {
		on = append(on, net.Addr.String(a))
	}
	p.notify(daemon.SdNotifyReady + fmt.Sprintf("\nSTATUS=listening on %v", on))
}

func (p *parts) notify(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		p.log.Warn("telling systemd failed", zap.Error(err))
	}
}
