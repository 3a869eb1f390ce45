package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shardd/shardd/bench"
	"github.com/shardd/shardd/bench/ycsb"
	"github.com/shardd/shardd/e2e/harness"
)

// figures returns the folder that the figures of this run go to: docs/results if SHARDD_E2E=figures, so that a run that
// was interrupted goes on where it stopped; a temporary one otherwise, for a run of a tenth. Without SHARDD_E2E the test is
// skipped: all tests of this package together must end within the ten minutes that go test gives them. CI runs the tenth.
func figures(t *testing.T, name string) (dir string, full bool) {
	t.Helper()
	if os.Getenv("SHARDD_E2E") == "" {
		t.Skip("measures; runs with SHARDD_E2E=short (a tenth, as in CI) or figures")
	}
	if os.Getenv("SHARDD_E2E") != "figures" {
		return t.TempDir(), false
	}
	root, err := harness.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(root, "docs", "results", name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir, true
}

// YCSB A to F on three processes, 16 shards, 1 KiB records, fsync on, with 64 and with 256 clients.
func TestFiguresOfYCSB(t *testing.T) {
	bin := binaries(t)
	dir, full := figures(t, "ycsb")
	cfg := bench.MatrixConfig{Dir: dir, AnyCluster: true, Progress: func(s string) { t.Log(s) }}
	if !full {
		cfg.Records, cfg.Duration, cfg.Warmup, cfg.Clients = 2000, 2*time.Second, 500*time.Millisecond, []int{64}
	}
	c := harness.New(t, bin, 3)
	c.StartAll()
	c.Init(ycsbSplits(t, 16, 100_000))
	c.WaitHealthy()
	cfg.Endpoints = c.Addrs()
	cells, err := bench.Matrix(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, cell := range cells {
		if cell.Report.Total.Count == 0 || cell.Report.Total.ErrorCount > 0 {
			t.Errorf("workload %s with %d clients: %d operations, %d errors", cell.Workload, cell.Clients,
				cell.Report.Total.Count, cell.Report.Total.ErrorCount)
		}
		if cell.Workload == "a" && (cell.GroupsPerCommit <= 1 || cell.WritesPerCommit <= 1) {
			t.Errorf("a synced commit carries %.1f groups and %.1f writes: nothing is batched", cell.GroupsPerCommit,
				cell.WritesPerCommit)
		}
	}
	t.Logf("\n%s", bench.Table(cells))
}

// ycsbSplits divides the keys of that many YCSB records evenly.
func ycsbSplits(t *testing.T, shards int, records int) [][]byte {
	t.Helper()
	p := ycsb.Properties{"recordcount": strconv.Itoa(records)}
	splits, err := ycsb.Splits(p, shards)
	if err != nil {
		t.Fatal(err)
	}
	return splits
}

// cpuOf is the processor time that all nodes have used.
func cpuOf(t *testing.T, c *harness.Cluster) time.Duration {
	t.Helper()
	var sum float64
	for _, n := range c.Nodes {
		sum += scrape(t, n.HTTP)["process_cpu_seconds_total"]
	}
	return time.Duration(sum * float64(time.Second))
}

// scrape reads the metrics without labels of one node.
func scrape(t *testing.T, addr string) map[string]float64 {
	t.Helper()
	out := map[string]float64{}
	for line := range strings.Lines(get(t, "http://"+addr+"/metrics")) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if v, err := strconv.ParseFloat(value, 64); ok && err == nil {
			out[name] = v
		}
	}
	return out
}

// liveHeap is the heap in use right after a collection.
func liveHeap(t *testing.T, addr string) uint64 {
	t.Helper()
	n, err := heapAlloc(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// heapAlloc asks a node for its heap profile, which makes it collect first, and returns what is in use.
func heapAlloc(ctx context.Context, addr string) (uint64, error) {
	body, err := fetch(ctx, "http://"+addr+"/debug/pprof/heap?gc=1&debug=1")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(body) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "# HeapAlloc = "); ok {
			return strconv.ParseUint(v, 10, 64)
		}
	}
	return 0, fmt.Errorf("heap profile of %s names no HeapAlloc", addr)
}

func get(t *testing.T, url string) string {
	t.Helper()
	body, err := fetch(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

func fetch(ctx context.Context, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("get %s: %s", url, resp.Status)
	}
	return string(body), err
}
