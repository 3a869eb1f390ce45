// Package shard owns the replicas of one store and drives their raft groups: messages, ticks, proposals and reads of
// many groups in one pass, one synced batch for all of them, apply in a pool of its own. It declares the interfaces
// that it needs (Sender, Waiter) and never imports the transport, the placement driver or the router. It never
// blocks on the network, never sends a vote or an acknowledgement that a crash could undo, and never answers a write
// before a quorum has it on disk.
//
// # Threads
//
//	callers                          workers (sched.Pool, key = shard)          apply workers (sched.Pool, key = shard)
//	-------                          ---------------------------------          ---------------------------------------
//	Step, Write, ReadIndex           process: pass over up to 256 groups        process: entries of many groups
//	   | lock of one inbox              drain inbox, tick, propose, read           Machine.Apply -> one batch
//	   +--> replica.in -------------->  Ready; append to the pass's batch          Commit, unsynced
//	                                    early messages -> Sender                   publish descriptor, applied index
//	ticker --> worker.mu.ticks ------>  CommitAsync ---- engine's sync waiter      complete writes and reads
//	                                    finish <-------- worker.mu.synced             |
//	                                       messages -> Sender                         |
//	                                       committed entries --> replica.apply -------+
//	                                       Advance
//
// One more goroutine commits the steps of replicas' lives (life.go): creation by message, snapshot, removal. It touches
// a replica only while that stands still on its worker, and puts another object in its place rather than change it.
//
// So do boundary commands that stand in a log (boundary.go): apply halts at one until its step is committed.
//
// ReadNow reads on its caller's goroutine, by what the worker has published: the lease, the commit and applied indexes, the
// descriptor. What the Monitor says of other stores goes to the workers by worker.mu.events.
//
// There is no goroutine and no timer per shard. Worker w owns every shard with shard % W == w: fields in a `worker
// struct` belong to it and have no lock. Apply workers own the Machine in the same way.
//
// # Life of a Ready
//
//	step -> Ready -> [batch] -> in flight ........ synced -> send rest, hand to apply, Advance -> step ...
//	                   |            \ nothing is stepped into the group; its inbox buffers (R1)
//	                   + nothing to sync: finished at once
//
// A Ready that commits a conf change stays in flight until the change is applied (R2). Committed entries that would
// overfill apply are not handed on: the Ready is advanced without them and raft offers them again (R7).
//
// A crash before the sync leaves what was there before: nobody has been told anything. A crash after it, before apply,
// leaves a log that is applied again at the next start.
//
// # Life of a write
//
//	queued --propose--> proposed (entry, unbound) --Ready--> pending (term, index) --commit--> apply task --> answer
//	  |  NotLeader, Busy, EpochMismatch, TimedOut:          |  another term's entry at that index: NotLeader
//	  |  it never will happen                               |  deadline, fault, stop: Ambiguous
//
// # Leases and sleep
//
//	follower   step a leader's message --promise--> not ticked, shown no vote, answers stamped --epoch ends, release-->
//	           its turn --run out--> candidate
//	leader     stamped answers --quorum--> lease: reads alone --vote, later term, transfer--> withdrawn, followers released
//	both       idle, the promise binds or the lease holds and nobody lacks anything --> asleep --anything--> awake
//
// The rules are V1 to V13 (docs/decisions/0017-store-liveness-and-leases.md): promise.go has the follower's side, lease.go
// the leader's, awake.go sleep, runout.go what concerns all groups of a store. Without Config.Liveness there is none of it.
//
// # Locks
//
// Order, outermost first: Store.mu, replica.in, worker.mu, life.mu, replica.wait, replica.handed, replica.state, then
// those of the pools, the Monitor's. None is held while calling the engine for a commit, the Sender, a Waiter or a callback.
package shard
