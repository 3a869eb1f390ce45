// Package apply turns committed raft entries into one engine.Batch, deterministically. It knows one shard at a time:
// its descriptor, its applied state and the bytes of its commands. It never talks to raft, never commits a batch,
// never answers a client, starts no goroutine and reads no clock.
//
// # What is deterministic
//
// Apply is a pure function of (state, entry). The state is what the engine holds for the shard: the descriptor, the
// AppliedState (index, term, configuration, last version stamp, statistics) and the data. Everything else that a
// replica could differ in is kept out: there is no clock (versions are stamps in the entry, raised above the shard's
// last), no randomness, no map order, no size taken from Pebble, and no decision that depends on who waits for an
// answer or on how the log was cut into calls. So there are two outcomes below raft and no third:
//
//   - a deterministic reject: the operation has no effect on any replica and its answer says why (ConditionFailed,
//     EpochMismatch, Invalid). It uses up a version stamp like any other operation;
//   - an error from Apply: this replica cannot know what the entry means (unknown layout, kind, operation or flag, a
//     length that does not fit, a gap in the indexes) or could not read its state. It must be faulted. Nothing is ever
//     skipped: a newer binary may well apply what this one does not know.
//
// The second outcome is why the proposer must check every operation with wire.Op.Validate before it enters the log; a
// client could fault a whole shard otherwise.
//
// A frozen shard rejects every operation with Busy, and uses up nothing for it: while it is frozen, descriptor, stamp and
// statistics are those of the Freeze, at whatever index a replica stands. That is what a merge takes over.
//
// An operation is checked in this order: known and within limits, shard, epoch, range, conditions. Data operations
// compare Epoch.Version only, so that a membership change does not disturb them. The version fixes the range, so a key
// outside it is the sender's mistake (Invalid) rather than a stale route (EpochMismatch).
//
// # Versions
//
// Each operation takes the stamp last = max(last+1, entry stamp), a Batch one for all its steps. Versions therefore
// grow strictly per shard and per key, whatever the leaders' clocks do, and an operation's version does not depend on
// its neighbours' success.
//
// # The overlay
//
// Conditions must see the writes before them, including those of the same call, which are not in the engine yet (rule
// S4: how entries are cut into calls must not show). Writes are therefore collected, in order, as references into the
// entries:
//
//	writes   [ put a | put b | delete a | range [c,f) | put d ]   <- one call
//	           `-- indexed up to here by the run's overlay --'
//
// An unconditional write only appends to that list. The first condition that comes along indexes what the list holds
// so far: the last write of every key in a map, the range deletions in a tree of disjoint spans that remember which
// write they came from. The later of the two decides; if neither knows the key, the engine does. A Batch is all or
// nothing, so its own writes have an overlay of their own, indexed only if a condition comes after a write, and are
// cut off the list if a condition fails.
//
// At the end the list becomes the batch: between two range deletions every key keeps its last write and the keys are
// emitted sorted, so a key that is written twice is inserted once. A range deletion stays where it is, since in one
// batch it hides only what comes before it.
//
// # Crashes
//
// Apply adds the AppliedState of the last entry to the same batch as the effects, so a batch that survives a crash
// survives whole, and one that does not is applied again from the log with the same result: same state, same entries,
// same bytes. That is why the batch needs no sync of its own. Answers must wait until the batch is committed; after an
// error the batch must be dropped with the answers, and the machine refuses all further work.
package apply
