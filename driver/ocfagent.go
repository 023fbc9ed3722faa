package driver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
	"pvc.internal/proc"
)

const (
	// metadataTimeout bounds an agent's meta-data action.
	metadataTimeout = 10 * time.Second
	// metadataPause is how long an agent of whose metadata nothing came is not asked
	// for them again.
	metadataPause = 10 * time.Second
)

// ocfAgent is an OCF resource agent that is installed here.
type ocfAgent struct {
	provider, kind string // heartbeat, Dummy
	path           string
	meta           *ocfMetadata
}

func (a *ocfAgent) String() string { return a.provider + ":" + a.kind }

// agentWord is one part of an agent's name: a folder's or a file's name that
// leads nowhere else.
var agentWord = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`)

// parseAgentName reads "heartbeat:Dummy", or "ocf:heartbeat:Dummy".
func parseAgentName(name string) (provider, kind string, err error) {
	words := strings.Split(strings.TrimPrefix(name, "ocf:"), ":")
	if len(words) != 2 || !agentWord.MatchString(words[0]) || !agentWord.MatchString(words[1]) {
		return "", "", fmt.Errorf("agent %q is no OCF agent's name: write provider:type, as in heartbeat:Dummy: %w", name, cluster.ErrRefused)
	}
	return words[0], words[1], nil
}

// agentFile is what tells one state of an agent's file from another.
type agentFile struct {
	inode         uint64
	size          int64
	mtime, change unix.Timespec
}

// ocfAgents finds agents, and keeps what they have said of themselves for as
// long as their files stay as they are.
type ocfAgents struct {
	root string
	mu   sync.Mutex
	kept map[string]keptAgent
}

type keptAgent struct {
	file  agentFile
	meta  *ocfMetadata
	err   error // then there are none
	asked time.Time
}

func newOCFAgents(root string) *ocfAgents {
	return &ocfAgents{root: root, kept: map[string]keptAgent{}}
}

// find returns the agent of this name, with its metadata.
func (l *ocfAgents) find(ctx context.Context, name string) (*ocfAgent, error) {
	provider, kind, err := parseAgentName(name)
	if err != nil {
		return nil, err
	}
	a := &ocfAgent{provider: provider, kind: kind, path: filepath.Join(l.root, "resource.d", provider, kind)}
	file, err := l.look(a)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	kept, known := l.kept[a.path]
	l.mu.Unlock()
	if known && kept.file == file && (kept.err == nil || time.Since(kept.asked) < metadataPause) {
		a.meta = kept.meta
		return a, kept.err
	}
	if a.meta, err = l.ask(ctx, a); err != nil && ctx.Err() != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.kept[a.path] = keptAgent{file: file, meta: a.meta, err: err, asked: time.Now()} // as it was before it was asked
	return a, err
}

// look reports what is wrong with the agent's file.
func (l *ocfAgents) look(a *ocfAgent) (agentFile, error) {
	var st unix.Stat_t
	if err := unix.Stat(a.path, &st); err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			return agentFile{}, fmt.Errorf("look at OCF agent %s: %w", a.path, err)
		}
		return agentFile{}, fmt.Errorf("OCF agent %s is not installed on this node (there is no %s): install its package (resource-agents has most)%s: %w",
			a, a.path, l.instead(a), cluster.ErrNotFound)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o111 == 0:
		return agentFile{}, fmt.Errorf("OCF agent %s: %s is no program: %w", a, a.path, cluster.ErrRefused)
	case st.Mode&0o002 != 0:
		return agentFile{}, fmt.Errorf("OCF agent %s: anybody may write to %s, which would be run as root: chmod o-w %s: %w", a, a.path, a.path, cluster.ErrRefused)
	}
	return agentFile{inode: st.Ino, size: st.Size, mtime: st.Mtim, change: st.Ctim}, nil
}

// instead names agents that may be meant.
func (l *ocfAgents) instead(a *ocfAgent) string {
	var same []string
	providers, _ := os.ReadDir(filepath.Join(l.root, "resource.d"))
	for _, p := range providers {
		agents, _ := os.ReadDir(filepath.Join(l.root, "resource.d", p.Name()))
		for _, f := range agents {
			if strings.EqualFold(f.Name(), a.kind) {
				same = append(same, p.Name()+":"+f.Name())
			}
		}
	}
	if len(same) == 0 {
		return ""
	}
	slices.Sort(same)
	return "; is " + strings.Join(same, " or ") + " meant?"
}

// ask has the agent print its metadata. It does so in this process's own group:
// that changes nothing, and needs no right.
func (l *ocfAgents) ask(ctx context.Context, a *ocfAgent) (*ocfMetadata, error) {
	env := map[string]string{"OCF_ROOT": l.root, "OCF_RESOURCE_INSTANCE": a.kind, "OCF_RESOURCE_TYPE": a.kind, "OCF_RESOURCE_PROVIDER": a.provider,
		"OCF_RA_VERSION_MAJOR": "1", "OCF_RA_VERSION_MINOR": "1"}
	r, err := proc.Run(ctx, proc.Command{Argv: []string{a.path, "meta-data"}, Env: env, Timeout: metadataTimeout, OutputLimit: maxMetadata + 1})
	switch {
	case err != nil:
		return nil, fmt.Errorf("ask OCF agent %s for its metadata: %w", a, err)
	case r.ExitCode != 0:
		return nil, fmt.Errorf("ask OCF agent %s for its metadata: %w", a, ocfFault{code: r.ExitCode, signal: r.Signal, reason: exitReason(r.Stderr)})
	}
	meta, err := parseMetadata(r.Stdout)
	if err != nil {
		return nil, fmt.Errorf("the metadata of OCF agent %s (%s meta-data) are of no use: %w", a, a.path, err)
	}
	return meta, nil
}

// timeout is how long an action of the workload's agent may take.
func (a *ocfAgent) timeout(w cluster.Workload, action string) time.Duration {
	if own, ok := w.Params[timeoutParam+action]; ok && !a.takes(timeoutParam+action) {
		if d, err := parseOCFDuration(own); err == nil && d > 0 {
			return boundedOCF(d)
		}
	}
	if known, ok := a.meta.actions[action]; ok {
		return known.timeout
	}
	return defaultOCFTimeout
}

// The limits of an agent's notify, where the workload says none (timeout_notify), and
// the longest that it may say. What is told delays what it is told of.
const (
	ownNotifyLimit     = 5 * time.Second // of what is done to this very copy
	otherNotifyLimit   = time.Second     // of what is done to another one, which a failover may wait for
	longestNotifyLimit = 10 * time.Second
)

// notifyLimit is how long the agent may take to be told of what happens, usually so
// long at most.
func (a *ocfAgent) notifyLimit(w cluster.Workload, usual time.Duration) time.Duration {
	if _, own := w.Params[timeoutParam+"notify"]; own {
		usual = longestNotifyLimit
	}
	return min(a.timeout(w, "notify"), usual)
}

// takes reports whether the agent has a parameter of this name.
func (a *ocfAgent) takes(name string) bool {
	_, ok := a.meta.parameters[name]
	return ok
}

// The driver's own parameters, where the agent has none of that name.
const (
	timeoutParam    = "timeout_"    // and an action's name: how long it may take
	checkLevelParam = "check_level" // how deep a monitor looks (OCF_CHECK_LEVEL)
)

// able reports what the workload needs and the agent does not announce.
func (a *ocfAgent) able(w cluster.Workload) error {
	switch {
	case w.Kind == cluster.WorkloadReplicated && !a.meta.announces("promote", "demote"):
		return fmt.Errorf("OCF agent %s knows neither promote nor demote: as a movable workload it can be run: %w", a, cluster.ErrRefused)
	case w.Live && !a.meta.announces("migrate_to", "migrate_from"):
		return fmt.Errorf("OCF agent %s does not know both migrate_to and migrate_from: without live it can be run, and is stopped and started where it is moved: %w", a, cluster.ErrRefused)
	}
	return nil
}

// checkParams reports parameters that the agent does not know, that miss, or whose
// values are not what it takes.
func (a *ocfAgent) checkParams(w cluster.Workload) error {
	var faults []string
	for _, name := range sortedKeys(w.Params) {
		if fault := a.checkParam(name, w.Params[name]); fault != "" {
			faults = append(faults, fault)
		}
	}
	for _, name := range sortedKeys(a.meta.parameters) {
		if _, given := w.Params[name]; a.meta.parameters[name].required && !given {
			faults = append(faults, fmt.Sprintf("it misses parameter %q", name))
		}
	}
	if len(faults) == 0 {
		return nil
	}
	return fmt.Errorf("OCF agent %s: %s; the agent takes: %s: %w", a, strings.Join(faults, "; "), a.known(), cluster.ErrRefused)
}

func (a *ocfAgent) checkParam(name, value string) string {
	p, ok := a.meta.parameters[name]
	switch {
	case !ok && strings.HasPrefix(name, timeoutParam):
		action := strings.TrimPrefix(name, timeoutParam)
		d, err := parseOCFDuration(value)
		switch {
		case !a.meta.announces(action):
			return fmt.Sprintf("it has no action %q, of which parameter %q would be the limit", action, name)
		case err != nil:
			return fmt.Sprintf("parameter %q: %v", name, err)
		case d != boundedOCF(d):
			return fmt.Sprintf("parameter %q is not within %v–%v", name, leastOCFTimeout, longestOCFTimeout)
		}
	case !ok && name == checkLevelParam:
		if !isInteger(value) {
			return fmt.Sprintf("parameter %q is %q, not a number", name, value)
		}
	case !ok:
		return fmt.Sprintf("it does not know parameter %q", name)
	case p.kind == "integer" && !isInteger(value):
		return fmt.Sprintf("parameter %q is %q, not a whole number", name, value)
	case p.kind == "boolean" && !ocfTrue(value) && !ocfFalse(value):
		return fmt.Sprintf("parameter %q is %q, not true or false", name, value)
	case p.required && value == "":
		return fmt.Sprintf("parameter %q is empty, and it needs one", name)
	}
	return ""
}

var integerText = regexp.MustCompile(`^[+-]?[0-9]+$`)

func isInteger(value string) bool { return integerText.MatchString(value) }

// known lists the agent's parameters for people.
func (a *ocfAgent) known() string {
	var words []string
	for _, name := range sortedKeys(a.meta.parameters) {
		switch p := a.meta.parameters[name]; {
		case p.required:
			words = append(words, name+" (needed)")
		case p.deprecated:
		default:
			words = append(words, name)
		}
	}
	words = append(words, timeoutParam+"<action>", checkLevelParam)
	return strings.Join(words, ", ")
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
