package engine

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/shardd/shardd/internal/base"
	"go.etcd.io/etcd/raft/v3/raftpb"
)

// BenchmarkSnapshot builds, stages and installs a shard of 1 KiB values on a real disk, in chunks of 16 MiB. It reports
// each step, and the steps of writing the same bytes by hand, in MB of keys and values per second.
func BenchmarkSnapshot(b *testing.B) {
	const rows, chunkBytes = 256 << 10, 16 << 20
	src, dst := benchEngine(b), benchEngine(b)
	d := testDesc(7, "a", "b")
	rng := rand.New(rand.NewPCG(1, 1))
	commit(b, src, true, func(w *Batch) { w.CreateReplica(d, 1, 1, nil) })
	for i := 0; i < rows; {
		commit(b, src, false, func(w *Batch) {
			for range 256 {
				w.Put(dataKey("a", i), ValueHeader{Version: uint64(i)}, randomBytes(rng, 1<<10))
				i++
			}
		})
	}
	if err := src.db.Flush(); err != nil {
		b.Fatal(err)
	}
	if err := src.db.Compact(b.Context(), []byte{0}, []byte{0xff}, false); err != nil {
		b.Fatal(err)
	}
	type timing struct {
		name string
		took time.Duration
	}
	var spent [6]timing
	step := func(i int, name string, f func()) {
		start := time.Now()
		f()
		spent[i].name = name
		spent[i].took += time.Since(start)
	}
	var raw uint64
	b.ResetTimer()
	for n := range b.N {
		v := mustView(b, src, 7)
		s, err := dst.NewStaging(metaOf(v), [16]byte{byte(n)})
		if err != nil {
			b.Fatal(err)
		}
		var from []byte
		for seq := uint32(0); ; seq++ {
			var c *Chunk
			step(0, "chunk", func() { c, from, err = v.Chunk(seq, from, chunkBytes) })
			if err != nil {
				b.Fatal(err)
			}
			raw += c.RawBytes
			step(1, "add", func() { err = s.Add(c) })
			if err != nil {
				b.Fatal(err)
			}
			v.Release(c)
			if from == nil {
				break
			}
		}
		step(2, "install", func() {
			mustInstall(b, dst, Install{Staging: s, Mark: ReplicaMark{ReplicaID: 3, NextReplicaID: 4},
				Hard: raftpb.HardState{Term: 9}})
		})
		benchByHand(b, src, dst, d, n, chunkBytes, step)
		closeView(b, v)
	}
	b.StopTimer()
	for _, s := range spent {
		b.ReportMetric(float64(raw)/1e6/s.took.Seconds(), s.name+"-MB/s")
	}
	b.ReportMetric(0, "ns/op")
}

// benchByHand builds, syncs and ingests tables of the same rows, which it has in memory, and checks nothing.
func benchByHand(b *testing.B, src, dst *Engine, d *base.Descriptor, n, target int, step func(int, string, func())) {
	b.Helper()
	to := testDesc(9, "x", "y")
	v := mustView(b, src, 7)
	m := &SnapshotMeta{Shard: 9, To: 3, ToStore: 3, Desc: to, Applied: AppliedState{Index: 1, Term: 1}}
	s, err := dst.NewStaging(m, [16]byte{1, byte(n)})
	if err != nil {
		b.Fatal(err)
	}
	it, err := v.iter(d.Start, d.End)
	if err != nil {
		b.Fatal(err)
	}
	var files []string
	for ok := it.First(); ok; {
		var rows [][2][]byte
		for size := 0; ok && size < target; ok = it.Next() {
			value, err := it.ValueAndErr()
			if err != nil {
				b.Fatal(err)
			}
			key := bytes.Clone(it.Key())
			key[1] = 'x'
			rows = append(rows, [2][]byte{key, bytes.Clone(value)})
			size += len(key) + len(value)
		}
		var table []byte
		step(3, "hand-build", func() {
			t := newTableBuilder(target)
			for _, r := range rows {
				t.set(r[0], r[1])
			}
			table, err = t.finish()
		})
		if err != nil {
			b.Fatal(err)
		}
		step(4, "hand-write", func() {
			var path string
			path, err = s.write(fmt.Sprintf("%06d.sst", len(files)), table)
			files = append(files, path)
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	if err := it.Close(); err != nil {
		b.Fatal(err)
	}
	closeView(b, v)
	step(5, "hand-ingest", func() {
		err = dst.ingest(files, pebble.KeyRange{Start: to.Start, End: to.End})
	})
	if err != nil {
		b.Fatal(err)
	}
	if err := s.Remove(); err != nil {
		b.Fatal(err)
	}
}

func benchEngine(b *testing.B) *Engine {
	b.Helper()
	e := mustOpen(b, Options{Dir: b.TempDir() + "/data", ProbeInterval: -1,
		Fatal: func(err error) { b.Errorf("fatal: %v", err) }})
	b.Cleanup(func() { mustClose(b, e) })
	return e
}
