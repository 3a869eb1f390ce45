package main

import (
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
