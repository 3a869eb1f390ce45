package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shardd/shardd/bench/ycsb"
	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
)

// snapshotRound is one repeat: the shard copied in three ways, one after the other. Rates are in 10^6 bytes of keys and
// values per second, from the request to the answer that it is installed.
type snapshotRound struct {
	Order    []string `json:"order"`
	Snapshot float64  `json:"snapshot_mb_per_s"`
	Plain    float64  `json:"plain_mb_per_s"`
	Checked  float64  `json:"plain_with_checks_mb_per_s"`
}

// snapshotFigures is the result file. A run that was interrupted goes on after the last round in it.
type snapshotFigures struct {
	Command string          `json:"command"`
	Machine ycsb.Machine    `json:"machine"`
	MiB     int             `json:"shard_mib"`
	Rounds  []snapshotRound `json:"rounds"`
	// Medians of the rounds; ratios are medians of each round's ratio.
	Snapshot float64 `json:"snapshot_mb_per_s"`
	Plain    float64 `json:"plain_mb_per_s"`
	Checked  float64 `json:"plain_with_checks_mb_per_s"`
	Ratio    float64 `json:"ratio_to_plain"`
	Part     float64 `json:"ratio_to_plain_with_checks"`
}

const snapshotCommand = "SHARDD_E2E=figures go test -count 1 -timeout 1h -v -run TestFiguresOfSnapshotThroughput ./bench"

// Snapshot throughput over loopback, unthrottled, beside plain copies of the same bytes, in turn and in one run.
func TestFiguresOfSnapshotThroughput(t *testing.T) {
	if testing.Short() {
		t.Skip("copies a shard of 16 MiB six times; not with -short")
	}
	full := os.Getenv("SHARDD_E2E") == "figures"
	dir, rounds, mib := t.TempDir(), 2, 16
	if full {
		dir, rounds, mib = filepath.Join("..", "docs", "results", "snapshot"), 5, 2048
	}
	mib = snapshotMiB(t, mib)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "throughput.json")
	f := &snapshotFigures{Command: snapshotCommand, Machine: ycsb.DescribeMachine(), MiB: mib}
	if found, err := readFile(path, f); err != nil {
		t.Fatal(err)
	} else if found && (f.MiB != mib || f.Machine != ycsb.DescribeMachine()) {
		t.Fatalf("%s is of a shard of %d MiB on %s: move it away to measure anew", path, f.MiB, f.Machine)
	}
	if len(f.Rounds) < rounds {
		s, bare := newSnapshotBench(t, mib), newBareBench(t)
		s.settle(t)
		for i := len(f.Rounds); i < rounds; i++ {
			r := s.round(t, bare, i)
			t.Logf("round %d: %+v", i+1, r)
			f.Rounds = append(f.Rounds, r)
			f.sum()
			if err := writeJSON(path, f); err != nil {
				t.Fatal(err)
			}
		}
		s.compare(t, bare)
	}
	table := f.table()
	if err := writeFile(filepath.Join(dir, "throughput.md"), []byte(table)); err != nil {
		t.Fatal(err)
	}
	t.Logf("\n%s", table)
}

// settle copies once in each way, so that no round pays for what only the first one meets.
func (s *snapshotBench) settle(t *testing.T) {
	t.Helper()
	s.plain(t)
	s.snapshot(t)
}

// round runs the three in an order that turns with i.
func (s *snapshotBench) round(t *testing.T, bare *bareBench, i int) snapshotRound {
	t.Helper()
	var r snapshotRound
	ways := []struct {
		name string
		rate *float64
		run  func()
	}{
		{"plain", &r.Plain, func() {
			if err := bare.copy(t.Context(), s); err != nil {
				t.Fatal(err)
			}
		}},
		{"snapshot", &r.Snapshot, func() { s.snapshot(t) }},
		{"plain with checks", &r.Checked, func() { s.plain(t) }},
	}
	for n := range ways {
		w := ways[(n+i)%len(ways)]
		began := time.Now()
		w.run()
		*w.rate = float64(s.bytes) / 1e6 / time.Since(began).Seconds()
		r.Order = append(r.Order, w.name)
	}
	return r
}

// compare checks that all copies have all rows.
func (s *snapshotBench) compare(t *testing.T, bare *bareBench) {
	t.Helper()
	want := s.rows(t, s.source)
	if got := s.rows(t, s.snapshotSink); got != want {
		t.Errorf("the snapshot has %d rows, the source %d", got, want)
	}
	if got := s.rows(t, s.plainSink.engine); got != want {
		t.Errorf("the plain copy with checks has %d rows, the source %d", got, want)
	}
	if got, err := bare.sink.rows(); got != want || err != nil {
		t.Errorf("the plain copy has %d rows, the source %d: %v", got, want, err)
	}
}

func (s *snapshotBench) rows(t *testing.T, e *engine.Engine) (n int) {
	t.Helper()
	v, err := e.OpenView(base.ShardID(10))
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	it, err := v.NewIter(s.desc.Start, s.desc.End)
	if err != nil {
		t.Fatal(err)
	}
	for ; it.Valid(); it.Next() {
		n++
	}
	if err := it.Close(); err != nil {
		t.Fatal(err)
	}
	return n
}

func (f *snapshotFigures) sum() {
	of := func(get func(r snapshotRound) float64) float64 {
		var all []float64
		for _, r := range f.Rounds {
			all = append(all, get(r))
		}
		slices.Sort(all)
		return (all[len(all)/2] + all[(len(all)-1)/2]) / 2
	}
	f.Snapshot = of(func(r snapshotRound) float64 { return r.Snapshot })
	f.Plain = of(func(r snapshotRound) float64 { return r.Plain })
	f.Checked = of(func(r snapshotRound) float64 { return r.Checked })
	f.Ratio = of(func(r snapshotRound) float64 { return r.Snapshot / r.Plain })
	f.Part = of(func(r snapshotRound) float64 { return r.Snapshot / r.Checked })
}

// table is the result as text.
func (f *snapshotFigures) table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "A shard of %d MiB (rows of 1 KiB that do not compress) from one store to another over loopback, "+
		"unthrottled, both on %s. MB/s of keys and values, from the request to the answer that it is installed. Plain is a "+
		"gRPC stream of 1 MiB messages with tables built, synced and ingested by Pebble alone; plain with checks uses the "+
		"engine's tables and staging, which verify each table before it is sent and before it is kept. "+
		"Runs in turn, medians of %d rounds: `%s`\n\n", f.MiB, f.Machine, len(f.Rounds), f.Command)
	b.WriteString("| round | snapshot | plain | plain with checks | ratio to plain | to plain with checks |\n")
	b.WriteString("|---|--:|--:|--:|--:|--:|\n")
	for i, r := range f.Rounds {
		fmt.Fprintf(&b, "| %d | %.0f | %.0f | %.0f | %.2f | %.2f |\n", i+1, r.Snapshot, r.Plain, r.Checked,
			r.Snapshot/r.Plain, r.Snapshot/r.Checked)
	}
	fmt.Fprintf(&b, "| median | %.0f | %.0f | %.0f | %.2f | %.2f |\n", f.Snapshot, f.Plain, f.Checked, f.Ratio, f.Part)
	return b.String()
}
