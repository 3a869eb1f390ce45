package bench

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/shard/apply"
)

// BenchmarkApply applies one entry of writes to random records of 100,000 and commits without sync. Writes with a
// condition read the key first.
func BenchmarkApply(b *testing.B) {
	for _, writes := range []int{1, 16, 256} {
		for _, conditional := range []bool{false, true} {
			b.Run(fmt.Sprintf("writes=%d/conditional=%t", writes, conditional), func(b *testing.B) {
				e, states := benchEngine(b, 1)
				m := apply.New(e, states[0].Desc, states[0].Applied)
				r := rand.New(rand.NewPCG(1, 1))
				// Many different entries, made in advance: keys decide what the memtable costs.
				entries := make([]raftpb.Entry, max(1, 4096/writes))
				for i := range entries {
					entries[i] = benchEntry(r, 0, 1, writes, engine.InitialIndex+1)
					if conditional {
						entries[i] = onlyIfAbsent(b, entries[i])
					}
				}
				answers := 0
				sink := func(int, int, uint64, wire.Answer) { answers++ }
				b.SetBytes(int64(len(entries[0].Data)))
				b.ReportAllocs()
				index := uint64(engine.InitialIndex)
				n := 0
				for b.Loop() {
					index++
					ent := entries[n%len(entries) : n%len(entries)+1]
					ent[0].Index = index
					n++
					batch := e.NewBatch()
					if err := m.Apply(batch, ent, sink); err != nil {
						b.Fatal(err)
					}
					if err := e.Commit(batch, false); err != nil {
						b.Fatal(err)
					}
					batch.Close()
				}
				if answers != n*writes {
					b.Fatalf("%d answers for %d writes", answers, n*writes)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n*writes), "ns/write")
			})
		}
	}
}

// onlyIfAbsent gives every write of an entry the condition that its key does not exist.
func onlyIfAbsent(b *testing.B, e raftpb.Entry) raftpb.Entry {
	b.Helper()
	h, ops, err := wire.DecodeEntry(e.Data)
	if err != nil {
		b.Fatal(err)
	}
	e.Data = h.Append(nil)
	for len(ops) > 0 {
		var op wire.Op
		if _, ops, err = wire.DecodeOp(ops, &op); err != nil {
			b.Fatal(err)
		}
		op.Flags |= wire.FlagIfVersion
		e.Data = op.Append(e.Data)
	}
	return e
}
