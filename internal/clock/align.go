package clock

import (
	"context"
	"time"
)

var began = time.Now()

// UntilAligned returns how long it is until the next multiple of d since this process began: more than 0, at most d.
func UntilAligned(d time.Duration) time.Duration {
	past := time.Since(began) % d
	if past < 0 { // testing/synctest's time began before the process
		past += d
	}
	return d - past
}

// Ticker calls f every d until ctx ends, at multiples of d since this process began. What ticks in step wakes an idle process once
// instead of once each; and waking is nearly all that an idle process costs.
func Ticker(ctx context.Context, d time.Duration, f func()) {
	first := time.NewTimer(UntilAligned(d))
	defer first.Stop()
	select {
	case <-ctx.Done():
		return
	case <-first.C:
	}
	t := time.NewTicker(d)
	defer t.Stop()
	for f(); ; f() {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}
