package engine

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/shardd/shardd/internal/base"
	"go.etcd.io/etcd/raft/v3/raftpb"
)

// everything is all that a store holds about shards.
func everything(t testing.TB, e *Engine) []row {
	t.Helper()
	var all []row
	for _, r := range rowsIn(t, e, []byte{spaceLocal}, []byte{dataEnd}) {
		if !strings.HasPrefix(r.key, string([]byte{spaceLocal, spanStore})) {
			all = append(all, r)
		}
	}
	return all
}

func equalRows(a, b []row) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// ranged is testDesc with other bounds and the local replica's id.
func ranged(shard base.ShardID, lo, hi string) *base.Descriptor { return testDesc(shard, lo, hi) }

// oldReplica makes replica 2 of a shard with rows all over its range, sessions and a log.
func oldReplica(t testing.TB, e *Engine, d *base.Descriptor) {
	t.Helper()
	commit(t, e, false, func(b *Batch) { b.CreateReplica(d, 2, 1, nil) })
	l := mustLog(t, e, loadReplica(t, e, d.Shard))
	defer l.Close()
	commit(t, e, true, func(b *Batch) {
		for c := d.Start[1]; c < d.End[1]; c++ {
			for i := range 10 {
				b.Put(dataKey(string(c), i*3), ValueHeader{Version: 2}, fmt.Appendf(nil, "old %d %d", d.Shard, i))
			}
		}
		for i := range 5 {
			b.putSession(d.Shard, i*2, "old session")
		}
		l.Append(b, entries(6, InitialIndex+1, "one", "two", "three"))
	})
}

// installCase replaces an old shard 7 by a snapshot of it with range [lo, hi), and subsumes shard 9.
type installCase struct {
	name, lo, hi string
	old, subsume [2]string // no such replica if empty
	uninit       bool      // replica 3 exists already, and has voted
}

var installCases = []installCase{
	{name: "new store", lo: "a", hi: "c"},
	{name: "uninitialised", lo: "a", hi: "c", uninit: true},
	{name: "same range", lo: "a", hi: "c", old: [2]string{"a", "c"}},
	{name: "shrank", lo: "b", hi: "c", old: [2]string{"a", "e"}},
	{name: "merged", lo: "a", hi: "e", old: [2]string{"a", "c"}, subsume: [2]string{"c", "e"}},
	{name: "partly beyond", lo: "b", hi: "d", old: [2]string{"a", "c"}, subsume: [2]string{"c", "f"}},
	{name: "moved away", lo: "a", hi: "b", old: [2]string{"d", "e"}, subsume: [2]string{"e", "f"}},
}

func (c installCase) prepare(t testing.TB, dst *Engine) (in Install) {
	t.Helper()
	for _, n := range []*base.Descriptor{ranged(6, "A", "Z"), ranged(8, "g", "h")} { // neighbours, in keys and in ids
		oldReplica(t, dst, n)
	}
	if c.old[0] != "" {
		oldReplica(t, dst, ranged(7, c.old[0], c.old[1]))
	}
	if c.uninit {
		commit(t, dst, true, func(b *Batch) { b.CreateUninitialised(7, 3, hardOf(9)) })
	}
	if c.subsume[0] != "" {
		d := ranged(9, c.subsume[0], c.subsume[1])
		oldReplica(t, dst, d)
		in.Subsume = []Removal{{Shard: 9, Mark: ReplicaMark{NextReplicaID: 5}, Desc: d}}
	}
	in.Mark, in.Hard = ReplicaMark{ReplicaID: 3, NextReplicaID: 4}, raftpb.HardState{Term: 9, Vote: 2}
	return in
}

// snapshotOf makes shard 7 with a range on a store of its own and returns meta, chunks and rows of a snapshot.
func (c installCase) snapshotOf(t testing.TB) (*SnapshotMeta, []*Chunk, []row) {
	t.Helper()
	src := newEngine(t)
	d := ranged(7, c.lo, c.hi)
	commit(t, src, true, func(b *Batch) {
		b.CreateReplica(d, 1, 1, nil)
		for ch := d.Start[1]; ch < d.End[1]; ch++ {
			for i := range 12 {
				b.Put(dataKey(string(ch), i*2), ValueHeader{Version: 7}, userValue(i))
			}
		}
		for i := range 6 {
			b.putSession(7, i*3, strings.Repeat("new session ", 40))
		}
		b.SetApplied(7, &AppliedState{Index: 50, Term: 8, Conf: ConfStateOf(d), Stamp: 99})
	})
	v := mustView(t, src, 7)
	defer closeView(t, v)
	return metaOf(v), allChunks(t, v, sized(1500)), shardRows(t, src, d)
}

func TestAnInstallIsAtomicAcrossACrashAtAnyMoment(t *testing.T) {
	for _, c := range installCases {
		for _, flushed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, flushed %t", c.name, flushed), func(t *testing.T) {
				_, seed := seeded(t)
				m, chunks, want := c.snapshotOf(t)
				fs := NewMemFS()
				dst := mustOpen(t, testOptions(t, fs))
				in := c.prepare(t, dst)
				if flushed {
					if err := dst.db.Flush(); err != nil {
						t.Fatal(err)
					}
				}
				before := everything(t, dst)
				var clones []*FS
				setHook(fs, func() {
					if n := len(clones); n < 600 {
						clones = append(clones, fs.CrashClone(keepPercents[n%3], seed+int64(n)))
					}
				})
				in.Staging = mustStage(t, dst, m, chunks)
				staged := len(clones)
				st := mustInstall(t, dst, in)
				setHook(fs, nil)
				installed := fs.CrashClone(0, seed)

				after := everything(t, dst)
				checkInstalled(t, dst, st, want)
				c.checkAfter(t, dst, in, want)
				mustClose(t, dst)
				old, young := 0, 0
				for i, fs := range append(clones, installed) {
					e, err := Open(testOptions(t, fs))
					if err != nil {
						t.Fatalf("moment %d: %v", i, err)
					}
					noStaging(t, fs)
					if _, err := e.LoadReplicas(); err != nil {
						t.Fatalf("moment %d: %v", i, err)
					}
					switch got := everything(t, e); {
					case equalRows(got, before):
						old++
					case equalRows(got, after):
						young++
					default:
						t.Fatalf("moment %d: a mix of old and new: %d rows, before %d, after %d", i, len(got), len(before), len(after))
					}
					if (i < staged && young > 0) || (i == len(clones) && young == 0) {
						t.Fatalf("moment %d: %d old, %d new", i, old, young)
					}
					mustClose(t, e)
				}
				if old == 0 || young == 0 || staged == 0 {
					t.Fatalf("%d moments old, %d new, %d staging", old, young, staged)
				}
			})
		}
	}
}

// checkAfter looks for what should be gone, and for neighbours that should not.
func (c installCase) checkAfter(t *testing.T, e *Engine, in Install, want []row) {
	t.Helper()
	states, err := e.LoadReplicas()
	if err != nil || len(states) != 3 {
		t.Fatal(states, err)
	}
	perShard := make(map[base.ShardID]int)
	var data, session int
	for _, r := range everything(t, e) {
		switch {
		case r.key[0] != spaceLocal:
			data++
		default:
			perShard[base.ShardID(u64at([]byte(r.key), 2))]++
			if r.key[1] == spanSession {
				session++
			}
		}
	}
	neighbours := 10*int('Z'-'A') + 10
	var rows, sessions int
	for _, r := range want {
		if r.key[0] == spaceLocal {
			sessions++
		} else {
			rows++
		}
	}
	if data != neighbours+rows || session != 2*5+sessions {
		t.Fatalf("%d rows of data, want %d and %d; %d sessions, want %d and 10", data, neighbours, rows, session, sessions)
	}
	// mark, descriptor, applied, hard, truncated: and nothing of the old log
	if perShard[7] != 5+sessions || perShard[6] != 5+5+3 || perShard[8] != 5+5+3 {
		t.Fatalf("records by shard: %v", perShard)
	}
	if len(in.Subsume) > 0 {
		if m, ok, err := e.Mark(9); perShard[9] != 1 || m != in.Subsume[0].Mark || !ok || err != nil {
			t.Fatalf("%d records of the subsumed shard, mark %+v, %t, %v", perShard[9], m, ok, err)
		}
	}
}

func TestAFailingDiskDuringAnInstallLeavesTheOldReplicaOrTheNewOne(t *testing.T) {
	rng, seed := seeded(t)
	boom := errors.New("the disk is gone")
	c := installCases[4]
	m, chunks, _ := c.snapshotOf(t)
	stopped := 0
	for round := range 60 {
		fs := NewMemFS()
		o := testOptions(t, fs)
		o.Fatal = func(error) { stopped++ }
		dst := mustOpen(t, o)
		in := c.prepare(t, dst)
		before := everything(t, dst)
		in.Staging = mustStage(t, dst, m, chunks)
		steps, onSync := 1+rng.IntN(60), rng.IntN(2) == 0
		setHook(fs, func() {
			fs.mu.Lock()
			defer fs.mu.Unlock()
			if steps--; steps == 0 && onSync {
				fs.mu.failSyncs = boom
			} else if steps == 0 {
				fs.mu.failWrites = boom
			}
		})
		st, err := dst.Install(in)
		setHook(fs, nil)
		fs.FailSyncs(nil)
		fs.FailWrites(nil)
		switch {
		case err == nil:
		case errors.Is(err, ErrStopped):
		case errors.Is(err, boom): // in a small table: the store lives
			if got := everything(t, dst); !equalRows(got, before) {
				t.Fatalf("round %d: refused, but changed", round)
			}
			for errors.Is(err, boom) { // a flush that met the failure may still be about to say so
				st, err = dst.Install(in)
			}
			if err != nil {
				t.Fatal(err)
			}
		default:
			t.Fatal(err)
		}
		clone := fs.CrashClone(keepPercents[round%3], seed)
		if err := dst.Close(); err != nil && !errors.Is(err, boom) {
			t.Fatal(err)
		}
		e, lerr := Open(testOptions(t, clone))
		if lerr != nil {
			t.Fatalf("round %d: %v", round, lerr)
		}
		if loaded := loadReplica(t, e, 7); err == nil && fmt.Sprintf("%+v", loaded) != fmt.Sprintf("%+v", st) {
			t.Fatalf("round %d: installed %+v, loaded %+v", round, st, loaded)
		} else if loaded.Mark.ReplicaID == 2 {
			if got := everything(t, e); !equalRows(got, before) {
				t.Fatalf("round %d: the old replica, with other rows", round)
			}
		}
		mustClose(t, e)
	}
	if stopped == 0 {
		t.Fatal("no failure was met")
	}
}

func TestAnInstallThatContradictsItselfIsRefused(t *testing.T) {
	c := installCases[4]
	m, chunks, want := c.snapshotOf(t)
	dst := newEngine(t)
	good := c.prepare(t, dst)
	good.Staging = mustStage(t, dst, m, chunks)
	before := everything(t, dst)
	gone := good.Subsume[0]
	for name, mend := range map[string]func(in *Install){
		"another replica":     func(in *Install) { in.Mark.ReplicaID = 2 },
		"mark below replica":  func(in *Install) { in.Mark.NextReplicaID = 3 },
		"old term":            func(in *Install) { in.Hard.Term = 7 },
		"subsumes itself":     func(in *Install) { in.Subsume = []Removal{{Shard: 7, Mark: gone.Mark}} },
		"subsumes twice":      func(in *Install) { in.Subsume = []Removal{gone, gone} },
		"subsumed one lives":  func(in *Install) { in.Subsume[0].Mark = ReplicaMark{ReplicaID: 2, NextReplicaID: 3} },
		"descriptor of other": func(in *Install) { in.Subsume[0].Desc = ranged(10, "x", "y") },
	} {
		in := good
		in.Subsume = []Removal{gone}
		mend(&in)
		if _, err := dst.Install(in); err == nil {
			t.Errorf("%s: installed", name)
		}
	}
	if got := everything(t, dst); !equalRows(got, before) {
		t.Fatal("a refused install changed something")
	}
	checkInstalled(t, dst, mustInstall(t, dst, good), want)
}

// TestInstallsDoNotDisturbOtherShards writes two shards on either side of one that is installed again and again.
func TestInstallsDoNotDisturbOtherShards(t *testing.T) {
	c := installCases[2]
	m, chunks, want := c.snapshotOf(t)
	fs := NewMemFS()
	o := testOptions(t, fs)
	o.MemTableBytes = 128 << 10
	dst := mustOpen(t, o)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	written := make([]int, 2)
	for g, d := range []*base.Descriptor{ranged(6, "A", "a"), ranged(8, "c", "d")} {
		oldReplica(t, dst, d)
		l := mustLog(t, dst, loadReplica(t, dst, d.Shard))
		wg.Go(func() {
			_, last := l.Bounds()
			for i := 0; ctx.Err() == nil; i++ {
				b := dst.NewBatch()
				b.Put(dataKey(string(d.Start[1:]), 1000+i%500), ValueHeader{Version: uint64(i)}, userValue(i))
				b.putSession(d.Shard, 100+i%50, fmt.Sprint(i))
				l.Append(b, entries(6, last+1+uint64(i), "entry"))
				if err := dst.Commit(b, i%4 == 0); err != nil {
					t.Error(err)
					return
				}
				b.Close()
				written[g] = i + 1
			}
		})
	}
	for range 40 {
		in := installOf(mustStage(t, dst, m, chunks))
		mustInstall(t, dst, in)
	}
	stop()
	wg.Wait()
	for range 2 {
		sameRows(t, "installed", shardRows(t, dst, m.Desc), want)
		for g, d := range []*base.Descriptor{ranged(6, "A", "a"), ranged(8, "c", "d")} {
			l := mustLog(t, dst, loadReplica(t, dst, d.Shard))
			if _, last := l.Bounds(); last != InitialIndex+3+uint64(written[g]) {
				t.Fatalf("log of %s ends at %d, %d were written", d.Shard, last, written[g])
			}
			l.Close()
			for i := max(0, written[g]-500); i < written[g]; i++ {
				h, _, ok, err := dst.Get(dataKey(string(d.Start[1:]), 1000+i%500), nil)
				if err != nil || !ok || h.Version != uint64(i) {
					t.Fatalf("write %d of %s: %t, version %d, %v", i, d.Shard, ok, h.Version, err)
				}
			}
		}
		mustClose(t, dst)
		dst = mustOpen(t, testOptions(t, fs))
	}
	mustClose(t, dst)
}

// TestAnInstallOverADamagedTableSucceedsOrIsRefused damages the tables that the excise has to cut.
func TestAnInstallOverADamagedTableSucceedsOrIsRefused(t *testing.T) {
	rng, _ := seeded(t)
	c := installCases[2]
	m, chunks, want := c.snapshotOf(t)
	fs := NewMemFS()
	first := mustOpen(t, testOptions(t, fs))
	oldReplica(t, first, ranged(6, "A", "a"))
	oldReplica(t, first, ranged(7, "a", "c"))
	oldReplica(t, first, ranged(8, "c", "d"))
	if err := first.db.Compact(t.Context(), []byte{dataStart}, []byte{dataEnd}, false); err != nil {
		t.Fatal(err)
	}
	mustClose(t, first)
	refused, installed := 0, 0
	for _, name := range filesWith(t, fs, ".sst") {
		whole := readFile(t, fs, name)
		for range 15 {
			clone := fs.CrashClone(100, 1)
			bad := append([]byte(nil), whole...)
			bad[rng.IntN(len(bad))] ^= 1 << rng.IntN(8)
			writeFile(t, clone, name, bad)
			e, err := Open(testOptions(t, clone))
			if err != nil {
				continue
			}
			s := mustStage(t, e, m, chunks)
			switch st, err := e.Install(installOf(s)); {
			case errors.Is(err, ErrCorrupt):
				refused++
				if err := s.Remove(); err != nil {
					t.Fatal(err)
				}
			case err != nil:
				t.Fatal(err)
			default:
				installed++
				sameRows(t, "installed", shardRows(t, e, st.Desc), want)
			}
			commit(t, e, true, func(b *Batch) { b.Put([]byte("\x02z"), ValueHeader{}, nil) })
			if err := e.db.Flush(); err != nil { // not stuck
				t.Fatal(err)
			}
			mustClose(t, e)
		}
	}
	if refused == 0 || installed == 0 {
		t.Fatalf("%d refused, %d installed", refused, installed)
	}
}
