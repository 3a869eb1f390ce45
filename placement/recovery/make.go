package recovery

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"

	"github.com/shardd/shardd/internal/base"
)

// item is a shard in the fight for its range.
type item struct {
	id       base.ShardID
	replicas []Replica // of all survivors
	top      *base.Descriptor
	healthy  bool
	chosen   *Replica // of a lost one
	end      []byte   // in the end
	cutBy    base.ShardID
	gone     bool // a newer shard owns its start
	by       base.ShardID
}

// maker collects a plan.
type maker struct {
	in    *Input
	plan  *Plan
	items []*item
	high  uint64 // highest Version seen
}

// Make plans. The same input gives the same plan.
func Make(in Input) *Plan {
	m := &maker{in: &in, plan: &Plan{}}
	m.group()
	m.tile()
	m.renew()
	m.anew()
	slices.SortFunc(m.plan.Shards, func(a, b Shard) int { return bytes.Compare(a.Start, b.Start) })
	slices.SortFunc(m.plan.Known, func(a, b *base.Descriptor) int { return bytes.Compare(a.Start, b.Start) })
	sortDrops(m.plan.GiveUp)
	slices.Sort(m.plan.Problems)
	return m.plan
}

func sortDrops(d []Drop) {
	slices.SortFunc(d, func(a, b Drop) int {
		return cmp.Or(cmp.Compare(a.Shard, b.Shard), cmp.Compare(a.Store, b.Store), cmp.Compare(a.Replica, b.Replica))
	})
}

func (m *maker) problem(format string, args ...any) {
	m.plan.Problems = append(m.plan.Problems, fmt.Sprintf(format, args...))
}

// group puts the replicas of each shard together, judges its quorum and chooses.
func (m *maker) group() {
	of := make(map[base.ShardID]*item)
	for _, r := range m.in.Replicas {
		it := of[r.Shard]
		if it == nil {
			it = &item{id: r.Shard}
			of[r.Shard] = it
			m.items = append(m.items, it)
		}
		it.replicas = append(it.replicas, r)
		if r.Desc != nil && (it.top == nil || r.Desc.Epoch.Newer(it.top.Epoch)) {
			it.top = r.Desc
		}
		if r.Desc != nil {
			m.high = max(m.high, r.Desc.Epoch.Version)
		}
	}
	slices.SortFunc(m.items, func(a, b *item) int { return cmp.Compare(a.id, b.id) })
	for _, it := range m.items {
		slices.SortFunc(it.replicas, func(a, b Replica) int { return cmp.Compare(a.Store, b.Store) })
		m.judge(it)
	}
}

// judge says whether a shard has its quorum, and else which replica is chosen.
func (m *maker) judge(it *item) {
	if it.top == nil {
		return // only replicas that wait for a first state that never comes
	}
	if it.healthy = it.quorum(); it.healthy {
		m.plan.Healthy++
		if !slices.ContainsFunc(it.replicas, func(r Replica) bool { return r.Leads }) {
			m.problem("%s has a quorum but no leader yet: wait for it", it.id)
		}
		return
	}
	for i := range it.replicas {
		r := &it.replicas[i]
		switch {
		case r.Desc == nil || r.Faulted != "":
		case r.Busy:
			m.problem("the replica of %s on %s could not be asked how far its log is: wait for it", it.id, r.Store)
		case r.Leads:
			m.problem("the replica of %s on %s still takes itself for its leader: wait until it has noticed", it.id, r.Store)
		case it.chosen == nil || it.further(r):
			it.chosen = r
		}
	}
}

// quorum reports whether the survivors are a quorum of the newest descriptor, of both configurations while it is joint.
func (it *item) quorum() bool {
	return it.majority(base.RoleIncoming) && it.majority(base.RoleOutgoing)
}

// majority counts the voters and those of one more role.
func (it *item) majority(with base.Role) bool {
	total, live := 0, 0
	for _, d := range it.top.Replicas {
		if d.Role != base.RoleVoter && d.Role != with {
			continue
		}
		total++
		if it.lives(d) {
			live++
		}
	}
	return live > total/2
}

func (it *item) lives(d base.ReplicaDesc) bool {
	return slices.ContainsFunc(it.replicas, func(r Replica) bool {
		return r.Store == d.Store && r.Replica == d.Replica && r.Desc != nil && r.Faulted == ""
	})
}

// further reports whether a replica goes before the one chosen so far.
func (it *item) further(r *Replica) bool {
	c := it.chosen
	if r.LastTerm != c.LastTerm {
		return r.LastTerm > c.LastTerm
	}
	if r.LastIndex != c.LastIndex {
		return r.LastIndex > c.LastIndex
	}
	// Equal logs: a voter rather than a learner, then the lower store, which the order of the list gives.
	return it.votes(r) && !it.votes(c)
}

func (it *item) votes(r *Replica) bool {
	d, ok := it.top.Replica(r.Replica)
	return ok && d.Role != base.RoleLearner
}

// tile gives every key one owner.
func (m *maker) tile() {
	var claims []*item
	for _, it := range m.items {
		if it.healthy || it.chosen != nil {
			claims = append(claims, it)
		}
	}
	slices.SortStableFunc(claims, func(a, b *item) int {
		if a.healthy != b.healthy {
			return map[bool]int{true: -1, false: 1}[a.healthy]
		}
		return cmp.Compare(b.top.Epoch.Version, a.top.Epoch.Version)
	})
	for i, it := range claims {
		it.end = it.top.End
		for _, o := range claims[:i] {
			if o.gone || bytes.Compare(it.top.Start, o.end) >= 0 || bytes.Compare(o.top.Start, it.end) >= 0 {
				continue
			}
			switch {
			case it.healthy || !o.healthy && it.top.Epoch.Version == o.top.Epoch.Version:
				m.problem("%s and %s overlap, and neither is newer: wait until both have applied their logs", it.top, o.top)
			case bytes.Compare(o.top.Start, it.top.Start) <= 0:
				it.gone, it.by = true, o.id
			default:
				it.end, it.cutBy = o.top.Start, o.id
			}
		}
	}
}

// renew lists what becomes of the lost shards that keep a range, and of the replicas of those that do not.
func (m *maker) renew() {
	for _, it := range m.items {
		switch {
		case it.healthy:
			m.plan.Known = append(m.plan.Known, it.top)
		case it.chosen != nil && !it.gone:
			m.plan.Shards = append(m.plan.Shards, m.renewed(it))
		default:
			for _, r := range it.replicas {
				m.plan.GiveUp = append(m.plan.GiveUp, Drop{Store: r.Store, Shard: r.Shard, Replica: r.Replica})
			}
		}
	}
}

func (m *maker) renewed(it *item) Shard {
	c := it.chosen
	s := Shard{
		Shard: it.id, Start: it.top.Start, End: it.end, Survivor: c.Store, Replica: c.Replica,
		Version: c.Desc.Epoch.Version, Applied: c.Applied, Commit: c.Commit, LastTerm: c.LastTerm, LastIndex: c.LastIndex,
		Settled: c.Settled,
	}
	next := base.ReplicaID(0)
	for _, r := range it.replicas {
		s.Term = max(s.Term, r.Term)
		next = max(next, r.Replica+1)
		if r.Desc != nil {
			next = max(next, r.Desc.NextReplicaID)
		}
		if r.Store != c.Store {
			s.Dropped = append(s.Dropped, Drop{Store: r.Store, Shard: r.Shard, Replica: r.Replica})
		}
	}
	s.Term += Jump
	s.Desc = &base.Descriptor{
		Shard: it.id, Start: s.Start, End: s.End, NextReplicaID: next + Jump,
		Epoch:    base.Epoch{ConfVer: it.top.Epoch.ConfVer + Jump, Version: it.top.Epoch.Version + Jump},
		Replicas: []base.ReplicaDesc{{Replica: c.Replica, Store: c.Store, Role: base.RoleVoter}},
	}
	s.Loss = it.loss()
	m.plan.Known = append(m.plan.Known, s.Desc)
	return s
}

// anew gives the ranges that nobody owns to new, empty shards.
func (m *maker) anew() {
	load := make(map[base.StoreID]int)
	for _, r := range m.in.Replicas {
		load[r.Store]++
	}
	spaces := [][2][]byte{{base.UserStart(), base.UserEnd()}, {base.SystemStart(), base.SystemEnd()}}
	known := slices.SortedFunc(slices.Values(m.plan.Known), func(a, b *base.Descriptor) int {
		return bytes.Compare(a.Start, b.Start)
	})
	for _, space := range spaces {
		at := space[0]
		for _, d := range known {
			if bytes.Compare(d.Start, space[0]) < 0 || bytes.Compare(d.Start, space[1]) >= 0 {
				continue
			}
			if bytes.Compare(at, d.Start) < 0 {
				m.hole(at, d.Start, load)
			}
			if bytes.Compare(at, d.End) < 0 {
				at = d.End
			}
		}
		if bytes.Compare(at, space[1]) < 0 {
			m.hole(at, space[1], load)
		}
	}
}

// hole plans a new shard for a range, on the store that holds least.
func (m *maker) hole(start, end []byte, load map[base.StoreID]int) {
	var on base.StoreID
	for _, s := range m.in.Survivors {
		if on == 0 || load[s] < load[on] {
			on = s
		}
	}
	if on == 0 {
		m.problem("no store is left")
		return
	}
	load[on]++
	s := Shard{Start: start, End: end, On: on, Loss: "everything: no replica is left, the range begins anew, empty"}
	d := &base.Descriptor{
		Start: start, End: end, NextReplicaID: Jump + 1, Epoch: base.Epoch{ConfVer: Jump, Version: m.high + Jump},
		Replicas: []base.ReplicaDesc{{Replica: Jump, Store: on, Role: base.RoleVoter}},
	}
	if start[0] == base.SpaceSystem {
		s.Shard, d.Shard = base.MetaShard, base.MetaShard
		s.Loss = "all records of the cluster: no replica is left, they are made anew from what the nodes know; " +
			"rules, settings and jobs are lost"
	}
	for _, it := range m.items { // what of it is left and cannot be used
		for _, r := range it.replicas {
			if r.Faulted != "" && r.Desc != nil && it.chosen == nil && !it.healthy && string(r.Desc.Start) < string(end) &&
				string(start) < string(r.Desc.End) {
				s.Loss += fmt.Sprintf("; the replica of %s on %s is faulted (%s)", r.Shard, r.Store, r.Faulted)
			}
		}
	}
	s.Desc = d
	m.plan.Shards = append(m.plan.Shards, s)
}
