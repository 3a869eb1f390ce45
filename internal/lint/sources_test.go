package lint

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// maxLines bounds a source file that a person wrote; beyond it, it holds more than one noun or verb.
const maxLines = 600

// root returns the directory of go.mod.
func root(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		up := filepath.Dir(dir)
		if up == dir {
			t.Fatal("no go.mod above the test")
		}
		dir = up
	}
}

// files returns the repository's files, relative to its root: what git tracks or would, or, where there is no git (an
// unpacked release), everything outside hidden directories.
func files(t *testing.T) []string {
	t.Helper()
	dir := root(t)
	if _, err := os.Stat(filepath.Join(dir, ".git")); err == nil {
		cmd := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
		cmd.Dir = dir
		if out, err := cmd.Output(); err == nil {
			return strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
		}
	}
	var out []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && strings.HasPrefix(d.Name(), ".") && d.Name() != ".ci" && path != dir {
			return filepath.SkipDir
		}
		if d.Type().IsRegular() {
			rel, err := filepath.Rel(dir, path)
			if err != nil {
				return err
			}
			out = append(out, filepath.ToSlash(rel))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// read returns a file of the repository, nil if it was deleted but is still in the index.
func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root(t), filepath.FromSlash(name)))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return b
}

var generated = regexp.MustCompile(`(?m)^// Code generated .* DO NOT EDIT\.$`)

func TestSourceFilesKeepTheRules(t *testing.T) {
	n := 0
	for _, name := range files(t) {
		if !strings.HasSuffix(name, ".go") || strings.Contains("/"+name, "/testdata/") {
			continue
		}
		src := read(t, name)
		if src == nil || generated.Match(src) {
			continue
		}
		n++
		for _, p := range problems(t, name, src) {
			t.Error(p)
		}
	}
	if n < 10 {
		t.Fatalf("only %d source files found", n)
	}
}

// banned are selectors that nothing may use, by name; in restricts a ban to files below these directories, except lifts
// it there, and tests lifts it for tests.
var banned = []struct {
	name       string
	in, except []string
	tests      bool
	why        string
}{
	{"NewSnapshot", nil, nil, false, "a plain Pebble snapshot silently loses keys that a later excise removes (W1)"},
	{"SingleDelete", nil, nil, false, "raft may overwrite an index; delete twice is not the same as delete"},
	{"NewRawNode", nil, []string{"shard"}, true, "only shard drives raft"},
	{"RawNode", nil, []string{"shard"}, true, "only shard drives raft"},
	{"StartNode", nil, nil, false, "it bootstraps; a new shard's state is written directly"},
	{"RestartNode", nil, nil, false, "shard drives RawNode"},
	{"Bootstrap", []string{"shard"}, nil, false, "a new shard's state is written directly"},
}

// problems returns one line for each rule that the file breaks.
func problems(t testing.TB, name string, src []byte) []string {
	t.Helper()
	var out []string
	problem := func(at token.Position, format string, args ...any) {
		out = append(out, fmt.Sprintf("%s:%d: %s", name, at.Line, fmt.Sprintf(format, args...)))
	}
	if lines := bytes.Count(src, []byte("\n")); lines > maxLines {
		problem(token.Position{Line: lines}, "%d lines, at most %d: split it by noun or verb", lines, maxLines)
	}
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, name, src, parser.SkipObjectResolution)
	if err != nil {
		return append(out, err.Error())
	}
	for _, d := range file.Decls {
		if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
			problem(set.Position(f.Pos()), "func init: many nodes run in one process; construct it where it is used")
		}
	}
	ast.Inspect(file, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		for _, b := range banned {
			lifted := below(b.except, name) || b.tests && strings.HasSuffix(name, "_test.go")
			if sel.Sel.Name == b.name && (b.in == nil || below(b.in, name)) && !lifted {
				problem(set.Position(sel.Pos()), "use of %s: %s", b.name, b.why)
			}
		}
		return true
	})
	return out
}

func below(dirs []string, name string) bool {
	for _, d := range dirs {
		if strings.HasPrefix(name, d+"/") {
			return true
		}
	}
	return false
}

func TestSourceProblemsAreFound(t *testing.T) {
	const head = "package x\n"
	for _, c := range []struct{ name, file, src, want string }{
		{"plain", "node/a.go", head + "func f() {}\n", ""},
		{"init", "node/a.go", head + "func init() {}\n", "node/a.go:2: func init"},
		{"method init", "node/a.go", head + "type T struct{}\n\nfunc (T) init() {}\n", ""},
		{"long", "node/a.go", head + strings.Repeat("\n", maxLines), "601 lines"},
		{"snapshot", "engine/a.go", head + "func f(d D) { d.NewSnapshot() }\n", "engine/a.go:2: use of NewSnapshot"},
		{"file-only snapshot", "engine/a.go", head + "func f(d D) { d.NewEventuallyFileOnlySnapshot() }\n", ""},
		{"raw node", "shard/a.go", head + "var f = raft.NewRawNode\n", ""},
		{"raw node in engine", "engine/a.go", head + "var f = raft.NewRawNode\n", "only shard drives raft"},
		{"raw node in a test of engine", "engine/a_test.go", head + "var f = raft.NewRawNode\n", ""},
		{"snapshot in a test", "engine/a_test.go", head + "func f(d D) { d.NewSnapshot() }\n", "use of NewSnapshot"},
		{"bootstrap", "shard/a.go", head + "func f(n N) { n.Bootstrap() }\n", "written directly"},
		{"bootstrap of a cluster", "node/a.go", head + "func f(n N) { n.Bootstrap() }\n", ""},
		{"broken", "node/a.go", head + "func {", "expected 'IDENT'"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := strings.Join(problems(t, c.file, []byte(c.src)), "\n")
			if (c.want == "") != (got == "") || !strings.Contains(got, c.want) {
				t.Fatalf("got %q, want %q", got, c.want)
			}
		})
	}
}
