// Package logq is a writer for logs that never waits: Write copies the line into a bounded queue and returns, and one
// goroutine writes it out. When the sink is slow (a full pipe, a stalled disk, a stopped terminal) and the queue is
// full, lines are dropped and counted, so that logging cannot hold up the data path. It never reorders lines and never
// blocks a caller; only Close waits.
package logq

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// Writer is an io.Writer for one log line at a time. Safe for concurrent use.
type Writer struct {
	sink    io.Writer
	limit   int
	dropped atomic.Uint64
	wake    chan struct{}
	done    chan struct{}

	mu struct {
		sync.Mutex
		queue  [][]byte
		bytes  int
		closed bool
	}
}

// DefaultLimit is how many bytes of lines may wait.
const DefaultLimit = 4 << 20

// New starts the goroutine that writes to sink; Close ends it. limit is in bytes, 0 means DefaultLimit.
func New(sink io.Writer, limit int) *Writer {
	if limit <= 0 {
		limit = DefaultLimit
	}
	w := &Writer{sink: sink, limit: limit, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go w.run()
	return w
}

// Write queues a copy of line, or drops it. It always reports success: a log line has nobody to tell.
func (w *Writer) Write(line []byte) (int, error) {
	w.mu.Lock()
	if w.mu.closed || w.mu.bytes+len(line) > w.limit {
		w.mu.Unlock()
		w.dropped.Add(1)
		return len(line), nil
	}
	w.mu.queue = append(w.mu.queue, append([]byte(nil), line...))
	w.mu.bytes += len(line)
	w.mu.Unlock()
	w.signal()
	return len(line), nil
}

// Dropped is the number of lines lost since New.
func (w *Writer) Dropped() uint64 { return w.dropped.Load() }

// Close writes out what is queued, for at most wait, and refuses further lines. It reports whether all were written.
func (w *Writer) Close(wait time.Duration) bool {
	w.mu.Lock()
	w.mu.closed = true
	w.mu.Unlock()
	w.signal()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-w.done:
		return true
	case <-timer.C: // the sink hangs; the goroutine is left to it
		return false
	}
}

func (w *Writer) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *Writer) run() {
	defer close(w.done)
	var told uint64
	for {
		w.mu.Lock()
		queue, closed := w.mu.queue, w.mu.closed
		w.mu.queue = nil
		w.mu.Unlock()
		for _, line := range queue {
			_, _ = w.sink.Write(line)
			w.mu.Lock()
			w.mu.bytes -= len(line) // only now: the line being written counts too
			w.mu.Unlock()
		}
		if n := w.Dropped(); n > told {
			_, _ = fmt.Fprintf(w.sink, "%d log lines were dropped: the log could not be written fast enough\n", n-told)
			told = n
		}
		if len(queue) > 0 {
			continue
		}
		if closed {
			return
		}
		<-w.wake
	}
}
