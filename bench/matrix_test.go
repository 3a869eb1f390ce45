package bench

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shardd/shardd/bench/ycsb"
)

// fake is a cluster of two nodes that answers after a millisecond of virtual time.
type fake struct {
	mu      sync.Mutex
	records map[string][]byte
	name    string
	calls   int
	opens   int
	broken  error // what operations fail with
	probes  int
	restart bool // node 2 starts again at every probe
}

func (f *fake) id(context.Context) (string, error) { return f.name, nil }

func (f *fake) open(ycsb.Properties) (ycsb.DB, error) {
	f.opens++
	return f, nil
}

func (f *fake) use(context.Context) ([]NodeUse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.probes++
	ops := uint64(f.calls)
	a := NodeUse{Node: 1, CPUMillis: ops, RSSBytes: 3 << 20, HeapBytes: 1 << 20,
		Groups: Sum{Sum: float64(ops), Count: ops / 4}, Writes: Sum{Sum: float64(2 * ops), Count: ops / 4}}
	b := NodeUse{Node: 2, CPUMillis: 2 * ops, RSSBytes: 5 << 20, Missing: "no metrics"}
	if f.restart {
		b.Incarnation = uint64(f.probes)
	}
	return []NodeUse{a, b}, nil
}

func (f *fake) call() error {
	time.Sleep(time.Millisecond)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	return f.broken
}

func (f *fake) Read(_ context.Context, key []byte) ([]byte, error) {
	err := f.call()
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.records[string(key)], err
}

func (f *fake) Insert(_ context.Context, key, record []byte) error {
	err := f.call()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.records[string(key)] = bytes.Clone(record)
	return err
}

func (f *fake) Update(ctx context.Context, key, record []byte) error {
	return f.Insert(ctx, key, record)
}

func (f *fake) Scan(_ context.Context, start []byte, count int, visit func(key, record []byte)) error {
	visit(start, nil)
	return f.call()
}

func smallMatrix(dir string) MatrixConfig {
	return MatrixConfig{Dir: dir, Workloads: []string{"a", "e"}, Clients: []int{1, 3}, Records: 50, LoadClients: 5,
		Duration: time.Second, Warmup: 100 * time.Millisecond}.withDefaults()
}

func TestMatrixMeasuresEachCellOnceAndGoesOnWhereItStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		f := &fake{name: "cluster", records: map[string][]byte{}}
		cfg := smallMatrix(dir)
		cfg.Workloads = []string{"a"}
		if _, err := measureAll(t.Context(), cfg, f); err != nil {
			t.Fatal(err)
		}
		if len(f.records) != 50 || f.opens != 3 {
			t.Fatalf("%d records, %d opens", len(f.records), f.opens)
		}

		f.opens = 0
		cells, err := measureAll(t.Context(), smallMatrix(dir), f)
		if err != nil || len(cells) != 4 || f.opens != 2 {
			t.Fatalf("%d cells with %d opens: %v", len(cells), f.opens, err)
		}
		for _, c := range cells {
			// 1 + 2 milliseconds a call on the two nodes; E's calls and operations are one to one as well.
			if c.ServerCPU < 2900 || c.ServerCPU > 3100 || c.GroupsPerCommit < 3.9 || c.GroupsPerCommit > 4.1 ||
				c.WritesPerCommit < 7.9 || c.WritesPerCommit > 8.1 || c.RSSBytes != 8<<20 || c.HeapBytes != 1<<20 {
				t.Errorf("%s %d: %+v", c.Workload, c.Clients, c)
			}
			if want := int64(1000 * c.Clients); c.Report.Total.Count < want-10 || c.Report.Total.Count > want {
				t.Errorf("%s %d: %d operations", c.Workload, c.Clients, c.Report.Total.Count)
			}
		}

		back, err := Cells(dir)
		if err != nil || len(back) != 4 {
			t.Fatalf("%d cells read: %v", len(back), err)
		}
		table, err := os.ReadFile(filepath.Join(dir, "table.md"))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"| A | 1 | 1000 | 1.00 / 1.00 ms | 1.00 / 1.00 ms | 0 | 3000.0 |", "| E | 3 | 3000 |",
			"| 4.0 | 8.0 | 8 | 1 |\n", "- A 1: node n2: no metrics"} {
			if !strings.Contains(string(table), want) {
				t.Errorf("no %q in\n%s", want, table)
			}
		}
		if Table(back) != string(table) {
			t.Errorf("table from files differs:\n%s\n%s", Table(back), table)
		}
	})
}

func TestMatrixRefusesResultsOfOtherSettingsOrClusters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		f := &fake{name: "cluster", records: map[string][]byte{}}
		if _, err := measureAll(t.Context(), smallMatrix(dir), f); err != nil {
			t.Fatal(err)
		}
		before := f.calls
		longer, more := smallMatrix(dir), smallMatrix(dir)
		longer.Duration *= 2
		more.Records++
		for what, cfg := range map[string]MatrixConfig{"longer": longer, "more records": more} {
			if _, err := measureAll(t.Context(), cfg, f); err == nil || !strings.Contains(err.Error(), "another directory") {
				t.Errorf("%s: %v", what, err)
			}
		}
		f.name = "other"
		if _, err := measureAll(t.Context(), smallMatrix(dir), f); err == nil {
			t.Error("results of another cluster accepted")
		}
		if f.calls != before {
			t.Error("measured nevertheless")
		}
	})
}

func TestMatrixStopsAtALoadThatFailsAndLoadsAgainLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		f := &fake{name: "cluster", records: map[string][]byte{}, broken: errors.New("broken")}
		if _, err := measureAll(t.Context(), smallMatrix(dir), f); !errors.Is(err, f.broken) {
			t.Fatal(err)
		}
		f.broken = nil
		if _, err := measureAll(t.Context(), smallMatrix(dir), f); err != nil || len(f.records) < 50 {
			t.Fatalf("%d records: %v", len(f.records), err)
		}
	})
}

func TestNodeThatStartedDuringTheRunIsLeftOutAndNoted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{name: "cluster", records: map[string][]byte{}, restart: true}
		cfg := smallMatrix(t.TempDir())
		cells, err := measureAll(t.Context(), cfg, f)
		if err != nil {
			t.Fatal(err)
		}
		c := cells[0]
		noted := func(n string) bool { return strings.Contains(n, "n2 started") }
		if c.ServerCPU > 1100 || !slices.ContainsFunc(c.Notes, noted) {
			t.Fatalf("%+v", c)
		}
	})
}

func TestBadMatrixIsRefusedBeforeAnythingRuns(t *testing.T) {
	for what, cfg := range map[string]MatrixConfig{
		"no directory":     {},
		"unknown workload": {Dir: t.TempDir(), Workloads: []string{"z"}},
		"unknown property": {Dir: t.TempDir(), Overrides: []string{"x=y"}},
		"bad value":        {Dir: t.TempDir(), Overrides: []string{"fieldlength=none"}},
		"no clients":       {Dir: t.TempDir(), Clients: []int{0}},
	} {
		if _, err := Matrix(t.Context(), cfg); err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
}

func TestMetricsAreReadFromPrometheusText(t *testing.T) {
	const text = `# TYPE process_resident_memory_bytes gauge
process_resident_memory_bytes 1.048576e+06
# TYPE shardd_shard_commit_groups histogram
shardd_shard_commit_groups_bucket{worker="0",le="+Inf"} 10
shardd_shard_commit_groups_sum{worker="0"} 25
shardd_shard_commit_groups_count{worker="0"} 10
shardd_shard_commit_groups_bucket{worker="1",le="+Inf"} 10
shardd_shard_commit_groups_sum{worker="1"} 15
shardd_shard_commit_groups_count{worker="1"} 10
# TYPE shardd_shard_commit_writes histogram
shardd_shard_commit_writes_bucket{le="+Inf"} 20
shardd_shard_commit_writes_sum 100
shardd_shard_commit_writes_count 20
`
	var u NodeUse
	if err := readMetrics(strings.NewReader(text), &u); err != nil {
		t.Fatal(err)
	}
	if u.RSSBytes != 1<<20 || u.Groups.mean() != 2 || u.Writes.mean() != 5 {
		t.Fatalf("%+v", u)
	}
	for _, bad := range []string{"", "garbage {{{\n"} {
		if err := readMetrics(strings.NewReader(bad), &NodeUse{}); err == nil {
			t.Errorf("%q accepted", bad)
		}
	}
}
