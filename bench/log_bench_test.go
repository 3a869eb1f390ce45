package bench

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/engine"
)

// BenchmarkLogAppend appends one entry to the log of each group in one batch, truncates what is old, and commits, as a
// pass does. Without sync it shows the processor's share, with sync also the disk's.
func BenchmarkLogAppend(b *testing.B) {
	for _, groups := range []int{1, 16, 128} {
		for _, sync := range []bool{false, true} {
			b.Run(fmt.Sprintf("groups=%d/sync=%t", groups, sync), func(b *testing.B) {
				const writes, keep = 4, 64
				e, states := benchEngine(b, groups)
				r := rand.New(rand.NewPCG(1, 1))
				logs := make([]*engine.Log, groups)
				entries := make([]raftpb.Entry, groups)
				for i, st := range states {
					l, err := e.OpenLog(st)
					if err != nil {
						b.Fatal(err)
					}
					b.Cleanup(l.Close)
					logs[i] = l
					entries[i] = benchEntry(r, i, groups, writes, engine.InitialIndex+1)
				}
				b.SetBytes(int64(groups * len(entries[0].Data)))
				b.ReportAllocs()
				for b.Loop() {
					batch := e.NewBatch()
					for i, l := range logs {
						l.Append(batch, entries[i:i+1])
						first, last := l.Bounds()
						if last >= first+2*keep {
							l.Truncate(batch, last-keep, engine.InitialTerm, states[i].Applied.Conf)
						}
						// The data is shared with the entry cache; only the numbers move on.
						entries[i].Index++
					}
					if err := e.Commit(batch, sync); err != nil {
						b.Fatal(err)
					}
					batch.Close()
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*groups), "ns/entry")
			})
		}
	}
}

// BenchmarkLogEntries reads 64 entries back, from the cache as a leader does for its followers, or from Pebble after a
// follower has fallen behind.
func BenchmarkLogEntries(b *testing.B) {
	for _, cached := range []bool{true, false} {
		b.Run(fmt.Sprintf("cached=%t", cached), func(b *testing.B) {
			const count, page = 1024, 64
			e, states := benchEngine(b, 1)
			log, err := e.OpenLog(states[0])
			if err != nil {
				b.Fatal(err)
			}
			r := rand.New(rand.NewPCG(1, 1))
			batch := e.NewBatch()
			for i := range uint64(count) {
				log.Append(batch, []raftpb.Entry{benchEntry(r, 0, 1, 1, engine.InitialIndex+1+i)})
			}
			if err := e.Commit(batch, true); err != nil {
				b.Fatal(err)
			}
			batch.Close()
			if !cached { // a log that is opened again begins with an empty cache
				log.Close()
				if log, err = e.OpenLog(states[0]); err != nil {
					b.Fatal(err)
				}
			}
			b.Cleanup(log.Close)
			b.ReportAllocs()
			at := uint64(engine.InitialIndex + 1)
			for b.Loop() {
				ents, err := log.Entries(at, at+page, 1<<30)
				if err != nil || len(ents) != page {
					b.Fatalf("%d entries: %v", len(ents), err)
				}
				if at += page; at+page > engine.InitialIndex+count {
					at = engine.InitialIndex + 1
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*page), "ns/entry")
		})
	}
}
