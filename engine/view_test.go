package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2"
)

// viewRows reads all of a view, through chunks or through its iterator.
func viewRows(t testing.TB, v *View, rng *rand.Rand) (rows []row) {
	t.Helper()
	if rng.IntN(2) == 0 {
		it, err := v.NewIter(v.Desc().Start, v.Desc().End)
		if err != nil {
			t.Fatal(err)
		}
		for ; it.Valid(); it.Next() {
			stored := make([]byte, valueLen(it.Header(), len(it.Value())))
			putValue(stored, it.Header(), it.Value())
			rows = append(rows, row{string(it.Key()), string(stored)})
		}
		if err := it.Close(); err != nil {
			t.Fatal(err)
		}
		return rows
	}
	for _, c := range allChunks(t, v, func() int { return 1 + rng.IntN(16<<10) }) {
		lo, hi := v.Desc().Start, v.Desc().End
		if c.Span == SpanSession {
			continue
		}
		if _, err := walkTable(c.SST, lo, hi, func(key, value []byte) error {
			rows = append(rows, row{string(key), string(value)})
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	return rows
}

// TestAViewIsExactWhateverHappensToItsShard opens views of a shard that is written, flushed, compacted, split, cut by
// range deletions and replaced by snapshots meanwhile, and reads them late.
func TestAViewIsExactWhateverHappensToItsShard(t *testing.T) {
	rng, _ := seeded(t)
	o := testOptions(t, NewMemFS())
	o.MemTableBytes = 256 << 10
	e, other := mustOpen(t, o), newEngine(t)
	d := source(t, e, 400, 10)
	source(t, other, 100, 5)
	type open struct {
		v    *View
		want []row
	}
	var views []open
	index, installs := uint64(50), 0
	for range 250 {
		index++
		switch rng.IntN(12) {
		case 0, 1:
			v, err := e.OpenView(7)
			if err != nil {
				t.Fatal(err)
			}
			if v.Applied().Index != index-1 {
				t.Fatalf("a view at %d, applied is %d", v.Applied().Index, index-1)
			}
			views = append(views, open{v, rowsIn(t, e, v.Desc().Start, v.Desc().End)})
		case 2:
			i := rng.IntN(400)
			commit(t, e, false, func(b *Batch) { b.DeleteRange(dataKey("a", i), dataKey("a", i+1+rng.IntN(100))) })
		case 3: // the right part is split off, and deleted with its new shard
			at := dataKey("a", 100+rng.IntN(400))
			d = d.Clone()
			commit(t, e, true, func(b *Batch) {
				b.deleteRange(at, d.End)
				d.End = at
				if bytes.Compare(d.End, d.Start) > 0 {
					b.SetDescriptor(d)
				}
			})
		case 4: // replaced by a snapshot, with its full range again
			ov := mustView(t, other, 7)
			m := metaOf(ov)
			m.Applied.Index = index
			s := mustStage(t, e, m, allChunks(t, ov, sized(4<<10)))
			d = mustInstall(t, e, installOf(s)).Desc
			closeView(t, ov)
			installs++
		case 5:
			if err := e.db.Flush(); err != nil {
				t.Fatal(err)
			}
		case 6:
			if err := e.db.Compact(t.Context(), []byte{2}, []byte{3}, false); err != nil {
				t.Fatal(err)
			}
		case 7:
			if len(views) > 0 {
				i := rng.IntN(len(views))
				sameRows(t, "view", viewRows(t, views[i].v, rng), views[i].want)
				closeView(t, views[i].v)
				views = append(views[:i], views[i+1:]...)
			}
		default:
			commit(t, e, rng.IntN(2) == 0, func(b *Batch) {
				for range rng.IntN(20) {
					i := rng.IntN(400)
					if rng.IntN(4) == 0 {
						b.Delete(dataKey("a", i))
					} else if k := dataKey("a", i); d.Contains(k) {
						b.Put(k, ValueHeader{Version: rng.Uint64()}, randomBytes(rng, rng.IntN(1500)))
					}
				}
			})
		}
		commit(t, e, false, func(b *Batch) {
			b.SetApplied(7, &AppliedState{Index: index, Term: 8, Conf: ConfStateOf(d), Stamp: 1})
		})
	}
	for _, o := range views {
		sameRows(t, "view", viewRows(t, o.v, rng), o.want)
		closeView(t, o.v)
	}
	if installs == 0 {
		t.Fatal("no install")
	}
	mustClose(t, e)
}

// TestViewsMeetExcises opens and reads views all the time while the shard is written and replaced over and over: each
// view is one of the states, or refused with the error that says try again.
func TestViewsMeetExcises(t *testing.T) {
	o := testOptions(t, NewMemFS())
	o.MemTableBytes = 128 << 10
	e, other := mustOpen(t, o), newEngine(t)
	source(t, e, 100, 0)
	source(t, other, 100, 0)
	ov := mustView(t, other, 7)
	chunks := allChunks(t, ov, sized(16<<10))

	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	opened := make([]int, 3)
	refused := make([]int, 3)
	for g := range 3 {
		wg.Go(func() {
			for ctx.Err() == nil {
				v, err := e.OpenView(7)
				if errors.Is(err, ErrViewLost) {
					refused[g]++
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				opened[g]++
				// Every write gives all rows the version of the applied index, and so does the install.
				it, err := v.NewIter(v.Desc().Start, v.Desc().End)
				if err != nil {
					t.Error(err)
					return
				}
				n, last := 0, uint64(0)
				for ; it.Valid(); it.Next() {
					if h := it.Header(); n > 0 && h.Version != last && v.Applied().Index != 50 {
						t.Errorf("at %d: versions %d and %d in one view", v.Applied().Index, h.Version, last)
					} else {
						last = h.Version
					}
					n++
				}
				if err := errors.Join(it.Close(), v.Close()); err != nil || n != 100 {
					t.Errorf("%d rows: %v", n, err)
					return
				}
			}
		})
	}
	for round := range 150 {
		version := uint64(1000 + round)
		commit(t, e, false, func(b *Batch) {
			for i := range 100 {
				b.Put(dataKey("a", i), ValueHeader{Version: version}, userValue(i))
			}
			b.SetApplied(7, &AppliedState{Index: version, Term: 8, Conf: ConfStateOf(ov.Desc())})
		})
		if round%3 == 0 {
			mustInstall(t, e, installOf(mustStage(t, e, metaOf(ov), chunks)))
		}
	}
	stop()
	wg.Wait()
	t.Logf("opened %v, refused %v", opened, refused)
	closeView(t, ov)
	mustClose(t, e)
}

func TestAViewOverARangeBeingReplacedIsRefusedUntilThatIsDone(t *testing.T) {
	e := newEngine(t)
	d := source(t, e, 10, 0)
	_, done := e.views.announce(pebble.KeyRange{Start: dataKey("a", 3), End: dataKey("a", 4)})
	if _, err := e.OpenView(7); !errors.Is(err, ErrViewLost) {
		t.Fatal(err)
	}
	done()
	_, done = e.views.announce(pebble.KeyRange{Start: d.End, End: []byte{dataEnd}})
	closeView(t, mustView(t, e, 7))
	done()
}

func TestAViewNeedsAReplica(t *testing.T) {
	e := newEngine(t)
	if _, err := e.OpenView(7); !errors.Is(err, ErrNoReplica) {
		t.Fatal(err)
	}
	commit(t, e, true, func(b *Batch) { b.CreateUninitialised(7, 3, hardOf(4)) })
	if _, err := e.OpenView(7); !errors.Is(err, ErrNoReplica) {
		t.Fatal(err)
	}
}

func TestAViewKeepsToItsRangeAndItsLife(t *testing.T) {
	e := newEngine(t)
	d := source(t, e, 10, 0)
	v := mustView(t, e, 7)
	if fmt.Sprint(v.Desc()) != fmt.Sprint(d) || v.Applied().Index != 50 {
		t.Fatal(v.Desc(), v.Applied())
	}
	for _, r := range [][2]string{{"\x02", "\x02b"}, {"\x02a", "\x02c"}, {"\x02a", "\x03"}} {
		if _, err := v.NewIter([]byte(r[0]), []byte(r[1])); !errors.Is(err, ErrInvalidKey) {
			t.Fatal(r, err)
		}
	}
	it, err := v.NewIter(d.Start, d.End)
	if err != nil {
		t.Fatal(err)
	}
	closeView(t, v)
	closeView(t, v)
	n := 0
	for ; it.Valid(); it.Next() {
		n++
	}
	if err := it.Close(); err != nil || n != 10 {
		t.Fatal(n, err)
	}
	if _, err := v.NewIter(d.Start, d.End); !errors.Is(err, ErrViewClosed) {
		t.Fatal(err)
	}
	if _, _, err := v.Chunk(0, nil, 1); !errors.Is(err, ErrViewClosed) {
		t.Fatal(err)
	}
}

func TestADamagedSourceIsNotSent(t *testing.T) {
	rng, _ := seeded(t)
	fs := NewMemFS()
	e := mustOpen(t, testOptions(t, fs))
	d := source(t, e, 120, 0)
	want := rowsIn(t, e, d.Start, d.End)
	if err := e.db.Flush(); err != nil {
		t.Fatal(err)
	}
	mustClose(t, e)
	found := 0
	for _, name := range append(filesWith(t, fs, ".sst"), filesWith(t, fs, ".blob")...) {
		whole := readFile(t, fs, name)
		for range 20 {
			c := fs.CrashClone(100, 1)
			bad := bytes.Clone(whole)
			bad[rng.IntN(len(bad))] ^= 1 << rng.IntN(8)
			writeFile(t, c, name, bad)
			e, err := Open(testOptions(t, c))
			if err != nil {
				continue // found at once
			}
			v, err := e.OpenView(7)
			if err == nil {
				var chunk *Chunk
				chunk, _, err = v.Chunk(0, nil, 1<<20)
				if err == nil {
					var got []row
					_, err = walkTable(chunk.SST, d.Start, d.End, func(key, value []byte) error {
						got = append(got, row{string(key), string(value)})
						return nil
					})
					sameRows(t, "sent", got, want)
				}
				closeView(t, v)
			}
			if err != nil && !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			} else if err != nil {
				found++
			}
			mustClose(t, e)
		}
	}
	if found == 0 {
		t.Fatal("no damage was found")
	}
	// A value that was never laid out by this package.
	e2 := newEngine(t)
	source(t, e2, 3, 0)
	if err := e2.db.Set(dataKey("a", 2), []byte("raw"), pebble.NoSync); err != nil {
		t.Fatal(err)
	}
	v := mustView(t, e2, 7)
	defer closeView(t, v)
	if _, _, err := v.Chunk(0, nil, 1<<20); !errors.Is(err, ErrCorrupt) {
		t.Fatal(err)
	}
}

func TestTheSizeOfARangeIsKnownRoughly(t *testing.T) {
	e := newEngine(t)
	d := testDesc(7, "a", "b")
	rng, _ := seeded(t)
	commit(t, e, true, func(b *Batch) {
		b.CreateReplica(d, 1, 1, nil)
		for i := range 1000 {
			b.Put(dataKey("a", i), ValueHeader{}, randomBytes(rng, 1000)) // separated values
		}
	})
	if err := e.db.Flush(); err != nil {
		t.Fatal(err)
	}
	all, half := e.ApproxBytes(d.Start, d.End), e.ApproxBytes(d.Start, dataKey("a", 500))
	if all < 400<<10 || all > 2<<20 || half > all || half < all/3 || e.ApproxBytes([]byte("\x02c"), []byte("\x02d")) != 0 {
		t.Fatalf("%d, half of it %d", all, half)
	}
	if n := e.ApproxBytes(d.End, d.Start); n != 0 {
		t.Fatal(n)
	}
}
