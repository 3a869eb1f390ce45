package shard

import (
	"errors"
	"fmt"
	"time"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// maxScanBytes is the most that a client may ask for in one page, keys and values.
const maxScanBytes = 4 << 20

// Read appends the whole encoded answer of a Get or Scan to buf. It reads what is applied here: for a linearizable
// read, ReadIndex has completed with OK before. Order (V6): the view is opened, then the published descriptor is
// loaded and checked, and the freeze, then the view is read; a range that was given away before the view was opened is
// refused.
func (s *Store) Read(op *wire.Op, buf []byte) []byte {
	r := s.serving(op.Shard)
	if r == nil {
		return appendAnswer(buf, op, 0, s.absentFor(op))
	}
	if why, bad := r.faultReason(); bad {
		return appendAnswer(buf, op, 0, answerText(wire.Failed, why))
	}
	if err := op.Validate(); err != nil {
		return appendAnswer(buf, op, 0, answerText(wire.Invalid, err.Error()))
	}
	at, t := len(buf), timed{}
	switch op.Code {
	case wire.OpGet:
		t = r.beginRead()
		buf = s.get(r, op, buf)
	case wire.OpScan:
		t = r.beginRead()
		buf = s.scan(r, op, buf)
	default:
		return appendAnswer(buf, op, 0, answerText(wire.Invalid, fmt.Sprintf("%s is not a read", op.Code)))
	}
	r.endRead(t, op, buf[at:])
	return buf
}

// ReadNow is ReadIndex and Read in one, for a Get at a leader whose lease holds and that has applied all it knows to be
// committed: no message, no sync, no other goroutine. If that is not so it returns buf as it was, and false: ask for a
// ReadIndex. op is valid; now is the caller's clock, not from after this call. Safe for concurrent use.
//
// Order (V5, V6): the commit index, compared with the applied one; the view; the descriptor, and the freeze; the lease
// again, by a clock read after all of this. A pause anywhere in between ends in that last look.
func (s *Store) ReadNow(op *wire.Op, buf []byte, now time.Duration) ([]byte, bool) {
	if op.Code != wire.OpGet || s.live == nil {
		return buf, false
	}
	r := s.serving(op.Shard)
	if r == nil {
		return buf, false
	}
	l := r.leaseAt(now)
	if l == nil || r.applied.Load() < max(r.commit.Load(), l.first) || r.faulted.Load() != nil {
		return buf, false
	}
	at := len(buf)
	t := r.beginRead()
	out := s.get(r, op, buf)
	if !r.stillHolds(l.term) {
		return out[:at], false
	}
	r.endRead(t, op, out[at:])
	s.leaseReads.Add(1)
	return out, true
}

func appendAnswer(buf []byte, op *wire.Op, version uint64, a wire.Answer) []byte {
	a.Req, a.Version = op.Req, version
	return a.Append(buf)
}

// get: the look-up is its own view, of the moment it is made; the descriptor is checked after it.
func (s *Store) get(r *replica, op *wire.Op, buf []byte) []byte {
	at := len(buf)
	a := wire.Answer{Req: op.Req}
	buf = a.AppendHeader(buf, 0)
	h, out, ok, err := s.engine.Get(op.Key, buf)
	d := r.desc.Load()
	a.Version = d.Epoch.Version
	switch {
	case r.leaving.Load(): // after the look-up: it may have met nothing, or another range
		return appendAnswer(buf[:at], op, a.Version, r.notLeader())
	case r.frozen.Load() != nil: // after the look-up, too: L may have had the range by then
		return appendAnswer(buf[:at], op, a.Version, s.frozenAnswer())
	case err != nil:
		s.damaged(r, err)
		return appendAnswer(buf[:at], op, a.Version, answerText(wire.Failed, "read: "+err.Error()))
	case !r.serves(op, op.Version):
		return appendAnswer(buf[:at], op, a.Version, r.mismatchOf(op))
	case !ok:
		a.Code = wire.NotFound
		return a.Append(buf[:at])
	}
	a.Arg = h.Version
	a.AppendHeader(out[:at], len(out)-at-wire.AnswerHeaderSize) // in place, over the one that reserved the room
	return out
}

// damaged faults a replica whose data on this disk cannot be read, so that one with a good copy leads. The only voter of
// a shard stays: what can still be read of it may be all there is.
func (s *Store) damaged(r *replica, err error) {
	if !errors.Is(err, engine.ErrCorrupt) || onlyVoter(r.desc.Load(), r.id) {
		return
	}
	s.fault(r, "read: "+err.Error(), nil)
	s.pool.Enqueue(uint64(r.shard)) // its worker cleans up
}

// onlyVoter reports whether no other replica of the shard votes.
func onlyVoter(d *base.Descriptor, id base.ReplicaID) bool {
	for _, rep := range d.Replicas {
		if rep.Replica != id && rep.Role != base.RoleLearner {
			return false
		}
	}
	return true
}

func (s *Store) scan(r *replica, op *wire.Op, buf []byte) []byte {
	at := len(buf)
	reverse := op.Flags&wire.FlagReverse != 0
	it, err := s.engine.NewIter(op.Key, op.Value, reverse)
	if err != nil {
		return appendAnswer(buf[:at], op, 0, answerText(wire.Failed, "open view: "+err.Error()))
	}
	d := r.desc.Load()
	if r.leaving.Load() {
		_ = it.Close()
		return appendAnswer(buf[:at], op, d.Epoch.Version, r.notLeader())
	}
	if r.frozen.Load() != nil {
		_ = it.Close()
		return appendAnswer(buf[:at], op, d.Epoch.Version, s.frozenAnswer())
	}
	if !r.serves(op, op.Version) {
		_ = it.Close()
		return appendAnswer(buf[:at], op, d.Epoch.Version, r.mismatchOf(op))
	}
	rows, size := wire.SplitScanArg(op.Arg)
	a := wire.Answer{Req: op.Req, Version: d.Epoch.Version}
	buf = a.AppendHeader(buf, 0)
	buf, more, err := appendRows(it, buf, s.pageRows(rows), s.pageBytes(size), op.Flags&wire.FlagKeysOnly != 0)
	if cerr := it.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		s.damaged(r, err)
		return appendAnswer(buf[:at], op, d.Epoch.Version, answerText(wire.Failed, "scan: "+err.Error()))
	}
	if more {
		a.Flags = wire.FlagMore
	}
	a.AppendHeader(buf[:at], len(buf)-at-wire.AnswerHeaderSize)
	return buf
}

// appendRows encodes one page: at least one row if there is any, and more reports whether the bounds cut it.
func appendRows(it *engine.Iter, buf []byte, rows, size int, keysOnly bool) (out []byte, more bool, err error) {
	for used := 0; it.Valid(); it.Next() {
		if rows == 0 {
			return buf, true, nil
		}
		row := wire.Row{Key: it.Key(), Version: it.Header().Version}
		if !keysOnly {
			row.Value = it.Value()
		}
		n := row.Size() // with its header, or a page of many short keys would outgrow an answer
		if used > 0 && used+n > size {
			return buf, true, nil
		}
		buf = row.Append(buf)
		used += n
		rows--
	}
	return buf, false, it.Err()
}

func (s *Store) pageRows(asked uint32) int {
	if asked == 0 {
		return s.cfg.ScanRows
	}
	return int(asked)
}

func (s *Store) pageBytes(asked uint32) int {
	if asked == 0 {
		return s.cfg.ScanBytes
	}
	return int(min(asked, maxScanBytes))
}

// Descriptor returns the published descriptor of a shard that has an initialised replica here.
func (s *Store) Descriptor(shard base.ShardID) (*base.Descriptor, bool) {
	r := s.serving(shard)
	if r == nil {
		return nil, false
	}
	return r.desc.Load(), true
}
