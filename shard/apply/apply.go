package apply

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// Sink takes the answer of one operation: ent indexes the entries of the call, op the operations of that entry, req is
// the operation's request id. Payload is the receiver's to keep.
type Sink func(ent, op int, req uint64, a wire.Answer)

// Apply adds the effects of committed normal entries to b, ending with the AppliedState of the last one. The entries
// must follow the applied index without a gap; an entry without data only advances it. The batch of the call before
// must have been committed (with or without sync), since conditions read the engine.
//
// sink is called for every operation, in order, during the call; the answers are true once b is committed and must not
// leave before. A nil sink saves the work of answers that nobody waits for and changes nothing else.
//
//	OK               Arg = version stamp of the write
//	ConditionFailed  Arg = current version of the failed step's key (0: absent), Payload = u32 index of the step
//	EpochMismatch    Payload = the shard's descriptor, or what Mismatch makes of it
//	Invalid          Payload = the reason
//	Busy             the shard is frozen: as Frozen
//
// An error means that the replica must be faulted: b holds part of the effects and must be dropped, answers given to
// sink in this call are void, and every further call returns the same error.
func (m *Machine) Apply(b *engine.Batch, ents []raftpb.Entry, sink Sink) error {
	if m.broken != nil {
		return m.broken
	}
	if len(ents) == 0 {
		return nil
	}
	r := getRun(m, sink)
	defer putRun(r)
	for i := range ents {
		e := &ents[i]
		if err := m.checkNext(e.Index, e.Term); err != nil {
			return m.fault(err)
		}
		r.ent = i
		if err := r.entry(e); err != nil {
			return m.fault(fmt.Errorf("entry %d: %w", e.Index, err))
		}
		m.state.Index, m.state.Term = e.Index, e.Term
	}
	r.emit(b)
	b.SetApplied(m.desc.Shard, &m.state)
	return nil
}

// run is the work of one Apply call.
type run struct {
	m      *Machine
	sink   Sink
	ent    int // index of the entry in the call
	op     int // index of the operation in the entry
	writes []write
	// seen indexes writes that are certain, own those of the Batch at hand.
	seen, own overlay
	readBuf   []byte
	decoded   wire.Op // the operation at hand: of its own it would be allocated for every entry
	order     []int32 // scratch of emit
}

// write is one effect. Key and value point into the entry.
type write struct {
	kind  writeKind
	stamp uint64
	key   []byte
	value []byte // put: user bytes; range deletion: exclusive end
}

type writeKind uint8

const (
	writePut writeKind = iota + 1
	writeDelete
	writeRange
)

func (r *run) entry(e *raftpb.Entry) error {
	if e.Type != raftpb.EntryNormal {
		return fmt.Errorf("%s is not for Apply: %w", e.Type, base.ErrCorrupt)
	}
	if len(e.Data) == 0 {
		return nil
	}
	h, data, err := wire.DecodeEntry(e.Data)
	if err != nil {
		return err
	}
	if h.Kind.Boundary() {
		return fmt.Errorf("boundary entry of kind %d is not for Apply: %w", h.Kind, base.ErrCorrupt)
	}
	if h.Kind == wire.EntryVerify {
		_, err := wire.DecodeVerify(data) // no effect; the view is the caller's to open
		if err == nil && h.Count != 0 {
			err = fmt.Errorf("verify entry with %d operations: %w", h.Count, base.ErrCorrupt)
		}
		return err
	}
	op := &r.decoded
	for r.op = 0; len(data) > 0; r.op++ {
		if _, data, err = wire.DecodeOp(data, op); err != nil {
			return fmt.Errorf("operation %d: %w: %w", r.op, err, base.ErrCorrupt)
		}
		if err := r.operation(op, h.Stamp); err != nil {
			return fmt.Errorf("operation %d: %w", r.op, err)
		}
	}
	if uint64(r.op) != uint64(h.Count) {
		return fmt.Errorf("%d operations, the header says %d: %w", r.op, h.Count, base.ErrCorrupt)
	}
	return nil
}

func (r *run) operation(op *wire.Op, entryStamp uint64) error {
	st := &r.m.state
	if st.Freeze != nil {
		// Not even a stamp is used up: the state of a frozen shard must not depend on how far its log has come.
		if err := op.Validate(); errors.Is(err, wire.ErrUnknown) {
			return err
		}
		r.answer(op, Frozen())
		return nil
	}
	if st.Stamp == math.MaxUint64 {
		return errors.New("version stamps are used up")
	}
	st.Stamp = max(st.Stamp+1, entryStamp)
	if err := op.Validate(); err != nil {
		if errors.Is(err, wire.ErrUnknown) {
			return err
		}
		r.invalid(op, err.Error)
		return nil
	}
	d := r.m.desc
	if op.Shard != d.Shard {
		r.invalid(op, func() string { return fmt.Sprintf("operation for %s in the log of %s", op.Shard, d.Shard) })
		return nil
	}
	if op.Version != d.Epoch.Version {
		if r.sink != nil {
			a := wire.Answer{Code: wire.EpochMismatch}
			if r.m.Mismatch != nil {
				a.Payload = r.m.Mismatch(op)
			} else {
				a.Payload = wire.AppendDescriptors(nil, d)
			}
			r.answer(op, a)
		}
		return nil
	}
	switch op.Code {
	case wire.OpPut, wire.OpDelete:
		return r.single(op)
	case wire.OpDeleteRange:
		if !contains(d, op.Key, op.Value) {
			r.outside(op, op.Key)
			return nil
		}
		r.deleteRange(op.Key, op.Value)
		r.ok(op)
		return nil
	case wire.OpBatch:
		return r.batch(op)
	}
	r.invalid(op, func() string { return op.Code.String() + " does not belong in the log" })
	return nil
}

// single applies a Put or Delete, with or without FlagIfVersion.
func (r *run) single(op *wire.Op) error {
	if !r.m.desc.Contains(op.Key) {
		r.outside(op, op.Key)
		return nil
	}
	if op.Flags&wire.FlagIfVersion != 0 {
		cur, err := r.lookup(op.Key, len(r.writes))
		if err != nil {
			return err
		}
		if cur.version != op.Arg {
			r.conditionFailed(op, 0, cur.version)
			return nil
		}
	}
	if op.Code == wire.OpPut {
		r.put(op.Key, op.Value)
	} else {
		r.delete(op.Key)
	}
	r.ok(op)
	return nil
}

func (r *run) put(key, value []byte) {
	st := &r.m.state
	st.Stats.PutOps++
	st.Stats.PutBytes += uint64(len(key) + len(value))
	r.writes = append(r.writes, write{kind: writePut, stamp: st.Stamp, key: key, value: value})
}

func (r *run) delete(key []byte) {
	r.m.state.Stats.DeleteOps++
	r.writes = append(r.writes, write{kind: writeDelete, key: key})
}

func (r *run) deleteRange(lo, hi []byte) {
	r.m.state.Stats.DeleteOps++
	r.writes = append(r.writes, write{kind: writeRange, key: lo, value: hi})
}

// contains reports whether [lo, hi) lies in the shard's range. lo is below hi.
func contains(d *base.Descriptor, lo, hi []byte) bool {
	return string(lo) >= string(d.Start) && string(hi) <= string(d.End)
}

func (r *run) answer(op *wire.Op, a wire.Answer) {
	if r.sink == nil {
		return
	}
	a.Req, a.Version = op.Req, r.m.desc.Epoch.Version
	r.sink(r.ent, r.op, op.Req, a)
}

func (r *run) ok(op *wire.Op) { r.answer(op, wire.Answer{Code: wire.OK, Arg: r.m.state.Stamp}) }

func (r *run) conditionFailed(op *wire.Op, step uint32, version uint64) {
	if r.sink == nil {
		return
	}
	r.answer(op, wire.Answer{
		Code: wire.ConditionFailed, Arg: version, Payload: binary.BigEndian.AppendUint32(nil, step),
	})
}

// invalid takes the reason as a func so that a replica where nobody waits does not format it.
func (r *run) invalid(op *wire.Op, reason func() string) {
	if r.sink == nil {
		return
	}
	r.answer(op, wire.Answer{Code: wire.Invalid, Payload: []byte(reason())})
}

func (r *run) outside(op *wire.Op, key []byte) {
	r.invalid(op, func() string {
		return fmt.Sprintf("%s: key %q is outside the range of %s", op.Code, key, r.m.desc.Shard)
	})
}
