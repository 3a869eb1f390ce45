package engine

import (
	"testing"

	"github.com/shardd/shardd/internal/base"
	"go.etcd.io/etcd/raft/v3/raftpb"
)

// atomicStep runs a synced step and opens what a crash at every moment of it leaves: all of before, or all of after.
func atomicStep(t *testing.T, prepare func(e *Engine), step func(b *Batch)) (after *Engine) {
	t.Helper()
	_, seed := seeded(t)
	fs := NewMemFS()
	e := mustOpen(t, testOptions(t, fs))
	prepare(e)
	before := everything(t, e)
	var clones []*FS
	setHook(fs, func() {
		for _, keep := range keepPercents {
			clones = append(clones, fs.CrashClone(keep, seed+int64(len(clones))))
		}
	})
	commit(t, e, true, step)
	setHook(fs, nil)
	clones = append(clones, fs.CrashClone(0, seed))
	want := everything(t, e)
	old := 0
	for i, fs := range clones {
		c := mustOpen(t, testOptions(t, fs))
		if _, err := c.LoadReplicas(); err != nil {
			t.Fatalf("moment %d: %v", i, err)
		}
		switch got := everything(t, c); {
		case equalRows(got, want):
			if err := c.db.Compact(t.Context(), []byte{0}, []byte{0xff}, false); err != nil {
				t.Fatal(err)
			}
			sameRows(t, "compacted", everything(t, c), want)
		case equalRows(got, before) && i < len(clones)-1:
			old++
		default:
			t.Fatalf("moment %d: %d rows, before %d, after %d", i, len(got), len(before), len(want))
		}
		mustClose(t, c)
	}
	if old == 0 {
		t.Fatal("no moment before the step was seen")
	}
	t.Cleanup(func() { mustClose(t, e) })
	return e
}

func TestARemovedReplicaLeavesItsMarkAndNothingElse(t *testing.T) {
	d := ranged(7, "a", "c")
	mark := ReplicaMark{NextReplicaID: 9}
	e := atomicStep(t, func(e *Engine) {
		oldReplica(t, e, ranged(6, "A", "a"))
		oldReplica(t, e, d)
		oldReplica(t, e, ranged(8, "c", "d"))
	}, func(b *Batch) { b.RemoveReplica(Removal{Shard: 7, Mark: mark, Desc: d}) })

	for _, r := range everything(t, e) {
		if r.key[0] != spaceLocal && d.Contains([]byte(r.key)) {
			t.Fatalf("data is left: %q", r.key)
		}
		if r.key[0] == spaceLocal && u64at([]byte(r.key), 2) == 7 && r.key[1] != spanMark {
			t.Fatalf("a record is left: %q", r.key)
		}
	}
	if m, ok, err := e.Mark(7); m != mark || !ok || err != nil {
		t.Fatal(m, ok, err)
	}
	if _, ok, err := e.ReplicaState(7); ok || err != nil {
		t.Fatal(ok, err)
	}
	for _, shard := range []base.ShardID{6, 8} {
		if _, ok, err := e.ReplicaState(shard); !ok || err != nil {
			t.Fatal(shard, ok, err)
		}
	}
	if _, ok, err := e.ReplicaState(12345); ok || err != nil {
		t.Fatal(ok, err)
	}
}

func TestAnUninitialisedReplicaIsCreatedAsAWholeAndRemovedAsOne(t *testing.T) {
	hard := raftpb.HardState{Term: 5, Vote: 2}
	e := atomicStep(t, func(e *Engine) {
		oldReplica(t, e, ranged(6, "A", "a"))
		commit(t, e, true, func(b *Batch) { // what should not be there
			b.putSession(7, 1, "leftover")
			b.SetHardState(7, raftpb.HardState{Term: 77})
		})
	}, func(b *Batch) { b.CreateUninitialised(7, 4, hard) })

	st := loadReplica(t, e, 7)
	if st.Mark != (ReplicaMark{ReplicaID: 4, NextReplicaID: 5}) || st.Desc != nil || st.Hard != hard ||
		st.Applied.Index != 0 || st.Truncated.Index != 0 {
		t.Fatalf("%+v", st)
	}
	if one, ok, err := e.ReplicaState(7); !ok || err != nil || one.Hard != hard || one.Mark != st.Mark || one.Desc != nil {
		t.Fatalf("%+v, %t, %v", one, ok, err)
	}
	l := mustLog(t, e, st)
	if first, last := l.Bounds(); first != 1 || last != 0 {
		t.Fatal(first, last)
	}
	l.Close()
	commit(t, e, true, func(b *Batch) { b.CreateUninitialised(9, 1, raftpb.HardState{}) })
	if st := loadReplica(t, e, 9); st.Hard != (raftpb.HardState{}) {
		t.Fatalf("%+v", st)
	}
	commit(t, e, true, func(b *Batch) { b.RemoveReplica(Removal{Shard: 7, Mark: ReplicaMark{NextReplicaID: 5}}) })
	if _, ok, err := e.ReplicaState(7); ok || err != nil {
		t.Fatal(ok, err)
	}
	lo, hi := shardSpan(spanRaft, 7)
	if rows := rowsIn(t, e, lo, hi); len(rows) > 0 {
		t.Fatal(rows)
	}
}

func TestARemovalOrCreationThatMakesNoSenseIsNotWritten(t *testing.T) {
	e := newEngine(t)
	oldReplica(t, e, ranged(7, "a", "c"))
	before := everything(t, e)
	for name, fill := range map[string]func(b *Batch){
		"removed but alive": func(b *Batch) {
			b.RemoveReplica(Removal{Shard: 7, Mark: ReplicaMark{ReplicaID: 1, NextReplicaID: 2}})
		},
		"no next id": func(b *Batch) { b.RemoveReplica(Removal{Shard: 7}) },
		"no shard":   func(b *Batch) { b.RemoveReplica(Removal{Mark: ReplicaMark{NextReplicaID: 2}}) },
		"another's range": func(b *Batch) {
			b.RemoveReplica(Removal{Shard: 7, Mark: ReplicaMark{NextReplicaID: 2}, Desc: ranged(8, "a", "c")})
		},
		"replica 0":         func(b *Batch) { b.CreateUninitialised(7, 0, raftpb.HardState{}) },
		"shard 0":           func(b *Batch) { b.CreateUninitialised(0, 1, raftpb.HardState{}) },
		"no id comes after": func(b *Batch) { b.CreateUninitialised(7, ^base.ReplicaID(0), raftpb.HardState{}) },
		"range out of place": func(b *Batch) {
			d := ranged(7, "a", "c")
			d.Start = []byte{1}
			b.RemoveReplica(Removal{Shard: 7, Mark: ReplicaMark{NextReplicaID: 2}, Desc: d})
		},
	} {
		b := e.NewBatch()
		fill(b)
		if err := e.Commit(b, true); err == nil {
			t.Errorf("%s: written", name)
		}
		b.Close()
	}
	sameRows(t, "refused", everything(t, e), before)
}
