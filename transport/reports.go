package transport

import (
	"context"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// reports brings lost appends to the handler, on a goroutine of its own.
type reports struct {
	wake chan struct{}
	mu   struct {
		sync.Mutex
		lost []group
	}
}

// add never blocks. The list is bounded by the lanes, which name a group once per loss.
func (r *reports) add(g group) {
	r.mu.Lock()
	r.mu.lost = append(r.mu.lost, g)
	r.mu.Unlock()
	poke(r.wake)
}

// poll delivers what is there.
func (r *reports) poll(h Handler, count prometheus.Counter) (worked bool) {
	r.mu.Lock()
	lost := r.mu.lost
	r.mu.lost = nil
	r.mu.Unlock()
	for _, g := range lost {
		h.Unreachable(g.shard, g.from, g.to)
	}
	count.Add(float64(len(lost)))
	return len(lost) > 0
}

func (r *reports) run(ctx context.Context, h Handler, count prometheus.Counter) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
			r.poll(h, count)
		}
	}
}
