package engine

import (
	"fmt"
	"reflect"
	"testing"

	"github.com/shardd/shardd/internal/base"
	"go.etcd.io/etcd/raft/v3/raftpb"
)

// TestASplitReplicaIsWhatBootReads: its records, a copy of the sessions, and the promises of what was there before.
func TestASplitReplicaIsWhatBootReads(t *testing.T) {
	for name, hard := range map[string]raftpb.HardState{
		"new":                   {},
		"voted in an old term":  {Term: InitialTerm - 1, Vote: 2},
		"voted in its term":     {Term: InitialTerm, Vote: 2},
		"voted in a later term": {Term: 60, Vote: 3},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEngine(t)
			left, right := testDesc(7, "a", "m"), testDesc(8, "m", "z")
			commit(t, e, true, func(b *Batch) {
				b.CreateReplica(left, 1, 1, nil)
				for i := range 3 {
					b.PutSession(7, Session{ID: uint64(i), Data: fmt.Appendf(nil, "session %d", i)})
				}
				b.CreateUninitialised(8, 1, hard)
			})
			side := SplitRight{Desc: right, Replica: 1, Stamp: 99, Stats: Stats{PutBytes: 5, PutOps: 2}, Hard: hard}
			commit(t, e, true, func(b *Batch) { b.SplitReplica(7, side) })
			got, ok, err := e.ReplicaState(8)
			if err != nil || !ok || !reflect.DeepEqual(got, side.State()) {
				t.Fatalf("got %+v %t %v, want %+v", got, ok, err, side.State())
			}
			want := raftpb.HardState{Term: InitialTerm, Commit: InitialIndex}
			if hard.Term >= InitialTerm {
				want.Term, want.Vote = hard.Term, hard.Vote
			}
			if got.Hard != want || got.Mark != (ReplicaMark{ReplicaID: 1, NextReplicaID: 4}) {
				t.Fatalf("hard state %+v, mark %+v", got.Hard, got.Mark)
			}
			for _, shard := range []base.ShardID{7, 8} {
				if all, err := e.Sessions(shard); err != nil || len(all) != 3 || string(all[2].Data) != "session 2" {
					t.Fatalf("%s has the sessions %v, %v", shard, all, err)
				}
			}
		})
	}
}

func TestASplitReplicaThatItsShardDoesNotListIsRefused(t *testing.T) {
	e := newEngine(t)
	joint := testDesc(8, "m", "z")
	joint.Replicas[2].Role = base.RoleIncoming
	for name, side := range map[string]SplitRight{
		"not listed": {Desc: testDesc(8, "m", "z"), Replica: 9},
		"joint":      {Desc: joint, Replica: 1},
		"itself":     {Desc: testDesc(7, "m", "z"), Replica: 1},
	} {
		b := e.NewBatch()
		b.SplitReplica(7, side)
		if b.Err() == nil {
			t.Errorf("%s: accepted", name)
		}
		b.Close()
	}
}
