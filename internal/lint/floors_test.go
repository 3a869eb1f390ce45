package lint

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/shardd/shardd"

// floors says where each package stands; a package imports lower floors only, or its parent or sub-package on the same
// one. A name that ends in /... stands for all packages below it. See docs/ for the picture.
var floors = map[string]int{
	"api/...":      0,
	"internal/...": 0, // these may import each other and api

	"engine":           1,
	"shard/sched":      1,
	"transport":        1,
	"transport/simnet": 1,

	"shard/apply":    2,
	"shard/liveness": 2,
	"snapshotter":    2,

	"shard":              3,
	"shard/leasemodel":   3, // tests only
	"shard/shardtest":    3, // tests only
	"placement":          3,
	"placement/sim":      3,
	"placement/rules":    2,
	"placement/plan":     1,
	"placement/recovery": 1,
	"router":             3,

	"node":         4,
	"client":       4,
	"client/admin": 4,

	"bench":      5,
	"bench/ycsb": 5,

	"cmd/shardd":   6,
	"cmd/shardctl": 6,
	"e2e/...":      6,
}

// only names imports from outside that belong to few packages; each covers the packages below it, unless it ends in $.
var only = []struct {
	path  string
	users []string
	why   string
}{
	{"github.com/cockroachdb/pebble", []string{"engine"}, "engine is the only code that knows Pebble"},
	{"go.etcd.io/etcd/raft/v3$", []string{"engine", "shard"},
		"shard drives raft; engine may use its storage interface and errors"},
	{"go.etcd.io/etcd/raft/v3/raftpb",
		[]string{"engine", "shard", "shard/apply", "transport", "transport/simnet", "snapshotter", "internal/wire"},
		"raft messages are for the floors that carry, store and step them"},
	{"go.etcd.io/etcd/raft/v3/confchange", []string{"shard"}, "shard drives raft"},
	{"go.etcd.io/etcd/raft/v3/quorum", []string{"shard"}, "shard drives raft"},
	{"go.etcd.io/etcd/raft/v3/tracker", []string{"shard"}, "shard drives raft"},
	{"google.golang.org/grpc", []string{"api/...", "transport", "snapshotter", "node", "client", "client/admin"},
		"everything else goes through these"},
}

// never lists dependencies that the floors alone would allow: on packages of ours direct or not, on others direct only.
// Both sides cover what is below them.
var never = []struct {
	from string
	to   []string
	why  string
}{
	{"shard", []string{"transport", "snapshotter", "placement", "router"},
		"shard declares the small interfaces it needs and node injects them"},
	{"placement", []string{"engine", "shard"}, "placement works on an injected KV and on reports"},
	{"router", []string{"engine", "shard", "placement"}, "the router also runs in clients"},
	{"client", []string{"engine", "shard", "placement"}, "a client is not a server"},
	// Rule S1: nothing below raft may see a clock, chance, the environment, or decide by logging.
	{"shard/apply", []string{"math/rand", "log", "time", "os"},
		"apply is a pure function of state and entry"},
	{"shard/liveness", []string{"engine", "shard/sched", "transport", "go.etcd.io/etcd/raft/v3"},
		"store liveness knows stores and durations, and nothing of raft"},
	{"internal/wire", []string{"google.golang.org/protobuf"}, "what is stored has a layout written by hand"},
	{"internal/base", []string{"google.golang.org/protobuf"}, "what is stored has a layout written by hand"},
	{"engine", []string{"google.golang.org/protobuf"}, "what is stored has a layout written by hand"},
}

// goPackage is the part of go list's output that the rules need.
type goPackage struct {
	ImportPath   string
	Imports      []string
	Deps         []string
	TestImports  []string
	XTestImports []string
}

func TestImportsFollowTheFloors(t *testing.T) {
	pkgs := listPackages(t)
	if len(pkgs) < 5 {
		t.Fatalf("go list found %d packages", len(pkgs))
	}
	for _, b := range breaches(pkgs) {
		t.Error(b)
	}
}

func listPackages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,Deps,TestImports,XTestImports", "./...")
	cmd.Dir = root(t)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, stderr.String())
	}
	var pkgs []goPackage
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

// breaches returns one line for each breach of the tables above.
func breaches(pkgs []goPackage) []string {
	var out []string
	breach := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	deps := map[string][]string{}
	for _, p := range pkgs {
		deps[p.ImportPath] = p.Deps
	}
	for _, p := range pkgs {
		from := local(p.ImportPath)
		floor, ok := floorOf(from)
		if !ok {
			breach("%s is on no floor: add it to the table floors in internal/lint/floors_test.go", from)
			continue
		}
		for _, imp := range p.Imports {
			if to, ok := ours(imp); ok {
				f, known := floorOf(to)
				sideways := f == floor && (floor == 0 || related(from, to))
				if known && f >= floor && !sideways {
					breach("%s (floor %d) imports %s (floor %d): only lower floors may be imported", from, floor, to, f)
				}
			}
			for _, rule := range only {
				user := slices.ContainsFunc(rule.users, func(u string) bool { return matches(u, from) })
				if covers(rule.path, imp) && !user {
					breach("%s imports %s, which belongs to %s: %s", from, imp, strings.Join(rule.users, ", "), rule.why)
				}
			}
		}
		for _, rule := range never {
			if !under(rule.from, from) {
				continue
			}
			for _, to := range rule.to {
				if hit := reaches(p, to); hit != "" {
					breach("%s depends on %s: %s", from, hit, rule.why)
				}
			}
		}
		// Go itself lets an external test import what depends on its package; a test inside the package may not.
		for _, imp := range p.TestImports {
			if imp != p.ImportPath && slices.Contains(deps[imp], p.ImportPath) {
				breach("tests inside %s import %s, which depends on it: move them to package %s_test",
					from, local(imp), filepath.Base(from))
			}
		}
	}
	return out
}

// reaches returns the dependency of p that is to or below it, or "".
func reaches(p goPackage, to string) string {
	if _, ok := floorOf(to); ok {
		for _, imp := range p.Deps {
			if o, ok := ours(imp); ok && under(to, o) {
				return o
			}
		}
		return ""
	}
	for _, imp := range p.Imports {
		if under(to, imp) {
			return imp
		}
	}
	return ""
}

func floorOf(pkg string) (int, bool) {
	if f, ok := floors[pkg]; ok {
		return f, true
	}
	for pattern, f := range floors {
		if matches(pattern, pkg) {
			return f, true
		}
	}
	return 0, false
}

// matches reports whether pkg is what pattern names, where x/... names x and all below it.
func matches(pattern, pkg string) bool {
	if dir, ok := strings.CutSuffix(pattern, "/..."); ok {
		return under(dir, pkg)
	}
	return pattern == pkg
}

func under(dir, pkg string) bool { return pkg == dir || strings.HasPrefix(pkg, dir+"/") }

func related(a, b string) bool { return under(a, b) || under(b, a) }

// covers is under, except that a $ at the end stands for exactly this path.
func covers(path, imp string) bool {
	if exact, ok := strings.CutSuffix(path, "$"); ok {
		return imp == exact
	}
	return under(path, imp)
}

func ours(imp string) (string, bool) {
	if imp == module {
		return ".", true
	}
	return strings.CutPrefix(imp, module+"/")
}

func local(imp string) string {
	if pkg, ok := ours(imp); ok {
		return pkg
	}
	return imp
}

// TestBreachesAreFound keeps the rules honest: each of these must be refused, and in these words.
func TestBreachesAreFound(t *testing.T) {
	const m = module + "/"
	for _, c := range []struct {
		name string
		pkgs []goPackage
		want string // empty: allowed
	}{
		{"lower floor", []goPackage{{ImportPath: m + "shard", Imports: []string{m + "engine", m + "shard/apply"},
			Deps: []string{m + "engine", m + "shard/apply"}}}, ""},
		{"sub-package on the same floor", []goPackage{{ImportPath: m + "client/admin", Imports: []string{m + "client"}}},
			""},
		{"internal imports internal", []goPackage{{ImportPath: m + "internal/wire", Imports: []string{m + "internal/base"}}},
			""},
		{"same floor", []goPackage{{ImportPath: m + "engine", Imports: []string{m + "transport"}}}, "only lower floors"},
		{"higher floor", []goPackage{{ImportPath: m + "engine", Imports: []string{m + "shard"}}}, "only lower floors"},
		{"sub-package on a higher floor", []goPackage{{ImportPath: m + "shard/apply", Imports: []string{m + "shard"}}},
			"only lower floors"},
		{"internal imports engine", []goPackage{{ImportPath: m + "internal/x", Imports: []string{m + "engine"}}},
			"only lower floors"},
		{"unknown package", []goPackage{{ImportPath: m + "newthing"}}, "newthing is on no floor: add it"},
		{"unknown sub-package", []goPackage{{ImportPath: m + "shard/newthing"}}, "is on no floor"},
		{"pebble in shard", []goPackage{{ImportPath: m + "shard", Imports: []string{"github.com/cockroachdb/pebble/v2"}}},
			"only code that knows Pebble"},
		{"pebble's vfs in node", []goPackage{{ImportPath: m + "node",
			Imports: []string{"github.com/cockroachdb/pebble/v2/vfs"}}}, "only code that knows Pebble"},
		{"raft in engine", []goPackage{{ImportPath: m + "engine", Imports: []string{"go.etcd.io/etcd/raft/v3"}}}, ""},
		{"raft in transport", []goPackage{{ImportPath: m + "transport", Imports: []string{"go.etcd.io/etcd/raft/v3"}}},
			"shard drives raft"},
		{"raftpb in transport", []goPackage{{ImportPath: m + "transport",
			Imports: []string{"go.etcd.io/etcd/raft/v3/raftpb"}}}, ""},
		{"raftpb in client", []goPackage{{ImportPath: m + "client",
			Imports: []string{"go.etcd.io/etcd/raft/v3/raftpb"}}}, "carry, store and step"},
		{"grpc in router", []goPackage{{ImportPath: m + "router", Imports: []string{"google.golang.org/grpc/status"}}},
			"goes through these"},
		{"grpc in api", []goPackage{{ImportPath: m + "api/shardd/v1", Imports: []string{"google.golang.org/grpc"}}}, ""},
		{"grpc in a test", []goPackage{{ImportPath: m + "router", TestImports: []string{"google.golang.org/grpc"}}}, ""},
		{"higher floor in a test", []goPackage{{ImportPath: m + "engine", XTestImports: []string{m + "node"}}}, ""},
		{"shard reaches transport", []goPackage{{ImportPath: m + "shard", Deps: []string{m + "transport"}}},
			"shard depends on transport"},
		{"shard/sched reaches snapshotter", []goPackage{{ImportPath: m + "shard/sched", Deps: []string{m + "snapshotter"}}},
			"depends on snapshotter"},
		{"placement reaches shard/sched", []goPackage{{ImportPath: m + "placement", Deps: []string{m + "shard/sched"}}},
			"depends on shard/sched"},
		{"router reaches engine", []goPackage{{ImportPath: m + "router", Deps: []string{m + "engine"}}}, "depends on engine"},
		{"apply reads the clock", []goPackage{{ImportPath: m + "shard/apply", Imports: []string{"time"}}}, "pure function"},
		{"apply draws", []goPackage{{ImportPath: m + "shard/apply", Imports: []string{"math/rand/v2"}}}, "pure function"},
		{"apply's engine reads the clock", []goPackage{{ImportPath: m + "shard/apply", Deps: []string{"time", "os"}}}, ""},
		{"cycle through a test", []goPackage{
			{ImportPath: m + "engine", TestImports: []string{m + "node"}},
			{ImportPath: m + "node", Imports: []string{m + "engine"}, Deps: []string{m + "engine"}},
		}, "move them to package engine_test"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := strings.Join(breaches(c.pkgs), "\n")
			if (c.want == "") != (got == "") || !strings.Contains(got, c.want) {
				t.Fatalf("got %q, want %q", got, c.want)
			}
		})
	}
}
