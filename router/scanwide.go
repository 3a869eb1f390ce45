package router

import (
	"context"
	"sync"

	"github.com/shardd/shardd/internal/wire"
)

// wide is a scan that reads several stretches of its range at the same time and delivers them in order. A stretch, a
// leg, is what lies in one shard when its turn to be started comes; each has a cursor of its own, which finds its way
// if the shard is split or merged later.
//
//	next (the caller)   starts legs, takes pages from the first one, gives their room back
//	run (one per leg)   takes room, fetches a page, hands it over
//
// Memory: all pages that are being fetched or wait hold room. The leg whose turn it is may go over the budget by one
// page while it holds none, so that the legs behind it can never starve it.
type wide struct {
	r      *Router
	o      ScanOptions
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	room   room
	page   uint32 // bytes asked for
	from   []byte // the whole range
	to     []byte

	// The rest belongs to the caller of next.
	lo, hi []byte // on no leg yet
	given  bool   // all of it is on legs
	legs   []*leg // in the order of the scan
	held   int64  // room of the page that the caller works on, of legs[0]
	left   int    // rows until the limit, if there is one
}

// leg is one stretch. Its pages come through the channel, which is closed behind the last one; err is set before that.
type leg struct {
	c     *cursor
	pages chan page
	err   error
	held  int64 // guarded by room
}

const (
	defaultBudget = 8 << 20
	legPages      = 8 // pages of one leg that may wait
	minPage       = 4 << 10
)

func newWide(ctx context.Context, r *Router, lo, hi []byte, o ScanOptions) *wide {
	if o.Budget <= 0 {
		o.Budget = defaultBudget
	}
	w := &wide{r: r, o: o, from: lo, to: hi, lo: lo, hi: hi, left: o.Limit}
	w.page = uint32(max(minPage, min(int(r.cfg.PageBytes), o.Budget/o.Parallel)))
	w.room.init(int64(o.Budget))
	w.ctx, w.cancel = context.WithCancel(ctx)
	return w
}

func (w *wide) stop() {
	w.cancel()
	w.wg.Wait()
}

// next returns the next page in order.
func (w *wide) next() (page, error) {
	if w.held > 0 {
		w.room.give(w.legs[0], w.held)
		w.held = 0
	}
	for {
		w.start()
		if len(w.legs) == 0 {
			return page{last: true}, nil
		}
		l := w.legs[0]
		w.room.turn(l)
		p, ok := <-l.pages
		if !ok {
			if l.err != nil {
				return page{}, l.err
			}
			w.legs = w.legs[1:]
			continue
		}
		w.held = int64(len(p.rows))
		p.last = false // of its leg
		if w.o.Limit > 0 {
			if p.n >= w.left {
				p.rows, _, _, _ = walk(p.rows, w.left) // fetch has walked it
				p.last = true
			}
			w.left -= p.n
		}
		return p, nil
	}
}

// start puts shards on legs until enough are being read.
func (w *wide) start() {
	for len(w.legs) < w.o.Parallel && !w.given {
		lo, hi := w.cut()
		l := &leg{c: newCursor(w.r, lo, hi, w.o), pages: make(chan page, legPages)}
		l.c.pageBytes = w.page
		w.legs = append(w.legs, l)
		w.wg.Go(func() { w.run(l) })
	}
}

// cut takes what lies in one shard off the range. If it cannot be found out where that ends, everything goes on one leg,
// whose cursor finds its way or the error.
func (w *wide) cut() (lo, hi []byte) {
	f := flight{clip: true, lo: w.lo, hi: w.hi}
	op := wire.Op{Code: wire.OpScan, Key: w.lo, Value: w.hi}
	if w.o.Reverse {
		op.Flags = wire.FlagReverse
	}
	w.r.ready(w.ctx, &f, op)
	defer w.r.release(&f)
	lo, hi = w.lo, w.hi
	if !f.over && w.r.route(w.ctx, &f) == nil {
		if w.o.Reverse {
			lo = f.call.op.Key
		} else {
			hi = f.call.op.Value
		}
	}
	if w.o.Reverse {
		w.hi = lo
	} else {
		w.lo = hi
	}
	w.given = string(w.lo) >= string(w.hi)
	return lo, hi
}

// run reads a leg to its end.
func (w *wide) run(l *leg) {
	defer close(l.pages)
	for {
		w.room.take(w.ctx, l, int64(w.page)) // without room the context has ended, and fetch says so
		p, err := l.c.fetch(w.ctx)
		w.room.give(l, int64(w.page)-int64(len(p.rows)))
		if err != nil {
			l.err = err
			return
		}
		select {
		case l.pages <- p:
		case <-w.ctx.Done():
			_, l.err = newCursor(w.r, w.from, w.to, w.o).fetch(w.ctx) // says how
			return
		}
		if p.last {
			return
		}
	}
}

// room is the budget of a wide scan, in bytes.
type room struct {
	mu struct {
		sync.Mutex
		free    int64 // below 0: over the budget
		first   *leg  // whose turn it is
		changed chan struct{}
	}
}

func (r *room) init(n int64) { r.mu.free, r.mu.changed = n, make(chan struct{}) }

// take waits until a leg may hold n bytes more; false if ctx has ended before.
func (r *room) take(ctx context.Context, l *leg, n int64) bool {
	for {
		r.mu.Lock()
		if r.mu.free >= n || r.mu.first == l && l.held <= 0 {
			r.mu.free -= n
			l.held += n
			r.mu.Unlock()
			return true
		}
		changed := r.mu.changed
		r.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// give takes n bytes off what a leg holds; below 0 it adds.
func (r *room) give(l *leg, n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.free += n
	l.held -= n
	r.wakeLocked()
}

// turn says whose pages are wanted now.
func (r *room) turn(l *leg) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.first != l {
		r.mu.first = l
		r.wakeLocked()
	}
}

func (r *room) wakeLocked() {
	close(r.mu.changed)
	r.mu.changed = make(chan struct{})
}
