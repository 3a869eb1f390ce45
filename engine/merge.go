package engine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/cockroachdb/pebble/v2"
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
func (b *Batch) moveSessions(from, into base.ShardID) (err error) {
	lo, hi := shardSpan(spanSession, from)
	it, err := b.e.db.NewIter(&pebble.IterOptions{LowerBound: lo, UpperBound: hi})
	if err != nil {
		return readError(err)
	}
	defer func() { err = errors.Join(err, readError(it.Close())) }()
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.ValueAndErr()
		if err != nil {
			return readError(err)
		}
		key := bytes.Clone(it.Key())
		putShardKey(key, spanSession, into)
		have, both, err := b.e.get(key)
		if err != nil {
			return err
		}
		if both {
			newer, err := sessionNewer(v, have)
			if err != nil {
				return fmt.Errorf("key %x: %w", key, err)
			}
			if !newer {
				continue
			}
		}
		k, dst := b.set(len(key), len(v))
		copy(k, key)
		copy(dst, v)
	}
	return readError(it.Error())
}

func sessionNewer(a, b []byte) (bool, error) {
	for _, v := range [...][]byte{a, b} {
		if err := checkLayout("session", v, sessionFixedLen, false); err != nil {
			return false, err
		}
	}
	return u64at(a, 1) > u64at(b, 1), nil
}

const sessionFixedLen = 1 + 8

func putSessionHead(dst []byte, seq uint64) {
	dst[0] = layoutV1
	binary.BigEndian.PutUint64(dst[1:], seq)
}
