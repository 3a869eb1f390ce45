package recovery

import (
	"crypto/sha256"
	"encoding/binary"

	"github.com/shardd/shardd/internal/base"
)

// Token names what was confirmed: the stores that are given up, the choice of each shard with how far its log is, and
// what is dropped. Anything that a person may have decided by changes it; what only moves on, such as an applied index,
// does not.
func (p *Plan) Token(in Input) [sha256.Size]byte {
	b := []byte{1}
	u64 := func(v uint64) { b = binary.BigEndian.AppendUint64(b, v) }
	text := func(s []byte) { u64(uint64(len(s))); b = append(b, s...) }
	stores := func(list []base.StoreID) {
		u64(uint64(len(list)))
		for _, s := range list {
			u64(uint64(s))
		}
	}
	drops := func(list []Drop) {
		u64(uint64(len(list)))
		for _, d := range list {
			u64(uint64(d.Store))
			u64(uint64(d.Shard))
			u64(uint64(d.Replica))
		}
	}
	stores(in.Failed)
	stores(in.Survivors)
	u64(uint64(len(p.Shards)))
	for i := range p.Shards {
		s := &p.Shards[i]
		u64(uint64(s.Shard))
		text(s.Start)
		text(s.End)
		u64(uint64(s.Survivor))
		u64(uint64(s.Replica))
		u64(s.LastTerm)
		u64(s.LastIndex)
		drops(s.Dropped)
	}
	drops(p.GiveUp)
	return sha256.Sum256(b)
}
