package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/shardd/shardd/bench/ycsb"
)

// More data than the memory holds, for long enough that compaction has to keep up. Load: in batches of
// about 32 records and in parts, each of which is noted, so that an interrupted load goes on. Run: A, then C, on what was loaded; each is a file with the rate of every second. The
// data stays in --work until --clean.

// bigConfig is what such a run covers.
type bigConfig struct {
	Dir      string        `json:"-"`
	Work     string        `json:"-"`
	Clean    bool          `json:"-"`
	Report   bool          `json:"-"`
	GiB      float64       `json:"gib"`
	Shards   int           `json:"shards"`
	Clients  int           `json:"clients"`
	Duration time.Duration `json:"duration_ns"`
	Flags    []string      `json:"shardd_flags,omitempty"`
}

// bigState is where a run stands; it lies beside the data.
type bigState struct {
	Config  bigConfig `json:"config"`
	Ports   []string  `json:"ports"` // nodes know each other by them
	Records int64     `json:"records"`
	Loaded  int64     `json:"loaded"`
	Seconds float64   `json:"load_seconds"`
	Waited  float64   `json:"load_waited_seconds"` // for compactions, between parts; not in Seconds
	Load    engineUse `json:"load"`
	Note    string    `json:"note,omitempty"`
}

// engineUse is what the nodes' storage engines have written, in sum.
type engineUse struct {
	WAL       float64 `json:"wal_bytes"`
	Flushed   float64 `json:"flushed_bytes"`
	Compacted float64 `json:"compacted_bytes"`
	Stalls    float64 `json:"write_stalls"`
	Stalled   float64 `json:"write_stall_seconds"`
}

func (u engineUse) minus(o engineUse) engineUse {
	return engineUse{u.WAL - o.WAL, u.Flushed - o.Flushed, u.Compacted - o.Compacted, u.Stalls - o.Stalls, u.Stalled - o.Stalled}
}

func (u engineUse) plus(o engineUse) engineUse { return u.minus(engineUse{}.minus(o)) }

// bigFile is one workload.
type bigFile struct {
	State   bigState  `json:"state"`
	Version string    `json:"version"`
	Started time.Time `json:"started"`
	Cell    cell      `json:"cell"`
	// Rates is the operations that succeeded in each second, Errors those that failed.
	Rates  []float64 `json:"ops_per_second"`
	Errors []int64   `json:"errors_per_second,omitempty"`
	// Written is what the engines wrote during the run. Amplification is that over three copies of what the clients wrote,
	// keys and values; 0 if they wrote nothing.
	Written       engineUse `json:"written"`
	UserBytes     float64   `json:"user_bytes"`
	Amplification float64   `json:"write_amplification"`
	// Longest is how many seconds in a row passed without an operation.
	Longest int     `json:"longest_seconds_without_operation"`
	Least   float64 `json:"least_ops_in_a_second"`
	Disk    float64 `json:"disk_used_bytes"`
}

func bigCommand() *cobra.Command {
	cfg := bigConfig{}
	c := &cobra.Command{Use: "big", Short: "YCSB A and C on more data than memory, second by second", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runBig(cmd.Context(), cfg) }}
	f := c.Flags()
	f.StringVar(&cfg.Dir, "dir", "docs/results/big", "where results are kept")
	f.StringVar(&cfg.Work, "work", filepath.Join(os.TempDir(), "shardd-big"), "where the nodes' data is, kept for the next run")
	f.BoolVar(&cfg.Report, "report", false, "measure nothing: only show what is there")
	f.BoolVar(&cfg.Clean, "clean", false, "remove the data of --work when all is measured")
	f.Float64Var(&cfg.GiB, "gib", 10, "data in GiB, once: the disk needs 3.75 times as much and 13 more, or as much is taken as fits")
	f.IntVar(&cfg.Shards, "shards", 64, "shards at the start")
	f.IntVar(&cfg.Clients, "clients", 256, "concurrent clients")
	f.DurationVar(&cfg.Duration, "duration", 10*time.Minute, "measured time of a workload")
	f.StringArrayVar(&cfg.Flags, "shardd-flag", nil, "a further flag of shardd start; repeatable")
	return c
}

func runBig(ctx context.Context, cfg bigConfig) error {
	if cfg.Report {
		return reportBig(cfg.Dir)
	}
	for _, dir := range []string{cfg.Dir, cfg.Work} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	st, err := bigStateOf(cfg)
	if err != nil {
		return err
	}
	bin, err := os.MkdirTemp("", "shardd-big-bin-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(bin)
	var missing []string
	for _, w := range []string{"a", "c"} {
		var f bigFile
		if ok, err := readJSON(filepath.Join(cfg.Dir, w+".json"), &f); err != nil {
			return err
		} else if !ok {
			missing = append(missing, w)
		}
	}
	if len(missing) > 0 {
		binaries, err := buildNodes(ctx, bin, "shardd")
		if err != nil {
			return err
		}
		if err := st.measure(ctx, binaries["shardd"], cfg, missing); err != nil {
			return err
		}
	}
	if cfg.Clean {
		if err := os.RemoveAll(cfg.Work); err != nil {
			return err
		}
	}
	return reportBig(cfg.Dir)
}

// bigStateOf reads where the run stands, or begins one with as much data as the disk holds.
func bigStateOf(cfg bigConfig) (*bigState, error) {
	st := &bigState{Config: cfg}
	path := filepath.Join(cfg.Work, "state.json")
	if ok, err := readJSON(path, st); err != nil {
		return nil, err
	} else if ok {
		if st.Config.GiB != cfg.GiB || st.Config.Shards != cfg.Shards {
			return nil, fmt.Errorf("%s has %g GiB in %d shards, not %g in %d: remove it or choose another --work", cfg.Work,
				st.Config.GiB, st.Config.Shards, cfg.GiB, cfg.Shards)
		}
		return st, nil
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(cfg.Work, &fs); err != nil {
		return nil, err
	}
	const gib = 1 << 30
	free := float64(fs.Bavail) * float64(fs.Bsize) / gib
	// Compactions keep old and new tables for a while, each node has its logs, and refuses writes before the disk is full.
	fits := (free - 13) / (3 * 1.25)
	if gb := min(cfg.GiB, fits); gb < cfg.GiB {
		if gb < 0.01 {
			return nil, fmt.Errorf("%.1f GiB are free below %s: too little", free, cfg.Work)
		}
		st.Note = fmt.Sprintf("%.1f GiB of %g: three copies of no more fit on the disk, of which %.1f GiB were free", gb, cfg.GiB, free)
		fmt.Println(st.Note)
		st.Records = int64(gb * gib / recordBytes)
	} else {
		st.Records = int64(cfg.GiB * gib / recordBytes)
	}
	var err error
	if st.Ports, err = freePorts(6); err != nil {
		return nil, err
	}
	return st, writeJSON(path, st)
}

// recordBytes is about what a record of YCSB's default shape takes, key and value.
const recordBytes = 1 << 10

func (st *bigState) properties(workload string, clients int, duration time.Duration) (ycsb.Properties, error) {
	p, err := properties(cellSpec{workload, clients}, config{Records: int(st.Records), Duration: duration})
	if err == nil {
		p["warmuptime"] = "0"
	}
	return p, err
}

func (st *bigState) measure(ctx context.Context, binary string, cfg bigConfig, missing []string) error {
	load, err := st.properties("a", 2048, 0) // about 32 a shard, which go into one batch
	if err != nil {
		return err
	}
	splits, err := ycsb.Splits(load, cfg.Shards)
	if err != nil {
		return err
	}
	s, err := startSharddAt(ctx, binary, cfg.Work, st.Ports, splits, cfg.Flags)
	if err != nil {
		return err
	}
	defer s.close()
	if err := st.load(ctx, s, cfg.Work, load, splits); err != nil {
		return err
	}
	for _, w := range missing {
		f := &bigFile{State: *st, Version: revision(ctx), Started: time.Now().UTC().Truncate(time.Second)}
		if err := f.measure(ctx, s, w, cfg); err != nil {
			return fmt.Errorf("workload %s: %w", w, err)
		}
		if err := writeJSON(filepath.Join(cfg.Dir, w+".json"), f); err != nil {
			return err
		}
	}
	return nil
}

// loadParts is how many parts a load has.
const loadParts = 50

func (st *bigState) load(ctx context.Context, s *system, work string, p ycsb.Properties, splits [][]byte) error {
	part := (st.Records + loadParts - 1) / loadParts
	for st.Loaded < st.Records {
		n := min(part, st.Records-st.Loaded)
		p["insertstart"], p["insertcount"] = strconv.FormatInt(st.Loaded, 10), strconv.FormatInt(n, 10)
		db, err := s.db(p)
		if err != nil {
			return err
		}
		before, err := s.engines(ctx)
		if err != nil {
			return err
		}
		began := time.Now()
		if _, err := ycsb.Load(ctx, ycsb.Config{DB: newBatches(db, s.shardd, splits), Name: "load", Properties: p}); err != nil {
			return fmt.Errorf("load: %w", err)
		}
		took := time.Since(began)
		waited, err := s.compacted(ctx, loadDepth)
		if err != nil {
			return err
		}
		after, err := s.engines(ctx)
		if err != nil {
			return err
		}
		st.Loaded, st.Seconds, st.Waited = st.Loaded+n, st.Seconds+took.Seconds(), st.Waited+waited.Seconds()
		st.Load = st.Load.plus(after.minus(before))
		fmt.Printf("loaded %d of %d records, %.0f a second\n", st.Loaded, st.Records, float64(st.Loaded)/st.Seconds)
		if err := writeJSON(filepath.Join(work, "state.json"), st); err != nil {
			return err
		}
	}
	return nil
}

// loadDepth is how many sublevels of L0 a load may leave to compactions before it goes on: nothing else slows it down, and
// once they are a hundred behind they do not catch up under it.
const loadDepth = 16

// compacted waits until no node's L0 is deeper.
func (s *system) compacted(ctx context.Context, depth float64) (time.Duration, error) {
	began := time.Now()
	for {
		deepest := 0.0
		for _, addr := range s.http {
			d, err := metricAt(ctx, addr, "shardd_engine_l0_sublevels")
			if err != nil {
				return 0, err
			}
			deepest = max(deepest, d)
		}
		if deepest <= depth {
			return time.Since(began), nil
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

func (f *bigFile) measure(ctx context.Context, s *system, workload string, cfg bigConfig) error {
	p, err := f.State.properties(workload, cfg.Clients, cfg.Duration)
	if err != nil {
		return err
	}
	db, err := s.db(p)
	if err != nil {
		return err
	}
	before, err := s.engines(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("YCSB %s for %s\n", strings.ToUpper(workload), cfg.Duration)
	spec := cellSpec{workload, cfg.Clients}
	c, err := measureCellWith(ctx, s, ycsb.Config{DB: db, Name: workload, Properties: p, Status: func(st ycsb.Status) {
		f.Rates, f.Errors = append(f.Rates, st.OpsPerSec), append(f.Errors, st.Errors)
		if len(f.Rates)%30 == 0 {
			fmt.Println("  " + st.String())
		}
	}}, spec)
	if err != nil {
		return err
	}
	f.Cell = *c
	after, err := s.engines(ctx)
	if err != nil {
		return err
	}
	f.Written = after.minus(before)
	f.UserBytes = float64(c.Report.Op("UPDATE").Count) * recordBytes
	if f.UserBytes > 0 {
		f.Amplification = (f.Written.WAL + f.Written.Flushed + f.Written.Compacted) / (3 * f.UserBytes)
	}
	if f.Disk, err = s.metric(ctx, "shardd_engine_disk_used_bytes"); err != nil {
		return err
	}
	f.pauses()
	return nil
}

// pauses finds the worst seconds; the last one is not a whole one.
func (f *bigFile) pauses() {
	row := 0
	for i, r := range f.Rates {
		if i == len(f.Rates)-1 && i > 0 {
			break
		}
		if i == 0 || r < f.Least {
			f.Least = r
		}
		if row++; r > 0 {
			row = 0
		}
		f.Longest = max(f.Longest, row)
	}
}

// engines is what the nodes' engines have written since they started.
func (s *system) engines(ctx context.Context) (u engineUse, err error) {
	for name, to := range map[string]*float64{
		"shardd_engine_wal_bytes_total": &u.WAL, "shardd_engine_flushed_bytes_total": &u.Flushed,
		"shardd_engine_compacted_bytes_total": &u.Compacted, "shardd_engine_write_stalls_total": &u.Stalls,
		"shardd_engine_write_stall_seconds_total": &u.Stalled,
	} {
		if *to, err = s.metric(ctx, name); err != nil {
			return u, err
		}
	}
	return u, nil
}

// metric is the sum of one metric over all nodes.
func (s *system) metric(ctx context.Context, name string) (sum float64, err error) {
	for _, addr := range s.http {
		v, err := metricAt(ctx, addr, name)
		if err != nil {
			return 0, err
		}
		sum += v
	}
	return sum, nil
}

func metricAt(ctx context.Context, addr, name string) (float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	sc := bufio.NewScanner(resp.Body)
	for sc.Scan() {
		if v, ok := strings.CutPrefix(sc.Text(), name+" "); ok {
			return strconv.ParseFloat(v, 64)
		}
	}
	return 0, errors.Join(fmt.Errorf("node at %s has no metric %s", addr, name), sc.Err())
}

func reportBig(dir string) error {
	var all []*bigFile
	for _, w := range []string{"a", "c"} {
		f := &bigFile{}
		if ok, err := readJSON(filepath.Join(dir, w+".json"), f); err != nil {
			return err
		} else if ok {
			all = append(all, f)
		}
	}
	if len(all) == 0 {
		return errors.New("nothing was measured")
	}
	text := bigTable(all)
	fmt.Print("\n" + text)
	if err := os.WriteFile(filepath.Join(dir, "table.md"), []byte(text), 0o644); err != nil {
		return err
	}
	return plotRates(all, filepath.Join(dir, "plot.png"))
}

func bigTable(all []*bigFile) string {
	var b strings.Builder
	st := &all[0].State
	fmt.Fprintf(&b, "%d records of 1 KiB (%.1f GiB, three copies) in %d shards at the start, %d clients, three processes, durable, on %s; %s, "+
		"%s.", st.Records, float64(st.Records)*recordBytes/(1<<30), st.Config.Shards, st.Config.Clients, all[0].Cell.Report.Machine,
		all[0].Version, all[0].Started.Format("2006-01-02"))
	if st.Note != "" {
		fmt.Fprintf(&b, " %s.", st.Note)
	}
	loaded := 3 * float64(st.Records) * recordBytes
	fmt.Fprintf(&b, " Loaded in batches in %.0f s, and %.0f of waiting until L0 was no deeper than %d sublevels, with a write amplification of %.1f (log %.1f, flushes %.1f, compactions %.1f) and %.0f write "+
		"stalls of %.1f s together.\n\n", st.Seconds, st.Waited, loadDepth, (st.Load.WAL+st.Load.Flushed+st.Load.Compacted)/loaded, st.Load.WAL/loaded,
		st.Load.Flushed/loaded, st.Load.Compacted/loaded, st.Load.Stalls, st.Load.Stalled)
	b.WriteString("| workload | minutes | ops/s | least in a second | longest seconds without an operation | p99 | write amplification " +
		"(log, flushes, compactions) | write stalls (s) | server CPU us/op | memory MiB | disk GiB | errors |\n")
	b.WriteString("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	for _, f := range all {
		user := max(3*f.UserBytes, 1)
		amp := "-"
		if f.UserBytes > 0 {
			amp = fmt.Sprintf("%.1f (%.1f, %.1f, %.1f)", f.Amplification, f.Written.WAL/user, f.Written.Flushed/user, f.Written.Compacted/user)
		}
		r := f.Cell.Report
		fmt.Fprintf(&b, "| YCSB %s | %.0f | %.0f | %.0f | %d | %.1f ms | %s | %.0f (%.1f) | %.1f | %.0f | %.1f | %d |\n",
			strings.ToUpper(f.Cell.Workload), r.Seconds/60, r.Total.OpsPerSec, f.Least, f.Longest, r.Total.Latency.P99/1000, amp,
			f.Written.Stalls, f.Written.Stalled, f.Cell.ServerCPU, float64(f.Cell.RSS)/(1<<20), f.Disk/(1<<30), r.Total.ErrorCount)
	}
	return b.String()
}
