// Package recovery plans how shards that have lost their quorum for ever are made new from what is left. It is pure: from
// the inventories of the surviving stores it says which replica becomes the only one of its shard, under which
// descriptor, what is given up, what may be lost, and what forbids to begin. It does nothing and asks nobody.
//
// The rules, with what breaks without each:
//
//   - A shard with a live quorum is left alone, and its range is taken for true.
//   - Of the others, the replica with the furthest log is chosen: by the term of its last entry, then by its index. Every
//     entry that any survivor knows to be committed is in it (raft's leader completeness), a split or a merge among them,
//     so the ranges that come out of it are never older than what another survivor has applied.
//   - Where ranges overlap the higher Version owns the keys (rule I6). A shard keeps its start for life: one whose start is
//     owned by a newer shard was merged away and is given up; otherwise it ends where the newer one begins.
//   - What nobody owns then had no survivor, and is made anew, empty.
//   - Epochs, replica ids and terms jump, so that whatever the lost stores alone knew is older than what is made now.
package recovery

import (
	"time"

	"github.com/shardd/shardd/internal/base"
)

// Jump is what is added to ConfVer, Version, replica ids and terms: far more than a store can have missed while its log
// was still of use, and still a number that people can read.
const Jump = 10_000

// Replica is one replica on a surviving store, as that store has it.
type Replica struct {
	Store   base.StoreID
	Shard   base.ShardID
	Replica base.ReplicaID
	// Desc is the descriptor that it has applied, nil if it is uninitialised.
	Desc    *base.Descriptor
	Faulted string // reason, empty if healthy

	Term, LastTerm, LastIndex, Commit, Applied uint64
	Leads                                      bool
	// Silent is the time since the last word of a leader.
	Silent time.Duration
	// Changes says that the log changes the replicas behind what is applied.
	Changes bool
	// Settled: everything in its log that would be taken for committed is applied.
	Settled bool
	// Busy: it could not be asked how far its log is.
	Busy bool
}

// Input is everything that a plan depends on.
type Input struct {
	Failed    []base.StoreID // ascending
	Survivors []base.StoreID // ascending; all of them have answered
	Replicas  []Replica
}

// Drop is a replica that is given up.
type Drop struct {
	Store   base.StoreID
	Shard   base.ShardID
	Replica base.ReplicaID
}

// Shard is one shard that is made new.
type Shard struct {
	// Shard is 0 for a range without a survivor, which gets a new shard; MetaShard if that range is the meta shard's.
	Shard      base.ShardID
	Start, End []byte
	// Survivor holds the chosen replica; 0 for a range that is made anew, on the store On.
	Survivor base.StoreID
	Replica  base.ReplicaID
	On       base.StoreID
	// Desc is the new descriptor. That of a range made anew lacks its shard, unless it is the meta shard.
	Desc *base.Descriptor
	// Version is that of the descriptor that the chosen replica has now.
	Version                              uint64
	Term                                 uint64 // at least this
	Applied, Commit, LastTerm, LastIndex uint64
	Settled                              bool // of a chosen replica
	Loss                                 string
	Dropped                              []Drop // other replicas of the shard, by store
}

// Plan is what is to be done, as far as it can be seen now: a log that still holds a split or a merge brings more.
type Plan struct {
	Shards []Shard // by range
	// GiveUp lists replicas of shards that are no more, since newer ones own their range, or that never got a state. They
	// go before anything else, so that nothing overlaps.
	GiveUp []Drop
	// Known are the newest descriptors of the shards that are left, in their new ranges, by range.
	Known []*base.Descriptor
	// Problems forbid to begin, and to go on: they have to pass first.
	Problems []string
	// Healthy is the number of shards that have kept their quorum.
	Healthy int
}

// Empty reports whether nothing is left to do.
func (p *Plan) Empty() bool { return len(p.Shards) == 0 && len(p.GiveUp) == 0 }

// Unsettled returns the chosen replicas whose logs have to be applied to their ends before anything else is done: what they
// hold may change ranges, and needs replicas that would be given up.
func (p *Plan) Unsettled() (out []*Shard) {
	for i := range p.Shards {
		if s := &p.Shards[i]; s.Survivor != 0 && !s.Settled {
			out = append(out, s)
		}
	}
	return out
}

// Meta returns the plan for the meta shard, nil if it has kept its quorum.
func (p *Plan) Meta() *Shard {
	for i := range p.Shards {
		if p.Shards[i].Shard == base.MetaShard {
			return &p.Shards[i]
		}
	}
	return nil
}
