package engine

import (
	"errors"
	"fmt"
	"time"

	"github.com/shardd/shardd/internal/base"
	"go.etcd.io/etcd/raft/v3/raftpb"
)

// A new shard is born at this index and term instead of through raft.Bootstrap, so an empty log always needs a snapshot
// and a wiped replica can never be fed from nothing. The numbers are part of the format; being above 1 they also show
// in a log or a test which states were written directly.
const (
	InitialIndex = 10
	InitialTerm  = 5
)

// FormatVersion is the version of the key map and layouts of this package, kept in the ident, which every start
// rewrites, and in the STORE marker of a new directory. A directory with a higher one is refused with ExitNewerFormat.
//
//	2  TruncatedState has the configuration
//	3  AppliedState has the freeze of a merge and the merges decided; fences and recoveries in the store span
const FormatVersion = 3

// ErrCorrupt marks stored bytes that fail a checksum or do not follow their layout.
var ErrCorrupt = base.ErrCorrupt

// ErrInvalidKey marks a write outside the data families or with inverted bounds. Nothing of its batch is written.
var ErrInvalidKey = errors.New("invalid key for stored data")

// PeerRecord is what a store remembers about another: enough to find it, and to refuse an older life of it.
type PeerRecord struct {
	Store       base.StoreID
	Addr        string // host:port, as it advertised itself; at most 1 KiB
	Incarnation uint64 // highest seen
}

// Ident says who the store is. Peers and Meta are enough to find the meta shard after a restart of the whole cluster.
type Ident struct {
	Cluster        base.ClusterID
	Store          base.StoreID
	Incarnation    uint64        // raised at every start, before the transport runs
	Format         uint32        // FormatVersion that wrote it; filled in by WriteIdent
	FormatMajor    uint32        // Pebble's format major version; filled in by WriteIdent
	LongestPromise time.Duration // longest lease support ever promised (rule V7)
	Peers          []PeerRecord  // by store id, ascending
	Meta           *base.Descriptor
	Fences         []Fence   // stores that are gone for good, by store id, ascending
	Recovery       *Recovery // of lost quorums, the last one; nil: there was none
}

// ReplicaMark outlives the replica: a replica exists on this store iff ReplicaID > 0, and an id below NextReplicaID
// that is not ReplicaID never comes back.
//
// INVARIANT(mark): ReplicaID == 0 || ReplicaID < NextReplicaID.
type ReplicaMark struct {
	ReplicaID     base.ReplicaID
	NextReplicaID base.ReplicaID
}

func (m ReplicaMark) check() error {
	if m.ReplicaID != 0 && m.ReplicaID >= m.NextReplicaID {
		return fmt.Errorf("mark: replica id %d is not below next replica id %d", m.ReplicaID, m.NextReplicaID)
	}
	return nil
}

// Stats are sums of logical bytes and operations from commands only, so they are equal on all replicas.
type Stats struct {
	PutBytes  uint64 // keys and values of applied puts
	PutOps    uint64
	DeleteOps uint64
}

// AppliedState says up to where a replica's state machine has come. It is written in the batch of the effects.
type AppliedState struct {
	Index, Term uint64
	Conf        raftpb.ConfState // at Index
	Stamp       uint64           // highest version stamp given to a key of the shard
	Stats       Stats
	Freeze      *Freeze // nil: the shard is not frozen. Never changed, only replaced
	// Merges are the last merges into this shard that its log has decided, the newest last. Never changed, only
	// replaced. MergesForgotten is the highest Version of a committed one that has left the list: what was asked for at
	// a higher one and is not in the list was not committed.
	Merges          []MergeRecord
	MergesForgotten uint64
}

// MaxMerges is how many decided merges an AppliedState remembers.
const MaxMerges = 8

// Freeze says that a shard stands still to be merged into its left neighbour.
type Freeze struct {
	ID        uint64       // of the merge
	Into      base.ShardID // the left neighbour, whose log decides
	IntoEpoch base.Epoch   // of the left neighbour, at which alone the merge can be decided
	Index     uint64       // of the Freeze in this shard's log: its data and stamp stay as they are there
}

// MergeRecord is one merge that the log of the left-hand shard has decided.
type MergeRecord struct {
	ID        uint64
	Shard     base.ShardID // the right-hand one
	Version   uint64       // Epoch.Version of the left-hand shard at which it was decided
	Committed bool         // else aborted
}

// Decided returns a's merges with another one, and the new value of MergesForgotten.
func (a *AppliedState) Decided(more ...MergeRecord) (merges []MergeRecord, forgotten uint64) {
	merges = append(append(merges, a.Merges...), more...)
	forgotten = a.MergesForgotten
	for len(merges) > MaxMerges {
		if merges[0].Committed {
			forgotten = max(forgotten, merges[0].Version)
		}
		merges = merges[1:]
	}
	return merges, forgotten
}

// TruncatedState is the position of the last log entry that is gone; the log starts at Index+1. Conf is the
// configuration at Index; it is empty for a state that an older version wrote.
type TruncatedState struct {
	Index, Term uint64
	Conf        raftpb.ConfState
}

// ReplicaState is everything boot reads about one replica. Desc is nil for a replica that exists by its mark but has
// not received its first snapshot; its Applied and Truncated are zero.
type ReplicaState struct {
	Shard     base.ShardID
	Mark      ReplicaMark
	Desc      *base.Descriptor
	Applied   AppliedState
	Truncated TruncatedState
	Hard      raftpb.HardState
}

// ValueHeader precedes the user's bytes in every stored value. Flags has its top bit clear: it belongs to the layout.
type ValueHeader struct {
	Flags   uint8
	Version uint64 // stamp given by the leader, strictly growing per key
	Expiry  uint64 // 0 none; unit and meaning belong to the layers above
}

// KV is one row of a shard's first data.
type KV struct{ Key, Value []byte }

// ConfStateOf returns raft's configuration that a descriptor's roles describe. While the shard is not Joint the
// outgoing configuration is empty.
func ConfStateOf(d *base.Descriptor) raftpb.ConfState {
	var cs raftpb.ConfState
	joint := false
	for _, r := range d.Replicas {
		joint = joint || r.Role == base.RoleIncoming || r.Role == base.RoleOutgoing
	}
	for _, r := range d.Replicas {
		id := uint64(r.Replica)
		switch r.Role {
		case base.RoleVoter:
			cs.Voters = append(cs.Voters, id)
			if joint {
				cs.VotersOutgoing = append(cs.VotersOutgoing, id)
			}
		case base.RoleIncoming:
			cs.Voters = append(cs.Voters, id)
		case base.RoleOutgoing: // a voter that becomes a learner when the shard leaves Joint
			cs.VotersOutgoing = append(cs.VotersOutgoing, id)
			cs.LearnersNext = append(cs.LearnersNext, id)
		case base.RoleLearner:
			cs.Learners = append(cs.Learners, id)
		}
	}
	return cs
}
