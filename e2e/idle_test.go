package e2e

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shardd/shardd/bench/ycsb"
	"github.com/shardd/shardd/client"
	"github.com/shardd/shardd/e2e/harness"
	"github.com/shardd/shardd/internal/base"
)

// idleFigures is what many shards cost on three nodes while nobody uses them, and how they come back after restarts and
// after the loss of a node. Settings are the defaults, but that shards are not merged.
type idleFigures struct {
	Command string       `json:"command"`
	Machine ycsb.Machine `json:"machine"`
	Shards  int          `json:"shards"`
	Made    float64      `json:"cluster_made_seconds"`

	// A cluster of one shard, and one of many that all sleep.
	Base   *idleUse `json:"one_shard,omitempty"`
	Asleep *idleUse `json:"asleep,omitempty"`
	// The same without sleep, and without leases too: nothing sleeps then either, and all heartbeats are sent. They are
	// coalesced for each pair of nodes.
	Awake    *idleUse `json:"awake,omitempty"`
	NoLeases *idleUse `json:"without_leases,omitempty"`
	// The difference of Asleep and Base by replica.
	HeapPerReplica float64 `json:"live_heap_bytes_per_replica"`
	// LessMemTables leaves out the writes that are not flushed yet, which a bound holds for the whole node.
	LessMemTables float64 `json:"live_heap_bytes_per_replica_without_memtables"`
	RSSPerReplica float64 `json:"rss_bytes_per_replica"`

	Lost       *lostNode    `json:"kill_9_of_a_node,omitempty"`
	RestartOne *idleRestart `json:"graceful_restart_of_one,omitempty"`
	RestartAll *idleRestart `json:"restart_of_all,omitempty"`
}

// idleUse is what three nodes use: CPU and messages in sum, memory as the mean of a node.
type idleUse struct {
	Seconds  float64 `json:"seconds"`
	CPU      float64 `json:"cpu_percent_of_a_core"`
	Messages float64 `json:"raft_messages_per_second"`
	Frames   float64 `json:"frames_per_second"`
	Asleep   float64 `json:"part_asleep"`
	Heap     uint64  `json:"live_heap_bytes_per_node"`
	// MemTables is the part of Heap that holds writes which are not flushed yet.
	MemTables uint64 `json:"memtable_bytes_per_node"`
	RSS       uint64 `json:"rss_bytes_per_node"`
}

// idleRestart is the time from the start of the processes.
type idleRestart struct {
	Stop     float64 `json:"stop_seconds"`
	Ready    float64 `json:"ready_seconds"`
	AllReads float64 `json:"all_shards_read_seconds"`
	Asleep   float64 `json:"all_asleep_seconds"`
}

// lostNode is what follows the loss of a node.
type lostNode struct {
	Shards int     `json:"shards_led"`
	P50    float64 `json:"write_p50_ms"`
	P99    float64 `json:"write_p99_ms"`
	Worst  float64 `json:"write_worst_ms"`
	// Terms is by how many terms the shards went on, RunOuts how often followers stood for election, by shard.
	Terms   float64 `json:"terms_per_shard"`
	RunOuts float64 `json:"elections_per_shard"`
	CPU     float64 `json:"cpu_seconds_until_written"`
	// A while later, with the node still down.
	Later *idleUse `json:"later"`
}

// What many shards cost while nobody uses them, how long they take to come back, and what the loss of a node does.
func TestFiguresOfIdleShards(t *testing.T) {
	dir, full := figures(t, "idle")
	s := &idleRun{t: t, path: filepath.Join(dir, "scale.json"), watch: 3 * time.Second, after: 2 * time.Second, full: full}
	f := &idleFigures{Command: figuresCommand(t), Machine: ycsb.DescribeMachine(), Shards: 300}
	if full {
		f.Shards, s.watch, s.after, s.rest = 10_000, time.Minute, 15*time.Second, 135*time.Second
	}
	readResult(t, s.path, f)
	s.f = f
	if f.Base == nil {
		s.make(1)
		s.settle(s.rest)
		f.Base = s.use()
		s.end()
	}
	if f.Asleep == nil || f.Lost == nil || f.RestartOne == nil || f.RestartAll == nil || f.Awake == nil ||
		f.NoLeases == nil {
		f.Made = s.make(f.Shards)
		s.measure()
		s.end()
	}
	if full {
		return
	}
	switch {
	case f.Asleep.Messages > float64(f.Shards)/10:
		t.Errorf("%d shards that sleep send %.1f messages a second", f.Shards, f.Asleep.Messages)
	case f.Asleep.Heap <= f.Base.Heap:
		t.Errorf("live heap of %d shards is %d bytes, of one shard %d: nothing was measured", f.Shards, f.Asleep.Heap, f.Base.Heap)
	case f.Lost.Shards == 0 || f.Lost.Terms < 1:
		t.Errorf("a node that led %d shards is gone, and their terms went on by %.2f", f.Lost.Shards, f.Lost.Terms)
	}
}

// idleRun is a cluster under measurement.
type idleRun struct {
	t    *testing.T
	f    *idleFigures
	path string
	full bool
	// For how long they are watched, after how long, and how long before that if they sleep: Go collects once more, two
	// minutes after the last use.
	watch, after, rest time.Duration
	c                  *harness.Cluster
	shards             int
}

func (s *idleRun) key(i int) []byte { return fmt.Appendf(nil, "%06d", i) }

// make starts three nodes with so many shards and waits until all sleep; it returns the seconds until they had leaders.
func (s *idleRun) make(shards int) float64 {
	s.t.Helper()
	s.c, s.shards = harness.New(s.t, binaries(s.t), 3), shards
	for _, n := range s.c.Nodes {
		n.Balance, n.Args = true, append(n.Args, "--pprof", "--merge-size=-1")
	}
	s.c.StartAll()
	var splits [][]byte
	for i := 1; i < shards; i++ {
		splits = append(splits, s.key(i))
	}
	began := time.Now()
	s.c.Init(splits)
	made := time.Since(began).Seconds()
	s.t.Logf("%d shards have leaders after %.1f s", shards, made)
	return made
}

func (s *idleRun) end() {
	for i := range s.c.Nodes {
		s.c.Kill(i)
	}
}

// save keeps what is known so far.
func (s *idleRun) save(what string, v any) {
	s.t.Helper()
	s.t.Logf("%s: %+v", what, v)
	if !s.t.Failed() {
		putResult(s.t, s.path, s.f)
	}
}

func (s *idleRun) measure() {
	f := s.f
	s.untilAsleep()
	if f.Asleep == nil {
		s.settle(s.rest)
		f.Asleep = s.use()
		f.HeapPerReplica = (float64(f.Asleep.Heap) - float64(f.Base.Heap)) / float64(f.Shards-1)
		f.LessMemTables = f.HeapPerReplica - (float64(f.Asleep.MemTables)-float64(f.Base.MemTables))/float64(f.Shards-1)
		f.RSSPerReplica = (float64(f.Asleep.RSS) - float64(f.Base.RSS)) / float64(f.Shards-1)
		s.save("asleep", *f.Asleep)
	}
	if f.Lost == nil {
		f.Lost = s.lose()
		s.save("lost", *f.Lost)
	}
	if f.RestartOne == nil {
		f.RestartOne = s.restart(1)
		s.save("restart of one", *f.RestartOne)
	}
	if f.RestartAll == nil {
		f.RestartAll = s.restart(0, 1, 2)
		s.save("restart of all", *f.RestartAll)
	}
	for _, o := range []struct {
		use        **idleUse
		name, flag string
	}{{&f.Awake, "awake", "--sleep=false"}, {&f.NoLeases, "without leases", "--leases=false"}} {
		if *o.use == nil {
			*o.use = s.useWith(o.flag)
			s.save(o.name, **o.use)
		}
	}
}

// useWith starts the nodes anew, with one more flag, and watches them.
func (s *idleRun) useWith(flag string) *idleUse {
	s.t.Helper()
	s.stop(0, 1, 2)
	for i, n := range s.c.Nodes {
		args := n.Args
		n.Args = append(slices.Clone(args), flag)
		s.c.Launch(i)
		n.Args = args
	}
	s.c.WaitHealthy() // every shard has a leader
	s.settle(0)
	return s.use()
}

// untilAsleep waits until all replicas on nodes that run sleep, but for a few, such as of the shard that is read all the
// time.
func (s *idleRun) untilAsleep() {
	s.t.Helper()
	s.c.Until("shards sleep", func(context.Context) error {
		if part := s.sum().asleep; part < 0.99-3/float64(s.shards) {
			return fmt.Errorf("%.3f of the replicas sleep", part)
		}
		return nil
	})
}

// settle waits for as long as it takes the last ones to fall asleep, and the nodes to tell each other. It is not a wait for
// a condition.
func (s *idleRun) settle(more time.Duration) {
	select {
	case <-time.After(s.after + more):
	case <-s.t.Context().Done():
	}
}

// nodeSums are figures of all nodes that run.
type nodeSums struct {
	nodes                    int
	cpu                      float64 // seconds
	messages, frames         float64
	replicas, asleep, runOut float64 // asleep is a part of replicas
	rss, memTables           float64
}

func (s *idleRun) sum() (sum nodeSums) {
	s.t.Helper()
	for _, n := range s.c.Nodes {
		if n.Proc == nil || !n.Proc.Running() {
			continue
		}
		sum.nodes++
		for name, v := range scrape(s.t, n.HTTP) {
			name, _, _ = strings.Cut(name, "{")
			switch name {
			case "process_cpu_seconds_total":
				sum.cpu += v
			case "process_resident_memory_bytes":
				sum.rss += v
			case "shardd_engine_memtable_bytes":
				sum.memTables += v
			case "shardd_transport_sent_messages_total":
				sum.messages += v
			case "shardd_transport_sent_frames_total":
				sum.frames += v
			case "shardd_shard_replicas":
				sum.replicas += v
			case "shardd_shard_asleep":
				sum.asleep += v
			case "shardd_shard_run_outs_total":
				sum.runOut += v
			}
		}
	}
	sum.asleep /= max(sum.replicas, 1)
	return sum
}

// use watches the nodes for a while.
func (s *idleRun) use() *idleUse {
	s.t.Helper()
	before, began := s.sum(), time.Now()
	select { // not a wait for a condition: this is the time over which they are watched
	case <-time.After(s.watch):
	case <-s.t.Context().Done():
	}
	after, sec := s.sum(), time.Since(began).Seconds()
	u := &idleUse{
		Seconds: sec, CPU: (after.cpu - before.cpu) / sec * 100, Messages: (after.messages - before.messages) / sec,
		Frames: (after.frames - before.frames) / sec, Asleep: after.asleep,
		RSS: uint64(after.rss) / uint64(after.nodes), MemTables: uint64(after.memTables) / uint64(after.nodes),
	}
	for _, n := range s.c.Nodes {
		if n.Proc.Running() {
			u.Heap += liveHeap(s.t, n.HTTP) / uint64(after.nodes)
		}
	}
	return u
}

// stop ends nodes in order, at the same time, and returns the seconds that it took.
func (s *idleRun) stop(nodes ...int) float64 {
	s.t.Helper()
	began := time.Now()
	var wg sync.WaitGroup
	for _, i := range nodes {
		wg.Go(func() {
			if code, err := s.c.Nodes[i].Proc.Stop(harness.Patience); err != nil || code != 0 {
				s.t.Errorf("graceful stop of node %d: exit code %d, %v", i, code, err)
			}
		})
	}
	wg.Wait()
	return time.Since(began).Seconds()
}

// restart stops nodes in order and starts them again; every shard is then read through them alone.
func (s *idleRun) restart(nodes ...int) *idleRestart {
	s.t.Helper()
	r := &idleRestart{Stop: s.stop(nodes...)}
	began := time.Now()
	var addrs []string
	for _, i := range nodes {
		s.c.Launch(i)
		addrs = append(addrs, s.c.Nodes[i].Addr)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for _, i := range nodes {
			err := harness.Until(s.t.Context(), harness.Patience, func(ctx context.Context) error {
				_, err := readyz(ctx, s.c.Nodes[i].HTTP)
				return err
			})
			if err != nil {
				s.t.Errorf("node %d is not ready: %v", i, err)
			}
		}
		r.Ready = time.Since(began).Seconds()
	})
	s.read(addrs)
	r.AllReads = time.Since(began).Seconds()
	wg.Wait()
	s.untilAsleep()
	r.Asleep = time.Since(began).Seconds()
	return r
}

// read reads every shard through nodes, some at a time, until all have answered.
func (s *idleRun) read(addrs []string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), harness.Patience)
	defer cancel()
	var db *client.DB
	err := harness.Until(ctx, harness.Patience, func(ctx context.Context) (err error) {
		db, err = client.Open(ctx, addrs, client.WithTimeout(harness.Patience))
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	defer db.Close()
	const readers = 64
	var wg sync.WaitGroup
	for k := range readers {
		wg.Go(func() {
			for i := k; i < s.shards && !s.t.Failed(); i += readers {
				if _, err := db.All().Get(ctx, s.key(i)); err != nil && !errors.Is(err, client.ErrNotFound) {
					s.t.Errorf("read shard %d: %v", i, err)
				}
			}
		})
	}
	wg.Wait()
	if s.t.Failed() {
		s.t.FailNow()
	}
}

// lose kills the node that leads most, writes to every shard that it led, and watches the others.
func (s *idleRun) lose() *lostNode {
	s.t.Helper()
	db := s.c.DB(client.WithTimeout(harness.Patience))
	s.read(s.c.Addrs()) // sleepers stay asleep; but the client's routes have to be known
	victim, _ := s.c.Busiest()
	id := s.c.ID(victim)
	terms := map[uint64]uint64{}
	var keys [][]byte
	for _, info := range s.c.Shards() {
		if info.GetLeader() == id && len(info.GetStart()) > 0 && info.GetStart()[0] == base.SpaceUser {
			terms[info.GetShardId()] = info.GetTerm()
			keys = append(keys, append(info.GetStart()[1:], "/w"...))
		}
	}
	for _, k := range keys { // also this client's
		if _, err := db.All().Get(s.t.Context(), k); err != nil && !errors.Is(err, client.ErrNotFound) {
			s.t.Fatal(err)
		}
	}
	s.untilAsleep()
	before := s.sum()
	dead := scrape(s.t, s.c.Nodes[victim].HTTP)
	before.cpu -= dead["process_cpu_seconds_total"]
	before.runOut -= dead["shardd_shard_run_outs_total"]
	began := time.Now()
	s.c.Kill(victim)
	took := make([]time.Duration, len(keys))
	ctx, cancel := context.WithTimeout(s.t.Context(), harness.Patience)
	defer cancel()
	var wg sync.WaitGroup
	for i, k := range keys {
		wg.Go(func() {
			_, err := db.All().Put(ctx, k, []byte("x"))
			for errors.Is(err, client.ErrAmbiguous) { // it was sent to the node before that was gone
				_, err = db.All().Put(ctx, k, []byte("x"))
			}
			if err != nil {
				s.t.Errorf("write to a shard that has lost its leader: %v", err)
			}
			took[i] = time.Since(began)
		})
	}
	wg.Wait()
	after := s.sum()
	l := &lostNode{Shards: len(keys), CPU: after.cpu - before.cpu}
	ms := inMS(took)
	g := sumGaps(ms) // sorts them
	l.P50, l.Worst = g.P50, g.Max
	l.P99 = ms[min(len(ms)-1, len(ms)*99/100)]
	s.c.WaitServing()
	for _, info := range s.c.Shards() {
		if was, ok := terms[info.GetShardId()]; ok {
			l.Terms += float64(info.GetTerm()-was) / float64(len(keys))
		}
	}
	l.RunOuts = (after.runOut - before.runOut) / float64(len(keys))
	s.settle(0)
	watch := s.watch
	s.watch = min(watch, 30*time.Second)
	l.Later = s.use()
	s.watch = watch
	s.c.Start(victim)
	s.c.WaitHealthy()
	s.untilAsleep()
	return l
}
