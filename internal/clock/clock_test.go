package clock

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestSystemBootTimeNeverGoesBack(t *testing.T) {
	c := System()
	last := c.Boot()
	if last <= 0 {
		t.Fatalf("boot time %s", last)
	}
	for range 1000 {
		now := c.Boot()
		if now < last {
			t.Fatalf("%s after %s", now, last)
		}
		last = now
	}
	if w := c.Wall(); w.IsZero() {
		t.Fatal("no wall time")
	}
}

func TestProcessClockFollowsVirtualTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := Process()
		wall := c.Wall()
		if c.Boot() != 0 {
			t.Fatalf("starts at %s", c.Boot())
		}
		time.Sleep(time.Hour)
		if c.Boot() != time.Hour || c.Wall().Sub(wall) != time.Hour {
			t.Fatalf("boot %s, wall %s after an hour", c.Boot(), c.Wall().Sub(wall))
		}
	})
}

func TestTickersOfAProcessTickTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second+5*time.Millisecond)
		defer cancel()
		var times [2][]time.Time
		var wg sync.WaitGroup
		for i, d := range []time.Duration{100 * time.Millisecond, 200 * time.Millisecond} {
			time.Sleep(13 * time.Millisecond)
			wg.Go(func() { Ticker(ctx, d, func() { times[i] = append(times[i], time.Now()) }) })
		}
		wg.Wait()
		if len(times[0]) < 9 || len(times[1]) < 4 {
			t.Fatalf("%d and %d ticks", len(times[0]), len(times[1]))
		}
		for _, at := range times[1] {
			if !slices.ContainsFunc(times[0], at.Equal) {
				t.Errorf("a tick at %s has no company", at)
			}
		}
	})
}

func TestTheNextAlignedMomentIsAtMostOnePeriodAway(t *testing.T) {
	check := func() {
		for _, d := range []time.Duration{time.Millisecond, 100 * time.Millisecond, time.Hour} {
			if u := UntilAligned(d); u <= 0 || u > d {
				t.Errorf("%s until the next multiple of %s", u, d)
			}
			if u := NextAligned(d); u < d/2 || u > d+d/2 {
				t.Errorf("%s until the next multiple of %s that leaves time", u, d)
			}
		}
	}
	for _, pause := range []time.Duration{0, 7 * time.Millisecond, time.Second} {
		const step = time.Hour // far longer than what lies between the two looks
		if p := InStep(pause, step); p < pause || p >= pause+step {
			t.Errorf("a pause of %s became %s", pause, p)
		} else if at := (System().Boot() + p) % step; at > time.Second && at < step-time.Second {
			t.Errorf("a pause of %s ends %s past a multiple of %s", pause, at, step)
		}
	}
	check()
	synctest.Test(t, func(*testing.T) { check() }) // before the machine began
}

func TestAllProcessesOfAMachineTickTogether(t *testing.T) {
	const d = time.Minute // far longer than what lies between the two looks
	at := (System().Boot() + UntilAligned(d)) % d
	if at > time.Second && at < d-time.Second {
		t.Errorf("a tick is %s past a multiple of %s of the machine's time", at, d)
	}
}
