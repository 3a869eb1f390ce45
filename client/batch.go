package client

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// Batch builds an ordered list of conditions and writes for Range.Batch. Steps run in order and see the effects of
// earlier ones. A mistake (an oversized key, a batch over 4 MiB) is remembered and returned by Range.Batch. Keys and
// values are copied. A Batch may be run any number of times, but is not safe for concurrent use.
type Batch struct {
	steps []byte // encoded
	count int
	err   error // the first mistake
}

// NewBatch returns an empty Batch.
func NewBatch() *Batch { return &Batch{} }

// Put stores a value.
func (b *Batch) Put(key, value []byte) *Batch { return b.add(wire.OpPut, key, value, 0) }

// Delete removes a key.
func (b *Batch) Delete(key []byte) *Batch { return b.add(wire.OpDelete, key, nil, 0) }

// DeleteRange removes the keys in [lo, hi); a nil hi is the end of the key space.
func (b *Batch) DeleteRange(lo, hi []byte) *Batch {
	end := base.UserEnd()
	if hi != nil {
		end = base.UserKey(hi)
	}
	return b.append(&wire.Sub{Code: wire.OpDeleteRange, Key: base.UserKey(lo), Value: end})
}

// IfAbsent requires that the key does not exist.
func (b *Batch) IfAbsent(key []byte) *Batch { return b.add(wire.OpCheckAbsent, key, nil, 0) }

// IfPresent requires that the key exists.
func (b *Batch) IfPresent(key []byte) *Batch { return b.add(wire.OpCheckPresent, key, nil, 0) }

// IfVersion requires that the key has a version, where 0 means absent.
func (b *Batch) IfVersion(key []byte, version uint64) *Batch {
	return b.add(wire.OpCheckVersion, key, nil, version)
}

// IfValue requires that the key holds a value.
func (b *Batch) IfValue(key, value []byte) *Batch { return b.add(wire.OpCheckValue, key, value, 0) }

// Len returns the number of steps.
func (b *Batch) Len() int { return b.count }

func (b *Batch) add(code wire.OpCode, key, value []byte, arg uint64) *Batch {
	if len(key) == 0 && b.err == nil {
		b.err = fmt.Errorf("step %d: %s: empty key: %w", b.count, code, ErrInvalid)
	}
	return b.append(&wire.Sub{Code: code, Key: base.UserKey(key), Value: value, Arg: arg})
}

// append encodes a step unless there was a mistake before.
func (b *Batch) append(s *wire.Sub) *Batch {
	b.count++
	if b.err != nil {
		return b
	}
	if err := s.Validate(); err != nil {
		b.err = fmt.Errorf("step %d: %w", b.count-1, err)
		return b
	}
	if n := len(b.steps) + s.Size(); n > base.MaxBatchSize {
		b.err = fmt.Errorf("step %d: batch of %d bytes, at most %d: %w", b.count-1, n, base.MaxBatchSize, ErrInvalid)
		return b
	}
	b.steps = s.Append(b.steps)
	return b
}

// Batch runs the steps of b in order, all or nothing, and returns the version of what it wrote. All keys must lie in
// one shard (else ErrCrossShard). If a condition does not hold, nothing is written and it fails with ErrConflict.
func (r *Range) Batch(ctx context.Context, b *Batch) (version uint64, err error) {
	const op = "batch"
	if b.err != nil {
		return 0, opError(op, nil, b.err)
	}
	if b.count == 0 {
		return 0, opError(op, nil, fmt.Errorf("no steps: %w", ErrInvalid))
	}
	var s wire.Sub
	var first []byte
	for i, rest := 0, b.steps; len(rest) > 0; i++ {
		if rest, err = wire.DecodeSub(rest, &s); err != nil {
			return 0, opError(op, nil, err)
		}
		if first == nil {
			first = s.Key
		}
		if bytes.Compare(s.Key, r.from) < 0 || bytes.Compare(s.Key, r.to) >= 0 ||
			s.Code == wire.OpDeleteRange && bytes.Compare(s.Value, r.to) > 0 {
			return 0, opError(op, s.Key[1:], fmt.Errorf("step %d: %w", i, r.outside()))
		}
	}
	a, trace, err := r.db.do(ctx, wire.Op{Code: wire.OpBatch, Key: first, Value: b.steps})
	switch {
	case err != nil:
		return 0, opError(op, first[1:], err)
	case a.Code == wire.ConditionFailed:
		c := &ConflictError{Version: a.Arg}
		if len(a.Payload) >= 4 {
			c.Step = int(binary.BigEndian.Uint32(a.Payload))
		}
		return 0, resultError(op, first[1:], trace, c)
	}
	return a.Arg, nil
}
