package e2e

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shardd/shardd/bench/ycsb"
	"github.com/shardd/shardd/client"
	"github.com/shardd/shardd/e2e/harness"
)

// catchUp is how a follower came back, in bytes.
type catchUp struct {
	Missed    int     `json:"missed_bytes"`
	Log       float64 `json:"log_bytes_sent"`      // appends, of all leaders to all followers
	Snapshots float64 `json:"snapshot_bytes_sent"` // chunks
}

// lag is what the test of slow and absent followers shows.
type lag struct {
	Command  string       `json:"command"`
	Machine  ycsb.Machine `json:"machine"`
	SmallGap catchUp      `json:"small_gap"`
	BigGap   catchUp      `json:"big_gap"`
	// The slow follower: what the memory of the node that leads has grown by.
	LinkBitsPerSecond int     `json:"link_bits_per_second"`
	Seconds           float64 `json:"seconds"`
	Written           float64 `json:"written_mib"` // by the clients in that time
	HeapMiB           float64 `json:"live_heap_growth_mib"`
	PeakMiB           float64 `json:"live_heap_growth_peak_mib"` // of samples two seconds apart
	RSSMiB            float64 `json:"rss_growth_mib"`
	// What bounds it: the setting entry-cache, and per follower 128 messages of 64 KiB and the queue of its stream.
	EntryCacheMiB int `json:"entry_cache_setting_mib"`
	InFlightMiB   int `json:"in_flight_bound_mib"`
	QueueMiB      int `json:"queue_bound_mib"`
}

// bound is what a slow follower may cost its leader, in MiB of live heap: what is in flight waits in the queue.
func (l *lag) bound() float64 { return float64(l.EntryCacheMiB + max(l.InFlightMiB, l.QueueMiB)) }

// table is the result as text.
func (l *lag) table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Three nodes on %s, one shard, log-floor 1 MiB, log-shard-cap 4 MiB, entry-cache %d MiB, memtable and "+
		"cache 8 MiB. `%s`\n\n", l.Machine, l.EntryCacheMiB, l.Command)
	b.WriteString("| a follower that was down missed | sent of the log | sent of snapshots |\n|--:|--:|--:|\n")
	for _, g := range []catchUp{l.SmallGap, l.BigGap} {
		fmt.Fprintf(&b, "| %.2f MiB | %.2f MiB | %.2f MiB |\n", float64(g.Missed)/mib, g.Log/mib, g.Snapshots/mib)
	}
	fmt.Fprintf(&b, "\nA follower behind a link of %d kbit/s for %.0f s, %.0f MiB written by 16 clients: the live heap of the "+
		"leader's node grew by %.1f MiB (at most %.1f MiB in between), its resident memory by %.1f MiB. What bounds the growth is "+
		"the setting entry-cache (%d MiB) and, for each slow follower, what is on its way to it: 128 messages of 64 KiB "+
		"(%d MiB) in a queue that drops past %d MiB.\n", l.LinkBitsPerSecond/1000, l.Seconds, l.Written, l.HeapMiB, l.PeakMiB,
		l.RSSMiB, l.EntryCacheMiB, l.InFlightMiB, l.QueueMiB)
	return b.String()
}

// A follower that was away comes back through the log when it missed little and through a snapshot when it missed much;
// one behind a slow link costs its leader bounded memory.
func TestFiguresOfFollowersThatLag(t *testing.T) {
	dir, full := figures(t, "lag")
	path := filepath.Join(dir, "lag.json")
	out := lag{Command: figuresCommand(t), Machine: ycsb.DescribeMachine(), LinkBitsPerSecond: 256_000, EntryCacheMiB: 16,
		InFlightMiB: 8, QueueMiB: 64}
	if readResult(t, path, &out) {
		putText(t, filepath.Join(dir, "lag.md"), out.table())
		return
	}
	c := harness.New(t, binaries(t), 3)
	for _, n := range c.Nodes {
		n.Args = append(n.Args, "--pprof", "--log-floor", "1MiB", "--log-shard-cap", "4MiB", "--entry-cache", "16MiB",
			"--memtable", "8MiB", "--cache", "8MiB")
	}
	link := c.PutBehindProxy(2)
	c.StartAll()
	c.InitOn(splitsOf(1), 0, 1, 2)
	db := c.DB(client.WithTimeout(20 * time.Second))
	fill(t, db, 0, 12*mib)
	caughtUp(t, c)

	gap := func(bytes int) catchUp {
		c.Kill(2)
		fill(t, db, 0, bytes)
		log, snapshots := bytesSent(t, c)
		c.Start(2)
		caughtUp(t, c)
		nowLog, nowSnapshots := bytesSent(t, c)
		g := catchUp{Missed: bytes, Log: nowLog - log, Snapshots: nowSnapshots - snapshots}
		t.Logf("a follower that missed %.1f MiB got %.1f MiB of log and %.1f MiB of snapshots", float64(bytes)/mib,
			g.Log/mib, g.Snapshots/mib)
		return g
	}
	if out.SmallGap = gap(mib / 8); out.SmallGap.Snapshots > 0 {
		t.Errorf("a small gap cost a snapshot: %+v", out.SmallGap)
	}
	if out.BigGap = gap(12 * mib); out.BigGap.Snapshots == 0 {
		t.Errorf("a big gap cost no snapshot: %+v", out.BigGap)
	}

	// Leaders on the other two.
	for _, s := range c.Shards() {
		c.Until("leader away from the slow node", func(ctx context.Context) error {
			_, err := c.Admin.TransferLeader(ctx, s.GetShardId(), c.ID(0))
			return err
		})
	}
	watch := 9 * time.Second
	if full {
		watch = 3 * time.Minute
	}
	// Memtables and caches fill up first: they are not what the slow follower costs.
	warm, cancel := context.WithTimeout(t.Context(), watch/3)
	overwrite(warm, t, db)
	cancel()
	caughtUp(t, c)
	heap, rss := memory(t, c.Nodes[0])
	link.Throttle(int64(out.LinkBitsPerSecond / 8))
	ctx, cancel := context.WithTimeout(t.Context(), watch)
	from := time.Now()
	sampled := make(chan float64)
	go func() { sampled <- peakHeap(ctx, t, c.Nodes[0]) }()
	out.Written = overwrite(ctx, t, db) / mib
	peak := <-sampled
	cancel()
	out.Seconds = time.Since(from).Seconds()
	nowHeap, nowRSS := memory(t, c.Nodes[0])
	out.HeapMiB, out.RSSMiB = (nowHeap-heap)/mib, (nowRSS-rss)/mib
	out.PeakMiB = (max(peak, nowHeap) - heap) / mib
	t.Logf("%.0f s behind a link of %d kbit/s, %.1f MiB written: live heap of the leader +%.1f MiB, resident memory +%.1f MiB",
		out.Seconds, out.LinkBitsPerSecond/1000, out.Written, out.HeapMiB, out.RSSMiB)
	if out.PeakMiB > out.bound() {
		t.Errorf("live heap grew by %.1f MiB, more than %.0f MiB", out.PeakMiB, out.bound())
	}
	link.Throttle(0)
	caughtUp(t, c)
	c.WaitHealthy()
	c.Verify()
	if t.Failed() {
		return
	}
	putResult(t, path, out)
	putText(t, filepath.Join(dir, "lag.md"), out.table())
}

// peakHeap is the most live heap that a node had until ctx ended, in bytes.
func peakHeap(ctx context.Context, t *testing.T, n *harness.Node) (most float64) {
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return most
		case <-tick.C:
			heap, err := heapAlloc(ctx, n.HTTP)
			if err != nil && ctx.Err() == nil {
				t.Error(err)
				return most
			}
			most = max(most, float64(heap))
		}
	}
}

// overwrite writes 1 KiB values from 16 clients until ctx ends, and returns the bytes that were acknowledged.
func overwrite(ctx context.Context, t *testing.T, db *client.DB) float64 {
	t.Helper()
	const clients = 16
	sums := make(chan float64, clients)
	for i := range clients {
		go func() {
			sum, value := 0.0, make([]byte, 1024)
			for n := 0; ctx.Err() == nil; n++ {
				copy(value, fmt.Sprint(i, n))
				if _, err := db.All().Put(ctx, fmt.Appendf(nil, "00/over/%d/%d", i, n%1000), value); err == nil {
					sum += float64(len(value))
				}
			}
			sums <- sum
		}()
	}
	total := 0.0
	for range clients {
		total += <-sums
	}
	return total
}

// caughtUp waits until all replicas of all shards have applied the same.
func caughtUp(t *testing.T, c *harness.Cluster) {
	t.Helper()
	for _, s := range c.Shards() {
		if s.GetShardId() == 1 {
			continue // the cluster's own goes on by itself
		}
		c.Until("followers caught up", func(ctx context.Context) error {
			d, err := c.Admin.DescribeShard(ctx, s.GetShardId())
			if err != nil {
				return err
			}
			var most uint64
			for _, r := range d.GetReplicas() {
				most = max(most, r.GetApplied(), r.GetLastIndex())
			}
			for _, r := range d.GetReplicas() {
				if r.GetError() != "" || r.GetApplied() != most {
					return fmt.Errorf("s%d: n%d has applied %d of %d %s", s.GetShardId(), r.GetNodeId(), r.GetApplied(), most,
						r.GetError())
				}
			}
			return nil
		})
	}
}

// bytesSent sums what the nodes have sent since they started, of appends and of snapshots. Node 2 is left out: it is the
// one that comes and goes.
func bytesSent(t *testing.T, c *harness.Cluster) (log, snapshots float64) {
	t.Helper()
	for _, n := range c.Nodes[:2] {
		m := scrape(t, n.HTTP)
		log += m[`shardd_transport_sent_bytes{lane="bulk"}`]
		snapshots += m["shardd_snapshotter_sent_bytes"]
	}
	return log, snapshots
}

// memory is a node's live heap after a collection and its resident memory, in bytes.
func memory(t *testing.T, n *harness.Node) (heap, rss float64) {
	t.Helper()
	heap = float64(liveHeap(t, n.HTTP))
	return heap, scrape(t, n.HTTP)["process_resident_memory_bytes"]
}
