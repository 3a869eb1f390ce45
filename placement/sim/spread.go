package sim

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement/plan"
)

// Range is the least, the largest and the mean of a number over stores.
type Range struct {
	Min, Max int
	Mean     float64
}

// Width is the difference between the largest and the least.
func (r Range) Width() int { return r.Max - r.Min }

// Percent is by how much of the mean the one that is farthest from it is off.
func (r Range) Percent() float64 {
	if r.Mean == 0 {
		return 0
	}
	return 100 * max(float64(r.Max)-r.Mean, r.Mean-float64(r.Min)) / r.Mean
}

// Count is what one node holds.
type Count struct {
	Node              base.StoreID
	Replicas, Leaders int
	Bytes             uint64
	Requests          uint64 // at its leaders, per second
}

// Counts returns what each node holds, by id, dead ones included: their disks.
func (c *Cluster) Counts() []Count {
	at := map[base.StoreID]*Count{}
	for _, s := range c.order {
		at[s.id] = &Count{Node: s.id, Bytes: s.bytes}
	}
	for _, sh := range c.shards {
		for _, r := range sh.desc.Replicas {
			at[r.Store].Replicas++
		}
		if n := at[sh.leader]; n != nil {
			n.Leaders++
			n.Requests += sh.load.Requests()
		}
	}
	var out []Count
	for _, s := range c.order {
		out = append(out, *at[s.id])
	}
	return out
}

// Spread returns the numbers of replicas and of leaders of the nodes that may have them.
func (c *Cluster) Spread() (replicas, leaders Range) {
	var r, l []int
	for _, n := range c.Counts() {
		if s := c.stores[n.Node]; s.up && s.commission == plan.Active && s.drain == plan.DrainNone {
			r, l = append(r, n.Replicas), append(l, n.Leaders)
		}
	}
	return RangeOf(r), RangeOf(l)
}

// RangeOf sums up numbers.
func RangeOf(n []int) Range {
	if len(n) == 0 {
		return Range{}
	}
	total := 0
	for _, x := range n {
		total += x
	}
	return Range{slices.Min(n), slices.Max(n), float64(total) / float64(len(n))}
}

// Wrong says what is not as the rules want it, by kind: shards without leader or quorum, short of healthy voters, with too
// many replicas or learners left over, misplaced, on nodes that must lose them, or with fewer values of a label than there
// could be. Empty if all is well.
func (c *Cluster) Wrong() []string {
	kinds := map[string][]base.ShardID{}
	for _, sh := range c.sortedShards() {
		for _, w := range c.wrong(sh) {
			kinds[w] = append(kinds[w], sh.id())
		}
	}
	var out []string
	for w, ids := range kinds {
		out = append(out, fmt.Sprintf("%d shards %s, %s first", len(ids), w, ids[0]))
	}
	sort.Strings(out)
	return out
}

// WrongShards returns the shards of Wrong.
func (c *Cluster) WrongShards() []base.ShardID {
	var out []base.ShardID
	for _, sh := range c.sortedShards() {
		if len(c.wrong(sh)) > 0 {
			out = append(out, sh.id())
		}
	}
	return out
}

func (c *Cluster) wrong(sh *shard) (out []string) {
	if !c.quorum(sh) {
		out = append(out, "without quorum")
	}
	if sh.leader == 0 {
		out = append(out, "without leader")
	}
	if joint(sh) {
		out = append(out, "between two configurations")
	}
	rule := c.rule(sh)
	var placed []plan.Placed
	for i := range sh.desc.Replicas {
		r := &sh.desc.Replicas[i]
		s := c.stores[r.Store]
		if s.commission != plan.Active || s.drain == plan.DrainReplicas {
			out = append(out, "on a node that leaves")
		}
		if !c.healthy(sh, r) {
			out = append(out, "with a lost replica")
		}
		placed = append(placed, plan.Placed{Store: c.view.Store(r.Store), Learner: r.Role == base.RoleLearner})
	}
	fit := rule.Fit(placed)
	switch {
	case fit.Voters > 0 || fit.Learners > 0:
		out = append(out, "short of replicas")
	case fit.Voters < 0 || fit.Learners < 0:
		out = append(out, "with too many replicas")
	}
	if fit.Misplaced > 0 {
		out = append(out, "misplaced")
	}
	return out
}

// Zones returns how many shards have replicas in how many values of a label, as text.
func (c *Cluster) Zones(label string) string {
	n := map[int]int{}
	for _, sh := range c.shards {
		values := map[string]bool{}
		for _, r := range sh.desc.Replicas {
			values[c.stores[r.Store].labels[label]] = true
		}
		n[len(values)]++
	}
	var keys []int
	for k := range n {
		keys = append(keys, k)
	}
	sort.Ints(keys)
	var out []string
	for _, k := range keys {
		out = append(out, fmt.Sprintf("%d shards in %d", n[k], k))
	}
	return strings.Join(out, ", ")
}

// Show returns the truth of one shard as text, and what the planner makes of it.
func (c *Cluster) Show(id base.ShardID) string {
	sh := c.shards[id]
	if sh == nil {
		return id.String() + " is gone"
	}
	return fmt.Sprintf("%s, leader %s", sh.desc, sh.leader)
}
