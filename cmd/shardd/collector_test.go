package main

import (
	"math"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"
)

func TestSlackDoesNotGrowWithWhatIsLive(t *testing.T) {
	const slack, most = 256 << 20, 400
	for _, c := range []struct {
		live uint64
		want int
	}{
		{0, most}, {10 << 20, most}, {64 << 20, most}, {128 << 20, 200}, {256 << 20, 100}, {1 << 30, 25},
		{16 << 30, leastGCPercent},
	} {
		if got := gcPercentFor(c.live, slack, most); got != c.want {
			t.Errorf("%d MiB live: %d percent, want %d", c.live>>20, got, c.want)
		}
	}
	if got := gcPercentFor(1<<30, slack, 10); got != 10 {
		t.Errorf("at most 10 percent asked for, got %d", got)
	}
}

func TestTheCollectorFollowsALargeHeap(t *testing.T) {
	before := debug.SetGCPercent(400)
	defer debug.SetGCPercent(before)
	stop := tuneCollector(400, 16<<20, time.Millisecond)
	large := make([]byte, 64<<20)
	runtime.GC()
	deadline := time.Now().Add(30 * time.Second)
	for {
		sample := []metrics.Sample{{Name: "/gc/gogc:percent"}}
		if metrics.Read(sample); sample[0].Value.Uint64() < 400 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("GOGC was not lowered")
		}
		time.Sleep(time.Millisecond)
	}
	runtime.KeepAlive(large)
	stop()
}

// rests reports whether GOGC is off.
func rests() bool {
	sample := []metrics.Sample{{Name: "/gc/gogc:percent"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64() > math.MaxInt64
}

func TestTheCollectorRestsWithTheProcess(t *testing.T) {
	before, limit := debug.SetGCPercent(400), debug.SetMemoryLimit(-1)
	defer debug.SetGCPercent(before)
	c := newCollector(400, 64<<20)
	defer c.wake()
	idle := func() {
		t.Helper()
		runtime.GC()
		for range restAfter + 1 {
			if c.look(); rests() {
				t.Fatal("it rests before a collection came by the time alone")
			}
		}
		runtime.GC() // as Go does after two minutes
		if c.look(); !rests() {
			t.Fatal("it does not rest")
		}
		for range 10 {
			if c.look(); !rests() {
				t.Fatal("a process that does nothing ends its rest")
			}
		}
		if l := debug.SetMemoryLimit(-1); l >= limit {
			t.Fatalf("nothing limits garbage while it rests: limit %d", l)
		}
	}
	idle()

	// Garbage beyond what the percentage allows starts a collection, and that ends the rest.
	sample := []metrics.Sample{{Name: "/gc/cycles/total:gc-cycles"}}
	metrics.Read(sample)
	old, piled := sample[0].Value.Uint64(), 0
	for sample[0].Value.Uint64() == old {
		garbage = make([]byte, 1<<20)
		if piled++; piled > 1024 {
			t.Fatal("1 GiB of garbage, and no collection")
		}
		metrics.Read(sample)
	}
	if c.look(); rests() || debug.SetMemoryLimit(-1) != limit {
		t.Fatal("the rest did not end, or left its limit behind")
	}
	t.Logf("collected after %d MiB", piled)

	idle()
	garbage = make([]byte, restBelow+1)
	if c.look(); rests() {
		t.Fatal("it rests while the process allocates")
	}
	idle()
	c.rested = restMost
	if c.look(); rests() {
		t.Fatal("the rest has no end")
	}
}

var garbage []byte
