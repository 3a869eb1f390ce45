package clock

import (
	"context"
	"time"
)

// began is when the machine was booted, so that what ticks in step does so in all processes of a machine: they wake it
// together, and what one sends finds the others awake. Other machines have other boots, so they do not all speak at once.
var began = time.Now().Add(-System().Boot())

// UntilAligned returns how long it is until the next multiple of d since the machine began: more than 0, at most d. What comes
// less often than once a minute need not be in step: d itself.
func UntilAligned(d time.Duration) time.Duration {
	if d > time.Minute {
		return d
	}
	past := time.Since(began) % d
	if past < 0 { // testing/synctest's time began before the machine
		past += d
	}
	return d - past
}

// NextAligned is UntilAligned for what needs about d between two moments: at least half of it.
func NextAligned(d time.Duration) time.Duration {
	next := UntilAligned(d)
	if next < d/2 {
		next += d
	}
	return next
}

// InStep prolongs a pause to the next multiple of step since the machine began.
func InStep(pause, step time.Duration) time.Duration {
	past := (time.Since(began) + pause) % step
	if past < 0 {
		past += step
	}
	return pause + (step-past)%step
}

// Ticker calls f every d until ctx ends, at multiples of d since the machine began. What ticks in step wakes an idle process once
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
