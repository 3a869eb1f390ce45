package engine

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/shardd/shardd/internal/base"
)

// fillRange puts rows with values of random bytes, which do not compress.
func fillRange(t testing.TB, e *Engine, rng *rand.Rand, keys [][]byte, size func() int) (rows []row) {
	t.Helper()
	for part := range slices.Chunk(keys, 500) {
		commit(t, e, false, func(b *Batch) {
			for _, k := range part {
				v := make([]byte, size())
				for i := range v {
					v[i] = byte(rng.Uint32())
				}
				b.Put(k, ValueHeader{Version: 1}, v)
				rows = append(rows, row{string(k), string(v)})
			}
		})
	}
	slices.SortFunc(rows, func(a, b row) int { return cmp.Compare(a.key, b.key) })
	return slices.CompactFunc(rows, func(a, b row) bool { return a.key == b.key })
}

// shares returns how the rows' bytes are divided by keys.
func shares(rows []row, keys [][]byte) []float64 {
	out := make([]float64, len(keys)+1)
	var total float64
	for _, r := range rows {
		i := 0
		for i < len(keys) && r.key >= string(keys[i]) {
			i++
		}
		out[i] += float64(len(r.key) + len(r.value))
		total += float64(len(r.key) + len(r.value))
	}
	for i := range out {
		out[i] /= total
	}
	return out
}

// failer is testing's T or rapid's.
type failer interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// checkDivision checks what must hold of every answer.
func checkDivision(t failer, d Division, rows []row, lo, hi []byte, groups []KeyGroup) {
	t.Helper()
	if len(d.Keys) == 0 || len(d.Bytes) != len(d.Keys)+1 {
		t.Fatalf("%d keys, %d sizes", len(d.Keys), len(d.Bytes))
	}
	for i, k := range d.Keys {
		if bytes.Compare(k, lo) <= 0 || bytes.Compare(k, hi) >= 0 || len(k) > maxSplitKey {
			t.Errorf("key %d of %d bytes is not strictly inside the range", i, len(k))
		}
		if i > 0 && bytes.Compare(d.Keys[i-1], k) >= 0 {
			t.Errorf("key %d is not above the one before", i)
		}
		if start, ok := GroupStart(k, groups); !ok || !bytes.Equal(start, k) {
			t.Errorf("key %q lies in the group from %q on", k, start)
		}
	}
	for i, s := range shares(rows, d.Keys) {
		if s == 0 {
			t.Errorf("part %d is empty", i)
		}
	}
	// No group has members on both sides.
	for i := 1; i < len(rows); i++ {
		a, b := []byte(rows[i-1].key), []byte(rows[i].key)
		p := groupOf(a, groups)
		if p == nil || !bytes.Equal(p, groupOf(b, groups)) {
			continue
		}
		for _, k := range d.Keys {
			if bytes.Compare(a, k) < 0 && bytes.Compare(b, k) >= 0 {
				t.Errorf("%q cuts the group %q between %q and %q", k, p, a, b)
			}
		}
	}
}

func TestARangeInMemoryIsDividedIntoHalvesByAScanOfItsKeys(t *testing.T) {
	e := newEngine(t)
	rng, _ := seeded(t)
	var keys [][]byte
	for i := range 2000 {
		keys = append(keys, userKey(i))
	}
	rows := fillRange(t, e, rng, keys, func() int { return rng.IntN(600) }) // apart in tables from 256 on
	for parts := 2; parts <= 10; parts++ {
		d, err := e.SplitKeys(context.Background(), base.UserStart(), base.UserEnd(), SplitOptions{Parts: parts})
		if err != nil || len(d.Keys) != parts-1 || !d.Scanned {
			t.Fatalf("%d parts: %d keys, scanned %t, %v", parts, len(d.Keys), d.Scanned, err)
		}
		checkDivision(t, d, rows, base.UserStart(), base.UserEnd(), nil)
		for i, s := range shares(rows, d.Keys) {
			if want := 1 / float64(parts); s < want-0.02 || s > want+0.02 {
				t.Errorf("%d parts: part %d has %.3f of the bytes", parts, i, s)
			}
		}
	}
}

func TestALargeRangeIsDividedByItsTablesWithoutAScan(t *testing.T) {
	o := testOptions(t, NewMemFS())
	o.MemTableBytes = 512 << 10
	e := mustOpen(t, o)
	defer mustClose(t, e)
	rng, _ := seeded(t)
	var keys [][]byte
	for i := range 60_000 {
		keys = append(keys, userKey(i))
	}
	rng.Shuffle(len(keys), func(i, k int) { keys[i], keys[k] = keys[k], keys[i] })
	rows := fillRange(t, e, rng, keys, func() int { return 220 }) // in the tables themselves
	for _, parts := range []int{2, 3, 7} {
		d, err := e.SplitKeys(context.Background(), base.UserStart(), base.UserEnd(), SplitOptions{Parts: parts})
		if err != nil || d.Scanned {
			t.Fatalf("%d parts: scanned %t, %v", parts, d.Scanned, err)
		}
		checkDivision(t, d, rows, base.UserStart(), base.UserEnd(), nil)
		for i, s := range shares(rows, d.Keys) {
			if want := 1 / float64(parts); s < 0.6*want || s > 1.4*want {
				t.Errorf("%d parts: part %d has %.3f of the bytes", parts, i, s)
			}
		}
	}
	// Far over the target: several keys at once, each part well below it.
	size := e.ApproxBytes(base.UserStart(), base.UserEnd())
	d, err := e.SplitKeys(context.Background(), base.UserStart(), base.UserEnd(), SplitOptions{TargetBytes: size / 5})
	if err != nil || len(d.Keys) != 6 {
		t.Fatalf("%d keys for five times the target, %v", len(d.Keys), err)
	}
	for i, s := range shares(rows, d.Keys) {
		if s > 0.2 {
			t.Errorf("part %d has %.3f of the bytes, the target is a fifth", i, s)
		}
	}
	// Most of what the caller knows of is not in tables: these say nothing.
	d, err = e.SplitKeys(context.Background(), base.UserStart(), base.UserEnd(), SplitOptions{Parts: 2, SizeBytes: 4 * size})
	if err != nil || !d.Scanned {
		t.Errorf("scanned %t, %v", d.Scanned, err)
	}
	// A range of it, next to other data.
	lo, hi := userKey(8000), userKey(55_000)
	inside := slices.Clone(rows[8000:55_000])
	d, err = e.SplitKeys(context.Background(), lo, hi, SplitOptions{Parts: 2})
	if err != nil {
		t.Fatal(err)
	}
	checkDivision(t, d, inside, lo, hi, nil)
	if s := shares(inside, d.Keys); s[0] < 0.4 || s[0] > 0.6 {
		t.Errorf("parts of %v", s)
	}
}

func TestTablesThatLeaveTooMuchInDoubtAreNotReliedOn(t *testing.T) {
	o := testOptions(t, NewMemFS())
	o.MemTableBytes = 512 << 10
	e := mustOpen(t, o)
	defer mustClose(t, e)
	rng, _ := seeded(t)
	var keys [][]byte
	for i := range 3000 {
		keys = append(keys, userKey(i))
	}
	rng.Shuffle(len(keys), func(i, k int) { keys[i], keys[k] = keys[k], keys[i] })
	rows := fillRange(t, e, rng, keys, func() int { return 5000 }) // a few blocks of keys stand for all values
	d, err := e.SplitKeys(context.Background(), base.UserStart(), base.UserEnd(), SplitOptions{Parts: 5})
	if err != nil || !d.Scanned || len(d.Keys) != 4 {
		t.Fatalf("%d keys, scanned %t, %v", len(d.Keys), d.Scanned, err)
	}
	for i, s := range shares(rows, d.Keys) {
		if s < 0.19 || s > 0.21 {
			t.Errorf("part %d has %.3f of the bytes", i, s)
		}
	}
}

// drawKeys draws keys that share starts and differ in few places.
func drawKeys(t *rapid.T, deep bool) [][]byte {
	word := rapid.SampledFrom([]string{"a", "b", "ab", "zz", "\x00", "\xff", "/", "//", "user", "x/y"})
	if deep {
		word = rapid.SampledFrom([]string{"a", "b", "/", "\xff", "k", strings.Repeat("long", 300)})
	}
	n := rapid.IntRange(2, 200).Draw(t, "keys")
	seen := map[string]bool{}
	var keys [][]byte
	for len(keys) < n {
		k := strings.Join(rapid.SliceOfN(word, 1, 5).Draw(t, "key"), "")
		if len(k) > base.MaxKeySize || seen[k] {
			n--
			continue
		}
		seen[k] = true
		keys = append(keys, base.UserKey([]byte(k)))
	}
	return keys
}

func TestHalvesAreStrictlyInsideOfEvenSizeAndCutNoGroup(t *testing.T) {
	e := newEngine(t)
	rng, _ := seeded(t)
	lo, hi := base.UserStart(), base.UserEnd()
	rapid.Check(t, func(t *rapid.T) {
		keys := drawKeys(t, rapid.Bool().Draw(t, "deep"))
		var groups []KeyGroup
		for range rapid.IntRange(0, 2).Draw(t, "rules") {
			groups = append(groups, KeyGroup{
				Prefix:    []byte(rapid.SampledFrom([]string{"", "a", "ab", "user", "x/y/"}).Draw(t, "prefix")),
				Delimiter: []byte(rapid.SampledFrom([]string{"/", "//", "a"}).Draw(t, "delimiter")),
				Count:     rapid.IntRange(1, 3).Draw(t, "count"),
			})
		}
		sizes := rapid.SliceOfN(rapid.IntRange(0, 2000), len(keys), len(keys)).Draw(t, "sizes")
		b := e.NewBatch()
		b.DeleteRange(lo, hi)
		var rows []row
		largest := map[string]int{} // bytes by group
		total := 0
		for i, k := range keys {
			v := make([]byte, sizes[i])
			for at := range v {
				v[at] = byte(rng.Uint32())
			}
			b.Put(k, ValueHeader{Version: 1}, v)
			rows = append(rows, row{string(k), string(v)})
			n := len(k) + len(v)
			total += n
			start, _ := GroupStart(k, groups)
			largest[string(start)] += n
		}
		if err := e.Commit(b, false); err != nil {
			t.Fatal(err)
		}
		b.Close()
		slices.SortFunc(rows, func(a, b row) int { return cmp.Compare(a.key, b.key) })
		rows = slices.CompactFunc(rows, func(a, b row) bool { return a.key == b.key })
		d, err := e.SplitKeys(context.Background(), lo, hi, SplitOptions{Parts: 2, Groups: groups})
		switch {
		case len(rows) < 2:
			if !errors.Is(err, ErrTooFewKeys) {
				t.Fatalf("%d rows: %v", len(rows), err)
			}
			return
		case len(largest) == 1:
			if !errors.Is(err, ErrOneGroup) {
				t.Fatalf("one group: %v, keys %q", err, d.Keys)
			}
			return
		case err != nil:
			t.Fatal(err)
		}
		checkDivision(t, d, rows, lo, hi, groups)
		// As even as the largest group allows.
		big := 0
		for _, n := range largest {
			big = max(big, n)
		}
		if s := shares(rows, d.Keys); max(s[0], s[1]) > 0.5+float64(big)/float64(total)+0.05 {
			t.Errorf("parts of %v, the largest group has %d of %d bytes", s, big, total)
		}
	})
}
