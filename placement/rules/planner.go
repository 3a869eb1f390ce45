package rules

import (
	"bytes"
	"sort"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement/plan"
)

// Planner is a set in the form that the planner uses. The rule of a range is the same pointer each time. Make a new one
// for a new set; it is no safer for concurrent use than the planner is.
type Planner struct {
	set    *Set
	rules  []*Planned // the defaults first
	bounds []string
}

// Planned is one rule for the planner.
type Planned struct {
	*Fitter
	scratch []Placed
}

var (
	_ plan.Rules = (*Planner)(nil)
	_ plan.Rule  = (*Planned)(nil)
)

// NewPlanner returns a set for the planner.
func NewPlanner(s *Set) *Planner {
	p := &Planner{set: s}
	for _, f := range s.Fitters() {
		p.rules = append(p.rules, &Planned{Fitter: f})
	}
	for _, b := range s.Boundaries() {
		p.bounds = append(p.bounds, string(b))
	}
	return p
}

// Set returns the set that it was made of.
func (p *Planner) Set() *Set { return p.set }

// For implements plan.Rules.
func (p *Planner) For(start, _ string) plan.Rule { return p.Of(start) }

// Of returns the rule of a shard by the start of its range, a routing key.
func (p *Planner) Of(start string) *Planned { return p.rules[p.set.For([]byte(start))+1] }

// Boundary implements plan.Rules.
func (p *Planner) Boundary(start, end string) string {
	i := sort.Search(len(p.bounds), func(i int) bool { return p.bounds[i] > start })
	if i < len(p.bounds) && p.bounds[i] < end {
		return p.bounds[i]
	}
	return ""
}

// Name implements plan.Rule.
func (r *Planned) Name() string { return r.Effective.Name }

// Fit implements plan.Rule.
func (r *Planned) Fit(placed []plan.Placed) plan.Fit {
	r.scratch = r.scratch[:0]
	for _, p := range placed {
		r.scratch = append(r.scratch, Placed{of(p.Store), p.Learner})
	}
	return plan.Fit(r.Fitter.Fit(r.scratch))
}

// Allows implements plan.Rule.
func (r *Planned) Allows(s *plan.Store) (bool, string) { return r.Fitter.Allows(of(s)) }

// Leads implements plan.Rule.
func (r *Planned) Leads(s *plan.Store) int { return r.Fitter.Leads(of(s)) }

// SplitBytes implements plan.Rule.
func (r *Planned) SplitBytes() uint64 { return uint64(r.SplitSize) }

// Merges implements plan.Rule.
func (r *Planned) Merges() bool { return r.Merge }

func of(s *plan.Store) Store { return Store{ID: s.ID, Labels: s.Labels} }

// GroupPrefix returns the routing prefix below which groups of keys are kept together, and by which delimiter and count;
// count 0 if there are none.
func (e *Effective) GroupPrefix() (prefix, delimiter []byte, count int) {
	if e.Split.Count == 0 || bytes.Equal(e.Prefix, base.SystemStart()) {
		return nil, nil, 0
	}
	return e.Prefix, e.Split.Delimiter, e.Split.Count
}
