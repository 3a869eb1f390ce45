package e2e

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shardd/shardd/bench/ycsb"
	"github.com/shardd/shardd/client"
	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/e2e/harness"
	"github.com/shardd/shardd/internal/base"
)

// window is YCSB B for a while, with or without snapshots between two nodes.
type window struct {
	Load      string  `json:"load"` // closed or open
	Stream    bool    `json:"stream"`
	Seconds   float64 `json:"seconds"`
	OpsPerSec float64 `json:"ops_per_sec"`
	P99       float64 `json:"p99_us"` // of all operations
	ReadP99   float64 `json:"read_p99_us"`
	UpdateP99 float64 `json:"update_p99_us"`
	ReadP50   float64 `json:"read_p50_us"`
	UpdateP50 float64 `json:"update_p50_us"`
	Errors    int64   `json:"errors"`
	// Of chunks, while the window lasted, and how many snapshots were installed in it.
	Streamed  float64 `json:"streamed_mib"`
	Snapshots float64 `json:"snapshots_installed"`
	Cores     float64 `json:"server_cores"` // of processor time, all nodes together
}

// foreground is the result file; a run that was interrupted goes on after the last window in it.
type foreground struct {
	Command  string       `json:"command"`
	Machine  ycsb.Machine `json:"machine"`
	ShardMiB int          `json:"streamed_shard_mib"`
	Limit    string       `json:"snapshot_limit"`
	Records  int          `json:"records"`
	Clients  int          `json:"clients"`
	Target   int          `json:"open_loop_ops_per_sec"`
	Windows  []window     `json:"windows"`
	// Ratios of the medians, with the stream over without, by load.
	Ratio map[string]float64 `json:"p99_ratio"`
}

const snapshotLimit = "32 MiB/s" // the default of snapshot-send-limit and snapshot-receive-limit

// The latency of YCSB B, on 16 shards of three nodes, while snapshots of another shard go from its leader to a fourth
// node at the default limit, in windows that alternate with windows without them.
func TestFiguresOfForegroundBesideSnapshots(t *testing.T) {
	dir, full := figures(t, "snapshot")
	f := &foreground{Machine: ycsb.DescribeMachine(), Limit: snapshotLimit, ShardMiB: 24, Records: 2000, Clients: 64,
		Target: 500, Command: figuresCommand(t)}
	pairs, length, warm := 1, 2*time.Second, time.Second
	if full {
		f.ShardMiB, f.Records, f.Target = 1024, 100_000, 5000
		pairs, length, warm = 5, 20*time.Second, 10*time.Second
	}
	path := filepath.Join(dir, "foreground.json")
	if want := *f; readResult(t, path, f) && (f.Machine != want.Machine || f.Limit != want.Limit ||
		f.ShardMiB != want.ShardMiB || f.Records != want.Records || f.Target != want.Target) {
		t.Fatalf("%s was measured with other settings or on another machine: remove it to measure anew", path)
	}
	loads := []string{"closed", "open"}
	if len(f.Windows) < len(loads)*pairs*2 {
		s := newForegroundRun(t, f)
		for _, load := range loads {
			s.ycsb(load, warm)
			for i := s.done(load); i < pairs*2; i++ {
				w := s.window(load, i%2 == 1, length)
				t.Logf("%+v", w)
				if w.Stream == (w.Streamed == 0) {
					t.Errorf("streamed %.1f MiB in a window that should have a stream: %t", w.Streamed, w.Stream)
				}
				f.Windows = append(f.Windows, w)
				f.sum()
				if !t.Failed() {
					putResult(t, path, f)
				}
			}
		}
	}
	putText(t, filepath.Join(dir, "foreground.md"), f.table())
}

// foregroundRun is the cluster that is measured.
type foregroundRun struct {
	*foreground
	t     *testing.T
	c     *harness.Cluster
	db    *client.DB
	big   uint64 // the shard that is streamed
	extra uint64 // the node that it is streamed to
}

func newForegroundRun(t *testing.T, f *foreground) *foregroundRun {
	t.Helper()
	c := harness.New(t, binaries(t), 4)
	for i := range 3 {
		c.Start(i)
	}
	c.InitOn(append([][]byte{[]byte("1")}, ycsbSplits(t, 16, f.Records)...), 0, 1, 2)
	s := &foregroundRun{foreground: f, t: t, c: c, db: c.DB(client.WithTimeout(30 * time.Second))}
	s.extra = c.Join(3)
	for _, sh := range c.Shards() {
		if bytes.Equal(sh.GetEnd(), base.UserKey([]byte("1"))) {
			s.big = sh.GetShardId()
		}
	}
	began := time.Now()
	fill(t, s.db, 0, f.ShardMiB*mib)
	t.Logf("filled s%d with %d MiB in %s", s.big, f.ShardMiB, time.Since(began).Round(time.Second))
	db, err := ycsb.NewClient(s.db, s.properties("closed"))
	if err == nil {
		_, err = ycsb.Load(t.Context(), ycsb.Config{DB: db, Name: "load", Properties: s.properties("closed")})
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *foregroundRun) properties(load string) ycsb.Properties {
	s.t.Helper()
	p, err := ycsb.Workload("b")
	if err != nil {
		s.t.Fatal(err)
	}
	p["recordcount"], p["threadcount"] = strconv.Itoa(s.Records), strconv.Itoa(s.Clients)
	if load == "open" {
		p["target"] = strconv.Itoa(s.Target)
	}
	return p
}

func (s *foregroundRun) ycsb(load string, length time.Duration) *ycsb.Report {
	s.t.Helper()
	p := s.properties(load)
	p.Bound(0, length)
	db, err := ycsb.NewClient(s.db, p)
	if err != nil {
		s.t.Fatal(err)
	}
	r, err := ycsb.Run(s.t.Context(), ycsb.Config{DB: db, Name: "b", Properties: p})
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

func (s *foregroundRun) window(load string, stream bool, length time.Duration) window {
	s.t.Helper()
	stop := func() {}
	if stream {
		stop = s.stream()
	}
	bytes, installed := s.streamed()
	cpu, began := cpuOf(s.t, s.c), time.Now()
	r := s.ycsb(load, length)
	w := window{Load: load, Stream: stream, Seconds: r.Seconds, OpsPerSec: r.Total.OpsPerSec, P99: r.Total.Latency.P99,
		ReadP99: r.Op("READ").Latency.P99, UpdateP99: r.Op("UPDATE").Latency.P99, ReadP50: r.Op("READ").Latency.P50,
		UpdateP50: r.Op("UPDATE").Latency.P50, Errors: r.Total.ErrorCount}
	w.Cores = (cpuOf(s.t, s.c) - cpu).Seconds() / time.Since(began).Seconds()
	nowBytes, nowInstalled := s.streamed()
	w.Streamed, w.Snapshots = (nowBytes-bytes)/mib, nowInstalled-installed
	stop()
	return w
}

// stream gives the fourth node a learner of the shard and takes it away again, over and over. It returns once the first
// bytes flow; the function that it returns lets the round under way end.
func (s *foregroundRun) stream() (stop func()) {
	s.t.Helper()
	before, _ := s.streamed()
	ctx, cancel := context.WithCancel(s.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			add := harness.Add(s.big, s.extra)
			add.Learner = true
			// The removal follows at once, so that streams follow each other as closely as jobs allow.
			if s.job(add.GetKind(), func(c context.Context) (uint64, error) { return s.c.Begin(c, add) }) {
				remove := harness.Remove(s.big, s.extra)
				s.job(remove.GetKind(), func(c context.Context) (uint64, error) { return s.c.Begin(c, remove) })
			}
			if s.t.Failed() {
				return
			}
		}
	}()
	s.c.Until("snapshot stream begins", func(context.Context) error {
		if now, _ := s.streamed(); now == before {
			return fmt.Errorf("nothing of s%d has been sent to n%d", s.big, s.extra)
		}
		return nil
	})
	return func() {
		cancel()
		<-done
	}
}

// job runs one to its end; a failure fails the test.
func (s *foregroundRun) job(kind string, begin func(context.Context) (uint64, error)) bool {
	id, err := begin(s.t.Context())
	if err != nil {
		s.t.Errorf("begin %s of s%d: %v", kind, s.big, err)
		return false
	}
	j, err := s.c.Await(s.t.Context(), id, 2*harness.Patience)
	if err != nil || j.GetState() != admin.JobDone {
		s.t.Errorf("%s of s%d has not ended well: %s: %v", kind, s.big, harness.Steps(j), err)
		return false
	}
	return true
}

// streamed is what the first three nodes have sent and the fourth has installed.
func (s *foregroundRun) streamed() (bytes, installed float64) {
	s.t.Helper()
	for _, n := range s.c.Nodes[:3] {
		bytes += scrape(s.t, n.HTTP)["shardd_snapshotter_sent_bytes"]
	}
	name := `shardd_snapshotter_ended_total{result="received",side="receive"}`
	return bytes, scrape(s.t, s.c.Nodes[3].HTTP)[name]
}

func (f *foreground) done(load string) (n int) {
	for _, w := range f.Windows {
		if w.Load == load {
			n++
		}
	}
	return n
}

// median of one figure of all windows of a kind; 0 if there are none.
func (f *foreground) median(load string, stream bool, get func(w window) float64) float64 {
	var all []float64
	for _, w := range f.Windows {
		if w.Load == load && w.Stream == stream {
			all = append(all, get(w))
		}
	}
	return median(all)
}

// median is 0 for no figures.
func median(all []float64) float64 {
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return (all[len(all)/2] + all[(len(all)-1)/2]) / 2
}

func (f *foreground) sum() {
	f.Ratio = map[string]float64{}
	for _, load := range []string{"closed", "open"} {
		for name, get := range map[string]func(window) float64{
			"":        func(w window) float64 { return w.P99 },
			"_read":   func(w window) float64 { return w.ReadP99 },
			"_update": func(w window) float64 { return w.UpdateP99 },
		} {
			if without := f.median(load, false, get); without > 0 {
				f.Ratio[load+name] = f.median(load, true, get) / without
			}
		}
	}
}

// table is the result as text.
func (f *foreground) table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "YCSB B, %d records on 16 shards of three nodes, %d clients, while snapshots of another shard of %d MiB "+
		"go from its leader to a fourth node at the default limit of %s, in turn with windows without them. The fourth node "+
		"drops its replica and gets it again for as long as a window lasts. All four nodes and the clients share %s. Closed: "+
		"each client starts an operation when its last one has ended; open: %d operations per second, latency counts from the "+
		"intended start. `%s`\n\n", f.Records, f.Clients, f.ShardMiB, f.Limit, f.Machine, f.Target, f.Command)
	b.WriteString("| load | window | stream | MiB streamed | snapshots | ops/s | read p50 / p99 | update p50 / p99 | " +
		"p99 of all | errors | server cores |\n|---|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	for i, w := range f.Windows {
		stream := "no"
		if w.Stream {
			stream = "yes"
		}
		fmt.Fprintf(&b, "| %s | %d | %s | %.0f | %.0f | %.0f | %.2f / %.2f ms | %.2f / %.2f ms | %.2f ms | %d | %.2f |\n",
			w.Load, i+1, stream, w.Streamed, w.Snapshots, w.OpsPerSec, w.ReadP50/1000, w.ReadP99/1000, w.UpdateP50/1000,
			w.UpdateP99/1000, w.P99/1000, w.Errors, w.Cores)
	}
	b.WriteString("\n| load | median p99 without | with | ratio | ratio, reads | ratio, updates |\n|---|--:|--:|--:|--:|--:|\n")
	for _, load := range []string{"closed", "open"} {
		p99 := func(w window) float64 { return w.P99 / 1000 }
		fmt.Fprintf(&b, "| %s | %.2f ms | %.2f ms | %.2f | %.2f | %.2f |\n", load, f.median(load, false, p99),
			f.median(load, true, p99), f.Ratio[load], f.Ratio[load+"_read"], f.Ratio[load+"_update"])
	}
	return b.String()
}
