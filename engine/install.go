package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"github.com/shardd/shardd/internal/base"
	"go.etcd.io/etcd/raft/v3/raftpb"
)

// Install. Prepare: the staged chunks are synced; beside them go small tables, synced as well, that replace
// everything else the store has of the shard, and remove the replicas that the snapshot subsumes. Ingest: one
// IngestAndExcise takes all tables in and cuts the data range out; Pebble makes it durable before it returns, in its
// log or its manifest. A crash before that leaves the old replica, after it the new one, and in both cases a staging
// that Open removes.
//
// An ingest is not ordered with the write-ahead log, so all of it is in the tables (rule I8). Each table stays within
// one shard's keys of one span: an ingested table that overlaps the memtable makes Pebble rotate log and memtable
// while writers wait, and one that crossed other shards' keys always would. In a table the tombstone and the records
// have the same sequence number, so the one does not delete the others.

// Install says how a staged snapshot becomes the replica.
type Install struct {
	Staging *Staging
	Mark    ReplicaMark      // of the new replica
	Hard    raftpb.HardState // term and vote; the commit index becomes the snapshot's
	Subsume []Removal        // older replicas inside its range, removed in the same step (rule I3)
}

// Install replaces whatever the store has of the shard by the staged snapshot, removes the subsumed replicas, and
// removes the staging. When it returns, all of that is durable and visible. The replicas concerned must be parked: no
// batch about them may be committed meanwhile. Entries of the Ready that carried the snapshot are written after it.
//
// After an error nothing has changed and the staging is still there, unless the error wraps ErrStopped: then the store
// has failed, and the next start finds the old replica or the new one. The log's Reset is the caller's.
func (e *Engine) Install(in Install) (ReplicaState, error) {
	s := in.Staging
	st, err := e.install(in)
	if err != nil {
		return ReplicaState{}, fmt.Errorf("install snapshot of %s: %w", s.meta.name(), err)
	}
	if err := s.Remove(); err != nil && !e.fatal.stopped.Load() {
		e.opts.Logger.Warn("a staging is left until the next start", "error", err)
	}
	return st, nil
}

func (e *Engine) install(in Install) (ReplicaState, error) {
	start := e.now()
	if e.fatal.stopped.Load() {
		return ReplicaState{}, e.stopErr()
	}
	if err := in.check(); err != nil {
		return ReplicaState{}, err
	}
	s := in.Staging
	st := ReplicaState{
		Shard: s.meta.Shard, Mark: in.Mark, Desc: s.meta.Desc, Applied: s.meta.Applied, Hard: in.Hard,
		Truncated: TruncatedState{Index: s.meta.Applied.Index, Term: s.meta.Applied.Term, Conf: s.meta.Applied.Conf},
	}
	// Not higher: a log must never end below its commit index, and the entries behind the snapshot come after it.
	st.Hard.Commit = st.Applied.Index

	old, _, err := e.ReplicaState(st.Shard)
	if err != nil {
		return ReplicaState{}, err
	}
	files, err := in.tables(&st, old.Desc)
	if err != nil {
		return ReplicaState{}, err
	}
	span := pebble.KeyRange{Start: bytes.Clone(st.Desc.Start), End: bytes.Clone(st.Desc.End)}
	if err := e.ingest(append(slices.Clone(s.files), files...), span); err != nil {
		return ReplicaState{}, err
	}
	e.metrics.installs.Inc()
	e.metrics.installSeconds.Add((e.now() - start).Seconds())
	return st, nil
}

func (in *Install) check() error {
	s := in.Staging
	switch {
	case s.removed:
		return errors.New("its staging has been removed")
	case in.Mark.ReplicaID != s.meta.To:
		return fmt.Errorf("its mark names replica %d", in.Mark.ReplicaID)
	case in.Hard.Term < s.meta.Applied.Term:
		return fmt.Errorf("hard state of term %d, but applied in term %d", in.Hard.Term, s.meta.Applied.Term)
	}
	if err := in.Mark.check(); err != nil {
		return err
	}
	for i, r := range in.Subsume {
		if err := r.check(); err != nil {
			return err
		}
		same := func(o Removal) bool { return o.Shard == r.Shard }
		if r.Shard == s.meta.Shard || slices.ContainsFunc(in.Subsume[:i], same) {
			return fmt.Errorf("it subsumes %s twice, or itself", r.Shard)
		}
	}
	return nil
}

// tables writes the small tables: for the shard and each subsumed one, one for each span of the local space, and
// tombstones over data of the old replicas that the excise does not reach.
func (in *Install) tables(st *ReplicaState, old *base.Descriptor) (files []string, err error) {
	add := func(t *tableBuilder) {
		b, ferr := t.finish()
		if err == nil {
			err = ferr
		}
		if err != nil || !t.any {
			return
		}
		in.Staging.local++
		var path string
		if path, err = in.Staging.write(fmt.Sprintf("local%06d.sst", in.Staging.local), b); err == nil {
			files = append(files, path)
		}
	}
	in.records(st, add)
	for _, r := range in.Subsume {
		removed(r, add)
	}
	for _, gap := range outside(st.Desc, in.olds(old)) {
		t := newTableBuilder(0)
		t.deleteRange(gap.Start, gap.End)
		add(t)
	}
	return files, err
}

// olds lists whose data goes.
func (in *Install) olds(old *base.Descriptor) (descs []*base.Descriptor) {
	if old != nil {
		descs = append(descs, old)
	}
	for _, r := range in.Subsume {
		if r.Desc != nil {
			descs = append(descs, r.Desc)
		}
	}
	return descs
}

// records builds the tables with the new replica's records.
func (in *Install) records(st *ReplicaState, add func(*tableBuilder)) {
	one := func(key, value []byte) {
		t := newTableBuilder(len(value))
		t.set(key, value)
		add(t)
	}
	applied := make([]byte, appliedLen(&st.Applied))
	putApplied(applied, &st.Applied)
	one(shardKey(spanApplied, st.Shard), applied)

	_, hi := shardSpan(spanSession, st.Shard)
	t := newTableBuilder(0)
	t.deleteRange(in.Staging.session, hi) // behind the staged sessions
	add(t)

	one(shardKey(spanDesc, st.Shard), st.Desc.Append(nil))

	mark := make([]byte, markLen)
	putMark(mark, st.Mark)
	one(shardKey(spanMark, st.Shard), mark)

	hard, trunc := make([]byte, hardLen), make([]byte, truncLen(&st.Truncated))
	putHard(hard, st.Hard)
	putTruncated(trunc, &st.Truncated)
	lo, hi := shardSpan(spanRaft, st.Shard)
	t = newTableBuilder(0)
	t.set(stateKey(st.Shard, raftHard), hard)
	t.set(stateKey(st.Shard, raftTruncated), trunc)
	t.deleteRange(lo, hi)
	add(t)
}

// removed builds the tables that do to the local space what RemoveReplica does.
func removed(r Removal, add func(*tableBuilder)) {
	for _, span := range [...]byte{spanApplied, spanSession, spanDesc, spanMark, spanRaft} {
		t := newTableBuilder(0)
		switch span {
		case spanApplied, spanDesc:
			t.delete(shardKey(span, r.Shard))
		case spanMark:
			mark := make([]byte, markLen)
			putMark(mark, r.Mark)
			t.set(shardKey(span, r.Shard), mark)
		default:
			t.deleteRange(shardSpan(span, r.Shard))
		}
		add(t)
	}
}

// outside returns the parts of the old ranges that the new one does not cover, ascending and merged. Live replicas
// never overlap (rule I3), so nobody else's data is in them.
func outside(d *base.Descriptor, olds []*base.Descriptor) (gaps []pebble.KeyRange) {
	cut := func(lo, hi []byte) {
		if bytes.Compare(lo, hi) < 0 {
			gaps = append(gaps, pebble.KeyRange{Start: lo, End: hi})
		}
	}
	for _, o := range olds {
		left, right := o.End, o.Start
		if bytes.Compare(d.Start, left) < 0 {
			left = d.Start
		}
		if bytes.Compare(d.End, right) > 0 {
			right = d.End
		}
		cut(o.Start, left)
		cut(right, o.End)
	}
	slices.SortFunc(gaps, func(a, b pebble.KeyRange) int { return bytes.Compare(a.Start, b.Start) })
	merged := gaps[:0]
	for _, g := range gaps {
		if n := len(merged); n > 0 && bytes.Compare(g.Start, merged[n-1].End) <= 0 {
			merged[n-1].End = maxKey(merged[n-1].End, g.End)
			continue
		}
		merged = append(merged, g)
	}
	return merged
}

// ingest runs IngestAndExcise on a goroutine of its own: Fatalf ends the goroutine that it is on. It flushes first, for
// the views, and because Pebble would put what overlaps the memtable on top of it, which flushes as well, but later: if
// the excise then met a damaged table, that flush would be tried again for ever, and writes stop. So the error comes
// back from here.
func (e *Engine) ingest(files []string, span pebble.KeyRange) error {
	done := make(chan error, 1)
	go func() { done <- e.exciseAndIngest(files, span) }()
	var err error
	select {
	case err = <-done:
	case <-e.fatal.dead:
		return e.stopErr()
	}
	if e.fatal.stopped.Load() { // Pebble was told that all went well
		return e.stopErr()
	}
	if err != nil {
		return fmt.Errorf("ingest %d tables: %w", len(files), readError(err))
	}
	return nil
}

func (e *Engine) exciseAndIngest(files []string, span pebble.KeyRange) error {
	flushed, end := e.views.announce(span)
	defer end()
	if err := e.flush(); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	flushed()
	all := rowChanges{all: true}
	e.rows.begin(&all)
	_, err := e.db.IngestAndExcise(context.Background(), files, nil, nil, span)
	e.rows.end(&all) // not if Pebble gave up, which ends this goroutine
	return err
}

// flushWatch tells those who wait for a flush that one has failed. Pebble does not: it tries again until one succeeds.
type flushWatch struct {
	mu      sync.Mutex
	waiters map[chan error]struct{} // of capacity 1
}

func (w *flushWatch) add() chan error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiters == nil {
		w.waiters = make(map[chan error]struct{})
	}
	ch := make(chan error, 1)
	w.waiters[ch] = struct{}{}
	return ch
}

func (w *flushWatch) remove(ch chan error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.waiters, ch)
}

// fail runs under Pebble's locks.
func (w *flushWatch) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for ch := range w.waiters {
		select {
		case ch <- err:
		default: // the first one is enough
		}
	}
}

// flush writes the memtable to tables, or says why that cannot be done now.
func (e *Engine) flush() error {
	failed := e.flushes.add()
	defer e.flushes.remove(failed)
	done, err := e.db.AsyncFlush()
	if err != nil {
		return err
	}
	select {
	case <-done:
		return nil
	case err := <-failed:
		return err
	case <-e.fatal.ch:
		return e.stopErr()
	}
}
