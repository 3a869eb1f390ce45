package placement

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/shardd/shardd/internal/wire"
)

var errUnknown = errors.New("outcome unknown")

// memKV is a key-value store in memory with versions. With chaos it loses answers of writes, done or not.
type memKV struct {
	mu      sync.Mutex
	rows    map[string]Row
	version uint64
	chaos   *rand.Rand
}

func newMemKV(pairs ...Pair) *memKV {
	kv := &memKV{rows: make(map[string]Row), version: 1}
	for _, p := range pairs {
		kv.rows[string(p.Key)] = Row{Key: p.Key, Value: p.Value, Version: 1}
	}
	return kv
}

func (kv *memKV) Get(_ context.Context, key []byte) ([]byte, uint64, error) {
	kv.mu.Lock()
	defer kv.mu.Unlock()
	r := kv.rows[string(key)]
	return bytes.Clone(r.Value), r.Version, nil
}

func (kv *memKV) Scan(_ context.Context, lo, hi []byte, limit int, reverse bool) ([]Row, error) {
	kv.mu.Lock()
	defer kv.mu.Unlock()
	var out []Row
	for _, r := range kv.rows {
		if bytes.Compare(r.Key, lo) >= 0 && bytes.Compare(r.Key, hi) < 0 {
			out = append(out, Row{bytes.Clone(r.Key), bytes.Clone(r.Value), r.Version})
		}
	}
	slices.SortFunc(out, func(a, b Row) int {
		if reverse {
			a, b = b, a
		}
		return bytes.Compare(a.Key, b.Key)
	})
	if limit > 0 && len(out) > limit {
		out = out[:limit]
	}
	return out, nil
}

func (kv *memKV) Apply(_ context.Context, steps []wire.Sub) error {
	kv.mu.Lock()
	defer kv.mu.Unlock()
	roll := 1.0
	if kv.chaos != nil {
		roll = kv.chaos.Float64()
	}
	if roll < 0.1 {
		return errUnknown // lost on the way there
	}
	for _, s := range steps {
		if err := s.Validate(); err != nil {
			return err
		}
		r, ok := kv.rows[string(s.Key)]
		switch {
		case s.Code == wire.OpCheckAbsent && ok, s.Code == wire.OpCheckVersion && r.Version != s.Arg:
			return ErrConflict
		}
	}
	for _, s := range steps {
		kv.version++
		switch s.Code {
		case wire.OpPut:
			kv.rows[string(s.Key)] = Row{bytes.Clone(s.Key), bytes.Clone(s.Value), kv.version}
		case wire.OpDelete:
			delete(kv.rows, string(s.Key))
		}
	}
	if roll < 0.2 {
		return errUnknown // lost on the way back
	}
	return nil
}
