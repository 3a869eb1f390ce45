package liveness

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shardd/shardd/internal/base"
)

// tolerated is the largest error of a clock's rate, up or down, such that any two rates differ by at most margin.
func tolerated(margin float64) float64 { return margin / (2 - margin) }

// faults makes something happen to a random store or link.
func (w *world) faults(clockError float64) {
	s := w.stores[w.rng.IntN(len(w.stores))]
	o := w.stores[w.rng.IntN(len(w.stores))]
	switch w.rng.IntN(9) {
	case 0, 1:
		s.paused = s.mon != nil && !s.paused
	case 2:
		if s.mon == nil {
			s.start()
		} else if w.rng.IntN(2) == 0 {
			s.kill()
		}
	case 3:
		s.kill()
		s.start()
	case 4:
		s.setRate(1 + clockError*float64(w.rng.IntN(3)-1))
	case 5:
		s.setRate(1 + clockError*(2*w.rng.Float64()-1))
	case 6:
		link := [2]base.StoreID{s.id, o.id}
		w.cut[link] = !w.cut[link]
	case 7:
		clear(w.cut)
		s.sick = !s.sick
	case 8:
		w.net = netFaults{drop: 0.3 * w.rng.Float64(), duplicate: 0.3 * w.rng.Float64(),
			maxDelay: time.Duration(w.rng.Int64N(int64(30 * ms)))}
		if w.rng.IntN(4) == 0 {
			w.net.maxDelay = 900 * ms // some bodies come long after those that left later
		}
	}
}

// rage runs a world under faults and returns the first breach.
func rage(t testing.TB, seed uint64, margin float64, d time.Duration) (w *world, err error) {
	e := tolerated(0.05) // the error that clocks have, whatever the margin is set to
	w = newWorld(t, seed, 3, func(c *Config) { c.Margin = margin })
	for _, s := range w.stores {
		s.setRate(1 + e*float64(w.rng.IntN(3)-1))
	}
	for end := w.now + d; w.now < end && err == nil; {
		if w.rng.IntN(60) == 0 {
			w.faults(e)
		}
		for _, s := range w.stores { // workers look at any time, and act on what they see
			if s.mon != nil && !s.paused && w.rng.IntN(20) == 0 {
				s.mon.Epoch(w.stores[w.rng.IntN(3)].id, s.Boot())
			}
		}
		w.run(time.Duration(1+w.rng.Int64N(int64(2*ms))), func() {
			if err == nil {
				err = w.breach()
			}
		})
	}
	return w, err
}

// calm ends all faults.
func (w *world) calm() {
	clear(w.cut)
	w.net = netFaults{maxDelay: ms}
	for _, s := range w.stores {
		s.paused, s.sick = false, false
		if s.mon == nil {
			s.start()
		}
	}
}

func TestNobodyCountsOnSupportThatHasEnded(t *testing.T) {
	rounds := uint64(60)
	if testing.Short() {
		rounds = 12
	}
	var lapses, restarts int
	for seed := range rounds {
		w, err := rage(t, seed, 0.05, 20*time.Second)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		w.calm()
		w.run(3 * time.Second)
		for _, a := range w.stores {
			lapses, restarts = lapses+len(a.ended), restarts+int(a.incarnation)-1
			for _, b := range w.stores {
				if a != b && !w.counts(a.id, b.id) {
					t.Errorf("seed %d: 3 s after the last fault %s does not count on %s", seed, a.id, b.id)
				}
			}
		}
	}
	if lapses < int(rounds)*10 || restarts < int(rounds)*5 {
		t.Errorf("%d lapses and %d restarts in %d rounds: the faults are too tame", lapses, restarts, rounds)
	}
}

// TestWithoutAMarginClocksWithinTheErrorBreakThePromise keeps the test above honest.
func TestWithoutAMarginClocksWithinTheErrorBreakThePromise(t *testing.T) {
	for seed := range uint64(40) {
		if _, err := rage(t, seed, 0, 20*time.Second); err != nil {
			t.Logf("seed %d: %v", seed, err)
			return
		}
	}
	t.Error("no breach in 40 runs: the test of the margin finds nothing")
}

// TestHintsArriveInOrderAndOnceUnderFaults: whatever the network does, while neither store restarts.
func TestHintsArriveInOrderAndOnceUnderFaults(t *testing.T) {
	for seed := range uint64(10) {
		w := newWorld(t, seed, 2, nil)
		w.net = netFaults{drop: 0.3, duplicate: 0.3, maxDelay: 300 * ms}
		var want []Group
		for i := range 3000 {
			g := Group{Shard: base.ShardID(i + 1), Term: uint64(i % 7)}
			want = append(want, g)
			w.store(1).mon.Release([]base.StoreID{1, 2, 3}, g)
			if i%10 == 0 {
				w.step(ms)
			}
		}
		for i := 0; i < 600 && len(w.store(2).released) < len(want); i++ {
			w.run(100 * ms)
		}
		w.run(2 * time.Second)
		if got := w.store(2).released; fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("seed %d: %d hints arrived, want %d in order", seed, len(got), len(want))
		}
		if n := w.store(1).mon.Status(w.store(1).Boot())[0].Pending; n != 0 {
			t.Errorf("seed %d: %d hints are never acknowledged", seed, n)
		}
	}
}

// handClock is a clock that a test moves while others read it.
type handClock struct{ now atomic.Int64 }

func (c *handClock) Boot() time.Duration { return time.Duration(c.now.Load()) }
func (c *handClock) Wall() time.Time     { return time.Unix(0, 0) }

// TestAPromiseThatOneWorkerSawEndBindsNobodyLater: workers on their own goroutines ask while bodies come in that prolong
// the promise at its very end.
func TestAPromiseThatOneWorkerSawEndBindsNobodyLater(t *testing.T) {
	clk := &handClock{}
	clk.now.Store(int64(time.Hour))
	var heard atomic.Uint64 // our last body
	m := New(Config{Store: 1, Incarnation: 3, Promise: 800 * ms, Clock: clk, Send: func(base.StoreID, []byte) { heard.Add(1) }})
	m.SetPeers([]base.StoreID{2})
	var (
		ended, yes, no atomic.Uint64
		stop           atomic.Bool
		wg             sync.WaitGroup
	)
	for range 3 {
		wg.Go(func() {
			for !stop.Load() {
				epoch := m.Epoch(2, clk.Boot())
				for epoch != 0 && !stop.Load() {
					over := ended.Load() >= epoch // somebody was told so before we ask
					if !m.Supports(2, epoch, clk.Boot()) {
						no.Add(1)
						for e := ended.Load(); e < epoch && !ended.CompareAndSwap(e, epoch); e = ended.Load() {
						}
						break
					}
					yes.Add(1)
					if over {
						t.Errorf("epoch %s binds after its end was seen", short(epoch))
						return
					}
				}
			}
		})
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for seq := uint64(1); seq < 200_000 && (seq < 20_000 || no.Load() < 100); seq++ {
		m.Tick(clk.Boot())
		b := body{asks: true, from: 1, to: 3, seq: seq, heard: heard.Load(), promise: 800 * ms}
		payload := b.append(nil)
		clk.now.Add(rng.Int64N(int64(110 * ms)))
		m.Receive(2, 1, payload)
		if rng.IntN(4) == 0 {
			clk.now.Add(int64(800*ms) - rng.Int64N(int64(ms)/10))
			for range rng.IntN(3) {
				clk.now.Add(rng.Int64N(int64(ms) / 10))
			}
		}
	}
	stop.Store(true)
	wg.Wait()
	if yes.Load() == 0 || no.Load() == 0 {
		t.Errorf("%d answers yes, %d no", yes.Load(), no.Load())
	}
}
