package router

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// script is a Sender that plays a list: a wire.Answer, an error, or silent{}. The last one repeats.
type script struct {
	answers []any
	to      []base.StoreID
	at      []time.Time
	ops     []wire.Op
}

type silent struct{}

func (s *script) Send(_ context.Context, to base.StoreID, op *wire.Op, done func(wire.Answer, error)) {
	s.to, s.at, s.ops = append(s.to, to), append(s.at, time.Now()), append(s.ops, *op)
	switch a := s.answers[0].(type) {
	case wire.Answer:
		done(a, nil)
	case error:
		done(wire.Answer{}, a)
	case silent:
	}
	if len(s.answers) > 1 {
		s.answers = s.answers[1:]
	}
}

func (s *script) gap(i int) time.Duration { return s.at[i+1].Sub(s.at[i]) }

var (
	aOK        = wire.Answer{Code: wire.OK, Arg: 9}
	aLost      = wire.Answer{Code: wire.NotLeader}
	errNotSent = fmt.Errorf("dial: %w", ErrNotSent)
	errBroke   = fmt.Errorf("stream: %w", ErrBroken)
	errFull    = fmt.Errorf("%w: %w", ErrQueueFull, ErrNotSent)
	get        = wire.Op{Code: wire.OpGet, Key: key(1)}
	put        = wire.Op{Code: wire.OpPut, Key: key(1), Value: []byte("v")}
	mismatch   = func(ds ...*base.Descriptor) wire.Answer {
		return wire.Answer{Code: wire.EpochMismatch, Payload: wire.AppendDescriptors(nil, ds...)}
	}
)

func play(t *testing.T, op wire.Op, answers ...any) (*script, *world, wire.Answer, error) {
	t.Helper()
	w, s := newWorld(0), &script{answers: answers}
	r := New(Config{Directory: w, Sender: s})
	a, err := r.Do(context.Background(), op)
	return s, w, a, err
}

func TestOutcomesOfAttempts(t *testing.T) {
	for _, tc := range []struct {
		name    string
		op      wire.Op
		answers []any
		want    error // nil: success
		tries   int   // 0: until the deadline
	}{
		{"success", put, []any{aOK}, nil, 1},
		{"absent key is a result", get, []any{wire.Answer{Code: wire.NotFound}}, nil, 1},
		{"failed condition is a result", put, []any{wire.Answer{Code: wire.ConditionFailed}}, nil, 1},
		{"hint is followed", put, []any{wire.Answer{Code: wire.NotLeader, Arg: 3}, aOK}, nil, 2},
		{"no hint: next replica", put, []any{aLost, aLost, aOK}, nil, 3},
		{"shard moved away", put, []any{wire.Answer{Code: wire.ShardNotFound}, aOK}, nil, 2},
		{"busy", put, []any{wire.Answer{Code: wire.Busy, Arg: 20}, aOK}, nil, 2},
		{"node shuts down", put, []any{wire.Answer{Code: wire.Unavailable}, aOK}, nil, 2},
		{"never proposed", put, []any{wire.Answer{Code: wire.TimedOut}, aOK}, nil, 2},
		{"faulted replica", get, []any{wire.Answer{Code: wire.Failed}, aOK}, nil, 2},
		{"write not sent", put, []any{errNotSent, aOK}, nil, 2},
		{"queue full", put, []any{errFull, errFull, aOK}, nil, 3},
		{"write broken off", put, []any{errBroke, aOK}, ErrAmbiguous, 1},
		{"write of unknown outcome", put, []any{wire.Answer{Code: wire.Ambiguous}, aOK}, ErrAmbiguous, 1},
		{"write without an answer", put, []any{silent{}, aOK}, ErrAmbiguous, 1},
		{"unknown code on a write", put, []any{wire.Answer{Code: 200}, aOK}, ErrAmbiguous, 1},
		{"write not sent, then broken off", put, []any{errNotSent, errBroke, aOK}, ErrAmbiguous, 2},
		{"read broken off", get, []any{errBroke, aOK}, nil, 2},
		{"read of unknown outcome", get, []any{wire.Answer{Code: wire.Ambiguous}, aOK}, nil, 2},
		{"read without an answer", get, []any{silent{}, silent{}, aOK}, nil, 3},
		{"invalid", put, []any{wire.Answer{Code: wire.Invalid, Payload: []byte("no")}, aOK}, ErrInvalid, 1},
		{"closed", put, []any{errMuxClosed, aOK}, ErrClosed, 1},
		{"never a leader", put, []any{wire.Answer{Code: wire.NotLeader}}, ErrUnavailable, 0},
		{"never reachable", put, []any{errNotSent}, ErrUnavailable, 0},
		{"always busy", put, []any{wire.Answer{Code: wire.Busy}}, ErrOverloaded, 0},
		{"disk short of space", put, []any{wire.Answer{Code: wire.DiskFull}, aOK}, nil, 2},
		{"disk always short of space", put, []any{wire.Answer{Code: wire.DiskFull}}, ErrDiskFull, 0},
		{"always full", get, []any{errFull}, ErrOverloaded, 0},
		{"hung node", get, []any{silent{}}, ErrUnavailable, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				s, _, _, err := play(t, tc.op, tc.answers...)
				if !errors.Is(err, tc.want) || (tc.want == nil) != (err == nil) {
					t.Fatalf("error %v, want %v", err, tc.want)
				}
				for _, other := range []error{ErrUnavailable, ErrOverloaded, ErrDiskFull, ErrAmbiguous, ErrInvalid, ErrCrossShard} {
					if tc.want != ErrClosed && other != tc.want && errors.Is(err, other) {
						t.Errorf("%v matches %v too", err, other)
					}
				}
				if tc.tries != 0 && len(s.ops) != tc.tries {
					t.Errorf("%d attempts, want %d", len(s.ops), tc.tries)
				}
				if tc.tries == 0 {
					if took := time.Since(start); took < 9*time.Second || took > 10*time.Second+time.Millisecond {
						t.Errorf("gave up after %s, want about the default of 10 s", took)
					}
					if len(s.ops) < 4 || len(s.ops) > 200 {
						t.Errorf("%d attempts in 10 s", len(s.ops))
					}
				}
				var e *Error
				if err != nil && (!errors.As(err, &e) || e.Attempts != len(s.ops) || e.Shard != 2 || e.Store == 0) {
					t.Errorf("error lacks data: %+v", e)
				}
			})
		})
	}
}

func TestFirstRepairIsTriedAtOnceAndTheRestBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		notLeader := wire.Answer{Code: wire.NotLeader}
		s, _, _, err := play(t, put, notLeader, notLeader, notLeader, notLeader, notLeader, notLeader, notLeader, aOK)
		if err != nil {
			t.Fatal(err)
		}
		if s.gap(0) != 0 {
			t.Errorf("first repair waited %s", s.gap(0))
		}
		base := 5 * time.Millisecond
		for i := 1; i < len(s.at)-1; i++ {
			if g := s.gap(i); g < base/2 || g > base*3/2 {
				t.Errorf("pause %d is %s, want %s and jitter", i, g, base)
			}
			base = base * 3 / 2
		}
	})
}

func TestBusyIsNeverAskedAgainBeforeItsWish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, w, _, err := play(t, put, wire.Answer{Code: wire.Busy, Arg: 100}, wire.Answer{Code: wire.Busy, Arg: 1 << 60}, aOK)
		if err != nil {
			t.Fatal(err)
		}
		if g := s.gap(0); g < 100*time.Millisecond || g > 150*time.Millisecond {
			t.Errorf("paused %s after a wish for 100 ms", g)
		}
		if g := s.gap(1); g > 2*maxBusyPause {
			t.Errorf("paused %s after an absurd wish", g)
		}
		if s.to[0] != s.to[1] || w.lookups != 1 {
			t.Errorf("asked %v with %d look-ups, want the same node again", s.to, w.lookups)
		}
	})
}

func TestHintsAndDescriptorsAreTakenFromAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, w, _, err := play(t, put, wire.Answer{Code: wire.NotLeader, Arg: 3}, aOK)
		if err != nil || s.to[1] != 3 || w.lookups != 1 {
			t.Errorf("asked %v with %d look-ups: %v", s.to, w.lookups, err)
		}
		left, right := desc(2, base.UserStart(), key(1), 2), desc(9, key(1), base.UserEnd(), 2)
		s, w, _, err = play(t, put, mismatch(left, right), aOK)
		if err != nil || s.ops[1].Shard != 9 || s.ops[1].Version != 2 || w.lookups != 1 || s.gap(0) != 0 {
			t.Errorf("sent %+v with %d look-ups: %v", s.ops[1], w.lookups, err)
		}
		if s.to[1] != s.to[0] {
			t.Errorf("the right side was asked of %s, want a guess that it is led by %s", s.to[1], s.to[0])
		}
		// A node that is behind teaches nothing: the directory is asked, and old news do not enter the cache.
		s, w, _, err = play(t, put, mismatch(desc(2, base.UserStart(), key(5), 0)), aOK)
		if err != nil || w.lookups != 2 || s.ops[1].Version != 1 {
			t.Errorf("%d look-ups, version %d: %v", w.lookups, s.ops[1].Version, err)
		}
	})
}

func TestReadMovesOnFromAHungNodeAndAWriteDoesNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, _, err := play(t, get, silent{}, aOK)
		if err != nil || s.to[0] == s.to[1] || s.gap(0) > 3*time.Second {
			t.Errorf("asked %v after %s: %v", s.to, s.gap(0), err)
		}
		if s.ops[0].Timeout != 2000 {
			t.Errorf("read time-out on the wire %d ms, want 2000", s.ops[0].Timeout)
		}
		start := time.Now()
		s, _, _, err = play(t, put, silent{})
		if !errors.Is(err, ErrAmbiguous) || len(s.ops) != 1 || time.Since(start) != 10*time.Second {
			t.Errorf("%d attempts in %s: %v", len(s.ops), time.Since(start), err)
		}
		if ms := s.ops[0].Timeout; ms < 9000 || ms > 10000 {
			t.Errorf("write time-out on the wire %d ms", ms)
		}
	})
}

func TestContextEndsAnOperation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, tc := range []struct {
			op     wire.Op
			answer any
			want   error
		}{
			{put, silent{}, ErrAmbiguous},
			{get, silent{}, ErrUnavailable},
			{put, wire.Answer{Code: wire.NotLeader}, ErrUnavailable},
		} {
			r := New(Config{Directory: newWorld(0), Sender: &script{answers: []any{tc.answer}}})
			ctx, cancel := context.WithCancel(context.Background())
			time.AfterFunc(300*time.Millisecond, cancel)
			start := time.Now()
			_, err := r.Do(ctx, tc.op)
			if !errors.Is(err, tc.want) || !errors.Is(err, context.Canceled) || time.Since(start) != 300*time.Millisecond {
				t.Errorf("after %s: %v, want %v", time.Since(start), err, tc.want)
			}
			s := &script{answers: []any{aOK}}
			r = New(Config{Directory: newWorld(0), Sender: s})
			if _, err = r.Do(ctx, tc.op); !errors.Is(err, ErrUnavailable) || len(s.ops) != 0 {
				t.Errorf("context ended before: %v after %d attempts", err, len(s.ops))
			}
		}
	})
}

// takeBack is a Sender whose operations never leave, and that can take them back.
type takeBack struct{ cancelled int }

func (*takeBack) Send(context.Context, base.StoreID, *wire.Op, func(wire.Answer, error)) {}
func (s *takeBack) Cancel(base.StoreID, uint64) bool                                     { s.cancelled++; return true }

func TestWriteThatNeverLeftTheQueueIsNotAmbiguous(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &takeBack{}
		r := New(Config{Directory: newWorld(0), Sender: s})
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err := r.Do(ctx, put)
		if !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrAmbiguous) || s.cancelled != 1 {
			t.Errorf("%v after %d cancels", err, s.cancelled)
		}
	})
}

func batchOf(keys ...int) wire.Op {
	op := wire.Op{Code: wire.OpBatch}
	for _, k := range keys {
		s := wire.Sub{Code: wire.OpPut, Key: key(k)}
		op.Value = s.Append(op.Value)
	}
	return op
}

func TestBatchOverTwoShardsIsRefusedWithoutBeingSent(t *testing.T) {
	w := newWorld(0, 20)
	r := New(Config{Directory: w, Sender: w})
	ctx := context.Background()
	if _, err := r.Do(ctx, batchOf(1, 19)); err != nil {
		t.Fatal(err)
	}
	sent := w.sent
	if _, err := r.Do(ctx, batchOf(1, 25)); !errors.Is(err, ErrCrossShard) || w.sent != sent {
		t.Fatalf("%v, %d sent", err, w.sent-sent)
	}
	wide := wire.Op{Code: wire.OpDeleteRange, Key: key(1), Value: key(30)}
	if _, err := r.Do(ctx, wide); !errors.Is(err, ErrCrossShard) {
		t.Fatal(err)
	}
	w.mu.Lock()
	w.mergeLocked(key(1))
	w.mu.Unlock()
	if _, err := r.Do(ctx, batchOf(1, 25)); err != nil {
		t.Fatalf("after a merge that the cache has not heard of: %v", err)
	}
	w.mu.Lock()
	w.stale = w.shards
	w.splitLocked(key(20))
	w.mu.Unlock()
	if _, err := r.Do(ctx, batchOf(1, 25)); !errors.Is(err, ErrCrossShard) {
		t.Fatalf("after a split that only the nodes have heard of: %v", err)
	}
}

func TestKnownRoutesGoOnWithoutTheDirectory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(0)
		s := &script{answers: []any{aOK}}
		dead := false
		dir := directoryFunc(func(ctx context.Context, k []byte, rev bool) ([]Route, error) {
			if dead {
				return nil, errors.New("no quorum")
			}
			return w.Lookup(ctx, k, rev)
		})
		r := New(Config{Directory: dir, Sender: s})
		if _, err := r.Do(context.Background(), put); err != nil {
			t.Fatal(err)
		}
		dead = true
		s.answers = []any{wire.Answer{Code: wire.ShardNotFound}, aOK}
		if _, err := r.Do(context.Background(), put); err != nil {
			t.Fatalf("known route: %v", err)
		}
		_, err := New(Config{Directory: dir, Sender: s}).Do(context.Background(), put)
		if !errors.Is(err, ErrUnavailable) {
			t.Fatalf("unknown route: %v", err)
		}
	})
}

func TestDirectoryMayReadSystemKeysThroughTheRouterThatAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(0)
		meta := desc(base.MetaShard, base.SystemStart(), base.SystemEnd(), 1)
		var r *Router
		dir := directoryFunc(func(ctx context.Context, k []byte, rev bool) ([]Route, error) {
			if !rev && meta.Contains(k) || rev && string(k) == string(meta.End) {
				return []Route{{Desc: meta, Leader: 1}}, nil
			}
			for _, err := range r.Scan(ctx, base.SystemStart(), base.SystemEnd(), ScanOptions{Reverse: rev}) {
				if err != nil {
					return nil, err
				}
			}
			return w.Lookup(ctx, k, rev)
		})
		for _, reverse := range []bool{false, true} {
			s := &script{answers: []any{wire.Answer{}}}
			r = New(Config{Directory: dir, Sender: s})
			for _, err := range r.Scan(context.Background(), base.UserStart(), base.UserEnd(), ScanOptions{Reverse: reverse}) {
				if err != nil {
					t.Error(err)
				}
			}
			if len(s.ops) != 2 || s.ops[0].Shard != base.MetaShard {
				t.Errorf("%d operations", len(s.ops))
			}
		}
	})
}

type directoryFunc func(context.Context, []byte, bool) ([]Route, error)

func (f directoryFunc) Lookup(ctx context.Context, k []byte, rev bool) ([]Route, error) {
	return f(ctx, k, rev)
}

// TestASplitIsFollowedWithoutTheDirectory: the answer names both sides, the next attempt goes to the right one, at the
// node that answered, and at once.
func TestASplitIsFollowedWithoutTheDirectory(t *testing.T) {
	w := newWorld(100)
	r := New(Config{Directory: w, Sender: w, BackoffMin: time.Hour})
	ctx := context.Background()
	if _, err := r.Do(ctx, wire.Op{Code: wire.OpPut, Key: key(70), Value: []byte("1")}); err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	lookups, sent := w.lookups, w.sent
	w.splitLocked(key(50))
	w.leader[w.shards[1].Shard] = w.leader[w.shards[0].Shard] // it is led where the shard was
	w.mu.Unlock()
	for _, i := range []int{70, 20} {
		if _, err := r.Do(ctx, wire.Op{Code: wire.OpPut, Key: key(i), Value: []byte("2")}); err != nil {
			t.Fatal(err)
		}
	}
	if w.lookups != lookups || w.sent != sent+3 {
		t.Fatalf("%d look-ups, %d attempts; want none and 3", w.lookups-lookups, w.sent-sent)
	}
}
