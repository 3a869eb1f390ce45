package router

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

func collect(t *testing.T, r *Router, lo, hi []byte, o ScanOptions) (out []string) {
	t.Helper()
	for row, err := range r.Scan(context.Background(), lo, hi, o) {
		if err != nil {
			t.Fatalf("scan %+v of [%q, %q): %v", o, lo, hi, err)
		}
		if o.KeysOnly != (len(row.Value) == 0) {
			t.Fatalf("keys only %v, value %q", o.KeysOnly, row.Value)
		}
		out = append(out, string(row.Key))
	}
	return out
}

func TestScanAgreesWithAModelWhileShardsSplitAndMergeBetweenPages(t *testing.T) {
	defer goleak.VerifyNone(t)
	seed := uint64(time.Now().UnixNano())
	rnd := rand.New(rand.NewPCG(seed, 0))
	for round := range 300 {
		const keys = 80
		w := newWorld(keys, 20, 40, 60)
		w.maxRows = 1 + rnd.IntN(12)
		w.perSend = func(*wire.Op) {
			switch rnd.IntN(8) {
			case 0:
				w.splitLocked(key(rnd.IntN(keys)))
			case 1:
				w.mergeLocked(key(rnd.IntN(keys)))
			case 2:
				w.leader[w.shards[rnd.IntN(len(w.shards))].Shard] = base.StoreID(1 + rnd.IntN(3))
			}
		}
		r := New(Config{Directory: w, Sender: w, BackoffMin: time.Microsecond, BackoffMax: 10 * time.Microsecond})
		a, b := rnd.IntN(keys), rnd.IntN(keys)
		lo, hi := key(min(a, b)), key(max(a, b)+1)
		if rnd.IntN(4) == 0 {
			lo, hi = base.UserStart(), base.UserEnd()
		}
		o := ScanOptions{
			Reverse: rnd.IntN(2) == 0, KeysOnly: rnd.IntN(2) == 0, Prefetch: rnd.IntN(2) == 0, Limit: rnd.IntN(30),
			Parallel: rnd.IntN(6), Budget: rnd.IntN(3) * 100,
		}
		want := w.modelLocked(lo, hi, o.Reverse)
		if o.Limit > 0 && len(want) > o.Limit {
			want = want[:o.Limit]
		}
		got := collect(t, r, lo, hi, o)
		if len(got) != len(want) {
			t.Fatalf("seed %d round %d %+v [%q, %q): %d rows, want %d", seed, round, o, lo, hi, len(got), len(want))
		}
		for i := range got {
			if got[i] != want[i] {
				t.Fatalf("seed %d round %d %+v: row %d is %q, want %q", seed, round, o, i, got[i], want[i])
			}
		}
	}
}

func TestScanThatIsBrokenOffJoinsItsPrefetch(t *testing.T) {
	defer goleak.VerifyNone(t)
	w := newWorld(50, 10, 20)
	w.maxRows = 3
	r := New(Config{Directory: w, Sender: w})
	n := 0
	for _, err := range r.Scan(context.Background(), base.UserStart(), base.UserEnd(), ScanOptions{Prefetch: true}) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n == 4 {
			break
		}
	}
}

func TestScanResumesBehindAKeyOfTheLargestSize(t *testing.T) {
	w := newWorld(0)
	long := base.UserKey(bytes.Repeat([]byte{'x'}, base.MaxKeySize))
	full := base.UserKey(bytes.Repeat([]byte{0xff}, base.MaxKeySize))
	w.rows[string(long)], w.rows["\x02y"], w.rows[string(full)] = "1", "2", "3"
	w.maxRows = 1
	w.perSend = func(op *wire.Op) {
		if err := op.Validate(); err != nil {
			t.Error(err)
		}
	}
	r := New(Config{Directory: w, Sender: w})
	got := collect(t, r, base.UserStart(), base.UserEnd(), ScanOptions{})
	if len(got) != 3 || got[0] != string(long) || got[1] != "\x02y" || got[2] != string(full) {
		t.Fatalf("%d rows", len(got))
	}
}

func TestScanRefusesPagesThatMakeNoSense(t *testing.T) {
	row := wire.Row{Key: key(99), Value: []byte("v")}
	for name, a := range map[string]wire.Answer{
		"row outside":      {Payload: row.Append(nil)},
		"more of nothing":  {Flags: wire.FlagMore},
		"cut row":          {Payload: row.Append(nil)[:10]},
		"row and trailing": {Payload: append(row.Append(nil), 1)},
	} {
		s := &script{answers: []any{a}}
		r := New(Config{Directory: newWorld(0), Sender: s})
		var err error
		for _, err = range r.Scan(context.Background(), key(1), key(5), ScanOptions{}) {
		}
		if !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDeleteRangeCoversAllShards(t *testing.T) {
	w := newWorld(80, 20, 40, 60)
	r := New(Config{Directory: w, Sender: w})
	if n, err := r.DeleteRange(context.Background(), key(10), key(45)); err != nil || n != 3 {
		t.Fatalf("%d shards, %v", n, err)
	}
	if got := w.modelLocked(base.UserStart(), base.UserEnd(), false); len(got) != 45 || got[10] != string(key(45)) {
		t.Fatalf("%d rows left", len(got))
	}
	if _, err := r.DeleteRange(context.Background(), key(10), key(10)); !errors.Is(err, ErrInvalid) {
		t.Fatalf("empty range: %v", err)
	}
}

func TestShardsListsWhatOverlapsInOrder(t *testing.T) {
	w := newWorld(0, 20, 40, 60, 70)
	r := New(Config{Directory: w, Sender: w})
	got, err := r.Shards(context.Background(), key(25), key(61))
	if err != nil || len(got) != 3 {
		t.Fatalf("%d shards, %v", len(got), err)
	}
	for i, rt := range got {
		if rt.Desc != w.shards[i+1] {
			t.Errorf("shard %d is %s", i, rt.Desc)
		}
	}
}

func TestDoManyMixesShardsAndOutcomes(t *testing.T) {
	w := newWorld(3000, 500, 1000, 2000)
	r := New(Config{Directory: w, Sender: w})
	ops := make([]wire.Op, 0, 3002)
	for i := range 3001 {
		ops = append(ops, wire.Op{Code: wire.OpGet, Key: key(i)})
	}
	ops = append(ops, wire.Op{Code: wire.OpGet})
	answers, errs := r.DoMany(context.Background(), ops)
	for i := range 3000 {
		if errs[i] != nil || string(answers[i].Payload) != w.rows[string(key(i))] {
			t.Fatalf("operation %d: %q, %v", i, answers[i].Payload, errs[i])
		}
	}
	if errs[3000] != nil || answers[3000].Code != wire.NotFound {
		t.Errorf("absent key: %v, %v", answers[3000].Code, errs[3000])
	}
	if !errors.Is(errs[3001], ErrInvalid) {
		t.Errorf("empty key: %v", errs[3001])
	}
}
