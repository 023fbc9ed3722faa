package pvc_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// orderers are the types by whose methods the effects of a role and of a fence
// are ordered. Each exported method takes a cluster.Token, or stands here as one
// that gives nothing: it looks, or it takes away.
var orderers = []struct {
	dir, name string
	harmless  []string
}{
	{"agent", "Guard", []string{"State", "Withdraw", "End", "Preflight", "Events"}},
	{"agent", "Fencer", []string{"Due"}},
	{"agent", "Copies", []string{"Check", "Probe", "Held", "Changed"}},
	{"agent", "orderedFencer", []string{"Ripe"}},
	{"router", "Client", []string{"State", "Withdraw", "End", "Relinquish", "Preflight", "Events", "Subscribe", "Close", "EndCaller", "Look", "LetGo"}},
	{"fencing", "Fencer", []string{"Due", "Ripe", "Reign", "TestDevices"}},
	{"fencing", "Runner", []string{"For"}},
	{"fencing", "Soft", []string{"Answers"}},
}

// orderFolders are where an exported function or method whose name begins with
// one of orderWords takes a cluster.Token, whatever its type: driver is where the
// workloads' drivers will be.
var (
	orderFolders = []string{"router", "fencing", "driver"}
	orderWords   = []string{"Fence", "PowerOff", "PowerOn", "Off", "On", "Promote", "Demote", "Start", "Stop", "Begin", "Extend", "Present",
		"AddAddress", "SetAddress", "MoveAddress", "WriteChain", "SetChain"}
)

// receiving is what carries orders out, in a process of its own.
var receiving = []string{"router/guard"}

// carriers are the words by which an order leaves the process, and where they are
// mentioned without a token: where they are defined and where they are obeyed.
var carriers = map[string][]string{
	"MethodBegin": {"router/protocol.go"}, "MethodExtend": {"router/protocol.go"}, "MethodPresent": {"router/protocol.go"},
	"MethodStartService": {"router/protocol.go"}, "MethodStopService": {"router/protocol.go", "router/client.go LetGo"}, "MethodRun": {"router/protocol.go"},
	"MethodRunInCopy": {"router/copyrun.go"},
	"ActionOff":       {"fencing/attempt.go", "fencing/agents.go", "fencing/exec.go", "fencing/runner.go child"},
	"ActionOn":        {"fencing/attempt.go", "fencing/agents.go", "fencing/exec.go", "fencing/runner.go child"},
	"AttemptMain":     {"fencing/attempt.go", "cmd/pvcnoded/main.go"},
}

// Fence, promote, start, stop, address and chain-write orders are reachable with
// a token only, and one comes out of the activity manager only: whoever else made
// one could order an effect that no activity stands behind.
func TestOrdersNeedATokenOfTheActivityManager(t *testing.T) {
	sources := tree(t)
	for _, fault := range orderFaults(sources) {
		t.Error(fault)
	}
	for _, o := range orderers { // a rule about nothing forbids nothing
		if methods(sources, o.dir, o.name) == nil {
			t.Errorf("%s.%s is not there any more: what orders in its place?", o.dir, o.name)
		}
	}
}

// The rules above find what they are there for.
func TestWhatTheRuleOfOrdersFinds(t *testing.T) {
	for name, c := range map[string]struct{ path, code, want string }{
		"an order without a token":           {"router/extra.go", `func (c *Client) Adopt(ctx context.Context) error { return nil }`, "Client.Adopt"},
		"in the agent's interface":           {"agent/extra.go", `type Guard interface { Hoist(ctx context.Context) error }`, "Guard.Hoist"},
		"a driver's":                         {"driver/valkey/extra.go", `func PromoteReplica(n int) error { return nil }`, "PromoteReplica"},
		"a driver's method":                  {"driver/extra.go", `func (d Driver) WriteChain(n int) error { return nil }`, "Driver.WriteChain"},
		"a driver's interface":               {"driver/extra.go", `type Driver interface { Start(ctx context.Context, name string) error }`, "Driver.Start"},
		"a free function":                    {"fencing/extra.go", `func FenceNow(n string) error { return nil }`, "FenceNow"},
		"past the client":                    {"router/extra.go", `func raise(l *link) { l.send(MethodPresent) }`, "MethodPresent"},
		"from the agent, past the client":    {"agent/extra.go", `func raise(l link) { l.send(router.MethodBegin) }`, "MethodBegin"},
		"a device in this very process":      {"fencing/extra.go", `func (f *Fencer) off() { run(ActionOff) }`, "ActionOff"},
		"an attempt in this very process":    {"agent/extra.go", `var main = fencing.AttemptMain`, "AttemptMain"},
		"a token of the agent's own":         {"agent/extra.go", `var t = cluster.MintToken(w, nil)`, "MintToken"},
		"minted under another name":          {"api/extra.go", `var mint = cluster.MintToken`, "MintToken"},
		"a wire form of the agent's own":     {"agent/extra.go", `var w = cluster.NewTokenWire(l, a, a, false)`, "NewTokenWire"},
		"a token of nothing":                 {"agent/extra.go", `var t = cluster.Token{}`, "of nothing"},
		"another one":                        {"agent/extra.go", `var t cluster.Token`, "of nothing"},
		"and another":                        {"agent/extra.go", `var t = new(cluster.Token)`, "of nothing"},
		"a variable in a function":           {"agent/extra.go", `func f() { var t cluster.Token; use(t) }`, "of nothing"},
		"with a token all is well":           {"router/extra.go", `func (c *Client) Adopt(ctx context.Context, t cluster.Token) error { return c.order(t, MethodBegin) }`, ""},
		"a field is none yet":                {"fencing/extra.go", `type work2 struct { token cluster.Token }`, ""},
		"a name that only begins like a one": {"driver/extra.go", `func Stopped() bool { return true }`, ""},
	} {
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, c.path, "package x\n"+c.code, 0)
		if err != nil {
			t.Fatal(err)
		}
		found := orderFaults([]source{{path: c.path, file: file, fset: fset}})
		if (c.want == "") != (len(found) == 0) || c.want != "" && !strings.Contains(strings.Join(found, "\n"), c.want) {
			t.Errorf("%s: found %q, want %q", name, found, c.want)
		}
	}
}

// orderFaults says where an order can be given without a token, and where a token
// is made by who must not.
func orderFaults(sources []source) (faults []string) {
	for _, s := range sources {
		if s.isTest || slices.ContainsFunc(receiving, func(dir string) bool { return within(s.dir(), dir) }) {
			continue
		}
		say := func(at token.Pos, format string, args ...any) {
			faults = append(faults, s.fset.Position(at).String()+": "+fmt.Sprintf(format, args...))
		}
		for _, f := range functionsOf(s) {
			if takesToken(f.kind) || !ast.IsExported(f.name) {
				continue
			}
			for _, o := range orderers {
				if s.dir() == o.dir && f.of == o.name && !slices.Contains(o.harmless, f.name) {
					say(f.kind.Pos(), "%s.%s takes no cluster.Token: one that gives something must, one that gives nothing stands among the harmless", f.of, f.name)
				}
			}
			folder := slices.ContainsFunc(orderFolders, func(dir string) bool { return within(s.dir(), dir) })
			if folder && slices.ContainsFunc(orderWords, func(w string) bool { return beginsWith(f.name, w) }) {
				say(f.kind.Pos(), "%s orders without a cluster.Token", strings.TrimPrefix(f.of+"."+f.name, "."))
			}
		}
		carried(s, say)
		minted(s, say)
	}
	return faults
}

// function is one function, method, or method of an interface.
type function struct {
	of, name string // of: the type, empty for a function
	kind     *ast.FuncType
}

func functionsOf(s source) (list []function) {
	ast.Inspect(s.file, func(n ast.Node) bool {
		switch x := n.(type) {
		case *ast.FuncDecl:
			list = append(list, function{receiver(x), x.Name.Name, x.Type})
		case *ast.TypeSpec:
			face, ok := x.Type.(*ast.InterfaceType)
			if !ok {
				return true
			}
			for _, m := range face.Methods.List {
				if kind, ok := m.Type.(*ast.FuncType); ok && len(m.Names) > 0 {
					list = append(list, function{x.Name.Name, m.Names[0].Name, kind})
				}
			}
		}
		return true
	})
	return list
}

// receiver names the type that a method is of.
func receiver(f *ast.FuncDecl) string {
	if f.Recv == nil {
		return ""
	}
	kind := f.Recv.List[0].Type
	if star, ok := kind.(*ast.StarExpr); ok {
		kind = star.X
	}
	if name, ok := kind.(*ast.Ident); ok {
		return name.Name
	}
	return ""
}

// methods lists a type's methods.
func methods(sources []source, dir, name string) (list []string) {
	for _, s := range sources {
		for _, f := range functionsOf(s) {
			if s.dir() == dir && f.of == name && !s.isTest {
				list = append(list, f.name)
			}
		}
	}
	return list
}

func takesToken(f *ast.FuncType) bool {
	return slices.ContainsFunc(f.Params.List, func(p *ast.Field) bool { return isToken(p.Type) })
}

func isToken(e ast.Expr) bool {
	x, ok := e.(*ast.SelectorExpr)
	if !ok || x.Sel.Name != "Token" {
		return false
	}
	pkg, ok := x.X.(*ast.Ident)
	return ok && pkg.Name == "cluster"
}

// beginsWith reports whether a name is the word, or it and more words.
func beginsWith(name, word string) bool {
	rest, ok := strings.CutPrefix(name, word)
	return ok && (rest == "" || !unicode.IsLower(rune(rest[0])))
}

// carried finds words by which orders leave the process outside of functions that
// take a token.
func carried(s source, say func(token.Pos, string, ...any)) {
	for _, d := range s.file.Decls {
		f, ok := d.(*ast.FuncDecl)
		if ok && takesToken(f.Type) {
			continue
		}
		ast.Inspect(d, func(n ast.Node) bool {
			name, ok := n.(*ast.Ident)
			places, known := []string(nil), false
			if ok {
				places, known = carriers[name.Name]
			}
			here := s.path
			if known && f != nil && slices.Contains(places, s.path+" "+f.Name.Name) {
				here += " " + f.Name.Name
			}
			if known && !slices.Contains(places, here) {
				say(n.Pos(), "%s is mentioned in no function that takes a cluster.Token", name.Name)
			}
			return true
		})
	}
}

// minted finds tokens that are made outside of the activity manager.
func minted(s source, say func(token.Pos, string, ...any)) {
	if s.dir() == "agent/activity" || s.dir() == "cluster" {
		return
	}
	const nothing = "a token of nothing is made"
	ast.Inspect(s.file, func(n ast.Node) bool {
		switch x := n.(type) {
		case *ast.SelectorExpr:
			if x.Sel.Name == "MintToken" || x.Sel.Name == "NewTokenWire" {
				say(n.Pos(), "%s belongs in agent/activity", x.Sel.Name)
			}
		case *ast.CompositeLit:
			if x.Type != nil && isToken(x.Type) {
				say(n.Pos(), nothing)
			}
		case *ast.ValueSpec:
			if x.Type != nil && isToken(x.Type) && len(x.Values) == 0 {
				say(n.Pos(), nothing)
			}
		case *ast.CallExpr:
			if fn, ok := x.Fun.(*ast.Ident); ok && fn.Name == "new" && len(x.Args) == 1 && isToken(x.Args[0]) {
				say(n.Pos(), nothing)
			}
		}
		return true
	})
}
