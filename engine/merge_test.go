package engine

import (
	"errors"
	"testing"

	"github.com/shardd/shardd/internal/base"
)

// session is a synthetic record as MergeReplica compares them.
func session(seq byte, text string) string {
	return string([]byte{layoutV1, 0, 0, 0, 0, 0, 0, 0, seq}) + text
}

func TestAMergedReplicaLeavesItsDataAndSessionsToItsNeighbour(t *testing.T) {
	left, right := ranged(7, "a", "c"), ranged(8, "c", "e")
	wide := left.Clone()
	wide.End, wide.Epoch.Version = right.End, 5
	applied := AppliedState{
		Index: 50, Term: 7, Stamp: 9, Conf: ConfStateOf(left),
		Merges: []MergeRecord{{ID: 1, Shard: 8, Version: 1, Committed: true}},
	}
	var data []row
	e := atomicStep(t, func(e *Engine) {
		oldReplica(t, e, left)
		oldReplica(t, e, right)
		oldReplica(t, e, ranged(9, "e", "f"))
		commit(t, e, true, func(b *Batch) {
			for i, s := range []string{session(3, "left"), session(3, "left"), session(3, "left")} {
				b.putSession(7, 100+i, s)
			}
			for i, s := range []string{session(2, "right"), session(3, "right"), session(4, "right"), session(1, "right")} {
				b.putSession(8, 100+i, s)
			}
			for i := range 5 { // oldReplica wrote the same ids in both
				b.putSession(7, i*2, session(1, "old"))
				b.putSession(8, i*2, session(0, "old"))
			}
		})
		data = rowsIn(t, e, wide.Start, wide.End)
	}, func(b *Batch) {
		b.MergeReplica(8, 7)
		b.SetDescriptor(wide)
		b.SetApplied(7, &applied)
	})

	sameRows(t, "data", rowsIn(t, e, wide.Start, wide.End), data)
	for _, r := range everything(t, e) {
		if r.key[0] == spaceLocal && u64at([]byte(r.key), 2) == 8 && r.key[1] != spanMark {
			t.Fatalf("a record is left: %q", r.key)
		}
	}
	if m, ok, err := e.Mark(8); m != (ReplicaMark{NextReplicaID: MergedAway}) || !ok || err != nil {
		t.Fatal(m, ok, err)
	}
	for i, want := range []string{session(3, "left"), session(3, "left"), session(4, "right"), session(1, "right")} {
		v, ok, err := e.get(sessionKey(7, 100+i))
		if string(v) != want || !ok || err != nil {
			t.Fatalf("session %d: %q, %t, %v, want %q", i, v, ok, err, want)
		}
	}
	states, err := e.LoadReplicas()
	if err != nil || len(states) != 2 {
		t.Fatalf("%d replicas, %v", len(states), err)
	}
	if st := loadReplica(t, e, 7); st.Desc.String() != wide.String() || len(st.Applied.Merges) != 1 ||
		st.Applied.Merges[0] != applied.Merges[0] {
		t.Fatalf("%+v", st)
	}
	v := mustView(t, e, 7)
	defer closeView(t, v)
	if string(v.Desc().End) != "\x02e" || len(v.Applied().Merges) != 1 {
		t.Fatalf("%s, %+v", v.Desc(), v.Applied())
	}
}

func TestAMergeThatMakesNoSenseIsNotWritten(t *testing.T) {
	e := newEngine(t)
	oldReplica(t, e, ranged(7, "a", "c"))
	oldReplica(t, e, ranged(8, "c", "e"))
	before := everything(t, e)
	for name, shards := range map[string][2]base.ShardID{
		"into itself": {7, 7}, "nothing": {0, 7}, "into nothing": {8, 0},
		"sessions that nobody knows": {8, 7}, // oldReplica's hold no sequence
	} {
		b := e.NewBatch()
		b.MergeReplica(shards[0], shards[1])
		if err := e.Commit(b, true); err == nil {
			t.Errorf("%s: was written", name)
		} else if shards == [2]base.ShardID{8, 7} && !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
		b.Close()
	}
	sameRows(t, "after all", everything(t, e), before)
}
