package node

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// scanWorkers runs scans of all streams on at most max goroutines, first come first served, so that long scans take
// neither the answer loops nor all processors. The goroutines exist only while there is work. submit never blocks: the
// streams bound what they submit.
type scanWorkers struct {
	max     int
	waiting prometheus.Gauge

	mu struct {
		sync.Mutex
		queue   []func()
		running int
	}
	wg sync.WaitGroup
}

func newScanWorkers(max int, waiting prometheus.Gauge) *scanWorkers {
	return &scanWorkers{max: max, waiting: waiting}
}

func (w *scanWorkers) submit(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mu.queue = append(w.mu.queue, f)
	w.waiting.Inc()
	if w.mu.running < w.max {
		w.mu.running++
		w.wg.Go(w.run)
	}
}

func (w *scanWorkers) run() {
	for {
		w.mu.Lock()
		if len(w.mu.queue) == 0 {
			w.mu.running--
			w.mu.queue = nil
			w.mu.Unlock()
			return
		}
		f := w.mu.queue[0]
		w.mu.queue[0] = nil
		w.mu.queue = w.mu.queue[1:]
		w.mu.Unlock()
		w.waiting.Dec()
		f()
	}
}

// wait joins the workers; nothing is submitted any more.
func (w *scanWorkers) wait() { w.wg.Wait() }
