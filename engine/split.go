package engine

import (
	"fmt"

	"github.com/shardd/shardd/internal/base"
	"go.etcd.io/etcd/raft/v3/raftpb"
)

// SplitRight is a replica that a split makes on this store.
type SplitRight struct {
	Desc    *base.Descriptor
	Replica base.ReplicaID
	Stamp   uint64           // inherited: no key gets a version that is not above those it has
	Stats   Stats            // its share
	Hard    raftpb.HardState // of the uninitialised replica that it takes the place of; zero if there is none
}

// State is what SplitReplica writes, as LoadReplicas would read it.
func (r *SplitRight) State() ReplicaState {
	conf := ConfStateOf(r.Desc)
	st := ReplicaState{
		Shard: r.Desc.Shard, Desc: r.Desc,
		Mark:      ReplicaMark{ReplicaID: r.Replica, NextReplicaID: r.Desc.NextReplicaID},
		Applied:   AppliedState{Index: InitialIndex, Term: InitialTerm, Conf: conf, Stamp: r.Stamp, Stats: r.Stats},
		Truncated: TruncatedState{Index: InitialIndex, Term: InitialTerm, Conf: conf},
		Hard:      raftpb.HardState{Term: InitialTerm, Commit: InitialIndex},
	}
	if r.Hard.Term >= InitialTerm {
		st.Hard.Term, st.Hard.Vote = r.Hard.Term, r.Hard.Vote // promises: never lower, never forgotten
	}
	return st
}

// SplitReplica writes the records of a right-hand replica of a split, with a copy of the left shard's sessions. Its data
// is in place: it was the left replica's. It is part of one boundary step (rule I2), with the left shard's descriptor
// and applied state: commit the batch synced.
func (b *Batch) SplitReplica(left base.ShardID, r SplitRight) {
	st := r.State()
	if _, ok := r.Desc.Replica(r.Replica); !ok || len(st.Applied.Conf.VotersOutgoing) > 0 || left == r.Desc.Shard {
		b.invalid(fmt.Errorf("split %s: replica %s of %s is not listed, or the shard is joint", left, r.Replica, r.Desc))
		return
	}
	b.SetMark(st.Shard, st.Mark)
	b.SetDescriptor(st.Desc)
	b.SetApplied(st.Shard, &st.Applied)
	b.SetHardState(st.Shard, st.Hard)
	b.SetTruncated(st.Shard, st.Truncated)
	b.CopySessions(left, st.Shard)
}
