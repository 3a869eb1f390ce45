package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shardd/shardd/bench/ycsb"
)

// The same updates on more and more shards. A repeat is one fresh cluster and load for each number of shards, in turn and
// in another order each time; each is a file, so that a run that was interrupted goes on.

// shardsConfig is what such a run covers.
type shardsConfig struct {
	Dir      string        `json:"-"`
	Repeats  int           `json:"repeats"`
	Records  int           `json:"records"`
	Clients  int           `json:"clients"`
	Counts   []int         `json:"shards"`
	Duration time.Duration `json:"duration_ns"`
	Warmup   time.Duration `json:"warmup_ns"`
	Flags    []string      `json:"shardd_flags,omitempty"`
}

// shardsFile is one cluster.
type shardsFile struct {
	Config  shardsConfig `json:"config"`
	Shards  int          `json:"shard_count"`
	Repeat  int          `json:"repeat"`
	Version string       `json:"version"`
	Started time.Time    `json:"started"`
	Made    float64      `json:"cluster_made_seconds"`
	Cell    cell         `json:"cell"`
}

// shardsRow sums up one number of shards.
type shardsRow struct {
	Shards int `json:"shards"`
	figures
	// Ratio is to the first number of shards: of the medians, and the least and largest of a repeat.
	Ratio stat `json:"throughput_ratio"`
}

type shardsResults struct {
	Machine ycsb.Machine `json:"machine"`
	Config  shardsConfig `json:"config"`
	Version string       `json:"version"`
	Date    string       `json:"date"`
	Rows    []shardsRow  `json:"rows"`
}

func shardsCommand() *cobra.Command {
	cfg := shardsConfig{}
	c := &cobra.Command{Use: "shards", Short: "Updates per second with more and more shards", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runShards(cmd.Context(), cfg) }}
	f := c.Flags()
	f.StringVar(&cfg.Dir, "dir", "docs/results/shards", "where results are kept")
	f.IntVar(&cfg.Repeats, "repeats", 5, "alternating repeats of each number of shards")
	f.IntVar(&cfg.Records, "records", 100_000, "records of 1 KiB")
	f.IntVar(&cfg.Clients, "clients", 256, "concurrent clients")
	f.IntSliceVar(&cfg.Counts, "shards", []int{16, 128, 1024}, "numbers of shards; ratios are to the first")
	f.DurationVar(&cfg.Duration, "duration", 15*time.Second, "measured time")
	f.DurationVar(&cfg.Warmup, "warmup", 5*time.Second, "time before it")
	// The number of shards is what is measured: none may split by its load, nor merge.
	f.StringArrayVar(&cfg.Flags, "shardd-flag", []string{"--balance=false"}, "a flag of shardd start; repeatable")
	return c
}

func runShards(ctx context.Context, cfg shardsConfig) error {
	if len(cfg.Counts) == 0 {
		return errors.New("--shards: give at least one number")
	}
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "shardd-shards-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	binaries, err := buildNodes(ctx, work, "shardd")
	if err != nil {
		return err
	}
	for repeat := 1; repeat <= cfg.Repeats; repeat++ {
		order := slices.Clone(cfg.Counts)
		if repeat%2 == 0 {
			slices.Reverse(order)
		}
		for _, n := range order {
			path := filepath.Join(cfg.Dir, fmt.Sprintf("s%d-%d.json", n, repeat))
			f := &shardsFile{Config: cfg, Shards: n, Repeat: repeat, Started: time.Now().UTC().Truncate(time.Second)}
			var old shardsFile
			if ok, err := readJSON(path, &old); err != nil {
				return err
			} else if ok {
				old.Config.Repeats = cfg.Repeats
				if fmt.Sprint(old.Config.sizes()) != fmt.Sprint(cfg.sizes()) {
					return fmt.Errorf("%s was measured with %+v, not with %+v: remove it or choose another --dir", path, old.Config, cfg)
				}
				continue
			}
			fmt.Printf("repeat %d of %d: %d shards\n", repeat, cfg.Repeats, n)
			dir := filepath.Join(work, fmt.Sprintf("s%d-%d", n, repeat))
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
			err := f.measure(ctx, binaries["shardd"], dir)
			if err := errors.Join(err, os.RemoveAll(dir)); err != nil {
				return fmt.Errorf("%d shards, repeat %d: %w", n, repeat, err)
			}
			if err := writeJSON(path, f); err != nil {
				return err
			}
		}
	}
	return reportShards(cfg)
}

// sizes is what two runs must have in common.
func (c shardsConfig) sizes() []any {
	return []any{c.Records, c.Clients, c.Duration, c.Warmup, c.Flags}
}

func (f *shardsFile) measure(ctx context.Context, binary, dir string) error {
	sizes := config{Records: f.Config.Records, Duration: f.Config.Duration, Warmup: f.Config.Warmup}
	load, err := properties(cellSpec{"a", 64}, sizes)
	if err != nil {
		return err
	}
	f.Version = revision(ctx)
	began := time.Now()
	s, err := startShardd(ctx, binary, dir, f.Shards, load, f.Config.Flags)
	if err != nil {
		return err
	}
	defer s.close()
	f.Made = time.Since(began).Seconds()
	db, err := s.db(load)
	if err != nil {
		return err
	}
	if _, err := ycsb.Load(ctx, ycsb.Config{DB: db, Name: "load", Properties: load}); err != nil {
		return fmt.Errorf("load: %w", err)
	}
	spec := cellSpec{"update", f.Config.Clients}
	p, err := properties(spec, sizes)
	if err != nil {
		return err
	}
	if db, err = s.db(p); err != nil {
		return err
	}
	c, err := measureCell(ctx, s, db, spec, p)
	if err != nil {
		return err
	}
	c.Repeat = f.Repeat
	f.Cell = *c
	fmt.Printf("  %9.0f updates/s  p50 %7.2f ms  p99 %7.2f ms  %6.1f us/op  %d errors\n", c.Report.Total.OpsPerSec,
		c.Report.Total.Latency.P50/1000, c.Report.Total.Latency.P99/1000, c.ServerCPU, c.Report.Total.ErrorCount)
	return nil
}

func reportShards(cfg shardsConfig) error {
	paths, err := filepath.Glob(filepath.Join(cfg.Dir, "s*-*.json"))
	if err != nil {
		return err
	}
	res := &shardsResults{Machine: ycsb.DescribeMachine(), Config: cfg}
	byCount := map[int][]cell{}
	for _, path := range paths {
		var f shardsFile
		if _, err := readJSON(path, &f); err != nil {
			return err
		}
		byCount[f.Shards] = append(byCount[f.Shards], f.Cell)
		res.Version, res.Date = f.Version, f.Started.Format("2006-01-02")
	}
	for _, n := range cfg.Counts {
		res.Rows = append(res.Rows, shardsRow{Shards: n, figures: sum(byCount[n]),
			Ratio: ratio(byCount[cfg.Counts[0]], byCount[n], func(c cell) float64 { return c.Report.Total.OpsPerSec })})
	}
	if err := writeJSON(filepath.Join(cfg.Dir, "results.json"), res); err != nil {
		return err
	}
	text := res.table()
	fmt.Print("\n" + text)
	return os.WriteFile(filepath.Join(cfg.Dir, "table.md"), []byte(text), 0o644)
}

func (r *shardsResults) table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Updates only: three processes, durable, and %d clients on %s. %d records of 1 KiB, %s a cell after %s, %d "+
		"alternating repeats with a fresh cluster and load each; flags %s; %s, %s. Figures are medians; the ratio is to %d shards, of "+
		"the medians, with the least and largest of any repeat.\n\n", r.Config.Clients, r.Machine, r.Config.Records, r.Config.Duration,
		r.Config.Warmup, r.Config.Repeats, strings.Join(r.Config.Flags, " "), r.Version, r.Date, r.Config.Counts[0])
	b.WriteString("| shards | updates/s | ratio | p50 | p99 | server CPU us/op | client CPU us/op | memory MiB | errors |\n")
	b.WriteString("|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	for _, w := range r.Rows {
		fmt.Fprintf(&b, "| %d | %.0f | %.2f (%.2f-%.2f) | %.2f ms | %.2f ms | %.1f | %.1f | %.0f | %d |\n", w.Shards,
			w.OpsPerSec.Median, w.Ratio.Median, w.Ratio.Min, w.Ratio.Max, w.P50.Median/1000, w.P99.Median/1000,
			w.ServerCPU.Median, w.ClientCPU.Median, w.RSSMiB.Median, w.Errors)
	}
	return b.String()
}
