// Package router finds the shard for a key and survives being wrong about it.
//
// Its one job: take an operation on routing keys, send it to the leader of the shard that holds them, and turn every
// way in which that can go wrong into one of four outcomes: done, not done, unknown, never. The pieces:
//
//	cache    descriptors by key range; the newest epoch wins and evicts what it overlaps
//	policy   the one table from answers and transport errors to actions, and the one place for retry and back-off
//	Mux      many operations to one node on one stream, batched without timers
//	near     which replica to ask first, for reads that any may serve
//	Scan     a range divided over shards, in byte-bounded pages with a resume key; several shards at once if asked to
//	DoMany   independent operations at once, in one frame per node
//
// Contract: an error that matches ErrUnavailable, ErrOverloaded, ErrDiskFull, ErrCrossShard or ErrInvalid means that nothing was
// written and nothing will be. ErrAmbiguous means that a write may or may not have happened; the router never sends
// such a write a second time (rule S2). Reads are repeated until the deadline.
//
// It never opens a connection, knows nothing of gRPC, and never looks inside a value.
package router
