package shard

import (
	"errors"
	"fmt"

	"github.com/shardd/shardd/internal/base"
)

// ErrStopping is returned by calls that meet a store on its way down.
var ErrStopping = errors.New("store is stopping")

// NotFoundError says that this store has no replica of a shard.
type NotFoundError struct{ Shard base.ShardID }

func (e *NotFoundError) Error() string { return fmt.Sprintf("no replica of %s on this store", e.Shard) }

// NotLeaderError says that this store's replica does not lead its shard; Leader is 0 if unknown.
type NotLeaderError struct {
	Shard  base.ShardID
	Leader base.StoreID
}

func (e *NotLeaderError) Error() string {
	if e.Leader == 0 {
		return fmt.Sprintf("this store does not lead %s; no leader is known", e.Shard)
	}
	return fmt.Sprintf("this store does not lead %s; %s does", e.Shard, e.Leader)
}

// TransferError says why a leadership did not move.
type TransferError struct {
	Shard  base.ShardID
	To     base.StoreID
	Reason string
}

func (e *TransferError) Error() string {
	return fmt.Sprintf("transfer leadership of %s to %s: %s", e.Shard, e.To, e.Reason)
}

// FaultedError says that a replica has stopped for good.
type FaultedError struct {
	Shard   base.ShardID
	Replica base.ReplicaID
	Reason  string
}

func (e *FaultedError) Error() string {
	return fmt.Sprintf("replica %s is faulted: %s", base.ReplicaName(e.Shard, e.Replica), e.Reason)
}

// MarkError refuses to create a replica that this store may not have, or not any more.
type MarkError struct {
	Shard   base.ShardID
	Replica base.ReplicaID // asked for
	Have    base.ReplicaID // the replica that exists, 0 if none
	Next    base.ReplicaID // ids below never come back
}

func (e *MarkError) Error() string {
	if e.Have != 0 {
		return fmt.Sprintf("create replica %s: this store holds replica %s of the shard",
			base.ReplicaName(e.Shard, e.Replica), e.Have)
	}
	return fmt.Sprintf("create replica %s: ids below %s were removed from this store and never come back",
		base.ReplicaName(e.Shard, e.Replica), e.Next)
}

// OverlapError refuses to create a replica whose range touches that of another one on the store.
type OverlapError struct{ New, Old *base.Descriptor }

func (e *OverlapError) Error() string {
	return fmt.Sprintf("create %s: overlaps %s on this store", e.New, e.Old)
}
