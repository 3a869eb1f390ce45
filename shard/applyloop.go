package shard

import (
	"cmp"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/shard/apply"
)

// Apply. Hand (worker): committed entries are queued for the apply worker with the proposals that wait for them. Little
// of it, if it reads nothing, the worker applies itself at the end of its pass, after the pass's commit was started: that
// saves two wake-ups, and takes no longer than to encode the pass did (docs/decisions/0019-hot-path.md).
// Apply: the entries of as many groups as were popped go into one batch. Commit: unsynced, since the log replays it.
// Publish: descriptor, applied index, then the waiters. A crash before Commit applies the entries again at the next
// start.

// handed is a replica's queue towards apply.
type handed struct {
	sync.Mutex
	tasks  []applyTask
	closed bool         // faulted or stopped
	halt   *halt        // the boundary entry at which apply stands; no task is taken meanwhile
	halted atomic.Bool  // halt is set
	bytes  atomic.Int64 // handed and not applied, the entry of halt among them
	wanted atomic.Bool  // the worker waits for room, or for apply to come to rest
}

// rests reports whether apply does nothing: it has nothing to do, or stands at a boundary entry.
func (h *handed) rests() bool { return h.bytes.Load() == 0 || h.halted.Load() }

type applyTask struct {
	ents  []raftpb.Entry
	waits []*proposal // by index
	bytes int64
}

const entryOverhead = 64

// overApply reports whether the group has to wait with further committed entries. It always may hand on something when
// it has nothing in apply, so that its own completion wakes it.
func (w *worker) overApply(r *replica) bool {
	over := func() bool {
		n := r.handed.bytes.Load()
		lim := &w.store.cfg.Limits
		return n > 0 && (n > lim.GroupApply || w.store.used.apply.Load() > lim.StoreApply)
	}
	if !over() {
		return false
	}
	r.handed.wanted.Store(true)
	return over() // again: apply may have finished before it could see the wish
}

// hand queues committed entries for apply and returns the number of conf changes among them.
func (w *worker) hand(r *replica, ents []raftpb.Entry) (confs int) {
	rw, s := &r.worker, w.store
	t := applyTask{ents: ents}
	for i := range ents {
		e := &ents[i]
		t.bytes += int64(len(e.Data)) + entryOverhead
		if e.Type != raftpb.EntryNormal {
			confs++
		}
		if len(rw.tracked) > 0 {
			w.resolveTracked(r, e)
		}
		if len(rw.pending) > 0 {
			if p := w.resolve(r, e); p != nil {
				t.waits = append(t.waits, p)
			}
		}
	}
	rw.committedTerm = max(rw.committedTerm, ents[len(ents)-1].Term)
	inline := w.inlines(r, &t)
	if rw.run != nil && !inline {
		w.applyNow() // what comes first is applied first
	}
	r.handed.bytes.Add(t.bytes)
	s.used.apply.Add(t.bytes)
	r.handed.Lock()
	closed := r.handed.closed
	if !closed && !inline {
		r.handed.tasks = append(r.handed.tasks, t)
	}
	r.handed.Unlock()
	switch {
	case closed:
		r.dropTask(&t, "replica is faulted")
	case inline:
		w.applier.add(r, &t)
	default:
		s.applyPool.Enqueue(uint64(r.shard))
	}
	if rw.blocked || len(rw.reads) > 0 {
		s.pool.Enqueue(uint64(r.shard)) // room for proposals, or the term's first commit
	}
	return confs
}

// inlines reports whether the worker applies the task itself at the end of this pass: it is small, reads nothing, and
// nothing of the group is with the apply workers, whose last touch of the machine is before bytes falls to 0.
func (w *worker) inlines(r *replica, t *applyTask) bool {
	held := t.bytes
	if r.worker.run != nil {
		held += r.worker.run.bytes
	} else if r.handed.bytes.Load() != 0 {
		return false
	}
	if held > w.store.cfg.InlineBytes {
		return false
	}
	for i := range t.ents {
		if e := &t.ents[i]; e.Type != raftpb.EntryNormal || !wire.Blind(e.Data) {
			return false
		}
	}
	return true
}

// applyNow applies what the pass has kept for itself.
func (w *worker) applyNow() {
	aw := w.applier
	if len(aw.runs) == 0 {
		return
	}
	slices.SortFunc(aw.runs, func(a, b *applyRun) int { return cmp.Compare(a.r.shard, b.r.shard) })
	for _, run := range aw.runs {
		run.r.worker.run = nil
	}
	aw.applyRuns()
}

// dropTask gives up entries whose outcome nobody here will learn.
func (r *replica) dropTask(t *applyTask, reason string) {
	r.handed.bytes.Add(-t.bytes)
	r.store.used.apply.Add(-t.bytes)
	a := answerText(wire.Ambiguous, reason)
	if merged := r.merged.Load(); merged != nil {
		a = *merged
	}
	for _, p := range t.waits {
		r.answerOpen(p, a)
		p.free()
	}
}

// dropHanded closes the queue towards apply.
func (r *replica) dropHanded(reason string) {
	r.handed.Lock()
	r.handed.closed = true
	tasks := r.handed.tasks
	r.handed.tasks = nil
	if r.handed.halt != nil {
		r.unhaltLocked()
	}
	r.handed.Unlock()
	for i := range tasks {
		r.dropTask(&tasks[i], reason)
	}
}

// applyWorker applies the entries of the shards that the apply pool gives it. Everything in it belongs to process.
type applyWorker struct {
	store *Store
	runs  []*applyRun
	free  []*applyRun
}

// applyRun is one group's share of a batch.
type applyRun struct {
	r       *replica
	tasks   []applyTask
	ents    []raftpb.Entry // normal entries, or one conf change
	scratch []raftpb.Entry
	waits   []*proposal
	next    int // of waits
	answers []answered
	sink    apply.Sink // bound once: onAnswer
	conf    *confResult
	removed bool // the conf change is the removal of this replica
	bytes   int64
}

type answered struct {
	waiter Waiter
	req    uint64
	answer wire.Answer
}

func newApplyWorker(s *Store) *applyWorker { return &applyWorker{store: s} }

// applyBytes is about what one group adds to a batch, applyBatchBytes what a batch of several groups holds: well below
// half a memtable.
const (
	applyBytes      = 4 << 20
	applyBatchBytes = 16 << 20
)

func (aw *applyWorker) process(keys []uint64) {
	slices.SortFunc(keys, cmp.Compare[uint64]) // state is written in shard order
	for _, k := range keys {
		if r := aw.store.lookup(base.ShardID(k)); r != nil {
			if run := aw.take(r); run != nil {
				aw.runs = append(aw.runs, run)
			}
		}
	}
	aw.applyRuns()
}

// add takes a task into the run of its group.
func (aw *applyWorker) add(r *replica, t *applyTask) {
	run := r.worker.run
	if run == nil {
		run = aw.newRun(r)
		run.ents = t.ents
		r.worker.run = run
		aw.runs = append(aw.runs, run)
	} else {
		run.scratch = append(append(run.scratch[:0], run.ents...), t.ents...)
		run.ents = run.scratch
	}
	run.tasks = append(run.tasks, *t)
	run.waits = append(run.waits, t.waits...)
	run.bytes += t.bytes
}

func (aw *applyWorker) newRun(r *replica) *applyRun {
	var run *applyRun
	if n := len(aw.free); n > 0 {
		run, aw.free = aw.free[n-1], aw.free[:n-1]
	} else {
		run = &applyRun{}
		run.sink = run.onAnswer
	}
	run.r = r
	return run
}

// applyRuns applies the runs in as few batches as their sizes allow.
func (aw *applyWorker) applyRuns() {
	for rest := aw.runs; len(rest) > 0; {
		n, bytes := 1, rest[0].bytes
		for n < len(rest) && bytes+rest[n].bytes <= applyBatchBytes {
			bytes += rest[n].bytes
			n++
		}
		aw.applyAll(rest[:n])
		rest = rest[n:]
	}
	for _, run := range aw.runs {
		run.reset()
		aw.free = append(aw.free, run)
	}
	clear(aw.runs)
	aw.runs = aw.runs[:0]
}

// take moves a group's tasks into a run: ordinary entries up to a size, or a single one of another kind. What stays comes
// back. At a boundary entry the group halts.
func (aw *applyWorker) take(r *replica) *applyRun {
	r.handed.Lock()
	if r.handed.closed || r.handed.halt != nil || len(r.handed.tasks) == 0 {
		r.handed.Unlock()
		return nil
	}
	if isBoundary(&r.handed.tasks[0].ents[0]) {
		h := r.haltLocked()
		r.handed.Unlock()
		aw.store.life.post(h.start)
		if r.handed.wanted.Swap(false) {
			aw.store.pool.Enqueue(uint64(r.shard))
		}
		return nil
	}
	run := aw.newRun(r)
	tasks := r.handed.tasks
	done := 0
	for done < len(tasks) && (done == 0 || run.bytes < applyBytes) {
		t := &tasks[done]
		cut := cutAlone(t.ents)
		if cut < len(t.ents) { // t holds an entry that goes alone: only a part of it fits into this run
			if cut == 0 && done > 0 {
				break
			}
			run.tasks = append(run.tasks, t.split(max(cut, 1)))
			if len(t.ents) == 0 {
				done++
			}
			break
		}
		run.tasks = append(run.tasks, *t)
		run.bytes += t.bytes
		done++
	}
	rest := copy(tasks, tasks[done:])
	clear(tasks[rest:])
	r.handed.tasks = tasks[:rest]
	r.handed.Unlock()
	if rest > 0 {
		aw.store.applyPool.Enqueue(uint64(r.shard))
	}
	run.bytes = 0
	for i := range run.tasks {
		run.bytes += run.tasks[i].bytes
		run.waits = append(run.waits, run.tasks[i].waits...)
	}
	if len(run.tasks) == 1 {
		run.ents = run.tasks[0].ents
	} else {
		run.scratch = run.scratch[:0]
		for i := range run.tasks {
			run.scratch = append(run.scratch, run.tasks[i].ents...)
		}
		run.ents = run.scratch
	}
	return run
}

// cutAlone returns the number of ordinary entries at the front: a conf change, or a verification, is applied in a run
// of its own, and at a boundary command apply halts.
func cutAlone(ents []raftpb.Entry) int {
	for i := range ents {
		if ents[i].Type != raftpb.EntryNormal || isVerify(&ents[i]) || isBoundary(&ents[i]) {
			return i
		}
	}
	return len(ents)
}

// split cuts the first n entries off a task.
func (t *applyTask) split(n int) applyTask {
	head := applyTask{ents: t.ents[:n]}
	for i := range head.ents {
		head.bytes += int64(len(head.ents[i].Data)) + entryOverhead
	}
	last := head.ents[n-1].Index
	k := 0
	for k < len(t.waits) && t.waits[k].index <= last {
		k++
	}
	head.waits, t.waits = t.waits[:k], t.waits[k:]
	t.ents = t.ents[n:]
	t.bytes -= head.bytes
	return head
}

func (run *applyRun) reset() {
	clear(run.tasks)
	clear(run.scratch)
	clear(run.waits)
	clear(run.answers)
	*run = applyRun{
		tasks: run.tasks[:0], scratch: run.scratch[:0], waits: run.waits[:0], answers: run.answers[:0], sink: run.sink,
	}
}

// onAnswer keeps the answer of an operation that somebody waits for until the batch is committed.
func (run *applyRun) onAnswer(ent, op int, _ uint64, a wire.Answer) {
	index := run.ents[ent].Index
	for run.next < len(run.waits) && run.waits[run.next].index < index {
		run.next++
	}
	if run.next == len(run.waits) || run.waits[run.next].index != index {
		return
	}
	// The entry's operations are the proposal's requests, in order.
	if req := &run.waits[run.next].reqs[op]; req.Waiter != nil {
		a.Req = req.Req
		run.answers = append(run.answers, answered{req.Waiter, req.Req, a})
	}
}

// applyAll commits the runs in one batch. If a replica turns out to be faulted, its effects must not reach the disk by
// half: the batch is dropped, the machines go back to what is committed, and each group is tried alone.
func (aw *applyWorker) applyAll(runs []*applyRun) {
	began := aw.store.clock.Boot()
	b := aw.store.engine.NewBatch()
	defer b.Close()
	for _, run := range runs {
		if err := run.apply(b); err != nil {
			if len(runs) == 1 {
				aw.fail(run, err.Error())
				return
			}
			for _, again := range runs {
				again.rewind()
				aw.applyAll([]*applyRun{again})
			}
			return
		}
	}
	if err := aw.store.engine.Commit(b, false); err != nil {
		for _, run := range runs {
			aw.fail(run, "commit applied entries: "+err.Error())
		}
		return
	}
	m := aw.store.metrics
	entries, bytes := 0, int64(0)
	for _, run := range runs {
		entries += len(run.ents)
		bytes += run.bytes
	}
	m.applied.Add(float64(entries))
	m.applyEntries.Observe(float64(entries))
	m.applyGroups.Observe(float64(len(runs)))
	now := aw.store.clock.Boot()
	for _, run := range runs {
		// The commit is of all of them: each bears its part.
		took := time.Duration(float64(now-began) * float64(run.bytes) / float64(bytes))
		aw.publish(run, took, now)
	}
}

// rewind puts the machine back to the committed state.
func (run *applyRun) rewind() {
	r := run.r
	r.machine = r.newMachine(r.desc.Load(), r.appliedState())
	clear(run.answers)
	run.answers, run.next, run.conf, run.removed = run.answers[:0], 0, nil, false
}

// publish makes a committed run visible, in this order: descriptor, applied index, waiters.
func (aw *applyWorker) publish(run *applyRun, took, now time.Duration) {
	r, s := run.r, aw.store
	if run.removed {
		aw.endApply(run)
		return
	}
	st := r.machine.Applied()
	r.state.Lock()
	before := r.state.applied.Stats
	r.state.applied = st
	r.state.Unlock()
	if d := r.machine.Descriptor(); d != r.desc.Load() {
		r.desc.Store(d)
		s.peers.changed()
	}
	r.applied.Store(st.Index)
	for _, p := range run.waits {
		if p.trace != nil {
			p.trace.applied.set(now)
		}
	}
	for i := range run.answers {
		a := &run.answers[i]
		a.waiter.Complete(a.req, a.answer)
	}
	for _, p := range run.waits {
		p.free()
	}
	r.releaseReads()
	r.countApplied(run.ents, took, now)
	r.grew(&before, &st.Stats, now)
	if isVerify(&run.ents[0]) {
		s.openVerify(r, &run.ents[0])
	}
	r.handed.bytes.Add(-run.bytes)
	s.used.apply.Add(-run.bytes)
	wake := r.handed.wanted.Swap(false)
	if run.conf != nil {
		r.in.Lock()
		r.in.confs = append(r.in.confs, *run.conf)
		r.in.Unlock()
		wake = true
	}
	if wake {
		s.pool.Enqueue(uint64(r.shard))
	}
}

// endApply stops the state machine of a replica that its own log has removed. What was applied before is committed; the
// removal is a step of its own, which takes all of it away.
func (aw *applyWorker) endApply(run *applyRun) {
	r := run.r
	r.dropHanded("the replica was removed from the shard") // before bytes may fall to 0, which would let the worker apply
	r.handed.bytes.Add(-run.bytes)
	aw.store.used.apply.Add(-run.bytes)
	r.in.Lock()
	r.in.confs = append(r.in.confs, *run.conf)
	r.in.Unlock()
	aw.store.pool.Enqueue(uint64(r.shard))
}

// fail faults the replica of a run that cannot be applied.
func (aw *applyWorker) fail(run *applyRun, reason string) {
	r := run.r
	aw.store.fault(r, reason, nil)
	r.dropHanded(reason) // before bytes may fall to 0, which would let the worker apply what follows
	r.handed.bytes.Add(-run.bytes)
	aw.store.used.apply.Add(-run.bytes)
	for _, p := range run.waits {
		r.answerOpen(p, answerText(wire.Ambiguous, reason))
		p.free()
	}
	aw.store.pool.Enqueue(uint64(r.shard)) // the worker cleans up what is its own
}

// apply adds the run's effects to the batch. A panic counts as an error: it stops this replica only.
func (run *applyRun) apply(b *engine.Batch) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("apply: panic: %v\n%s", v, debug.Stack())
		}
	}()
	if e := &run.ents[0]; e.Type != raftpb.EntryNormal {
		return run.applyConf(b, e)
	}
	sink := run.sink
	if len(run.waits) == 0 {
		sink = nil
	}
	return run.r.machine.Apply(b, run.ents, sink)
}
