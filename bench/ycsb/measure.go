package ycsb

import (
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// operation is what a measurement is about.
type operation int

const (
	opRead operation = iota
	opUpdate
	opInsert
	opScan
	opModify // READ_MODIFY_WRITE, both parts together
	numOperations
	// The parts of READ_MODIFY_WRITE belong to READ and UPDATE in a report, but not to TOTAL.
	partRead   = numOperations
	partUpdate = numOperations + 1
	numSeries  = numOperations + 2
)

// String is the name that YCSB's output uses.
func (o operation) String() string {
	switch o {
	case opRead, partRead:
		return "READ"
	case opUpdate, partUpdate:
		return "UPDATE"
	case opInsert:
		return "INSERT"
	case opScan:
		return "SCAN"
	default:
		return "READ_MODIFY_WRITE"
	}
}

// shareKeys names the property of each operation's share.
func shareKeys() [numOperations]string {
	return [numOperations]string{"readproportion", "updateproportion", "insertproportion", "scanproportion",
		"readmodifywriteproportion"}
}

// longest is the longest latency told apart from longer ones.
const longest = 10 * time.Minute

// series is the latencies of one kind. The histogram counts microseconds to three digits; the extremes and the sum are
// exact.
type series struct {
	hist          *hdrhistogram.Histogram
	count         int64
	sum, min, max time.Duration
}

func newSeries() *series {
	return &series{hist: hdrhistogram.New(1, longest.Microseconds(), 3)}
}

func (s *series) record(d time.Duration) {
	recordIn(s.hist, d)
	if s.count == 0 || d < s.min {
		s.min = d
	}
	s.max = max(s.max, d)
	s.sum += d
	s.count++
}

func (s *series) merge(from *series) {
	s.hist.Merge(from.hist)
	if from.count > 0 && (s.count == 0 || from.min < s.min) {
		s.min = from.min
	}
	s.max = max(s.max, from.max)
	s.sum += from.sum
	s.count += from.count
}

func recordIn(h *hdrhistogram.Histogram, d time.Duration) {
	// The only error is a value out of bounds, which the clamp rules out.
	_ = h.RecordValue(min(max(d, time.Microsecond), longest).Microseconds())
}

// recorder holds what one worker measured; nobody else touches it until the worker has ended. Histograms are made
// when first needed: most workloads have two kinds of operation.
type recorder struct {
	service  [numSeries]*series // from the actual start
	intended [numSeries]*series // from the intended start; open loop only
	failed   [numSeries]*series
	classes  [numSeries]map[string]int64
	example  map[string]string // an error text for each class
	rows     int64             // scanned
	bytes    int64             // of the records read and scanned
	end      time.Duration
}

// sample is one operation: its times are since the start of the run.
type sample struct {
	intended, start, end time.Duration
}

// add records an operation that ended. class is empty for success.
func (r *recorder) add(op operation, s sample, openLoop bool, err error) {
	latency := s.end - s.start
	if openLoop {
		latency = s.end - s.intended
	}
	r.end = max(r.end, s.end)
	if err != nil {
		lazily(&r.failed[op]).record(latency)
		if r.classes[op] == nil {
			r.classes[op] = map[string]int64{}
		}
		class := ErrorClass(err)
		r.classes[op][class]++
		if r.example == nil {
			r.example = map[string]string{}
		}
		if _, ok := r.example[class]; !ok {
			r.example[class] = err.Error()
		}
	} else {
		lazily(&r.service[op]).record(s.end - s.start)
		if openLoop {
			lazily(&r.intended[op]).record(latency)
		}
	}
}

func lazily(s **series) *series {
	if *s == nil {
		*s = newSeries()
	}
	return *s
}

// live is what happened since the last status, of a few workers together.
type live struct {
	mu     sync.Mutex
	hist   [numOperations]*hdrhistogram.Histogram
	errors int64
}

func (l *live) add(op operation, d time.Duration, failed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if failed {
		l.errors++
		return
	}
	if l.hist[op] == nil {
		l.hist[op] = newLiveHistogram()
	}
	recordIn(l.hist[op], d)
}

// Two digits: a status shows no more, and it is merged every second.
func newLiveHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(1, longest.Microseconds(), 2)
}

// drain moves everything into the given sums.
func (l *live) drain(into *[numOperations]*hdrhistogram.Histogram) (failed int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for op, h := range l.hist {
		if h == nil || h.TotalCount() == 0 {
			continue
		}
		if into[op] == nil {
			into[op] = newLiveHistogram()
		}
		into[op].Merge(h)
		h.Reset()
	}
	failed, l.errors = l.errors, 0
	return failed
}
