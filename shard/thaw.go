package shard

import (
	"time"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/shard/apply"
)

// A frozen shard and its way out, whoever has died. Its leader, each new one, finds out what L's log has decided: from
// its own replica of L, which a committed or aborted merge wakes it from, and every few seconds from L's leader. Pending:
// it waits, and past Config.MergeTimeout it has L's leader propose AbortMerge. Committed: it waits for its own replica
// of L to come to that, which takes it away. Aborted: it proposes Thaw. Unknown is never taken for aborted. Propose: one
// boundary entry. Apply, Commit, Publish: as for Freeze, the other way round. A crash at any point leaves a frozen shard,
// whose next leader begins again.

const thawCommandName = "thaw"

// MergeAsker finds out what became of a merge from the leader of L, on whatever store that is; with abort it has L's log
// decide against the merge first, if it has not decided. It must not block: done is called once, from any goroutine,
// with MergeUnknown if nobody could be asked.
type MergeAsker interface {
	AskMerge(q MergeQuestion, abort bool, done func(MergeOutcome))
}

// MergeQuestion names a merge.
type MergeQuestion struct {
	ID    uint64
	Left  base.ShardID // L
	Epoch base.Epoch   // L's, for which R was frozen
	Right base.ShardID // R
}

// thawing is what the leader of a frozen shard has done about it. It belongs to the worker.
type thawing struct {
	id       uint64 // of the merge
	term     uint64 // of the leadership
	ticks    int    // since this leader knows of the freeze
	wait     int    // ticks until the next question
	pause    int    // after that one
	asking   bool   // one is under way
	proposed bool   // a Thaw is
}

// askPause is the time between the first questions of a leader; each pause is longer than the one before, up to
// maxAskPause.
const (
	askPause    = time.Second
	maxAskPause = 5 * time.Second
)

// tickFrozen is called at each tick of a leader, and when a local replica of L has something new.
func (w *worker) tickFrozen(r *replica, ticks int) {
	f := r.frozen.Load()
	rw := &r.worker
	if f == nil {
		rw.thaw = nil
		return
	}
	cfg := &w.store.cfg
	t := rw.thaw
	if t == nil || t.id != f.ID || t.term != rw.term {
		// A merge that goes well is over long before the first question.
		t = &thawing{id: f.ID, term: rw.term, wait: ticksOf(cfg, askPause), pause: ticksOf(cfg, askPause)}
		rw.thaw = t
	}
	t.ticks += ticks
	t.wait -= ticks
	if t.proposed {
		return
	}
	if out, _ := w.store.MergeDecision(f.Into, f.ID, f.IntoEpoch); out.Final() {
		w.onMergeOutcome(r, f, out)
		return
	}
	if t.wait > 0 || t.asking || cfg.Merges == nil {
		return
	}
	t.asking = true
	abort := t.ticks >= ticksOf(cfg, cfg.MergeTimeout)
	q := MergeQuestion{ID: f.ID, Left: f.Into, Epoch: f.IntoEpoch, Right: r.shard}
	cfg.Merges.AskMerge(q, abort, func(out MergeOutcome) {
		w.store.call(r, func(r *replica) {
			if r.worker.thaw != t {
				return // another leadership, or another merge
			}
			t.asking, t.wait = false, t.pause
			t.pause = min(2*t.pause, ticksOf(cfg, maxAskPause))
			w.onMergeOutcome(r, f, out)
		})
	})
}

func ticksOf(cfg *Config, d time.Duration) int { return max(1, int(d/cfg.Tick)) }

// onMergeOutcome acts on what the leader of a frozen shard has heard.
func (w *worker) onMergeOutcome(r *replica, f *engine.Freeze, out MergeOutcome) {
	t := r.worker.thaw
	if out != apply.MergeAborted || t == nil || t.proposed || r.frozen.Load() != f {
		return
	}
	if w.mayPropose(r, thawCommandName) != nil {
		return // the next tick tries again, if this still is the leader
	}
	thaw := wire.Thaw{ID: f.ID}
	t.proposed = true
	ended := func(_ *base.Descriptor, _ uint64, err error) {
		if err != nil {
			t.proposed = false
		}
	}
	if err := w.proposeBoundary(r, wire.EntryThaw, thawCommandName, thaw.Append, ended); err != nil {
		t.proposed = false
	}
}

// wakeFrozenInto has the leaders of shards that are frozen to be merged into another one look at its decisions now, and
// those for which that one was taken in itself.
func (s *Store) wakeFrozenInto(left, taken base.ShardID) {
	for _, r := range s.all() {
		if f := r.frozen.Load(); f != nil && (f.Into == left || f.Into == taken) {
			s.call(r, func(r *replica) {
				if r.worker.leads && !r.worker.disposed {
					s.workerOf(r.shard).tickFrozen(r, 0)
				}
			})
		}
	}
}

// thawCommand is a Thaw that a replica's apply has come to.
type thawCommand struct{ solo[wire.Thaw] }

// decide implements boundaryCommand.
func (c *thawCommand) decide(h *halt, _ *engine.Batch) (boundaryOutcome, error) {
	st := h.r.machine.Applied()
	next, refused := apply.DecideThaw(&st, &c.cmd)
	if refused != nil {
		return boundaryOutcome{refused: refused}, nil
	}
	return boundaryOutcome{applied: &next, after: func() {
		h.store.metrics.freezes.WithLabelValues("thawed").Inc()
		h.store.log.Info("shard thawed", "replica", h.r.String(), "merge", c.cmd.ID, "index", h.entry.Index)
	}}, nil
}
