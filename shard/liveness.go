package shard

import (
	"maps"
	"slices"

	"github.com/shardd/shardd/internal/base"
)

// Liveness hands what another store says of itself to the Monitor; the transport calls it.
func (s *Store) Liveness(from base.StoreID, incarnation uint64, payload []byte) {
	if m := s.cfg.Liveness; m != nil {
		m.Receive(from, incarnation, payload)
	}
}

// PeerStores returns the other stores that have a replica of a shard of this store, ascending: those with which it
// exchanges beats.
func (s *Store) PeerStores() []base.StoreID {
	found := map[base.StoreID]bool{}
	for _, r := range s.all() {
		d := r.desc.Load()
		if d == nil {
			continue // it has heard from its leader, and that store from its own descriptor
		}
		for _, p := range d.Replicas {
			if p.Store != s.cfg.Store {
				found[p.Store] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(found))
}
