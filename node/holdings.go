package node

import (
	"slices"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement/plan"
	"github.com/shardd/shardd/shard"
)

// holdings is what the replicas of this store come to, kept up as they change one by one. It belongs to the report loop.
//
// INVARIANT(sums): digest, replicas and leaders are those of all, and loads holds the load of each leader that has one.
type holdings struct {
	all               map[base.ShardID]*told
	digest            plan.Digest
	replicas, leaders int // initialised ones
	loads             map[base.ShardID]shard.Load

	led    map[base.ShardID]bool // whose followers are looked at
	sorted []base.ShardID        // led, ascending, unless it is stale
	stale  bool
}

// A rate below these is one that has faded, and that its shard may not bring up to date any more.
const (
	fadedRequests = 0.01
	fadedBytes    = 10
)

func (h *holdings) init() {
	if h.all == nil {
		h.all = make(map[base.ShardID]*told)
		h.loads = make(map[base.ShardID]shard.Load)
		h.led = make(map[base.ShardID]bool)
	}
}

// lead notes whether the followers of a shard are to be looked at.
func (h *holdings) lead(s *shard.Summary) {
	h.setLed(s.Shard, s.Leads && s.Faulted == "" && s.Desc != nil && len(s.Desc.Replicas) > 1)
}

func (h *holdings) setLed(id base.ShardID, led bool) {
	if h.led[id] == led {
		return
	}
	h.stale = true
	if led {
		h.led[id] = true
	} else {
		delete(h.led, id)
	}
}

// ledShards returns the shards whose followers are looked at, ascending.
func (h *holdings) ledShards() []base.ShardID {
	if h.stale {
		h.stale = false
		h.sorted = h.sorted[:0]
		for id := range h.led {
			h.sorted = append(h.sorted, id)
		}
		slices.Sort(h.sorted)
	}
	return h.sorted
}

// put makes r what is known of a replica.
func (h *holdings) put(s *shard.Summary, r *told) {
	h.count(s.Shard, -1)
	h.all[s.Shard] = r
	h.count(s.Shard, 1)
	if s.Leads && (s.Load.Requests() >= fadedRequests || s.Load.Bytes() >= fadedBytes) {
		h.loads[s.Shard] = s.Load
	} else {
		delete(h.loads, s.Shard)
	}
}

// drop takes a replica out that is not here any more.
func (h *holdings) drop(id base.ShardID) {
	h.count(id, -1)
	delete(h.all, id)
	delete(h.loads, id)
	h.setLed(id, false)
}

func (h *holdings) count(id base.ShardID, sign int) {
	kept := h.all[id]
	if kept == nil {
		return
	}
	r := kept.reported()
	if sign > 0 {
		h.digest.Add(r.digested(id))
	} else {
		h.digest.Sub(r.digested(id))
	}
	if r.uninitialised {
		return
	}
	h.replicas += sign
	if r.leads {
		h.leaders += sign
	}
}

// load is the sum of all leaders'.
func (h *holdings) load() (sum shard.Load) {
	for _, l := range h.loads {
		sum = sum.Plus(l)
	}
	return sum
}
