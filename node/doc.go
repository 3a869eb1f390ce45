// Package node builds a running Shardd node from a Config: it is the composition root that joins engine, shard store,
// transport, router and placement, and serves the gRPC and HTTP interfaces.
//
// Life cycle:
//
//	New ── engine open, port bound ──> Run
//	        no ident: "waiting for init or join" ── Init | Adopt | Join ──┐
//	        ident: ──────────────────────────────────────────────────────┤
//	                                                                      v
//	        incarnation raised and synced -> store -> transport, snapshots -> router -> services -> loops
//	        ctx ends: not ready -> leaderships handed over -> streams drained -> store and engine closed
//
// The loops of a member, each of which may die with the process at any point and begins again from what is on disk:
//
//	founding   finishes the making of the cluster, where there is a replica of the meta shard
//	report     tells the meta shard's leader what this store holds, and follows the meta shard when it moves
//	index      records, on that leader, the descriptors that reports bring and the index does not have
//	orphans    removes local replicas that are proved not to be members any more
//	space      tells the store how full the disk is
//	jobs       runs, on that leader, the jobs that people and the driver have started
//	driver     plans, on that leader, where shards belong, and starts what brings them there
//
// What makes a node a member (ident and, where listed, its replica of the meta shard) is always written and synced
// before anything acts on it, so a kill at any point leaves either an empty node or a member that boots.
//
// It never decides where replicas go (placement/plan), never retries a client's write whose outcome is open (router), and
// never touches another process's files.
package node
