package shard

import (
	"bytes"

	"github.com/shardd/shardd/engine"
)

// QuarantineRange faults every replica whose data may have suffered from a damaged file with the stored keys [lo, hi), and
// returns how many. Others serve on, and the shards of those that stopped go on without them until they are replaced.
// The only voter of a shard stays: what can still be read of it may be all there is, and a read of the damaged part fails.
// A file with the records of many shards, logs and such, stops none of them: a replica whose own are damaged finds out
// when it reads them.
func (s *Store) QuarantineRange(lo, hi []byte, reason string) (stopped int) {
	first, last, local := engine.LocalShards(lo, hi)
	s.mu.RLock()
	all := make([]*replica, 0, len(s.mu.replicas))
	for _, r := range s.mu.replicas {
		all = append(all, r)
	}
	s.mu.RUnlock()
	for _, r := range all {
		d := r.desc.Load()
		if d != nil && onlyVoter(d, r.id) {
			continue
		}
		touched := local && first == last && first == r.shard
		if d != nil && !touched {
			touched = bytes.Compare(lo, d.End) < 0 && bytes.Compare(d.Start, hi) < 0
		}
		if !touched || r.faulted.Load() != nil {
			continue
		}
		s.fault(r, reason, nil)
		s.pool.Enqueue(uint64(r.shard)) // its worker cleans up
		stopped++
	}
	return stopped
}
