package node

import (
	"cmp"
	"maps"
	"slices"

	"github.com/shardd/shardd/internal/base"
)

// Where the meta shard is. Its replicas move like any other's, so a node knows its descriptor only as of some moment:
// from the ident at start, from the local replica if there is one, and from the answers to reports, which carry what the
// receiver has applied. The newest is kept in the ident. A node that slept until all members that it knows have moved
// asks everyone in its address book: each node knows its own newest, and one of them reports to the leader.

// metaDesc returns the newest descriptor of the meta shard that is known here.
func (m *member) metaDesc() *base.Descriptor {
	known := m.meta.Load()
	if d, ok := m.store.Descriptor(base.MetaShard); ok && d != nil && d.Epoch.Newer(known.Epoch) {
		return d
	}
	return known
}

// learnMeta keeps a descriptor of the meta shard that is newer than what is known, also over a restart. It syncs: never
// call it on a worker.
func (m *member) learnMeta(d *base.Descriptor) {
	if d == nil || d.Shard != base.MetaShard || len(d.Replicas) == 0 {
		return
	}
	for {
		old := m.meta.Load()
		if !d.Epoch.Newer(old.Epoch) {
			return
		}
		if m.meta.CompareAndSwap(old, d) {
			break
		}
	}
	if err := m.n.eng.RecordMeta(d); err != nil {
		m.log.Warn("cannot record the meta shard's descriptor", "descriptor", d.String(), "err", err)
		return
	}
	m.log.Debug("meta shard moved", "descriptor", d.String())
}

// hasMeta reports whether this store has a replica of the meta shard that holds data.
func (m *member) hasMeta() bool {
	d, ok := m.store.Descriptor(base.MetaShard)
	return ok && d != nil
}

// metaLeader returns the node that leads the meta shard as far as known here, 0 if unknown.
func (m *member) metaLeader() base.StoreID {
	if m.hasMeta() {
		if lead, _, ok := m.store.Leader(base.MetaShard); ok && lead != 0 {
			return lead
		}
		// A member waits for its own election. A replica that has been removed and does not know it yet hears of none.
		if _, listed := m.metaDesc().ReplicaOn(m.self); listed {
			return 0
		}
	}
	return base.StoreID(m.metaHint.Load())
}

// leadsMeta reports whether this node leads the meta shard, and at which term.
func (m *member) leadsMeta() (term uint64, ok bool) {
	lead, term, ok := m.store.Leader(base.MetaShard)
	return term, ok && lead == m.self
}

// place is where a node may be reached; id is 0 for an address from --join.
type place struct {
	id   base.StoreID
	addr string
}

// metaPlaces lists whom to ask for the meta leader while it is unknown: the members that are known, then everyone else
// in the address book, then the addresses of --join.
func (m *member) metaPlaces() []place {
	book := m.book.all()
	book[m.self] = m.n.addr
	var out []place
	seen := make(map[string]bool)
	add := func(p place) {
		if p.addr != "" && !seen[p.addr] {
			seen[p.addr] = true
			out = append(out, p)
		}
	}
	for _, r := range m.metaDesc().Replicas {
		add(place{r.Store, book[r.Store]})
	}
	others := slices.SortedFunc(maps.Keys(book), func(a, b base.StoreID) int { return cmp.Compare(a, b) })
	for _, id := range others {
		if id != m.self {
			add(place{id, book[id]})
		}
	}
	for _, a := range m.n.cfg.Join {
		if a != m.n.addr {
			add(place{0, a})
		}
	}
	if len(out) == 0 {
		out = append(out, place{m.self, m.n.addr})
	}
	return out
}
