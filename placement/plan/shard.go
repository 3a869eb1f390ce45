package plan

import (
	"strings"
	"time"

	"github.com/shardd/shardd/internal/base"
)

// PeerFlags say what the reports tell of one replica.
type PeerFlags uint8

// Flags. Silent and Behind are the leader's word, the others that of the replica's own store.
const (
	PeerFaulted       PeerFlags = 1 << iota // stopped, must be replaced
	PeerUninitialised                       // waits for its first snapshot or split
	PeerSilent                              // the leader has not heard of it lately
	PeerBehind                              // needs a snapshot
	PeerFrozen                              // frozen for a merge
)

// Peer is one replica of a shard: one that the descriptor lists, or one that a store says it holds though the
// descriptor does not list it (Role 0).
type Peer struct {
	Store   base.StoreID
	Replica base.ReplicaID
	hash    uint64 // its part in the store's digest; 0: its store has not reported it
	pos     int32  // in Store.shards
	Role    base.Role
	Flags   PeerFlags
}

// Reported says whether the peer's own store has told of it.
func (p *Peer) Reported() bool { return p.hash != 0 }

// Shard is one shard of the view: the newest descriptor that any store reported, and what its leader says. Read only
// outside this package. A million of them are kept, so what few shards have lives in rare.
type Shard struct {
	ID         base.ShardID
	Start, End string // routing keys
	Epoch      base.Epoch
	Next       base.ReplicaID
	Peers      []Peer // those of the descriptor in its order, then strays

	Leader base.StoreID // 0: none known
	Term   uint64
	// Size is the bytes on disk, as the leader measured last, else the largest reported; Put counts all bytes ever put.
	Size, Put uint64
	Load      Load

	// Changed is when the range last changed as far as the view has seen (its making, a split, a merge); Cold since when
	// the load has been below that for a merge, and ConfChanged when the replicas last changed.
	Changed, Cold, ConfChanged time.Duration
	// Led is since when the present leader leads.
	Led time.Duration

	rare  *rare
	rule  Rule // of the range, as of the last Tick
	class class
	dirty bool
	// ready: small, cold and unchanged for long enough to be merged, as of the last check.
	ready bool
	// covered: a newer descriptor of another shard holds the range, so this one is merged away or not yet shrunk.
	covered bool
	// need is what the planner's last check found; see need.go.
	need Need
	// spare is how many live voters it has above its quorum, as of the last check.
	spare int8
}

type rare struct {
	hotKey, splitKey string
	mergingInto      base.ShardID
	mergeID          uint64
	faults           map[base.StoreID]string
	// parent is the shard that it was split from, as far as seen.
	parent base.ShardID
}

// class says on which side of the settings' thresholds a shard lies. Only when it changes do reports of size and load
// have its checks run again.
type class uint8

const (
	classBig     class = 1 << iota // above the size to split at
	classBusy                      // above the load to split at
	classSmall                     // below the size to merge at
	classCold                      // below the load to merge at
	classHotKey                    // one key carries the load
	classHasSpot                   // the leader knows a key that divides the load
	classFrozen                    // frozen for a merge
)

// Listed returns the peers of the descriptor.
func (s *Shard) Listed() []Peer {
	n := len(s.Peers)
	for n > 0 && s.Peers[n-1].Role == 0 {
		n--
	}
	return s.Peers[:n]
}

// Strays returns replicas that stores hold though the descriptor does not list them.
func (s *Shard) Strays() []Peer { return s.Peers[len(s.Listed()):] }

// On returns the peer on a store, nil if there is none; a stray counts.
func (s *Shard) On(id base.StoreID) *Peer {
	for i := range s.Peers {
		if s.Peers[i].Store == id {
			return &s.Peers[i]
		}
	}
	return nil
}

// ListedOn returns the peer on a store that the descriptor lists, nil if there is none.
func (s *Shard) ListedOn(id base.StoreID) *Peer {
	if p := s.On(id); p != nil && p.Role != 0 {
		return p
	}
	return nil
}

// Joint reports whether the shard is between two configurations.
func (s *Shard) Joint() bool {
	for i := range s.Peers {
		if r := s.Peers[i].Role; r == base.RoleIncoming || r == base.RoleOutgoing {
			return true
		}
	}
	return false
}

// Meta reports whether the shard holds the system's own data; it is never split nor merged.
func (s *Shard) Meta() bool {
	return s.ID == base.MetaShard || len(s.Start) > 0 && s.Start[0] == base.SpaceSystem
}

// Rule returns the rule of the shard's range, nil before the first Tick.
func (s *Shard) Rule() Rule { return s.rule }

// Desc returns the newest descriptor as a value of its own.
func (s *Shard) Desc() *base.Descriptor {
	d := &base.Descriptor{
		Shard: s.ID, Start: []byte(s.Start), End: []byte(s.End), Epoch: s.Epoch, NextReplicaID: s.Next,
	}
	for _, p := range s.Listed() {
		d.Replicas = append(d.Replicas, base.ReplicaDesc{Replica: p.Replica, Store: p.Store, Role: p.Role})
	}
	return d
}

// HotKey returns the key that carries most of the load, empty if none does.
func (s *Shard) HotKey() string {
	if s.rare == nil {
		return ""
	}
	return s.rare.hotKey
}

// SplitKey returns a key that would divide the load, empty if the leader knows none.
func (s *Shard) SplitKey() string {
	if s.rare == nil {
		return ""
	}
	return s.rare.splitKey
}

// MergingInto returns the shard that this one is frozen for, and the merge, or zeroes.
func (s *Shard) MergingInto() (base.ShardID, uint64) {
	if s.rare == nil {
		return 0, 0
	}
	return s.rare.mergingInto, s.rare.mergeID
}

// Fault returns why the replica on a store has stopped, empty if it has not.
func (s *Shard) Fault(on base.StoreID) string {
	if s.rare == nil {
		return ""
	}
	return s.rare.faults[on]
}

// mend returns the part for what few shards have, made if need be.
func (s *Shard) mend() *rare {
	if s.rare == nil {
		s.rare = &rare{}
	}
	return s.rare
}

// String returns a short text for traces: s12 n1* n2 n3:learner, the leader starred.
func (s *Shard) String() string {
	var b strings.Builder
	b.WriteString(s.ID.String())
	for _, p := range s.Peers {
		b.WriteString(" " + p.Store.String())
		if p.Store == s.Leader {
			b.WriteByte('*')
		}
		switch {
		case p.Role == 0:
			b.WriteString(":stray")
		case p.Role != base.RoleVoter:
			b.WriteString(":" + p.Role.String())
		}
		if p.Flags&PeerFaulted != 0 {
			b.WriteString(":faulted")
		}
	}
	return b.String()
}
