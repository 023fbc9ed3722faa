package pvc_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"
)

const module = "pvc.internal/"

// layers maps each folder, longest match first, to what it may import of ours.
// Arrows point down only; a package may always import what lies below it.
var layers = []struct {
	dir     string
	imports []string
}{
	{"cmd/settings", []string{"cluster", "zkhandler", "fencing", "router", "api", "agent", "peer"}},
	{"cmd", []string{"*"}},
	{"sandbox", []string{"*"}},
	{"acceptance", []string{"*"}},
	{"agent/role", []string{"cluster"}},
	{"agent/detector", []string{"cluster"}},
	{"agent/failover", []string{"cluster"}},
	{"agent/failsafe", []string{"cluster"}},
	{"agent/lease", []string{"cluster"}},
	{"agent/membership", []string{"cluster"}},
	{"agent/janitor", []string{"cluster"}},
	{"agent/placement", []string{"cluster"}},
	{"agent/subtask", []string{"cluster"}},
	{"agent/activity", []string{"cluster", "agent/subtask"}},
	{"agent", []string{"cluster", "agent", "proc"}},
	{"api", []string{"cluster", "api", "doctor"}},
	{"doctor", []string{"cluster", "doctor"}},
	{"zkhandler", []string{"cluster", "zkhandler"}},
	{"router", []string{"cluster", "router", "proc"}},
	{"fencing", []string{"cluster", "fencing", "proc"}},
	{"driver", []string{"cluster", "driver", "proc"}},
	{"peer", []string{"cluster", "peer"}},
	{"proc", []string{"cluster"}},
	{"cluster", nil},
}

// contained maps a third party's path, or its beginning, to where alone it may
// be imported: folders, or a file by its full name, or "*_linux.go" below one.
var contained = map[string][]string{
	"github.com/go-zookeeper/zk":       {"zkhandler"},
	"github.com/spf13/viper":           {"cmd"},
	"github.com/urfave/cli":            {"cmd"},
	"github.com/robfig/cron":           {"agent/schedule.go"},
	"github.com/redis/go-redis":        {"driver", "sandbox/bench"},
	"github.com/vishvananda/netlink":   {"router/*_linux.go", "sandbox/*_linux.go"},
	"github.com/vishvananda/netns":     {"router/*_linux.go", "sandbox/*_linux.go"},
	"github.com/google/nftables":       {"router/*_linux.go"},
	"github.com/mdlayher":              {"router/*_linux.go"},
	"github.com/prometheus":            {"metrics.go", "cmd", "zkhandler", "api"},
	"github.com/bougou/go-ipmi":        {"fencing", "sandbox"},
	"github.com/danielgtaylor/huma":    {"api"},
	"filippo.io/age":                   {"fencing", "cmd"},
	"github.com/coreos/go-systemd":     {"cmd", "router", "driver/systemd.go", "agent/sdnotify.go"},
	"github.com/jedib0t/go-pretty":     {"cmd", "sandbox"},
	"github.com/go-viper/mapstructure": {"cmd"},
}

// pureFolders hold state machines only: no goroutine, channel, clock or I/O.
var pureFolders = []string{"agent/role", "agent/detector", "agent/failover", "agent/failsafe", "agent/lease", "agent/membership", "agent/janitor", "agent/placement", "doctor"}

// pureFiles are as pure, within packages that are not.
var pureFiles = []string{"agent/activity/preconditions.go", "router/plan.go", "router/phase.go", "router/announce.go", "fencing/machine.go", "fencing/topology.go", "fencing/proof.go", "fencing/feeding.go"}

// diskFiles are what such a folder has of I/O, each for one thing.
var diskFiles = []string{"agent/lease/disk.go"}

// impure are the standard packages that a pure file has no use for.
var impure = []string{"context", "io", "log", "log/slog", "math/rand", "math/rand/v2", "net/http", "os", "os/exec", "os/signal", "runtime", "sync", "sync/atomic", "syscall", "unsafe"}

// impureCalls are the clock, and I/O in packages that also have plain types.
var impureCalls = []string{"time.Now", "time.Since", "time.Until", "time.Sleep", "time.After", "time.AfterFunc", "time.NewTimer",
	"time.NewTicker", "time.Tick", "net.Dial", "net.DialTimeout", "net.Listen", "net.Interfaces", "net.InterfaceByName",
	"net.InterfaceByIndex", "net.InterfaceAddrs", "net.LookupHost", "net.LookupIP"}

// forbidden are folder names that say nothing of what is inside.
var forbidden = []string{"util", "utils", "common", "helper", "helpers", "types", "pkg", "misc", "lib"}

// longest is how many lines a function may have; a table in a test may have more.
const longest = 80

// source is one parsed file of the tree.
type source struct {
	path   string // slashed, from the root
	file   *ast.File
	fset   *token.FileSet
	isTest bool
}

func (s source) dir() string {
	if d := filepath.ToSlash(filepath.Dir(s.path)); d != "." {
		return d
	}
	return ""
}

func (s source) imports() []string {
	var list []string
	for _, i := range s.file.Imports {
		if path, err := strconv.Unquote(i.Path.Value); err == nil {
			list = append(list, path)
		}
	}
	return list
}

// tree parses every Go file of the module.
func tree(t *testing.T) []source {
	t.Helper()
	var all []source
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); path != "." && (strings.HasPrefix(name, ".") || name == "testdata" || name == "bin" || name == "tools") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		all = append(all, source{filepath.ToSlash(path), file, fset, strings.HasSuffix(path, "_test.go")})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func within(dir, parent string) bool { return dir == parent || strings.HasPrefix(dir, parent+"/") }

func TestLayers(t *testing.T) {
	for _, s := range tree(t) {
		if s.dir() == "" {
			continue
		}
		for _, path := range s.imports() {
			ours, ok := strings.CutPrefix(path, module)
			if ok && !mayImport(s, ours) {
				t.Errorf("%s imports %s, which the layer table does not allow", s.path, path)
			}
		}
	}
}

// mayImport consults the table. A test may also use what it tests with: the
// in-memory ZooKeeper and the client for it, the network in memory and who talks
// over it, the simulated BMC, golden scripts
// and, for what rests on its judgement, the detector.
func mayImport(s source, ours string) bool {
	for _, l := range layers {
		if !within(s.dir(), l.dir) {
			continue
		}
		allowed := l.imports
		if s.isTest {
			allowed = append(slices.Clone(allowed), "zkhandler", "sandbox/bmc", "agent/detector", "peer", "proc", l.dir)
			if l.dir == "driver" { // copies run under the guard itself
				allowed = append(allowed, "router")
			}
		}
		return slices.ContainsFunc(allowed, func(a string) bool { return a == "*" || within(ours, a) }) || within(ours, s.dir())
	}
	return false
}

func TestEveryFolderHasALayer(t *testing.T) {
	for _, s := range tree(t) {
		known := s.dir() == "" || slices.ContainsFunc(layers, func(l struct {
			dir     string
			imports []string
		}) bool {
			return within(s.dir(), l.dir)
		})
		if !known {
			t.Errorf("%s stands in no layer: add its folder to the table", s.path)
		}
	}
}

func TestThirdPartiesAreContained(t *testing.T) {
	for _, s := range tree(t) {
		if s.isTest {
			continue
		}
		for _, path := range s.imports() {
			for prefix, places := range contained {
				if strings.HasPrefix(path, prefix) && !allowedAt(s, places) {
					t.Errorf("%s imports %s, which belongs in %s", s.path, path, strings.Join(places, ", "))
				}
			}
		}
	}
}

func allowedAt(s source, places []string) bool {
	return slices.ContainsFunc(places, func(place string) bool {
		dir, name := filepath.Split(place)
		switch {
		case strings.HasPrefix(name, "*"):
			return within(s.dir(), strings.TrimSuffix(dir, "/")) && strings.HasSuffix(s.path, name[1:])
		case dir == "" && strings.HasSuffix(name, ".go"):
			return filepath.Base(s.path) == name
		case strings.HasSuffix(name, ".go"):
			return s.path == place
		}
		return within(s.dir(), place)
	})
}

func TestClusterImportsTheStandardLibraryOnly(t *testing.T) {
	for _, s := range tree(t) {
		if s.dir() != "cluster" || s.isTest {
			continue
		}
		for _, path := range s.imports() {
			if first, _, _ := strings.Cut(path, "/"); strings.Contains(first, ".") {
				t.Errorf("%s imports %s", s.path, path)
			}
		}
	}
}

func TestPureFilesArePure(t *testing.T) {
	for _, s := range tree(t) {
		pure := slices.Contains(pureFiles, s.path) || slices.Contains(pureFolders, s.dir())
		if !pure || s.isTest || slices.Contains(diskFiles, s.path) {
			continue
		}
		for _, path := range s.imports() {
			third := strings.Contains(strings.SplitN(path, "/", 2)[0], ".") && !strings.HasPrefix(path, module)
			if third || slices.Contains(impure, path) {
				t.Errorf("%s is pure and yet imports %s", s.path, path)
			}
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if what := impurity(n); what != "" {
				t.Errorf("%s is pure and yet has %s", s.fset.Position(n.Pos()), what)
			}
			return true
		})
	}
}

// impurity names what a pure file must not have.
func impurity(n ast.Node) string {
	switch x := n.(type) {
	case *ast.GoStmt:
		return "a goroutine"
	case *ast.ChanType:
		return "a channel"
	case *ast.SelectStmt:
		return "a select"
	case *ast.SelectorExpr:
		pkg, ok := x.X.(*ast.Ident)
		if !ok || pkg.Obj != nil {
			return ""
		}
		if name := pkg.Name + "." + x.Sel.Name; slices.Contains(impureCalls, name) {
			return name
		}
	}
	return ""
}

func TestPackagesHaveComments(t *testing.T) {
	documented := map[string]bool{}
	for _, s := range tree(t) {
		if s.isTest {
			continue
		}
		documented[s.dir()] = documented[s.dir()] || s.file.Doc != nil
	}
	for dir, ok := range documented {
		if !ok {
			t.Errorf("package in %q has no package comment", dir)
		}
	}
}

func TestExportedNamesHaveComments(t *testing.T) {
	for _, s := range tree(t) {
		if s.isTest {
			continue
		}
		for _, d := range s.file.Decls {
			for _, name := range undocumented(d) {
				t.Errorf("%s: %s has no comment", s.fset.Position(d.Pos()), name)
			}
		}
	}
}

// undocumented lists the exported names of a declaration without a comment. A
// group's comment serves for all that are in it.
func undocumented(d ast.Decl) []string {
	switch x := d.(type) {
	case *ast.FuncDecl:
		if x.Name.IsExported() && x.Doc == nil && !isWellKnown(x) && exportedReceiver(x) {
			return []string{x.Name.Name}
		}
	case *ast.GenDecl:
		if x.Doc != nil || x.Tok == token.IMPORT {
			return nil
		}
		var names []string
		for _, spec := range x.Specs {
			switch s := spec.(type) {
			case *ast.TypeSpec:
				if s.Name.IsExported() && s.Doc == nil && s.Comment == nil {
					names = append(names, s.Name.Name)
				}
			case *ast.ValueSpec:
				if s.Names[0].IsExported() && s.Doc == nil && s.Comment == nil {
					names = append(names, s.Names[0].Name)
				}
			}
		}
		return names
	}
	return nil
}

// isWellKnown reports methods whose meaning their name fixes.
func isWellKnown(f *ast.FuncDecl) bool {
	return f.Recv != nil && slices.Contains([]string{"Error", "Unwrap", "Is", "String", "Len", "Less", "Swap", "Close", "Read", "Write",
		"ServeHTTP", "MarshalJSON", "UnmarshalJSON", "Now", "LocalAddr", "RemoteAddr", "SetDeadline", "SetReadDeadline", "SetWriteDeadline",
		"Describe", "Collect", "Unlock", "Lock"}, f.Name.Name)
}

func exportedReceiver(f *ast.FuncDecl) bool {
	if f.Recv == nil {
		return true
	}
	t := f.Recv.List[0].Type
	for {
		switch x := t.(type) {
		case *ast.StarExpr:
			t = x.X
		case *ast.IndexExpr:
			t = x.X
		case *ast.Ident:
			return x.IsExported()
		default:
			return false
		}
	}
}

func TestFunctionsAreShort(t *testing.T) {
	var lengths []int
	for _, s := range tree(t) {
		for _, d := range s.file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || f.Body == nil {
				continue
			}
			lines := s.fset.Position(f.End()).Line - s.fset.Position(f.Pos()).Line + 1
			if s.isTest {
				continue
			}
			lengths = append(lengths, lines)
			if lines > longest {
				t.Errorf("%s: %s has %d lines, more than %d", s.fset.Position(f.Pos()), f.Name.Name, lines, longest)
			}
		}
	}
	if sort.Ints(lengths); len(lengths) > 0 {
		t.Logf("%d functions: median %d lines, 95th percentile %d, longest %d",
			len(lengths), lengths[len(lengths)/2], lengths[len(lengths)*95/100], lengths[len(lengths)-1])
	}
}

func TestNoFolderIsNamedAfterNothing(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range tree(t) {
		for _, part := range strings.Split(s.dir(), "/") {
			if slices.Contains(forbidden, part) && !seen[s.dir()] {
				seen[s.dir()] = true
				t.Errorf("%s: %q says nothing of what is inside", s.dir(), part)
			}
		}
	}
}

// Only zkhandler knows a path of the tree in ZooKeeper, and only its schema.
func TestPathsStandInTheSchemaOnly(t *testing.T) {
	for _, s := range tree(t) {
		if s.isTest || !within(s.dir(), "zkhandler") || s.dir() != "zkhandler" || s.path == "zkhandler/schema.go" {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			lit, ok := n.(*ast.BasicLit)
			if !ok || lit.Kind != token.STRING {
				return true
			}
			for _, root := range []string{"/config", "/nodes/", "/agent/", "/faults", "/logs"} {
				if strings.HasPrefix(strings.Trim(lit.Value, "\"`"), root) {
					t.Errorf("%s: the path %s belongs in zkhandler/schema.go", s.fset.Position(lit.Pos()), lit.Value)
				}
			}
			return true
		})
	}
}

// The files that a reader and an installer look for.
func TestTreeIsComplete(t *testing.T) {
	for _, path := range []string{"README.md", "DESIGN.md", "CHANGELOG.md", "LICENSE", "Makefile", "docs/operator-guide.md",
		"etc/pvcnoded.yaml", "etc/pvcapid.yaml", "systemd/pvcnoded.service", "systemd/pvc-guard.service", "systemd/pvcapid.service", "systemd/pvc.target"} {
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
}

// An agent's crash must stop nothing (I9): no unit is bound to another of ours.
func TestUnitsAreNotBound(t *testing.T) {
	units, err := filepath.Glob("systemd/*")
	if err != nil || len(units) == 0 {
		t.Fatal(fmt.Errorf("no units: %w", err))
	}
	for _, unit := range units {
		content, err := os.ReadFile(unit)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range strings.Split(string(content), "\n") {
			for _, key := range []string{"BindsTo=", "PartOf=", "Requires=", "Requisite=", "StopPropagatedFrom="} {
				line := strings.TrimSpace(line)
				// The target stops by order only, and binds to nothing itself.
				if strings.HasPrefix(line, key) && (line != "PartOf=pvc.target" || strings.HasSuffix(unit, ".target")) {
					t.Errorf("%s: %q would stop a unit with another", unit, line)
				}
			}
		}
	}
}
