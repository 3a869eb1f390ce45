package sched

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
)

func TestKeysGoToTheirWorkerInOrderOfArrival(t *testing.T) {
	got := map[int][]uint64{}
	p := New(3, func(w int, keys []uint64) { got[w] = append(got[w], keys...) })
	p.EnqueueMany([]uint64{7, 3, 4, 9, 5, 1})
	p.Enqueue(6)
	for w := range p.Workers() {
		for p.Poll(w) {
		}
	}
	want := map[int][]uint64{0: {3, 9, 6}, 1: {7, 4, 1}, 2: {5}}
	for w, keys := range want {
		if !slices.Equal(got[w], keys) {
			t.Errorf("worker %d got %v, want %v", w, got[w], keys)
		}
	}
}

func TestDuplicatesCoalesceWhileQueued(t *testing.T) {
	var calls [][]uint64
	p := New(1, func(_ int, keys []uint64) { calls = append(calls, slices.Clone(keys)) })
	for range 5 {
		p.Enqueue(4)
		p.EnqueueMany([]uint64{4, 8, 4})
	}
	for p.Poll(0) {
	}
	if len(calls) != 1 || !slices.Equal(calls[0], []uint64{4, 8}) {
		t.Fatalf("calls %v, want one with [4 8]", calls)
	}
}

func TestAKeyEnqueuedWhileProcessedComesBack(t *testing.T) {
	rounds := 0
	var p *Pool
	p = New(2, func(_ int, keys []uint64) {
		if rounds++; rounds < 3 {
			p.Enqueue(keys[0])
		}
	})
	p.Enqueue(5)
	for p.Poll(1) {
	}
	if rounds != 3 {
		t.Fatalf("%d rounds, want 3", rounds)
	}
}

func TestOneCallHoldsABoundedNumberOfKeys(t *testing.T) {
	var sizes []int
	p := New(1, func(_ int, keys []uint64) { sizes = append(sizes, len(keys)) })
	for k := range uint64(2*maxKeys + 3) {
		p.Enqueue(k)
	}
	p.Enqueue(2) // still queued: no second time
	for p.Poll(0) {
		p.Enqueue(uint64(2*maxKeys + 1)) // coalesces with the one that waits, until that one has been taken
		if len(sizes) == 3 {
			break
		}
	}
	if !slices.Equal(sizes, []int{maxKeys, maxKeys, 3}) {
		t.Fatalf("calls of %v keys", sizes)
	}
	if p.Queued(0) != 1 {
		t.Fatalf("%d keys queued, want 1", p.Queued(0))
	}
}

func TestRunNeverLosesAKeyNorRunsAWorkerTwice(t *testing.T) {
	defer goleak.VerifyNone(t)
	const keys, rounds, producers = 97, 200, 4
	var seen [keys]atomic.Int64
	var pending [keys]atomic.Int64
	var busy [3]atomic.Bool
	p := New(3, func(w int, ks []uint64) {
		if busy[w].Swap(true) {
			t.Error("worker entered twice")
		}
		for _, k := range ks {
			if int(k%3) != w {
				t.Errorf("key %d on worker %d", k, w)
			}
			seen[k].Add(pending[k].Swap(0))
		}
		busy[w].Store(false)
	})
	ctx, cancel := context.WithCancel(context.Background())
	var run, prod sync.WaitGroup
	run.Go(func() {
		if err := p.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	for range producers {
		prod.Go(func() {
			for range rounds {
				for k := range uint64(keys) {
					pending[k].Add(1)
					p.Enqueue(k)
				}
			}
		})
	}
	prod.Wait()
	done := func() bool {
		for k := range seen {
			if seen[k].Load() != rounds*producers {
				return false
			}
		}
		return true
	}
	for !done() {
		p.Enqueue(0) // a turn of the scheduler; the others must come by themselves
	}
	cancel()
	run.Wait()
}

func BenchmarkEnqueuePoll(b *testing.B) {
	p := New(1, func(int, []uint64) {})
	keys := make([]uint64, 128)
	for i := range keys {
		keys[i] = uint64(i)
	}
	b.ReportAllocs()
	for b.Loop() {
		p.EnqueueMany(keys)
		p.Poll(0)
	}
}
