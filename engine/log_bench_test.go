package engine

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/shardd/shardd/internal/base"
	"go.etcd.io/etcd/raft/v3/raftpb"
)

// The figures of docs/decisions/0008-truncation-deletes.md come from here:
//
//	go test ./engine -run NONE -bench 'Truncat|OpenMany' -benchtime 1x

// benchLog is a log of one shard that is filled and truncated by hand, so that both kinds of deletes can be had.
type benchLog struct {
	e           *Engine
	shard       base.ShardID
	first, last uint64
}

// append adds n entries of about 1 KiB.
func (l *benchLog) append(b *Batch, n int, data []byte) {
	for range n {
		l.last++
		k, v := b.set(logKeyLen, entryHeaderLen+len(data))
		putLogKey(k, l.shard, l.last)
		putEntryHeader(v, raftpb.EntryNormal, 6)
		copy(v[entryHeaderLen:], data)
	}
}

// truncate deletes the oldest n entries.
func (l *benchLog) truncate(b *Batch, n int, byRange bool) {
	to := l.first + uint64(n)
	if byRange {
		b.deleteRange(logKey(l.shard, l.first), logKey(l.shard, to))
	} else {
		var key [logKeyLen]byte
		for i := l.first; i < to; i++ {
			putLogKey(key[:], l.shard, i)
			b.deleteLocal(key[:])
		}
	}
	l.first = to
	b.SetTruncated(l.shard, TruncatedState{Index: to - 1, Term: 6, Conf: goldenConf})
}

func benchLogs(b *testing.B, o Options, logs int) (*Engine, []*benchLog) {
	e := mustOpen(b, o)
	b.Cleanup(func() { mustClose(b, e) })
	out := make([]*benchLog, logs)
	for i := range out {
		st := newReplica(b, e, base.ShardID(100+i))
		out[i] = &benchLog{e: e, shard: st.Shard, first: InitialIndex + 1, last: InitialIndex}
	}
	return e, out
}

func benchCommit(b *testing.B, e *Engine, batch *Batch) {
	if err := e.Commit(batch, false); err != nil {
		b.Fatal(err)
	}
	batch.Close()
}

// BenchmarkTruncate is one truncation of n entries and what follows from it, for logs whose entries die in the
// memtable, and for logs so long that they have been flushed before. ns/deleted is the commit of the truncation by
// entry; ns/read is what opening an iterator on data costs right after it, which is where range tombstones are paid
// for, one ns/read for each truncation as long as reads are more frequent; both are medians. us/truncation is what both
// come to. B-tables/entry is what flushes and compactions wrote.
func BenchmarkTruncate(b *testing.B) {
	for _, size := range []int{100, 1000} {
		for _, state := range []string{"memtable", "flushed"} {
			for _, n := range []int{16, 64, 128, 256, 512, 1024} {
				for _, byRange := range []bool{false, true} {
					b.Run(fmt.Sprintf("size=%d/%s/n=%d/range=%t", size, state, n, byRange), func(b *testing.B) {
						benchTruncate(b, size, n, state == "flushed", byRange)
					})
				}
			}
		}
	}
}

func benchTruncate(b *testing.B, size, n int, flushed, byRange bool) {
	const logs, memtable = 16, 64 << 20
	perTable := memtable / (size + 100) // entries
	keep := n
	if flushed {
		keep = max(n, 3*perTable/2/logs)
	}
	o := testOptions(b, NewMemFS())
	o.MemTableBytes = memtable
	random := make([]byte, 1<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(random)
	data := func(at int) []byte { return random[at*size%(len(random)-size):][:size] }
	e, ls := benchLogs(b, o, logs)
	commit(b, e, false, func(batch *Batch) {
		for i := range 1000 {
			batch.Put(userKey(i), ValueHeader{Version: 1}, data(i))
		}
	})
	var deletes, reads []float64
	total := 3 * perTable
	for b.Loop() {
		for at := 0; at < total; at += n {
			l := ls[at/n%logs]
			batch := e.NewBatch()
			for i := range n {
				l.append(batch, 1, data(at+i))
			}
			benchCommit(b, e, batch)
			if l.last-l.first+1 < uint64(keep+n) {
				continue
			}
			batch = e.NewBatch()
			start := e.now()
			l.truncate(batch, n, byRange)
			benchCommit(b, e, batch)
			deletes = append(deletes, float64(e.now()-start)/float64(n))
			start = e.now()
			if it, err := e.NewIter(userKey(at%1000), userKey(at%1000+1), false); err != nil || it.Close() != nil {
				b.Fatal(err)
			}
			reads = append(reads, float64(e.now()-start))
		}
		if err := e.db.Flush(); err != nil {
			b.Fatal(err)
		}
	}
	m := e.db.Metrics()
	var written uint64
	for i := range m.Levels {
		written += m.Levels[i].TableBytesFlushed + m.Levels[i].TableBytesCompacted
	}
	del, read := median(deletes), median(reads)
	b.ReportMetric(del, "ns/deleted")
	b.ReportMetric(read, "ns/read")
	b.ReportMetric((del*float64(n)+read)/1000, "us/truncation")
	b.ReportMetric(float64(written)/float64(b.N*total), "B-tables/entry")
}

func median(x []float64) float64 {
	slices.Sort(x)
	return x[len(x)/2]
}

// BenchmarkTruncatedLog is what a log costs that has been truncated 100,000 times, 8 entries each, and has 64 left: the
// reverse seek of a boot from the truncated index, the same from index 0 (what not knowing the first index would cost),
// a scan of the 64, and an append. "memtable": as it stands, with what Pebble has not flushed yet; "reopened": after a
// restart; "other": 100,000 truncations of 256 other logs, seen from a log with none.
func BenchmarkTruncatedLog(b *testing.B) {
	const n, truncations, left = 8, 100_000, 64
	data := bytes.Repeat([]byte("d"), 100)
	for _, byRange := range []bool{false, true} {
		for _, state := range []string{"memtable", "reopened", "other"} {
			b.Run(fmt.Sprintf("%s/range=%t", state, byRange), func(b *testing.B) {
				o := testOptions(b, NewMemFS())
				o.MemTableBytes = 64 << 20
				e := mustOpen(b, o)
				defer func() { mustClose(b, e) }()
				logs := 1
				if state == "other" {
					logs = 256
				}
				ls := make([]*benchLog, logs+1)
				for i := range ls {
					st := newReplica(b, e, base.ShardID(100+i))
					ls[i] = &benchLog{e: e, shard: st.Shard, first: InitialIndex + 1, last: InitialIndex}
				}
				commit(b, e, false, func(batch *Batch) {
					for _, l := range ls {
						l.append(batch, left, data)
					}
				})
				for at := range truncations {
					batch := e.NewBatch()
					l := ls[at%logs]
					l.append(batch, n, data)
					l.truncate(batch, n, byRange)
					benchCommit(b, e, batch)
				}
				l := ls[0]
				if state == "other" {
					l = ls[logs]
				}
				if state == "reopened" {
					mustClose(b, e)
					e = mustOpen(b, o)
				}
				const rounds = 100
				var boot, zero, scan, app float64
				for b.Loop() {
					boot = perRound(b, e, rounds, func() {
						if last, _, _, err := e.lastEntry(l.shard, l.first); err != nil || last != l.last {
							b.Fatal(last, err)
						}
					})
					zero = perRound(b, e, rounds, func() {
						it, err := e.db.NewIter(&pebble.IterOptions{
							LowerBound: logKey(l.shard, 0), UpperBound: stateKey(l.shard, raftLog+1),
						})
						if err != nil || !it.First() {
							b.Fatal(err)
						}
						if err := it.Close(); err != nil {
							b.Fatal(err)
						}
					})
					scan = perRound(b, e, rounds, func() {
						log := &Log{e: e, shard: l.shard}
						if ents, _, err := log.read(l.first, l.last+1, 1<<30); err != nil || len(ents) != left {
							b.Fatal(len(ents), err)
						}
					})
					app = perRound(b, e, rounds, func() {
						batch := e.NewBatch()
						l.append(batch, 1, data)
						l.truncate(batch, 1, byRange)
						benchCommit(b, e, batch)
					})
				}
				b.ReportMetric(boot, "ns/boot")
				b.ReportMetric(zero, "ns/first-from-0")
				b.ReportMetric(scan, "ns/scan64")
				b.ReportMetric(app, "ns/append")
			})
		}
	}
}

func perRound(b *testing.B, e *Engine, rounds int, f func()) float64 {
	b.Helper()
	f() // opens what is cold
	start := e.now()
	for range rounds {
		f()
	}
	return float64(e.now()-start) / float64(rounds)
}
