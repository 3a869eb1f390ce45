package rules

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement/plan"
)

func mustParse(t testing.TB, text string) *Set {
	t.Helper()
	s, err := Parse("zones.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// world is what a script has defined so far.
type world struct {
	set    *Set
	stores map[base.StoreID]Candidate
}

// TestScripts runs the scripts of testdata/scripts: zones (reads a file and shows it), stores (labels of the nodes),
// check, boundaries, rule (of a key), diff, splitkey, fit and explain.
func TestScripts(t *testing.T) {
	datadriven.Walk(t, filepath.Join("testdata", "scripts"), func(t *testing.T, path string) {
		w := &world{set: Default(), stores: map[base.StoreID]Candidate{}}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string { return w.run(t, d) })
	})
}

func (w *world) run(t *testing.T, d *datadriven.TestData) string {
	var out strings.Builder
	lines := func(l []string) {
		for _, s := range l {
			fmt.Fprintln(&out, s)
		}
	}
	switch d.Cmd {
	case "zones":
		s, err := Parse("zones.yaml", []byte(d.Input))
		if err != nil {
			return err.Error() + "\n"
		}
		w.set = s
		out.Write(s.Marshal())
	case "stores":
		w.stores = map[base.StoreID]Candidate{}
		for _, line := range strings.Split(d.Input, "\n") {
			c := Candidate{Store: Store{Labels: map[string]string{}}}
			for i, f := range strings.Fields(line) {
				if i == 0 {
					c.ID = storeID(t, f)
				} else if k, v, ok := strings.Cut(f, "="); ok {
					c.Labels[k] = v
				} else {
					c.Unfit = f
				}
			}
			w.stores[c.ID] = c
		}
	case "check":
		for _, p := range w.set.Check(w.list()) {
			fmt.Fprintln(&out, p)
		}
	case "boundaries":
		for _, r := range w.set.Ranges() {
			fmt.Fprintf(&out, "%x %q .. %x %q: %s\n", r.Start[0], r.Start[1:], r.End[0], r.End[1:], w.set.Rule(r.Rule).Name)
		}
	case "rule":
		for _, k := range strings.Split(d.Input, "\n") {
			fmt.Fprintf(&out, "%s: %s\n", k, w.set.Rule(w.set.For(base.UserKey([]byte(k)))).Name)
		}
	case "diff":
		to := mustParse(t, d.Input)
		lines(Diff(w.set, to, func(start, end []byte) int { return 10 + len(start) }))
	case "splitkey":
		for _, line := range strings.Split(d.Input, "\n") {
			f := strings.Fields(line)
			start, end, key := base.UserKey([]byte(f[0])), base.UserKey([]byte(f[1])), base.UserKey([]byte(f[2]))
			e := w.set.Rule(w.set.For(start))
			got, ok := e.SplitKey(key, start, end)
			if !ok {
				fmt.Fprintf(&out, "%s: none\n", line)
				continue
			}
			fmt.Fprintf(&out, "%s: %s\n", line, got[1:])
		}
	case "fit":
		for _, line := range strings.Split(d.Input, "\n") {
			key, placed := w.placement(t, line)
			f := NewFitter(w.set.Rule(w.set.For(base.UserKey([]byte(key)))))
			fit := f.Fit(placed)
			fmt.Fprintf(&out, "%s: %s: lacks %d voters, %d learners; %d misplaced; isolation %.4f, preferred %.3f; leaders",
				line, f.Name, fit.Voters, fit.Learners, fit.Misplaced, fit.Isolation, fit.Preferred)
			for _, p := range placed {
				fmt.Fprintf(&out, " %d", f.Leads(p.Store))
			}
			out.WriteByte('\n')
		}
	case "explain":
		key, placed := w.placement(t, d.Input)
		f := NewFitter(w.set.Rule(w.set.For(base.UserKey([]byte(key)))))
		var others []Candidate
		for _, s := range w.list() {
			if !slices.ContainsFunc(placed, func(p Placed) bool { return p.ID == s.ID }) {
				others = append(others, w.stores[s.ID])
			}
		}
		x := f.Explain(placed, others, func(id base.StoreID) string { return w.stores[id].Unfit })
		fmt.Fprintf(&out, "rule %s: %s\n", x.Rule, x.Because)
		for _, r := range x.Replicas {
			fmt.Fprintf(&out, "  %s fits=%t: %s\n", r.Store, r.Fits, r.Why)
		}
		for _, s := range x.Spread {
			fmt.Fprintf(&out, "  spread %s\n", s)
		}
		for _, p := range x.Problems {
			fmt.Fprintf(&out, "  problem: %s\n", p)
		}
		for _, o := range x.Others {
			fmt.Fprintf(&out, "  other %s %s: %s\n", o.Store, o.Verdict, o.Why)
		}
	default:
		t.Fatalf("unknown command %s", d.Cmd)
	}
	return out.String()
}

func (w *world) list() []Store {
	var out []Store
	for _, c := range w.stores {
		out = append(out, c.Store)
	}
	slices.SortFunc(out, func(a, b Store) int { return int(a.ID) - int(b.ID) })
	return out
}

// placement reads "key n1 n2 n3:learner".
func (w *world) placement(t *testing.T, line string) (string, []Placed) {
	f := strings.Fields(line)
	var out []Placed
	for _, r := range f[1:] {
		name, learner := strings.CutSuffix(r, ":learner")
		out = append(out, Placed{w.stores[storeID(t, name)].Store, learner})
	}
	return f[0], out
}

func storeID(t *testing.T, s string) base.StoreID {
	var id uint64
	if _, err := fmt.Sscanf(s, "n%d", &id); err != nil {
		t.Fatalf("%q is no node", s)
	}
	return base.StoreID(id)
}

func TestTheCanonicalTextReadsBackAsTheSameSet(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("testdata", "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		s := mustParse(t, string(text))
		again := mustParse(t, string(s.Marshal()))
		if !s.Equal(again) {
			t.Fatalf("%s:\n%s\nbecame\n%s", f, s.Marshal(), again.Marshal())
		}
		if d := Diff(s, again, nil); len(d) > 0 {
			t.Fatalf("%s differs from itself: %q", f, d)
		}
	}
}

func TestAnUnknownKeyIsRefusedWithItsLineAndTheNearest(t *testing.T) {
	_, err := Parse("zones.yaml", []byte("defaults:\n  replicas: 3\n  spreads: [zone]\n"))
	var bad *BadRuleError
	if !errors.As(err, &bad) || bad.Line != 3 || bad.Key != "spreads" || bad.Nearest != "spread" {
		t.Fatalf("%v", err)
	}
}

func TestASetThatIsTooLargeIsRefused(t *testing.T) {
	if _, err := Parse("zones.yaml", bytes.Repeat([]byte("#"), MaxText+1)); err == nil {
		t.Fatal("a file over the limit was read")
	}
	var b strings.Builder
	b.WriteString("rules:\n")
	for i := range MaxRules + 1 {
		fmt.Fprintf(&b, "- {name: r%d, prefix: p%d}\n", i, i)
	}
	if _, err := Parse("zones.yaml", []byte(b.String())); err == nil || !strings.Contains(err.Error(), "at most 1000") {
		t.Fatalf("%v", err)
	}
}

// TestTheRuleOfAKeyIsThatOfItsLongestPrefix compares with a walk over all rules.
func TestTheRuleOfAKeyIsThatOfItsLongestPrefix(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	word := func(n int) []byte {
		out := make([]byte, 1+rng.IntN(n))
		for i := range out {
			out[i] = "ab\xff"[rng.IntN(3)]
		}
		return out
	}
	for range 500 {
		s := &Set{}
		seen := map[string]bool{}
		for range rng.IntN(12) {
			p := base.UserKey(word(5))
			if !seen[string(p)] {
				s.Rules = append(s.Rules, Rule{Name: fmt.Sprint(len(s.Rules)), Prefix: p})
				seen[string(p)] = true
			}
		}
		s.sortRules()
		for range 50 {
			key, want := base.UserKey(word(8)), -1
			for i, r := range s.Rules {
				if bytes.HasPrefix(key, r.Prefix) && (want < 0 || len(r.Prefix) > len(s.Rules[want].Prefix)) {
					want = i
				}
			}
			if got := s.For(key); got != want {
				t.Fatalf("key %q of %v: rule %d, want %d", key, s.Boundaries(), got, want)
			}
			// Between two boundaries there is one rule.
			for _, r := range s.Ranges() {
				if bytes.Compare(key, r.Start) >= 0 && bytes.Compare(key, r.End) < 0 && r.Rule != want {
					t.Fatalf("key %q is in range %q..%q of rule %d, want %d", key, r.Start, r.End, r.Rule, want)
				}
			}
		}
	}
}

// TestASplitNeverDividesAGroupOfKeys tries random keys against the definition: of two keys with the same bytes up to the
// k-th delimiter, none is on either side.
func TestASplitNeverDividesAGroupOfKeys(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	word := func() []byte {
		out := make([]byte, rng.IntN(8))
		for i := range out {
			out[i] = "ab/"[rng.IntN(3)]
		}
		return base.UserKey(out)
	}
	e := Default().Rule(-1)
	e.Split = Split{Delimiter: []byte("/"), Count: 2}
	splits := 0
	for range 20000 {
		start, end, key := word(), word(), word()
		if bytes.Compare(start, end) >= 0 {
			continue
		}
		at, ok := e.SplitKey(key, start, end)
		if !ok {
			continue
		}
		splits++
		if bytes.Compare(at, start) <= 0 || bytes.Compare(at, end) >= 0 {
			t.Fatalf("%q splits [%q, %q) at %q, outside", key, start, end, at)
		}
		if g := e.group(at); g != nil && !bytes.Equal(g, at) {
			t.Fatalf("%q splits the group %q", at, g)
		}
	}
	if splits < 1000 {
		t.Fatalf("only %d splits", splits)
	}
}

// TestMatchingFillsAsManyPlacesAsCanBe compares with a search over all assignments.
func TestMatchingFillsAsManyPlacesAsCanBe(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for range 2000 {
		e := Effective{Replicas: 1 + rng.IntN(5), Index: -1, Prefix: base.UserStart()}
		left := e.Replicas
		for left > 0 && rng.IntN(3) > 0 {
			n := 1 + rng.IntN(left)
			sel, _ := ParseSelector([]string{"a=1", "b=1", "a=1, b=1", "c=1", "!a"}[rng.IntN(5)])
			e.Groups = append(e.Groups, Group{Replicas: n, Required: []Selector{sel}})
			left -= n
		}
		var placed []Placed
		for i := range rng.IntN(6) {
			l := map[string]string{}
			for _, k := range []string{"a", "b", "c"} {
				if rng.IntN(2) == 0 {
					l[k] = "1"
				}
			}
			placed = append(placed, Placed{Store{base.StoreID(i + 1), l}, false})
		}
		f := NewFitter(e)
		var places []*place
		for _, p := range placed {
			places = append(places, f.place(p.Store))
		}
		if got, want := f.match(placed, places, 0, nil), bruteMatch(f, places, 0, make([]int, len(f.slots[0]))); got != want {
			t.Fatalf("%+v with %+v: matched %d of %d", e, placed, got, want)
		}
	}
}

func bruteMatch(f *Fitter, places []*place, i int, used []int) int {
	if i == len(places) {
		return 0
	}
	best := bruteMatch(f, places, i+1, used)
	for s := range used {
		if places[i].slots[0]>>s&1 == 1 && used[s] < f.slots[0][s].want {
			used[s]++
			best = max(best, 1+bruteMatch(f, places, i+1, used))
			used[s]--
		}
	}
	return best
}

func TestAStoreWithNewLabelsIsJudgedAnew(t *testing.T) {
	s := mustParse(t, "defaults: {constraints: {required: [pool=a]}}")
	f := NewFitter(s.Rule(-1))
	if ok, _ := f.Allows(Store{1, map[string]string{"pool": "a"}}); !ok {
		t.Fatal("refused")
	}
	if ok, why := f.Allows(Store{1, map[string]string{"pool": "b"}}); ok || why != "not pool=a" {
		t.Fatalf("allowed %t: %s", ok, why)
	}
}

func TestFitAllocatesNothingOnceItKnowsTheStores(t *testing.T) {
	f := NewFitter(Default().Rule(-1))
	var placed []Placed
	for i := range 3 {
		placed = append(placed, Placed{Store{base.StoreID(i + 1), map[string]string{"zone": fmt.Sprint(i)}}, false})
	}
	if n := testing.AllocsPerRun(100, func() { f.Fit(placed) }); n > 0 {
		t.Fatalf("%.0f allocations", n)
	}
}

// FuzzParse: no text makes the parser panic, and what it takes survives its canonical form.
func FuzzParse(f *testing.F) {
	files, _ := filepath.Glob(filepath.Join("testdata", "*.yaml"))
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := Parse("f", text)
		if err != nil {
			return
		}
		again, err := Parse("f", s.Marshal())
		if err != nil {
			t.Fatalf("%v in canonical text\n%s", err, s.Marshal())
		}
		if !s.Equal(again) {
			t.Fatalf("%s\nbecame\n%s", s.Marshal(), again.Marshal())
		}
		s.Check(nil)
		s.Ranges()
	})
}

func TestTheExampleOfTheReferenceIsAValidFile(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "reference", "zones.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "```yaml\n")
	example, _, ok := strings.Cut(rest, "```")
	if !ok {
		t.Fatal("no example")
	}
	s := mustParse(t, example)
	var stores []Store
	for i, labels := range []map[string]string{
		{"zone": "a", "region": "eu", "rack": "1", "host": "1"}, {"zone": "a", "region": "eu", "rack": "2", "host": "2"},
		{"zone": "b", "disk": "ssd", "region": "eu", "rack": "1", "host": "3"},
		{"zone": "c", "region": "eu", "rack": "1", "host": "4", "spot": "yes"},
		{"zone": "c", "region": "eu", "rack": "2", "host": "5"},
		{"zone": "b", "region": "eu", "rack": "2", "host": "6", "pool": "analytics"},
		{"zone": "a", "pool": "meta", "rack": "3", "host": "7"}, {"zone": "b", "pool": "meta", "rack": "3", "host": "8"},
		{"zone": "c", "pool": "meta", "rack": "3", "host": "9"},
	} {
		stores = append(stores, Store{base.StoreID(i + 1), labels})
	}
	if p := s.Check(stores); len(p) > 0 {
		t.Fatalf("%v", p)
	}
}

func TestThePlannerSeesTheRulesOfASet(t *testing.T) {
	p := NewPlanner(mustParse(t, `
rules:
- {name: a, prefix: "a/", split-size: 2MiB, merge: never, constraints: {preferred: [ssd]}}
`))
	if r := p.For("\x02a/1", "\x02a/2"); r.Name() != "a" || r != p.For("\x02a/", "\x02a0") || r.SplitBytes() != 2<<20 || r.Merges() {
		t.Fatalf("%s", r.Name())
	}
	for _, c := range [][3]string{
		{"\x02", "\x03", "\x02a/"}, {"\x02a/", "\x03", "\x02a0"}, {"\x02a/", "\x02a0", ""}, {"\x02a0", "\x03", ""},
		{"\x03", "\x04", ""},
	} {
		if got := p.Boundary(c[0], c[1]); got != c[2] {
			t.Fatalf("boundary in %q..%q: %q, want %q", c[0], c[1], got, c[2])
		}
	}
	store := func(id base.StoreID, labels map[string]string) plan.Placed {
		return plan.Placed{Store: &plan.Store{Member: plan.Member{ID: id, Labels: labels}}}
	}
	n1, n2 := store(1, map[string]string{"zone": "a"}), store(2, map[string]string{"zone": "b"})
	n3, n4 := store(3, map[string]string{"zone": "b", "ssd": "y"}), store(4, map[string]string{"zone": "c"})
	r := p.For("\x02a/", "")
	near, alike, far := r.Fit([]plan.Placed{n1, n2, n3}), r.Fit([]plan.Placed{n1, n2, n4}), r.Fit([]plan.Placed{n1, n3, n4})
	if near.Compare(alike) >= 0 || alike.Compare(far) >= 0 {
		t.Fatalf("%v %v %v", near, alike, far)
	}
}
