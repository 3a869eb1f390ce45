package ycsb

import (
	"maps"
	"time"
)

// Report is the outcome of a load or run. Its JSON form is what WriteJSON writes.
type Report struct {
	Workload string    `json:"workload"`
	Phase    string    `json:"phase"` // load or run
	Started  time.Time `json:"started"`
	// Seconds is the length of the measured part, up to the end of its last operation.
	Seconds float64 `json:"seconds"`
	Warmup  float64 `json:"warmup_seconds,omitempty"`
	Threads int     `json:"threads"`
	// Target is the rate of an open loop in operations per second, 0 for a closed loop. With a target, latencies count
	// from the intended start.
	Target float64 `json:"target_ops_per_sec,omitempty"`
	// Missed is how many operations an open loop should have started within its time and did not.
	Missed int64 `json:"missed,omitempty"`
	// Operations has the kinds of operation that occurred, in YCSB's order; READ and UPDATE include the parts of
	// READ_MODIFY_WRITE.
	Operations []OpReport `json:"operations"`
	// Total counts every operation once.
	Total OpReport `json:"total"`
	// RowsScanned and BytesRead are of all operations that succeeded.
	RowsScanned int64 `json:"rows_scanned,omitempty"`
	BytesRead   int64 `json:"bytes_read,omitempty"`
	// ErrorExamples has the text of one error for each class.
	ErrorExamples map[string]string `json:"error_examples,omitempty"`
	// Properties are those that were set.
	Properties Properties `json:"properties"`
	Machine    Machine    `json:"machine"`
}

// OpReport is one kind of operation.
type OpReport struct {
	Name string `json:"name"`
	// Count, OpsPerSec and Latency are of the operations that succeeded.
	Count     int64   `json:"count"`
	OpsPerSec float64 `json:"ops_per_sec"`
	Latency   Latency `json:"latency"`
	// Service is the latency from the actual start; open loop only.
	Service *Latency `json:"service,omitempty"`
	// Errors counts the operations that failed, by class (see ErrorClass).
	Errors       map[string]int64 `json:"errors,omitempty"`
	ErrorCount   int64            `json:"error_count"`
	ErrorLatency *Latency         `json:"error_latency,omitempty"`
}

// Latency sums latencies up, in microseconds. Percentiles have three digits; the others are exact.
type Latency struct {
	Mean  float64 `json:"mean_us"`
	Min   float64 `json:"min_us"`
	Max   float64 `json:"max_us"`
	P50   float64 `json:"p50_us"`
	P90   float64 `json:"p90_us"`
	P95   float64 `json:"p95_us"`
	P99   float64 `json:"p99_us"`
	P999  float64 `json:"p999_us"`
	P9999 float64 `json:"p9999_us"`
}

// Op returns the kind of operation of that name, or one with a count of 0.
func (r *Report) Op(name string) OpReport {
	for _, o := range r.Operations {
		if o.Name == name {
			return o
		}
	}
	return OpReport{Name: name}
}

func newReport(cfg Config, set *settings, d *driver, phase string, started time.Time) *Report {
	r := &Report{
		Workload:   cfg.Name,
		Phase:      phase,
		Started:    started.UTC().Truncate(time.Second),
		Threads:    set.threads,
		Target:     set.target,
		Missed:     d.missed(),
		Properties: cfg.Properties.Clone(),
		Machine:    DescribeMachine(),
	}
	r.Warmup = d.warmup.Seconds()
	sum := &recorder{}
	for _, k := range d.workers {
		sum.merge(&k.rec)
	}
	elapsed := max(0, sum.end-d.warmup)
	r.Seconds = elapsed.Seconds()
	r.RowsScanned, r.BytesRead, r.ErrorExamples = sum.rows, sum.bytes, sum.example

	total := newOutcome()
	for op := range numOperations {
		one := newOutcome()
		one.add(sum, op)
		total.add(sum, op)
		switch op {
		case opRead:
			one.add(sum, partRead)
		case opUpdate:
			one.add(sum, partUpdate)
		}
		if one.service.count+one.failed.count > 0 {
			r.Operations = append(r.Operations, one.report(op.String(), elapsed, set.target > 0))
		}
	}
	r.Total = total.report("TOTAL", elapsed, set.target > 0)
	return r
}

// merge adds what another worker measured.
func (r *recorder) merge(from *recorder) {
	for i := range from.service {
		mergeInto(&r.service[i], from.service[i])
		mergeInto(&r.intended[i], from.intended[i])
		mergeInto(&r.failed[i], from.failed[i])
		for class, n := range from.classes[i] {
			if r.classes[i] == nil {
				r.classes[i] = map[string]int64{}
			}
			r.classes[i][class] += n
		}
	}
	if r.example == nil {
		r.example = from.example
	} else {
		maps.Copy(r.example, from.example)
	}
	r.rows += from.rows
	r.bytes += from.bytes
	r.end = max(r.end, from.end)
}

func mergeInto(to **series, from *series) {
	if from != nil {
		lazily(to).merge(from)
	}
}

// outcome sums up some kinds of a recorder.
type outcome struct {
	service, intended, failed *series
	classes                   map[string]int64
}

func newOutcome() *outcome {
	return &outcome{service: newSeries(), intended: newSeries(), failed: newSeries(), classes: map[string]int64{}}
}

func (o *outcome) add(r *recorder, op operation) {
	for _, s := range []struct{ to, from *series }{
		{o.service, r.service[op]}, {o.intended, r.intended[op]}, {o.failed, r.failed[op]},
	} {
		if s.from != nil {
			s.to.merge(s.from)
		}
	}
	for class, n := range r.classes[op] {
		o.classes[class] += n
	}
}

func (o *outcome) report(name string, elapsed time.Duration, openLoop bool) OpReport {
	r := OpReport{Name: name, Count: o.service.count, Latency: o.service.latency(), ErrorCount: o.failed.count}
	if elapsed > 0 {
		r.OpsPerSec = float64(r.Count) / elapsed.Seconds()
	}
	if openLoop {
		service := r.Latency
		r.Latency, r.Service = o.intended.latency(), &service
	}
	if o.failed.count > 0 {
		failed := o.failed.latency()
		r.Errors, r.ErrorLatency = o.classes, &failed
	}
	return r
}

func (s *series) latency() Latency {
	if s.count == 0 {
		return Latency{}
	}
	us := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }
	p := s.hist.ValueAtPercentilesSlice([]float64{50, 90, 95, 99, 99.9, 99.99})
	return Latency{
		Mean: us(s.sum) / float64(s.count), Min: us(s.min), Max: us(s.max),
		P50: float64(p[0]), P90: float64(p[1]), P95: float64(p[2]), P99: float64(p[3]),
		P999: float64(p[4]), P9999: float64(p[5]),
	}
}
