package sim

import (
	"slices"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement/plan"
)

// Report has every store that is up report to the view: all its replicas if it was asked to, else what changed.
func (c *Cluster) Report() {
	for _, s := range c.order {
		if s.up {
			c.reportOf(s)
		}
	}
}

func (c *Cluster) reportOf(s *store) {
	r := plan.StoreReport{Store: s.id, Incarnation: s.incarnation, At: c.now, Full: s.full, DiskBytes: s.bytes}
	if s.capacity > 0 {
		r.DiskCapacity = s.capacity
		r.DiskFree = s.capacity - min(s.bytes, s.capacity)
		switch {
		case r.DiskFree < s.capacity/100:
			r.Disk = plan.DiskCritical
		case r.DiskFree < s.capacity*3/100:
			r.Disk = plan.DiskLow
		}
	}
	if s.slow {
		r.Slow = "its disk takes long"
	}
	var ids []base.ShardID
	if s.full {
		for id := range s.shards {
			ids = append(ids, id)
		}
		s.digest = plan.Digest{}
		clear(s.told)
	} else {
		for id := range s.dirty {
			if s.shards[id] != nil {
				ids = append(ids, id)
			}
		}
		for id := range s.removed {
			r.Removed = append(r.Removed, id)
			if old, ok := s.told[id]; ok {
				s.digest.Sub(&old)
				delete(s.told, id)
			}
		}
		slices.Sort(r.Removed)
	}
	slices.Sort(ids)
	for _, id := range ids {
		rr := c.replicaReport(s, s.shards[id])
		if rr.Replica == 0 {
			continue
		}
		r.Replicas = append(r.Replicas, rr)
		if !c.opt.NoDigests {
			if old, ok := s.told[id]; ok {
				s.digest.Sub(&old)
			}
			s.told[id] = rr
			s.digest.Add(&rr)
		}
	}
	if !c.opt.NoDigests {
		r.Digest = s.digest.Sum()
	}
	clear(s.dirty)
	clear(s.removed)
	wantFull, err := c.view.Report(&r)
	if err != nil {
		c.fault("report of %s: %v", s.id, err)
	}
	s.full = wantFull
}

func (c *Cluster) replicaReport(s *store, sh *shard) plan.ReplicaReport {
	r, _ := sh.desc.ReplicaOn(s.id)
	out := plan.ReplicaReport{
		Shard: sh.id(), Replica: r.Replica, Desc: sh.desc, Leads: sh.leader == s.id, Term: sh.term, Size: sh.size,
		Put: sh.size, Uninitialised: sh.empty[r.Replica],
	}
	if out.Uninitialised {
		out.Desc, out.Size, out.Put = nil, 0, 0
	}
	if sh.into != 0 {
		out.MergingInto, out.MergeID = sh.into, uint64(sh.id())
	}
	if out.Leads {
		out.Load = sh.load
		out.HotKey, out.SplitKey = []byte(sh.hot), []byte(sh.spot)
		for i := range sh.desc.Replicas {
			if p := &sh.desc.Replicas[i]; !c.stores[p.Store].up {
				out.Silent = append(out.Silent, p.Replica)
			} else if sh.empty[p.Replica] {
				out.Behind = append(out.Behind, p.Replica)
			}
		}
	}
	return out
}
