// Package snapshotter streams one shard's state from store to store within a budget. It decides when a stream may run
// and how fast, never whether one is needed, and it knows nothing about raft: the Target checks and installs.
//
// # One snapshot
//
//	sender                                         receiver
//	  Send: queued by priority
//	  a sending slot: Reserve{id, meta, size}  ->    Target.AcceptSnapshot, then wait for a slot and bytes
//	                                           <-    Granted{chunks, resume} or Declined{reason, wait}
//	  view pinned; Reserve{meta of the view}   ->    Target.AcceptSnapshot again, with what will be installed
//	  chunk by chunk, cut into parts           ->    assembled, checksum, Staging.Add: checked, written, synced
//	                                           <-    Staged{chunks, bytes}
//	  Finish{chunks, bytes}                    ->    Target.InstallSnapshot
//	  Done(nil)                                <-    Installed
//
// The first Reserve carries the replica's state as it is while nothing is pinned, so that a shard that waits long for
// its turn does not hold back compactions; the second one carries what the view holds. A shard below
// Config.SmallBytes is sent in one go, reserve to finish, without waiting for the grant; the receiver may still decline.
//
// # What breaks, and what is left
//
//   - The stream breaks: the sender keeps the view, the receiver the staging, both for Timeouts.Resume. The sender dials
//     again with the same id and goes on behind the last staged chunk.
//   - The receiver restarts: its staging is gone (engine.Open removes it). It grants chunk 0 to the same id and the
//     sender starts over on the same view.
//   - The sender restarts: nobody comes back; the receiver drops the staging after Timeouts.Resume.
//   - The stream breaks during the install: the install goes on, and the sender asks for its result with the same id.
//   - A part or a chunk is damaged on its way: the receiver ends the stream before anything is staged and the sender
//     resumes, a bounded number of times. A source that cannot be read ends the snapshot with engine.ErrCorrupt.
//
// # Not in the way of anybody
//
// A snapshot never delays heartbeats, votes or appends: Config.Dial must return a connection that carries snapshots only
// (see DialOptions), all work runs on goroutines of this package, bytes pass two token buckets (one for all that is sent,
// one for all that is received) in slices of 256 KiB, and memory is taken from a budget of its own before a chunk is
// built or received.
package snapshotter
