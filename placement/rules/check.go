package rules

import (
	"fmt"
	"slices"
	"strings"

	"github.com/shardd/shardd/internal/base"
)

// Problem is something that a set asks of a cluster and cannot have, or can have and will regret.
type Problem struct {
	// Fatal: the rule can never be satisfied by the stores there are, though it says on which they should be. Rules with
	// such a problem are not applied.
	Fatal bool
	// Rule is the name of the rule, or DefaultsName.
	Rule string
	// Line of the file that the set was read from, 0 if there is none.
	Line int
	Text string
}

// String returns one line for people.
func (p Problem) String() string {
	kind := "warning"
	if p.Fatal {
		kind = "error"
	}
	if p.Line > 0 {
		return fmt.Sprintf("%s: line %d: %s: %s", kind, p.Line, p.Rule, p.Text)
	}
	return fmt.Sprintf("%s: %s: %s", kind, p.Rule, p.Text)
}

// Check says what a set asks that the stores cannot give. stores are those that belong to the cluster, up or down, but
// not those on their way out.
func (s *Set) Check(stores []Store) []Problem {
	var out []Problem
	for i := -1; i < len(s.Rules); i++ {
		c := checker{e: s.Rule(i), stores: stores}
		if i >= 0 {
			c.line = s.Rules[i].line
		}
		c.run()
		if i >= 0 {
			c.groupsCut(s)
		}
		out = append(out, c.out...)
	}
	return out
}

type checker struct {
	e      Effective
	line   int
	stores []Store
	out    []Problem
}

func (c *checker) say(fatal bool, format string, args ...any) {
	c.out = append(c.out, Problem{fatal, c.e.Name, c.line, fmt.Sprintf(format, args...)})
}

func (c *checker) run() {
	e := &c.e
	c.places()
	if e.Replicas%2 == 0 {
		c.say(false, "%d replicas survive no more losses than %d do: want an odd number", e.Replicas, e.Replicas-1)
	}
	var allowed []Store
	for _, s := range c.stores {
		if e.refuses(s) == "" {
			allowed = append(allowed, s)
		}
	}
	for i, l := range e.Spread {
		values, lack := map[string]bool{}, 0
		for _, s := range allowed {
			if v, ok := s.Labels[l]; ok {
				values[v] = true
			} else {
				lack++
			}
		}
		switch {
		case len(values) == 0:
			// Nobody labels like that: the level tells nothing apart. Most clusters have no racks.
		case lack > 0:
			c.say(false, "nodes without the label %s, of which %s, count as one %s", l, exist(lack, ""), l)
		case i == 0 && len(values) == 2 && e.Replicas > 2:
			c.say(false, "its nodes have 2 values of %s: the loss of one can take the majority of %d replicas; want 3", l,
				e.Replicas)
		}
	}
	for _, sel := range append(slices.Clone(e.Leaders.Prefer), e.Leaders.Avoid...) {
		if len(c.stores) > 0 && !slices.ContainsFunc(allowed, func(s Store) bool { return sel.Matches(s.Labels) }) {
			c.say(false, "no node that its replicas may be on has %s, which leaders names", sel)
		}
	}
}

// places checks that every replica has a store to be on.
func (c *checker) places() {
	e := &c.e
	f := NewFitter(*e)
	type unit struct{ role, slot int }
	var units []unit
	short := false
	for r := range f.slots {
		for i, sl := range f.slots[r] {
			fit := 0
			for _, s := range c.stores {
				fit += int(f.place(s).slots[r] >> i & 1)
			}
			if fit < sl.want {
				short = true
				c.short(f, r, sl, fit)
			}
			for range sl.want {
				units = append(units, unit{r, i})
			}
		}
	}
	if short {
		return
	}
	owner := make([]int, len(c.stores))
	for i := range owner {
		owner[i] = -1
	}
	var try func(u int, seen []bool) bool
	try = func(u int, seen []bool) bool {
		for i, s := range c.stores {
			if seen[i] || f.place(s).slots[units[u].role]>>units[u].slot&1 == 0 {
				continue
			}
			seen[i] = true
			if owner[i] < 0 || try(owner[i], seen) {
				owner[i] = u
				return true
			}
		}
		return false
	}
	for u := range units {
		if try(u, make([]bool, len(c.stores))) {
			continue
		}
		c.say(c.constrained(), "wants %s, each on a node of its own, and the nodes that its constraints and groups allow "+
			"cannot hold them all at once", e.wants())
		return
	}
}

// constrained reports whether the rule says on which nodes replicas should be.
func (c *checker) constrained() bool {
	return len(c.e.Constraints.Required) > 0 || len(c.e.Constraints.Prohibited) > 0 || len(c.e.Groups) > 0
}

func (c *checker) short(f *Fitter, r int, sl slot, fit int) {
	var conds []string
	for _, s := range c.e.Constraints.Required {
		conds = append(conds, s.String())
	}
	for _, s := range c.e.Constraints.Prohibited {
		conds = append(conds, "not ("+s.String()+")")
	}
	what := [2]string{"voter", "learner"}[r]
	if sl.group >= 0 {
		what += " of group " + c.e.groupName(sl.group)
		for _, s := range c.e.Groups[sl.group].Required {
			conds = append(conds, s.String())
		}
	}
	if len(conds) == 0 {
		c.say(false, "wants %s, %s: shards have fewer until more join", plural(sl.want, what), exist(fit, "node"))
		return
	}
	c.say(true, "wants %s, on nodes with %s, of which %s", plural(sl.want, what), strings.Join(conds, " and "),
		exist(fit, ""))
}

// groupsCut warns of a boundary inside what another rule keeps together.
func (c *checker) groupsCut(s *Set) {
	if c.e.Prefix[0] == base.SpaceSystem {
		return
	}
	outer := s.outer(c.e.Index)
	o := s.Rule(outer)
	if g := o.group(c.e.Prefix); g != nil && len(g) < len(c.e.Prefix) {
		c.say(false, "begins inside a group of keys that %s keeps together: the group is divided there", o.Name)
	}
}

// outer returns the rule around a rule.
func (s *Set) outer(i int) int {
	p := s.Rules[i].Prefix
	for n := len(p) - 1; n > 0; n-- {
		if j := s.For(p[:n]); j < 0 || len(s.Rules[j].Prefix) == n {
			return j
		}
	}
	return -1
}

// wants returns how many replicas the rule asks for, in words.
func (e *Effective) wants() string {
	if e.Learners == 0 {
		return plural(e.Replicas, "voter")
	}
	return plural(e.Replicas, "voter") + " and " + plural(e.Learners, "learner")
}

// groupName returns the name of a group for people: its own, or what it requires.
func (e *Effective) groupName(i int) string {
	g := e.Groups[i]
	if g.Name != "" {
		return g.Name
	}
	var out []string
	for _, s := range g.Required {
		out = append(out, s.String())
	}
	return strings.Join(out, " and ")
}

// plural puts the number before a phrase, whose first word gets an s unless it is one.
func plural(n int, what string) string {
	if n != 1 {
		first, rest, more := strings.Cut(what, " ")
		if what = first + "s"; more {
			what += " " + rest
		}
	}
	return fmt.Sprintf("%d %s", n, what)
}

func exist(n int, what string) string {
	switch {
	case what != "" && n == 1:
		return "1 " + what + " exists"
	case what != "":
		return fmt.Sprintf("%d %ss exist", n, what)
	case n == 1:
		return "1 exists"
	case n == 0:
		return "none exists"
	}
	return fmt.Sprintf("%d exist", n)
}
