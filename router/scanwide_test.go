package router

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// slow is a world whose answers take a while.
type slow struct {
	*world
	delay time.Duration
}

func (s slow) Send(ctx context.Context, to base.StoreID, op *wire.Op, done func(wire.Answer, error)) {
	kept := *op // Send may not look at it later
	kept.Key, kept.Value = bytes.Clone(op.Key), bytes.Clone(op.Value)
	go func() {
		time.Sleep(s.delay)
		s.world.Send(ctx, to, &kept, done)
	}()
}

func TestAParallelScanReadsShardsAtTheSameTimeAndInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, reverse := range []bool{false, true} {
			w := newWorld(80, 10, 20, 30, 40, 50, 60, 70)
			r := New(Config{Directory: w, Sender: slow{w, 10 * time.Millisecond}})
			collect(t, r, base.UserStart(), base.UserEnd(), ScanOptions{}) // finds out who leads what
			start := time.Now()
			got := collect(t, r, base.UserStart(), base.UserEnd(), ScanOptions{Parallel: 4, Reverse: reverse})
			want := w.modelLocked(base.UserStart(), base.UserEnd(), reverse)
			if len(got) != len(want) || got[0] != want[0] || got[79] != want[79] {
				t.Errorf("reverse %t: %d rows from %q to %q", reverse, len(got), got[0], got[79])
			}
			if took := time.Since(start); took > 25*time.Millisecond {
				t.Errorf("reverse %t: 8 shards of 10 ms each, 4 at a time, took %s", reverse, took)
			}
		}
	})
}

func TestAParallelScanReadsNoFurtherAheadThanItsBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var splits []int
		for i := 40; i < 800; i += 40 {
			splits = append(splits, i)
		}
		w := newWorld(800, splits...)
		for k := range w.rows {
			w.rows[k] = string(bytes.Repeat([]byte{'v'}, 1000))
		}
		r := New(Config{Directory: w, Sender: slow{w, time.Millisecond}, PageBytes: 4 << 10})
		collect(t, r, base.UserStart(), base.UserEnd(), ScanOptions{}) // finds out who leads what
		w.sent = 0
		rows, last := 0, ""
		o := ScanOptions{Parallel: 8, Budget: 16 << 10}
		for row, err := range r.Scan(context.Background(), base.UserStart(), base.UserEnd(), o) {
			if err != nil {
				t.Fatal(err)
			}
			if string(row.Key) <= last {
				t.Fatalf("%q after %q", row.Key, last)
			}
			rows, last = rows+1, string(row.Key)
			if rows%50 != 1 {
				continue
			}
			time.Sleep(time.Second) // whatever can be read ahead is
			w.mu.Lock()
			sent := w.sent
			w.mu.Unlock()
			// A page holds 5 rows. Ahead there may be the budget, of pages of a bit more than asked for, and one more.
			if ahead := sent*5 - rows; ahead > 5*(16/4+2) {
				t.Fatalf("%d rows delivered, about %d read ahead", rows, ahead)
			}
		}
		if rows != 800 {
			t.Errorf("%d rows", rows)
		}
	})
}

func TestAParallelScanThatIsBrokenOffCallsOffWhatItReadsAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(100, 20, 40, 60, 80)
		w.maxRows = 3
		r := New(Config{Directory: w, Sender: slow{w, time.Millisecond}})
		n := 0
		for _, err := range r.Scan(context.Background(), base.UserStart(), base.UserEnd(), ScanOptions{Parallel: 4}) {
			if err != nil {
				t.Fatal(err)
			}
			if n++; n == 4 {
				break
			}
		}
		sent := func() int {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.sent
		}
		at := sent()
		time.Sleep(time.Hour) // of virtual time: whoever still reads would read the other 30 pages
		if more := sent() - at; more > 4 {
			t.Errorf("%d pages were read after the end, of which 4 may have been under way", more)
		}
	}) // a goroutine that is left fails the bubble
}

func TestAParallelScanDeliversWhatComesBeforeAnErrorAndEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(50, 10, 20, 30, 40)
		w.leader[4] = 0 // nobody leads the third
		r := New(Config{Directory: w, Sender: w, OpTimeout: time.Second})
		o := ScanOptions{Parallel: 8}
		read := func(ctx context.Context) (n int, err error) {
			for _, err = range r.Scan(ctx, base.UserStart(), base.UserEnd(), o) {
				if err == nil {
					n++
				}
			}
			return n, err
		}
		if n, err := read(context.Background()); n != 20 || !errors.Is(err, ErrUnavailable) {
			t.Errorf("%d rows, then %v", n, err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		if n, err := read(ctx); n != 20 || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%d rows, then %v", n, err)
		}
	})
}
