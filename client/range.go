package client

import (
	"bytes"
	"context"
	"fmt"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// Value is what a key holds.
type Value struct {
	Bytes []byte
	// Version grows with every write of the key and is never 0 for a key that exists.
	Version uint64
}

// Exists reports whether the key was there (see Range.MultiGet).
func (v Value) Exists() bool { return v.Version != 0 }

// Range is a handle on the keys in [lo, hi). It is a value without state of its own: safe for concurrent use, free to
// make, valid until the DB is closed.
type Range struct {
	db       *DB
	lo, hi   []byte // user keys; a nil hi is the end of the key space
	from, to []byte // the same as routing keys
}

// Bounds returns the bounds; a nil hi is the end of the key space.
func (r *Range) Bounds() (lo, hi []byte) { return r.lo, r.hi }

// Put stores a value and returns its version.
func (r *Range) Put(ctx context.Context, key, value []byte) (version uint64, err error) {
	return r.write(ctx, "put", key, wire.Op{Code: wire.OpPut, Value: value})
}

// Delete removes a key. Removing an absent key succeeds.
func (r *Range) Delete(ctx context.Context, key []byte) error {
	_, err := r.write(ctx, "delete", key, wire.Op{Code: wire.OpDelete})
	return err
}

// CompareAndSwap stores a value if the key has the version expected, where 0 means that it is absent, and returns the
// new version. Otherwise it fails with ErrConflict; a ConflictError says which version was found.
func (r *Range) CompareAndSwap(ctx context.Context, key []byte, expect uint64, value []byte) (uint64, error) {
	return r.write(ctx, "compare-and-swap", key,
		wire.Op{Code: wire.OpPut, Flags: wire.FlagIfVersion, Arg: expect, Value: value})
}

// CompareAndDelete removes a key if it has the version expected; otherwise it fails with ErrConflict.
func (r *Range) CompareAndDelete(ctx context.Context, key []byte, expect uint64) error {
	_, err := r.write(ctx, "compare-and-delete", key,
		wire.Op{Code: wire.OpDelete, Flags: wire.FlagIfVersion, Arg: expect})
	return err
}

// write runs a Put or Delete of one key.
func (r *Range) write(ctx context.Context, name string, key []byte, op wire.Op) (uint64, error) {
	if err := r.check(name, key, op.Value); err != nil {
		return 0, err
	}
	op.Key = base.UserKey(key)
	a, trace, err := r.db.do(ctx, op)
	switch {
	case err != nil:
		return 0, opError(name, key, err)
	case a.Code == wire.ConditionFailed:
		return 0, resultError(name, key, trace, &ConflictError{Version: a.Arg})
	}
	return a.Arg, nil
}

// DeleteAll removes every key of the Range, shard by shard; it is atomic within a shard only. After an error, even a
// definite one, the shards before the one that failed are empty already.
func (r *Range) DeleteAll(ctx context.Context) error {
	const op = "delete-all"
	if r.db.closed.Load() {
		return opError(op, r.lo, ErrClosed)
	}
	if _, err := r.db.router.DeleteRange(ctx, r.from, r.to); err != nil {
		return opError(op, r.lo, err)
	}
	return nil
}

// check refuses, before any I/O, what lies outside the bounds or breaks a limit.
func (r *Range) check(op string, key, value []byte) error {
	switch {
	case len(key) == 0:
		return opError(op, key, fmt.Errorf("empty key: %w", ErrInvalid))
	case len(key) > base.MaxKeySize:
		return opError(op, key, fmt.Errorf("key of %d bytes, at most %d: %w", len(key), base.MaxKeySize, ErrInvalid))
	case len(value) > base.MaxValueSize:
		return opError(op, key, fmt.Errorf("value of %d bytes, at most %d: %w", len(value), base.MaxValueSize, ErrInvalid))
	case bytes.Compare(key, r.lo) < 0 || r.hi != nil && bytes.Compare(key, r.hi) >= 0:
		return opError(op, key, r.outside())
	}
	return nil
}

func (r *Range) outside() error {
	if r.hi == nil {
		return fmt.Errorf("%w [%q, end)", ErrOutOfRange, shorten(r.lo))
	}
	return fmt.Errorf("%w [%q, %q)", ErrOutOfRange, shorten(r.lo), shorten(r.hi))
}
