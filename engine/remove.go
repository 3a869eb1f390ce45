package engine

import (
	"fmt"

	"github.com/shardd/shardd/internal/base"
	"go.etcd.io/etcd/raft/v3/raftpb"
)

// Removal says what goes when a replica leaves the store, and which mark stays.
type Removal struct {
	Shard base.ShardID
	Mark  ReplicaMark      // ReplicaID 0
	Desc  *base.Descriptor // whose range of data goes with it; nil for an uninitialised replica
}

func (r *Removal) check() error {
	switch {
	case r.Shard == 0 || r.Mark.ReplicaID != 0 || r.Mark.NextReplicaID == 0:
		return fmt.Errorf("remove replica of %s: its mark would be {%d, %d}, want replica 0 and the next id",
			r.Shard, r.Mark.ReplicaID, r.Mark.NextReplicaID)
	case r.Desc != nil && r.Desc.Shard != r.Shard:
		return fmt.Errorf("remove replica of %s: the descriptor is of %s", r.Shard, r.Desc.Shard)
	case r.Desc != nil && !ownsData(r.Desc):
		return fmt.Errorf("remove replica of %s: %s reaches beyond the data families", r.Shard, r.Desc)
	}
	return nil
}

// ownsData reports whether the range lies within the data families and is not inverted.
func ownsData(d *base.Descriptor) bool {
	return isDataKey(d.Start) && string(d.Start) < string(d.End) && string(d.End) <= string([]byte{dataEnd})
}

// RemoveReplica deletes a replica: its records, its log, its sessions and its data, and leaves the mark. It is one
// boundary step (rule I2): commit the batch synced. A crash leaves the whole replica or none of it. The space comes
// back when Pebble compacts the range tombstones.
func (b *Batch) RemoveReplica(r Removal) {
	if err := r.check(); err != nil {
		b.invalid(err)
		return
	}
	b.clearLocal(r.Shard)
	if r.Desc != nil {
		b.deleteRange(r.Desc.Start, r.Desc.End)
	}
	b.SetMark(r.Shard, r.Mark)
}

// CreateUninitialised writes the mark {id, id+1} of a replica that knows nothing yet, with its HardState if that is not
// zero, and clears whatever the shard has here. Data needs no clearing: a replica that had any was removed with it.
// Commit it synced, before the replica answers anybody: a vote is a promise.
func (b *Batch) CreateUninitialised(shard base.ShardID, id base.ReplicaID, hard raftpb.HardState) {
	if shard == 0 || id == 0 || id+1 == 0 {
		b.invalid(fmt.Errorf("create uninitialised replica %s: ids must not be 0", base.ReplicaName(shard, id)))
		return
	}
	b.clearLocal(shard)
	b.SetMark(shard, ReplicaMark{ReplicaID: id, NextReplicaID: id + 1})
	if hard != (raftpb.HardState{}) {
		b.SetHardState(shard, hard)
	}
}

// clearLocal deletes everything about a shard in the local space but its mark. Descriptor and applied state are one key
// each: range tombstones in those spans would slow down every boot.
func (b *Batch) clearLocal(shard base.ShardID) {
	b.deleteLocal(shardKey(spanApplied, shard))
	lo, hi := shardSpan(spanSession, shard)
	b.deleteRange(lo, hi)
	b.deleteLocal(shardKey(spanDesc, shard))
	lo, hi = shardSpan(spanRaft, shard)
	b.deleteRange(lo, hi)
}

// ReplicaState reads the state of one replica; ok is false if the shard has none here. The caller sees to it that
// nobody writes it meanwhile. It fails with ErrCorrupt for what LoadReplicas would refuse.
func (e *Engine) ReplicaState(shard base.ShardID) (st ReplicaState, ok bool, err error) {
	fail := func(err error) (ReplicaState, bool, error) {
		return ReplicaState{}, false, fmt.Errorf("load replica of %s: %w", shard, err)
	}
	mark, ok, err := e.Mark(shard)
	if err != nil {
		return fail(err)
	}
	if !ok || mark.ReplicaID == 0 {
		return ReplicaState{}, false, nil
	}
	st = ReplicaState{Shard: shard, Mark: mark}
	desc, haveDesc, err := e.get(shardKey(spanDesc, shard))
	if err == nil && haveDesc {
		st.Desc, err = decodeStoredDesc(shard, desc)
	}
	if err != nil {
		return fail(err)
	}
	applied, haveApplied, err := e.get(shardKey(spanApplied, shard))
	if err == nil && haveApplied {
		st.Applied, err = decodeApplied(applied)
	}
	if err == nil {
		err = e.loadRaftState(&st, haveApplied)
	}
	if err != nil {
		return fail(err)
	}
	return st, true, nil
}

func decodeStoredDesc(shard base.ShardID, b []byte) (*base.Descriptor, error) {
	d, rest, err := base.DecodeDescriptor(b)
	if err == nil && (len(rest) != 0 || d.Shard != shard) {
		err = fmt.Errorf("descriptor of %s with %d bytes behind it: %w", d.Shard, len(rest), ErrCorrupt)
	}
	return d, err
}
