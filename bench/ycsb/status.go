package ycsb

import (
	"fmt"
	"strings"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Status is a view of a load or run that goes on.
type Status struct {
	// Elapsed is the time since the start, warm-up included.
	Elapsed time.Duration
	// Warmup says that what happens now is not measured yet.
	Warmup bool
	// Operations is how many measured operations have started, of Of (0: bounded by time alone).
	Operations, Of int64
	// OpsPerSec is of the last interval, over all operations that succeeded.
	OpsPerSec float64
	// Errors is how many operations failed in the last interval.
	Errors int64
	// Ops are the kinds of operation that ended in the last interval.
	Ops []OpStatus
}

// OpStatus is one kind of operation in the last interval.
type OpStatus struct {
	Name      string
	Count     int64
	OpsPerSec float64
	// P50 and P99 are latencies, to two digits.
	P50, P99 time.Duration
}

// String is one line, for a terminal.
func (s Status) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%4.0fs %9d ops %9.0f ops/s", s.Elapsed.Seconds(), s.Operations, s.OpsPerSec)
	for _, o := range s.Ops {
		fmt.Fprintf(&b, "  [%s %.0f/s p50 %s p99 %s]", o.Name, o.OpsPerSec, short(o.P50), short(o.P99))
	}
	if s.Errors > 0 {
		fmt.Fprintf(&b, "  errors %d", s.Errors)
	}
	if s.Warmup {
		b.WriteString("  (warm-up)")
	}
	return b.String()
}

// short prints a latency in three digits or so.
func short(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return fmt.Sprintf("%dus", d.Microseconds())
	case d < 100*time.Millisecond:
		return fmt.Sprintf("%.1fms", float64(d)/float64(time.Millisecond))
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	default:
		return fmt.Sprintf("%.1fs", d.Seconds())
	}
}

// observer makes a Status every interval from what the workers put aside. Workers share few places, so that reading
// them costs little however many workers there are.
type observer struct {
	cfg    Config
	driver *driver
	live   [16]live
	last   time.Duration
}

func newObserver(cfg Config, d *driver) *observer {
	o := &observer{cfg: cfg, driver: d}
	for i, k := range d.workers {
		k.live = &o.live[i%len(o.live)]
	}
	return o
}

func (o *observer) run(done <-chan struct{}) {
	ticker := time.NewTicker(o.cfg.StatusInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			o.cfg.Status(o.take())
		case <-done:
			return
		}
	}
}

func (o *observer) take() Status {
	d := o.driver
	s := Status{Elapsed: d.now(), Operations: d.taken.Load(), Of: d.operations}
	if s.Of > 0 {
		s.Operations = min(s.Operations, s.Of) // workers that found none left have counted too
	}
	s.Warmup = s.Elapsed < d.warmup
	interval := (s.Elapsed - o.last).Seconds()
	o.last = s.Elapsed
	var sums [numOperations]*hdrhistogram.Histogram
	for i := range o.live {
		s.Errors += o.live[i].drain(&sums)
	}
	for op, h := range sums {
		if h == nil {
			continue
		}
		rate := float64(h.TotalCount()) / interval
		s.OpsPerSec += rate
		s.Ops = append(s.Ops, OpStatus{Name: operation(op).String(), Count: h.TotalCount(), OpsPerSec: rate,
			P50: microseconds(h.ValueAtPercentile(50)), P99: microseconds(h.ValueAtPercentile(99))})
	}
	return s
}

func microseconds(n int64) time.Duration { return time.Duration(n) * time.Microsecond }
