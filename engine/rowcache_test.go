package engine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2"
)

// rowOf reads a key and says whether the row cache had it.
func rowOf(t testing.TB, e *Engine, key []byte) (value string, found, cached bool) {
	t.Helper()
	before, _ := e.rows.counts()
	_, v, ok, err := e.Get(key, []byte("before"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasPrefix(v, []byte("before")) {
		t.Fatalf("what was in the buffer is gone: %q", v)
	}
	after, _ := e.rows.counts()
	return string(v[len("before"):]), ok, after > before
}

// warm reads a key until the row cache has it.
func warm(t testing.TB, e *Engine, key []byte) {
	t.Helper()
	for range 3 {
		if _, _, cached := rowOf(t, e, key); cached {
			return
		}
	}
	t.Fatalf("row %q is not kept", key)
}

func TestARowThatIsReadAgainIsKeptWithItsHeader(t *testing.T) {
	e := newEngine(t)
	h := ValueHeader{Flags: 3, Version: 77, Expiry: 99}
	commit(t, e, false, func(b *Batch) { b.Put(userKey(1), h, []byte("one")) })
	if _, _, cached := rowOf(t, e, userKey(1)); cached {
		t.Fatal("a row that nobody had read was there")
	}
	if e.RowCacheBytes() == 0 {
		t.Fatal("the read did not bring the row in")
	}
	got, v, ok, err := e.Get(userKey(1), nil)
	if hits, _ := e.rows.counts(); hits != 1 || err != nil || !ok || string(v) != "one" || got != h {
		t.Fatalf("%d hits: %+v %q %t %v", hits, got, v, ok, err)
	}
	v[0] = 'X' // the caller's
	if v, _, cached := rowOf(t, e, userKey(1)); v != "one" || !cached {
		t.Fatalf("%q, cached %t", v, cached)
	}
}

func TestEveryChangeDropsTheRowsThatItChanges(t *testing.T) {
	for _, sync := range []bool{false, true} {
		for _, c := range []struct {
			name   string
			change func(b *Batch)
			want   string // of key 1
			other  bool   // key 2 may be kept
		}{
			{"put", func(b *Batch) { b.Put(userKey(1), ValueHeader{}, []byte("new")) }, "new", true},
			{"delete", func(b *Batch) { b.Delete(userKey(1)) }, "", true},
			{"range", func(b *Batch) { b.DeleteRange(userKey(1), userKey(2)) }, "", true},
			{"many ranges", func(b *Batch) {
				for range maxRanges + 1 {
					b.DeleteRange(userKey(1), userKey(2))
				}
			}, "", false},
			{"last of two", func(b *Batch) { b.Delete(userKey(1)); b.Put(userKey(1), ValueHeader{}, []byte("2")) }, "2", true},
			{"first data", func(b *Batch) {
				b.CreateReplica(testDesc(5, "a", "z"), 1, 9, []KV{{Key: userKey(1), Value: []byte("first")}})
			}, "first", true},
		} {
			t.Run(fmt.Sprintf("%s/sync=%t", c.name, sync), func(t *testing.T) {
				e := newEngine(t)
				commit(t, e, false, func(b *Batch) {
					b.Put(userKey(1), ValueHeader{}, []byte("old"))
					b.Put(userKey(2), ValueHeader{}, []byte("two"))
				})
				warm(t, e, userKey(1))
				warm(t, e, userKey(2))
				commit(t, e, sync, c.change)
				if v, found, cached := rowOf(t, e, userKey(1)); v != c.want || found != (c.want != "") || cached {
					t.Fatalf("%q, found %t, cached %t", v, found, cached)
				}
				if v, _, cached := rowOf(t, e, userKey(2)); v != "two" || cached != c.other {
					t.Fatalf("the other row: %q, cached %t", v, cached)
				}
				if c.want != "" {
					warm(t, e, userKey(1))
				}
			})
		}
	}
}

// Conditions look rows up that are about to change.
func TestARowThatIsReadOnceDoesNotComeIn(t *testing.T) {
	e := newEngine(t)
	commit(t, e, false, func(b *Batch) { b.Put(userKey(1), ValueHeader{}, []byte("one")) })
	for range 3 {
		if _, v, ok, err := e.GetOnce(userKey(1), nil); err != nil || !ok || string(v) != "one" {
			t.Fatalf("%q %t %v", v, ok, err)
		}
	}
	if n := e.RowCacheBytes(); n != 0 {
		t.Fatalf("%d bytes are kept", n)
	}
	warm(t, e, userKey(1))
	hits, _ := e.rows.counts()
	if _, v, _, err := e.GetOnce(userKey(1), nil); err != nil || string(v) != "one" {
		t.Fatalf("%q %v", v, err)
	}
	if now, _ := e.rows.counts(); now != hits+1 {
		t.Fatal("what is there is not used")
	}
}

func TestAnEmptiedBatchKeepsLittle(t *testing.T) {
	e := newEngine(t)
	b := e.NewBatch()
	defer b.Close()
	for i := range maxKeptHashes + 1 {
		b.Put(userKey(i), ValueHeader{}, nil)
	}
	b.DeleteRange(userKey(1), userKey(2))
	b.Reset()
	if ch := &b.changed; cap(ch.hashes) > maxKeptHashes || ch.wide() {
		t.Fatalf("room for %d rows, ranges %t", cap(ch.hashes), ch.wide())
	}
}

func TestTruncatingALogKeepsTheRows(t *testing.T) {
	e := newEngine(t)
	commit(t, e, false, func(b *Batch) { b.Put(userKey(1), ValueHeader{}, []byte("one")) })
	warm(t, e, userKey(1))
	commit(t, e, false, func(b *Batch) { b.deleteRange(logKey(7, 1), logKey(7, 100)) })
	if _, _, cached := rowOf(t, e, userKey(1)); !cached {
		t.Fatal("dropped by what is no data")
	}
	commit(t, e, false, func(b *Batch) { b.deleteRange(userKey(0), userKey(2)) })
	if _, _, cached := rowOf(t, e, userKey(1)); cached {
		t.Fatal("kept behind a range of data that was deleted")
	}
}

func TestARowThatWasLookedUpBeforeAChangeDoesNotComeIn(t *testing.T) {
	for _, all := range []bool{false, true} {
		e := newEngine(t)
		c, key := &e.rows, userKey(1)
		ch := rowChanges{hashes: []uint64{c.hash(key)}, all: all}
		tickets := func(when string, open bool) rowTicket {
			t.Helper()
			_, ticket := c.get(key)
			if ticket.open != open {
				t.Fatalf("%s a change, all %t: open %t", when, all, ticket.open)
			}
			return ticket
		}
		before := tickets("before", true)
		c.begin(&ch)
		c.put(before, key, ValueHeader{}, []byte("old")) // while it is under way
		during := tickets("during", false)
		c.end(&ch)
		c.put(before, key, ValueHeader{}, []byte("old"))
		c.put(during, key, ValueHeader{}, []byte("old"))
		if r, _ := c.get(key); r != nil {
			t.Fatalf("all %t: an old row came in", all)
		}
		c.put(tickets("behind", true), key, ValueHeader{}, []byte("new"))
		if r, _ := c.get(key); r == nil || string(r.data[r.keyLen:]) != "new" {
			t.Fatalf("all %t: the new row did not come in", all)
		}
	}
}

func TestTwoChangesOfOneRowKeepTheGateClosedUntilBothAreVisible(t *testing.T) {
	e := newEngine(t)
	c, key := &e.rows, userKey(1)
	ch := rowChanges{hashes: []uint64{c.hash(key)}}
	c.begin(&ch)
	c.begin(&ch)
	c.end(&ch)
	if _, ticket := c.get(key); ticket.open {
		t.Fatal("open while a change is under way")
	}
	c.end(&ch)
	if _, ticket := c.get(key); !ticket.open {
		t.Fatal("closed for good")
	}
}

func TestABatchThatIsRefusedChangesNoRow(t *testing.T) {
	e := newEngine(t)
	commit(t, e, false, func(b *Batch) { b.Put(userKey(1), ValueHeader{}, []byte("one")) })
	warm(t, e, userKey(1))
	b := e.NewBatch()
	b.Put(userKey(1), ValueHeader{}, []byte("two"))
	b.Put([]byte{spaceLocal}, ValueHeader{}, nil)
	if err := e.Commit(b, false); !errors.Is(err, ErrInvalidKey) {
		t.Fatal(err)
	}
	if v, _, cached := rowOf(t, e, userKey(1)); v != "one" || !cached {
		t.Fatalf("an invalid batch changed something: %q, cached %t", v, cached)
	}
	b.Reset()
	if len(b.changed.hashes) != 0 || b.changed.all {
		t.Fatal("an emptied batch closes gates")
	}
	b.Close()
}

func TestTheRowCacheKeepsItsBudgetAndWhatIsReadOften(t *testing.T) {
	o := testOptions(t, NewMemFS())
	o.RowCacheBytes = 64 << 10
	e := mustOpen(t, o)
	defer mustClose(t, e)
	const rows = 200
	commit(t, e, false, func(b *Batch) {
		for i := range rows {
			b.Put(userKey(i), ValueHeader{}, bytes.Repeat([]byte{byte(i)}, 1000))
		}
		b.Put(userKey(rows), ValueHeader{}, make([]byte, maxCachedRow))
	})
	warm(t, e, userKey(0))
	hits, reads := 0, 0
	for range 3 {
		for i := 1; i < rows; i++ {
			for range 2 {
				rowOf(t, e, userKey(i))
			}
			if got := e.RowCacheBytes(); got > o.RowCacheBytes {
				t.Fatalf("%d bytes of %d", got, o.RowCacheBytes)
			}
			v, _, cached := rowOf(t, e, userKey(0))
			if v != string(make([]byte, 1000)) {
				t.Fatalf("another row: %q", v)
			}
			reads++
			if cached {
				hits++
			}
		}
	}
	if hits < reads*9/10 {
		t.Errorf("the row that is read all the time was there %d times of %d", hits, reads)
	}
	if got := e.RowCacheBytes(); got < o.RowCacheBytes/2 {
		t.Errorf("%d bytes of %d used", got, o.RowCacheBytes)
	}
	for range 3 {
		if _, _, cached := rowOf(t, e, userKey(rows)); cached {
			t.Fatal("a row above the limit is kept")
		}
	}
	commit(t, e, false, func(b *Batch) { b.DeleteRange(userKey(0), userKey(rows+1)) })
	if got := e.RowCacheBytes(); got != 0 {
		t.Fatalf("%d bytes left", got)
	}
}

func TestAFullRowCacheTakesARowAtItsSecondMiss(t *testing.T) {
	o := testOptions(t, NewMemFS())
	o.RowCacheBytes = 16 << 10
	e := mustOpen(t, o)
	defer mustClose(t, e)
	const rows = 16
	commit(t, e, false, func(b *Batch) {
		for i := range rows {
			b.Put(userKey(i), ValueHeader{}, make([]byte, 1000))
		}
	})
	for i := range rows - 1 {
		rowOf(t, e, userKey(i))
	}
	for i, want := range []bool{false, false, true} {
		if _, _, cached := rowOf(t, e, userKey(rows-1)); cached != want {
			t.Fatalf("read %d: cached %t", i, cached)
		}
	}
}

func TestTwoKeysOfOneHashDoNotMeet(t *testing.T) {
	e := newEngine(t)
	c := &e.rows
	hash := c.hash(userKey(1))
	c.put(rowTicket{hash: hash, open: true, again: true}, userKey(2), ValueHeader{}, []byte("two"))
	if r, _ := c.get(userKey(1)); r != nil {
		t.Fatal("the row of another key")
	}
	c.put(rowTicket{hash: hash, open: true, again: true}, userKey(1), ValueHeader{}, []byte("one"))
	if r, _ := c.get(userKey(1)); r == nil || string(r.data[r.keyLen:]) != "one" || len(c.stripe(hash).clock) != 1 {
		t.Fatal("the row did not take the place of the other")
	}
}

func TestWithoutARowCacheGetsAreAsBefore(t *testing.T) {
	o := testOptions(t, NewMemFS())
	o.RowCacheBytes = -1
	e := mustOpen(t, o)
	defer mustClose(t, e)
	commit(t, e, true, func(b *Batch) { b.Put(userKey(1), ValueHeader{}, []byte("one")) })
	commit(t, e, true, func(b *Batch) { b.DeleteRange(userKey(2), userKey(3)) })
	for range 4 {
		if v, _, cached := rowOf(t, e, userKey(1)); v != "one" || cached {
			t.Fatalf("%q, cached %t", v, cached)
		}
	}
}

// TestReadersNeverMeetARowOlderThanAnotherOfItsBatch: one writer gives both keys of a pair one number, in one batch;
// whoever has read a number at one key reads no smaller one at the other afterwards. Beside it ranges are deleted and
// tables are excised, elsewhere, which drops all rows.
func TestReadersNeverMeetARowOlderThanAnotherOfItsBatch(t *testing.T) {
	o := testOptions(t, NewMemFS())
	o.RowCacheBytes = 32 << 10
	e := mustOpen(t, o)
	defer mustClose(t, e)
	const pairs = 8
	rounds := 4000
	if testing.Short() {
		rounds = 1000
	}
	put := func(p, n int, sync bool) {
		commit(t, e, sync, func(b *Batch) {
			for k := range 2 {
				b.Put(userKey(2*p+k), ValueHeader{Version: uint64(n)}, binary.BigEndian.AppendUint64(nil, uint64(n)))
			}
		})
	}
	for p := range pairs {
		put(p, 0, false)
	}
	var done atomic.Bool
	var readers, writers sync.WaitGroup
	for r := range 3 {
		readers.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(r), 2))
			var last [pairs]uint64
			for !done.Load() {
				p := rng.IntN(pairs)
				h, v, ok, err := e.Get(userKey(2*p+rng.IntN(2)), nil)
				if err != nil || !ok || binary.BigEndian.Uint64(v) != h.Version || h.Version < last[p] {
					t.Errorf("pair %d: %x with version %d after %d, %t %v", p, v, h.Version, last[p], ok, err)
					return
				}
				last[p] = h.Version
			}
		})
	}
	for w := range 2 { // each its own pairs
		writers.Go(func() {
			for n := 1; n <= rounds; n++ {
				put(w+2*(n%(pairs/2)), n, n%7 == 0)
				if n%50 == 0 {
					commit(t, e, false, func(b *Batch) { b.DeleteRange(userKey(1000), userKey(1001)) })
				}
				if w == 0 && n%500 == 0 {
					if err := e.ingest(nil, pebble.KeyRange{Start: userKey(2000), End: userKey(2001)}); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	writers.Wait()
	done.Store(true)
	readers.Wait()
	if hits, misses := e.rows.counts(); hits == 0 || misses == 0 {
		t.Errorf("%d hits, %d misses: nothing was tried", hits, misses)
	}
}

func BenchmarkGetOfACachedRow(b *testing.B) {
	for _, budget := range []int64{-1, 16 << 20} {
		b.Run(fmt.Sprintf("cached=%t", budget > 0), func(b *testing.B) {
			o := testOptions(b, NewMemFS())
			o.RowCacheBytes = budget
			e := mustOpen(b, o)
			defer mustClose(b, e)
			const rows = 4000
			for i := range rows {
				commit(b, e, false, func(b *Batch) { b.Put(userKey(i), ValueHeader{}, make([]byte, 1024)) })
			}
			if err := e.db.Flush(); err != nil {
				b.Fatal(err)
			}
			var buf []byte
			get := func(i int) {
				_, v, ok, err := e.Get(userKey(i%rows), buf[:0])
				if err != nil || !ok {
					b.Fatal(ok, err)
				}
				buf = v
			}
			for i := range 2 * rows {
				get(i / 2)
			}
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				get(i)
			}
		})
	}
}
