package rules

import (
	"reflect"

	"github.com/shardd/shardd/internal/base"
)

// Store is what a rule looks at: the labels of a store.
type Store struct {
	ID     base.StoreID
	Labels map[string]string
}

// Placed is one replica of a placement.
type Placed struct {
	Store
	Learner bool
}

// Fit is what a rule makes of a placement.
type Fit struct {
	// Voters and Learners are how many are lacking; negative: too many.
	Voters, Learners int
	// Misplaced counts replicas on stores where the rule does not want them; those that are needed in another group count.
	Misplaced int
	// Isolation says how well the replicas are spread: see Isolation. 1 is best.
	Isolation float64
	// Preferred counts what the preferred constraints give: each replica has 1/2 for the first that holds for its store,
	// 1/4 for the second, and so on.
	Preferred float64
}

// Compare returns above 0 if f is the better placement, below 0 if o is: what the rule demands first, then the spread,
// then what it prefers.
func (f Fit) Compare(o Fit) int {
	for _, d := range [...]int{
		abs(o.Voters) - abs(f.Voters), o.Misplaced - f.Misplaced, abs(o.Learners) - abs(f.Learners),
		sign(f.Isolation - o.Isolation), sign(f.Preferred - o.Preferred),
	} {
		if d != 0 {
			return d
		}
	}
	return 0
}

func abs(n int) int { return max(n, -n) }

func sign(x float64) int {
	switch {
	case x > 0:
		return 1
	case x < 0:
		return -1
	}
	return 0
}

// Fitter fits placements to one rule. It remembers what the rule makes of each store, for as long as the store has the
// same map of labels: give a store a new map instead of changing its labels in place. Not safe for concurrent use.
type Fitter struct {
	Effective
	slots  [2][]slot // of voters, of learners
	stores map[base.StoreID]*place
	words  map[string]uint32
}

// slot is a kind of place that replicas of one role are wanted for; the last of each role is for those in no group.
type slot struct {
	group int // -1: none
	want  int
}

// place is a store in the eyes of a rule.
type place struct {
	labels    map[string]string
	allowed   bool
	slots     [2]uint16 // bit i: a replica here may take slot i of the role
	preferred float64
	leads     int
	at        [MaxLevels]uint32 // the label of each level of spread, as a number
}

// Fitters returns the fitters of a set: that of the defaults first, then that of rule i at i+1.
func (s *Set) Fitters() []*Fitter {
	out := make([]*Fitter, 0, len(s.Rules)+1)
	for i := -1; i < len(s.Rules); i++ {
		out = append(out, NewFitter(s.Rule(i)))
	}
	return out
}

// NewFitter returns the fitter of one rule.
func NewFitter(e Effective) *Fitter {
	f := &Fitter{Effective: e, stores: map[base.StoreID]*place{}, words: map[string]uint32{}}
	rest := [2]int{e.Replicas, e.Learners}
	for i, g := range e.Groups {
		f.slots[role(g.Learner)] = append(f.slots[role(g.Learner)], slot{i, g.Replicas})
		rest[role(g.Learner)] -= g.Replicas
	}
	for r := range f.slots {
		f.slots[r] = append(f.slots[r], slot{-1, max(rest[r], 0)})
	}
	return f
}

func role(learner bool) int {
	if learner {
		return 1
	}
	return 0
}

// place returns what the rule makes of a store.
func (f *Fitter) place(s Store) *place {
	p := f.stores[s.ID]
	if p != nil && reflect.ValueOf(p.labels).Pointer() == reflect.ValueOf(s.Labels).Pointer() {
		return p
	}
	p = &place{labels: s.Labels, leads: f.leads(s)}
	p.allowed = f.refuses(s) == ""
	if p.allowed {
		for r := range f.slots {
			for i, sl := range f.slots[r] {
				if sl.group < 0 || matchesAll(f.Groups[sl.group].Required, s.Labels) {
					p.slots[r] |= 1 << i
				}
			}
		}
	}
	half := 0.5
	for _, sel := range f.Constraints.Preferred {
		if sel.Matches(s.Labels) {
			p.preferred += half
		}
		half /= 2
	}
	for i, l := range f.Spread {
		p.at[i] = f.word(s.Labels[l])
	}
	f.stores[s.ID] = p
	return p
}

func (f *Fitter) word(v string) uint32 {
	n, ok := f.words[v]
	if !ok {
		n = uint32(len(f.words))
		f.words[v] = n
	}
	return n
}

func matchesAll(sels []Selector, labels map[string]string) bool {
	for _, s := range sels {
		if !s.Matches(labels) {
			return false
		}
	}
	return true
}

// refuses says which constraint keeps replicas off the store, empty if none does.
func (e *Effective) refuses(s Store) string {
	for _, sel := range e.Constraints.Required {
		if !sel.Matches(s.Labels) {
			return "not " + sel.String()
		}
	}
	for _, sel := range e.Constraints.Prohibited {
		if sel.Matches(s.Labels) {
			return sel.String() + " is prohibited"
		}
	}
	return ""
}

// Allows reports whether the rule lets a replica be on the store at all, and else which constraint keeps it off.
func (f *Fitter) Allows(s Store) (bool, string) {
	if f.place(s).allowed {
		return true, ""
	}
	return false, f.refuses(s)
}

// Leads ranks a store for the leadership: the smaller the better. Stores to avoid come last, but can lead.
func (f *Fitter) Leads(s Store) int { return f.place(s).leads }

func (e *Effective) leads(s Store) int {
	for _, sel := range e.Leaders.Avoid {
		if sel.Matches(s.Labels) {
			return len(e.Leaders.Prefer) + 1
		}
	}
	for i, sel := range e.Leaders.Prefer {
		if sel.Matches(s.Labels) {
			return i
		}
	}
	return len(e.Leaders.Prefer)
}

// Fit judges a placement; it does not keep placed.
func (f *Fitter) Fit(placed []Placed) Fit {
	var buf [MaxReplicas + MaxLearners]*place
	places := buf[:0]
	for _, p := range placed {
		places = append(places, f.place(p.Store))
	}
	fit := Fit{Isolation: f.isolation(places)}
	var count [2]int
	for i, p := range placed {
		count[role(p.Learner)]++
		fit.Preferred += places[i].preferred
	}
	fit.Voters, fit.Learners = f.Replicas-count[0], f.Learners-count[1]
	for r, want := range [2]int{f.Replicas, f.Learners} {
		fit.Misplaced += min(count[r], want) - f.match(placed, places, r, nil)
	}
	return fit
}

// isolation is the measure of Isolation over what place kept.
func (f *Fitter) isolation(places []*place) float64 {
	n := len(f.Spread)
	return pairwise(len(places), func(i, j int) float64 {
		w := 1.0
		for l := range n {
			if places[i].at[l] != places[j].at[l] {
				return w
			}
			w /= 4
		}
		return 0
	})
}

// Isolation says how well stores are spread over levels of labels, widest first: each pair gives 1 if the two differ in
// the first level, 1/4 if only from the second on, and so on, and 0 if in none; the result is the mean. Stores that lack
// a label are alike in it. One store alone has 1.
func Isolation(stores []Store, levels []string) float64 {
	return pairwise(len(stores), func(i, j int) float64 {
		w := 1.0
		for _, l := range levels {
			if stores[i].Labels[l] != stores[j].Labels[l] {
				return w
			}
			w /= 4
		}
		return 0
	})
}

func pairwise(n int, apart func(i, j int) float64) float64 {
	if n < 2 {
		return 1
	}
	sum := 0.0
	for i := range n {
		for j := range i {
			sum += apart(i, j)
		}
	}
	return sum / float64(n*(n-1)/2)
}

// match puts as many replicas of a role as it can into slots of theirs, and returns how many; slotOf, if not nil, gets
// the slot of each, or -1. Replicas go into the narrow slots first: groups are wanted, the last slot takes what is left.
// It is the usual matching by augmenting paths; replicas that have a slot keep one.
func (f *Fitter) match(placed []Placed, places []*place, r int, slotOf []int) int {
	slots := f.slots[r]
	var taken [MaxGroups + 1][]int // replicas in each slot
	var buf [MaxReplicas + MaxLearners + 1]int
	in := slotOf
	if in == nil {
		in = buf[:]
		if len(placed) > len(buf) {
			in = make([]int, len(placed))
		}
	}
	for i := range placed {
		in[i] = -1
	}
	if len(slots) == 1 {
		// Without groups every replica that is allowed has the one slot there is, until it is full.
		n := 0
		for i, p := range placed {
			if role(p.Learner) == r && places[i].allowed && n < slots[0].want {
				in[i] = 0
				n++
			}
		}
		return n
	}
	var try func(i int, seen *uint16) bool
	try = func(i int, seen *uint16) bool {
		bits := places[i].slots[r]
		for s := range slots {
			if bits>>s&1 == 0 || *seen>>s&1 != 0 || slots[s].want == 0 {
				continue
			}
			*seen |= 1 << s
			if len(taken[s]) < slots[s].want {
				taken[s] = append(taken[s], i)
				in[i] = s
				return true
			}
			for at, o := range taken[s] {
				if try(o, seen) {
					taken[s][at] = i
					in[i] = s
					return true
				}
			}
		}
		return false
	}
	n := 0
	for i, p := range placed {
		var seen uint16
		if role(p.Learner) == r && try(i, &seen) {
			n++
		}
	}
	return n
}
