package engine

import (
	"bytes"
	"fmt"
	"math"
	"reflect"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"go.etcd.io/etcd/raft/v3"
	"go.etcd.io/etcd/raft/v3/raftpb"
)

func TestTruncationKeepsIndexTermAndConfiguration(t *testing.T) {
	for _, n := range []int{3, pointDeletes, pointDeletes + 1, 3 * pointDeletes} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			fs := NewMemFS()
			e := mustOpen(t, testOptions(t, fs))
			st := newReplica(t, e, 7)
			if !reflect.DeepEqual(st.Truncated.Conf, st.Applied.Conf) || len(st.Truncated.Conf.Voters) != 2 {
				t.Fatalf("a new replica's truncated state is %+v", st.Truncated)
			}
			l := mustLog(t, e, st)
			var ents []raftpb.Entry
			for i := range uint64(n + 5) {
				ents = append(ents, raftpb.Entry{Term: 6, Index: InitialIndex + 1 + i, Data: []byte("x")})
			}
			to := uint64(InitialIndex + n)
			commit(t, e, true, func(b *Batch) {
				l.Append(b, ents)
				b.SetApplied(7, &AppliedState{Index: to, Term: 6})
				l.Truncate(b, to, 6, goldenConf)
				l.Truncate(b, to-1, 6, raftpb.ConfState{}) // done already
			})
			mustClose(t, e)
			e = mustOpen(t, testOptions(t, fs))
			defer mustClose(t, e)
			st = loadReplica(t, e, 7)
			if want := (TruncatedState{Index: to, Term: 6, Conf: goldenConf}); !reflect.DeepEqual(st.Truncated, want) {
				t.Fatalf("truncated state %+v, want %+v", st.Truncated, want)
			}
			l = mustLog(t, e, st)
			if first, last := l.Bounds(); first != to+1 || last != to+5 {
				t.Fatalf("bounds [%d, %d]", first, last)
			}
			got, err := l.Entries(to+1, to+6, math.MaxUint64)
			if err == nil {
				err = sameEntries(got, ents[n:])
			}
			if err != nil {
				t.Fatal(err)
			}
			in := 0 // nothing of what was truncated is left to be seen
			if err := e.scanRaw(logKey(7, 0), logKey(7, math.MaxUint64), func([]byte) { in++ }); err != nil || in != 5 {
				t.Fatal(in, err)
			}
		})
	}
}

// scanRaw calls f for every key that Pebble has in [lo, hi).
func (e *Engine) scanRaw(lo, hi []byte, f func(k []byte)) error {
	it, err := e.db.NewIter(&pebble.IterOptions{LowerBound: lo, UpperBound: hi})
	if err != nil {
		return err
	}
	for ok := it.First(); ok; ok = it.Next() {
		f(it.Key())
	}
	return it.Close()
}

func TestAStoreOfTheFirstLayoutIsReadAndMarkedAsNewerOnceItRuns(t *testing.T) {
	fs := NewMemFS()
	e := mustOpen(t, testOptions(t, fs))
	newReplica(t, e, 7)
	id := testIdent()
	id.Format, id.FormatMajor = 1, uint32(FormatMajor)
	commit(t, e, true, func(b *Batch) {
		setRecord(b, stateKey(7, raftTruncated), truncatedV1(TruncatedState{Index: InitialIndex, Term: InitialTerm}))
		setRecord(b, identKey(), appendIdent(nil, &id))
	})
	mustClose(t, e)
	writeFile(t, fs, markerName, appendMarker(nil, 1, markerReady))
	e = mustOpen(t, testOptions(t, fs))
	defer mustClose(t, e)
	st := loadReplica(t, e, 7)
	if want := (TruncatedState{Index: InitialIndex, Term: InitialTerm}); !reflect.DeepEqual(st.Truncated, want) {
		t.Fatalf("%+v", st.Truncated)
	}
	if _, err := e.RaiseIncarnation(); err != nil {
		t.Fatal(err)
	}
	v, ok, err := e.get(identKey())
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	if now, err := decodeIdent(v); err != nil || now.Format != FormatVersion {
		t.Fatalf("format %d, %v: an older binary would take the new layouts for damage", now.Format, err)
	}
}

// TestACrashAroundTruncationLeavesALogThatStartsAtOrBelowWhatIsApplied truncates at what is applied, as rule L4 allows
// at most, unsynced, and crashes after every batch: what is left must open, and hold every entry above what is
// truncated.
func TestACrashAroundTruncationLeavesALogThatStartsAtOrBelowWhatIsApplied(t *testing.T) {
	rng, seed := seeded(t)
	fs := NewMemFS()
	o := testOptions(t, fs)
	o.MemTableBytes = 64 << 10 // flushes on the way
	e := mustOpen(t, o)
	l := mustLog(t, e, newReplica(t, e, 7))
	type crash struct {
		fs   *FS
		name string
	}
	var all []crash
	data := bytes.Repeat([]byte("d"), 200)
	at := func(what string, step int) {
		keep := keepPercents[rng.IntN(3)]
		name := fmt.Sprintf("after %s %d, %d%%", what, step, keep)
		all = append(all, crash{fs.CrashClone(keep, seed+int64(len(all))), name})
	}
	applied := uint64(InitialIndex)
	for step := range 60 {
		_, last := l.Bounds()
		n := 1 + rng.Uint64N(2*pointDeletes)
		var ents []raftpb.Entry
		for i := range n {
			ents = append(ents, raftpb.Entry{Term: 6, Index: last + 1 + i, Data: data})
		}
		commit(t, e, true, func(b *Batch) { // raft's own log is synced before it is applied
			l.Append(b, ents)
			b.SetHardState(7, raftpb.HardState{Term: 6, Commit: last + n})
		})
		at("append", step)
		applied += 1 + rng.Uint64N(last+n-applied)
		commit(t, e, false, func(b *Batch) { b.SetApplied(7, &AppliedState{Index: applied, Term: 6, Conf: goldenConf}) })
		at("apply", step)
		commit(t, e, false, func(b *Batch) { l.Truncate(b, applied, 6, goldenConf) })
		at("truncate", step)
	}
	mustClose(t, e)
	for _, c := range all {
		o.FS = c.fs
		e, err := Open(o)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		st := loadReplica(t, e, 7) // refuses a log truncated above what is applied
		l, err := e.OpenLog(st)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		first, last := l.Bounds()
		if first != st.Truncated.Index+1 || st.Hard.Commit > last {
			t.Fatalf("%s: log [%d, %d], %+v", c.name, first, last, st)
		}
		if last >= first {
			if ents, err := l.Entries(first, last+1, math.MaxUint64); err != nil || uint64(len(ents)) != last+1-first {
				t.Fatalf("%s: %d entries of [%d, %d]: %v", c.name, len(ents), first, last, err)
			}
		}
		below := 0
		if err := e.scanRaw(logKey(7, 0), logKey(7, first), func([]byte) { below++ }); err != nil || below != 0 {
			t.Fatalf("%s: %d entries are left below %d: %v", c.name, below, first, err)
		}
		mustClose(t, e)
	}
}

// TestTheSeekOfABootTouchesFewKeysHoweverOftenTheLogWasTruncated counts what Pebble steps over inside.
func TestTheSeekOfABootTouchesFewKeysHoweverOftenTheLogWasTruncated(t *testing.T) {
	e := newEngine(t)
	l := mustLog(t, e, newReplica(t, e, 7))
	data := []byte("data")
	const left = 5
	for step := range 2000 { // 6,000 entries come and go, with a flush somewhere between
		_, last := l.Bounds()
		commit(t, e, false, func(b *Batch) {
			l.Append(b, []raftpb.Entry{
				{Term: 6, Index: last + 1, Data: data}, {Term: 6, Index: last + 2, Data: data},
				{Term: 6, Index: last + 3, Data: data},
			})
			if first, _ := l.Bounds(); first+left <= last {
				l.Truncate(b, last-left, 6, goldenConf)
			}
		})
		if step == 1000 {
			if err := e.db.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	touched := func(from uint64, seek func(it *pebble.Iterator) bool) (keys int) {
		t.Helper()
		it, err := e.db.NewIter(&pebble.IterOptions{
			LowerBound: logKey(7, from), UpperBound: stateKey(7, raftLog+1),
		})
		if err != nil {
			t.Fatal(err)
		}
		if !seek(it) {
			t.Fatal("the log is empty")
		}
		s := it.Stats()
		keys = int(s.InternalStats.PointCount)
		if err := it.Close(); err != nil {
			t.Fatal(err)
		}
		return keys
	}
	first, last := l.Bounds()
	if n := touched(first, (*pebble.Iterator).Last); n > 3*left {
		t.Errorf("the seek of a boot touches %d keys, with %d entries in the log", n, left)
	}
	if n := touched(0, (*pebble.Iterator).First); n < 1000 {
		t.Errorf("a seek from index 0 touches %d keys: this test shows nothing", n)
	}
	if got, _, _, err := e.lastEntry(7, first); err != nil || got != last {
		t.Fatal(got, err)
	}
}

func TestALogThatWasLongKeepsNoMemoryOnceTruncated(t *testing.T) {
	e := newEngine(t)
	l := mustLog(t, e, newReplica(t, e, 7))
	last := uint64(InitialIndex)
	grow := func(n uint64) {
		var ents []raftpb.Entry
		for i := range n {
			ents = append(ents, raftpb.Entry{Term: 6, Index: last + 1 + i})
		}
		last += n
		commit(t, e, false, func(b *Batch) { l.Append(b, ents) })
	}
	held := func() int { return cap(l.worker.sizes) + l.worker.dropped }
	for range 20 {
		grow(10_000)
	}
	if held() < 200_000 {
		t.Fatalf("sizes of %d entries of 200,000", held())
	}
	commit(t, e, false, func(b *Batch) { l.Truncate(b, last-10, 6, goldenConf) })
	if held() > 2000 {
		t.Fatalf("the array of sizes holds %d for 10 entries", held())
	}
	if want := uint64(10 * entryHeaderLen); l.Bytes() != want {
		t.Fatalf("%d bytes, want %d", l.Bytes(), want)
	}
	for range 10_000 { // one at a time, at a steady length
		grow(1)
		commit(t, e, false, func(b *Batch) { l.Truncate(b, last-10, 6, goldenConf) })
		if held() > 4000 {
			t.Fatalf("the array of sizes has grown to %d for 10 entries", held())
		}
	}
	grow(10_000) // a conflict takes them back
	commit(t, e, false, func(b *Batch) { l.Append(b, entries(7, last-9_990, "x")) })
	if held() > 4000 || l.Bytes() != 20*entryHeaderLen+1 {
		t.Fatalf("the array of sizes holds %d, the log %d bytes", held(), l.Bytes())
	}
}

func TestALogIsResetToWhatAnInstallHasLeft(t *testing.T) {
	e := newEngine(t)
	l := mustLog(t, e, newReplica(t, e, 7))
	commit(t, e, true, func(b *Batch) { l.Append(b, entries(6, 11, "a", "b", "c")) })
	st := ReplicaState{
		Shard: 7, Mark: ReplicaMark{ReplicaID: 1, NextReplicaID: 9}, Desc: testDesc(7, "a", "b"),
		Applied:   AppliedState{Index: 500, Term: 8, Conf: goldenConf},
		Truncated: TruncatedState{Index: 500, Term: 8, Conf: goldenConf},
		Hard:      raftpb.HardState{Term: 9, Vote: 2, Commit: 499},
	}
	l.Reset(st)
	if first, last := l.Bounds(); first != 501 || last != 500 || l.Bytes() != 0 {
		t.Fatalf("[%d, %d], %d bytes", first, last, l.Bytes())
	}
	if term, err := l.Term(500); err != nil || term != 8 {
		t.Fatal(term, err)
	}
	if _, err := l.Term(12); err != raft.ErrCompacted {
		t.Fatal(err)
	}
	if n := e.cache.bytes.Load(); n != 0 {
		t.Fatalf("%d bytes are left in the cache", n)
	}
	hs, cs, err := l.InitialState()
	if err != nil || hs.Commit != 500 || hs.Vote != 2 || !reflect.DeepEqual(cs, goldenConf) {
		t.Fatal(hs, cs, err)
	}
	commit(t, e, true, func(b *Batch) { l.Append(b, entries(9, 501, "d", "e")) })
	if ents, err := l.Entries(501, 503, math.MaxUint64); err != nil || len(ents) != 2 {
		t.Fatal(ents, err)
	}
}

func TestTheSnapshotThatRaftIsToldIsWhatTheSourceSays(t *testing.T) {
	e := newEngine(t)
	l := mustLog(t, e, newReplica(t, e, 7))
	for _, f := range []func() (raftpb.SnapshotMetadata, bool){
		nil,
		func() (raftpb.SnapshotMetadata, bool) { return raftpb.SnapshotMetadata{Index: 5}, false },
		func() (raftpb.SnapshotMetadata, bool) { return raftpb.SnapshotMetadata{}, true }, // raft would panic
	} {
		l.SetSnapshot(f)
		if _, err := l.Snapshot(); err != raft.ErrSnapshotTemporarilyUnavailable {
			t.Fatal(err)
		}
	}
	want := raftpb.SnapshotMetadata{Index: 12, Term: 6, ConfState: goldenConf}
	l.SetSnapshot(func() (raftpb.SnapshotMetadata, bool) { return want, true })
	if got, err := l.Snapshot(); err != nil || !reflect.DeepEqual(got.Metadata, want) {
		t.Fatal(got, err)
	}
}

func TestTheLogOfAnUninitialisedReplicaIsEmptyAndListsNobody(t *testing.T) {
	e := newEngine(t)
	commit(t, e, true, func(b *Batch) {
		b.SetMark(7, ReplicaMark{ReplicaID: 3, NextReplicaID: 4})
		b.SetHardState(7, raftpb.HardState{Term: 6, Vote: 1})
	})
	st := loadReplica(t, e, 7)
	l := mustLog(t, e, st)
	hs, cs, err := l.InitialState()
	if err != nil || hs.Term != 6 || hs.Vote != 1 || hs.Commit != 0 || !reflect.DeepEqual(cs, raftpb.ConfState{}) {
		t.Fatal(hs, cs, err)
	}
	if first, last := l.Bounds(); first != 1 || last != 0 {
		t.Fatal(first, last)
	}
	if term, err := l.Term(0); err != nil || term != 0 {
		t.Fatal(term, err)
	}
	rn, err := raft.NewRawNode(&raft.Config{
		ID: 3, ElectionTick: 10, HeartbeatTick: 1, Storage: l, MaxSizePerMsg: 1 << 20, MaxInflightMsgs: 8,
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 100 { // nobody is listed, so it never campaigns
		rn.Tick()
	}
	if s := rn.BasicStatus(); s.RaftState != raft.StateFollower || s.Term != 6 {
		t.Fatalf("%+v", s)
	}
	commit(t, e, true, func(b *Batch) { setRecord(b, logKey(7, 1), []byte{layoutV1, 0, 0, 0, 0, 0, 0, 0, 0, 1}) })
	if _, err := e.OpenLog(st); ExitCode(err) != ExitCorrupt {
		t.Fatalf("entries without a first snapshot: %v", err)
	}
}
