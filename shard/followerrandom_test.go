package shard

import (
	"testing"
	"time"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// farReads are the reads that the random tests do at whatever replica, with whatever descriptor, and what they may
// return.
type farReads struct {
	past   map[string][]pastValue
	recent []string // keys, the last one written last
	open   []farRead
	served int
	old    int // of served: with a value that was no longer the last one
}

// pastValue is a value and when it came to be: not before began, and by done for certain.
type pastValue struct {
	value       string // "": absent
	began, done time.Duration
}

type farRead struct {
	n     *testNode
	store *Store
	op    wire.Op
	key   string
	req   uint64
	a     *answers
	call  time.Duration
	age   time.Duration
}

func (f *farReads) wrote(key, value string, began, done time.Duration) {
	if f.past == nil {
		f.past = map[string][]pastValue{}
	}
	f.past[key] = append(f.past[key], pastValue{value, began, done})
	if f.recent = append(f.recent, key); len(f.recent) > 4 {
		f.recent = f.recent[1:]
	}
}

// may reports whether a value could be read: it was there at some time between from and to.
func (f *farReads) may(key, value string, from, to time.Duration) (may, last bool) {
	all := append([]pastValue{{}}, f.past[key]...)
	for i, v := range all {
		ended := i+1 < len(all) && all[i+1].done <= from
		if v.value == value && v.began <= to && !ended {
			return true, i == len(all)-1
		}
	}
	return false, false
}

// readSomewhere starts a read of a key that was written lately, and looks at those that have come through. Now and then
// questions are held back, or get lost.
func (w *worldOf) readSomewhere(q *asker) {
	w.far.reap(w.c)
	switch w.rng.IntN(12) {
	case 0:
		q.hold, q.cut = true, false
	case 1:
		q.hold, q.cut = false, true
	case 2, 3, 4:
		q.hold, q.cut = false, false
		q.release()
	}
	if len(w.far.recent) == 0 {
		return
	}
	for range 3 {
		key := w.far.recent[w.rng.IntN(len(w.far.recent))]
		n := w.c.nodes[base.StoreID(1+w.rng.IntN(3))]
		d := w.someRoute(base.UserKey([]byte(key)))
		if n.store == nil || d == nil {
			continue
		}
		r := farRead{n: n, store: n.store, key: key, a: newAnswers(w.c.t), call: w.c.clock.Boot()}
		r.age = []time.Duration{0, 50, 300, 2000, 20_000}[w.rng.IntN(5)] * time.Millisecond
		r.op = wire.Op{Code: wire.OpGet, Shard: d.Shard, Version: d.Epoch.Version, Key: base.UserKey([]byte(key))}
		r.req = w.c.anyRead(n, d.Shard, d.Epoch.Version, r.age, r.a)
		w.far.open = append(w.far.open, r)
	}
	w.far.reap(w.c)
}

// someRoute returns one of the descriptors for a key that the stores have, old ones among them.
func (w *worldOf) someRoute(key []byte) *base.Descriptor {
	var all []*base.Descriptor
	w.c.each(func(n *testNode) {
		n.store.mu.RLock()
		defer n.store.mu.RUnlock()
		n.store.mu.ranges.overlapping(key, nil, func(d *base.Descriptor) bool {
			if d.Contains(key) {
				all = append(all, d)
			}
			return true
		})
	})
	if len(all) == 0 {
		return nil
	}
	return all[w.rng.IntN(len(all))]
}

// reap reads what may be read by now, and checks it. What a store that has crashed was asked for is forgotten.
func (f *farReads) reap(c *cluster) {
	c.t.Helper()
	keep := f.open[:0]
	for _, r := range f.open {
		switch code := r.a.code(r.req); {
		case r.n.store != r.store:
		case code == open:
			keep = append(keep, r)
		case code == wire.OK:
			f.check(c, &r)
		}
	}
	f.open = keep
}

func (f *farReads) check(c *cluster, r *farRead) {
	c.t.Helper()
	var a wire.Answer
	if _, err := wire.DecodeAnswer(r.store.Read(&r.op, nil), &a); err != nil {
		c.t.Fatal(err)
	}
	if a.Code != wire.OK && a.Code != wire.NotFound {
		return
	}
	f.served++
	now := c.clock.Boot()
	may, last := f.may(r.key, string(a.Payload), r.call-r.age, now)
	if !may {
		c.t.Errorf("store %s served %q for %s at version %d of %s, asked for at %s with a bound of %s, read at %s: %v",
			r.n.id, a.Payload, r.key, r.op.Version, r.op.Shard, r.call, r.age, now, f.past[r.key])
	}
	if !last {
		f.old++
	}
}

// enough fails the test if next to nothing was read.
func (f *farReads) enough(t *testing.T) {
	t.Helper()
	t.Logf("%d reads at any replica, %d of them of an old value", f.served, f.old)
	if f.served < 30 {
		t.Errorf("too few reads at any replica to prove anything")
	}
}
