package engine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/shardd/shardd/internal/base"
	"go.etcd.io/etcd/raft/v3/raftpb"
)

// row is one record of the database as it is stored.
type row struct {
	key   string
	value string
}

// rowsIn returns everything stored in [lo, hi).
func rowsIn(t testing.TB, e *Engine, lo, hi []byte) (rows []row) {
	t.Helper()
	it, err := e.db.NewIter(&pebble.IterOptions{LowerBound: lo, UpperBound: hi})
	if err != nil {
		t.Fatal(err)
	}
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.ValueAndErr()
		if err != nil {
			t.Fatal(err)
		}
		rows = append(rows, row{string(it.Key()), string(v)})
	}
	if err := errors.Join(it.Error(), it.Close()); err != nil {
		t.Fatal(err)
	}
	return rows
}

func sameRows(t testing.TB, what string, got, want []row) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d rows, want %d", what, len(got), len(want))
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("%s: row %d is %x = %.40x.., want %x = %.40x..",
				what, i, got[i].key, got[i].value, want[i].key, want[i].value)
		}
	}
}

// shardRows returns the sessions and the data of a shard: what a snapshot must carry.
func shardRows(t testing.TB, e *Engine, d *base.Descriptor) []row {
	lo, hi := shardSpan(spanSession, d.Shard)
	return append(rowsIn(t, e, lo, hi), rowsIn(t, e, d.Start, d.End)...)
}

func sessionKey(shard base.ShardID, i int) []byte {
	return binary.BigEndian.AppendUint64(shardKey(spanSession, shard), uint64(i))
}

// putSession writes a synthetic session record.
func (b *Batch) putSession(shard base.ShardID, i int, value string) {
	key := sessionKey(shard, i)
	k, v := b.set(len(key), len(value))
	copy(k, key)
	copy(v, value)
}

func dataKey(lo string, i int) []byte { return fmt.Appendf([]byte{base.SpaceUser}, "%s%06d", lo, i) }

// source makes shard 7, [a, b), on an engine: rows, sessions, an applied state. Its replica there is 1, and 3 is to get
// a snapshot.
func source(t testing.TB, e *Engine, rows, sessions int) *base.Descriptor {
	t.Helper()
	d := testDesc(7, "a", "b")
	commit(t, e, false, func(b *Batch) {
		b.CreateReplica(d, 1, 1, nil)
		for i := range rows {
			b.Put(dataKey("a", i), ValueHeader{Version: uint64(i) + 1, Expiry: uint64(i % 3)}, userValue(i))
		}
		for i := range sessions {
			b.putSession(7, i, fmt.Sprintf("session %d", i))
		}
		b.SetApplied(7, &AppliedState{Index: 50, Term: 8, Conf: ConfStateOf(d), Stamp: 99,
			Stats: Stats{PutOps: uint64(rows)}})
	})
	return d
}

func mustView(t testing.TB, e *Engine, shard base.ShardID) *View {
	t.Helper()
	v, err := e.OpenView(shard)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func closeView(t testing.TB, v *View) {
	t.Helper()
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
}

// metaOf is the meta of a snapshot of a view for replica 3 on store 3.
func metaOf(v *View) *SnapshotMeta {
	return &SnapshotMeta{
		Shard: v.Desc().Shard, From: 1, To: 3, FromStore: 1, ToStore: 3, RaftTerm: 9,
		Desc: v.Desc(), Applied: v.Applied(), ApproxBytes: v.ApproxBytes(),
	}
}

func allChunks(t testing.TB, v *View, target func() int) (chunks []*Chunk) {
	t.Helper()
	var from []byte
	for seq := uint32(0); ; seq++ {
		c, next, err := v.Chunk(seq, from, target())
		if err != nil {
			t.Fatal(err)
		}
		if c != nil {
			chunks = append(chunks, c)
		}
		if next == nil {
			return chunks
		}
		from = next
	}
}

func sized(n int) func() int { return func() int { return n } }

func mustStage(t testing.TB, e *Engine, m *SnapshotMeta, chunks []*Chunk) *Staging {
	t.Helper()
	m2, err := DecodeSnapshotMeta(m.Append(nil))
	if err != nil {
		t.Fatal(err)
	}
	s, err := e.NewStaging(m2, [16]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range chunks {
		addOverWire(t, s, c)
	}
	return s
}

// addOverWire adds a chunk as a receiver would have it.
func addOverWire(t testing.TB, s *Staging, c *Chunk) {
	t.Helper()
	got, err := DecodeChunkHeader(c.AppendHeader(nil))
	if err != nil {
		t.Fatal(err)
	}
	got.SST = bytes.Clone(c.SST)
	if err := s.Add(got); err != nil {
		t.Fatal(err)
	}
}

// installOf is what a new replica 3 installs.
func installOf(s *Staging) Install {
	return Install{Staging: s, Mark: ReplicaMark{ReplicaID: 3, NextReplicaID: 4},
		Hard: raftpb.HardState{Term: 9, Vote: 2, Commit: 60}}
}

func mustInstall(t testing.TB, e *Engine, in Install) ReplicaState {
	t.Helper()
	st, err := e.Install(in)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// checkInstalled compares the replica on e with what Install returned, LoadReplicas and OpenLog included.
func checkInstalled(t testing.TB, e *Engine, st ReplicaState, want []row) {
	t.Helper()
	sameRows(t, "installed", shardRows(t, e, st.Desc), want)
	loaded := loadReplica(t, e, st.Shard)
	if a, b := fmt.Sprintf("%+v", loaded), fmt.Sprintf("%+v", st); a != b {
		t.Fatalf("loaded\n%s\nwant\n%s", a, b)
	}
	one, ok, err := e.ReplicaState(st.Shard)
	if a, b := fmt.Sprintf("%+v", one), fmt.Sprintf("%+v", st); a != b || !ok || err != nil {
		t.Fatalf("state\n%s, %t, %v\nwant\n%s", a, ok, err, b)
	}
	l := mustLog(t, e, loaded)
	defer l.Close()
	if first, last := l.Bounds(); first != st.Applied.Index+1 || last != st.Applied.Index {
		t.Fatalf("log [%d, %d] behind a snapshot at %d", first, last, st.Applied.Index)
	}
	if term, err := l.Term(st.Applied.Index); err != nil || term != st.Applied.Term {
		t.Fatalf("term %d, %v", term, err)
	}
}

func noStaging(t testing.TB, fs *FS) {
	t.Helper()
	if names, err := fs.inner.List(testDir + "/" + stagingDir); err == nil && len(names) > 0 {
		t.Fatalf("staging is left: %v", names)
	}
}

func TestASnapshotGivesTheSameShardOnAnotherStore(t *testing.T) {
	src, fs := newEngine(t), NewMemFS()
	dst := mustOpen(t, testOptions(t, fs))
	d := source(t, src, 300, 40)
	// A neighbour on either side must not be touched.
	commit(t, dst, true, func(b *Batch) {
		b.CreateReplica(testDesc(6, "A", "a"), 1, 1, []KV{{Key: []byte("\x02Z"), Value: []byte("left")}})
		b.CreateReplica(testDesc(8, "b", "c"), 1, 1, []KV{{Key: []byte("\x02b"), Value: []byte("right")}})
		b.putSession(6, 1, "left")
		b.putSession(8, 1, "right")
	})
	v := mustView(t, src, 7)
	chunks := allChunks(t, v, sized(8<<10))
	s := mustStage(t, dst, metaOf(v), chunks)
	resume := append(bytes.Clone(chunks[len(chunks)-1].Last), 0)
	if int(s.Chunks()) != len(chunks) || s.Bytes() == 0 || !bytes.Equal(s.Resume(), resume) {
		t.Fatalf("staged %d chunks of %d, %d bytes", s.Chunks(), len(chunks), s.Bytes())
	}
	st := mustInstall(t, dst, installOf(s))
	closeView(t, v)
	if st.Hard != (raftpb.HardState{Term: 9, Vote: 2, Commit: 50}) || st.Truncated.Index != 50 || st.Truncated.Term != 8 ||
		fmt.Sprint(st.Truncated.Conf) != fmt.Sprint(ConfStateOf(d)) || st.Applied.Stamp != 99 {
		t.Fatalf("%+v", st)
	}
	noStaging(t, fs)
	if n := dst.StagedBytes(); n != 0 {
		t.Fatalf("%d bytes of staging are still counted", n)
	}
	for range 2 { // and again after a restart
		checkInstalled(t, dst, st, shardRows(t, src, d))
		if left := rowsIn(t, dst, []byte("\x02A"), []byte("\x02a")); len(left) != 1 {
			t.Fatalf("left neighbour: %v", left)
		}
		if right := rowsIn(t, dst, []byte("\x02b"), []byte("\x02c")); len(right) != 1 {
			t.Fatalf("right neighbour: %v", right)
		}
		for _, shard := range []base.ShardID{6, 8} {
			lo, hi := shardSpan(spanSession, shard)
			if got := rowsIn(t, dst, lo, hi); len(got) != 1 {
				t.Fatalf("sessions of %s: %v", shard, got)
			}
		}
		mustClose(t, dst)
		dst = mustOpen(t, testOptions(t, fs))
	}
	mustClose(t, dst)
}

func TestAnEmptyShardHasNoChunksAndIsInstalledAllTheSame(t *testing.T) {
	src, dst := newEngine(t), newEngine(t)
	source(t, src, 0, 0)
	v := mustView(t, src, 7)
	defer closeView(t, v)
	if c, next, err := v.Chunk(0, nil, 1<<20); c != nil || next != nil || err != nil {
		t.Fatal(c, next, err)
	}
	checkInstalled(t, dst, mustInstall(t, dst, installOf(mustStage(t, dst, metaOf(v), nil))), nil)
}

func TestChunksStayWithinOneSpanAndResumeAnywhere(t *testing.T) {
	src := newEngine(t)
	source(t, src, 200, 30)
	v := mustView(t, src, 7)
	defer closeView(t, v)
	whole := allChunks(t, v, sized(4<<10))
	sessions := 0
	for i, c := range whole {
		if c.Seq != uint32(i) || c.Rows == 0 {
			t.Fatalf("chunk %d: %+v", i, c)
		}
		if c.Span == SpanSession {
			sessions++
			if i != sessions-1 || c.Last[0] != spaceLocal {
				t.Fatalf("chunk %d: sessions after data, or mixed", i)
			}
		}
		// What a receiver that has chunks up to i asks for is what comes next.
		again, _, err := v.Chunk(uint32(i+1), append(bytes.Clone(c.Last), 0), 4<<10)
		switch {
		case err != nil:
			t.Fatal(err)
		case i == len(whole)-1:
			if again != nil {
				t.Fatal("a chunk behind the last")
			}
		case again.CRC != whole[i+1].CRC || !bytes.Equal(again.SST, whole[i+1].SST):
			t.Fatalf("chunk %d built again is another one", i+1)
		}
		v.Release(c)
	}
	if sessions == 0 || sessions == len(whole) {
		t.Fatalf("%d of %d chunks are sessions", sessions, len(whole))
	}
}

// TestAnyShardStateArrivesByteForByte installs random shards over random older states of the same shard.
func TestAnyShardStateArrivesByteForByte(t *testing.T) {
	rng, _ := seeded(t)
	for round := range 25 {
		src, dst := newEngine(t), newEngine(t)
		d := testDesc(7, "a", "b")
		randomState(t, rng, src, d, 1)
		if rng.IntN(3) > 0 {
			randomState(t, rng, dst, d, 2)
		}
		v := mustView(t, src, 7)
		target := func() int { return 4<<10 + rng.IntN(1<<20) }
		if rng.IntN(2) == 0 {
			target = sized(4 << 10)
		}
		chunks := allChunks(t, v, target)
		s := mustStage(t, dst, metaOf(v), chunks)
		st := mustInstall(t, dst, installOf(s))
		closeView(t, v)
		want := shardRows(t, src, d)
		sameRows(t, fmt.Sprintf("round %d", round), shardRows(t, dst, d), want)
		checkInstalled(t, dst, st, want)
		if rng.IntN(2) == 0 {
			if err := dst.db.Compact(t.Context(), []byte{0}, []byte{0xff}, false); err != nil {
				t.Fatal(err)
			}
			sameRows(t, "compacted", shardRows(t, dst, d), want)
		}
	}
}

// randomState writes a shard with rows of all sizes, overwritten, deleted, flushed, with a log and sessions.
func randomState(t *testing.T, rng *rand.Rand, e *Engine, d *base.Descriptor, id base.ReplicaID) {
	t.Helper()
	commit(t, e, false, func(b *Batch) { b.CreateReplica(d, id, 1, nil) })
	l := mustLog(t, e, loadReplica(t, e, d.Shard))
	defer l.Close()
	index := uint64(InitialIndex)
	for range rng.IntN(12) {
		commit(t, e, rng.IntN(2) == 0, func(b *Batch) {
			for range rng.IntN(30) {
				key := dataKey("a", rng.IntN(150))
				switch rng.IntN(8) {
				case 0:
					b.Delete(key)
				case 1:
					b.putSession(d.Shard, rng.IntN(50), string(randomBytes(rng, rng.IntN(2000))))
				default:
					size := [...]int{0, 1, 100, 255, 256, 257, 5000, 40000}[rng.IntN(8)]
					if rng.IntN(40) == 0 {
						size = base.MaxValueSize - rng.IntN(2)
					}
					b.Put(key, ValueHeader{Version: rng.Uint64(), Flags: uint8(rng.IntN(128)), Expiry: uint64(rng.IntN(2))},
						randomBytes(rng, size))
				}
			}
			if rng.IntN(10) == 0 {
				i := rng.IntN(150)
				b.DeleteRange(dataKey("a", i), dataKey("a", i+rng.IntN(50)+1))
			}
			if b.Len() > 1<<20 {
				return // a batch has its limit
			}
			index++
			l.Append(b, entries(6, index, "entry"))
		})
		if rng.IntN(4) == 0 {
			if err := e.db.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	commit(t, e, true, func(b *Batch) {
		_, last := l.Bounds()
		b.SetApplied(d.Shard, &AppliedState{Index: last, Term: 6, Conf: ConfStateOf(d), Stamp: rng.Uint64()})
	})
}

// randomBytes are half compressible.
func randomBytes(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := 0; i+8 <= n; i += 8 {
		binary.BigEndian.PutUint32(b[i:], rng.Uint32())
	}
	return b
}

func hardOf(term uint64) raftpb.HardState { return raftpb.HardState{Term: term, Vote: 1} }
