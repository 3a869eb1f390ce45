// Package engine is the only code that knows Pebble: it keeps everything one store has on disk — the store ident, the
// raft logs and states of its replicas, and the data of its shards — in one Pebble instance.
//
// Its contract is that bytes come back as they were written or as an error, that nothing is called durable before the
// write-ahead log is synced, and that the first failed sync ends the store: Options.Fatal is called once and nothing is
// acknowledged afterwards. It never decides anything about raft, ranges or routing, never retries a sync, never uses a
// plain Pebble snapshot (an excise would silently take keys out of it; a view is an open iterator or a View), and never
// writes a SingleDelete (raft may overwrite an index, which SingleDelete does not survive).
//
// # Key map
//
// Ids and indexes are 8 bytes, big-endian, so that keys sort by number.
//
//	0x01 's' 'i'                 ident: cluster, store, incarnation, formats, longest lease promise    \
//	0x01 's' 'm'                 last meta descriptor                                                   } layout.go
//	0x01 's' 'p' store           last known address and highest seen incarnation of a store            /
//	0x01 's' 'f' store           fence: the store is gone for good                          \  fences.go
//	0x01 's' 'q'                 recovery of lost quorums: how far it is                    /
//	0x01 'm' shard               ReplicaMark                 \
//	0x01 'd' shard               Descriptor                   } small spans: boot reads these, never the logs
//	0x01 'a' shard               AppliedState                /
//	0x01 'c' shard session       client session record
//	0x01 'r' shard 'h'           HardState
//	0x01 'r' shard 'l' index     raft log entry
//	0x01 'r' shard 't'           TruncatedState
//	0x02 key                     user data                   \  value = header + user bytes; a shard owns its range of
//	0x03 key                     system data (meta shard)    /  the data families, and keys carry no shard id
//
// Every value starts with a layout version byte and is laid out by hand, big-endian; testdata holds one golden file for
// each. Growth happens by a new layout version next to the old decoder, never by reinterpreting bytes.
//
// # Threads
//
//	callers (workers, appliers)     engine's own                       Pebble's
//	  build Batch                     sync waiter: waits for syncs       WAL writer, flush, compactions
//	  CommitAsync: visible            in order, then calls done
//	  go on with other groups         probe: one WAL write a second      event listener -> queue
//	                                  when idle (is the disk alive?),
//	                                  and a look at the free space
//	                                  event logger: queue -> slog
//	                                  damage: calls OnCorrupt
//
// A Batch belongs to one goroutine at a time. A Log belongs to its replica's worker, except for what its comment lists.
// Everything else may be called from anywhere. The goroutines start in Open and are joined by Close.
//
// # Data directory
//
// Beside Pebble's files there is STORE, the marker that the directory is ours (marker.go). It is written and synced
// before Pebble creates anything and rewritten when Pebble's first open has finished, so that a directory that holds
// something else, or that has lost its database, is refused instead of filled or silently emptied. What Pebble would
// read as "never written" after damage, or would panic at, is looked for before (precheck.go, records.go).
//
// Snapshots that are being received are in staging/ (staging.go), which Open empties; what they install is ingested in
// one step with the replica's records (install.go).
//
// RESERVE is space that is given back when a start finds the disk full (space.go).
//
// # Failure
//
// Damaged tables cost their readers an error each, and are reported with their keys (corrupt.go). A full disk is told
// from an almost full one before it is met (space.go); Inspect reads the directory of a store that is stopped.
//
// The first failed sync, or failed write of log or manifest, stops the store and freezes the directory as a power loss
// would (guard.go). Reads go on, writes fail with ErrStopped, Close works and joins everything.
package engine
