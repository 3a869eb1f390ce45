// Package rules says where the replicas of a shard belong: how many, spread over which levels of labels, on which
// stores, and where leaders should be, by prefix of the key. It reads and writes the rules as YAML, checks them against
// the stores there are, and fits the replicas of one shard to its rule. All of it is pure: no clock, no I/O, no memory of
// an earlier call. It never decides when a replica moves; that is placement/plan.
package rules

import (
	"bytes"
	"slices"
	"sort"

	"github.com/shardd/shardd/internal/base"
)

// Limits of a set of rules. They bound its record in the meta shard and the cost of fitting one shard.
const (
	MaxText      = 256 << 10 // bytes of the YAML text
	MaxRules     = 1000
	MaxPrefix    = 1024 // bytes of a key prefix
	MaxReplicas  = 15   // voters of a shard
	MaxLearners  = 15
	MaxLevels    = 6  // levels of spread
	MaxGroups    = 15 // constraint groups of a rule
	MaxSelectors = 16 // selectors of one list
)

// Set is a whole zones file: what holds everywhere, and rules for parts of the key space. It is a value: never change
// one that has been handed out.
type Set struct {
	Defaults Settings
	// Rules are sorted by where they apply; no two apply to the same prefix or have the same name.
	Rules []Rule
}

// Rule is one rule as it was written.
type Rule struct {
	Name string
	// Prefix is the routing key that all keys of the rule start with, space byte included.
	Prefix []byte
	Settings
	line int // of the file that it was read from; 0: none
}

// System reports whether the rule is for the meta shard.
func (r *Rule) System() bool { return r.Prefix[0] == base.SpaceSystem }

// Settings is what defaults and rules may say. What is nil was not said: a rule then takes it from the defaults, and
// those from what is built in. A list or a map is taken as a whole.
type Settings struct {
	Replicas    *int
	Learners    *int
	Spread      []string
	Constraints *Constraints
	Groups      []Group
	Leaders     *Leaders
	Split       *Split
	SplitSize   *int64
	Merge       *bool
}

// Constraints say on which stores replicas may be.
type Constraints struct {
	// Required must all hold.
	Required []Selector
	// Prohibited must none hold.
	Prohibited []Selector
	// Preferred hold where that costs no spread; the earlier ones count more.
	Preferred []Selector
}

// Group asks for a number of the replicas to be on stores of a kind, as well as what the rule's constraints ask.
type Group struct {
	Name     string
	Replicas int
	Learner  bool
	Required []Selector
}

// Leaders say which voters should lead.
type Leaders struct {
	// Prefer: a voter on a store of the first selector that holds for any voter leads.
	Prefer []Selector
	// Avoid: a voter on such a store leads only if no other can.
	Avoid []Selector
}

// Split says where a shard may be split. The zero value: at any key.
type Split struct {
	// Delimiter and Count make groups of keys that are never divided: those with the same bytes up to and including the
	// Count-th Delimiter after the rule's prefix.
	Delimiter []byte
	Count     int
}

// Effective is what holds for a range of keys, with nothing left out.
type Effective struct {
	// Name is that of the rule, or DefaultsName.
	Name string
	// Index is the rule's place in Set.Rules, -1 for the defaults. It is good for one Set only.
	Index  int
	Prefix []byte

	Replicas    int // voters
	Learners    int
	Spread      []string
	Constraints Constraints
	Groups      []Group
	Leaders     Leaders
	Split       Split
	SplitSize   int64 // bytes; 0: the cluster's setting
	Merge       bool  // small, cold neighbours may be merged
}

// DefaultsName stands for the defaults wherever the name of a rule is shown.
const DefaultsName = "defaults"

// builtIn holds where neither a rule nor the defaults say anything.
var builtIn = Effective{Replicas: 3, Spread: []string{"zone", "rack", "host"}, Merge: true}

// Default returns the set of a cluster that was never given one.
func Default() *Set { return &Set{} }

// Rule returns what holds under a rule, by its index; -1 means the defaults.
func (s *Set) Rule(i int) Effective {
	e := builtIn
	e.Name, e.Index, e.Prefix = DefaultsName, -1, base.UserStart()
	e.take(&s.Defaults)
	if i >= 0 {
		r := &s.Rules[i]
		e.Name, e.Index, e.Prefix = r.Name, i, r.Prefix
		e.take(&r.Settings)
	}
	learners := 0
	for _, g := range e.Groups {
		if g.Learner {
			learners += g.Replicas
		}
	}
	e.Learners = max(e.Learners, learners)
	return e
}

func (e *Effective) take(s *Settings) {
	if s.Replicas != nil {
		e.Replicas = *s.Replicas
	}
	if s.Learners != nil {
		e.Learners = *s.Learners
	}
	if s.Spread != nil {
		e.Spread = s.Spread
	}
	if s.Constraints != nil {
		e.Constraints = *s.Constraints
	}
	if s.Groups != nil {
		e.Groups = s.Groups
	}
	if s.Leaders != nil {
		e.Leaders = *s.Leaders
	}
	if s.Split != nil {
		e.Split = *s.Split
	}
	if s.SplitSize != nil {
		e.SplitSize = *s.SplitSize
	}
	if s.Merge != nil {
		e.Merge = *s.Merge
	}
}

// For returns the index of the rule with the longest prefix of a routing key, -1 if only the defaults apply. A shard
// goes by its start: see Straddles.
func (s *Set) For(key []byte) int {
	// A longer prefix of the key sorts above a shorter one, and all of them at or below the key.
	i := sort.Search(len(s.Rules), func(i int) bool { return bytes.Compare(s.Rules[i].Prefix, key) > 0 })
	for i--; i >= 0; i-- {
		p := s.Rules[i].Prefix
		if bytes.HasPrefix(key, p) {
			return i
		}
		// Rules between here and one that fits share less with the key than this one does.
		n := common(p, key)
		if n == 0 {
			break
		}
		i = sort.Search(i, func(j int) bool { return bytes.Compare(s.Rules[j].Prefix, key[:n]) > 0 })
	}
	return -1
}

func common(a, b []byte) int {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}

// sortRules puts the rules in the order of their prefixes.
func (s *Set) sortRules() {
	slices.SortStableFunc(s.Rules, func(a, b Rule) int { return bytes.Compare(a.Prefix, b.Prefix) })
}
