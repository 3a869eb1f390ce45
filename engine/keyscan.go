package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sort"

	"github.com/cockroachdb/pebble/v2"
	"golang.org/x/time/rate"
)

// A scan of keys reads no values that are stored apart, and keeps a bounded table of keys at about even distances in
// bytes: once it is full every second key is dropped and the distance doubled.

const (
	scanTableKeys  = 1024
	scanTableBytes = 4 << 20
	// scanStep is how much is scanned between two looks at the limit, scanStretch how much with one iterator: it holds
	// files and memtables that would be gone otherwise.
	scanStep    = 64 << 10
	scanStretch = 16 << 20
)

// keyTable says how many bytes of keys and values lie below some of a range's keys.
type keyTable struct {
	marks []keyMark
	bytes int    // of the marks' keys
	gap   uint64 // between two marks, at least
	keys  int    // seen
	total uint64
}

type keyMark struct {
	key   []byte
	below uint64
}

func (t *keyTable) add(key []byte, size uint64) {
	if n := len(t.marks); n == 0 || t.total-t.marks[n-1].below >= t.gap {
		for n > 1 && (n == scanTableKeys || t.bytes+len(key) > scanTableBytes) {
			n = t.thin()
		}
		if n == 0 || t.total-t.marks[n-1].below >= t.gap {
			t.marks = append(t.marks, keyMark{bytes.Clone(key), t.total})
			t.bytes += len(key)
		}
	}
	t.keys++
	t.total += size
}

// thin drops every second mark and returns how many are left.
func (t *keyTable) thin() int {
	n := 0
	t.bytes = 0
	for i := 0; i < len(t.marks); i += 2 {
		t.marks[n] = t.marks[i]
		t.bytes += len(t.marks[n].key)
		n++
	}
	clear(t.marks[n:])
	t.marks = t.marks[:n]
	t.gap = max(2*t.gap, 2*t.total/scanTableKeys, 1)
	return n
}

// before returns the bytes below a key, as far as the marks tell.
func (t *keyTable) before(key []byte) uint64 {
	i := sort.Search(len(t.marks), func(i int) bool { return bytes.Compare(t.marks[i].key, key) >= 0 })
	if i == len(t.marks) {
		return t.total
	}
	return t.marks[i].below
}

// at returns the mark with about so many bytes below it. There is one.
func (t *keyTable) at(target uint64) []byte {
	i := sort.Search(len(t.marks), func(i int) bool { return t.marks[i].below >= target })
	if i == len(t.marks) || i > 0 && distance(t.marks[i-1].below, target) < distance(t.marks[i].below, target) {
		i--
	}
	return t.marks[i].key
}

// scanKeys reads the keys of a range once, at most so many bytes per second.
func (e *Engine) scanKeys(ctx context.Context, lo, hi []byte, perSecond int) (*keyTable, error) {
	limit := rate.NewLimiter(rate.Limit(perSecond), max(scanStep, perSecond/10))
	t := &keyTable{}
	for lo != nil {
		var err error
		if lo, err = e.scanStretch(ctx, lo, hi, limit, t); err != nil {
			return nil, fmt.Errorf("scan keys: %w", err)
		}
	}
	return t, nil
}

// scanStretch adds the keys from lo on and returns where to go on; nil at the end.
func (e *Engine) scanStretch(
	ctx context.Context, lo, hi []byte, limit *rate.Limiter, t *keyTable,
) (next []byte, err error) {
	it, err := e.db.NewIter(&pebble.IterOptions{LowerBound: lo, UpperBound: hi})
	if err != nil {
		return nil, readError(err)
	}
	defer func() { err = errors.Join(err, readError(it.Close())) }()
	read, step := 0, 0
	for ok := it.First(); ok; ok = it.Next() {
		if read >= scanStretch {
			return bytes.Clone(it.Key()), nil
		}
		v := it.LazyValue()
		size := len(it.Key()) + v.Len()
		cost := size
		if v.Fetcher != nil {
			cost = len(it.Key()) // the value lies elsewhere
		}
		t.add(it.Key(), uint64(size))
		read += cost
		if step += cost; step >= scanStep {
			if err := limit.WaitN(ctx, min(step, limit.Burst())); err != nil {
				return nil, err
			}
			step = 0
		}
	}
	return nil, ctx.Err()
}

// CountBytes adds up the keys and values of a range that has at most so many keys, without reading values that lie in
// blob files; whole is false if it has more. It is exact where ApproxBytes is not: one block of keys may stand for all the
// values of a small range of large ones.
func (e *Engine) CountBytes(lo, hi []byte, most int) (n uint64, whole bool) {
	it, err := e.db.NewIter(&pebble.IterOptions{LowerBound: lo, UpperBound: hi})
	if err != nil {
		return 0, false
	}
	keys := 0
	for ok := it.First(); ok; ok = it.Next() {
		if keys++; keys > most {
			break
		}
		v := it.LazyValue()
		n += uint64(len(it.Key()) + v.Len())
	}
	return n, it.Close() == nil && keys <= most
}
