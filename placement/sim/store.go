package sim

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement/plan"
)

// store is one simulated store.
type store struct {
	id          base.StoreID
	labels      map[string]string
	capacity    uint64
	up          bool
	slow        bool
	incarnation uint64
	commission  plan.Commission
	drain       plan.Drain

	shards map[base.ShardID]*shard // it has a replica of, on disk
	bytes  uint64

	// What the next report tells: all, or what changed since the last.
	full    bool
	dirty   map[base.ShardID]bool
	removed map[base.ShardID]bool
	// told is what the digest of the last report covers.
	told   map[base.ShardID]plan.ReplicaReport
	digest plan.Digest

	in, out int // snapshots now
}

// AddNode adds a running, empty node and returns its id. Capacity 0 means that it never fills.
func (c *Cluster) AddNode(labels map[string]string, capacity uint64) base.StoreID {
	id := base.StoreID(1)
	if n := len(c.order); n > 0 {
		id = c.order[n-1].id + 1
	}
	c.addNode(id, labels, capacity)
	return id
}

func (c *Cluster) addNode(id base.StoreID, labels map[string]string, capacity uint64) *store {
	s := &store{
		id: id, labels: maps.Clone(labels), capacity: capacity, up: true, incarnation: 1, full: true,
		shards: map[base.ShardID]*shard{}, dirty: map[base.ShardID]bool{}, removed: map[base.ShardID]bool{},
		told: map[base.ShardID]plan.ReplicaReport{},
	}
	if s.labels == nil {
		s.labels = map[string]string{}
	}
	c.stores[id] = s
	c.order = append(c.order, s)
	slices.SortFunc(c.order, func(a, b *store) int { return cmp.Compare(a.id, b.id) })
	c.member(s)
	return s
}

func (c *Cluster) member(s *store) {
	c.view.SetMember(plan.Member{ID: s.id, Labels: s.labels, Commission: s.commission, Drain: s.drain}, c.now)
}

// Nodes returns the ids of all nodes that were ever added, ascending.
func (c *Cluster) Nodes() []base.StoreID {
	var out []base.StoreID
	for _, s := range c.order {
		out = append(out, s.id)
	}
	return out
}

// With returns the nodes with a label.
func (c *Cluster) With(key, value string) []base.StoreID {
	var out []base.StoreID
	for _, s := range c.order {
		if s.labels[key] == value {
			out = append(out, s.id)
		}
	}
	return out
}

// Lose has a node die at once; its disk stays.
func (c *Cluster) Lose(id base.StoreID) {
	s := c.stores[id]
	if s == nil || !s.up {
		return
	}
	s.up = false
	c.logf("%s is lost", id)
	for _, sid := range slices.Sorted(maps.Keys(s.shards)) {
		sh := s.shards[sid]
		if sh.leader == id {
			sh.leader = 0
			c.electLater(sid)
		}
		c.tell(sh) // its leader hears no more of that replica
	}
}

// Return has a lost node come back with its disk.
func (c *Cluster) Return(id base.StoreID) {
	s := c.stores[id]
	if s == nil || s.up {
		return
	}
	s.up, s.full = true, true
	s.incarnation++
	c.logf("%s is back", id)
	for _, sid := range slices.Sorted(maps.Keys(s.shards)) {
		sh := s.shards[sid]
		if c.shards[sid] != sh || sh.on(id) == nil {
			// It was removed while it was away: it learns so, and drops it.
			c.drop(s, sh)
			continue
		}
		if sh.leader == 0 {
			c.electLater(sid)
		}
		c.tell(sh)
	}
}

// Drain sets what a node is kept free of.
func (c *Cluster) Drain(id base.StoreID, d plan.Drain) {
	s := c.stores[id]
	s.drain = d
	c.member(s)
}

// Commission sets whether a node belongs to the cluster.
func (c *Cluster) Commission(id base.StoreID, m plan.Commission) {
	s := c.stores[id]
	s.commission = m
	c.member(s)
}

// SetSlow makes a node slow or well again.
func (c *Cluster) SetSlow(id base.StoreID, slow bool) { c.stores[id].slow = slow }

func (c *Cluster) electLater(id base.ShardID) {
	// Not all at the same moment, as the timers of a cluster are not.
	jitter := time.Duration(c.rng.Int64N(int64(c.opt.Election)))
	c.leaders = append(c.leaders, election{c.now + c.opt.Election + jitter, id})
}

// elect holds the elections that are due.
func (c *Cluster) elect() {
	var later []election
	due := c.leaders
	c.leaders = nil
	slices.SortFunc(due, func(a, b election) int { return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.shard, b.shard)) })
	for _, e := range due {
		sh := c.shards[e.shard]
		switch {
		case sh == nil || sh.leader != 0:
		case e.at > c.now:
			later = append(later, e)
		case !c.quorum(sh):
			// The next store that comes back asks again.
		default:
			var can []base.StoreID
			for i := range sh.desc.Replicas {
				r := &sh.desc.Replicas[i]
				if (r.Role == base.RoleVoter || r.Role == base.RoleIncoming) && c.healthy(sh, r) {
					can = append(can, r.Store)
				}
			}
			if len(can) > 0 {
				c.lead(sh, can[c.rng.IntN(len(can))])
			}
		}
	}
	c.leaders = append(c.leaders, later...)
}

// Transfer moves the leadership of a shard to the voter after the present leader, as something other than the driver may.
func (c *Cluster) Transfer(id base.ShardID) {
	sh := c.shards[id]
	for i, r := range sh.desc.Replicas {
		if r.Store == sh.leader {
			c.lead(sh, sh.desc.Replicas[(i+1)%len(sh.desc.Replicas)].Store)
			return
		}
	}
}

// lead makes a store the leader of a shard.
func (c *Cluster) lead(sh *shard, id base.StoreID) {
	c.tell(sh)
	sh.leader = id
	sh.term++
	c.tell(sh)
}

// Describe returns the labels and the state of a node as text.
func (c *Cluster) Describe(id base.StoreID) string {
	s := c.stores[id]
	var out []string
	for _, k := range slices.Sorted(maps.Keys(s.labels)) {
		out = append(out, k+"="+s.labels[k])
	}
	switch {
	case !s.up:
		out = append(out, "down")
	case s.slow:
		out = append(out, "slow")
	}
	if w := s.commission.String(); w != "" {
		out = append(out, w)
	}
	if s.drain != plan.DrainNone {
		out = append(out, "drained")
	}
	return strings.Join(out, " ")
}

// Label returns the value of one label of a node.
func (c *Cluster) Label(id base.StoreID, key string) string { return c.stores[id].labels[key] }
