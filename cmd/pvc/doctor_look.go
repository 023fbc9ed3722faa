package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"pvc.internal/agent"
	"pvc.internal/cluster"
	"pvc.internal/cmd/settings"
	"pvc.internal/doctor"
	"pvc.internal/fencing"
	"pvc.internal/peer"
	"pvc.internal/router/guard"
	"pvc.internal/zkhandler"
)

// The limits of single checks; they run beside each other.
const (
	filesLimit   = 1500 * time.Millisecond
	serversLimit = 1500 * time.Millisecond
	unitsLimit   = 2 * time.Second
	recordsLimit = 3 * time.Second
)

// examine looks at the node whose settings stand in the file.
func examine(ctx context.Context, file string) doctor.Report {
	s, err := begin(ctx, filesLimit, func(context.Context) (settings.Node, error) { return loadNode(file) })()
	if err != nil {
		findings := doctor.File(doctor.Settings{File: file, Refusals: strings.Split(err.Error(), "\n")})
		for _, check := range []string{doctor.CheckStore, doctor.CheckAccess, doctor.CheckCluster, doctor.CheckClocks, doctor.CheckFencing,
			doctor.CheckSecrets, doctor.CheckCerts, doctor.CheckWatchdog, doctor.CheckUnits, doctor.CheckLeftovers} {
			findings = append(findings, doctor.NotMade(check, "", "the settings that it rests on are not taken"))
		}
		return doctor.NewReport("", "", findings)
	}
	servers := begin(ctx, serversLimit, func(ctx context.Context) ([]zkhandler.ServerReport, error) { return askServers(ctx, s) })
	reading, stopReading := context.WithCancel(ctx)
	defer stopReading()
	tree := begin(reading, recordsLimit, func(ctx context.Context) (treeRead, error) { return readTree(ctx, s) })
	key := begin(ctx, filesLimit, func(context.Context) (doctor.Key, error) { return keyOf(s), nil })
	certificate := begin(ctx, filesLimit, func(context.Context) (doctor.Certificate, error) { return certificateOf(s), nil })
	more := begin(ctx, filesLimit, func(context.Context) ([]doctor.CertFile, error) { return certFilesOf(file, s), nil })
	watchdog := begin(ctx, filesLimit, func(context.Context) (doctor.Watchdog, error) { return watchdogOf(s), nil })
	beside := begin(ctx, filesLimit, func(context.Context) ([]doctor.Finding, error) { return besides(file, s), nil })
	units := begin(ctx, unitsLimit, func(ctx context.Context) ([]doctor.Unit, error) { return unitsOf(ctx, s) })

	findings := doctor.File(fileOf(file, s))
	take := func(check string, found []doctor.Finding, err error) {
		if err != nil {
			found = []doctor.Finding{doctor.NotMade(check, "", "it could not be looked at: %v", err)}
		}
		findings = append(findings, found...)
	}
	found, err := beside()
	take(doctor.CheckSettings, found, err)
	reports, err := servers()
	if err == nil && !anyServes(reports) {
		stopReading() // no use in waiting for a session
	}
	read, readErr := tree()
	take(doctor.CheckStore, doctor.Store(serversOf(reports), read.granted, s.Timing, optionsOf(s)), err)
	records := judgeRecords(s, read, readErr, take)
	d, err := begin(ctx, filesLimit, func(context.Context) ([]doctor.Device, error) { return devicesOf(s, read.secrets, readErr), nil })()
	take(doctor.CheckFencing, doctor.Fencing(doctor.Fences{Devices: d, Self: s.Node.Name, DeadProof: s.Role.RequireDeadProof,
		TestEvery: oldestTest(s.Fencing.TestSchedule), NowMS: time.Now().UnixMilli()}, records), err)
	k, err := key()
	take(doctor.CheckSecrets, doctor.Secrets(k), err)
	cert, err := certificate()
	take(doctor.CheckCerts, doctor.Certificates(cert), err)
	files, err := more()
	take(doctor.CheckCerts, doctor.CertFiles(files, time.Now()), err)
	w, err := watchdog()
	take(doctor.CheckWatchdog, doctor.Watchdogs(w, records), err)
	u, err := units()
	take(doctor.CheckUnits, doctor.Units(u), err)
	// Read after the records: an address that was left a moment before they
	// were read would else be taken for a leftover.
	here, err := begin(ctx, filesLimit, func(context.Context) ([]doctor.Address, error) { return addressesOf(s) })()
	take(doctor.CheckLeftovers, doctor.Addresses(s.Node.Name, here, records), err)
	left, err := begin(ctx, filesLimit, func(context.Context) (leftHere, error) { return lookForLeft(s, u) })()
	take(doctor.CheckLeftovers, doctor.LeftRunning(s.Node.Name, left.running, records), err)
	if err == nil && left.gate.Table != "" {
		take(doctor.CheckLeftovers, doctor.Gates(left.gate), nil)
	}
	return doctor.NewReport(string(s.Node.Name), s.Cluster.Name, findings)
}

// judgeRecords adds what follows from the records alone; it returns nil where
// they could not be read.
func judgeRecords(s settings.Node, read treeRead, err error, take func(string, []doctor.Finding, error)) *doctor.Records {
	access := read.access
	access.Identity = identityOf(s)
	if err != nil {
		access.Tree = err.Error()
		take(doctor.CheckAccess, doctor.Accesses(access), nil)
		take(doctor.CheckCluster, nil, err)
		take(doctor.CheckClocks, nil, err)
		return nil
	}
	r := read.records
	r.Remembers = remembered(s)
	take(doctor.CheckAccess, doctor.Accesses(access), nil)
	take(doctor.CheckCluster, doctor.Cluster(r), nil)
	take(doctor.CheckCluster, doctor.Members(r), nil)
	take(doctor.CheckClocks, doctor.Clocks(r), nil)
	take(doctor.CheckLeftovers, doctor.Locks(r), nil)
	take(doctor.CheckSettings, doctor.OtherNodes(s.Node.Name, r), nil)
	return &r
}

func optionsOf(s settings.Node) cluster.TimingOptions {
	return cluster.TimingOptions{Gate: s.Role.Gate, Failsafe: s.Role.Failsafe}
}

// loadNode reads the settings as the daemon does, every refusal a line.
func loadNode(file string) (settings.Node, error) {
	s, err := settings.LoadNode(file)
	if err != nil {
		return s, err
	}
	var refusals []error
	if err := s.FencingConfig().Validate(); err != nil {
		refusals = append(refusals, err)
	}
	if err := agent.CheckSchedule(s.Fencing.TestSchedule); err != nil {
		refusals = append(refusals, fmt.Errorf("fencing.test_schedule: %w", err))
	}
	return s, errors.Join(refusals...)
}

func fileOf(file string, s settings.Node) doctor.Settings {
	timing, _ := s.Timing.Validate(optionsOf(s))
	facts := doctor.Settings{File: file, Timing: timing,
		Words: fmt.Sprintf("node %s (%s) of cluster %s, timing %s", s.Node.Name, s.Node.Mode, s.Cluster.Name, s.Profile)}
	for _, w := range s.Warnings {
		if !slices.Contains(timing, w) {
			facts.Warnings = append(facts.Warnings, w)
		}
	}
	return facts
}

// besides compares pvcapid's settings, where they stand beside this node's.
func besides(file string, s settings.Node) []doctor.Finding {
	other := filepath.Join(filepath.Dir(file), "pvcapid.yaml")
	if s.Node.Mode != cluster.Coordinator || !isThere(other) {
		return nil
	}
	a, err := settings.LoadAPI(other)
	if err != nil {
		return doctor.File(doctor.Settings{File: other, Refusals: strings.Split(err.Error(), "\n")})
	}
	var differ []string
	compare := func(key string, same bool, here, there any) {
		if !same {
			differ = append(differ, fmt.Sprintf("%s is %v, and %v in %s", key, there, here, file))
		}
	}
	compare("cluster.name", a.Cluster == s.Cluster, s.Cluster.Name, a.Cluster.Name)
	compare("node.name", a.Node.Name == s.Node.Name, s.Node.Name, a.Node.Name)
	compare("zookeeper.root", a.ZooKeeper.Root == s.ZooKeeper.Root, s.ZooKeeper.Root, a.ZooKeeper.Root)
	compare("zookeeper.auth.user", a.ZooKeeper.Auth.User == s.ZooKeeper.Auth.User, s.ZooKeeper.Auth.User, a.ZooKeeper.Auth.User)
	compare("the number of zookeeper.servers", len(a.ZooKeeper.Servers) == len(s.ZooKeeper.Servers), len(s.ZooKeeper.Servers), len(a.ZooKeeper.Servers))
	compare("timing (profile "+a.Profile+")", a.Timing == s.Timing, "another (profile "+s.Profile+")", "as it stands")
	return doctor.Differ(other, differ)
}

// devicesOf looks at every fence device as an attempt on this node would use
// it. secrets are the sealed passwords that ZooKeeper keeps, or why those are
// not known.
func devicesOf(s settings.Node, secrets map[string]string, unread error) []doctor.Device {
	config := s.FencingConfig().WithSecrets(func(_ context.Context, name string) (string, error) { return sealedIn(secrets, name) })
	names := make([]string, 0, len(config.Nodes))
	for name := range config.Nodes {
		names = append(names, name)
	}
	slices.Sort(names)
	var devices []doctor.Device
	for _, name := range names {
		for _, level := range config.Nodes[name].Levels {
			for _, d := range level {
				device := doctor.Device{Node: cluster.NodeID(name), Name: d.Name, Type: string(d.Type), Agent: d.Agent, Leak: d.Leak(), Exposed: d.Exposed()}
				switch sealed := d.PasswordSealed != "" || d.PasswordSecret != ""; {
				case sealed && keyOf(s).Trouble != "": // which is said once, by itself
				case d.PasswordSecret != "" && unread != nil:
					device.Hidden = fmt.Sprintf("ZooKeeper keeps it, as %q, and could not be read", d.PasswordSecret)
				default:
					device.Trouble, device.Hidden = troubleOf(d.CheckPassword())
				}
				devices = append(devices, device)
			}
		}
	}
	return devices
}

// sealedIn finds a sealed password among those that ZooKeeper keeps.
func sealedIn(secrets map[string]string, name string) (string, error) {
	text, there := secrets[name]
	if !there {
		return "", fmt.Errorf("%w: there is none of that name; store it by `pvc fence secret set %s`", cluster.ErrNotFound, name)
	}
	secret, err := cluster.DecodeSecret(text)
	return secret.Sealed, err
}

// troubleOf tells what is wrong from what only root may see.
func troubleOf(err error) (trouble, hidden string) {
	switch {
	case err == nil:
		return "", ""
	case errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0:
		return "", err.Error()
	}
	return err.Error(), ""
}

func keyOf(s settings.Node) doctor.Key {
	key := doctor.Key{File: s.Fencing.Secrets.KeyFile}
	for _, n := range s.Fencing.Nodes {
		for _, level := range n.Levels {
			key.Needed = key.Needed || slices.ContainsFunc(level, func(d settings.Device) bool { return d.PasswordSealed != "" || d.PasswordSecret != "" })
		}
	}
	if key.File != "" {
		_, err := fencing.Recipient(key.File)
		key.Trouble, key.Hidden = troubleOf(err)
	}
	return key
}

func certificateOf(s settings.Node) doctor.Certificate {
	files := s.Peer.Files()
	c := doctor.Certificate{Set: s.Peer.Set(), File: files.Cert, KeyFile: files.Key}
	if !c.Set {
		return c
	}
	id, err := peer.LoadIdentity(files, s.Cluster.Name, s.Node.Name, nil)
	if c.Trouble, c.Hidden = troubleOf(err); err != nil {
		return c
	}
	e := id.Expiry(time.Now())
	c.Name, c.Expiry, c.Left = id.Name().String(), e.Text, e.Left
	if info, err := os.Stat(files.Key); err == nil {
		c.KeyMode = uint32(info.Mode().Perm())
	}
	return c
}

// watchdogOf looks at the device without opening it, which would start it.
func watchdogOf(s settings.Node) doctor.Watchdog {
	w := doctor.Watchdog{Path: s.Watchdog.Device, TrustSoft: s.Watchdog.TrustSoft, Self: s.Node.Name,
		SelfFence: s.SelfFence == settings.SelfFenceWatchdog, FailedFence: s.Fencing.FailedFence == string(fencing.PolicyMigrate)}
	if w.Path == "" {
		return w
	}
	info, err := fencing.NewWatchdogDevice(fencing.WatchdogOptions{Path: w.Path}).Info()
	if w.Info = info; err != nil {
		w.Trouble = err.Error()
	}
	return w
}

func addressesOf(s settings.Node) ([]doctor.Address, error) {
	here, err := guard.MarkedAddresses()
	if err != nil {
		return nil, err
	}
	var found []doctor.Address
	for _, k := range here {
		floating := slices.ContainsFunc(s.Addresses, func(a cluster.FloatingAddress) bool { return a.Prefix.Addr() == k.Prefix.Addr() })
		if floating || k.Ours {
			found = append(found, doctor.Address{CIDR: k.Prefix.String(), Interface: k.Interface, Ours: k.Ours, Floating: floating})
		}
	}
	return found, nil
}

// oldestTest is how old the newest test of a device may be where it is made by
// the schedule: twice the time between two, and what they take.
func oldestTest(schedule string) time.Duration {
	const takes = 10 * time.Minute
	every := map[string]time.Duration{"@hourly": time.Hour, "@daily": 24 * time.Hour, "@midnight": 24 * time.Hour, "@weekly": 7 * 24 * time.Hour}[schedule]
	if text, ok := strings.CutPrefix(schedule, "@every "); ok {
		every, _ = time.ParseDuration(text)
	}
	if every <= 0 {
		return 0 // an expression of cron's: its age is told, and not judged
	}
	return 2*every + takes
}
