package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shardd/shardd/bench/ycsb"
	"github.com/shardd/shardd/client"
	"github.com/shardd/shardd/internal/cli"
	"github.com/shardd/shardd/internal/config"
)

type demoFlags struct {
	nodes    int
	shards   int
	workload string
	records  int64
	threads  int
	duration time.Duration
	exit     bool
	dataDir  string
	logLevel string
}

func newDemo() *cobra.Command {
	var f demoFlags
	c := &cobra.Command{
		Use:   "demo",
		Short: "Run a cluster in this process, load and measure it, and serve until Ctrl-C",
		Long: `Run a cluster in this process: nodes that talk over real loopback connections and keep their data in real
files, every write synced to disk on a majority of them. Loads YCSB records, runs a workload, prints its summary,
takes a replica of a shard away from a node and gives it a new one, and serves until Ctrl-C, so that shardctl can look
at it.

The data goes to a temporary directory that is removed at the end, or to --data-dir, where the next demo finds it again.
Exits with 1 if an operation failed.`,
		Example: `  shardd demo
  shardd demo --exit --duration 10s --workload b
  shardd demo --nodes 5 --shards 128 --data-dir demo-data`,
		RunE: func(c *cobra.Command, _ []string) error { return f.run(c.Context(), c.OutOrStdout(), c.ErrOrStderr()) },
	}
	fl := c.Flags()
	fl.SortFlags = false
	fl.IntVar(&f.nodes, "nodes", 3, "nodes of the cluster")
	fl.IntVar(&f.shards, "shards", 16, "shards that the records are divided into")
	fl.StringVar(&f.workload, "workload", "a", "YCSB core workload, a to f")
	fl.Int64Var(&f.records, "records", 50000, "records of 1 KB to load")
	fl.IntVar(&f.threads, "threads", 64, "concurrent clients")
	fl.DurationVar(&f.duration, "duration", 10*time.Second, "how long to run the workload")
	fl.BoolVar(&f.exit, "exit", false, "end after the summary instead of serving")
	fl.StringVar(&f.dataDir, "data-dir", "", "keep the data here (default: a temporary directory)")
	fl.StringVar(&f.logLevel, "log-level", "error",
		"lowest level of the nodes' log on standard error: debug, info, warn or error")
	return c
}

func (f *demoFlags) properties() (ycsb.Properties, error) {
	p, err := ycsb.Workload(f.workload)
	if err != nil {
		return nil, cli.Usagef("--workload: %w", err)
	}
	for k, v := range map[string]string{
		"recordcount": fmt.Sprint(f.records), "threadcount": fmt.Sprint(f.threads), "operationcount": "0",
		"maxexecutiontime": f.duration.String(),
	} {
		if err := p.Set(k, v); err != nil {
			return nil, cli.Usagef("%w", err)
		}
	}
	if err := p.Validate(); err != nil {
		return nil, cli.Usagef("%w", err)
	}
	return p, nil
}

func (f *demoFlags) check() error {
	switch {
	case f.nodes < 1 || f.nodes > 9:
		return cli.Usagef("--nodes %d: want 1 to 9", f.nodes)
	case f.shards < 1 || f.shards > 4096:
		return cli.Usagef("--shards %d: want 1 to 4096", f.shards)
	case f.duration <= 0:
		return cli.Usagef("--duration %s: want more than 0", f.duration)
	case new(slog.Level).UnmarshalText([]byte(f.logLevel)) != nil:
		return cli.Usagef("--log-level %s: want debug, info, warn or error", f.logLevel)
	}
	return nil
}

func (f *demoFlags) run(ctx context.Context, out, errOut io.Writer) (err error) {
	if err := f.check(); err != nil {
		return err
	}
	props, err := f.properties()
	if err != nil {
		return err
	}
	splits, err := ycsb.Splits(props, f.shards)
	if err != nil {
		return cli.Usagef("--shards: %w", err)
	}
	dir := f.dataDir
	if dir == "" {
		if dir, err = os.MkdirTemp("", "shardd-demo-"); err != nil {
			return fmt.Errorf("make a directory for the data: %w", err)
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	log, flush := cli.Logger(errOut, "text", f.logLevel)
	defer flush()
	defer limitMemory(&config.Config{GCPercent: 400, GCSlack: 256 << 20}, log, nil)()

	cluster, err := newDemoCluster(ctx, dir, f.nodes, log)
	if err != nil {
		return err
	}
	ctx = cluster.start()
	defer func() { err = errors.Join(err, cluster.stop()) }()
	fmt.Fprintf(out, "%d nodes in this process, data in %s\n", len(cluster.nodes), dir)
	if err := cluster.init(ctx, out, splits); err != nil {
		return err
	}
	report, err := f.measure(ctx, out, cluster.addrs(), props)
	if errors.Is(context.Cause(ctx), context.Canceled) {
		return cli.Fail(cli.ExitFailed, "", "interrupted before the workload was done")
	}
	if err != nil {
		return err
	}
	if report.Total.ErrorCount > 0 {
		return cli.Fail(cli.ExitFailed, "", "%d of %d operations failed", report.Total.ErrorCount,
			report.Total.Count+report.Total.ErrorCount)
	}
	if err := cluster.move(ctx, out); err != nil {
		return fmt.Errorf("move a replica: %w", err)
	}
	if f.exit {
		return nil
	}
	f.next(out, cluster.addrs())
	<-ctx.Done()
	fmt.Fprintln(out, "stopping")
	return nil // a node that failed is in what cluster.stop returns
}

// measure loads the records and runs the workload, with a line per second.
func (f *demoFlags) measure(ctx context.Context, out io.Writer, addrs []string,
	p ycsb.Properties) (*ycsb.Report, error) {
	db, err := client.Open(ctx, addrs)
	if err != nil {
		return nil, fmt.Errorf("connect to the demo's own cluster: %w", err)
	}
	defer db.Close()
	store, err := ycsb.NewClient(db, p)
	if err != nil {
		return nil, err
	}
	cfg := ycsb.Config{DB: store, Name: f.workload, Properties: p, Status: func(s ycsb.Status) { fmt.Fprintln(out, s) }}
	name := strings.ToUpper(f.workload)
	fmt.Fprintf(out, "Loading %d records, %d clients\n", f.records, f.threads)
	loaded, err := ycsb.Load(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	fmt.Fprintf(out, "loaded in %.1f s: %.0f inserts/s\n\n", loaded.Seconds, loaded.Total.OpsPerSec)
	fmt.Fprintf(out, "Running YCSB %s for %s, %d clients\n", name, f.duration, f.threads)
	report, err := ycsb.Run(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("run: %w", err)
	}
	fmt.Fprintf(out, "\nYCSB %s: %.0f operations/s, %d errors\n", name, report.Total.OpsPerSec, report.Total.ErrorCount)
	return report, report.WriteText(out)
}

// next prints what to try on the cluster, as it can be pasted.
func (f *demoFlags) next(out io.Writer, addrs []string) {
	ctl := "shardctl"
	exe, err := os.Executable()
	if err == nil {
		switch beside := filepath.Join(filepath.Dir(exe), "shardctl"); {
		case strings.Contains(exe, "go-build"): // `go run`
			ctl = "go run ./cmd/shardctl"
		case exists(beside):
			ctl = beside
		}
	}
	fmt.Fprintf(out, `
The cluster goes on serving; Ctrl-C ends it. To try in another terminal:

  export SHARDCTL_ENDPOINTS=%[1]s
  %[2]s status
  %[2]s shards list
  %[2]s put hello world
  %[2]s get hello
  %[2]s scan --prefix user --limit 3 --keys-only
  %[2]s verify --wait
  %[2]s nodes drain n2 --wait
  %[2]s bench ycsb run --workload b --records %[3]d --threads 64 --duration 10s

`, strings.Join(addrs, ","), ctl, f.records)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
