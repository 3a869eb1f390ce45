package ycsb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// memory is a DB in memory. before, if set, runs before each operation and may fail it.
type memory struct {
	before func(op operation, key []byte) error

	mu      sync.Mutex
	records map[string][]byte
	inserts int
	scans   []int
}

var errAbsent = errors.New("absent")

func (m *memory) Read(_ context.Context, key []byte) ([]byte, error) {
	if err := m.call(opRead, key); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok := m.records[string(key)]
	if !ok {
		return nil, errAbsent
	}
	return v, nil
}

func (m *memory) Insert(_ context.Context, key, record []byte) error {
	return m.put(opInsert, key, record)
}

func (m *memory) Update(_ context.Context, key, record []byte) error {
	return m.put(opUpdate, key, record)
}

func (m *memory) put(op operation, key, record []byte) error {
	if err := m.call(op, key); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.records == nil {
		m.records = map[string][]byte{}
	}
	if op == opInsert {
		m.inserts++
	}
	m.records[string(key)] = bytes.Clone(record)
	return nil
}

func (m *memory) Scan(_ context.Context, start []byte, count int, visit func(key, record []byte)) error {
	if err := m.call(opScan, start); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.scans = append(m.scans, count)
	var keys []string
	for k := range m.records {
		if k >= string(start) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	for _, k := range keys[:min(count, len(keys))] {
		visit([]byte(k), m.records[k])
	}
	return nil
}

func (m *memory) call(op operation, key []byte) error {
	if m.before == nil {
		return nil
	}
	return m.before(op, key)
}

func loaded(t testing.TB, m *memory, p Properties) {
	t.Helper()
	if _, err := Load(t.Context(), Config{DB: m, Properties: p}); err != nil {
		t.Fatal(err)
	}
}

func TestEveryWorkloadLoadsAndRunsWithoutErrors(t *testing.T) {
	for _, name := range Workloads() {
		t.Run(name, func(t *testing.T) {
			m := &memory{}
			p := mustWorkload(t, name, "threadcount=4", "recordcount=300", "operationcount=2000", "dataintegrity=true",
				"fieldlength=10")
			loaded(t, m, p)
			if len(m.records) != 300 {
				t.Fatalf("%d records loaded", len(m.records))
			}
			r, err := Run(t.Context(), Config{DB: m, Name: name, Properties: p})
			if err != nil {
				t.Fatal(err)
			}
			if r.Total.Count != 2000 || r.Total.ErrorCount != 0 {
				t.Fatalf("%d operations, errors %v %v", r.Total.Count, r.Total.Errors, r.ErrorExamples)
			}
			modify := r.Op("READ_MODIFY_WRITE")
			sum := r.Op("READ").Count + r.Op("UPDATE").Count + r.Op("INSERT").Count + r.Op("SCAN").Count - modify.Count
			if sum != 2000 {
				t.Errorf("operations sum up to %d", sum)
			}
			if name == "f" && (modify.Count == 0 || r.Op("UPDATE").Count != modify.Count) {
				t.Errorf("parts of read-modify-write: %+v", r.Operations)
			}
			if got := int64(len(m.records) - 300); got != r.Op("INSERT").Count {
				t.Errorf("%d records new, %d inserts", got, r.Op("INSERT").Count)
			}
			if name == "e" && (slices.Min(m.scans) != 1 || slices.Max(m.scans) != 100 || r.RowsScanned == 0) {
				t.Errorf("scans of %d to %d records, %d rows", slices.Min(m.scans), slices.Max(m.scans), r.RowsScanned)
			}
		})
	}
}

func TestForeignRecordsAreIntegrityErrors(t *testing.T) {
	m := &memory{}
	p := mustWorkload(t, "c", "recordcount=10", "operationcount=100", "dataintegrity=true")
	loaded(t, m, p)
	for k := range m.records {
		m.records[k] = []byte("foreign")
	}
	r, err := Run(t.Context(), Config{DB: m, Properties: p})
	if err != nil || r.Total.Count != 0 || r.Total.Errors["integrity"] != 100 || r.ErrorExamples["integrity"] == "" {
		t.Fatalf("%+v %v", r.Total, err)
	}
}

func TestFailedOperationsAreCountedByClassAndLeftOutOfLatencies(t *testing.T) {
	m := &memory{}
	p := mustWorkload(t, "a", "recordcount=10", "operationcount=400", "threadcount=4")
	loaded(t, m, p)
	m.before = func(op operation, _ []byte) error {
		if op == opUpdate {
			return context.DeadlineExceeded
		}
		return nil
	}
	r, err := Run(t.Context(), Config{DB: m, Properties: p})
	if err != nil {
		t.Fatal(err)
	}
	read, update := r.Op("READ"), r.Op("UPDATE")
	if read.Count+update.ErrorCount != 400 || update.Count != 0 || update.Errors["timeout"] != update.ErrorCount ||
		update.ErrorLatency == nil || r.Total.Count != read.Count || r.Total.ErrorCount != update.ErrorCount {
		t.Fatalf("%+v", r)
	}
}

func TestLoadIsIdempotentAndResumesWhereItSays(t *testing.T) {
	broken := errors.New("broken")
	p := mustWorkload(t, "a", "recordcount=500", "threadcount=8")
	whole := &memory{}
	loaded(t, whole, p)

	part := &memory{}
	failing := string((&settings{keyPrefix: "user"}).appendKey(nil, 123))
	part.before = func(_ operation, key []byte) error {
		if string(key) == failing {
			return broken
		}
		return nil
	}
	report, err := Load(t.Context(), Config{DB: part, Properties: p})
	var stopped *LoadError
	if !errors.As(err, &stopped) || !errors.Is(err, broken) || stopped.Next != 123 || stopped.Left != 377 {
		t.Fatalf("load ended with %v", err)
	}
	if report == nil || report.Total.ErrorCount != 1 {
		t.Fatalf("report of the load that stopped: %+v", report)
	}
	part.before = nil
	loaded(t, part, mustWorkload(t, "a", "recordcount=500", "threadcount=3", "seed=99",
		fmt.Sprintf("insertstart=%d", stopped.Next), fmt.Sprintf("insertcount=%d", stopped.Left)))
	loaded(t, part, p) // again, from the start
	if len(part.records) != 500 {
		t.Fatalf("%d records", len(part.records))
	}
	for k, v := range whole.records {
		if !bytes.Equal(part.records[k], v) {
			t.Fatalf("record %s differs", k)
		}
	}
}

func TestLoadRepeatsInsertsWithinItsRetryLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		left := 2
		m := &memory{before: func(operation, []byte) error {
			if left > 0 {
				left--
				return errors.New("not yet")
			}
			return nil
		}}
		p := mustWorkload(t, "a", "recordcount=5", "core_workload_insertion_retry_limit=2")
		start := time.Now()
		r, err := Load(t.Context(), Config{DB: m, Properties: p})
		if err != nil || r.Total.Count != 5 || r.Total.ErrorCount != 2 {
			t.Fatalf("%+v %v", r, err)
		}
		if waited := time.Since(start); waited < 2*2400*time.Millisecond || waited > 2*3600*time.Millisecond {
			t.Errorf("waited %s for two retries of 3 s", waited)
		}
	})
}

// An operation that hangs must be charged to all those that should have started meanwhile.
func TestOpenLoopCountsFromTheIntendedStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		m := &memory{}
		p := mustWorkload(t, "c", "recordcount=10", "target=10", "operationcount=100")
		loaded(t, m, mustWorkload(t, "c", "recordcount=10"))
		m.before = func(operation, []byte) error {
			calls++
			if calls == 21 {
				time.Sleep(1050 * time.Millisecond) // the next ten and a half are due meanwhile
			} else {
				time.Sleep(10 * time.Millisecond)
			}
			return nil
		}
		r, err := Run(t.Context(), Config{DB: m, Properties: p})
		if err != nil || r.Total.Count != 100 {
			t.Fatalf("%+v %v", r, err)
		}
		read := r.Op("READ")
		if read.Service == nil || read.Service.Max != 1_050_000 || read.Service.P50 > 10_010 || read.Service.P99 > 10_010 {
			t.Errorf("service time %+v", read.Service)
		}
		// Operations 22 to 31 start late by 960 ms, 870 ms, ... 60 ms after what is due.
		if read.Latency.Max != 1_050_000 || read.Latency.P99 < 950_000 || read.Latency.P90 < 90_000 ||
			read.Latency.P50 > 10_010 {
			t.Errorf("latency from the intended start %+v", read.Latency)
		}
		if want := 9.91; r.Seconds < want-0.001 || r.Seconds > want+0.001 {
			t.Errorf("took %f s, want %f", r.Seconds, want)
		}
	})
}

func TestOpenLoopReportsOperationsThatFoundNoWorker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{}
		loaded(t, m, mustWorkload(t, "c", "recordcount=10"))
		m.before = func(operation, []byte) error { time.Sleep(time.Second); return nil }
		p := mustWorkload(t, "c", "recordcount=10", "target=10", "threadcount=2")
		p.Bound(0, 10*time.Second)
		r, err := Run(t.Context(), Config{DB: m, Properties: p})
		if err != nil || r.Total.Count != 20 || r.Missed != 80 {
			t.Fatalf("count %d missed %d: %v", r.Total.Count, r.Missed, err)
		}
	})
}

func TestRunEndsInTimeAndLeavesTheWarmUpOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{}
		loaded(t, m, mustWorkload(t, "c", "recordcount=10"))
		calls := 0
		m.before = func(operation, []byte) error { calls++; time.Sleep(100 * time.Millisecond); return nil }
		p := mustWorkload(t, "c", "recordcount=10", "warmuptime=2")
		p.Bound(0, 5*time.Second)
		var seen []Status
		r, err := Run(t.Context(), Config{DB: m, Properties: p, Status: func(s Status) { seen = append(seen, s) }})
		if err != nil || calls != 70 || r.Total.Count != 50 || r.Seconds != 5 || r.Total.OpsPerSec != 10 {
			t.Fatalf("%d calls, %+v %v", calls, r, err)
		}
		if len(seen) < 6 || !seen[0].Warmup || seen[5].Warmup {
			t.Fatalf("status %+v", seen)
		}
		s := seen[4]
		if len(s.Ops) != 1 || s.Ops[0].Name != "READ" || s.Ops[0].Count < 9 || s.Ops[0].Count > 11 || s.Errors != 0 ||
			s.Ops[0].P50 < 99*time.Millisecond || s.Ops[0].P50 > 101*time.Millisecond {
			t.Errorf("status %+v", s)
		}
	})
}

type stuck struct{ memory }

func (*stuck) Read(ctx context.Context, _ []byte) ([]byte, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestOperationsThatHangAreCutAfterTheGraceAndCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := mustWorkload(t, "c", "threadcount=3")
		p.Bound(0, 2*time.Second)
		start := time.Now()
		r, err := Run(t.Context(), Config{DB: &stuck{}, Properties: p, Grace: 3 * time.Second})
		if err != nil || time.Since(start) != 5*time.Second || r.Total.Errors["canceled"] != 3 {
			t.Fatalf("after %s: %+v %v", time.Since(start), r, err)
		}
	})
}

func TestRunThatTheCallerEndsReportsWhatWasMeasured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{}
		loaded(t, m, mustWorkload(t, "c", "recordcount=10"))
		m.before = func(operation, []byte) error { time.Sleep(100 * time.Millisecond); return nil }
		p := mustWorkload(t, "c", "recordcount=10")
		p.Bound(0, 0)
		ctx, cancel := context.WithTimeout(t.Context(), 1050*time.Millisecond)
		defer cancel()
		r, err := Run(ctx, Config{DB: m, Properties: p})
		if !errors.Is(err, context.DeadlineExceeded) || r.Total.Count != 11 || r.Total.ErrorCount != 0 {
			t.Fatalf("%+v %v", r.Total, err)
		}
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		r, err = Run(ctx, Config{DB: &stuck{}, Properties: p})
		if !errors.Is(err, context.DeadlineExceeded) || r.Total.ErrorCount != 0 {
			t.Fatalf("what the caller cut short counts as errors of the store: %+v %v", r.Total, err)
		}
	})
}

func TestConfigWithoutStoreOrWithBadPropertiesIsRefused(t *testing.T) {
	if _, err := Run(t.Context(), Config{}); err == nil {
		t.Error("a run without a store")
	}
	if _, err := Load(t.Context(), Config{DB: &memory{}, Properties: Properties{"recordcount": "x"}}); err == nil {
		t.Error("a load with bad properties")
	}
}

type nothing struct{ record []byte }

func (n nothing) Read(context.Context, []byte) ([]byte, error)                    { return n.record, nil }
func (nothing) Insert(context.Context, []byte, []byte) error                      { return nil }
func (nothing) Update(context.Context, []byte, []byte) error                      { return nil }
func (nothing) Scan(context.Context, []byte, int, func(key, record []byte)) error { return nil }

// BenchmarkDriver is what the driver itself costs per operation, which a report cannot tell from the store's client.
func BenchmarkDriver(b *testing.B) {
	for _, name := range Workloads() {
		b.Run("workload="+name, func(b *testing.B) {
			set, err := newSettings(mustWorkload(b, name, "recordcount=100000", "operationcount=0"))
			if err != nil {
				b.Fatal(err)
			}
			w := newWorkload(set, nothing{make([]byte, 1010)})
			w.chooseFrom()
			d := newDriver(plan{threads: 1}, w)
			d.base = time.Now()
			k := d.workers[0]
			k.caller = b.Context()
			b.ReportAllocs()
			for b.Loop() {
				now := d.now()
				k.runOne(b.Context(), sample{intended: now, start: now}, true)
			}
		})
	}
}
