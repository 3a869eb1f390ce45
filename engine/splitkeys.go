package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/bits"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"github.com/shardd/shardd/internal/base"
)

// Where to divide a range by its bytes. Measure: what Pebble's tables hold below a key, if they hold most of the range;
// otherwise one throttled scan of the keys (keyscan.go). Find: for each border, bisect between the first and the last key
// until the bytes below are right; the candidates are real keys, found by seeks. Place: move the border to where it cuts
// no group of keys, and shorten it. A border by the tables that is far off, or may be, is not used: then the keys are
// scanned after all.
//
// Pebble counts every block whole that it cannot tell to be outside. With values in blob files a block of keys stands
// for about a thousand values, and each level has one at the border. So what lies below a key and what lies above add
// up to more than the whole, by what is in doubt; half of it belongs to either side on average.

// ErrOneGroup is returned by SplitKeys for a range whose keys all belong together. Dividing it needs another rule.
var ErrOneGroup = errors.New("all keys of the range are one group that must stay together")

// ErrTooFewKeys is returned by SplitKeys for a range with less than two keys.
var ErrTooFewKeys = errors.New("the range has less than two keys")

// SplitOptions say into what a range is to be divided.
type SplitOptions struct {
	// Parts is how many parts of about equal bytes there should be; 0: as many as TargetBytes makes, at least 2.
	Parts int
	// TargetBytes is what a part should be well below, in bytes: parts are about three quarters of it at most, or the
	// next bytes written would make them due again.
	TargetBytes uint64
	// MaxKeys bounds the keys of one answer, 64: a range that is far too large is divided in several rounds.
	MaxKeys int
	// SizeBytes is how large the caller knows the range to be, memtables included; 0 if it does not know.
	SizeBytes uint64
	// Groups are keys that stay together.
	Groups []KeyGroup
	// ScanBytesPerSecond bounds a scan of the keys, 64 MiB; values in blob files are not read.
	ScanBytesPerSecond int
}

func (o SplitOptions) withDefaults() SplitOptions {
	if o.MaxKeys == 0 {
		o.MaxKeys = 64
	}
	if o.ScanBytesPerSecond == 0 {
		o.ScanBytesPerSecond = 64 << 20
	}
	return o
}

// parts is the number of parts for so many bytes.
func (o *SplitOptions) parts(size uint64) int {
	n := o.Parts
	if n == 0 {
		n = 2
		if part := o.TargetBytes / 4 * 3; part > 0 {
			n = int(min((size+part-1)/part, uint64(o.MaxKeys)+1))
		}
	}
	return min(max(n, 2), o.MaxKeys+1)
}

// Division is a range divided.
type Division struct {
	Keys  [][]byte // routing keys, ascending, strictly inside the range; with groups there may be fewer than wanted
	Bytes []uint64 // of the parts, one more than keys, about
	// Scanned reports that the keys were scanned.
	Scanned bool
}

const (
	// bisectBytes is the least that tables must hold for their estimates to be used; less is scanned in a moment.
	bisectBytes = 8 << 20
	// bisectSteps bounds the search for one border. Each step halves what is between the candidates.
	bisectSteps = 256
)

// SplitKeys returns keys that divide the data in [lo, hi), in one data family, into parts of about equal bytes, none in
// a group of keys. It takes milliseconds, or as long as a scan of the keys does within its limit. It fails with
// ErrTooFewKeys or ErrOneGroup if there is no such key, with ErrInvalidKey for bad bounds, with the context's error.
func (e *Engine) SplitKeys(ctx context.Context, lo, hi []byte, o SplitOptions) (Division, error) {
	d, err := e.splitKeys(ctx, lo, hi, o.withDefaults())
	if err != nil {
		return Division{}, fmt.Errorf("divide [%x, %x): %w", lo, hi, err)
	}
	return d, nil
}

func (e *Engine) splitKeys(ctx context.Context, lo, hi []byte, o SplitOptions) (Division, error) {
	if !isDataKey(lo) || string(lo) >= string(hi) || string(hi) > string([]byte{lo[0] + 1}) {
		return Division{}, ErrInvalidKey
	}
	for i := range o.Groups {
		if g := &o.Groups[i]; len(g.Delimiter) == 0 || g.Count < 1 {
			return Division{}, errors.New("a group of keys needs a delimiter and a count")
		}
	}
	s := &splitter{e: e, lo: lo, hi: hi, o: &o}
	total := e.ApproxBytes(lo, hi)
	if total >= bisectBytes && total >= o.SizeBytes/2 {
		out, err := s.byTables(ctx, total)
		if err != nil || out.Keys != nil {
			return out, err
		}
	}
	t, err := e.scanKeys(ctx, lo, hi, o.ScanBytesPerSecond)
	if err != nil {
		return Division{}, err
	}
	if t.keys < 2 {
		return Division{}, ErrTooFewKeys
	}
	s.before = t.before
	// What the tables hold besides keys and values, of old versions say, is spread as they are. How much that is the caller's
	// size tells: of a small range the tables say far too much.
	out, err := s.divide(ctx, t.total, o.parts(max(o.SizeBytes, t.total)), func(target uint64) ([]byte, error) {
		return t.at(target), nil
	})
	out.Scanned = true
	return out, err
}

// splitter is one call of SplitKeys.
type splitter struct {
	e      *Engine
	lo, hi []byte
	o      *SplitOptions
	it     *pebble.Iterator
	before func(key []byte) uint64 // bytes below a key
}

// byTables divides by the estimates of the tables. Without keys and error they turned out to be too rough.
func (s *splitter) byTables(ctx context.Context, total uint64) (out Division, err error) {
	doubt := uint64(0)
	s.before = func(key []byte) uint64 {
		below, above := s.e.ApproxBytes(s.lo, key), s.e.ApproxBytes(key, s.hi)
		doubt = max(below+above, total) - total
		return (below + total - min(above, total)) / 2
	}
	parts := s.o.parts(max(total, s.o.SizeBytes))
	part := total / uint64(parts)
	rough := false
	out, err = s.divide(ctx, total, parts, func(target uint64) ([]byte, error) {
		key, err := s.bisect(ctx, target, part/50)
		if err == nil {
			off := distance(s.before(key), target) // sets doubt
			rough = rough || off+doubt/2 > part/4
		}
		return key, err
	})
	if rough && (err == nil || errors.Is(err, ErrOneGroup)) {
		return Division{}, nil
	}
	return out, err
}

// divide finds a key for each border and places it.
func (s *splitter) divide(
	ctx context.Context, total uint64, parts int, find func(target uint64) ([]byte, error),
) (out Division, err error) {
	s.it, err = s.e.db.NewIter(&pebble.IterOptions{LowerBound: s.lo, UpperBound: s.hi})
	if err != nil {
		return out, readError(err)
	}
	defer func() {
		if cerr := s.it.Close(); err == nil {
			err = readError(cerr)
		}
	}()
	if !s.it.First() {
		return out, errors.Join(ErrTooFewKeys, readError(s.it.Error()))
	}
	first := bytes.Clone(s.it.Key())
	if !s.it.Next() {
		return out, errors.Join(ErrTooFewKeys, readError(s.it.Error()))
	}
	at := uint64(0)
	for i := 1; i < parts; i++ {
		target := uint64(float64(total) * float64(i) / float64(parts))
		key, err := find(target)
		if err != nil {
			return out, err
		}
		if key, err = s.place(key, first, target); err != nil {
			return out, err
		}
		if key == nil || len(out.Keys) > 0 && bytes.Compare(key, out.Keys[len(out.Keys)-1]) <= 0 {
			continue // a group, or a single value, larger than a part
		}
		below := min(s.before(key), total)
		out.Keys = append(out.Keys, key)
		out.Bytes = append(out.Bytes, below-min(at, below))
		at = below
	}
	if len(out.Keys) == 0 {
		return out, ErrOneGroup
	}
	out.Bytes = append(out.Bytes, total-min(at, total))
	return out, ctx.Err()
}

// bisect returns a key of the range with about target bytes below it, to within a tolerance if there is one.
func (s *splitter) bisect(ctx context.Context, target, tolerance uint64) ([]byte, error) {
	if !s.it.First() {
		return nil, errors.Join(ErrTooFewKeys, readError(s.it.Error()))
	}
	low := bytes.Clone(s.it.Key())
	if !s.it.Last() {
		return nil, errors.Join(ErrTooFewKeys, readError(s.it.Error()))
	}
	high := bytes.Clone(s.it.Key())
	best, off := low, distance(s.before(low), target)
	// try makes a key one end of what is still to be searched.
	try := func(key []byte) {
		key = bytes.Clone(key)
		n := s.before(key)
		if d := distance(n, target); d < off {
			best, off = key, d
		}
		if n < target {
			low = key
		} else {
			high = key
		}
	}
	try(high)
	for range bisectSteps {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		mid, ok := midpoint(low, high)
		if !ok || off <= tolerance {
			break
		}
		switch {
		case s.it.SeekGE(mid) && bytes.Compare(s.it.Key(), high) < 0:
			try(s.it.Key())
		case s.it.SeekLT(mid) && bytes.Compare(s.it.Key(), low) > 0:
			try(s.it.Key())
		default: // nothing lies between them
			return best, readError(s.it.Error())
		}
	}
	return best, readError(s.it.Error())
}

func distance(a, b uint64) uint64 { return max(a, b) - min(a, b) }

// midpoint returns a key about half-way between two keys, and false if there is none that can be told from them in the
// sixteen bytes behind what they have in common.
func midpoint(a, b []byte) ([]byte, bool) {
	n := commonPrefix(a, b)
	x, y := wide(a[n:]), wide(b[n:])
	lo, carry := bits.Add64(x[1], y[1], 0)
	hi, carry := bits.Add64(x[0], y[0], carry)
	mid := append(make([]byte, 0, n+16), a[:n]...)
	for _, v := range [...]uint64{carry<<63 | hi>>1, hi<<63 | lo>>1} {
		for shift := 56; shift >= 0; shift -= 8 {
			mid = append(mid, byte(v>>shift))
		}
	}
	return mid, bytes.Compare(a, mid) < 0 && bytes.Compare(mid, b) < 0
}

// wide reads sixteen bytes as a number, missing ones as zero.
func wide(b []byte) (v [2]uint64) {
	for i := range 16 {
		v[i/8] <<= 8
		if i < len(b) {
			v[i/8] |= uint64(b[i])
		}
	}
	return v
}

func commonPrefix(a, b []byte) int {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}

// place returns where to divide near a key: at the start of its group or of the next one, whichever is nearer to the
// target, in the fewest bytes. nil: nowhere.
func (s *splitter) place(key, first []byte, target uint64) ([]byte, error) {
	var at []byte
	if start := s.groupStart(key); bytes.Compare(start, first) > 0 { // something is left of it
		at = start
	}
	if s.groupOf(key) != nil || at == nil {
		next := append(bytes.Clone(key), 0)
		if p := s.groupOf(key); p != nil {
			next = base.PrefixEnd(p)
		}
		// Groups do not overlap: the next one's start is behind this one's end.
		if bytes.Compare(next, s.hi) < 0 && s.it.SeekGE(next) {
			start := s.groupStart(s.it.Key())
			if at == nil || distance(s.before(start), target) < distance(s.before(at), target) {
				at = bytes.Clone(start)
			}
		}
	}
	if at == nil {
		return nil, readError(s.it.Error())
	}
	return s.shorten(bytes.Clone(at))
}

func (s *splitter) groupOf(key []byte) []byte { return groupOf(key, s.o.Groups) }

func (s *splitter) groupStart(key []byte) []byte {
	start, _ := GroupStart(key, s.o.Groups)
	return start
}

// shorten returns the shortest key that divides the data as this one does, unless that lies in a group.
func (s *splitter) shorten(key []byte) ([]byte, error) {
	if !s.it.SeekLT(key) {
		return key, readError(s.it.Error())
	}
	short := key[:min(commonPrefix(s.it.Key(), key)+1, len(key))]
	if bytes.Equal(s.groupStart(short), short) {
		return slices.Clip(short), nil
	}
	return key, nil
}
