package engine

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"testing"
	"time"

	"github.com/shardd/shardd/internal/base"
)

// reported collects the calls of OnCorrupt.
type reported struct {
	ch chan [2][]byte
}

func newReported(o *Options) *reported {
	r := &reported{ch: make(chan [2][]byte, 100)}
	o.OnCorrupt = func(lo, hi []byte) { r.ch <- [2][]byte{lo, hi} }
	return r
}

// next waits for a call.
func (r *reported) next(t *testing.T) (lo, hi []byte) {
	t.Helper()
	select {
	case b := <-r.ch:
		return b[0], b[1]
	case <-time.After(time.Minute):
		t.Fatal("no damage was reported in a minute")
	}
	return nil, nil
}

// corruptStore has one table in L0 for each of several ranges of keys, of values kept inline.
func corruptStore(t *testing.T, o Options, tables int) {
	t.Helper()
	e := mustOpen(t, o)
	for i := range tables {
		commit(t, e, false, func(b *Batch) {
			for k := range 100 {
				b.Put(userKey(i*1000+k), ValueHeader{Version: 1}, bytes.Repeat([]byte{byte(k)}, 100))
			}
		})
		if err := e.db.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	mustClose(t, e)
}

// damageTable flips bits in the file of a store that is closed: at a byte counted from its start, or from its end if
// negative.
func damageTable(t *testing.T, fs *FS, name string, at int) {
	t.Helper()
	b := readFile(t, fs, name)
	if at < 0 {
		at += len(b)
	}
	b[at] ^= 0xff
	writeFile(t, fs, name, b)
}

// dataTable returns the first of the tables that hold data.
func dataTable(t *testing.T, o Options) (name string, lo, hi []byte) {
	t.Helper()
	e := mustOpen(t, o)
	defer mustClose(t, e)
	levels, err := e.db.SSTables()
	if err != nil {
		t.Fatal(err)
	}
	for _, level := range levels {
		for _, table := range level {
			if table.Smallest.UserKey[0] >= dataStart {
				return fmt.Sprintf("%s.sst", table.BackingSSTNum), table.Smallest.UserKey, append(table.Largest.UserKey, 0)
			}
		}
	}
	t.Fatal("no table holds data")
	return "", nil, nil
}

func TestADamagedTableIsReportedOnceWithItsKeysAndNeverAnswersWrong(t *testing.T) {
	for where, at := range map[string]int{"block": 50, "footer": -10, "index": -1000} {
		t.Run(where, func(t *testing.T) {
			fs := NewMemFS()
			o := testOptions(t, fs)
			corruptStore(t, o, 3)
			name, lo, hi := dataTable(t, o)
			damageTable(t, fs, name, at)
			r := newReported(&o)
			e := mustOpen(t, o)
			bad, good := 0, 0
			for round := range 3 {
				for i := range 3 {
					for k := range 100 {
						_, v, ok, err := e.Get(userKey(i*1000+k), nil)
						switch {
						case errors.Is(err, ErrCorrupt):
							bad++
						case err != nil || !ok || !bytes.Equal(v, bytes.Repeat([]byte{byte(k)}, 100)):
							t.Fatalf("round %d, key %d: %t, %x, %v", round, i*1000+k, ok, v, err)
						default:
							good++
						}
					}
				}
			}
			if bad == 0 || good < 3*200 {
				t.Fatalf("%d reads failed, %d were answered", bad, good)
			}
			gotLo, gotHi := r.next(t)
			if !bytes.Equal(gotLo, lo) || !bytes.Equal(gotHi, hi) {
				t.Fatalf("reported [%x, %x), want [%x, %x)", gotLo, gotHi, lo, hi)
			}
			files := e.CorruptFiles()
			if len(files) != 1 || files[0].Path != testDir+"/"+name ||
				!bytes.Equal(files[0].Lo, lo) || !bytes.Equal(files[0].Hi, hi) {
				t.Fatalf("%+v", files)
			}
			mustClose(t, e)
			if len(r.ch) != 0 {
				t.Fatal("it was reported again")
			}
		})
	}
}

func TestACallbackAboutDamageMayUseTheEngine(t *testing.T) {
	fs := NewMemFS()
	o := testOptions(t, fs)
	corruptStore(t, o, 2)
	name, _, _ := dataTable(t, o)
	damageTable(t, fs, name, 50)
	var e *Engine
	opened := make(chan struct{})
	done := make(chan error, 1)
	o.OnCorrupt = func(lo, hi []byte) {
		<-opened
		it, err := e.NewIter(lo, hi, false)
		if err == nil {
			for it.Valid() {
				it.Next()
			}
			err = it.Close()
		}
		b := e.NewBatch()
		b.DeleteRange(lo, hi)
		done <- errors.Join(err, e.Commit(b, true))
		b.Close()
	}
	e = mustOpen(t, o)
	close(opened)
	_, _, _, _ = e.Get(userKey(0), nil)
	if err := <-done; !errors.Is(err, ErrCorrupt) {
		t.Fatal(err)
	}
	if _, _, ok, err := e.Get(userKey(0), nil); ok || err != nil {
		t.Fatalf("a deleted key behind the damage: %t, %v", ok, err)
	}
	mustClose(t, e)
}

func TestAMissingTableIsReportedWithTheKeysThatWereInIt(t *testing.T) {
	fs := NewMemFS()
	o := testOptions(t, fs)
	corruptStore(t, o, 2)
	name, lo, hi := dataTable(t, o)
	r := newReported(&o)
	e := mustOpen(t, o)
	defer mustClose(t, e)
	if err := fs.inner.Remove(testDir + "/" + name); err != nil {
		t.Fatal(err)
	}
	// As Pebble opens it, unless it has it open already, for its statistics, say.
	if _, err := (guardFS{FS: fs.inner, fs: fs, e: e}).Open(testDir + "/" + name); !errors.Is(err, ErrCorrupt) ||
		errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if gotLo, gotHi := r.next(t); !bytes.Equal(gotLo, lo) || !bytes.Equal(gotHi, hi) {
		t.Fatalf("reported [%x, %x), want [%x, %x)", gotLo, gotHi, lo, hi)
	}
}

func TestADamagedFileOfValuesIsReportedWithTheKeysThatReferToIt(t *testing.T) {
	fs := NewMemFS()
	o := testOptions(t, fs)
	e := mustOpen(t, o)
	commit(t, e, false, func(b *Batch) {
		for i := range 20 {
			b.Put(userKey(i), ValueHeader{Version: 1}, bytes.Repeat([]byte{byte(i)}, 3000))
		}
	})
	if err := e.db.Flush(); err != nil {
		t.Fatal(err)
	}
	mustClose(t, e)
	blobs := filesWith(t, fs, ".blob")
	if len(blobs) != 1 {
		t.Fatal(blobs)
	}
	damageTable(t, fs, blobs[0], -10) // the footer, at which Pebble would panic
	r := newReported(&o)
	e = mustOpen(t, o)
	defer mustClose(t, e)
	if _, _, _, err := e.Get(userKey(3), nil); !errors.Is(err, ErrCorrupt) {
		t.Fatal(err)
	}
	lo, hi := r.next(t)
	if !bytes.Equal(lo, userKey(0)) || !bytes.Equal(hi, append(userKey(19), 0)) {
		t.Fatalf("reported [%x, %x)", lo, hi)
	}
}

// TestACompactionOverADamagedTableNeitherSpinsNorFloodsTheLogNorHoldsUpTheOthers: Pebble alone tries the compaction of
// a damaged table in L0 again at once, hundreds of times a second.
func TestACompactionOverADamagedTableNeitherSpinsNorFloodsTheLogNorHoldsUpTheOthers(t *testing.T) {
	fs := NewMemFS()
	o := testOptions(t, fs)
	lines := &logLines{}
	o.Logger = slog.New(lines)
	o.damageHold = 50 * time.Millisecond
	e := mustOpen(t, o)
	put := func(from int) {
		commit(t, e, false, func(b *Batch) {
			for k := range 100 {
				b.Put(userKey(from+k), ValueHeader{Version: 1}, bytes.Repeat([]byte{byte(k)}, 100))
			}
		})
		if err := e.db.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	put(0)
	mustClose(t, e)
	name, _, _ := dataTable(t, o)
	damageTable(t, fs, name, 50)
	e = mustOpen(t, o)
	start := time.Now()
	for range 30 { // enough over the damaged table to be compacted with it
		put(0)
	}
	waitFor(t, "failed compactions", func() bool { return counter(t, e.metrics.backgroundErrors) >= 4 })
	took := time.Since(start)
	if n := int(counter(t, e.metrics.backgroundErrors)); float64(n) > 2+took.Seconds()/o.damageHold.Seconds()*2 {
		t.Errorf("%d failures in %s with a hold of %s", n, took, o.damageHold)
	}
	for i := range 40 { // elsewhere, life goes on, compactions included
		put(500_000)
		if _, _, ok, err := e.Get(userKey(500_000+i), nil); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	waitFor(t, "compactions elsewhere", func() bool {
		levels, err := e.db.SSTables()
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, table := range levels[0] {
			if bytes.Compare(table.Smallest.UserKey, userKey(400_000)) > 0 {
				n++
			}
		}
		return n < 20
	})
	mustClose(t, e)
	if n, all := lines.count(); n > 20 {
		t.Errorf("%d lines: %s", n, all)
	}
}

// TestStatisticsOfADamagedTableAreNotLoadedInASpin: after a start, Pebble loads the statistics of all tables, and
// begins anew at once when one cannot be read.
func TestStatisticsOfADamagedTableAreNotLoadedInASpin(t *testing.T) {
	fs := NewMemFS()
	o := testOptions(t, fs)
	lines := &logLines{}
	o.Logger = slog.New(lines)
	o.damageHold = 50 * time.Millisecond
	corruptStore(t, o, 2)
	name, _, _ := dataTable(t, o)
	damageTable(t, fs, name, -10)
	start := time.Now()
	e := mustOpen(t, o)
	waitFor(t, "failures", func() bool { return counter(t, e.metrics.corruptions) >= 5 })
	took := time.Since(start)
	if n := counter(t, e.metrics.corruptions); n > 2+3*took.Seconds()/o.damageHold.Seconds() {
		t.Errorf("%v failures in %s with a hold of %s", n, took, o.damageHold)
	}
	mustClose(t, e)
	if n, all := lines.count(); n > 5 {
		t.Errorf("%d lines: %s", n, all)
	}
}

func TestCloseDoesNotWaitForAHeldJob(t *testing.T) {
	fs := NewMemFS()
	o := testOptions(t, fs)
	corruptStore(t, o, 2)
	name, _, _ := dataTable(t, o)
	damageTable(t, fs, name, -10)
	o.damageHold = time.Hour
	e := mustOpen(t, o)
	waitFor(t, "a held job", func() bool { return e.damage.held.Load() > 0 })
	mustClose(t, e)
}

func TestLocalShardsNamesThoseWhoseRecordsMayBeInATable(t *testing.T) {
	key := func(k []byte) []byte { return append(k, 0) }
	for name, c := range map[string]struct {
		lo, hi      []byte
		first, last base.ShardID
		ok          bool
	}{
		"data":              {userKey(1), userKey(2), 0, 0, false},
		"store's own":       {identKey(), key(metaKey()), 0, 0, false},
		"part of one log":   {logKey(7, 5), key(logKey(7, 90)), 7, 7, true},
		"some logs":         {logKey(7, 5), logKey(9, 90), 7, 9, true},
		"up to a shard":     {logKey(7, 5), shardKey(spanRaft, 9), 7, 8, true},
		"marks":             {shardKey(spanMark, 3), key(shardKey(spanMark, 5)), 3, 5, true},
		"nothing":           {shardKey(spanRaft, 0)[:2], shardKey(spanRaft, 0), 0, 0, false},
		"several spans":     {shardKey(spanMark, 3), logKey(5, 1), 0, math.MaxUint64, true},
		"logs to the end":   {logKey(7, 5), []byte{spaceLocal, spanRaft + 1}, 0, math.MaxUint64, true},
		"logs and store":    {logKey(7, 5), identKey(), 0, math.MaxUint64, true},
		"not known":         {nil, nil, 0, math.MaxUint64, true},
		"an open end":       {logKey(7, 5), nil, 0, math.MaxUint64, true},
		"local and data":    {shardKey(spanApplied, 1), userKey(1), 0, math.MaxUint64, true},
		"before everything": {[]byte{0}, []byte{1}, 0, 0, false},
	} {
		first, last, ok := LocalShards(c.lo, c.hi)
		if first != c.first || last != c.last || ok != c.ok {
			t.Errorf("%s: shards %d to %d, %t, want %d to %d, %t", name, first, last, ok, c.first, c.last, c.ok)
		}
	}
}
