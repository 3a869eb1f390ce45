package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/shardd/shardd/bench/ycsb"
	"github.com/shardd/shardd/internal/cli"
)

// benchFlags are YCSB's own flags and short forms of its commonest properties.
type benchFlags struct {
	workload   string
	files      []string
	properties []string
	threads    int
	target     float64
	duration   time.Duration
	records    int64
	quiet      bool
	shards     int
}

func newBench(o *conn) *cobra.Command {
	c := &cobra.Command{Use: "bench", Short: "Measure a cluster"}
	y := &cobra.Command{
		Use:   "ycsb",
		Short: "The YCSB core workloads A to F",
		Long: `The YCSB core workloads A to F, with the request distributions, key names, record sizes and property names of
the published benchmark. "load" inserts the records, "run" runs the operation mix on them, "splits" prints the keys that
divide the records evenly into shards.`,
		Example: `  shardctl bench ycsb splits --shards 16 | shardctl init a:7400 b:7400 c:7400 --splits-file -
  shardctl bench ycsb load --workload a --records 100000 --threads 64
  shardctl bench ycsb run --workload a --records 100000 --threads 64 --duration 1m
  shardctl bench ycsb run -P workloada -p requestdistribution=uniform --target 5000 --duration 30s`,
	}
	y.AddCommand(newBenchPhase(o, "load", "Insert the records of a workload", ycsb.Load),
		newBenchPhase(o, "run", "Run the operations of a workload on loaded records", ycsb.Run), newBenchSplits(o))
	c.AddCommand(y)
	return c
}

func (f *benchFlags) add(c *cobra.Command) {
	fl := c.Flags()
	fl.StringVar(&f.workload, "workload", "a", "built-in workload a to f that -P and -p change")
	fl.StringArrayVarP(&f.files, "property-file", "P", nil, "YCSB property file; may be repeated, later ones win")
	fl.StringArrayVarP(&f.properties, "property", "p", nil, "property as name=value; may be repeated, wins over files")
	fl.Int64Var(&f.records, "records", 0, "recordcount: records in the store; 0: as the workload says (1000)")
}

// set gathers the properties: workload < files < -p < the short forms.
func (f *benchFlags) set(c *cobra.Command) (ycsb.Properties, error) {
	p := ycsb.Properties{}
	// A property file replaces the built-in workload, unless both were asked for.
	if len(f.files) == 0 || c.Flags().Changed("workload") {
		var err error
		if p, err = ycsb.Workload(f.workload); err != nil {
			return nil, cli.Usagef("%w", err)
		}
	}
	for _, file := range f.files {
		if err := p.Load(file); err != nil {
			return nil, cli.Usagef("%w", err)
		}
	}
	for _, one := range f.properties {
		if err := p.Override(one); err != nil {
			return nil, cli.Usagef("-p: %w", err)
		}
	}
	for flag, set := range map[string]struct{ key, value string }{
		"threads": {"threadcount", strconv.Itoa(f.threads)},
		"target":  {"target", strconv.FormatFloat(f.target, 'f', -1, 64)},
		"records": {"recordcount", strconv.FormatInt(f.records, 10)},
	} {
		if fl := c.Flags().Lookup(flag); fl != nil && fl.Changed {
			p[set.key] = set.value
		}
	}
	if c.Flags().Lookup("duration") != nil && c.Flags().Changed("duration") {
		p["maxexecutiontime"] = f.duration.String()
		if !given(f.properties, "operationcount") {
			p["operationcount"] = "0" // the time alone ends it
		}
	}
	if err := p.Validate(); err != nil {
		return nil, cli.Usagef("%w", err)
	}
	return p, nil
}

func given(properties []string, key string) bool {
	for _, p := range properties {
		if len(p) > len(key) && p[:len(key)+1] == key+"=" {
			return true
		}
	}
	return false
}

func newBenchPhase(o *conn, name, short string,
	run func(context.Context, ycsb.Config) (*ycsb.Report, error)) *cobra.Command {
	var f benchFlags
	c := &cobra.Command{
		Use:   name,
		Short: short,
		Long: short + `.

Prints a line a second on standard error while it goes on, then one line for each kind of operation and TOTAL in
go-ycsb's format; -o json prints everything that was measured, -o go the Go benchmark format for benchstat. Exits with 1
if an operation failed. --timeout bounds each operation, not the whole.`,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := o.format("text", "json", "go"); err != nil {
				return err
			}
			p, err := f.set(c)
			if err != nil {
				return err
			}
			return f.run(c, o, p, run)
		},
	}
	f.add(c)
	fl := c.Flags()
	fl.IntVar(&f.threads, "threads", 1, "threadcount: concurrent clients, unless the properties say otherwise")
	fl.Float64Var(&f.target, "target", 0, "operations per second of an open loop; 0: as fast as it goes")
	if name == "run" {
		fl.DurationVar(&f.duration, "duration", 0, "maxexecutiontime: how long to run")
	}
	fl.BoolVar(&f.quiet, "quiet", false, "no line per second")
	return c
}

func (f *benchFlags) run(c *cobra.Command, o *conn, p ycsb.Properties,
	run func(context.Context, ycsb.Config) (*ycsb.Report, error)) error {
	ctx := c.Context()
	opening, cancel := context.WithTimeout(ctx, o.timeout)
	db, err := o.open(opening)
	cancel()
	if err != nil {
		return err
	}
	defer db.Close()
	store, err := ycsb.NewClient(db, p)
	if err != nil {
		return cli.Usagef("%w", err)
	}
	cfg := ycsb.Config{DB: store, Name: f.name(c), Properties: p}
	if !f.quiet {
		cfg.Status = func(s ycsb.Status) { fmt.Fprintln(c.ErrOrStderr(), s) }
	}
	report, err := run(ctx, cfg)
	if report != nil {
		if werr := writeReport(c, o, report); werr != nil {
			return werr
		}
	}
	switch {
	case err != nil && report == nil:
		return cli.Usagef("%w", err)
	case err != nil:
		return o.explain(ctx, err)
	case report.Total.ErrorCount > 0:
		return cli.Fail(cli.ExitFailed, "", "%d of %d operations failed", report.Total.ErrorCount,
			report.Total.Count+report.Total.ErrorCount)
	}
	return nil
}

func (f *benchFlags) name(c *cobra.Command) string {
	if len(f.files) > 0 && !c.Flags().Changed("workload") {
		return "custom"
	}
	return f.workload
}

func writeReport(c *cobra.Command, o *conn, r *ycsb.Report) error {
	switch o.output {
	case "json":
		return r.WriteJSON(c.OutOrStdout())
	case "go":
		return r.WriteGoBench(c.OutOrStdout())
	}
	return r.WriteText(c.OutOrStdout())
}

func newBenchSplits(o *conn) *cobra.Command {
	var f benchFlags
	c := &cobra.Command{
		Use:   "splits --shards N",
		Short: "Print the keys that divide the records of a workload evenly",
		Long: `Print the keys that divide the records of a workload evenly into shards, one a line, for "shardctl init
--splits-file -". YCSB's keys all begin with "user" and hashed digits, so that "init --shards" would put all of them
into one shard. Asks no node.`,
		RunE: func(c *cobra.Command, _ []string) error {
			asJSON, err := o.json()
			if err != nil {
				return err
			}
			p, err := f.set(c)
			if err != nil {
				return err
			}
			splits, err := ycsb.Splits(p, f.shards)
			if err != nil {
				return cli.Usagef("%w", err)
			}
			keys := make([]string, len(splits))
			for i, k := range splits {
				keys[i] = cli.Quote(k)
			}
			if asJSON {
				return cli.JSON(c.OutOrStdout(), keys)
			}
			for _, k := range keys {
				if _, err := fmt.Fprintln(c.OutOrStdout(), k); err != nil {
					return err
				}
			}
			return nil
		},
	}
	f.add(c)
	c.Flags().IntVar(&f.shards, "shards", 16, "how many shards")
	return c
}
