package apply

import (
	"bytes"

	"github.com/google/btree"
)

// current is what a key holds as a condition sees it; version 0 means absent. value is valid until the next lookup.
type current struct {
	version uint64
	value   []byte
}

// lookup returns what key holds after all writes so far. Those before mark are certain; those from mark on belong to
// the Batch at hand and may yet be taken back.
func (r *run) lookup(key []byte, mark int) (current, error) {
	r.own.index(r.writes, mark, len(r.writes))
	if cur, ok := r.own.find(r.writes, key); ok {
		return cur, nil
	}
	r.seen.index(r.writes, 0, mark)
	if cur, ok := r.seen.find(r.writes, key); ok {
		return cur, nil
	}
	h, value, ok, err := r.m.engine.GetOnce(key, r.readBuf[:0])
	if err != nil {
		return current{}, err
	}
	if !ok {
		return current{}, nil
	}
	r.readBuf = value
	return current{version: h.Version, value: value}, nil
}

// overlay indexes a stretch of the list of writes by key. Its cost is paid by conditions only: index catches up with
// the list when one asks. Both index and find are logarithmic at worst, since a client chooses the number of steps.
type overlay struct {
	started bool
	next    int            // first write not yet indexed
	points  map[string]int // key -> its last put or delete
	spans   *btree.BTreeG[span]
}

// span is a deleted range [lo, hi) and the write that deleted it last. The spans of an overlay are disjoint.
type span struct {
	lo, hi []byte
	at     int
}

// index takes in writes[from:to], or what it does not know of it yet.
func (o *overlay) index(writes []write, from, to int) {
	if !o.started {
		if from == to {
			return
		}
		o.started, o.next = true, from
		if o.points == nil {
			o.points = make(map[string]int)
		}
	}
	for ; o.next < to; o.next++ {
		w := &writes[o.next]
		if w.kind == writeRange {
			o.cover(span{lo: w.key, hi: w.value, at: o.next})
		} else {
			o.points[string(w.key)] = o.next
		}
	}
}

// cover puts n over whatever the tree has there. The parts of older spans that stick out stay.
func (o *overlay) cover(n span) {
	if o.spans == nil {
		o.spans = btree.NewG(16, func(a, b span) bool { return bytes.Compare(a.lo, b.lo) < 0 })
	}
	var hit []span
	o.spans.DescendLessOrEqual(span{lo: n.lo}, func(s span) bool {
		if bytes.Compare(s.hi, n.lo) > 0 {
			hit = append(hit, s)
		}
		return false
	})
	o.spans.AscendRange(span{lo: n.lo}, span{lo: n.hi}, func(s span) bool {
		if len(hit) == 0 || !bytes.Equal(hit[0].lo, s.lo) {
			hit = append(hit, s)
		}
		return true
	})
	for _, s := range hit {
		o.spans.Delete(s)
		if bytes.Compare(s.lo, n.lo) < 0 {
			o.spans.ReplaceOrInsert(span{lo: s.lo, hi: n.lo, at: s.at})
		}
		if bytes.Compare(s.hi, n.hi) > 0 {
			o.spans.ReplaceOrInsert(span{lo: n.hi, hi: s.hi, at: s.at})
		}
	}
	o.spans.ReplaceOrInsert(n)
}

// find returns what the indexed writes left under key; ok is false if none of them touched it.
func (o *overlay) find(writes []write, key []byte) (cur current, ok bool) {
	if !o.started {
		return current{}, false
	}
	at, ok := o.points[string(key)]
	if o.spans != nil {
		o.spans.DescendLessOrEqual(span{lo: key}, func(s span) bool {
			if bytes.Compare(key, s.hi) < 0 && (!ok || s.at > at) {
				at, ok = s.at, true
			}
			return false
		})
	}
	if !ok || writes[at].kind != writePut {
		return current{}, ok
	}
	return current{version: writes[at].stamp, value: writes[at].value}, true
}

// reset forgets everything. It keeps a map that held at most keep keys: clearing costs what the map once held.
func (o *overlay) reset(keep int) {
	if !o.started {
		return
	}
	if len(o.points) > keep {
		o.points = nil
	} else {
		clear(o.points)
	}
	*o = overlay{points: o.points}
}
