package engine

import (
	"encoding/binary"
	"fmt"

	"github.com/shardd/shardd/internal/base"
)

// SnapshotMeta opens a snapshot stream: whose state it is, where it goes, and up to where it was applied. Desc and
// Applied are read inside the view that the data is read from (rule W2).
type SnapshotMeta struct {
	Shard              base.ShardID
	From, To           base.ReplicaID
	FromStore, ToStore base.StoreID
	RaftTerm           uint64 // of the sending leader
	Desc               *base.Descriptor
	Applied            AppliedState
	ApproxBytes        uint64 // what the data takes on the sender's disk; an estimate
}

// metaFixedLen is everything in front of the descriptor.
const metaFixedLen = 1 + 7*8 + 2*4

// Append adds the fixed layout to dst, big-endian:
//
//	u8 version | u64 shard | u64 from | u64 to | u64 from store | u64 to store | u64 raft term | u64 approx bytes
//	u32 len descriptor | u32 len applied state | descriptor | applied state
func (m *SnapshotMeta) Append(dst []byte) []byte {
	dst = append(dst, layoutV1)
	for _, v := range [...]uint64{
		uint64(m.Shard), uint64(m.From), uint64(m.To), uint64(m.FromStore), uint64(m.ToStore), m.RaftTerm, m.ApproxBytes,
	} {
		dst = binary.BigEndian.AppendUint64(dst, v)
	}
	at := len(dst)
	applied := appliedLen(&m.Applied)
	dst = binary.BigEndian.AppendUint32(dst, 0) // known below
	dst = binary.BigEndian.AppendUint32(dst, uint32(applied))
	start := len(dst)
	dst = m.Desc.Append(dst)
	binary.BigEndian.PutUint32(dst[at:], uint32(len(dst)-start))
	dst = append(dst, make([]byte, applied)...)
	putApplied(dst[len(dst)-applied:], &m.Applied)
	return dst
}

// DecodeSnapshotMeta reads what Append wrote. The result shares no memory with b. It fails with ErrCorrupt, also if the
// descriptor is of another shard or does not list the receiver.
func DecodeSnapshotMeta(b []byte) (*SnapshotMeta, error) {
	const what = "snapshot meta"
	if err := checkLayout(what, b, metaFixedLen, false); err != nil {
		return nil, err
	}
	m := &SnapshotMeta{
		Shard: base.ShardID(u64at(b, 1)), From: base.ReplicaID(u64at(b, 9)), To: base.ReplicaID(u64at(b, 17)),
		FromStore: base.StoreID(u64at(b, 25)), ToStore: base.StoreID(u64at(b, 33)),
		RaftTerm: u64at(b, 41), ApproxBytes: u64at(b, 49),
	}
	desc, applied := uint64(binary.BigEndian.Uint32(b[57:])), uint64(binary.BigEndian.Uint32(b[61:]))
	if want := metaFixedLen + desc + applied; uint64(len(b)) != want {
		return nil, fmt.Errorf("%s: %d bytes, want %d: %w", what, len(b), want, ErrCorrupt)
	}
	d, rest, err := base.DecodeDescriptor(b[metaFixedLen : metaFixedLen+desc])
	if err == nil && len(rest) != 0 {
		err = fmt.Errorf("%d bytes behind the descriptor: %w", len(rest), ErrCorrupt)
	}
	if err == nil {
		m.Desc = d
		m.Applied, err = decodeApplied(b[metaFixedLen+desc:])
	}
	if err == nil {
		err = m.check()
	}
	if err != nil {
		return nil, fmt.Errorf("%s of %s: %w", what, m.Shard, err)
	}
	return m, nil
}

// check tells whether the parts belong together.
func (m *SnapshotMeta) check() error {
	switch r, ok := m.Desc.Replica(m.To); {
	case m.Desc.Shard != m.Shard:
		return fmt.Errorf("it carries the descriptor of %s: %w", m.Desc.Shard, ErrCorrupt)
	case !ok || r.Store != m.ToStore:
		return fmt.Errorf("%s does not list replica %d on %s: %w", m.Desc, m.To, m.ToStore, ErrCorrupt)
	case m.Applied.Index == 0 || m.Applied.Term == 0:
		return fmt.Errorf("applied at index %d, term %d: %w", m.Applied.Index, m.Applied.Term, ErrCorrupt)
	case !ownsData(m.Desc):
		return fmt.Errorf("%s reaches beyond the data families: %w", m.Desc, ErrCorrupt)
	}
	return nil
}

// name is for logs and errors: s12/3.
func (m *SnapshotMeta) name() string { return base.ReplicaName(m.Shard, m.To) }
