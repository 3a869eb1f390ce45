package snapshotter

import (
	"context"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/shardd/shardd/internal/clock"
)

// pacer is a token bucket of bytes that all streams of one direction share. Safe for concurrent use.
type pacer struct {
	clock  clock.Clock
	bucket *rate.Limiter
	limit  atomic.Uint64 // bytes per second
	waited func(time.Duration)
	sleep  func(context.Context, time.Duration) error // replaced by tests
}

// newPacer returns a full bucket of one part. waited hears of every wait.
func newPacer(c clock.Clock, bytesPerSecond uint64, waited func(time.Duration)) *pacer {
	p := &pacer{clock: c, waited: waited, sleep: sleep}
	p.bucket = rate.NewLimiter(rate.Limit(bytesPerSecond), partBytes)
	p.limit.Store(bytesPerSecond)
	return p
}

// now maps boot time to what rate wants; only differences count.
func (p *pacer) now() time.Time { return time.Unix(0, int64(p.clock.Boot())) }

func (p *pacer) setLimit(bytesPerSecond uint64) {
	p.limit.Store(bytesPerSecond)
	p.bucket.SetLimitAt(p.now(), rate.Limit(bytesPerSecond))
}

// take waits until some of the wanted bytes may move and returns how many: all of them, up to a part, while the bucket
// has them, else at most a slice, so that streams take turns and bursts stay short. It fails only with the context's
// cause.
func (p *pacer) take(ctx context.Context, want int) (int, error) {
	want = min(want, partBytes)
	now := p.now()
	if p.bucket.AllowN(now, want) {
		return want, nil
	}
	want = min(want, sliceBytes)
	r := p.bucket.ReserveN(now, want)
	d := r.DelayFrom(now)
	if d <= 0 {
		return want, nil
	}
	p.waited(d)
	if err := p.sleep(ctx, d); err != nil {
		r.CancelAt(p.now())
		return 0, err
	}
	return want, nil
}

// takeAll waits until n bytes may move.
func (p *pacer) takeAll(ctx context.Context, n int) error {
	for n > 0 {
		got, err := p.take(ctx, n)
		if err != nil {
			return err
		}
		n -= got
	}
	return nil
}

// sleep waits, or returns the context's cause.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
