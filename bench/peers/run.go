package main

import (
	"context"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shardd/shardd/bench/ycsb"
)

// config is what a run covers.
type config struct {
	Dir      string        `json:"-"`
	Repeats  int           `json:"repeats"`
	Records  int           `json:"records"`
	Shards   int           `json:"shards"`
	Duration time.Duration `json:"duration_ns"`
	Warmup   time.Duration `json:"warmup_ns"`
	Flags    []string      `json:"shardd_flags,omitempty"`
	Only     []string      `json:"only,omitempty"`
}

// cellSpec is one workload with a number of clients.
type cellSpec struct {
	Workload string
	Clients  int
}

func (c cellSpec) String() string { return fmt.Sprintf("%s-c%d", c.Workload, c.Clients) }

// specs is every cell of a repeat, in order: those that insert come last.
func specs() (out []cellSpec) {
	for _, w := range []string{"update", "a", "b", "c", "f", "e"} {
		out = append(out, cellSpec{w, 256}, cellSpec{w, 64})
	}
	return append(out, cellSpec{"update", 1}, cellSpec{"c", 1})
}

// cell is one measurement.
type cell struct {
	System    string       `json:"system"`
	Repeat    int          `json:"repeat"`
	Workload  string       `json:"workload"`
	Clients   int          `json:"clients"`
	ServerCPU float64      `json:"server_cpu_us_per_op"`
	ClientCPU float64      `json:"client_cpu_us_per_op"`
	RSS       uint64       `json:"server_rss_bytes"`
	Report    *ycsb.Report `json:"report"`
}

// repeatFile is one load of one system and its cells; it is written whole at the end of the repeat.
type repeatFile struct {
	Config  config    `json:"config"`
	System  string    `json:"system"`
	Version string    `json:"version"`
	Started time.Time `json:"started"`
	LoadSec float64   `json:"load_seconds"`
	Cells   []cell    `json:"cells"`
	Limits  *limits   `json:"limits,omitempty"`
}

func runCommand() *cobra.Command {
	cfg := config{}
	c := &cobra.Command{Use: "run", Short: "Measure what is missing and write the table", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return run(cmd.Context(), cfg) }}
	f := c.Flags()
	f.StringVar(&cfg.Dir, "dir", "docs/benchmarks/peers", "where results are kept")
	f.IntVar(&cfg.Repeats, "repeats", 5, "alternating repeats of each system")
	f.IntVar(&cfg.Records, "records", 100_000, "records of 1 KiB")
	f.IntVar(&cfg.Shards, "shards", 16, "shards of Shardd")
	f.DurationVar(&cfg.Duration, "duration", 15*time.Second, "measured time of a cell")
	f.DurationVar(&cfg.Warmup, "warmup", 3*time.Second, "time before it")
	f.StringArrayVar(&cfg.Flags, "shardd-flag", nil, "a further flag of shardd start, to try a setting; repeatable")
	f.StringArrayVar(&cfg.Only, "only", nil, "only this cell, such as a-c256; repeatable")
	return c
}

func run(ctx context.Context, cfg config) error {
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "shardd-peers-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	binaries, err := buildNodes(ctx, work, "shardd", "etcd")
	if err != nil {
		return err
	}
	for repeat := range cfg.Repeats {
		for _, name := range []string{"etcd", "shardd", "limits"} {
			path := filepath.Join(cfg.Dir, fmt.Sprintf("%s-%d.json", name, repeat+1))
			if done, err := isDone(path, cfg); err != nil || done {
				if err != nil {
					return err
				}
				continue
			}
			r := &repeatFile{Config: cfg, System: name, Started: time.Now().UTC().Truncate(time.Second)}
			dir := filepath.Join(work, fmt.Sprintf("%s-%d", name, repeat+1))
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
			fmt.Printf("repeat %d of %d: %s\n", repeat+1, cfg.Repeats, name)
			if name == "limits" {
				r.Limits, err = measureLimits(ctx, dir, cfg)
			} else {
				err = r.measure(ctx, name, binaries[name], dir, repeat+1)
			}
			err = errors.Join(err, os.RemoveAll(dir))
			if err != nil {
				return fmt.Errorf("%s, repeat %d: %w", name, repeat+1, err)
			}
			if err := writeJSON(path, r); err != nil {
				return err
			}
		}
	}
	return report(cfg.Dir)
}

// isDone reports whether a repeat is there already; one with other settings is refused.
func isDone(path string, cfg config) (bool, error) {
	var r repeatFile
	if ok, err := readJSON(path, &r); !ok || err != nil {
		return false, err
	}
	a, _ := json.Marshal(r.Config)
	cfg.Repeats = r.Config.Repeats
	b, _ := json.Marshal(cfg)
	if string(a) != string(b) {
		return false, fmt.Errorf("%s was measured with %s, not with %s: remove it or choose another --dir", path, a, b)
	}
	return true, nil
}

func properties(s cellSpec, cfg config) (ycsb.Properties, error) {
	name := s.Workload
	if name == "update" {
		name = "a"
	}
	p, err := ycsb.Workload(name)
	if err != nil {
		return nil, err
	}
	p["recordcount"], p["threadcount"] = strconv.Itoa(cfg.Records), strconv.Itoa(s.Clients)
	if s.Workload == "update" {
		p["readproportion"], p["updateproportion"] = "0", "1"
	}
	p.Bound(0, cfg.Duration)
	if err := p.Override(fmt.Sprintf("warmuptime=%s", cfg.Warmup)); err != nil {
		return nil, err
	}
	return p, nil
}

func (r *repeatFile) measure(ctx context.Context, name, binary, dir string, repeat int) error {
	load, err := properties(cellSpec{"a", 64}, r.Config)
	if err != nil {
		return err
	}
	var s *system
	if name == "etcd" {
		if s, err = startEtcd(ctx, binary, dir); err != nil {
			return err
		}
		r.Version = dependency(binary, "go.etcd.io/etcd/server/v3")
	} else {
		if s, err = startShardd(ctx, binary, dir, r.Config.Shards, load, r.Config.Flags); err != nil {
			return err
		}
		r.Version = revision(ctx)
	}
	defer s.close()
	db, err := s.db(load)
	if err != nil {
		return err
	}
	began := time.Now()
	if _, err := ycsb.Load(ctx, ycsb.Config{DB: db, Name: "load", Properties: load}); err != nil {
		return fmt.Errorf("load: %w", err)
	}
	r.LoadSec = time.Since(began).Seconds()
	for _, spec := range specs() {
		if !r.Config.wants(spec) {
			continue
		}
		p, err := properties(spec, r.Config)
		if err != nil {
			return err
		}
		if db, err = s.db(p); err != nil {
			return err
		}
		c, err := measureCell(ctx, s, db, spec, p)
		if err != nil {
			return fmt.Errorf("cell %s: %w", spec, err)
		}
		c.Repeat = repeat
		fmt.Printf("  %-12s %9.0f ops/s  p50 %7.2f ms  p99 %7.2f ms  %6.1f us/op  %d errors\n", spec,
			c.Report.Total.OpsPerSec, c.Report.Total.Latency.P50/1000, c.Report.Total.Latency.P99/1000, c.ServerCPU,
			c.Report.Total.ErrorCount)
		r.Cells = append(r.Cells, *c)
	}
	return nil
}

func (c config) wants(s cellSpec) bool {
	for _, o := range c.Only {
		if o == s.String() {
			return true
		}
	}
	return len(c.Only) == 0
}

func measureCell(ctx context.Context, s *system, db ycsb.DB, spec cellSpec, p ycsb.Properties) (*cell, error) {
	return measureCellWith(ctx, s, ycsb.Config{DB: db, Name: spec.Workload, Properties: p}, spec)
}

func measureCellWith(ctx context.Context, s *system, cfg ycsb.Config, spec cellSpec) (*cell, error) {
	cpu, _, err := s.use()
	if err != nil {
		return nil, err
	}
	own, began := ownCPU(), time.Now()
	rep, err := ycsb.Run(ctx, cfg)
	if err != nil {
		return nil, err
	}
	took := time.Since(began).Seconds()
	after, rss, err := s.use()
	if err != nil {
		return nil, err
	}
	// The warm-up costs processor time and is not counted: its operations are taken to have come at the same rate.
	ops := max(1, float64(rep.Total.Count+rep.Total.ErrorCount)*took/max(rep.Seconds, 1e-9))
	return &cell{System: s.name, Workload: spec.Workload, Clients: spec.Clients, Report: rep, RSS: rss,
		ServerCPU: float64((after - cpu).Microseconds()) / ops, ClientCPU: float64((ownCPU() - own).Microseconds()) / ops}, nil
}

// buildNodes builds what runs as three processes each: shardd in its own module, etcd in this one.
func buildNodes(ctx context.Context, dir string, wanted ...string) (map[string]string, error) {
	root, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/shardd/shardd").Output()
	if err != nil {
		return nil, fmt.Errorf("find the main module: %w", err)
	}
	out := map[string]string{}
	for _, b := range []struct{ name, dir, pkg string }{
		{"shardd", strings.TrimSpace(string(root)), "./cmd/shardd"},
		{"etcd", "", "./etcdnode"},
	} {
		if !slices.Contains(wanted, b.name) {
			continue
		}
		out[b.name] = filepath.Join(dir, b.name)
		build := exec.CommandContext(ctx, "go", "build", "-o", out[b.name], b.pkg)
		build.Dir, build.Env = b.dir, append(os.Environ(), "CGO_ENABLED=0")
		if text, err := build.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build %s: %w\n%s", b.name, err, text)
		}
	}
	return out, nil
}

// revision names the commit that is measured, "" if it cannot be told.
func revision(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "git", "rev-parse", "--short", "HEAD").Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

// dependency is the version of a module in a binary, "" if it cannot be told.
func dependency(binary, path string) string {
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		return ""
	}
	for _, d := range info.Deps {
		if d.Path == path {
			return d.Version
		}
	}
	return ""
}

func readJSON(path string, into any) (bool, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err == nil {
		err = json.Unmarshal(b, into)
	}
	if err != nil {
		return false, fmt.Errorf("read %s: %w", path, err)
	}
	return true, nil
}

func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", " ")
	if err == nil {
		err = os.WriteFile(path+".tmp", append(b, '\n'), 0o644)
	}
	if err == nil {
		err = os.Rename(path+".tmp", path)
	}
	return err
}
