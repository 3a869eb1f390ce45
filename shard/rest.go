package shard

// Rest: what stands in the place of sleep where that is switched off. A replica that could sleep by rule V9 stays on the
// list of those that are ticked, and is looked at every restLook ticks. Its leader beats once in restBeat ticks: that its
// store is there the stores' beats say, and that its followers have all of the log, and know it to be committed, their
// stamps said before. Each look, and each visit for another reason, asks anew whether it may rest: a follower whose epoch
// is another one, or that lacks anything, gets its heartbeats as ever; so does one whose store begins to support us, and
// whoever asks for a vote. A leader that rests is not ticked in between, as one that sleeps is not: raft's check of its
// quorum goes by the beats, and a lease that does not hold ends the rest before that. Beats are spread by shard. What it
// costs is in docs/decisions/0017.

const (
	// restLook is how many ticks lie between two looks at a replica that rests.
	restLook = 20
	// restBeat is how many lie between two heartbeats of its leader; a multiple of restLook.
	restBeat = 40
)

// turnOf numbers the ticks in such a way that those at which it is a multiple of something are spread over the shards.
func (w *worker) turnOf(r *replica) uint64 {
	return w.turns + uint64(r.shard)/uint64(len(w.store.workers))
}

// looksAt reports whether the tick at hand is for a replica that rests.
func (w *worker) looksAt(r *replica) bool { return w.turnOf(r)%restLook == 0 }

// beats reports whether a leader that rests is to send its heartbeat from the tick at hand on: its visit may come later.
func (w *worker) beats(r *replica) bool { return w.turnOf(r)%restBeat == 0 }
