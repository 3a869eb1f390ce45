package lint

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path"
	"regexp"
	"strings"
	"testing"
)

const hazardsPage = "docs/explanation/hazards.md"

// hazardTest is how the page names a test: package and function in one pair of backquotes.
var hazardTest = regexp.MustCompile("`([a-z0-9/]+) (Test[A-Za-z0-9]+)`")

// hazardProblems checks the tables of the page: three columns, and a last one that names tests, all of which are in
// tests, or says when the hazard can come up.
func hazardProblems(page string, tests map[string]bool) (problems []string, rows int) {
	for i, line := range strings.Split(page, "\n") {
		bad := func(format string, args ...any) {
			problems = append(problems, fmt.Sprintf("%s:%d: ", hazardsPage, i+1)+fmt.Sprintf(format, args...))
		}
		named := hazardTest.FindAllStringSubmatch(line, -1)
		for _, m := range named {
			if !tests[m[1]+" "+m[2]] {
				bad("there is no %s in package %s", m[2], m[1])
			}
		}
		if !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "|---") || strings.HasPrefix(line, "| Hazard |") {
			continue
		}
		rows++
		cells := strings.Split(strings.Trim(line, "|"), "|")
		if len(cells) != 3 {
			bad("%d columns, want 3", len(cells))
			continue
		}
		if last := strings.TrimSpace(cells[2]); len(named) == 0 && !strings.HasPrefix(last, "later: ") {
			bad("the row names no test and no later work: %q", last)
		}
	}
	return problems, rows
}

// testNames returns every test function of the repository as "folder Name".
func testNames(t *testing.T) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	for _, name := range files(t) {
		if !strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, read(t, name), parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Test") {
				out[path.Dir(name)+" "+fn.Name.Name] = true
			}
		}
	}
	return out
}

func TestEveryTestNamedForAHazardExists(t *testing.T) {
	problems, rows := hazardProblems(string(read(t, hazardsPage)), testNames(t))
	for _, p := range problems {
		t.Error(p)
	}
	if rows < 30 {
		t.Errorf("only %d rows found: does the page still have its tables?", rows)
	}
}

func TestHazardProblemsAreFound(t *testing.T) {
	tests := map[string]bool{"engine TestA": true}
	for row, want := range map[string]int{
		"| h | w | `engine TestA` |":                         0,
		"| h | w | later: moving shards |":                   0,
		"| h | w | `engine TestGone` |":                      1,
		"| h | w | `shard TestA` |":                          1,
		"| h | w | believe me |":                             1,
		"| h | `engine TestA` |":                             1,
		"prose may name `engine TestA` but not `x TestGone`": 1,
	} {
		if got, _ := hazardProblems(row, tests); len(got) != want {
			t.Errorf("%s: %d problems, want %d: %v", row, len(got), want, got)
		}
	}
}
