package engine

import (
	"bytes"
	"fmt"
	"math"

	"github.com/shardd/shardd/internal/base"
)

// MergedAway as NextReplicaID of a mark means that the shard was merged into its left neighbour: no replica of it may be
// created ever again.
const MergedAway = base.ReplicaID(math.MaxUint64)

// MergeReplica takes a shard's replica away that is merged into another one: records, log and mark go as in a removal,
// its data stays where it is, and its sessions become the other shard's. Where both have one, that with the higher
// sequence stays, and of equal ones into's. It is part of one boundary step (rule I2), with into's descriptor and
// applied state: commit the batch synced. Nobody may write sessions of the two shards meanwhile.
func (b *Batch) MergeReplica(from, into base.ShardID) {
	if from == 0 || into == 0 || from == into {
		b.invalid(fmt.Errorf("merge %s into %s: two shards are needed", from, into))
		return
	}
	if err := b.moveSessions(from, into); err != nil {
		b.invalid(fmt.Errorf("merge %s into %s: sessions: %w", from, into, err))
		return
	}
	b.clearLocal(from)
	b.SetMark(from, ReplicaMark{NextReplicaID: MergedAway})
}

// moveSessions copies the records of one shard that win over the other's. The originals go with everything else.
func (b *Batch) moveSessions(from, into base.ShardID) error {
	return b.e.eachSession(from, func(key, value []byte) error {
		own := bytes.Clone(key)
		putShardKey(own, spanSession, into)
		have, both, err := b.e.get(own)
		if err != nil {
			return err
		}
		if both {
			theirs, err := decodeSession(key, value)
			if err != nil {
				return err
			}
			ours, err := decodeSession(own, have)
			if err != nil || ours.Sequence >= theirs.Sequence {
				return err
			}
		}
		k, v := b.set(len(own), len(value))
		copy(k, own)
		copy(v, value)
		return b.err
	})
}
