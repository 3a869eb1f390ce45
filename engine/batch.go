package engine

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2"
	"github.com/shardd/shardd/internal/base"
	"go.etcd.io/etcd/raft/v3/raftpb"
)

const (
	batchInitialBytes  = 64 << 10 // one pass of a worker, usually
	batchRetainedBytes = 8 << 20  // larger buffers go back to the collector
)

// Batch collects writes that become visible together and survive a crash together. Later writes win over earlier ones
// to the same key. It belongs to one goroutine at a time; between CommitAsync and its done callback it belongs to the
// engine. The first invalid write is remembered and returned by the commit, which then writes nothing.
type Batch struct {
	e   *Engine
	b   *pebble.Batch // nil until first used
	err error
	// changed are the rows whose gates the commit closes: all of Put, Delete and DeleteRange.
	changed rowChanges
}

// NewBatch returns an empty batch from the pool. Close puts it back.
func (e *Engine) NewBatch() *Batch { return e.batches.Get().(*Batch) }

func (b *Batch) pb() *pebble.Batch {
	if b.b == nil {
		b.b = b.e.db.NewBatch(pebble.WithInitialSizeBytes(batchInitialBytes),
			pebble.WithMaxRetainedSizeBytes(batchRetainedBytes))
	}
	return b.b
}

// Len returns the size of the batch in bytes, as it goes to the log; a small number for an empty one.
func (b *Batch) Len() int {
	if b.b == nil {
		return 0
	}
	return b.b.Len()
}

// Empty reports whether nothing has been written to the batch.
func (b *Batch) Empty() bool { return b.b == nil || b.b.Empty() }

// Err returns the first invalid write.
func (b *Batch) Err() error { return b.err }

// Reset empties the batch for its next use and keeps its memory, up to 8 MiB.
func (b *Batch) Reset() {
	b.err = nil
	b.changed.reset()
	if b.b != nil {
		b.b.Reset()
	}
}

// Close resets the batch and puts it back into the pool. It must not be used afterwards.
func (b *Batch) Close() {
	if b.e.fatal.stopped.Load() {
		return // Pebble may still have it
	}
	b.Reset()
	b.e.batches.Put(b)
}

func (b *Batch) invalid(err error) {
	if b.err == nil {
		b.err = err
	}
}

// set reserves a record and returns its key and value, to be filled before the next write to the batch.
func (b *Batch) set(keyLen, valueLen int) (key, value []byte) {
	op := b.pb().SetDeferred(keyLen, valueLen)
	key, value = op.Key, op.Value
	if err := op.Finish(); err != nil { // cannot happen without an index
		b.invalid(err)
	}
	return key, value
}

func (b *Batch) deleteLocal(key []byte) {
	op := b.pb().DeleteDeferred(len(key))
	copy(op.Key, key)
	if err := op.Finish(); err != nil {
		b.invalid(err)
	}
}

func (b *Batch) deleteRange(lo, hi []byte) {
	if string(hi) > string([]byte{dataStart}) {
		b.changeRange(lo, hi)
	}
	op := b.pb().DeleteRangeDeferred(len(lo), len(hi))
	copy(op.Key, lo)
	copy(op.Value, hi)
	if err := op.Finish(); err != nil {
		b.invalid(err)
	}
}

// Put stores a value under a routing key. The top bit of h.Flags must be clear.
func (b *Batch) Put(key []byte, h ValueHeader, value []byte) {
	if !isDataKey(key) || h.Flags&flagExpiry != 0 {
		b.invalid(fmt.Errorf("put %x, flags %#x: %w", key, h.Flags, ErrInvalidKey))
		return
	}
	b.change(key)
	k, v := b.set(len(key), valueLen(h, len(value)))
	copy(k, key)
	putValue(v, h, value)
}

// Delete removes a routing key, whether it exists or not.
func (b *Batch) Delete(key []byte) {
	if !isDataKey(key) {
		b.invalid(fmt.Errorf("delete %x: %w", key, ErrInvalidKey))
		return
	}
	b.change(key)
	b.deleteLocal(key)
}

// change notes that the row of a routing key changes.
func (b *Batch) change(key []byte) {
	if len(b.e.rows.stripes) > 0 {
		b.changed.hashes = append(b.changed.hashes, b.e.rows.hash(key))
	}
}

// changeRange notes that the rows in [lo, hi) change.
func (b *Batch) changeRange(lo, hi []byte) {
	switch ch := &b.changed; {
	case len(b.e.rows.stripes) == 0 || ch.all:
	case len(ch.ranges) == maxRanges:
		ch.all, ch.ranges = true, nil
	default:
		ch.ranges = append(ch.ranges, [2]string{string(lo), string(hi)})
	}
}

// DeleteRange removes the routing keys in [lo, hi), both in one data family; hi may be the family's end.
func (b *Batch) DeleteRange(lo, hi []byte) {
	if !isDataKey(lo) || string(lo) >= string(hi) || string(hi) > string([]byte{lo[0] + 1}) {
		b.invalid(fmt.Errorf("delete range [%x, %x): %w", lo, hi, ErrInvalidKey))
		return
	}
	b.deleteRange(lo, hi)
}

// SetHardState stores a replica's term, vote and commit index.
func (b *Batch) SetHardState(shard base.ShardID, h raftpb.HardState) {
	k, v := b.set(stateKeyLen, hardLen)
	putStateKey(k, shard, raftHard)
	putHard(v, h)
}

// SetTruncated stores where a replica's log starts. It deletes nothing; Log.Truncate does both.
func (b *Batch) SetTruncated(shard base.ShardID, t TruncatedState) {
	if err := checkConf(&t.Conf); err != nil {
		b.invalid(fmt.Errorf("truncated state of %s: %w", shard, err))
		return
	}
	k, v := b.set(stateKeyLen, truncLen(&t))
	putStateKey(k, shard, raftTruncated)
	putTruncated(v, &t)
}

// SetApplied stores a replica's applied state; it belongs in the batch of the effects it speaks of.
func (b *Batch) SetApplied(shard base.ShardID, a *AppliedState) {
	if err := checkApplied(a); err != nil {
		b.invalid(fmt.Errorf("applied state of %s: %w", shard, err))
		return
	}
	k, v := b.set(shardKeyLen, appliedLen(a))
	putShardKey(k, spanApplied, shard)
	putApplied(v, a)
}

// SetMark stores a replica mark.
func (b *Batch) SetMark(shard base.ShardID, m ReplicaMark) {
	if err := m.check(); err != nil {
		b.invalid(fmt.Errorf("shard %s: %w", shard, err))
		return
	}
	k, v := b.set(shardKeyLen, markLen)
	putShardKey(k, spanMark, shard)
	putMark(v, m)
}

// SetDescriptor stores the descriptor of a shard with a replica here.
func (b *Batch) SetDescriptor(d *base.Descriptor) {
	if err := d.Validate(); err != nil {
		b.invalid(err)
		return
	}
	enc := d.Append(make([]byte, 0, 128)) // rare: splits, merges and conf changes
	k, v := b.set(shardKeyLen, len(enc))
	putShardKey(k, spanDesc, d.Shard)
	copy(v, enc)
}

// CreateReplica writes the first state of a replica of a new shard: mark, descriptor, applied, truncated and hard state
// at InitialIndex and InitialTerm, and the shard's first data with version stamp. Commit it synced.
func (b *Batch) CreateReplica(d *base.Descriptor, id base.ReplicaID, stamp uint64, data []KV) {
	conf := ConfStateOf(d)
	if _, ok := d.Replica(id); !ok || len(conf.VotersOutgoing) > 0 {
		b.invalid(fmt.Errorf("create replica %s of %s: it is not listed, or the shard is joint", id, d))
		return
	}
	b.SetMark(d.Shard, ReplicaMark{ReplicaID: id, NextReplicaID: d.NextReplicaID})
	b.SetDescriptor(d)
	b.SetApplied(d.Shard, &AppliedState{Index: InitialIndex, Term: InitialTerm, Conf: conf, Stamp: stamp})
	b.SetHardState(d.Shard, raftpb.HardState{Term: InitialTerm, Commit: InitialIndex})
	b.SetTruncated(d.Shard, TruncatedState{Index: InitialIndex, Term: InitialTerm, Conf: conf})
	for _, kv := range data {
		if !d.Contains(kv.Key) {
			b.invalid(fmt.Errorf("create %s: first data outside its range, key %x: %w", d, kv.Key, ErrInvalidKey))
			return
		}
		b.Put(kv.Key, ValueHeader{Version: stamp}, kv.Value)
	}
}
