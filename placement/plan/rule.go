package plan

import (
	"cmp"
	"slices"
)

// Rules says which rule governs a range, and where ranges may not be joined. Nil rules in Config mean Uniform.
type Rules interface {
	// For returns the rule for the shard with this range (routing keys): that of its start. Two shards may merge only if
	// theirs are equal.
	For(start, end string) Rule
	// Boundary returns the first key inside (start, end) at which another rule, or a range that is kept apart, begins;
	// empty if there is none. A shard that has one inside is split there, and none is merged over one.
	Boundary(start, end string) string
}

// Rule says how many replicas the shards of a range have and on which stores. Implementations are comparable values,
// usually pointers. They hold no state and are called often.
type Rule interface {
	// Name is for people.
	Name() string
	// Fit judges a placement; it must not keep placed.
	Fit(placed []Placed) Fit
	// Allows reports whether the rule lets a replica be on the store at all, and else why not.
	Allows(s *Store) (ok bool, why string)
	// Leads ranks a store for leadership: the smaller the better, negative means never.
	Leads(s *Store) int
	// SplitBytes is the size above which the shards split; 0: as the Config says.
	SplitBytes() uint64
	// Merges reports whether small neighbours under the rule may merge.
	Merges() bool
}

// Placed is one replica of a placement.
type Placed struct {
	Store   *Store
	Learner bool
}

// Fit is what a rule makes of a placement.
type Fit struct {
	// Voters and Learners are how many are lacking; negative: too many.
	Voters, Learners int
	// Misplaced counts replicas on stores where the rule does not want them, constraints that no replica meets included.
	Misplaced int
	// Isolation says how well the replicas are spread over the levels of labels: 1 is as well as any set of stores could
	// do, less is worse.
	Isolation float64
	// Preferred counts what the rule would rather have, where that costs no spread; more is better.
	Preferred float64
}

// Compare returns above 0 if f is the better of two placements with the same number of replicas, below 0 if o is: what
// the rule demands first, then the spread, then what it prefers.
func (f Fit) Compare(o Fit) int {
	switch {
	case f.Misplaced != o.Misplaced:
		return o.Misplaced - f.Misplaced
	case f.Isolation != o.Isolation:
		return cmp.Compare(f.Isolation, o.Isolation)
	}
	return cmp.Compare(f.Preferred, o.Preferred)
}

// Uniform is the built-in rule for all ranges: a number of voters, spread over label levels.
type Uniform struct {
	Voters int
	// Levels are label keys, widest first: replicas should differ in the first, else in the second, and so on.
	Levels []string
}

// sameUniform reports whether both are built-in rules that say the same.
func sameUniform(a, b Rules) bool {
	x, ok := a.(*Uniform)
	y, also := b.(*Uniform)
	return ok && also && x.Voters == y.Voters && slices.Equal(x.Levels, y.Levels)
}

// DefaultLevels are the label keys over which replicas are spread unless rules say otherwise.
func DefaultLevels() []string { return []string{"zone", "rack", "host"} }

// For implements Rules.
func (u *Uniform) For(string, string) Rule { return u }

// Boundary implements Rules: there is none.
func (u *Uniform) Boundary(string, string) string { return "" }

// Name implements Rule.
func (u *Uniform) Name() string { return "default" }

// Allows implements Rule: every store will do.
func (u *Uniform) Allows(*Store) (bool, string) { return true, "" }

// Leads implements Rule: every store will do.
func (u *Uniform) Leads(*Store) int { return 0 }

// SplitBytes implements Rule: as the Config says.
func (u *Uniform) SplitBytes() uint64 { return 0 }

// Merges implements Rule.
func (u *Uniform) Merges() bool { return true }

// Fit implements Rule.
func (u *Uniform) Fit(placed []Placed) Fit {
	f := Fit{Voters: u.Voters}
	for _, p := range placed {
		if p.Learner {
			f.Learners--
		} else {
			f.Voters--
		}
	}
	f.Isolation = Isolation(placed, u.Levels)
	return f
}

// Isolation returns how well replicas are spread: for each pair, the first level in which the two differ gives
// 1/4^level, and the sum is divided by the number of pairs. Stores that lack a label count as equal to each other in it.
func Isolation(placed []Placed, levels []string) float64 {
	pairs, sum := 0, 0.0
	for i := range placed {
		for j := range i {
			pairs++
			w := 1.0
			for _, l := range levels {
				if placed[i].Store.Labels[l] != placed[j].Store.Labels[l] {
					sum += w
					break
				}
				w /= 4
			}
		}
	}
	if pairs == 0 {
		return 1
	}
	return sum / float64(pairs)
}

var _ Rules = (*Uniform)(nil)
