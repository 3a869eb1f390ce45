package engine

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/shardd/shardd/internal/base"
	"go.etcd.io/etcd/raft/v3/raftpb"
)

// BenchmarkOpenManyReplicas opens a store of 2,000 replicas: Open (with what it replays), LoadReplicas and OpenLog for
// each, with the logs in tables or still in the write-ahead log.
func BenchmarkOpenManyReplicas(b *testing.B) {
	const replicas = 2000
	data := bytes.Repeat([]byte("d"), 200)
	for _, entries := range []uint64{0, 50} {
		for _, flushed := range []bool{true, false} {
			b.Run(fmt.Sprintf("entries=%d/flushed=%t", entries, flushed), func(b *testing.B) {
				o := testOptions(b, NewMemFS())
				o.MemTableBytes = 64 << 20
				e := mustOpen(b, o)
				for i := range replicas {
					shard := base.ShardID(100 + i)
					d := testDesc(shard, fmt.Sprintf("%08d", shard), fmt.Sprintf("%08d", shard+1))
					commit(b, e, false, func(batch *Batch) {
						batch.CreateReplica(d, 1, 100, nil)
						for at := range entries {
							k, v := batch.set(logKeyLen, entryHeaderLen+len(data))
							putLogKey(k, shard, InitialIndex+1+at)
							putEntryHeader(v, raftpb.EntryNormal, 6)
							copy(v[entryHeaderLen:], data)
						}
					})
				}
				if flushed {
					if err := e.db.Flush(); err != nil {
						b.Fatal(err)
					}
				}
				mustClose(b, e)
				var open, load, logs float64
				for b.Loop() {
					e = mustOpen(b, o)
					open += e.now().Seconds()
					start := e.now()
					states, err := e.LoadReplicas()
					if err != nil || len(states) != replicas {
						b.Fatal(len(states), err)
					}
					load += (e.now() - start).Seconds()
					start = e.now()
					for _, st := range states {
						mustLog(b, e, st)
					}
					logs += (e.now() - start).Seconds()
					b.StopTimer()
					mustClose(b, e)
					b.StartTimer()
				}
				n := float64(b.N)
				b.ReportMetric(open/n*1e3, "ms/open")
				b.ReportMetric(load/n*1e3, "ms/load")
				b.ReportMetric(logs/n*1e6/replicas, "us/log")
			})
		}
	}
}
