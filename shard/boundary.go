package shard

import (
	"cmp"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// Boundary commands in the log: split, and what merges shards. Such an entry changes more than the state machine of its
// shard, so it is not the apply worker's to apply (rule I2). Halt: apply takes it off the queue, and nothing more of
// that replica. Reserve: on the life-cycle goroutine, the shards that the step touches; if another step holds one of
// them, this one goes on when that has ended. Park: the other replicas that it touches stand still on their own workers
// (rule I7). Decide: as a pure function of the log, what is refused moves the applied index and nothing else. Commit:
// one synced batch. Publish: the maps, the descriptor, the applied index, then who waits. Resume: apply goes on behind
// the entry. A crash before Commit finds the entry in the log and does all of it again; one after it finds everything.
//
// The replica in whose log the entry stands is not parked: its apply is halted, the step has its machine, and the step
// does not touch its HardState or log, which raft goes on with meanwhile (decision 0012). To whoever wants to park that
// replica, a halt counts as drained: a snapshot may replace it, or a removal end it, and the step gives up.

// halt is a boundary entry that a replica's apply has come to.
//
// INVARIANT(halt): while replica.handed.halt is set, the machine belongs to the step of that entry.
type halt struct {
	store *Store
	r     *replica
	entry raftpb.Entry
	bytes int64
	cmd   boundaryCommand
	op    *boundary // the reservation; nil until there is one
}

// boundaryCommand is one kind of boundary entry. Its methods run on the life-cycle goroutine.
type boundaryCommand interface {
	// touches lists the shards beside the log's own that the step may change on this store.
	touches() []base.ShardID
	// othersLocked lists the replicas that have to stand still for it. Store.mu is held, the shards are reserved.
	othersLocked(s *Store) []*replica
	// decide adds the effects of the command to b, all but the descriptor and the AppliedState of the log's own shard. An
	// error means that the replica must be faulted; b is dropped then.
	decide(h *halt, b *engine.Batch) (boundaryOutcome, error)
}

// boundaryOutcome is what a command has come to.
type boundaryOutcome struct {
	refused error                // deterministic: the same on every replica; nothing else is set
	applied *engine.AppliedState // after it; nil: only the index moves
	desc    *base.Descriptor     // after it; nil: unchanged

	// publish makes the other shards' part visible, once the batch is durable. ownLocked makes that of the log's own shard
	// visible and must be called under Store.mu, which both share. nil: there is no other part.
	publish func(ownLocked func())
	// after is told once everything is visible and apply goes on. It must not block. nil: nobody is.
	after func()
}

// decodeBoundary reads the command of an entry. What this binary does not know faults the replica.
func decodeBoundary(e *raftpb.Entry) (boundaryCommand, error) {
	h, body, err := wire.DecodeEntry(e.Data)
	if err == nil && h.Count != 0 {
		err = fmt.Errorf("boundary entry with %d operations: %w", h.Count, base.ErrCorrupt)
	}
	if err != nil {
		return nil, err
	}
	switch h.Kind {
	case wire.EntrySplit:
		return decodeSplit(body)
	case wire.EntryFreeze:
		cmd, err := wire.DecodeFreeze(body)
		return &freezeCommand{solo[wire.Freeze]{cmd}}, err
	case wire.EntryThaw:
		cmd, err := wire.DecodeThaw(body)
		return &thawCommand{solo[wire.Thaw]{cmd}}, err
	case wire.EntryCommitMerge:
		cmd, err := wire.DecodeCommitMerge(body)
		return &commitCommand{CommitMerge: cmd}, err
	case wire.EntryAbortMerge:
		cmd, err := wire.DecodeAbortMerge(body)
		return &abortCommand{solo[wire.AbortMerge]{cmd}}, err
	}
	return nil, fmt.Errorf("entry of kind %d is no boundary command: %w", h.Kind, base.ErrCorrupt)
}

func isBoundary(e *raftpb.Entry) bool {
	return e.Type == raftpb.EntryNormal && wire.KindOf(e.Data).Boundary()
}

// haltLocked takes the boundary entry at the front of a replica's queue and stops its apply there. handed is locked.
func (r *replica) haltLocked() *halt {
	t := &r.handed.tasks[0]
	head := t.split(1)
	if len(t.ents) == 0 {
		n := copy(r.handed.tasks, r.handed.tasks[1:])
		r.handed.tasks[n] = applyTask{}
		r.handed.tasks = r.handed.tasks[:n]
	}
	h := &halt{store: r.store, r: r, entry: head.ents[0], bytes: head.bytes}
	r.handed.halt = h
	r.handed.halted.Store(true)
	return h
}

// unhaltLocked lets go of the halt; its entry leaves the accounts. handed is locked.
func (r *replica) unhaltLocked() {
	r.handed.bytes.Add(-r.handed.halt.bytes)
	r.store.used.apply.Add(-r.handed.halt.bytes)
	r.handed.halt = nil
	r.handed.halted.Store(false)
}

// holds reports whether the replica still is halted for this entry and still is the store's replica of its shard.
func (h *halt) holds() bool {
	h.r.handed.Lock()
	held := h.r.handed.halt == h
	h.r.handed.Unlock()
	return held && h.store.lookup(h.r.shard) == h.r
}

// resume lets apply go on behind the entry.
func (h *halt) resume() {
	r := h.r
	r.handed.Lock()
	more := false
	if r.handed.halt == h {
		r.unhaltLocked()
		more = len(r.handed.tasks) > 0
	}
	r.handed.Unlock()
	if more {
		h.store.applyPool.Enqueue(uint64(r.shard))
	}
	if r.handed.wanted.Swap(false) {
		h.store.pool.Enqueue(uint64(r.shard))
	}
}

// fail faults the replica: it cannot know what the entry means, or could not write what it does.
func (h *halt) fail(err error) {
	reason := fmt.Sprintf("boundary entry %d: %v", h.entry.Index, err)
	h.store.fault(h.r, reason, nil)
	h.r.dropHanded(reason)
	h.store.pool.Enqueue(uint64(h.r.shard)) // the worker cleans up what is its own
	h.end(err)
}

// end lets go of the reservation.
func (h *halt) end(err error) {
	if h.op != nil {
		h.store.finish(h.op, err)
	}
}

var errGaveUp = errors.New("the replica was replaced or removed")

// start reserves what the step touches, or queues it behind the step that is in the way.
func (h *halt) start() {
	s := h.store
	if h.cmd == nil {
		cmd, err := decodeBoundary(&h.entry)
		if err != nil {
			h.fail(err)
			return
		}
		h.cmd = cmd
	}
	if !h.holds() {
		return // whoever ended the replica has answered who waits
	}
	shards := append([]base.ShardID{h.r.shard}, h.cmd.touches()...)
	op := newBoundary(nil, nil, shards...)
	s.mu.Lock()
	if s.mu.stopped {
		s.mu.Unlock()
		return
	}
	if o := s.inTheWayLocked(op); o != nil {
		o.behind = append(o.behind, h.start)
		s.mu.Unlock()
		return
	}
	s.reserveLocked(op)
	others := h.cmd.othersLocked(s)
	s.mu.Unlock()
	h.op = op
	slices.SortFunc(others, func(a, b *replica) int { return cmp.Compare(a.shard, b.shard) })
	s.parkAll(op, others, func(ok bool) {
		s.life.post(func() {
			switch {
			case !ok:
				h.end(errGaveUp) // one of them has ended: look again
				s.life.post(h.start)
			case s.begin(op):
				h.decide()
			}
		})
	})
}

// decide works out the step, once everybody stands still, and commits it.
func (h *halt) decide() {
	r, s := h.r, h.store
	if !h.holds() {
		h.end(errGaveUp)
		return
	}
	b := s.engine.NewBatch()
	out, err := h.outcome(b)
	if err != nil {
		b.Close()
		h.fail(err)
		return
	}
	if out.refused != nil {
		s.log.Warn("boundary command refused", "replica", r.String(), "index", h.entry.Index, "reason", out.refused)
		err := s.engine.Commit(b, false) // nothing but an applied index: the log replays it
		b.Close()
		if err != nil {
			h.fail(err)
			return
		}
		h.publish(&out)
		return
	}
	if err := s.commitBoundary(b, func() { h.publish(&out) }); err != nil {
		h.fail(err)
	}
}

// outcome runs the command. A panic counts as an error: it stops this replica only.
func (h *halt) outcome(b *engine.Batch) (out boundaryOutcome, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic: %v\n%s", v, debug.Stack())
		}
	}()
	if out, err = h.cmd.decide(h, b); err != nil {
		return out, err
	}
	if out.refused != nil {
		b.Reset()
		out = boundaryOutcome{refused: out.refused}
	}
	return out, h.r.machine.ApplyBoundary(b, h.entry.Index, h.entry.Term, out.applied, out.desc)
}

// publish makes a committed step visible, in the order of apply: descriptor, freeze, applied index, waiters.
func (h *halt) publish(out *boundaryOutcome) {
	r, s := h.r, h.store
	st := r.machine.Applied()
	own := func() {
		r.state.Lock()
		r.state.applied = st
		r.state.Unlock()
		if d := r.machine.Descriptor(); d != r.desc.Load() {
			r.desc.Store(d)
			s.peers.changed()
			r.forgetSize()
		}
		r.frozen.Store(st.Freeze)
		if st.Freeze != nil {
			h.store.doubt(r)
		}
		r.applied.Store(st.Index)
	}
	if out.publish != nil {
		out.publish(own)
	} else {
		s.mu.Lock()
		own()
		s.mu.Unlock()
	}
	s.metrics.applied.Inc()
	index, term, d, refused := h.entry.Index, h.entry.Term, r.desc.Load(), out.refused
	s.call(r, func(r *replica) {
		s.workerOf(r.shard).settleTracked(r, index, term, d, refused)
		if r.frozen.Load() != nil {
			r.refuseFrozen()
		}
	})
	r.releaseReads()
	s.tellWatchers(r.shard)
	h.resume() // before the reservation goes: whoever gets it next takes a halt for rest
	h.end(nil)
	if out.after != nil {
		out.after()
	}
}

// BoundaryError refuses a boundary command: it has not happened and will not. Retry says that the same request may pass
// later, unchanged.
type BoundaryError struct {
	Shard   base.ShardID
	Command string // split, ...
	Reason  string
	Retry   bool
}

func (e *BoundaryError) Error() string {
	return fmt.Sprintf("%s %s: %s", e.Command, e.Shard, e.Reason)
}

// ErrAmbiguousBoundary says that nobody here learned what became of a proposed boundary command: look at the shard's
// descriptor.
var ErrAmbiguousBoundary = errors.New("it is not known whether the shard was changed")

// proposeBoundary puts a boundary command into the log of a shard that this replica leads. done is called once it is
// decided, with the descriptor after it, unless an error is returned. Its errors are *BoundaryError, or wrap
// ErrAmbiguousBoundary. It runs on the worker, which has checked the command.
func (w *worker) proposeBoundary(
	r *replica, kind wire.EntryKind, command string, body func([]byte) []byte, done func(*base.Descriptor, uint64, error),
) error {
	id := w.store.proposals.Add(1)
	h := wire.EntryHeader{Kind: kind, Proposal: id}
	data := body(h.Append(nil))
	if err := r.worker.rn.Propose(data); err != nil {
		return &BoundaryError{
			Shard: r.shard, Command: command, Reason: "raft takes no proposals: " + err.Error(), Retry: true,
		}
	}
	r.track(&tracked{id: id, decided: true, done: func(d *base.Descriptor, index uint64, err error) {
		done(d, index, boundaryError(r.shard, command, err))
	}})
	return nil
}

// boundaryError puts the outcome of a tracked entry in the words of boundary commands.
func boundaryError(shard base.ShardID, command string, err error) error {
	var ch *ChangeError
	switch {
	case errors.As(err, &ch):
		return &BoundaryError{Shard: shard, Command: command, Reason: ch.Reason, Retry: ch.Retry}
	case errors.Is(err, ErrAmbiguousChange):
		return fmt.Errorf("%s %s: %w: %w", command, shard, ErrAmbiguousBoundary, err)
	}
	return err
}
