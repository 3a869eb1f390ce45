package placement

import (
	"time"

	"github.com/shardd/shardd/internal/base"
)

// ShardNow is a shard as its leader knows it at one moment. What a job does next is decided from it, never from what
// the job remembers to have done.
type ShardNow struct {
	// Desc is the descriptor that the leader has applied.
	Desc   *base.Descriptor
	Leader base.StoreID
	Term   uint64
	// Progress has one entry for each replica of Desc, the leader's own included.
	Progress []ReplicaNow
	// Snapshot is the stream to a replica of this shard, nil if none runs.
	Snapshot *SnapshotNow
}

// ReplicaNow is one replica as the leader sees it. Indexes are those of the raft log.
type ReplicaNow struct {
	Replica base.ReplicaID
	Store   base.StoreID
	Role    base.Role
	// Match is the highest entry known to be in the replica's log, Last the leader's own last entry.
	Match, Last uint64
	// Active: the replica answered the leader within the last election timeout.
	Active bool
	// PendingSnapshot is the index of the snapshot that the replica waits for, 0 if none.
	PendingSnapshot uint64
	// Applied is the replica's own applied index, 0 if it is not known.
	Applied uint64
	// Bytes is the data of the shard on the replica's disk, estimated; 0 if it is not known.
	Bytes uint64
}

// SnapshotNow is the progress of one snapshot stream.
type SnapshotNow struct {
	// To is the replica that receives it.
	To base.ReplicaID
	// Phase is waiting, reserving, streaming, verifying or installing.
	Phase string
	// Done and Total are bytes; Total is an estimate until the end. Rate is in bytes per second.
	Done, Total, Rate uint64
	Elapsed           time.Duration
}

// On returns what is known of the replica on a store, and false if the shard has none there.
func (s *ShardNow) On(id base.StoreID) (ReplicaNow, bool) {
	d, ok := s.Desc.ReplicaOn(id)
	if !ok {
		return ReplicaNow{}, false
	}
	for _, p := range s.Progress {
		if p.Replica == d.Replica {
			p.Store, p.Role = d.Store, d.Role
			return p, true
		}
	}
	return ReplicaNow{Replica: d.Replica, Store: d.Store, Role: d.Role}, true
}

// Joint reports whether the shard is between two configurations.
func (s *ShardNow) Joint() bool {
	for _, r := range s.Desc.Replicas {
		if r.Role == base.RoleIncoming || r.Role == base.RoleOutgoing {
			return true
		}
	}
	return false
}

// Bytes estimates the size of the shard: that of the leader's copy, else the largest known.
func (s *ShardNow) Bytes() uint64 {
	var most uint64
	for _, p := range s.Progress {
		if p.Store == s.Leader && p.Bytes > 0 {
			return p.Bytes
		}
		most = max(most, p.Bytes)
	}
	return most
}
