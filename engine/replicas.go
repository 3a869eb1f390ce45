package engine

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"
	"github.com/shardd/shardd/internal/base"
)

// LoadReplicas returns the state of every replica that exists on the store, by shard id. It reads the small spans and
// two records per replica, never a log. What contradicts itself is refused with ExitCorrupt: a replica without its
// mark, half a state, a log truncated above what is applied, or live descriptors that overlap.
func (e *Engine) LoadReplicas() ([]ReplicaState, error) {
	states, err := e.loadReplicas()
	if err != nil {
		return nil, classify(e.opts.Dir, fmt.Errorf("load replicas: %w", err))
	}
	return states, nil
}

// Mark reads the mark of one shard, also where no replica exists (any more); ok is false if the shard never had one
// here.
func (e *Engine) Mark(shard base.ShardID) (m ReplicaMark, ok bool, err error) {
	v, ok, err := e.get(shardKey(spanMark, shard))
	if err == nil && ok {
		m, err = decodeMark(v)
	}
	if err != nil {
		return ReplicaMark{}, false, fmt.Errorf("load mark of %s: %w", shard, err)
	}
	return m, ok, nil
}

func (e *Engine) loadReplicas() ([]ReplicaState, error) {
	var states []ReplicaState
	at := make(map[base.ShardID]int)
	dead := make(map[base.ShardID]bool)
	err := e.scanSpan(spanMark, func(shard base.ShardID, v []byte) error {
		m, err := decodeMark(v)
		switch {
		case err != nil:
			return err
		case m.ReplicaID == 0:
			dead[shard] = true
			return nil
		}
		at[shard] = len(states)
		states = append(states, ReplicaState{Shard: shard, Mark: m})
		return nil
	})
	if err != nil {
		return nil, err
	}
	// live finds the replica that a record is about.
	live := func(shard base.ShardID) (*ReplicaState, error) {
		if i, ok := at[shard]; ok {
			return &states[i], nil
		}
		if dead[shard] {
			return nil, fmt.Errorf("the replica is marked as removed: %w", ErrCorrupt)
		}
		return nil, fmt.Errorf("the replica has no mark: %w", ErrCorrupt)
	}
	err = e.scanSpan(spanDesc, func(shard base.ShardID, v []byte) error {
		st, err := live(shard)
		if err != nil {
			return err
		}
		d, rest, err := base.DecodeDescriptor(v)
		if err != nil {
			return err
		}
		if len(rest) != 0 || d.Shard != shard {
			return fmt.Errorf("descriptor of %s with %d bytes behind it: %w", d.Shard, len(rest), ErrCorrupt)
		}
		st.Desc = d
		return nil
	})
	if err != nil {
		return nil, err
	}
	applied := make(map[base.ShardID]bool, len(states))
	err = e.scanSpan(spanApplied, func(shard base.ShardID, v []byte) error {
		st, err := live(shard)
		if err != nil {
			return err
		}
		st.Applied, err = decodeApplied(v)
		applied[shard] = true
		return err
	})
	if err != nil {
		return nil, err
	}
	for i := range states {
		st := &states[i]
		if err := e.loadRaftState(st, applied[st.Shard]); err != nil {
			return nil, fmt.Errorf("replica %s: %w", base.ReplicaName(st.Shard, st.Mark.ReplicaID), err)
		}
	}
	if err := checkOverlaps(states); err != nil {
		return nil, err
	}
	return states, nil
}

// loadRaftState reads the two records in the raft span and checks the whole.
func (e *Engine) loadRaftState(st *ReplicaState, applied bool) error {
	hard, haveHard, err := e.get(stateKey(st.Shard, raftHard))
	if err == nil && haveHard {
		st.Hard, err = decodeHard(hard)
	}
	if err != nil {
		return fmt.Errorf("hard state: %w", err)
	}
	trunc, haveTrunc, err := e.get(stateKey(st.Shard, raftTruncated))
	if err == nil && haveTrunc {
		st.Truncated, err = decodeTruncated(trunc)
	}
	if err != nil {
		return fmt.Errorf("truncated state: %w", err)
	}
	initialised := st.Desc != nil
	switch {
	case initialised != applied || initialised != haveTrunc || (initialised && !haveHard):
		return fmt.Errorf("half a state: descriptor %t, applied %t, truncated %t, hard %t: %w",
			initialised, applied, haveTrunc, haveHard, ErrCorrupt)
	case st.Truncated.Index > st.Applied.Index:
		return fmt.Errorf("log truncated at %d, applied only to %d: %w",
			st.Truncated.Index, st.Applied.Index, ErrCorrupt)
	}
	return nil
}

// checkOverlaps enforces rule I3: live replicas on one store never overlap.
func checkOverlaps(states []ReplicaState) error {
	var descs []*base.Descriptor
	for i := range states {
		if states[i].Desc != nil {
			descs = append(descs, states[i].Desc)
		}
	}
	slices.SortFunc(descs, func(a, b *base.Descriptor) int { return bytes.Compare(a.Start, b.Start) })
	for i := 1; i < len(descs); i++ {
		if descs[i-1].Overlaps(descs[i]) {
			return fmt.Errorf("replicas overlap: %s and %s: %w", descs[i-1], descs[i], ErrCorrupt)
		}
	}
	return nil
}

// scanSpan calls f for every record of a span keyed by shard; f must not keep v.
func (e *Engine) scanSpan(span byte, f func(shard base.ShardID, v []byte) error) (err error) {
	lo, hi := spanBounds(span)
	it, err := e.db.NewIter(&pebble.IterOptions{LowerBound: lo, UpperBound: hi})
	if err != nil {
		return readError(err)
	}
	defer func() { err = errors.Join(err, readError(it.Close())) }()
	for ok := it.First(); ok; ok = it.Next() {
		if len(it.Key()) != shardKeyLen {
			return fmt.Errorf("key %x: %w", it.Key(), ErrCorrupt)
		}
		shard := base.ShardID(u64at(it.Key(), 2))
		v, err := it.ValueAndErr()
		if err == nil {
			err = f(shard, v)
		}
		if err != nil {
			return fmt.Errorf("shard %s, span %q: %w", shard, span, readError(err))
		}
	}
	return readError(it.Error())
}
