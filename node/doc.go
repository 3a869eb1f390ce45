// Package node builds a running Shardd node from a Config: it is the composition root that joins engine, shard store,
// transport, router and placement, and serves the gRPC and HTTP interfaces.
//
// Life cycle:
//
//	New ── engine open, port bound ──> Run
//	        no ident: "waiting for init or join" ── Init | Adopt | Join ──┐
//	        ident: ──────────────────────────────────────────────────────┤
//	                                                                      v
//	        incarnation raised and synced -> store -> transport -> router -> services -> bootstrap and report loops
//	        ctx ends: not ready -> leaderships handed over -> streams drained -> store and engine closed
//
// What makes a node a member (ident and, where listed, its replica of the meta shard) is always written and synced
// before anything acts on it, so a kill at any point leaves either an empty node or a member that boots.
//
// It never decides where replicas go (placement), never retries a client's write whose outcome is open (router), and
// never touches another process's files.
package node
