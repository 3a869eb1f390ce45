package ycsb

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// sampleReport has fixed figures: workers w and v, a closed loop of 2 s.
func sampleReport(t testing.TB, target string) *Report {
	t.Helper()
	set, err := newSettings(mustWorkload(t, "f", "threadcount=2", "target="+target))
	if err != nil {
		t.Fatal(err)
	}
	d := newDriver(plan{threads: 2, target: set.target}, newWorkload(set, nil))
	for i := range 1000 {
		k := d.workers[i%2]
		end := time.Duration(i+1) * 2 * time.Millisecond
		s := sample{intended: end - time.Millisecond, start: end - time.Duration(i+1)*time.Microsecond, end: end}
		switch i % 4 {
		case 0, 1:
			k.rec.add(opRead, s, k.open, nil)
		case 2:
			k.rec.add(partRead, s, k.open, nil)
			k.rec.add(partUpdate, s, k.open, nil)
			k.rec.add(opModify, s, k.open, nil)
		case 3:
			k.rec.add(opModify, s, k.open, errAbsent)
		}
	}
	r := newReport(Config{Name: "f", Properties: Properties{"threadcount": "2"}}, set, d, "run", time.Unix(0, 0))
	r.Machine = Machine{CPU: "Some CPU", Cores: 2, Memory: 8 << 30, OS: "linux", GOOS: "linux", GOARCH: "amd64",
		Go: "go1.26"}
	return r
}

func TestTextHasGoYCSBsLines(t *testing.T) {
	const want = `READ   - Takes(s): 2.0, Count: 750, OPS: 375.0, Avg(us): 500, Min(us): 1, Max(us): 999, 50th(us): 499, 90th(us): 899, 95th(us): 950, 99th(us): 990, 99.9th(us): 998, 99.99th(us): 999
UPDATE - Takes(s): 2.0, Count: 250, OPS: 125.0, Avg(us): 501, Min(us): 3, Max(us): 999, 50th(us): 499, 90th(us): 899, 95th(us): 951, 99th(us): 991, 99.9th(us): 999, 99.99th(us): 999
READ_MODIFY_WRITE - Takes(s): 2.0, Count: 250, OPS: 125.0, Avg(us): 501, Min(us): 3, Max(us): 999, 50th(us): 499, 90th(us): 899, 95th(us): 951, 99th(us): 991, 99.9th(us): 999, 99.99th(us): 999
READ_MODIFY_WRITE_ERROR - Takes(s): 2.0, Count: 250, OPS: 125.0, Avg(us): 502, Min(us): 4, Max(us): 1000, 50th(us): 500, 90th(us): 900, 95th(us): 952, 99th(us): 992, 99.9th(us): 1000, 99.99th(us): 1000
TOTAL  - Takes(s): 2.0, Count: 750, OPS: 375.0, Avg(us): 500, Min(us): 1, Max(us): 999, 50th(us): 499, 90th(us): 899, 95th(us): 950, 99th(us): 990, 99.9th(us): 998, 99.99th(us): 999
TOTAL_ERROR - Takes(s): 2.0, Count: 250, OPS: 125.0, Avg(us): 502, Min(us): 4, Max(us): 1000, 50th(us): 500, 90th(us): 900, 95th(us): 952, 99th(us): 992, 99.9th(us): 1000, 99.99th(us): 1000
# errors: 250 other, for example: absent
`
	var b strings.Builder
	if err := sampleReport(t, "0").WriteText(&b); err != nil {
		t.Fatal(err)
	}
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

func TestOpenLoopTextHasServiceTimesBesides(t *testing.T) {
	var b strings.Builder
	r := sampleReport(t, "500")
	r.Missed = 3
	if err := r.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"READ   - Takes(s): 2.0, Count: 750, OPS: 375.0, Avg(us): 1000,",
		"READ_SERVICE - Takes(s): 2.0, Count: 750, OPS: 375.0, Avg(us): 500,", "\n# missed: 3 operations"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
}

func TestGoBenchFormat(t *testing.T) {
	const header = "goos: linux\ngoarch: amd64\npkg: github.com/shardd/shardd/bench/ycsb\ncpu: Some CPU\n"
	var b strings.Builder
	r := sampleReport(t, "0")
	if err := r.WriteGoBench(&b); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(b.String(), header) {
		t.Errorf("header of\n%s", b.String())
	}
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")[4:]
	if len(lines) != 4 || !strings.HasPrefix(lines[0], "BenchmarkYCSB/workload=f/clients=2 750 ") ||
		!strings.HasSuffix(lines[0], " 375.0 ops/s 499 p50-us 990 p99-us 250 errors") ||
		!strings.HasPrefix(lines[3], "BenchmarkYCSB/workload=f/clients=2/op=read_modify_write 250 ") {
		t.Errorf("lines\n%s", strings.Join(lines, "\n"))
	}
}

func TestJSONRoundTrips(t *testing.T) {
	var b bytes.Buffer
	r := sampleReport(t, "500")
	if err := r.WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	var back Report
	if err := json.Unmarshal(b.Bytes(), &back); err != nil {
		t.Fatal(err)
	}
	var again bytes.Buffer
	if err := back.WriteJSON(&again); err != nil || again.String() != b.String() {
		t.Fatalf("%v\n%s\n%s", err, b.String(), again.String())
	}
	for _, want := range []string{`"target_ops_per_sec": 500`, `"cpu": "Some CPU"`, `"other": 250`} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %s in\n%s", want, b.String())
		}
	}
}

func TestHistogramsOfWorkersMergeToThatOfAll(t *testing.T) {
	all, parts := newSeries(), [3]*series{newSeries(), newSeries(), newSeries()}
	for i := range 30_000 {
		d := time.Duration(i*i) * time.Nanosecond
		all.record(d)
		parts[i%3].record(d)
	}
	merged := newSeries()
	for _, p := range parts {
		merged.merge(p)
	}
	merged.merge(newSeries())
	if merged.latency() != all.latency() || merged.count != all.count || !merged.hist.Equals(all.hist) {
		t.Fatalf("merged %+v, all %+v", merged.latency(), all.latency())
	}
}

func TestLatenciesOutOfBoundsAreClampedInPercentilesOnly(t *testing.T) {
	s := newSeries()
	s.record(0)
	s.record(2 * time.Hour)
	l := s.latency()
	if s.count != 2 || l.Min != 0 || l.Max != 7.2e9 || l.P50 != 1 {
		t.Fatalf("%+v", l)
	}
}

func TestStatusIsOneLine(t *testing.T) {
	s := Status{Elapsed: 3 * time.Second, Operations: 123, OpsPerSec: 41, Errors: 2, Ops: []OpStatus{
		{Name: "READ", OpsPerSec: 41, P50: 250 * time.Microsecond, P99: 12 * time.Millisecond}}}
	const want = "   3s       123 ops        41 ops/s  [READ 41/s p50 250us p99 12.0ms]  errors 2"
	if s.String() != want {
		t.Errorf("%q, want %q", s, want)
	}
}

func TestMachineIsDescribed(t *testing.T) {
	m := DescribeMachine()
	if m.Cores < 1 || m.Go == "" || m.GOOS == "" || m.OS == "" || m.String() == "" {
		t.Fatalf("%+v", m)
	}
}
