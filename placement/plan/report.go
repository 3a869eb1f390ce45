package plan

import (
	"time"

	"github.com/shardd/shardd/internal/base"
)

// StoreReport is what a store tells of itself, each second or so.
type StoreReport struct {
	Store       base.StoreID
	Incarnation uint64
	// Number rises with every report of an incarnation; 0 from a store of a version that does not count them.
	Number uint64
	// At is when the report arrived, on the owner's boot clock.
	At time.Duration
	// Full means that Replicas holds every replica; else it holds those that changed since the last answered report, and
	// Removed the shards whose replica has gone since.
	Full     bool
	Replicas []ReplicaReport
	Removed  []base.ShardID
	// Digest is Digest.Sum over all replicas of the store once this report is taken in; 0 if the store does not say.
	Digest uint64

	DiskBytes, DiskFree, DiskCapacity uint64
	Disk                              Disk
	// Unhealthy is the store's failed check and Slow why it is slower than it should be; empty if all is well.
	Unhealthy, Slow string
	CPUMillis       uint64
}

// ReplicaReport is one replica in a report. The view keeps none of its memory.
type ReplicaReport struct {
	Shard   base.ShardID
	Replica base.ReplicaID
	// Desc is the descriptor that the replica has applied; nil while it has none.
	Desc    *base.Descriptor
	Leads   bool
	Term    uint64
	Faulted string
	// Uninitialised: the replica has no state yet.
	Uninitialised bool
	Put, Size     uint64
	// MergingInto and MergeID are set while frozen.
	MergingInto base.ShardID
	MergeID     uint64

	// Of leaders only.
	Load Load
	// HotKey carries most of the load; SplitKey would divide it. Routing keys, empty if there is none.
	HotKey, SplitKey []byte
	// Silent are replicas that have not been heard of lately, Behind those that need a snapshot.
	Silent, Behind []base.ReplicaID
}
