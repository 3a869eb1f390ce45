// Package snapshotter is the place of the service that streams one shard's state from store to store within a budget.
//
// It is empty so far: replicas are made by init, logs are kept whole, and raft's Storage answers that a snapshot is
// temporarily unavailable (docs/decisions/0003-first-replicas-without-snapshots.md).
package snapshotter
