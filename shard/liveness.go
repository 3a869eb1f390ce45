package shard

import "github.com/shardd/shardd/internal/base"

// Liveness hands what another store says of itself to the Monitor; the transport calls it.
func (s *Store) Liveness(from base.StoreID, incarnation uint64, payload []byte) {
	if m := s.cfg.Liveness; m != nil {
		m.Receive(from, incarnation, payload)
	}
}
