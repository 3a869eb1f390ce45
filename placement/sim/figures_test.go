package sim_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shardd/shardd/bench/ycsb"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement/plan"
	"github.com/shardd/shardd/placement/sim"
)

// planning is what it costs to plan for one cluster. Times are of the processor, not of the clock on the wall: those of
// all threads of the process, the collector included, so that other work on the machine does not show.
type planning struct {
	Stores   int `json:"stores"`
	Shards   int `json:"shards"`
	Replicas int `json:"replicas"`
	// BytesPerShard is the heap that the view holds once all stores have reported, by shard.
	BytesPerShard float64 `json:"view_bytes_per_shard"`
	// Full is taking in a full report of all stores, First the first round, which checks every shard.
	Full      float64 `json:"full_reports_cpu_ms"`
	PerReport float64 `json:"full_report_cpu_us_per_replica"`
	First     float64 `json:"first_round_cpu_ms"`
	// Quiet is a round in which nothing has changed, Beat taking in the reports of all stores that have nothing to tell.
	Quiet float64 `json:"quiet_round_cpu_ms"`
	Beat  float64 `json:"empty_reports_cpu_ms"`
	// Changed is for 1,000 shards that got another leader: taking in the reports, and the round.
	ChangedReports float64 `json:"changed_1000_reports_cpu_ms"`
	Changed        float64 `json:"changed_1000_round_cpu_ms"`
	ChangedChecked int     `json:"changed_1000_shards_checked"`
	// Lost is the round in which one store counts as down, Healing those after it, in the mean.
	Lost        float64 `json:"store_lost_round_cpu_ms"`
	LostChecked int     `json:"store_lost_shards_checked"`
	Healing     float64 `json:"healing_round_cpu_ms"`
	Rounds      int     `json:"healing_rounds"`
	Moves       int     `json:"healing_moves"`
	// Healed is the simulated time from the loss until every shard had all its replicas again.
	Healed float64 `json:"healed_after_s"`
}

type planningFigures struct {
	Command string       `json:"command"`
	Machine ycsb.Machine `json:"machine"`
	Runs    []planning   `json:"runs"`
}

const planningCommand = "SHARDD_E2E=figures go test -count 1 -timeout 1h -v -run TestFiguresOfPlanning ./placement/sim"

// TestFiguresOfPlanning measures what planning costs: that it follows what changes, not how much there is. A million
// shards are planned for only if SHARDD_E2E=figures, which also writes docs/results/sim/planning.json. Times are never
// asserted; how many shards were looked at is.
func TestFiguresOfPlanning(t *testing.T) {
	sizes, repeats := [][2]int{{30, 1000}, {30, 4000}}, 3
	full := os.Getenv("SHARDD_E2E") == "figures"
	if full {
		sizes, repeats = [][2]int{{1000, 100_000}, {1000, 300_000}, {1000, 1_000_000}}, 5
	}
	f := planningFigures{Command: planningCommand, Machine: ycsb.DescribeMachine()}
	path := filepath.Join("..", "..", "docs", "results", "sim", "planning.json")
	if full {
		if text, err := os.ReadFile(path); err == nil {
			var old planningFigures
			if err := json.Unmarshal(text, &old); err != nil {
				t.Fatal(err)
			}
			if old.Machine != f.Machine {
				t.Fatalf("%s is of %s: move it away to measure anew", path, old.Machine)
			}
			f.Runs = old.Runs // an interrupted run goes on after the last size in it
		}
	}
	for _, size := range sizes[min(len(f.Runs), len(sizes)):] {
		p := measurePlanning(t, size[0], size[1], repeats)
		t.Logf("%+v", p)
		f.Runs = append(f.Runs, p)
		if full {
			writePlanning(t, path, &f)
		}
	}
}

func writePlanning(t *testing.T, path string, f *planningFigures) {
	t.Helper()
	text, err := json.MarshalIndent(f, "", "  ")
	if err == nil {
		err = os.MkdirAll(filepath.Dir(path), 0o755)
	}
	if err == nil {
		err = os.WriteFile(path, append(text, '\n'), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func timed(f func()) time.Duration {
	began := cpu()
	f()
	return cpu() - began
}

// cpu is the processor time that the process has used.
func cpu() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &ts); err != nil {
		panic(err)
	}
	return time.Duration(ts.Nano())
}

// mean runs f a number of times and returns what one run took. The clock of the processor may tick only every 10 ms.
func mean(n int, f func()) time.Duration {
	return timed(func() {
		for range n {
			f()
		}
	}) / time.Duration(n)
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func measurePlanning(t *testing.T, stores, shards, repeats int) planning {
	c := sim.New(plan.Config{}, sim.Options{NoDigests: true, Stopwatch: cpu})
	zones := [3][]base.StoreID{}
	for i := range stores {
		id := c.AddNode(map[string]string{"zone": string("abc"[i%3]), "host": fmt.Sprint(i)}, 1<<40)
		zones[i%3] = append(zones[i%3], id)
	}
	c.AddShards(shards, 64<<20, func(i int) []base.StoreID {
		// The first one leads. Every store gets its share of the leaders, and of the others: what is measured is a cluster at
		// rest, not one that needs a transfer for a third of its shards first.
		var out []base.StoreID
		for z := range zones {
			k, n := i/3, len(zones[z])
			if z != i%3 {
				k = 7*k + 31*z + 13*(i%3)
			}
			out = append(out, zones[z][k%n])
		}
		return slices.Concat(out[i%3:], out[:i%3])
	})
	p := planning{Stores: stores, Shards: c.Shards(), Replicas: 3 * c.Shards()}

	before := heap()
	took := timed(c.Report)
	p.BytesPerShard = float64(heap()-before) / float64(c.Shards())
	p.Full, p.PerReport = ms(took), float64(took.Nanoseconds())/1000/float64(p.Replicas)
	p.First = ms(timed(c.Round))
	if n := c.Last().Checked; n < c.Shards() {
		t.Errorf("the first round checked %d of %d shards", n, c.Shards())
	}
	if !c.Settle(50, 12*time.Hour) {
		t.Fatalf("%d shards do not come to rest", shards)
	}

	p.Quiet = ms(mean(200*repeats, c.Round))
	if r := c.Last(); r.Checked+r.Scanned > 0 || len(r.Ops) > 0 {
		t.Errorf("a quiet round checked %d shards, looked at %d, and proposed %v", r.Checked, r.Scanned, r.Ops)
	}
	p.Beat = ms(mean(50*repeats, c.Report))

	rng := rand.New(rand.NewPCG(7, 7))
	var reports, rounds time.Duration
	for range repeats {
		for range 1000 {
			c.Transfer(base.ShardID(2 + rng.IntN(shards)))
		}
		reports += timed(c.Report)
		rounds += timed(c.Round)
		p.ChangedChecked = max(p.ChangedChecked, c.Last().Checked)
		if !c.Settle(20, 12*time.Hour) {
			t.Fatal("it does not come to rest after changes of leaders")
		}
	}
	p.ChangedReports, p.Changed = ms(reports)/float64(repeats), ms(rounds)/float64(repeats)
	if p.ChangedChecked > 3000 {
		t.Errorf("1,000 shards changed, %d were checked", p.ChangedChecked)
	}
	lost := c.Nodes()[4]
	held := c.Counts()[4].Replicas
	c.Lose(lost)
	began, down := c.Now(), c.Config().DownAfter
	for c.Now() < began+down-2*time.Second {
		c.Step()
	}
	c.ResetStats()
	var healing time.Duration
	for len(c.Wrong()) > 0 || p.LostChecked == 0 {
		if p.Rounds > 100_000 {
			t.Fatalf("not healed: %v", c.Wrong())
		}
		took := c.TimedStep()
		if n := c.Last().Checked; p.LostChecked == 0 && n >= held {
			p.Lost, p.LostChecked = ms(took), n
		}
		// Wrong looks at every shard, which takes longer than many rounds.
		for i := 0; i < max(20, shards/10_000) && p.LostChecked > 0; i++ {
			healing += c.TimedStep()
			p.Rounds++
		}
	}
	if p.LostChecked > 4*held {
		t.Errorf("a store with %d replicas was lost, %d shards were checked", held, p.LostChecked)
	}
	p.Moves, p.Healed = c.Stats().Done[plan.OpMove], (c.Now() - began).Seconds()
	p.Healing = ms(healing) / float64(max(p.Rounds, 1))
	if f := c.Faults(); len(f) > 0 {
		t.Fatalf("%q", f)
	}
	return p
}
