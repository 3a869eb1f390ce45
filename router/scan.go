package router

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"math"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// ScanOptions says what a Scan returns.
type ScanOptions struct {
	Reverse  bool // from the highest key down
	KeysOnly bool
	Limit    int  // rows, 0: no limit
	Prefetch bool // fetch the next page while the caller works on this one
	// Parallel is how many shards may be read at the same time, ahead of the caller; 0 or 1: one after the other.
	Parallel int
	// Budget bounds the rows that wait for the caller when Parallel is set, in bytes. Default 8 MiB. One page of the shard
	// whose turn it is may always be there.
	Budget int
	ReadMode
}

// Scan iterates over the rows of [lo, hi) in order, shard by shard in pages. Each row is linearizable as of its page;
// all together are not one snapshot. Rows are never reused, but rows of one page share memory: clone what is kept for
// long. After an error, which is an *Error, the iteration ends. When it ends, by itself or because the caller has
// enough, whatever was read ahead is called off and joined.
func (r *Router) Scan(ctx context.Context, lo, hi []byte, o ScanOptions) iter.Seq2[wire.Row, error] {
	return func(yield func(wire.Row, error) bool) {
		next, stop := r.pages(ctx, lo, hi, o)
		defer stop()
		for {
			p, err := next()
			if err != nil {
				yield(wire.Row{}, err)
				return
			}
			var row wire.Row
			for b := p.rows; len(b) > 0; {
				b, _ = wire.DecodeRow(b, &row) // fetch has walked it
				if !yield(row, nil) {
					return
				}
			}
			if p.last {
				return
			}
		}
	}
}

// pages returns what reads the pages of a scan in order, and what ends it.
func (r *Router) pages(ctx context.Context, lo, hi []byte, o ScanOptions) (next func() (page, error), stop func()) {
	if o.Parallel > 1 && bytes.Compare(lo, hi) < 0 {
		w := newWide(ctx, r, lo, hi, o)
		return w.next, w.stop
	}
	c := newCursor(r, lo, hi, o)
	if o.Prefetch {
		return c.ahead(ctx)
	}
	return func() (page, error) { return c.fetch(ctx) }, func() {}
}

func newCursor(r *Router, lo, hi []byte, o ScanOptions) *cursor {
	c := &cursor{r: r, lo: lo, hi: hi, o: o, left: math.MaxInt, pageBytes: r.cfg.PageBytes, spin: r.spin.Add(1)}
	if o.Limit > 0 {
		c.left = o.Limit
	}
	return c
}

// cursor is a scan between two pages: what remains is [lo, hi) and left rows.
type cursor struct {
	r         *Router
	lo, hi    []byte
	o         ScanOptions
	left      int
	pageBytes uint32
	spin      uint32 // so that one replica serves page after page, where any may
}

type page struct {
	rows []byte // encoded
	n    int    // their number
	last bool   // nothing follows
}

// fetch reads the next page and moves the cursor behind it. A shard that was split since the last page is found by its
// new descriptors: the cursor is a key, not a place in a shard.
func (c *cursor) fetch(ctx context.Context) (page, error) {
	f := flight{clip: true, reverse: c.o.Reverse, lo: c.lo, hi: c.hi}
	op := wire.Op{Code: wire.OpScan, Key: c.lo, Value: c.hi}
	op.Arg = wire.ScanArg(uint32(min(c.left, math.MaxUint32)), c.pageBytes)
	if c.left == math.MaxInt {
		op.Arg = wire.ScanArg(0, c.pageBytes)
	}
	if c.o.Reverse {
		op.Flags |= wire.FlagReverse
	}
	if c.o.KeysOnly {
		op.Flags |= wire.FlagKeysOnly
	}
	c.o.ReadMode.Set(&op)
	f.asked.spin = c.spin
	c.r.ready(ctx, &f, op)
	c.r.fly(ctx, &f)
	defer c.r.release(&f)
	if f.err != nil {
		return page{}, f.err
	}
	lo, hi := f.call.op.Key, f.call.op.Value // what the shard was asked for
	rows, lastKey, n, err := walk(f.answer.Payload, c.left)
	switch {
	case err != nil:
	case n > 0 && (bytes.Compare(lastKey, lo) < 0 || bytes.Compare(lastKey, hi) >= 0):
		err = fmt.Errorf("row %q outside [%q, %q)", lastKey, lo, hi)
	case n == 0 && f.answer.Flags&wire.FlagMore != 0:
		err = fmt.Errorf("page without rows says that more follow")
	}
	if err != nil {
		f.fail(ErrUnavailable, fmt.Errorf("%s sent a bad page: %w", f.store, err))
		return page{}, f.err
	}
	c.left -= n
	more := f.answer.Flags&wire.FlagMore != 0
	switch {
	case c.o.Reverse && more:
		c.hi = lastKey
	case c.o.Reverse:
		c.hi = lo
	case more:
		c.lo = successor(lastKey)
	default:
		c.lo = hi
	}
	return page{rows: rows, n: n, last: c.left <= 0 || bytes.Compare(c.lo, c.hi) >= 0}, nil
}

// ahead returns a fetch that has the next page read while the caller works on this one, and what ends and joins it.
func (c *cursor) ahead(ctx context.Context) (next func() (page, error), stop func()) {
	type result struct {
		page
		err error
	}
	var pending chan result
	cancel := func() {}
	next = func() (page, error) {
		var res result
		if pending != nil {
			res = <-pending
			pending = nil
		} else {
			res.page, res.err = c.fetch(ctx)
		}
		cancel()
		if res.err == nil && !res.last {
			var fetchCtx context.Context
			fetchCtx, cancel = context.WithCancel(ctx)
			ch := make(chan result, 1)
			go func() {
				var r result
				r.page, r.err = c.fetch(fetchCtx)
				ch <- r
			}()
			pending = ch
		}
		return res.page, res.err
	}
	return next, func() {
		cancel()
		if pending != nil {
			<-pending
		}
	}
}

// walk checks the rows of a page and returns at most most of them, the last key and their number.
func walk(payload []byte, most int) (rows, lastKey []byte, n int, err error) {
	var row wire.Row
	b := payload
	for len(b) > 0 && n < most {
		if b, err = wire.DecodeRow(b, &row); err != nil {
			return nil, nil, 0, err
		}
		n++
	}
	return payload[:len(payload)-len(b)], row.Key, n, nil
}

// successor returns the smallest routing key above k that the limits allow. A key of the largest size has no
// extension, so what follows it is the next key that does not start with it.
func successor(k []byte) []byte {
	if len(k) > base.MaxKeySize {
		return base.PrefixEnd(k)
	}
	return append(k[:len(k):len(k)], 0)
}

// DeleteRange removes every key of [lo, hi), one shard after the other, and returns how many shards took part. It is
// atomic within a shard only; on error the shards before the failed one are done.
func (r *Router) DeleteRange(ctx context.Context, lo, hi []byte) (shards int, err error) {
	for {
		f := flight{clip: true, lo: lo, hi: hi}
		r.ready(ctx, &f, wire.Op{Code: wire.OpDeleteRange, Key: lo, Value: hi})
		r.fly(ctx, &f)
		lo = f.call.op.Value
		r.release(&f)
		if f.err != nil {
			return shards, f.err
		}
		shards++
		if bytes.Compare(lo, hi) >= 0 {
			return shards, nil
		}
	}
}

// Shards returns the shards that overlap [lo, hi) in key order, as the Directory knows them.
func (r *Router) Shards(ctx context.Context, lo, hi []byte) ([]Route, error) {
	var out []Route
	f := flight{clip: true, lo: lo, hi: hi}
	r.ready(ctx, &f, wire.Op{Code: wire.OpScan, Key: lo, Value: hi})
	defer r.release(&f)
	ctx, cancel := context.WithDeadline(ctx, f.deadline)
	defer cancel()
	for at := lo; !f.over && bytes.Compare(at, hi) < 0; {
		lookCtx, stop := context.WithTimeout(ctx, r.cfg.LookupTimeout)
		routes, err := r.cfg.Directory.Lookup(lookCtx, at, false)
		stop()
		before := len(out)
		for _, rt := range routes {
			r.cache.insert(rt.Desc, rt.Leader, 0)
			if rt.Desc.Contains(at) && bytes.Compare(at, hi) < 0 {
				out, at = append(out, rt), rt.Desc.End
			}
		}
		if len(out) > before {
			continue
		}
		if err == nil {
			err = fmt.Errorf("the directory knows no shard for %q", at)
		}
		f.attempts++
		f.out = outcome{err: fmt.Errorf("look up shards: %w: %w", err, ErrNotSent)}
		r.judge(ctx, &f)
		if !f.over {
			r.pause(ctx, f.delay)
		}
	}
	return out, f.err
}
