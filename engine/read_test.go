package engine

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/shardd/shardd/internal/base"
)

func TestIteratorsStayInTheirBoundsBothWays(t *testing.T) {
	e := newEngine(t)
	const n = 200
	commit(t, e, false, func(b *Batch) {
		b.CreateReplica(testDesc(5, "a", "z"), 1, 9, []KV{{Key: []byte("\x02m"), Value: []byte("first")}})
		for i := range n {
			b.Put(userKey(i), ValueHeader{Flags: 3, Version: uint64(i)}, userValue(i))
		}
		b.Put([]byte{base.SpaceSystem, 1}, ValueHeader{Version: 1}, []byte("system"))
	})
	for _, c := range []struct{ lo, hi int }{{0, n}, {0, 1}, {17, 99}, {50, 50}, {n, n + 5}} {
		for _, reverse := range []bool{false, true} {
			t.Run(fmt.Sprintf("[%d,%d)reverse=%t", c.lo, c.hi, reverse), func(t *testing.T) {
				it, err := e.NewIter(userKey(c.lo), userKey(c.hi), reverse)
				if err != nil {
					t.Fatal(err)
				}
				var got []int
				for ; it.Valid(); it.Next() {
					i := int(it.Header().Version)
					if !bytes.Equal(it.Key(), userKey(i)) || !bytes.Equal(it.Value(), userValue(i)) ||
						it.Header().Flags != 3 {
						t.Fatalf("key %q has the value of %d", it.Key(), i)
					}
					got = append(got, i)
				}
				if it.Next() {
					t.Fatal("moved past the end")
				}
				if err := it.Close(); err != nil {
					t.Fatal(err)
				}
				var want []int
				for i := c.lo; i < min(c.hi, n); i++ {
					want = append(want, i)
				}
				if reverse {
					slices.Reverse(want)
				}
				if !slices.Equal(got, want) {
					t.Fatalf("got %v, want %v", got, want)
				}
			})
		}
	}
	if _, err := e.NewIter(nil, userKey(1), false); !errors.Is(err, ErrInvalidKey) {
		t.Fatal("an unbounded iterator was opened", err)
	}
	h, v, ok, err := e.Get([]byte("\x02m"), []byte("buf-"))
	if err != nil || !ok || h.Version != 9 || string(v) != "buf-first" {
		t.Fatal(h, string(v), ok, err)
	}
	if _, v, ok, err := e.Get([]byte("\x02nothing"), []byte("buf-")); err != nil || ok || string(v) != "buf-" {
		t.Fatal(string(v), ok, err)
	}
}

func TestAnOpenIteratorIsAView(t *testing.T) {
	e := newEngine(t)
	commit(t, e, false, func(b *Batch) {
		for i := range 10 {
			b.Put(userKey(i), ValueHeader{Version: 1}, userValue(i))
		}
	})
	it, err := e.NewIter(userKey(0), userKey(100), false)
	if err != nil {
		t.Fatal(err)
	}
	commit(t, e, false, func(b *Batch) {
		b.DeleteRange(userKey(0), userKey(5))
		b.Delete(userKey(7))
		b.Put(userKey(8), ValueHeader{Version: 2}, nil)
		b.Put(userKey(20), ValueHeader{Version: 2}, nil)
	})
	if err := e.db.Flush(); err != nil {
		t.Fatal(err)
	}
	n := 0
	for ; it.Valid(); it.Next() {
		if it.Header().Version != 1 || !bytes.Equal(it.Value(), userValue(n)) {
			t.Fatalf("a later write is seen at %q", it.Key())
		}
		n++
	}
	if err := it.Close(); err != nil || n != 10 {
		t.Fatal(n, err)
	}
	it, err = e.NewIter(userKey(0), userKey(100), true)
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	for ; it.Valid(); it.Next() {
		keys = append(keys, string(it.Key()[4:]))
	}
	if err := it.Close(); err != nil || fmt.Sprint(keys) != "[000020 000009 000008 000006 000005]" {
		t.Fatal(keys, err)
	}
}

func TestWritesOutsideTheDataFamiliesAreRefused(t *testing.T) {
	e := newEngine(t)
	for name, write := range map[string]func(b *Batch){
		"put below":        func(b *Batch) { b.Put(identKey(), ValueHeader{}, nil) },
		"put above":        func(b *Batch) { b.Put([]byte{4}, ValueHeader{}, nil) },
		"put empty":        func(b *Batch) { b.Put(nil, ValueHeader{}, nil) },
		"put reserved bit": func(b *Batch) { b.Put(userKey(1), ValueHeader{Flags: 0x80}, nil) },
		"delete":           func(b *Batch) { b.Delete([]byte{1, 2}) },
		"range inverted":   func(b *Batch) { b.DeleteRange(userKey(2), userKey(1)) },
		"range empty":      func(b *Batch) { b.DeleteRange(userKey(2), userKey(2)) },
		"range families":   func(b *Batch) { b.DeleteRange(userKey(2), []byte{3, 1}) },
	} {
		t.Run(name, func(t *testing.T) {
			b := e.NewBatch()
			defer b.Close()
			b.Put(userKey(9), ValueHeader{}, nil)
			write(b)
			if err := e.Commit(b, false); !errors.Is(err, ErrInvalidKey) || !errors.Is(b.Err(), ErrInvalidKey) {
				t.Fatal(err)
			}
			if _, _, ok, err := e.Get(userKey(9), nil); ok || err != nil {
				t.Fatal("part of a refused batch was written", err)
			}
		})
	}
	commit(t, e, false, func(b *Batch) { b.DeleteRange(base.UserStart(), base.UserEnd()) })
}

func TestLaterWritesOfABatchWin(t *testing.T) {
	e := newEngine(t)
	commit(t, e, true, func(b *Batch) {
		if !b.Empty() {
			t.Fatal("a new batch is not empty")
		}
		b.Put(userKey(1), ValueHeader{Version: 1}, []byte("old"))
		b.Put(userKey(1), ValueHeader{Version: 2, Expiry: 77}, []byte("new"))
		b.Put(userKey(2), ValueHeader{Version: 1}, []byte("gone"))
		b.Delete(userKey(2))
		b.Put(userKey(3), ValueHeader{Version: 1}, []byte("gone"))
		b.DeleteRange(userKey(3), userKey(4))
		if b.Empty() || b.Len() < 50 {
			t.Fatal("a filled batch looks empty")
		}
	})
	h, v, ok, err := e.Get(userKey(1), nil)
	if err != nil || !ok || h != (ValueHeader{Version: 2, Expiry: 77}) || string(v) != "new" {
		t.Fatal(h, string(v), ok, err)
	}
	for _, i := range []int{2, 3} {
		if _, _, ok, err := e.Get(userKey(i), nil); ok || err != nil {
			t.Fatal(i, ok, err)
		}
	}
}
