// Package transport moves batches of raft messages between stores, and raw frames between clients and nodes. It may
// drop messages, it never blocks the caller, and it never interprets what it carries: it knows message types only to
// choose a lane, and never touches snapshots, which the snapshotter streams.
//
// # Lanes
//
// A store dials every store that it has to send to, twice:
//
//	Send ──┬─ bulk lane ──── queue ── goroutine ── connection ── /shardd.v1.Peer/Bulk      MsgApp, MsgAppResp
//	       └─ control lane ─ queue ── goroutine ── connection ── /shardd.v1.Peer/Control   votes, TimeoutNow, heartbeats
//	             ├ heartbeats without context wait for the next HeartbeatWindow: one compact frame for all groups
//	SendLiveness ┴ one body waits at most, the latest; it leaves at once, before all else
//
// A heartbeat therefore never waits behind appends, and a dead peer costs its own two goroutines only. The goroutine of
// an idle lane is woken by the first message, yields once so that other workers can add theirs, takes everything that
// is queued, sends it and loops. Queues are bounded in bytes; past the bound messages are dropped. A dropped MsgApp is
// reported to Handler.Unreachable, once per group until an append of that group is accepted again.
//
// # Links
//
// The first frame each way is a Hello; until both sides have accepted it no raft message is decoded. A store of another
// cluster, a message for another store, a lower incarnation than the one on record and a second process with the same
// incarnation (a copied data directory) are refused with a reason; see Refusal. The accepting side acknowledges pings
// and every 256 KiB received, so the dialling side notices within seconds when a connection is half open.
//
// # Buffers
//
// Outbound headers live in pooled buffers that belong to gRPC after SendMsg; entry data is passed by reference and must
// not change once it was given to Send. Inbound frames belong to the garbage collector: decoded entries and contexts
// point into them, and so does the data that Handler.Step may keep.
package transport
