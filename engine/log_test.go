package engine

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/shardd/shardd/internal/base"
	"go.etcd.io/etcd/raft/v3"
	"go.etcd.io/etcd/raft/v3/raftpb"
)

// newReplica creates the first state of a shard and returns it as boot would.
func newReplica(t testing.TB, e *Engine, shard base.ShardID) ReplicaState {
	t.Helper()
	d := testDesc(shard, fmt.Sprintf("%08d", shard), fmt.Sprintf("%08d", shard+1))
	commit(t, e, true, func(b *Batch) { b.CreateReplica(d, 1, 100, nil) })
	return loadReplica(t, e, shard)
}

func loadReplica(t testing.TB, e *Engine, shard base.ShardID) ReplicaState {
	t.Helper()
	all, err := e.LoadReplicas()
	if err != nil {
		t.Fatal(err)
	}
	for _, st := range all {
		if st.Shard == shard {
			return st
		}
	}
	t.Fatalf("replica of %s is not there", shard)
	return ReplicaState{}
}

func mustLog(t testing.TB, e *Engine, st ReplicaState) *Log {
	t.Helper()
	l, err := e.OpenLog(st)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func sameEntries(a, b []raftpb.Entry) error {
	if len(a) != len(b) {
		return fmt.Errorf("%d entries, want %d", len(a), len(b))
	}
	for i := range a {
		x, y := &a[i], &b[i]
		if x.Index != y.Index || x.Term != y.Term || x.Type != y.Type || !bytes.Equal(x.Data, y.Data) {
			return fmt.Errorf("entry %d is %v, want %v", i, a[i], b[i])
		}
	}
	return nil
}

// compareLogs checks every answer of the log against raft's own storage.
func compareLogs(t *testing.T, l *Log, want *raft.MemoryStorage, pick func(n uint64) uint64) {
	t.Helper()
	wf, _ := want.FirstIndex()
	wl, _ := want.LastIndex()
	if f, last := l.Bounds(); f != wf || last != wl {
		t.Fatalf("bounds [%d, %d], want [%d, %d]", f, last, wf, wl)
	}
	for i := wf - 2; i <= wl+1; i++ {
		wt, werr := want.Term(i)
		gt, gerr := l.Term(i)
		if wt != gt || !errors.Is(gerr, werr) {
			t.Fatalf("term of %d is %d, %v, want %d, %v", i, gt, gerr, wt, werr)
		}
	}
	if _, err := l.Entries(wf-1, wl+1, 1); err != raft.ErrCompacted {
		t.Fatalf("entries below the first index: %v", err)
	}
	if _, err := l.Entries(wf, wl+2, 1); err != raft.ErrUnavailable {
		t.Fatalf("entries above the last index: %v", err)
	}
	for n := wl + 1 - wf; n > 0; n /= 2 {
		lo := wf + pick(n)
		hi := lo + 1 + pick(wl+1-lo)
		for _, limit := range []uint64{0, 1, pick(3000), math.MaxUint64} {
			w, err := want.Entries(lo, hi, limit)
			if err != nil {
				t.Fatal(err)
			}
			g, err := l.Entries(lo, hi, limit)
			if err == nil {
				err = sameEntries(g, w)
			}
			if err != nil {
				t.Fatalf("entries [%d, %d) up to %d bytes: %v", lo, hi, limit, err)
			}
		}
	}
}

func TestLogAnswersLikeRaftsMemoryStorageUnderAppendsConflictsTruncationsAndReopens(t *testing.T) {
	rng, _ := seeded(t)
	for _, cacheBytes := range []int64{1, 4 << 10, 1 << 20} {
		t.Run(fmt.Sprint(cacheBytes), func(t *testing.T) {
			pick := rng.Uint64N
			fs := NewMemFS()
			o := testOptions(t, fs)
			o.EntryCacheBytes = cacheBytes
			e := mustOpen(t, o)
			st := newReplica(t, e, 7)
			newReplica(t, e, 6)
			newReplica(t, e, 8) // neighbours, which must stay empty
			l := mustLog(t, e, st)
			want := raft.NewMemoryStorage()
			if err := want.ApplySnapshot(raftpb.Snapshot{Metadata: raftpb.SnapshotMetadata{
				Index: InitialIndex, Term: InitialTerm,
			}}); err != nil {
				t.Fatal(err)
			}
			term := uint64(InitialTerm)
			var size uint64 // of the stored values, exact until the first reopen
			exact := true
			sizeOf := func() (n uint64) {
				f, _ := want.FirstIndex()
				last, _ := want.LastIndex()
				if last < f {
					return 0
				}
				ents, err := want.Entries(f, last+1, math.MaxUint64)
				if err != nil {
					t.Fatal(err)
				}
				for _, ent := range ents {
					n += entryHeaderLen + uint64(len(ent.Data))
				}
				return n
			}
			for step := range 400 {
				first, _ := want.FirstIndex()
				last, _ := want.LastIndex()
				switch op := pick(100); {
				case op < 70: // append, sometimes over a conflict
					at := last + 1
					if op < 15 && last >= first {
						at = first + pick(last+1-first)
						term++
					}
					var ents []raftpb.Entry
					for range 1 + pick(12) {
						ent := raftpb.Entry{Term: term, Index: at, Type: raftpb.EntryType(pick(3))}
						if n := int(pick(600)); n > 0 {
							ent.Data = bytes.Repeat([]byte{byte(at)}, n)
						}
						ents = append(ents, ent)
						at++
					}
					if err := want.Append(ents); err != nil {
						t.Fatal(err)
					}
					commit(t, e, pick(2) == 0, func(b *Batch) { l.Append(b, ents) })
				case op < 85 && last >= first: // truncate
					to := first + pick(last+1-first)
					tt, err := l.Term(to)
					if err != nil {
						t.Fatal(err)
					}
					if err := want.Compact(to); err != nil {
						t.Fatal(err)
					}
					commit(t, e, false, func(b *Batch) {
						l.Truncate(b, to, tt, goldenConf)
						b.SetApplied(7, &AppliedState{Index: to, Term: tt})
					})
				case op < 90:
					l.Close()
					mustClose(t, e)
					e = mustOpen(t, o)
					l = mustLog(t, e, loadReplica(t, e, 7))
					exact = false
				}
				compareLogs(t, l, want, pick)
				if size = sizeOf(); exact && l.Bytes() != size {
					t.Fatalf("step %d: %d bytes, want %d", step, l.Bytes(), size)
				}
				if got := e.cache.bytes.Load(); got > cacheBytes || got < 0 {
					t.Fatalf("step %d: %d bytes in a cache of %d", step, got, cacheBytes)
				}
				if size == 0 {
					if l.Bytes() != 0 {
						t.Fatalf("step %d: an empty log has %d bytes", step, l.Bytes())
					}
					exact = true
				}
			}
			for _, other := range []base.ShardID{6, 8} {
				if f, last := mustLog(t, e, loadReplica(t, e, other)).Bounds(); last != f-1 {
					t.Fatalf("log of %s has grown to [%d, %d]", other, f, last)
				}
			}
			l.Close()
			if n := e.cache.bytes.Load(); n != 0 {
				t.Fatalf("%d bytes in the cache after all logs closed", n)
			}
			mustClose(t, e)
		})
	}
}

func TestAnAppendWithAHoleIsRefusedAsAWhole(t *testing.T) {
	e := newEngine(t)
	l := mustLog(t, e, newReplica(t, e, 7))
	b := e.NewBatch()
	b.Put(userKey(1), ValueHeader{Version: 1}, nil)
	l.Append(b, entries(6, InitialIndex+2, "x"))
	if err := e.Commit(b, true); err == nil {
		t.Fatal("a log with a hole was committed")
	}
	b.Reset()
	l.Truncate(b, InitialIndex+1, 6, goldenConf)
	if err := e.Commit(b, true); err == nil {
		t.Fatal("a truncation beyond the end was committed")
	}
	b.Close()
	if _, _, ok, err := e.Get(userKey(1), nil); ok || err != nil {
		t.Fatal("part of a refused batch was written", err)
	}
}

func TestLoadedCommitIsAtLeastWhatIsApplied(t *testing.T) {
	fs := NewMemFS()
	e := mustOpen(t, testOptions(t, fs))
	st := newReplica(t, e, 7)
	l := mustLog(t, e, st)
	conf := raftpb.ConfState{Voters: []uint64{1, 2}, Learners: []uint64{3}}
	commit(t, e, true, func(b *Batch) {
		l.Append(b, entries(6, 11, "a", "b", "c"))
		b.SetHardState(7, raftpb.HardState{Term: 6, Vote: 2, Commit: 11})
	})
	commit(t, e, true, func(b *Batch) { b.SetApplied(7, &AppliedState{Index: 13, Term: 6, Conf: conf}) })
	mustClose(t, e)
	e = mustOpen(t, testOptions(t, fs))
	defer mustClose(t, e)
	l = mustLog(t, e, loadReplica(t, e, 7))
	hs, cs, err := l.InitialState()
	if err != nil || hs != (raftpb.HardState{Term: 6, Vote: 2, Commit: 13}) || !reflect.DeepEqual(cs, conf) {
		t.Fatalf("initial state %+v, %+v, %v", hs, cs, err)
	}
	if _, err := raft.NewRawNode(&raft.Config{
		ID: 1, ElectionTick: 10, HeartbeatTick: 1, Storage: l, Applied: 13, MaxSizePerMsg: 1 << 20, MaxInflightMsgs: 8,
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Snapshot(); err != raft.ErrSnapshotTemporarilyUnavailable {
		t.Fatal(err)
	}
}

func TestALogForgetsWhatRaftHasStartedFrom(t *testing.T) {
	e := newEngine(t)
	l := mustLog(t, e, newReplica(t, e, 7))
	if _, _, err := l.InitialState(); err != nil {
		t.Fatal(err)
	}
	l.Started()
	if hs, _, err := l.InitialState(); err == nil {
		t.Fatalf("initial state %+v after the start", hs)
	}
}

func TestALogThatEndsBeforeWhatIsAppliedIsRefusedAsCorrupt(t *testing.T) {
	e := newEngine(t)
	newReplica(t, e, 7)
	commit(t, e, true, func(b *Batch) { b.SetApplied(7, &AppliedState{Index: 12, Term: 6}) })
	if _, err := e.OpenLog(loadReplica(t, e, 7)); ExitCode(err) != ExitCorrupt {
		t.Fatal(err)
	}
}

func TestAMissingEntryIsAnErrorAndNotCompacted(t *testing.T) {
	fs := NewMemFS()
	e := mustOpen(t, testOptions(t, fs))
	l := mustLog(t, e, newReplica(t, e, 7))
	commit(t, e, true, func(b *Batch) { l.Append(b, entries(6, 11, "a", "b", "c")) })
	commit(t, e, true, func(b *Batch) { b.deleteLocal(logKey(7, 12)) })
	mustClose(t, e)
	e = mustOpen(t, testOptions(t, fs))
	defer mustClose(t, e)
	l = mustLog(t, e, loadReplica(t, e, 7))
	if _, err := l.Entries(11, 14, math.MaxUint64); !errors.Is(err, ErrCorrupt) || errors.Is(err, raft.ErrCompacted) {
		t.Fatal(err)
	}
	if _, err := l.Term(12); !errors.Is(err, ErrCorrupt) {
		t.Fatal(err)
	}
	if ents, err := l.Entries(11, 12, math.MaxUint64); err != nil || len(ents) != 1 {
		t.Fatal(ents, err)
	}
}

func TestEntriesHandedOutStayAsTheyWere(t *testing.T) {
	e := newEngine(t)
	l := mustLog(t, e, newReplica(t, e, 7))
	app := func(ents []raftpb.Entry) { commit(t, e, false, func(b *Batch) { l.Append(b, ents) }) }
	app(entries(6, 11, "a", "b", "c", "d"))
	got, err := l.Entries(11, 15, math.MaxUint64)
	if err != nil {
		t.Fatal(err)
	}
	app(entries(7, 13, "C", "D"))
	commit(t, e, false, func(b *Batch) { l.Truncate(b, 12, 6, goldenConf) })
	app(entries(7, 15, "E"))
	l.Close()
	if err := sameEntries(got, entries(6, 11, "a", "b", "c", "d")); err != nil {
		t.Fatal(err)
	}
}

func TestTheCacheEvictsTheOldestRunsOfAllLogsAndKeepsItsBudget(t *testing.T) {
	fs := NewMemFS()
	o := testOptions(t, fs)
	o.EntryCacheBytes = 4 * runBytes
	e := mustOpen(t, o)
	defer mustClose(t, e)
	const logs = 3
	var ls [logs]*Log
	for i := range ls {
		ls[i] = mustLog(t, e, newReplica(t, e, base.ShardID(10+i)))
	}
	data := bytes.Repeat([]byte("x"), runBytes-entryOverhead) // one entry makes a run
	app := func(i int) {
		_, last := ls[i].Bounds()
		commit(t, e, false, func(b *Batch) {
			ls[i].Append(b, []raftpb.Entry{{Term: 6, Index: last + 1, Data: data}})
		})
	}
	cached := func(i int) int {
		first, last := ls[i].Bounds()
		ents, _ := ls[i].ring.entries(first, last+1)
		return len(ents)
	}
	for range 3 {
		app(0)
	}
	app(1)
	app(2) // over the budget: the oldest run of log 0 goes
	if a, b, c := cached(0), cached(1), cached(2); a != 2 || b != 1 || c != 1 {
		t.Fatalf("cached entries %d %d %d, want 2 1 1", a, b, c)
	}
	for range 4 {
		app(2)
	}
	if a, b, c := cached(0), cached(1), cached(2); a != 0 || b != 0 || c != 4 {
		t.Fatalf("cached entries %d %d %d, want 0 0 4", a, b, c)
	}
	ents, err := ls[0].Entries(11, 14, math.MaxUint64)
	if err != nil || len(ents) != 3 || !bytes.Equal(ents[2].Data, data) {
		t.Fatal("evicted entries are not read back", err)
	}
	if cached(0) != 0 {
		t.Fatal("catching up filled the cache")
	}
	for range 5 * minSweep { // runs left behind by truncations must not pile up
		app(0)
		_, last := ls[0].Bounds()
		commit(t, e, false, func(b *Batch) { ls[0].Truncate(b, last, 6, goldenConf) })
	}
	if n := len(e.cache.mu.runs) - e.cache.mu.head; n > 2*minSweep+2 {
		t.Fatalf("%d runs in the list of an almost empty cache", n)
	}
}

func TestManyWorkersShareTheCache(t *testing.T) {
	rng, _ := seeded(t)
	fs := NewMemFS()
	o := testOptions(t, fs)
	o.EntryCacheBytes = 64 << 10
	e := mustOpen(t, o)
	defer mustClose(t, e)
	const workers, logsEach = 4, 5
	var all [workers][logsEach]*Log
	for w := range workers {
		for i := range logsEach {
			all[w][i] = mustLog(t, e, newReplica(t, e, base.ShardID(1+w*logsEach+i)))
		}
	}
	var wg sync.WaitGroup
	for w := range workers {
		logs := &all[w]
		seed := rng.Uint64()
		wg.Add(1)
		go func() {
			defer wg.Done()
			b := e.NewBatch()
			defer b.Close()
			for step := range 300 {
				seed = seed*6364136223846793005 + 1442695040888963407
				l := logs[seed>>33%logsEach]
				first, last := l.Bounds()
				data := bytes.Repeat([]byte{byte(last + 1)}, int(seed>>40%4000))
				l.Append(b, []raftpb.Entry{{Term: 6, Index: last + 1, Data: data}})
				if step%40 == 39 && last > first {
					l.Truncate(b, first+(last-first)/2, 6, goldenConf)
				}
				if err := e.Commit(b, false); err != nil {
					t.Error(err)
					return
				}
				b.Reset()
				first, last = l.Bounds()
				ents, err := l.Entries(first, last+1, math.MaxUint64)
				if err != nil || uint64(len(ents)) != last+1-first {
					t.Errorf("%d entries of [%d, %d]: %v", len(ents), first, last, err)
					return
				}
				for _, ent := range ents {
					if len(ent.Data) > 0 && ent.Data[0] != byte(ent.Index) {
						t.Errorf("entry %d has the data of another", ent.Index)
						return
					}
				}
			}
		}()
	}
	wg.Wait()
	if n := e.cache.bytes.Load(); n > o.EntryCacheBytes {
		t.Fatalf("%d bytes in a cache of %d", n, o.EntryCacheBytes)
	}
}

// A short log that is opened knows its bytes as the life before did, not by an estimate.
func TestTheBytesOfAShortLogAreCountedWhenItIsOpened(t *testing.T) {
	for _, n := range []int{1, countedEntries, countedEntries + 1} {
		fs := NewMemFS()
		o := testOptions(t, fs)
		e := mustOpen(t, o)
		st := newReplica(t, e, 7)
		l, first := mustLog(t, e, st), st.Truncated.Index+1
		for i := range n {
			commit(t, e, false, func(b *Batch) { l.Append(b, entries(1, first+uint64(i), strings.Repeat("x", 10*i))) })
		}
		if err := e.db.Flush(); err != nil {
			t.Fatal(err)
		}
		want := l.Bytes()
		mustClose(t, e)
		e = mustOpen(t, o)
		got := mustLog(t, e, loadReplica(t, e, 7)).Bytes()
		if n <= countedEntries && got != want {
			t.Errorf("%d entries have %d bytes, had %d", n, got, want)
		}
		if got < uint64(n*entryHeaderLen) {
			t.Errorf("%d entries have %d bytes", n, got)
		}
		mustClose(t, e)
	}
}
