package wire

import (
	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/internal/base"
)

// RaftMessage is one raft message with its full address: the shard, both replicas and both stores, so that a message
// for an old replica can never reach its successor. Msg.From and Msg.To equal From and To. Msg.Snapshot is never
// carried here: snapshots travel by the snapshotter.
type RaftMessage struct {
	Shard     base.ShardID
	From, To  base.ReplicaID
	FromStore base.StoreID
	ToStore   base.StoreID
	Msg       raftpb.Message
	Stamp     Stamp
}

// Stamp is what a follower's answer says about the promise under which it was given: the epoch of the follower's store's
// support of the leader's store, and the follower's commit index after the leader's message. Epoch 0: no stamp, and Commit
// is not carried.
type Stamp struct{ Epoch, Commit uint64 }
