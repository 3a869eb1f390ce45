package bench

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// What the micro-benchmarks share: 100,000 records of 1 KiB, divided among shards by their keys, so that figures compare
// with those of YCSB.
const (
	benchRecords = 100_000
	benchValue   = 1 << 10
)

// benchKey is the routing key of record n.
func benchKey(n int) []byte {
	return binary.BigEndian.AppendUint32([]byte{base.SpaceUser}, uint32(n))
}

// benchDescriptor is shard i (from 0) of count, with a voter on each of stores 1 to replicas.
func benchDescriptor(i, count, replicas int) *base.Descriptor {
	bound := func(i int) []byte {
		switch i {
		case 0:
			return base.UserStart()
		case count:
			return base.UserEnd()
		}
		return benchKey(i * benchRecords / count)
	}
	d := &base.Descriptor{Shard: base.ShardID(10 + i), Start: bound(i), End: bound(i + 1),
		Epoch: base.Epoch{ConfVer: 1, Version: 1}, NextReplicaID: base.ReplicaID(replicas + 1)}
	for s := 1; s <= replicas; s++ {
		d.Replicas = append(d.Replicas,
			base.ReplicaDesc{Replica: base.ReplicaID(s), Store: base.StoreID(s), Role: base.RoleVoter})
	}
	return d
}

// benchPut is one write of a random record of shard i of count.
func benchPut(r *rand.Rand, i, count int, value []byte) wire.Op {
	lo, hi := i*benchRecords/count, (i+1)*benchRecords/count
	key := benchKey(lo + r.IntN(hi-lo))
	return wire.Op{Code: wire.OpPut, Shard: base.ShardID(10 + i), Version: 1, Key: key, Value: value}
}

// benchValueOf is a value that does not compress.
func benchValueOf(r *rand.Rand) []byte {
	b := make([]byte, benchValue)
	for i := 0; i+8 <= len(b); i += 8 {
		binary.BigEndian.PutUint64(b[i:], r.Uint64())
	}
	return b
}

// benchEntry is a log entry of writes to shard i of count.
func benchEntry(r *rand.Rand, i, count, writes int, index uint64) raftpb.Entry {
	h := wire.EntryHeader{Kind: wire.EntryData, Count: uint32(writes), Proposal: index, Stamp: index << 20}
	data := h.Append(make([]byte, 0, wire.EntryHeaderSize+writes*(benchValue+wire.HeaderSize+8)))
	for range writes {
		op := benchPut(r, i, count, benchValueOf(r))
		data = op.Append(data)
	}
	return raftpb.Entry{Type: raftpb.EntryNormal, Term: engine.InitialTerm, Index: index, Data: data}
}

// benchEngine is an engine on disk with a replica of each of count shards.
func benchEngine(b testing.TB, count int) (*engine.Engine, []engine.ReplicaState) {
	b.Helper()
	e, err := engine.Open(engine.Options{Dir: b.TempDir(), Fatal: func(err error) { b.Error(err) }})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := e.Close(); err != nil {
			b.Error(err)
		}
	})
	batch := e.NewBatch()
	for i := range count {
		batch.CreateReplica(benchDescriptor(i, count, 3), 1, 0, nil)
	}
	if err := e.Commit(batch, true); err != nil {
		b.Fatal(err)
	}
	batch.Close()
	states, err := e.LoadReplicas()
	if err != nil {
		b.Fatal(err)
	}
	return e, states
}
