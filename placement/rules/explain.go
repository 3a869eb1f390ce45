package rules

import (
	"fmt"
	"slices"
	"strings"

	"github.com/shardd/shardd/internal/base"
)

// Candidate is a store that could have a replica.
type Candidate struct {
	Store
	// Unfit says what else than the rule keeps replicas off it (it is down, drained, full), empty if nothing does.
	Unfit string
}

// Explanation says why the replicas of a shard are where they are.
type Explanation struct {
	// Rule is the name of the rule, and Because what makes it this shard's.
	Rule, Because string
	Replicas      []ReplicaWhy // in the order given
	// Problems are what is missing, extra, misplaced, or spread less well than it could be; empty if all is well.
	Problems []string
	Others   []StoreWhy // in the order given
	// Spread has one line for each level of labels.
	Spread []string
}

// ReplicaWhy is one replica and what it is there for.
type ReplicaWhy struct {
	Store   base.StoreID
	Learner bool
	Fits    bool
	Why     string
}

// StoreWhy is one store without a replica. Better: a replica there instead of the one named would be an improvement.
type StoreWhy struct {
	Store  base.StoreID
	Better bool
	// Verdict is one word: rule, unfit, spread, equal or better.
	Verdict string
	Why     string
}

// Explain fits the replicas of a shard to its rule and says in words what comes of it. others are the stores that have no
// replica of the shard; unfit gives for a store that has one what is wrong with it (down, leaving), empty if nothing.
func (f *Fitter) Explain(placed []Placed, others []Candidate, unfit func(base.StoreID) string) *Explanation {
	x := &Explanation{Rule: f.Name, Because: f.because()}
	var places []*place
	for _, p := range placed {
		places = append(places, f.place(p.Store))
	}
	slotOf, at := make([]int, len(placed)), make([]int, len(placed))
	for r := range f.slots {
		f.match(placed, places, r, at)
		for i, p := range placed {
			if role(p.Learner) == r {
				slotOf[i] = at[i]
			}
		}
	}
	fit := f.Fit(placed)
	for i, p := range placed {
		w := ReplicaWhy{Store: p.ID, Learner: p.Learner, Fits: slotOf[i] >= 0}
		if w.Fits {
			w.Why = f.satisfies(f.slots[role(p.Learner)][slotOf[i]])
		} else {
			w.Why = f.misfit(p, fit)
		}
		if bad := unfit(p.ID); bad != "" {
			w.Why += "; " + bad
			x.Problems = append(x.Problems, fmt.Sprintf("%s is %s", p.ID, bad))
		}
		if !w.Fits {
			x.Problems = append(x.Problems, fmt.Sprintf("%s: %s", p.ID, w.Why))
		}
		x.Replicas = append(x.Replicas, w)
	}
	x.Problems = append(x.Problems, f.lacking(placed, slotOf)...)
	for _, c := range others {
		x.Others = append(x.Others, f.other(placed, fit, c, unfit))
	}
	x.spread(f, placed, others)
	return x
}

func (e *Effective) because() string {
	switch {
	case e.Index < 0:
		return "no rule is for its keys, so the defaults hold"
	case e.Prefix[0] == base.SpaceSystem:
		return "it is the meta shard"
	}
	return "its keys begin with " + keyText(e.Prefix[1:])
}

// satisfies says what a replica in a slot is there for.
func (e *Effective) satisfies(s slot) string {
	var out []string
	if s.group >= 0 {
		out = append(out, "group "+e.groupName(s.group))
	}
	for _, sel := range e.Constraints.Required {
		out = append(out, sel.String())
	}
	for _, sel := range e.Constraints.Prohibited {
		out = append(out, "not ("+sel.String()+")")
	}
	if len(out) == 0 {
		return "any node will do"
	}
	return strings.Join(out, ", ")
}

// misfit says why a replica has no slot.
func (f *Fitter) misfit(p Placed, fit Fit) string {
	if why := f.refuses(p.Store); why != "" {
		return "misplaced: " + why
	}
	lack := fit.Voters
	if p.Learner {
		lack = fit.Learners
	}
	if lack < 0 {
		return "one more than the rule wants"
	}
	return "misplaced: not in a group that still needs one"
}

// lacking says which slots are not filled.
func (f *Fitter) lacking(placed []Placed, slotOf []int) (out []string) {
	for r := range f.slots {
		what := [2]string{"voter", "learner"}[r]
		for i, sl := range f.slots[r] {
			n := sl.want
			for j, p := range placed {
				if role(p.Learner) == r && slotOf[j] == i {
					n--
				}
			}
			if n <= 0 {
				continue
			}
			name := what
			if sl.group >= 0 {
				name += " of group " + f.groupName(sl.group)
			}
			out = append(out, plural(n, name)+" missing")
		}
	}
	return out
}

// other judges a store without a replica: would the placement be better with one of its replicas there instead, or with
// the one that is missing?
func (f *Fitter) other(placed []Placed, fit Fit, c Candidate, unfit func(base.StoreID) string) StoreWhy {
	w := StoreWhy{Store: c.ID}
	if ok, why := f.Allows(c.Store); !ok {
		w.Verdict, w.Why = "rule", why
		return w
	}
	fills, best, out := f.fills(placed, fit, c), fit, -1
	for i := range placed {
		got := f.instead(placed, i, c)
		// A replica that has to leave its store is better anywhere that is no worse.
		leaves := unfit(placed[i].ID) != "" && (out < 0 || unfit(placed[out].ID) == "") && got.Compare(fit) >= 0
		if leaves || got.Compare(best) > 0 && (out < 0 || unfit(placed[out].ID) == "" || unfit(placed[i].ID) != "") {
			best, out = got, i
		}
	}
	better := fills || out >= 0
	switch {
	case c.Unfit != "":
		w.Verdict, w.Why = "unfit", c.Unfit
		if better {
			w.Why += ", else it would be a better place"
		}
	case fills:
		w.Better, w.Verdict, w.Why = true, "better", "could have the replica that is missing"
	case better:
		w.Better, w.Verdict = true, "better"
		if why := unfit(placed[out].ID); why != "" {
			w.Why = fmt.Sprintf("could take over from %s, which is %s", placed[out].ID, why)
		} else {
			w.Why = fmt.Sprintf("better than %s: %s", placed[out].ID, gain(fit, best))
		}
	default:
		w.Verdict, w.Why = "equal", "as good a place, not a better one"
		if !f.equal(placed, fit, c) {
			w.Verdict, w.Why = "spread", "worse spread than any that has a replica"
		}
	}
	return w
}

// fills reports whether the candidate could have a replica that is missing.
func (f *Fitter) fills(placed []Placed, fit Fit, c Candidate) bool {
	for r, lack := range [2]int{fit.Voters, fit.Learners} {
		if lack > 0 {
			with := append(slices.Clone(placed), Placed{c.Store, r == 1})
			if f.Fit(with).Misplaced <= fit.Misplaced {
				return true
			}
		}
	}
	return false
}

// instead is the fit with a candidate in the place of one replica.
func (f *Fitter) instead(placed []Placed, i int, c Candidate) Fit {
	with := slices.Clone(placed)
	with[i].Store = c.Store
	return f.Fit(with)
}

// equal reports whether some replica could as well be on the candidate.
func (f *Fitter) equal(placed []Placed, fit Fit, c Candidate) bool {
	for i := range placed {
		if f.instead(placed, i, c).Compare(fit) >= 0 {
			return true
		}
	}
	return false
}

const wider = "spreads the replicas wider"

func gain(old, now Fit) string {
	switch {
	case now.Misplaced < old.Misplaced:
		return "meets the constraints"
	case now.Isolation > old.Isolation:
		return wider
	}
	return "meets a preference"
}

// spread fills in the lines on levels, and the problem if a better spread is to be had. Each level stands below the
// wider ones: rack 1 of one zone is another than rack 1 of the next.
func (x *Explanation) spread(f *Fitter, placed []Placed, others []Candidate) {
	name := func(labels map[string]string, levels []string) string {
		var out []string
		for _, l := range levels {
			v := labels[l]
			if v == "" {
				v = "(none)"
			}
			out = append(out, v)
		}
		return strings.Join(out, "/")
	}
	var used []string
	for _, l := range f.Spread {
		known := func(s Store) bool { return s.Labels[l] != "" }
		if !slices.ContainsFunc(placed, func(p Placed) bool { return known(p.Store) }) &&
			!slices.ContainsFunc(others, func(c Candidate) bool { return known(c.Store) }) {
			x.Spread = append(x.Spread, l+": no node has this label")
			continue
		}
		used = append(used, l)
		counts, possible := map[string]int{}, map[string]bool{}
		var order []string
		for _, p := range placed {
			v := name(p.Labels, used)
			if counts[v] == 0 {
				order = append(order, v)
			}
			counts[v]++
			possible[v] = true
		}
		for _, c := range others {
			if ok, _ := f.Allows(c.Store); ok && c.Unfit == "" {
				possible[name(c.Labels, used)] = true
			}
		}
		var parts []string
		for _, v := range order {
			parts = append(parts, fmt.Sprintf("%d in %s", counts[v], v))
		}
		x.Spread = append(x.Spread, fmt.Sprintf("%s: %s; %d used of %d that could be", l, strings.Join(parts, ", "),
			len(order), len(possible)))
	}
	for _, o := range x.Others {
		if o.Better && strings.HasSuffix(o.Why, wider) {
			x.Problems = append(x.Problems, fmt.Sprintf("%s is %s", o.Store, o.Why))
			return
		}
	}
}
