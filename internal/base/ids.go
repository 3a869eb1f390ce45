// Package base holds the vocabulary that every floor of Shardd shares: typed ids, epochs, key spaces and the shard
// descriptor with its fixed byte layout. It has no I/O, no goroutine and no dependency on the other packages.
package base

import (
	"fmt"
	"strconv"
)

// StoreID names one node and the one store on it; a node that loses its data directory comes back under a new id.
// Zero means none.
type StoreID uint64

// String returns the short form used in every log line and command: n4.
func (s StoreID) String() string { return "n" + strconv.FormatUint(uint64(s), 10) }

// ShardID names one shard for its whole life; ids are allocated by the meta shard and never repeat. Zero means none.
type ShardID uint64

// MetaShard is the id of the shard over the system key space.
const MetaShard ShardID = 1

// String returns the short form: s12.
func (s ShardID) String() string { return "s" + strconv.FormatUint(uint64(s), 10) }

// ReplicaID is the raft node id of one replica, unique within its shard and never reused. Zero means none.
type ReplicaID uint64

// String returns the decimal form; see ReplicaName for the form with the shard.
func (r ReplicaID) String() string { return strconv.FormatUint(uint64(r), 10) }

// ReplicaName returns the short form of a replica: s12/3.
func ReplicaName(s ShardID, r ReplicaID) string { return s.String() + "/" + r.String() }

// ClusterID is a random 128-bit id, fixed when a cluster is made.
type ClusterID [16]byte

// String returns 32 lower-case hex digits.
func (c ClusterID) String() string { return fmt.Sprintf("%x", c[:]) }

// IsZero reports whether the id is unset.
func (c ClusterID) IsZero() bool { return c == ClusterID{} }

// Epoch orders the descriptors of a shard. ConfVer rises by one with every membership change, Version with every
// change of the key range: of two descriptors that overlap, the newer one has the higher Version.
type Epoch struct {
	ConfVer uint64
	Version uint64
}

// String returns conf.version, for example 3.7.
func (e Epoch) String() string { return fmt.Sprintf("%d.%d", e.ConfVer, e.Version) }

// Newer reports whether e is later than o: by Version first, since ranges decide routing, then by ConfVer.
func (e Epoch) Newer(o Epoch) bool {
	if e.Version != o.Version {
		return e.Version > o.Version
	}
	return e.ConfVer > o.ConfVer
}
